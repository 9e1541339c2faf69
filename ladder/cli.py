"""One command line for every rung, made from the rung's own configuration.

A rung's `Config` is a frozen dataclass whose fields, made by `option`, are its flags: name, default and help
text are defined in one place, and the engine receives the same object that the command line fills.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

DTYPES = ("float32", "bfloat16", "int8")


def option(default: Any, help: str, check: Callable[[str], Any] = str, choices: Any = None) -> Any:
    """A configuration field that is also a command-line flag."""
    metadata = {"help": help, "check": check, "choices": choices}
    return field(default=default, metadata=metadata)


def whole_number(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """An integer within bounds, for `option`; the error names the bounds."""
    bounds = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"{value} is not a whole number {bounds}")
        return value

    return check


def seconds(text: str) -> float:
    """A number of seconds, for `option`; it may have a fraction."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


@dataclass(frozen=True)
class ListenConfig:
    """The flags that every rung has."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(5000, "port to listen on; 0 takes a free one", whole_number(0, 65535))
    hosts: str = option("", "further host names of this server, separated by commas")
    origins: str = option("", "further origins whose pages may write, separated by commas")

    def subject(self) -> dict[str, str]:
        """What a demo's figures are about, besides the rungs."""
        return {}


@dataclass(frozen=True)
class ServerConfig(ListenConfig):
    """The flags of every rung of the engine track, which serves a language model."""

    model: str = option("tiny", "tiny (bundled), a directory, a hub id, or random:SHAPE")
    dtype: str = option("auto", "auto is float32 on a CPU; int8 needs a CPU", choices=("auto", *DTYPES))
    device: str = option("auto", "auto is the GPU if torch finds one", choices=("auto", "cpu", "cuda"))
    threads: int | None = option(None, "torch's threads; default: one for each core", whole_number(1))

    def subject(self) -> dict[str, str]:
        return {"model": self.model}


@dataclass(frozen=True)
class EngineConfig(ServerConfig):
    """The flags of an engine that schedules at every step: rungs 04 and 05."""

    max_batch: int = option(32, "requests that run at the same time", whole_number(1))
    max_queue: int = option(64, "requests that may wait; more are refused with 503", whole_number(1))
    max_context: int | None = option(
        None, "most tokens of a prompt and its answer; default: the model's", whole_number(2)
    )
    kv_memory: int = option(512, "MiB for the keys and values of running requests", whole_number(1))
    prefill_chunk: int = option(256, "most prompt tokens in one forward pass", whole_number(1))


@dataclass(frozen=True)
class PredictionConfig(ListenConfig):
    """The flags of the rungs that serve predictors: 10 and 11."""

    models: str = option("bundled", "bundled, or a folder with models and their index.json")
    max_cached: int = option(4096, "predictions kept in the cache", whole_number(1))
    max_queue: int = option(20_000, "rows that may wait; more are refused with 503", whole_number(1))
    idle_seconds: int = option(600, "seconds after which an unused version is evicted", whole_number(1))
    control: str = option("v1", "the experiment's version for all users but the challenger's")
    challenger: str = option("v2", "the experiment's version for a share of the users")
    split: int = option(50, "percent of the users who get the challenger", whole_number(0, 100))
    salt: str = option("1", "another salt assigns the users to versions differently")


NOT_PASSED_ON = ("host", "port")
"""A demo's servers listen on this machine, each on a free port."""


@dataclass(frozen=True)
class DemoOptions:
    """How the demo shows what it measured, and the flags that were given beside `--demo`."""

    json: bool = False
    plot: Path | None = None
    given: Mapping[str, object] = field(default_factory=dict)

    def flags(self, known: type[ListenConfig]) -> list[str]:
        """The given flags that a server with this configuration knows, for its command line."""
        names = {item.name for item in fields(known)} - set(NOT_PASSED_ON)
        passed_on = [(name, value) for name, value in self.given.items() if name in names]
        return [word for name, value in passed_on for word in (flag_of(name), str(value))]


C = TypeVar("C", bound=ListenConfig)


class OneLineParser(argparse.ArgumentParser):
    """Prints errors in one line, without the usage, which --help prints."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parse(
    config_class: type[C], doc: str | None, arguments: list[str] | None = None
) -> tuple[C, DemoOptions | None]:
    """Read the command line: the server's configuration, and with --demo the demo's options."""
    parser = OneLineParser(description=summary(doc), allow_abbrev=False)
    demo = parser.add_argument_group("demo")
    demo.add_argument("--demo", action="store_true", help="start the servers, measure, show, and end")
    demo.add_argument("--json", action="store_true", help="with --demo: print one JSON object instead")
    demo.add_argument("--plot", type=plot_file, metavar="FILE", help="with --demo: also draw (png, svg)")
    server = parser.add_argument_group("server")
    for item in fields(config_class):
        add_flag(server, item.name, item.default, item.metadata)
    given = vars(parser.parse_args(arguments))
    wanted, json, plot = given.pop("demo"), given.pop("json"), given.pop("plot")
    if not wanted and (json or plot):
        parser.error("--json and --plot belong to --demo")
    return config_class(**given), DemoOptions(json, plot, given) if wanted else None


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_flag(group: Any, name: str, default: Any, metadata: Any) -> None:
    shown = "" if default is None else f" (default: {'none' if default == '' else default})"
    group.add_argument(
        flag_of(name),
        type=metadata["check"],
        default=argparse.SUPPRESS,  # only given flags are parsed; the configuration has the defaults
        choices=metadata["choices"],
        metavar=None if metadata["choices"] else name.split("_")[-1].upper(),
        help=metadata["help"] + shown,
    )


def plot_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the directory of {text!r} does not exist")
    return path


def summary(doc: str | None) -> str:
    """The first paragraph of a rung's docstring."""
    return (doc or "").strip().split("\n\n")[0]
