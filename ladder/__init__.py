"""The shared code: what the rungs use and no rung teaches.

A rung defines when the model runs and how a token gets back to the client. What stays the same from rung to
rung is here, in rooms: `llm` the model, `engine` what an engine is made of, `web` the HTTP side, `predict`
and `files` what rungs 10 to 12 serve, `lab` the measuring client and the demos. Modules outside the rooms may
be imported by all of them. No module here imports a rung.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar, overload

ROOT = Path(__file__).parent.parent
"""The folder of the rungs."""

FinishReason = Literal["stop", "length"]
"""Why a text ended: with a stop token, or at its `max_tokens`."""


Lent = TypeVar("Lent")


@overload
def import_rung(name: str) -> ModuleType: ...
@overload
def import_rung(name: str, lends: type[Lent]) -> Lent: ...
def import_rung(name: str, lends: type[object] = ModuleType) -> object:
    """Another rung, for the part of it that is needed unchanged; its name is no Python identifier.

    `lends` is the protocol that describes this part to a type checker.
    """
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # a notebook runs in a folder of its own
    return importlib.import_module(name)
