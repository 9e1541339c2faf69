"""Compares what rungs lend to each other with the protocols that describe it to a type checker."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from ladder.web import protocols
from tests.support import import_rung

LENDERS = {
    "02_async_streaming.py": protocols.StreamingRung,
    "03_batching.py": protocols.BatchingRung,
    "04_continuous_batching.py": protocols.ContinuousRung,
}

Signature = list[tuple[str, Any, bool]]
"""Each parameter by its name, its kind and whether it has a default."""


def signature(function: Callable[..., Any], bound: bool = False) -> Signature:
    parameters = [*inspect.signature(function).parameters.values()][bound:]
    return [(one.name, one.kind, one.default is not inspect.Parameter.empty) for one in parameters]


def methods(protocol: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield name, member


def differences(protocol: type, lender: Any, bound: bool = False) -> list[str]:
    """The names under which the lender has something else than the protocol says."""
    wrong = []
    for name, described in methods(protocol):
        lent = getattr(lender, name, None)
        if not callable(lent) or signature(lent, bound) != signature(described, bound=True):
            wrong.append(name)
        elif inspect.isclass(lent):
            returned = typing.get_type_hints(described)["return"]
            wrong += [f"{name}.{one}" for one in differences(returned, lent, bound=True)]
    return wrong


@pytest.mark.parametrize("script", LENDERS)
def test_a_rung_lends_what_its_protocol_says(script: str) -> None:
    assert differences(LENDERS[script], import_rung(script)) == []


@pytest.mark.parametrize("script", LENDERS)
def test_the_flags_that_a_rung_lends_are_its_own(script: str) -> None:
    config = typing.get_type_hints(LENDERS[script]).get("Config")
    if config is not None:
        (base,) = typing.get_args(config)
        lent = import_rung(script).Config
        assert issubclass(lent, base)
        assert {field.name for field in fields(base)} <= {field.name for field in fields(lent)}


class Lender(typing.Protocol):
    def create_app(self, engine: object, rung: object = ...) -> object: ...


def test_a_difference_would_be_seen() -> None:
    class Right:
        @staticmethod
        def create_app(engine: object, rung: object = None) -> None: ...

    class RenamedParameter:
        @staticmethod
        def create_app(core: object, rung: object = None) -> None: ...

    class NoDefault:
        @staticmethod
        def create_app(engine: object, rung: object) -> None: ...

    assert differences(Lender, Right) == []
    assert [differences(Lender, one) for one in (RenamedParameter, NoDefault, object)] == [["create_app"]] * 3
