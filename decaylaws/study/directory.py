"""The study directory: where everything lies, and what has been done so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd

from decaylaws import __version__
from decaylaws.designs.planner import CorpusFacts, Design, PlannedRun, Planner
from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.io import json as json_files
from decaylaws.io.files import is_changed, record_of, write_text
from decaylaws.io.json import rebuilding
from decaylaws.runs.columns import pool_fingerprint
from decaylaws.runs.config import EXACT, Arithmetic
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.runs.table import EVALUATION, measured_on, read_curves, read_runs
from decaylaws.settings.external import DECLARED_KEYS, declared_fingerprint
from decaylaws.settings.study import StudySettings, load_settings
from decaylaws.study import held
from decaylaws.study.question import Question, content_hash
from decaylaws.study.stored import (
    StoredArithmetic,
    StoredEvaluation,
    StoredManifest,
    StoredPlan,
    StoredStore,
)

SETTINGS_NAME = "study.yaml"
REMEDY = "Put it back from a copy, or delete it and run the verb that writes it."
"""What to do about a damaged file of a study."""
SQLITE = "sqlite:///"
TEMPLATES = ("study", "quick", "checkpoint", "external", "demo")

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """A study directory with checked settings.

    ::

        study.yaml       what the user wants
        corpus/          tokenised sources and manifest.json
        plan.json        the design: every planned run
        proposals.json   the runs that a sampler proposed after the design
        storage.sqlite3  Optuna: queue and results (unless study.yaml names another storage)
        checkpoints/     trunks, and members that were interrupted
        checkpoints.json what the folders of checkpoints that study.yaml names say of themselves
        runs.csv         one row per finished run, of earlier plans too; curves.csv: one row per evaluation
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
    def held_file(self) -> Path:
        """What was read of the checkpoints that study.yaml names."""
        return self.root / "checkpoints.json"

    @property
    def plan_file(self) -> Path:
        """The design."""
        return self.root / "plan.json"

    @property
    def proposals_file(self) -> Path:
        """Runs that a sampler proposed after the design."""
        return self.root / "proposals.json"

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
    def exported_runs_file(self) -> Path:
        """Which runs were written for an external trainer, and where its counters stand at their ends."""
        return self.root / "exported_runs.json"

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
    def folder_file(self) -> Path:
        """Identity of the folder, for machines that share a storage: written when a shared storage is first used."""
        return self.root / "folder.json"

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
        """The settings that decide what comes out, as JSON values: all but where and how fast it runs.

        Of decontamination only what decides the text: the other settings refuse a corpus and change nothing in it.
        """
        elsewhere = {"backend", "storage", "external", "tracker"}
        settings = self.settings.model_dump(mode="json", exclude=elsewhere)
        settings["decontamination"] = {
            name: value
            for name, value in settings["decontamination"].items()
            # what these set aside or refuse shows in the fingerprint of the corpus
            if name not in ("heldout_similarity", "max_heldout_overlap", "on_overlap")
        }
        settings["order"] = list(self.settings.sources)  # the first source keeps what a later one repeats
        # defaults that older studies did not have are left out: their stored results stay valid
        for source in settings["sources"].values():
            for name in ("quality", "tokens_from", "token_type", "append_end", *DECLARED_KEYS):
                if source[name] is None or source[name] is False:
                    del source[name]
            source.pop("proxy_path", None)  # where text lies does not decide what it is
        if self.settings.trainer == "built-in":
            del settings["trainer"]
        if not settings["groups"]:
            del settings["groups"]
        for name in ("unit", "guard_bits_per_byte", "insist"):
            if not settings["objective"][name] and settings["objective"][name] != 0:
                del settings["objective"][name]
        for kind in ("domains", "questions"):
            sets = {
                name: each.model_dump(mode="json", exclude={"on_the_way"}, exclude_defaults=True)
                for name, each in getattr(self.settings.evaluation, kind).items()
            }
            del settings["evaluation"][kind]
            if sets:
                settings["evaluation"][kind] = sets
        if not self.settings.decontamination.evaluation_sets:
            del settings["decontamination"]
        if not self.settings.design.keep_earlier:
            del settings["design"]["keep_earlier"]
        if self.settings.design.end_lr_factors == [0.0]:
            del settings["design"]["end_lr_factors"]
        if self.settings.trunk is not None and self.settings.trunk.scale_lr == "none":
            del settings["trunk"]["scale_lr"]
        if self.settings.trunk is not None and not self.settings.trunk.scale_weight_decay:
            del settings["trunk"]["scale_weight_decay"]
        if self.settings.checkpoints is None:
            del settings["checkpoints"]
        else:
            settings["checkpoints"] = held.decisive(settings["checkpoints"], self.held())
        settings["optimizer"] = self.settings.optimizer.decisive()
        settings["train"] = asdict(self.arithmetic())
        if self.arithmetic() == EXACT:
            del settings["train"]
        return settings

    def plan_inputs(self) -> str:
        """Hash of what decides the runs of the sweep and their numbers: settings, corpus, version.

        The objective is part of it only where a sampler proposes runs by it; else it is a question to finished runs.
        """
        settings = self.decisive_settings()
        for name in ("name", "search_trials"):
            del settings[name]
        del settings["target"]["max_decay_tokens"]
        settings["design"].pop("keep_earlier", None)
        settings["optimizer"].pop("recipe", None)
        if settings["sampler"]:  # more proposals go on where fewer ended
            del settings["sampler"]["trials"]
        else:
            del settings["objective"]
            kinds = (settings["evaluation"].get(kind, {}) for kind in ("domains", "questions"))
            for each in (*settings["sources"].values(), *(each for kind in kinds for each in kind.values())):
                each.pop("group", None)
                each.pop("capability", None)
        sets = [self.evaluation_sets] if self.settings.evaluation.sets else []
        return content_hash(__version__, settings, vars(self.corpus()), *sets)

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
            *(self.runs_file, self.law_file, self.fit_file),
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


def template_text(name: str) -> str:
    """Text of a bundled ``study.yaml``: ``study`` (own sources), ``quick`` (small), ``checkpoint``, ``external`` or
    ``demo``.

    Raises:
        InvalidValueError: there is no such template.
    """
    if name not in TEMPLATES:
        raise InvalidValueError("template", name, f"must be one of {', '.join(TEMPLATES)}")
    return files("decaylaws.study").joinpath("templates", f"{name}.yaml").read_text(encoding="utf-8")


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """Read a JSON file of the study as a value of a known type.

    Raises:
        DataError: it is not readable, not what was written, or of other types.
    """
    return json_files.read_json(path, schema, REMEDY)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically and record its hash; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", recorded=True)
