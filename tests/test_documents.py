"""Tests that the commands and links in every document work."""

from __future__ import annotations

import importlib
import re
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from ladder import ROOT
from tests import faults
from tests.documents import DOCUMENTS, Command, commands_in, commands_in_prose, is_python, program

TEXTS = {str(file.relative_to(ROOT)): file.read_text() for file in DOCUMENTS}
COMMANDS = sorted({one for text in TEXTS.values() for one in (*commands_in(text), *commands_in_prose(text))})
PYTHON = [command for command in COMMANDS if is_python(command)]
TARGETS = sorted(
    {target for command in COMMANDS if command[0] == "make" for target in command[1:] if "=" not in target}
)


class Read(BaseException):
    """A program has parsed its flags."""


def read_flags(module: ModuleType, flags: list[str]) -> None:
    """Let a program parse its flags, in this process, and stop it there; wrong flags raise SystemExit."""
    parse_args = ArgumentParser.parse_args

    def only_read(parser: ArgumentParser, *_: Any) -> NoReturn:
        parse_args(parser, flags)
        raise Read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_args", only_read)
        module.main()


def reads_flags(module: ModuleType) -> bool:
    return bool(re.search(r"[Pp]arser\(|\bparse\(|\brun_rung\(", Path(module.__file__ or "").read_text()))


@pytest.mark.parametrize("command", PYTHON, ids=" ".join)
def test_a_program_exists_and_accepts_its_flags(command: Command) -> None:
    name, flags = program(command)
    module = importlib.import_module(name)
    if "--help" in flags:
        flags.remove("--help")
    if not reads_flags(module):
        assert flags == []
        return
    with pytest.raises(Read):
        read_flags(module, flags)


def test_a_wrong_flag_is_detected() -> None:
    for name in ("02_async_streaming", "benchmarks.run", "benchmarks.engine"):
        with pytest.raises(SystemExit):
            read_flags(importlib.import_module(name), ["--no-such-flag"])


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists_and_has_a_help_line(target: str) -> None:
    tried, explained = (
        subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for words in (["--dry-run", target], ["help"])
    )
    assert tried
    assert re.search(rf"^{target} +\S", explained, re.MULTILINE)


def test_the_documents_have_commands_of_every_kind() -> None:
    assert len(TEXTS) > 4
    assert "test" in TARGETS
    assert {program(command)[0] for command in PYTHON} > {"benchmarks.run", "benchmarks.claims"}


LINK = re.compile(r'\]\(([^)\s]+)(?: "[^"]*")?\)|(?:src|srcset|href)="([^"]+)"')
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def links_in(text: str) -> list[str]:
    """Links to files of the repository and to headings in them."""
    found = (first or second for first, second in LINK.findall(CODE.sub("`", text)))
    return [link for link in found if not re.match(r"\w+:", link)]


def anchors_in(text: str) -> set[str]:
    """The anchors that GitHub makes from the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_broken(link: str, document: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (ROOT / document).parent / path if path else ROOT / document
    if not target.exists() or not target.resolve().is_relative_to(ROOT.resolve()):
        return True
    return bool(anchor) and anchor not in anchors_in(target.read_text())


@pytest.mark.parametrize("document", TEXTS)
def test_links_have_a_target(document: str) -> None:
    assert [link for link in links_in(TEXTS[document]) if is_broken(link, document)] == []


def test_a_broken_link_is_detected() -> None:
    text = '[a](ladder/none.py) ![b](none.png "c") <img src="no.svg"> <source srcset="no.png"> [d](#none)'
    text += " [e](README.md#none) [f](https://example.org/x#y) `[g](code)` [h](README.md#the-ladder)"
    wrong = [link for link in links_in(text) if is_broken(link, "README.md")]
    assert wrong == ["ladder/none.py", "none.png", "no.svg", "no.png", "#none", "README.md#none"]


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    """`python -m tests.faults` writes it."""
    assert faults.TABLE.read_text() == faults.written()
    assert len(faults.all_faults()) > 40
