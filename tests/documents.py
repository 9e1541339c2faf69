"""Finds the commands that the documents of the repository contain."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ladder import ROOT
from tests.support import tracked_files

README = ROOT / "README.md"
DOCUMENTS = [file for file in tracked_files() if file.suffix == ".md"]

BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?:^|\n)\n(?P<indented>(?: {4}[^\n]*\n)+)", re.M | re.S
)
IN_PROSE = re.compile(r"(?<!`)`((?:\.venv/bin/)?python |make )([^`\n]+)`")

Command = tuple[str, ...]
"""The words of one command."""


def commands_in(text: str) -> list[Command]:
    """The commands in its code blocks (fenced as bash, or indented), in order."""
    blocks = (block["indented"] or block["fenced"] for block in BLOCK.finditer(text) if is_shell(block))
    return [command for block in blocks for line in lines(block) for command in split(line)]


def is_shell(block: re.Match[str]) -> bool:
    return bool(block["indented"]) or block["language"] == "bash"


def lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def split(line: str) -> Iterator[Command]:
    """The commands in a line, without the comment at its end."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word != "&&":
            words.append(word)
        elif words:
            yield tuple(words)
            words = []


def commands_in_prose(text: str) -> list[Command]:
    """The commands in backticks within a sentence."""
    without_blocks = BLOCK.sub("", text)
    return [tuple(shlex.split(start + rest)) for start, rest in IN_PROSE.findall(without_blocks)]


def is_python(command: Command) -> bool:
    return command[0] in ("python", ".venv/bin/python")


def program(command: Command) -> tuple[str, list[str]]:
    """The module that a Python command runs, and its arguments."""
    _, script, *words = command
    if script == "-m":
        return words[0], words[1:]
    return ".".join(Path(script).with_suffix("").parts), words
