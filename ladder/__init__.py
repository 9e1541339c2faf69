"""The floor: what every rung of the ladder stands on and no rung teaches.

A rung owns when the model runs and how a token gets back to the client. Everything that stays
the same from rung to rung is here: the decoder, sampling, tokenizing, the request schema, the
command line, starting and stopping a server, the measuring client and the terminal display.
The floor never imports a rung.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

ROOT = Path(__file__).parent.parent
"""The folder of the rungs."""

FinishReason = Literal["stop", "length"]
"""Why a text ended: with a stop token, or at its `max_tokens`."""


def import_rung(name: str) -> ModuleType:
    """Another rung, for the part of it that is needed unchanged; its name is no Python identifier."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # a notebook runs in a folder of its own
    return importlib.import_module(name)
