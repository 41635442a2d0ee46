"""The wheel without extras: a law library that knows nothing of torch and says which extra training needs."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.study.external import DECLARED_SETTINGS

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = {
    "torch",
    "torchgen",
    "functorch",
    "transformers",
    "tokenizers",
    "datasets",
    "rensa",
    "decaylaws",
    "proxy_runs",
}

FIT = """
import numpy as np, pandas as pd, decaylaws
shares = pd.DataFrame(np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 40), columns=["web", "code", "maths"])
losses = 3.0 - np.sqrt(shares[["code"]])
law = decaylaws.regression("log_linear").fit(shares, losses)
print(decaylaws.__file__, float(np.abs(law.predict(shares) - losses.to_numpy()).max()) < 0.2)
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with the built wheel and with the installed packages, but for what extras bring."""
    folder = tmp_path_factory.mktemp("light")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("decaylaws-*.whl"))) as wheel:
        wheel.extractall(folder / "wheel")
    packages = folder / "packages"
    packages.mkdir()
    for source in (
        Path(entry) for entry in sys.path if "site-packages" in entry or entry in site.getsitepackages()
    ):
        for item in source.iterdir() if source.is_dir() else ():
            if item.name.split(".")[0].split("-")[0] not in EXTRAS and item.suffix != ".pth":
                target = packages / item.name
                if not target.exists():
                    target.symlink_to(item)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-P", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder / 'wheel'}{os.pathsep}{packages}"},
        )

    return run


def test_a_law_is_fitted_without_torch(light: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = light("-c", FIT)
    assert done.returncode == 0, done.stderr
    where, is_close = done.stdout.split()
    assert "wheel" in where
    assert is_close == "True"


def test_a_verb_that_trains_names_its_extra(light: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    command = ("-m", "decaylaws")
    assert light(*command, "init", "study", "--template", "quick").returncode == 0
    done = light(*command, "prepare", "study")
    assert done.returncode == 2
    assert "pip install 'decaylaws[train]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


EXTERNAL = """
import json, pathlib, decaylaws
from decaylaws import study
settings = json.loads(pathlib.Path("external.json").read_text())
pathlib.Path("mine").mkdir()
pathlib.Path("mine/study.yaml").write_text(json.dumps(settings))
mine = study.Study.open("mine")
study.plan(mine)
written = study.export_runs(mine, "olmo-core", pathlib.Path("runs"))
told = 0
while runs := study.ask(mine, 4):
    for run in runs:
        losses = {name: 3.0 - run.config.mixture.share(name) for name in settings["sources"]}
        study.tell(mine, run.config.run_id, losses)
        told += 1
rows = [json.dumps({"run_id": run.config.run_id, "step": run.config.num_steps,
        **{f"loss:{name}": 2.0 for name in settings["sources"]}}) for run in mine.design()]
pathlib.Path("log.jsonl").write_text("\\n".join(rows))
recorded = study.record(mine, ["log.jsonl"])
import sys
print(len(written.runs), told, (recorded.outcomes["outcome"] == "replaced").sum(), "torch" in sys.modules)
"""


def test_a_study_of_an_external_trainer_needs_no_extra(
    light: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = Path(light("-c", "import os; print(os.getcwd())").stdout.strip())
    (folder / "external.json").write_text(json.dumps(DECLARED_SETTINGS))
    done = light("-c", EXTERNAL)
    assert done.returncode == 0, done.stderr
    planned = int(done.stdout.split()[0])
    assert done.stdout.split() == [str(planned)] * 3 + ["False"]
