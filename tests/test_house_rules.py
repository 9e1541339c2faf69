"""Tests the code layout: the order of a rung, no rung imported by shared code, no duplicated definition."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ladder import ROOT
from ladder.cli import ListenConfig
from tests.support import RUNGS, SCRIPTS, import_rung, tracked_files

RUNG_NAME = re.compile(r"\d\d_\w+")
DUPLICATE_LINES = 12
SOURCE_FOLDERS = ("ladder", "training", "benchmarks", "notebooks", "tests")


@pytest.fixture(params=sorted(file.name for file in ROOT.glob("[0-9][0-9]_*.py")))
def rung(request: pytest.FixtureRequest) -> str:
    """The script of every rung."""
    script: str = request.param
    return script


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def shared_files() -> list[Path]:
    return sorted((ROOT / "ladder").rglob("*.py"))


def sources() -> list[Path]:
    folders = [file for folder in SOURCE_FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return [*sorted(ROOT.glob("[0-9][0-9]_*.py")), *folders]


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """The names of imported modules, in import statements and in calls with the name as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from strings(node)


def imported_rungs(tree: ast.AST) -> list[str]:
    return [name for name in imported_modules(tree) if RUNG_NAME.match(name)]


@pytest.mark.parametrize("file", shared_files(), ids=lambda file: file.name)
def test_shared_code_imports_no_rung(file: Path) -> None:
    assert imported_rungs(parsed(file)) == []


def test_an_import_of_a_rung_is_detected() -> None:
    assert imported_rungs(ast.parse("a = importlib.import_module('02_async_streaming')")) == [
        "02_async_streaming"
    ]
    assert imported_rungs(ast.parse("from ladder import import_rung\nimport_rung('03_batching')"))


ORDER = ["Config", "Engine", "create_app", "demo", "main"]


def definitions(tree: ast.Module) -> list[str]:
    """The names that a rung defines or imports under another name."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    taken = [alias.asname for node in imports for alias in node.names if alias.asname]
    return taken + [node.name for node in tree.body if isinstance(node, kinds)]


def test_rungs_are_numbered_without_gaps_in_each_track() -> None:
    assert SCRIPTS[0] == "01_flask_blocking.py"
    for track in (RUNGS, SCRIPTS[len(RUNGS) :]):
        first = int(track[0][:2])
        assert [int(script[:2]) for script in track] == list(range(first, first + len(track)))


def test_a_rung_has_120_to_300_lines(script: str) -> None:
    assert 120 <= len((ROOT / script).read_text().splitlines()) <= 300


def test_every_rung_has_the_same_order(script: str) -> None:
    tree = parsed(ROOT / script)
    names = definitions(tree)
    assert [name for name in names if name in ORDER] == ORDER
    assert names[-1] == "main"
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main()"


def test_the_docstring_has_all_its_parts(script: str) -> None:
    """Number and idea, a drawing, how to run the rung, and its remaining flaw."""
    doc = import_rung(script).__doc__ or ""
    lines = doc.splitlines()
    assert re.fullmatch(rf"Rung {script[:2]}: .+\.", lines[0])
    assert any(re.match(r" {4}.*[│─▶┌└]", line) for line in lines)
    assert f"    python {script} --demo" in lines
    assert f"    python {script}" in lines
    assert re.search(r"^What is (still )?wrong", doc, re.MULTILINE)
    if script != SCRIPTS[0]:
        previous = SCRIPTS[SCRIPTS.index(script) - 1][:2]
        assert re.search(rf"Rung {previous}\b", doc), "it names the previous rung and its flaw"


def test_the_configuration_is_one_frozen_dataclass_of_flags(script: str) -> None:
    config = import_rung(script).Config
    assert issubclass(config, ListenConfig)
    for field in dataclasses.fields(config):
        assert field.metadata["help"], "every field is a flag, with a line that explains it"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config(), field.name, None)


def test_nothing_runs_at_import(script: str) -> None:
    """The top level has definitions and assignments only: no loop, no condition except the last."""
    *body, _ = parsed(ROOT / script).body
    allowed = (
        ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef,
        ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for node in body:
        text_only = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text_only or isinstance(node, allowed), ast.unparse(node)


def root_name(node: ast.expr) -> str:
    """The variable that an expression such as `a.b[0].c()` starts from."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def borrowed_names(tree: ast.Module) -> set[str]:
    """Top-level variables that refer to another rung or a part of it."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            value = node.value
            if any(RUNG_NAME.match(text) for text in strings(value)) or root_name(value) in names:
                names |= {part.id for target in node.targets for part in ast.walk(target)
                          if isinstance(part, ast.Name)}  # fmt: skip
    return names


def modifications(tree: ast.Module) -> list[str]:
    """Places where a part of another rung is subclassed or gets a new attribute value."""
    borrowed = borrowed_names(tree)
    found = []
    for node in ast.walk(tree):
        changed: list[ast.expr] = []
        if isinstance(node, ast.ClassDef):
            changed = node.bases
        elif isinstance(node, ast.Assign | ast.Delete):
            changed = [target for target in node.targets if isinstance(target, ast.Attribute | ast.Subscript)]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            changed = [node.target]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr", "patch.object"):
            changed = node.args[:1]
        found += [ast.unparse(expression) for expression in changed if root_name(expression) in borrowed]
    return found


def test_no_rung_modifies_a_part_of_another_rung(script: str) -> None:
    assert modifications(parsed(ROOT / script)) == []


@pytest.mark.parametrize(
    "code",
    [
        "class Engine(rung_02.Engine): ...",
        "class App(create_app): ...",
        "rung_02.stream = None",
        "def f():\n    rung_02.Engine.tokens = None",
        "setattr(rung_02, 'stream', None)",
        "del rung_02.stream",
        "rung_02.Engine.steps += 1",
        "rung_02.__dict__['stream'] = None",
    ],
)
def test_a_modified_part_of_another_rung_is_detected(code: str) -> None:
    borrowed = "rung_02 = importlib.import_module('02_async_streaming')\ncreate_app = rung_02.create_app\n"
    assert modifications(ast.parse(borrowed + code))
    assert not modifications(ast.parse(borrowed + "app = create_app(Engine())\nx = rung_02.END"))


class Anonymous(ast.NodeTransformer):
    """Removes from a definition what differs between copies: names, annotations and strings."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def renamed(self, name: str) -> str:
        return self.names.setdefault(name, f"name{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.renamed(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg, node.annotation = self.renamed(node.arg), None
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            node.value = ""
        return node


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def fingerprint(definition: Definition) -> str:
    copy = ast.parse(ast.unparse(definition)).body[0]
    assert isinstance(copy, Definition)
    copy.name = ""
    if isinstance(copy, ast.FunctionDef | ast.AsyncFunctionDef):
        copy.returns = None
    if ast.get_docstring(copy) is not None:
        copy.body = copy.body[1:]
    return ast.dump(Anonymous().visit(copy))


def repeated(texts: Mapping[str, str]) -> list[list[str]]:
    """Definitions of a dozen lines or more that occur more than once, each as "file:line name"."""
    places: dict[str, list[str]] = defaultdict(list)
    for file, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Definition) and (node.end_lineno or 0) - node.lineno + 1 >= DUPLICATE_LINES:
                places[fingerprint(node)].append(f"{file}:{node.lineno} {node.name}")
    return [where for where in places.values() if len(where) > 1]


