"""A whole study whose runs Hugging Face's Trainer does: exported, trained, recorded, fitted, recommended and confirmed.

Needs transformers and accelerate, which 'make test-targets' installs. It takes most of a minute of one core.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from decaylaws import study as verbs
from decaylaws.errors import StudyError
from decaylaws.exporters import ExportOptions
from decaylaws.runs.table import LOSS, START_LOSS
from decaylaws.study import Study
from tests.exporters.trainers import import_trainer
from tests.study.tiny import TINY_SETTINGS, make_tiny_study

DESIGN = {**TINY_SETTINGS["design"], "num_mixtures": 4, "batch_tokens": [256], "runs_at_other_sizes": 2}
OPTIONS = ExportOptions(local_batch_size=8)


def train(directory: Path, names: Sequence[str]) -> None:
    """Run exported scripts one after the other: what 'array.sh here' does, without starting Python anew for each."""
    torch, logging = import_trainer("torch"), import_trainer("transformers").utils.logging
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.chdir(directory), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the trainer are not ours
            for name in names:
                spec = importlib.util.spec_from_file_location(name.replace("-", "_"), f"{name}/train.py")
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                module.main()
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned study of real text, the runs that were exported for Hugging Face's Trainer, and what it logged."""
    import_trainer("accelerate")
    root = tmp_path_factory.mktemp("external")
    make_tiny_study(root / "study")
    settings: dict[str, Any] = {key: value for key, value in TINY_SETTINGS.items() if key != "backend"}
    settings |= {"trainer": "external", "design": DESIGN}
    (root / "study" / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    study = Study.open(root / "study")
    verbs.prepare(study)
    verbs.plan(study)
    written = verbs.export_runs(study, "huggingface", root / "runs", OPTIONS)
    names = [run.name for run in written.runs]
    # the first trunk as a user starts it; the others in one process, since a start takes ten times as long as a run
    launched = subprocess.run(
        ["bash", str(root / "runs" / names[0] / "launch.sh")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    train(root / "runs", names[1:])
    return root


@pytest.fixture(scope="module")
def recorded(root: Path) -> Study:
    study = Study.open(root / "study")
    found = verbs.record(study, [root / "runs" / "outputs"])
    assert found.excluded.empty, found.excluded["reason"].tolist()
    assert found.missing.empty
    assert found.notes == ()  # LR, tokens and mixture of every run were logged and compared
    return study


def test_losses_equal_those_of_the_built_in_trainer_on_the_same_plan(recorded: Study, tmp_path: Path) -> None:
    copied = tmp_path / "own"
    shutil.copytree(
        recorded.root, copied, ignore=shutil.ignore_patterns("storage*", "runs.csv", "curves.csv")
    )
    (copied / "plan.json").unlink()
    settings = yaml.safe_load((copied / "study.yaml").read_text())
    del settings["trainer"]
    settings["backend"] = TINY_SETTINGS["backend"]
    (copied / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    own = Study.open(copied)
    verbs.plan(own)
    verbs.run(own, workers=1)
    expected, found = own.runs().set_index("run_id"), recorded.runs().set_index("run_id")
    starts: dict[str | None, str] = {}
    differences = []
    for run in recorded.design():
        twin = run.config.with_changes(trainer="built-in", start_run_id=starts.get(run.config.start_run_id))
        starts[run.config.run_id] = twin.run_id
        for domain in recorded.settings.domains:
            prefixes = (LOSS, START_LOSS) if run.config.start_run_id else (LOSS,)
            differences += [
                abs(found.at[run.config.run_id, prefix + domain] - expected.at[twin.run_id, prefix + domain])
                for prefix in prefixes
            ]
    assert len(differences) > 80
    assert max(differences) < 1e-3


def test_runs_that_were_trained_otherwise_than_planned_are_excluded(recorded: Study, root: Path) -> None:
    runs = root / "runs"
    design = {run.config.run_id: run for run in recorded.design()}
    mixed = next(name for name in sorted(os.listdir(runs)) if name.startswith("simplex"))
    config = design[mixed.rpartition("-")[2]].config
    same_length = [
        name
        for name in sorted(os.listdir(runs))
        if name.startswith("control")
        and design[name.rpartition("-")[2]].config.tokens == config.tokens
        and design[name.rpartition("-")[2]].config.shape == config.shape
    ]
    assert same_length

    def trained(folder: str, **arguments: Any) -> Path:
        """Train a changed copy of the run; its record is still under the run's id."""
        copied = runs / folder
        shutil.copytree(runs / mixed, copied)
        path = copied / "training_arguments.json"
        values = json.loads(path.read_text()) | {"output_dir": f"changed/{folder}"} | arguments
        path.write_text(json.dumps(values))
        if folder == "another-mixture":
            # the order of a control of the same length: the trunk's mixture
            shutil.copy(runs / same_length[0] / "sequences.npy", copied / "sequences.npy")
            script = (copied / "train.py").read_text()
            shards = next(line for line in script.splitlines() if line.startswith("    'web':"))
            start, end = script.index("SHARDS = {"), script.index("HELD_OUT = {")
            (copied / "train.py").write_text(f"{script[:start]}SHARDS = {{\n{shards}\n}}\n{script[end:]}")
        train(runs, [folder])
        return runs / "changed" / folder

    peak = json.loads((runs / mixed / "training_arguments.json").read_text())["learning_rate"]
    cases = {
        trained("twice-the-lr", learning_rate=2 * peak): "its LR at step 1 is",
        trained("another-mixture"): "its mixture has 1 of 'web', where the plan has",
        trained(
            "half-the-batch", gradient_accumulation_steps=1, per_device_train_batch_size=4
        ): "it had seen 128 tokens",
    }
    before = recorded.runs_file.read_bytes()
    for folder, reason in cases.items():
        found = verbs.record(recorded, [folder])
        assert found.outcomes.empty
        assert found.excluded["run_id"].unique().tolist() == [config.run_id]
        assert found.excluded["reason"].str.contains(reason, regex=False).any(), found.excluded[
            "reason"
        ].tolist()
    assert recorded.runs_file.read_bytes() == before


def test_the_study_goes_on_to_a_confirmed_recipe_and_a_report(recorded: Study, root: Path) -> None:
    fitted, _ = verbs.fit(recorded)
    assert not fitted.excluded.size
    recipe, _ = verbs.recommend(recorded)
    with pytest.raises(StudyError, match="8 of the 8 confirming runs have no result yet"):
        verbs.confirm(recorded)
    predictions = recorded.confirm_file.read_text()
    written = verbs.export_runs(recorded, "huggingface", root / "confirming", OPTIONS)
    assert {run.role.split(":")[0] for run in written.runs} == {"confirm"}
    assert written.recorded == len(recorded.design())
    # their trunks are where the sweep has left them
    (root / "confirming" / "outputs").symlink_to(root / "runs" / "outputs")
    train(root / "confirming", [run.name for run in written.runs])
    again = verbs.record(recorded, [root / "runs" / "outputs"])
    assert again.excluded.empty
    assert again.outcomes["outcome"].value_counts().to_dict() == {
        "unchanged": len(recorded.design()),
        "new": len(written.runs),
    }
    confirmed = verbs.confirm(recorded)
    assert recorded.confirm_file.read_text() == predictions
    assert confirmed.table["observed"].notna().all()
    target = confirmed.table[confirmed.table["scale"] == "target"].set_index("candidate")
    assert target.at["recommended", "gain_observed"] > 0
    assert recipe.stages[0].tokens <= recorded.settings.target.max_decay_tokens
    from decaylaws.report import write_report

    assert write_report(recorded).is_file()
    states = {step.verb: str(step.state) for step in verbs.status(recorded).steps}
    assert {states[verb] for verb in ("prepare", "plan", "run", "fit", "recommend", "confirm", "report")} == {
        "done"
    }
