"""Execute the notebooks in order and keep their outputs: ``python notebooks/run.py [NAME ...]``.

Later notebooks use what earlier ones made (``study/``), and make it themselves where it is missing. A stamp
in each notebook's metadata says which code its outputs belong to; the tests compare it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT_SECONDS = 600


def notebooks() -> list[Path]:
    """All notebooks, in reading order."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """Run every cell from top to bottom in a fresh kernel; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    # cells call the command line of this environment, whether or not it is activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # what tqdm says where ipywidgets is missing belongs in no stored output
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        resources=where,
        coalesce_streams=True,  # what a command prints is one text, however it was flushed
    )
    return client.execute()


def code_stamp(notebook: nbformat.NotebookNode) -> str:
    """Hash of the code cells: what the stored outputs were computed from."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook without what changes from run to run: times, execution counts of other kernels."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata["decaylaws"] = {"executed_code": code_stamp(notebook)}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    """Execute and save the notebooks whose names begin with one of ``names``; all without any."""
    for path in notebooks():
        if names and not path.name.startswith(tuple(names)):
            continue
        began = time.perf_counter()
        save(execute(path), path)
        print(
            f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1e3:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