def test_no_definition_of_a_dozen_lines_is_duplicated() -> None:
    assert repeated({str(file.relative_to(ROOT)): file.read_text() for file in sources()}) == []


def test_a_copy_with_other_names_is_detected() -> None:
    body = "".join(f"    {{}} = {{}} + {number}\n" for number in range(11))
    first = "def first(x: int) -> int:\n    'Doc.'\n" + body.format(*["x"] * 22)
    second = "async def other():\n    pass\n\nclass A:\n    def second(self_):\n" + "".join(
        f"    {line}\n" for line in body.format(*["self_"] * 22).splitlines()
    )
    assert repeated({"a.py": first, "b.py": second}) == [["a.py:1 first", "b.py:5 second"]]
    assert repeated({"a.py": first, "b.py": second.replace("+ 7", "- 7")}) == []


MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|root|Users|work|mnt|tmp|opt)/\w|[A-Z]:\\\\+Users)")
BINARY = {".safetensors", ".png", ".ico", ".woff2", ".webm"}


def test_no_file_contains_a_path_of_a_developers_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in tracked_files()
        if file.suffix not in BINARY
        for match in MACHINE_PATH.finditer(file.read_text(errors="replace"))
    ]
    assert found == []


def test_a_machine_path_is_detected() -> None:
    for place in ("home/me", "root/x", "Users/me", "tmp/x"):
        assert MACHINE_PATH.search(f"open('/{place}')")
    assert not MACHINE_PATH.search("https://example.org/home/me and ./work/x and a/root/x")


UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickling(tree: ast.AST) -> list[str]:
    """Calls and imports that can run code from a file that they read."""
    found = [name for name in imported_modules(tree) if name.split(".")[0] in UNPICKLERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in full if name in ("torch.load", "yaml.load", "yaml.unsafe_load")]
        elif isinstance(node, ast.Call):
            call, settings = ast.unparse(node.func), {setting.arg for setting in node.keywords}
            if call in ("torch.load", "torch.jit.load", "yaml.load", "yaml.unsafe_load"):
                found.append(call)
            if "allow_pickle" in settings or call.endswith(("read_pickle", "from_pickle")):
                found.append(call)
    return found


def test_nothing_is_unpickled() -> None:
    """A pickle can run code. Weights and data are safetensors and JSON, which cannot."""
    assert {str(file): found for file in sources() if (found := unpickling(parsed(file)))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "importlib.import_module('cloudpickle')",
        "torch.load('model.pt')",
        "from torch import load",
        "yaml.load(text)",
        "np.load('rows.npy', allow_pickle=True)",
        "pandas.read_pickle('rows.pkl')",
    ],
)
def test_unpickling_is_detected(code: str) -> None:
    assert unpickling(ast.parse(code))
    assert not unpickling(ast.parse("from safetensors.numpy import load\nload(content)\njson.load(file)"))


def test_every_source_file_has_a_docstring() -> None:
    assert [str(file) for file in sources() if not ast.get_docstring(parsed(file))] == []
