"""The Slurm script is one that bash accepts and that says what the study needs."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from decaylaws.errors import InvalidValueError
from decaylaws.study import Study
from decaylaws.study.slurm import slurm_script
from tests.study.tiny import TINY_SETTINGS


def study_with(root: Path, **changes: object) -> Study:
    root.mkdir(parents=True)
    (root / "study.yaml").write_text(yaml.safe_dump({**TINY_SETTINGS, **changes}), encoding="utf-8")
    return Study.open(root)


def test_an_array_of_machines_on_one_storage(tmp_path: Path) -> None:
    study = study_with(tmp_path / "my study", storage="postgresql://me@server/runs", name="my study")
    text = slurm_script(study, tasks=3, workers=16, time_limit="02:00:00")
    lines = text.splitlines()
    assert {
        "#SBATCH --job-name=decaylaws-my_study",
        "#SBATCH --array=0-2",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --time=02:00:00",
    } <= set(lines)
    assert lines[-1].endswith(f"run '{study.root}' --workers 16")
    assert "gpus" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_gpu_is_asked_for_and_a_file_is_no_storage_of_many_machines(tmp_path: Path) -> None:
    gpu = {**TINY_SETTINGS["backend"], "device": "cuda"}
    study = study_with(tmp_path / "gpu", storage="postgresql://me@server/runs", backend=gpu)
    assert "#SBATCH --gpus-per-task=1" in slurm_script(study, tasks=1, workers=1, time_limit="1:00:00")
    with pytest.raises(InvalidValueError, match=r"storage.*postgresql://"):
        slurm_script(study_with(tmp_path / "file"), tasks=1, workers=1, time_limit="1:00:00")


def test_folders_of_any_name_are_quoted_and_a_time_limit_is_a_time(tmp_path: Path) -> None:
    storage = "postgresql://me@server/runs"
    odd = study_with(tmp_path / """a "b" $(touch x) 'c' 50%""", storage=storage)
    text = slurm_script(odd, tasks=1, workers=1, time_limit="1-00:00:00")
    (line,) = (line for line in text.splitlines() if "--output" in line)
    (option,) = shlex.split(line.removeprefix("#SBATCH"))
    assert option == f"--output={odd.log_dir.resolve()}/slurm-%A_%a.log".replace("50%", "50%%")
    for wrong in ("1:00:00\nrm -r x", "soon", "1 00"):
        with pytest.raises(InvalidValueError, match=r"'time-limit' must be a time.*HH:MM:SS"):
            slurm_script(odd, tasks=1, workers=1, time_limit=wrong)
    with pytest.raises(InvalidValueError, match="line break"):
        slurm_script(study_with(tmp_path / "a\nb", storage=storage), tasks=1, workers=1, time_limit="1:00")
