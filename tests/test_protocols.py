"""Tests that the protocols for the type checker match what rungs import from other rungs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from ladder.web import protocols
from tests.support import import_rung

PROTOCOLS = {
    "02_async_streaming.py": protocols.StreamingRung,
    "03_batching.py": protocols.BatchingRung,
    "04_continuous_batching.py": protocols.ContinuousRung,
}

Signature = list[tuple[str, Any, bool]]
"""For each parameter: name, kind and whether it has a default."""


def signature(function: Callable[..., Any], bound: bool = False) -> Signature:
    parameters = [*inspect.signature(function).parameters.values()][bound:]
    return [(one.name, one.kind, one.default is not inspect.Parameter.empty) for one in parameters]


def methods(protocol: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield name, member


def differences(protocol: type, rung: Any, bound: bool = False) -> list[str]:
    """The names of members that differ between the rung and its protocol."""
    wrong = []
    for name, described in methods(protocol):
        actual = getattr(rung, name, None)
        if not callable(actual) or signature(actual, bound) != signature(described, bound=True):
            wrong.append(name)
        elif inspect.isclass(actual):
            returned = typing.get_type_hints(described)["return"]
            wrong += [f"{name}.{one}" for one in differences(returned, actual, bound=True)]
    return wrong


@pytest.mark.parametrize("script", PROTOCOLS)
def test_a_rung_has_the_members_of_its_protocol(script: str) -> None:
    assert differences(PROTOCOLS[script], import_rung(script)) == []


@pytest.mark.parametrize("script", PROTOCOLS)
def test_config_has_the_flags_of_the_protocols_config(script: str) -> None:
    config = typing.get_type_hints(PROTOCOLS[script]).get("Config")
    if config is not None:
        (base,) = typing.get_args(config)
        actual = import_rung(script).Config
        assert issubclass(actual, base)
        assert {field.name for field in fields(base)} <= {field.name for field in fields(actual)}


class Sample(typing.Protocol):
    def create_app(self, engine: object, rung: object = ...) -> object: ...


def test_a_difference_is_detected() -> None:
    class Right:
        @staticmethod
        def create_app(engine: object, rung: object = None) -> None: ...

    class RenamedParameter:
        @staticmethod
        def create_app(core: object, rung: object = None) -> None: ...

    class NoDefault:
        @staticmethod
        def create_app(engine: object, rung: object) -> None: ...

    assert differences(Sample, Right) == []
    assert [differences(Sample, one) for one in (RenamedParameter, NoDefault, object)] == [["create_app"]] * 3
