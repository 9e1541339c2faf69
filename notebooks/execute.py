"""Runs the notebooks, each in a clean kernel, and keeps their outputs.

    python -m notebooks.execute [FILE ...]

Only what a reader sees is kept, so that two runs differ only in their measured figures. The runs need no
network.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
CELL_SECONDS = 300  # much more than a cell needs, because the machine may be busy


def read(file: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def executed(file: Path, *paths: Path) -> NotebookNode:
    """The notebook with the outputs of a run from its first cell to its last.

    Its kernel and the processes that the kernel starts also look for modules in `paths`.
    """
    notebook = read(file)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning that it listens on local TCP ports
        resources={"metadata": {"path": str(FOLDER)}},
    )
    # Imports the rungs beside these notebooks, even if others are installed.
    places = os.pathsep.join(map(str, [FOLDER.parent, *paths]))
    client.execute(env={**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1"})
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The notebook without the times of the run and the versions of Python and Jupyter."""
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shows_something(output)]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("text/plain", None)  # the address of the figure in memory
    return notebook


def shows_something(output: NotebookNode) -> bool:
    """False for the empty output that a progress display of rich leaves behind."""
    return bool("data" not in output or output.data.get("text/plain"))


def main() -> None:
    begun = time.perf_counter()
    for file in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        started = time.perf_counter()
        print(f"{file.name} ", end="", flush=True)
        nbformat.write(executed(file), file)  # type: ignore[no-untyped-call]
        print(f"{time.perf_counter() - started:.1f} s")
    print(f"total {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
