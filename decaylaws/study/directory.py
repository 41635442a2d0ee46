"""The study directory: where everything lies, and what has been done so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd

from decaylaws import __version__
from decaylaws.designs.design import CorpusFacts, Design, PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.io import json as json_files
from decaylaws.io.files import is_changed, record_of, write_text
from decaylaws.io.json import rebuilding
from decaylaws.runs.columns import pool_fingerprint
from decaylaws.runs.config import EXACT, Arithmetic
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.runs.table import EVALUATION, measured_on, read_curves, read_runs
from decaylaws.settings.external import declared_fingerprint
from decaylaws.settings.study import StudySettings, load_settings
from decaylaws.study import held
from decaylaws.study.identity import decisive, for_sweep
from decaylaws.study.paths import SETTINGS_NAME, StudyPaths
from decaylaws.study.question import Question, content_hash
from decaylaws.study.stored import (
    StoredArithmetic,
    StoredEvaluation,
    StoredManifest,
    StoredPlan,
    StoredStore,
)
from decaylaws.study.template import template_text

REMEDY = "Put it back from a copy, or delete it and run the verb that writes it."
"""What to do about a damaged file of a study."""
SQLITE = "sqlite:///"

T = TypeVar("T")


@dataclass(frozen=True)
class Study(StudyPaths):
    """A study directory with checked settings.

    Where each file lies says :class:`~decaylaws.study.paths.StudyPaths`.

    Args:
        root: the directory.
        settings: its checked ``study.yaml``.
    """

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
    def storage_url(self) -> str:
        """Optuna storage: the user's, or a file in the study; the path of a file starts from the study."""
        url = self.settings.storage or f"{SQLITE}storage.sqlite3"
        path = url.removeprefix(SQLITE)
        if path == url or not path or path.startswith(("/", ":", "file:")):
            return url
        return f"{SQLITE}{(self.root / path).resolve()}"

    @property
    def shares_storage(self) -> bool:
        """Whether the storage lies outside the study's folder, where other studies and machines may use it."""
        path = self.storage_url.removeprefix(SQLITE)
        is_file = path != self.storage_url
        return not (is_file and Path(path).resolve().is_relative_to(self.root.resolve()))

    @property
    def measure(self) -> str:
        """What besides a run's config decides its numbers, as the queue labels its trials."""
        sets = self.evaluation_sets
        return f"{self.settings.evaluation.tokens_per_domain} tokens" + (f" and sets {sets}" if sets else "")

    @property
    def measured_on(self) -> str:
        """The same as ``runs.table.measured_on`` says of a row that belongs to the study."""
        return f"{self.settings.evaluation.tokens_per_domain}/{self.evaluation_sets}"

    @property
    def evaluation_sets(self) -> str:
        """Fingerprint of the prepared evaluation domains and question sets; empty where study.yaml names none.

        Raises:
            StudyError: they have not been prepared.
        """
        if not self.settings.evaluation.sets:
            return ""
        return str(self._evaluation_manifest()["fingerprint"])

    def evaluation_counts(self) -> dict[str, tuple[int, int]]:
        """Documents (or questions) and tokens (of gold answers) of evaluation domains and question sets, by name.

        Raises:
            StudyError: they have not been prepared.
        """
        sets = self._evaluation_manifest()["sets"] if self.settings.evaluation.sets else {}
        return {name: (each["documents"], each["tokens"]) for name, each in sets.items()}

    def _evaluation_manifest(self) -> Any:
        path = self.corpus_dir / "evaluation.json"
        found = read_json(path, StoredEvaluation) if path.is_file() else {"sets": {}}
        if set(found["sets"]) != set(self.settings.evaluation.sets):
            raise StudyError(
                f"The evaluation domains and question sets of {self.root} are not prepared. "
                f"Run 'decaylaws prepare {self.root}'."
            )
        return found

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
        return read_json(path, StoredManifest)

    def shard_dir(self) -> Path:
        """Where the shards of the prepared corpus lie, and what was found while they were made.

        Raises:
            StudyError: it has not been prepared.
        """
        return (self.corpus_dir / self._manifest()["tokenizer"]["path"]).parent

    def corpus(self) -> CorpusFacts:
        """Facts of the prepared corpus, or of the text that study.yaml declares.

        Raises:
            StudyError: it has not been prepared.
        """
        if self.settings.is_declared:
            sources = self.settings.sources
            return CorpusFacts(
                fingerprint=declared_fingerprint(sources),
                vocab_size=self.settings.tokenizer.vocab_size,
                available_tokens={name: source.tokens or 0 for name, source in sources.items()},
            )
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

    def stores(self) -> dict[str, Any]:
        """What the corpus says of each source that is a token store (``StoredStore``).

        Raises:
            StudyError: it has not been prepared.
        """
        return {
            name: read_json(self.corpus_dir / source["store"]["path"], StoredStore)
            for name, source in self._manifest()["sources"].items()
            if source.get("store")
        }

    def decisive_settings(self) -> dict[str, Any]:
        """The settings that decide what comes out, as JSON values (:func:`~decaylaws.study.identity.decisive`)."""
        return decisive(self.settings, self.arithmetic(), self.held())

    def plan_inputs(self) -> str:
        """Hash of what decides the runs of the sweep and their numbers: settings, corpus, version."""
        sets = [self.evaluation_sets] if self.settings.evaluation.sets else []
        return content_hash(__version__, for_sweep(self.decisive_settings()), vars(self.corpus()), *sets)

    def arithmetic(self) -> Arithmetic:
        """How proxies compute: what study.yaml says, and what ``auto`` came to; until then eager float32.

        How an external trainer computes is not known here, and stands as eager float32.
        """
        if self.settings.trainer != "built-in":
            return EXACT
        train, settled = self.settings.train, asdict(EXACT)
        if self.arithmetic_file.is_file():
            settled |= read_json(self.arithmetic_file, StoredArithmetic)
        with rebuilding(self.arithmetic_file, REMEDY):
            return Arithmetic(
                precision=settled["precision"] if train.precision == "auto" else train.precision,
                compiled=settled["compiled"] if train.compile == "auto" else train.compile,
            )

    def planner(self) -> Planner:
        """Makes the run configs of this study."""
        return Planner(self.settings, self.corpus(), self.arithmetic(), self.held())

    def held(self) -> dict[str, HeldCheckpoint]:
        """The checkpoints that study.yaml names, as their folders are.

        Raises:
            DataError, InvalidValueError: a folder holds no model to start from, or contradicts study.yaml.
        """
        if self.settings.checkpoints is None:
            return {}
        checkpoints, seq_len = self.settings.checkpoints, self.settings.seq_len
        return held.held_checkpoints(checkpoints, self.root, seq_len=seq_len, store=self.held_file)

    def held_folders(self) -> dict[str, Path]:
        """Folders of the checkpoints that study.yaml names, by the fingerprint of their content."""
        return {fingerprint: Path(path) for fingerprint, path in self.held_paths().items()}

    def held_paths(self) -> dict[str, str]:
        """Where the trainer finds the checkpoints that study.yaml names, by their fingerprints."""
        checkpoints = self.settings.checkpoints
        return held.paths(checkpoints, self.root, self.held()) if checkpoints else {}

    def design(self) -> Design:
        """The planned sweep.

        Raises:
            StudyError: it has not been planned.
        """
        stored = self._plan()
        with rebuilding(self.plan_file, REMEDY):
            return Design.from_dict(stored)

    def _plan(self) -> Any:
        if not self.plan_file.is_file():
            raise StudyError(f"{self.root} has no plan yet. Run 'decaylaws plan {self.root}'.")
        return read_json(self.plan_file, StoredPlan)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What ``compute`` makes of the study's files, worked out once for each state of these files.

        A verb asks many times which rows belong to the question; the answer changes with a file only.
        """
        files = (
            *(
                self.corpus_dir / "manifest.json",
                self.held_file,
                self.corpus_dir / "evaluation.json",
                self.arithmetic_file,
                self.plan_file,
                self.proposals_file,
            ),
            *(self.runs_file, self.on_the_way_file, self.law_file, self.fit_file),
            *(self.recommendation_file, self.recipe_file, self.confirm_file),
        )
        states = [path.stat() if path.is_file() else None for path in files]
        stamp = [state and (state.st_mtime_ns, state.st_size, state.st_ino) for state in states]
        known = self.__dict__.setdefault("_known", {})
        if known.get("stamp") != stamp:
            known.clear()
            known["stamp"] = stamp
        if name not in known:
            known[name] = compute()
        return cast(T, known[name])

    def question(self) -> Question:
        """What the study asks now: which recorded runs belong to it.

        Raises:
            StudyError: nothing is prepared or planned, or study.yaml or the corpus changed since.
        """
        return self.once("question", self._question)

    def _question(self) -> Question:
        stored = self._plan()
        if stored.get("inputs") != self.plan_inputs():
            raise StudyError(
                f"study.yaml or the corpus of {self.root} changed since the plan was made. "
                f"Run 'decaylaws plan {self.root}'; runs that both plans hold are not repeated."
            )
        planner = self.planner()
        return Question(
            planned={run["run_id"]: run["role"] for run in stored["runs"]},
            proposed={run.config.run_id: run.role for run in self.proposed()},
            data_fingerprint=planner.corpus.fingerprint,
            evaluation_tokens=self.settings.evaluation.tokens_per_domain,
            evaluation_sets=self.evaluation_sets,
            pools=pool_fingerprint(planner.pool_tokens()),
            sources=tuple(self.settings.sources),
            domains=self.settings.domains,
            keep_earlier=self.settings.design.keep_earlier,
        )

    def proposed(self) -> list[PlannedRun]:
        """Runs that the sampler of the present plan proposed so far."""
        stored = read_json(self.proposals_file, StoredPlan) if self.proposals_file.is_file() else {}
        if stored.get("inputs") != self.plan_inputs():
            return []
        with rebuilding(self.proposals_file, REMEDY):
            return [PlannedRun.from_dict(run) for run in stored["runs"]]

    def recorded_runs(self) -> pd.DataFrame:
        """The whole runs table, with the runs of earlier plans and corpora.

        Raises:
            StudyError: nothing has been run.
        """
        if not self.runs_file.is_file():
            raise StudyError(f"{self.root} has no finished runs yet. Run 'decaylaws run {self.root}'.")
        return read_runs(self.runs_file)

    def runs(self) -> pd.DataFrame:
        """The rows of the runs table that belong to the present question.

        Raises:
            StudyError: nothing has been run, or the plan is not the present one.
        """
        return self._split()[0]

    def left_out(self) -> pd.DataFrame:
        """The rows of the runs table that do not belong to the present question: ``run_id``, ``role``, ``reason``.

        Raises:
            StudyError: nothing has been run, or the plan is not the present one.
        """
        return self._split()[1]

    def _split(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return self.once("split", lambda: self.question().split(self.recorded_runs()))

    def curves(self) -> pd.DataFrame:
        """The curves of the runs that belong to the present question."""
        curves, runs = read_curves(self.curves_file), self.runs()
        own = curves["run_id"].isin(runs["run_id"])
        if EVALUATION in curves:
            own &= measured_on(curves) == self.measured_on
        return curves[own].reset_index(drop=True)


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """Read a JSON file of the study as a value of a known type.

    Raises:
        DataError: it is not readable, not what was written, or of other types.
    """
    return json_files.read_json(path, schema, REMEDY)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically and record its hash; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", recorded=True)
