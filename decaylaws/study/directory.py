"""The study directory: where everything lies, and what has been done so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from decaylaws.designs.planner import CorpusFacts, Design, Planner
from decaylaws.errors import DataError, InvalidValueError, StudyError
from decaylaws.io.files import check_record, is_changed, record_of, write_text
from decaylaws.io.json import load_json
from decaylaws.runs.config import EXACT, Arithmetic
from decaylaws.runs.table import read_curves, read_runs
from decaylaws.settings.study import StudySettings, load_settings

SETTINGS_NAME = "study.yaml"
TEMPLATES = ("study", "quick", "demo")


@dataclass(frozen=True)
class Study:
    """A study directory with checked settings.

    ::

        study.yaml       what the user wants
        corpus/          tokenised sources and manifest.json
        plan.json        the design: every planned run
        storage.sqlite3  Optuna: queue and results (unless study.yaml names another storage)
        checkpoints/     trunks, and members that were interrupted
        runs.csv         one row per finished run; curves.csv: one row per evaluation
        laws/            the fitted laws and their held-out errors
        recipe.yaml      the recommendation
        confirm.json     what was predicted before the confirming runs started
        exports/  launch/  report.html  logs/
        evaluations/NAME evaluations of checkpoints that the report shows

    Args:
        root: the directory.
        settings: its checked ``study.yaml``.
    """

    root: Path
    settings: StudySettings

    @classmethod
    def open(cls, root: str | Path) -> Study:
        """Open an existing study.

        Raises:
            DataError, InvalidValueError: ``study.yaml`` is missing or wrong.
        """
        return cls(Path(root), load_settings(Path(root) / SETTINGS_NAME))

    @classmethod
    def create(cls, root: str | Path, *, template: str = "study") -> Study:
        """Make a study directory from a template; one that exists is opened as it is."""
        path = Path(root) / SETTINGS_NAME
        if not path.exists():
            write_text(path, template_text(template))
        return cls.open(root)

    @property
    def settings_file(self) -> Path:
        """What the user wants."""
        return self.root / SETTINGS_NAME

    @property
    def corpus_dir(self) -> Path:
        """Prepared shards and their manifest."""
        return self.root / "corpus"

    @property
    def checkpoint_dir(self) -> Path:
        """Checkpoints of trunks and of interrupted members."""
        return self.root / "checkpoints"

    @property
    def plan_file(self) -> Path:
        """The design."""
        return self.root / "plan.json"

    @property
    def calibration_file(self) -> Path:
        """Measured speed of the machine that planned last."""
        return self.root / "calibration.json"

    @property
    def arithmetic_file(self) -> Path:
        """What ``auto`` in ``train`` came to when the sweep was first planned."""
        return self.root / "arithmetic.json"

    @property
    def runs_file(self) -> Path:
        """The runs table."""
        return self.root / "runs.csv"

    @property
    def curves_file(self) -> Path:
        """The curves table."""
        return self.root / "curves.csv"

    @property
    def read_outs_file(self) -> Path:
        """Losses of decays that constant-LR runs emulate."""
        return self.root / "read_outs.csv"

    @property
    def law_file(self) -> Path:
        """The fitted decay law."""
        return self.root / "laws" / "decay.json"

    @property
    def fit_file(self) -> Path:
        """Held-out errors of every law and baseline."""
        return self.root / "laws" / "fit.json"

    @property
    def recommendation_file(self) -> Path:
        """Everything that the search found, for the report."""
        return self.root / "laws" / "recommendation.json"

    @property
    def recipe_file(self) -> Path:
        """The recommended recipe."""
        return self.root / "recipe.yaml"

    @property
    def confirm_file(self) -> Path:
        """Predictions stored before the confirming runs."""
        return self.root / "confirm.json"

    @property
    def export_dir(self) -> Path:
        """Files for other trainers, a folder each."""
        return self.root / "exports"

    @property
    def launch_dir(self) -> Path:
        """The launched run: checkpoints, metrics, Hugging Face export."""
        return self.root / "launch"

    @property
    def evaluation_dir(self) -> Path:
        """Evaluations of checkpoints, a folder each (``decaylaws evaluate --out``)."""
        return self.root / "evaluations"

    @property
    def report_file(self) -> Path:
        """The decision report."""
        return self.root / "report.html"

    @property
    def log_dir(self) -> Path:
        """Standard error of the workers."""
        return self.root / "logs"

    @property
    def storage_url(self) -> str:
        """Optuna storage: the user's, or a file in the study."""
        return self.settings.storage or f"sqlite:///{(self.root / 'storage.sqlite3').resolve()}"

    @property
    def storage_name(self) -> str:
        """Name of the Optuna study that holds the runs."""
        return f"{self.settings.name}/runs"

    def edited(self) -> list[str]:
        """What a person has changed since a verb wrote or read it, a sentence each; it is used as it is."""
        edits = (
            (self.settings_file, "'prepare' or 'plan' read it", "put it back from a copy"),
            (self.recipe_file, "'recommend' wrote it", "delete it and run 'decaylaws recommend'"),
        )
        return [
            f"{path} was changed since {reader}, and is used as it is now. If it was not you, {remedy}; if it was, "
            f"delete {record_of(path)} to read this no more."
            for path, reader, remedy in edits
            if path.is_file() and is_changed(path)
        ]

    def _manifest(self) -> Any:
        path = self.corpus_dir / "manifest.json"
        if not path.is_file():
            raise StudyError(
                f"The corpus of {self.root} is not prepared. Run 'decaylaws prepare {self.root}'."
            )
        return read_json(path)

    def shard_dir(self) -> Path:
        """Where the shards of the prepared corpus lie, and what was found while they were made.

        Raises:
            StudyError: it has not been prepared.
        """
        return (self.corpus_dir / self._manifest()["tokenizer"]["path"]).parent

    def corpus(self) -> CorpusFacts:
        """Facts of the prepared corpus.

        Raises:
            StudyError: it has not been prepared.
        """
        manifest = self._manifest()
        return CorpusFacts(
            fingerprint=manifest["fingerprint"],
            vocab_size=manifest["vocab_size"],
            available_tokens={
                name: source["train"]["tokens"] for name, source in manifest["sources"].items()
            },
        )

    def heldout_tokens(self) -> dict[str, int]:
        """Held-out tokens of the prepared corpus by domain.

        Raises:
            StudyError: it has not been prepared.
        """
        return {name: source["heldout"]["tokens"] for name, source in self._manifest()["sources"].items()}

    def source_counts(self) -> dict[str, dict[str, int]]:
        """Documents and bytes by split, and what was dropped or passed over, by source.

        Raises:
            StudyError: it has not been prepared.
        """
        return {name: source["counts"] for name, source in self._manifest()["sources"].items()}

    def decisive_settings(self) -> dict[str, Any]:
        """The settings that decide what comes out, as JSON values: all but where and how fast it runs.

        What decontamination decides is in the corpus, whose fingerprint is compared beside these settings.
        """
        settings = self.settings.model_dump(mode="json", exclude={"backend", "storage", "decontamination"})
        # defaults that older studies did not have are left out: their stored results stay valid
        for source in settings["sources"].values():
            if source["quality"] is None:
                del source["quality"]
        if not settings["groups"]:
            del settings["groups"]
        settings["train"] = asdict(self.arithmetic())
        if self.arithmetic() == EXACT:
            del settings["train"]
        return settings

    def arithmetic(self) -> Arithmetic:
        """How proxies compute: what study.yaml says, and what ``auto`` came to; until then eager float32."""
        train, settled = self.settings.train, asdict(EXACT)
        if self.arithmetic_file.is_file():
            settled |= read_json(self.arithmetic_file)
        return Arithmetic(
            precision=settled["precision"] if train.precision == "auto" else train.precision,
            compiled=settled["compiled"] if train.compile == "auto" else train.compile,
        )

    def planner(self) -> Planner:
        """Makes the run configs of this study."""
        return Planner(self.settings, self.corpus(), self.arithmetic())

    def design(self) -> Design:
        """The planned sweep.

        Raises:
            StudyError: it has not been planned.
        """
        if not self.plan_file.is_file():
            raise StudyError(f"{self.root} has no plan yet. Run 'decaylaws plan {self.root}'.")
        return Design.from_dict(read_json(self.plan_file))

    def runs(self) -> pd.DataFrame:
        """The runs table.

        Raises:
            StudyError: nothing has been run.
        """
        if not self.runs_file.is_file():
            raise StudyError(f"{self.root} has no finished runs yet. Run 'decaylaws run {self.root}'.")
        return read_runs(self.runs_file)

    def curves(self) -> pd.DataFrame:
        """The curves table, written beside the runs table."""
        return read_curves(self.curves_file)


def template_text(name: str) -> str:
    """Text of a bundled ``study.yaml``: ``study`` (one's own sources, annotated), ``quick`` (small) or ``demo``.

    Raises:
        InvalidValueError: there is no such template.
    """
    if name not in TEMPLATES:
        raise InvalidValueError("template", name, f"must be one of {', '.join(TEMPLATES)}")
    return files("decaylaws.study").joinpath("templates", f"{name}.yaml").read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of the study.

    Raises:
        DataError: it is not readable, or not what was written.
    """
    remedy = "Put it back from a copy, or delete it and run the verb that writes it."
    try:
        check_record(path, remedy)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is not readable ({error.strerror}). {remedy}") from None
    return load_json(content, path, remedy)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically and record its hash; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", recorded=True)


def content_hash(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 over JSON values; what an idempotent verb compares."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
