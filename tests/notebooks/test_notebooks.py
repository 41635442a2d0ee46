"""Every notebook runs from top to bottom, and its stored outputs belong to its code."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml

from decaylaws.study import Study

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
MAX_BYTES = 400_000

_spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
assert _spec is not None
assert _spec.loader is not None
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)

PATHS = runner.notebooks()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without anything that earlier executions left in it; all notebooks share it, as a reader's do.

    Their study is a smaller one here: a fifth of the text, of the trunk and of the search, and shorter decays.
    """
    target = tmp_path_factory.mktemp("notebooks") / "notebooks"
    shutil.copytree(
        FOLDER, target, ignore=shutil.ignore_patterns("study", "__pycache__", ".ipynb_checkpoints")
    )
    (target / "study").mkdir()
    settings = yaml.safe_load((FOLDER / "study" / "study.yaml").read_text(encoding="utf-8"))
    for source in settings["sources"].values():
        source["max_bytes"] //= 5
    settings["tokenizer"]["vocab_size"] = 512
    settings["trunk"] |= {"tokens": 32_768, "warmup_tokens": 4_096}
    settings["design"] |= {"num_mixtures": 8, "decay_tokens": [4_096, 8_192], "runs_at_other_sizes": 3}
    settings["target"]["max_decay_tokens"] = 8_192
    settings |= {"search_trials": 20, "evaluation": {"tokens_per_domain": 2_048, "points": 1}}
    (target / "study" / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return target


def test_the_study_of_the_notebooks_can_be_read() -> None:
    assert Study.open(FOLDER / "study").settings.name == "notebook"


def test_all_five_are_here() -> None:
    assert [path.name[0] for path in PATHS] == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in PATHS])
@pytest.mark.filterwarnings("ignore")  # of the kernel's own transport
def test_a_notebook_runs_from_top_to_bottom(copy: Path, name: str) -> None:
    executed = runner.execute(copy / name)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_outputs_belong_to_the_code(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata["decaylaws"]["executed_code"] == runner.code_stamp(stored), (
        "the code changed since its outputs were stored: run 'make notebooks'"
    )
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [source for source in code if "def " in source or "class " in source]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_stored_output_is_an_error_or_a_path_of_one_machine(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    outputs = [output for cell in stored.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert str(FOLDER.parent) not in path.read_text(encoding="utf-8")
