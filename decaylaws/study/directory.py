"""The study directory: where everything lies, and what has been done so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from decaylaws.designs.design import CorpusFacts, Design, PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.io.files import is_changed, record_of, write_text
from decaylaws.io.json import rebuilding
from decaylaws.runs.columns import pool_fingerprint
from decaylaws.runs.config import EXACT, Arithmetic
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.runs.table import read_curves, read_runs
from decaylaws.settings.external import declared_fingerprint
from decaylaws.settings.study import StudySettings, load_settings
from decaylaws.study import held
from decaylaws.study.files import REMEDY, read_json
from decaylaws.study.identity import decisive, plan_inputs
from decaylaws.study.paths import SETTINGS_NAME, StudyPaths
from decaylaws.study.question import Question
from decaylaws.study.storage import RunStorage
from decaylaws.study.stored import StoredArithmetic, StoredPlan
from decaylaws.study.stored_corpus import StoredEvaluation, StoredManifest, StoredStore
from decaylaws.study.sweep import MeasuredSweep, PlannedSweep
from decaylaws.study.template import template_text
from decaylaws.study.trainer import to_the_end


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

    def storage(self) -> RunStorage:
        """Optuna's storage of the runs.

        Raises:
            StudyError: study.yaml names evaluation domains or question sets that have not been prepared.
        """
        return RunStorage.of(self.root, self.settings, self.evaluation_sets)

    @property
    def storage_url(self) -> str:
        """Where Optuna's storage of the runs is, for Optuna's own tools."""
        return self.storage().url

    @property
    def storage_name(self) -> str:
        """Name of the Optuna study that holds the runs."""
        return self.storage().name

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
        """Hash of what decides the runs of the sweep and their numbers: settings, corpus, version.

        Raises:
            StudyError: the corpus or what runs are evaluated on is not prepared.
        """
        return plan_inputs(self.planner(), self.evaluation_sets)

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
        return held.folders(self.settings.checkpoints, self.root, self.held())

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

    def planned(self) -> PlannedSweep:
        """What the study asks now.

        Raises:
            StudyError: nothing is prepared or planned, or study.yaml or the corpus changed since.
        """
        stored, sets, planner = self._plan(), self.evaluation_sets, self.planner()
        inputs = plan_inputs(planner, sets)
        if stored.get("inputs") != inputs:
            raise StudyError(
                f"study.yaml or the corpus of {self.root} changed since the plan was made. "
                f"Run 'decaylaws plan {self.root}'; runs that both plans hold are not repeated."
            )
        proposals = read_json(self.proposals_file, StoredPlan) if self.proposals_file.is_file() else {}
        proposed: tuple[PlannedRun, ...] = ()
        if proposals.get("inputs") == inputs:
            with rebuilding(self.proposals_file, REMEDY):
                proposed = tuple(PlannedRun.from_dict(run) for run in proposals["runs"])
        question = Question(
            planned={run["run_id"]: run["role"] for run in stored["runs"]},
            proposed={run.config.run_id: run.role for run in proposed},
            data_fingerprint=planner.corpus.fingerprint,
            evaluation_tokens=self.settings.evaluation.tokens_per_domain,
            evaluation_sets=sets,
            pools=pool_fingerprint(planner.pool_tokens()),
            sources=tuple(self.settings.sources),
            domains=self.settings.domains,
            keep_earlier=self.settings.design.keep_earlier,
        )
        return PlannedSweep(planner, question, proposed, inputs)

    def measured(self, planned: PlannedSweep | None = None) -> MeasuredSweep:
        """What the study asks now, with the runs that belong to it and those that do not.

        Args:
            planned: what the study asks, where it has been read already.

        Raises:
            StudyError: nothing has been run, or the plan is not the present one.
        """
        planned = planned or self.planned()
        runs, left_out = planned.question.split(self.recorded_runs())
        return MeasuredSweep(**vars(planned), runs=runs, left_out=left_out)

    def recorded_runs(self) -> pd.DataFrame:
        """The whole runs table, with the runs of earlier plans and corpora.

        Raises:
            StudyError: nothing has been run.
        """
        if not self.runs_file.is_file():
            raise StudyError(f"{self.root} has no finished runs yet. {to_the_end(self.root, self.settings)}")
        return read_runs(self.runs_file)

    def runs(self) -> pd.DataFrame:
        """The rows of the runs table that belong to the present question.

        Raises:
            StudyError: nothing has been run, or the plan is not the present one.
        """
        return self.measured().runs

    def curves(self) -> pd.DataFrame:
        """The curves of the runs that belong to the present question.

        Raises:
            StudyError: nothing has been run, or the plan is not the present one.
        """
        return self.measured().own(read_curves(self.curves_file))
