"""The verb ``export-runs``: the runs of a study as configuration of the trainer that is to do them.

Every import of ``proxy_runs`` stands inside a function: only a corpus that was prepared here needs its packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from decaylaws.designs.design import PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions
from decaylaws.exporters.base import PlannedData
from decaylaws.exporters.planned import (
    ARRAY_FILE,
    ExportedRun,
    export_run,
    run_name,
    run_recipe,
    write_array,
    write_run,
)
from decaylaws.io.files import atomic_write
from decaylaws.progress import Progress, silent
from decaylaws.recipe import HandOver, Source
from decaylaws.runs.config import RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from decaylaws.study import held
from decaylaws.study.directory import Study
from decaylaws.study.external import next_runs, unrecorded
from decaylaws.study.files import read_json, write_json
from decaylaws.study.stored import StoredExportedRuns
from decaylaws.study.trainer import refuse_built_in

if TYPE_CHECKING:
    from proxy_runs.data.shards import TokenStore

ORDER_FILE = "sequences.npy"
READS_SHARDS = ("huggingface", "olmo-core")
"""Targets that can read the arrays of tokens that 'prepare' writes."""


@dataclass(frozen=True)
class ExportedRuns:
    """What was written.

    Attributes:
        directory: the folder of all runs.
        runs: the runs, those from which others start first.
        recorded: how many runs of the study were left out because they have a result.
        script: starts every run.
        notes: sentences on what a person must do or know before the runs are started.
    """

    directory: Path
    runs: tuple[ExportedRun, ...]
    recorded: int
    script: Path
    notes: tuple[str, ...]


def export_runs(
    study: Study,
    target: str,
    directory: Path,
    options: ExportOptions | None = None,
    *,
    models: Mapping[str, str] | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> ExportedRuns:
    """Write every run that the study asks for and that has no result yet as a folder of its own.

    These are the runs of the plan, then what the study's sampler proposes, and the confirming runs once their
    predictions are stored. Writing them again changes nothing but what changed in the study.

    Args:
        study: the study; study.yaml names an external trainer.
        target: name of that trainer, one of ``decaylaws.exporters.EXPORTERS``.
        directory: the folders of the runs go here; the runs are started from it.
        options: ranks, local batch, folder of the checkpoints and the like.
        models: by shape, what the target calls its model; those of study.yaml where left out.
        again: also write the runs that have a result.
        progress: hears of every run.

    Raises:
        StudyError: the study's runs are not for another trainer, or nothing is planned.
        InvalidValueError: the target is unknown, a model or a path of text has no name.
        NotRepresentableError: the target cannot express a run.
    """
    refuse_built_in(study, "export-runs")
    if target not in EXPORTERS:
        raise InvalidValueError("target", target, f"must be one of {', '.join(EXPORTERS)}")
    options = replace(options or ExportOptions(), saves=1)
    if tracker := study.settings.tracker:
        options = replace(options, tracker=tracker.kind, project=tracker.project or study.settings.name)
    sweep, asked = next_runs(study)
    wanted = [run for run in asked if run.config.is_trained]
    chosen = wanted if again else unrecorded(study, sweep.question, wanted)
    checkpoints = held.paths(sweep.settings.checkpoints, study.root, sweep.planner.held)
    store = None if sweep.settings.is_declared else _open_store(study.corpus_dir, target)
    writer = _Writer(sweep.planner, checkpoints, store, target, directory, options, dict(models or {}))
    exported = []
    for done, run in enumerate(chosen, start=1):
        exported.append(writer.write(run))
        progress("runs written", done, len(chosen))
    script = directory / ARRAY_FILE
    if exported:
        script = write_array(exported, directory, group=study.settings.name)
    _remember(study.exported_runs_file, target, exported)
    notes = [
        f"Measure the held-out losses of checkpoint '{writer.name_of(run.config)}' as it is, and record them under run "
        f"{run.config.run_id} at step 0: its decays start from them."
        for run in unrecorded(study, sweep.question, asked)
        if not run.config.is_trained
    ]
    return ExportedRuns(
        directory, tuple(exported), len(wanted) - len(chosen), script, (*writer.notes(), *notes)
    )


def _remember(path: Path, target: str, runs: Sequence[ExportedRun]) -> None:
    """Note in the study where the target's counters stand when each run ends, which its logs will count by."""
    known = read_exported_runs(path)
    for run in runs:
        known[run.config.run_id] = {
            "target": target,
            "last_step": run.export.last_step,
            "last_sample": run.export.last_sample,
        }
    write_json(path, known)


def read_exported_runs(path: Path) -> StoredExportedRuns:
    """What is known of the runs that were written for an external trainer, by their ids.

    Args:
        path: the study's ``exported_runs.json``, which need not exist.
    """
    found: StoredExportedRuns = read_json(path, StoredExportedRuns) if path.is_file() else {}
    return found


class _Writer:
    """Writes run after run; remembers where the runs end from which others start."""

    def __init__(
        self,
        planner: Planner,
        checkpoints: Mapping[str, str],
        store: TokenStore | None,
        target: str,
        directory: Path,
        options: ExportOptions,
        models: dict[str, str],
    ) -> None:
        self._planner, self._checkpoints, self._store = planner, checkpoints, store
        self._settings = settings = planner.settings
        self._target, self._directory = target, directory
        self._options, self._models = options, models
        self._starts: dict[str, ExportedRun] = {}
        self._parts: dict[str, str] = {}  # of declared sources that are cut, by path
        unknown = sorted(set(models) - set(settings.starts))
        if unknown:
            kinds = "shapes and checkpoints" if settings.checkpoints else "shapes"
            constraint = f"must be one of the {kinds} {', '.join(settings.starts)}"
            raise InvalidValueError("model", unknown[0], constraint)

    def write(self, run: PlannedRun) -> ExportedRun:
        """Write the folder of a run."""
        exported = self._exported(run)
        name, project = self._settings.name, self._options.project
        folder = write_run(exported, self._directory, group=name, project=project)
        if self._store is not None and self._target == "huggingface":
            with atomic_write(folder / ORDER_FILE) as handle:
                np.save(handle, self._order(run.config))
        return exported

    def notes(self) -> tuple[str, ...]:
        """What a person must do before the runs are started."""
        if self._store is not None and self._target == "olmo-core":
            heldout = self._directory / "data" / self._store.fingerprint[:8] / "heldout"
            return (
                f"The held-out tokens of every domain are in {heldout}: evaluate on them at "
                "the end of every run, and log the loss in nats per token.",
            )
        if self._store is not None:
            return ()
        parts = [f"Put {words} at {path}." for path, words in self._parts.items()]
        return (
            f"Evaluate the held-out loss of {', '.join(self._settings.domains)} (nats per token, the same text "
            "for every run) at the end of every run, and log it with the run's id.",
            *parts,
        )

    def _exported(self, run: PlannedRun) -> ExportedRun:
        config, name = run.config, run_name(run.role, run.config.run_id)
        shape = self.name_of(config)
        options = replace(self._options, output=f"{self._options.output}/{name}")
        handover = None
        if config.start is not None:
            handover = HandOver(
                checkpoint=self._checkpoints[config.start.fingerprint],
                tokens=config.start.tokens,
                lr=config.start.lr,
                lr_source=self._planner.held[shape].lr_source,
                optimizer_state="load" if config.start.optimizer_state == "load" else "fresh",
            )
        elif config.start_run_id is None:
            options, handover = self._with_model(options, shape, config)
        else:
            start = self._start_of(config, shape)
            options = replace(
                options, seen_steps=start.export.last_step, seen_samples=start.export.last_sample
            )
            handover = HandOver(
                checkpoint=start.export.last_checkpoint,
                run_id=config.start_run_id,
                tokens=config.start_tokens,
                lr=start.config.schedule.end_lr,
                lr_source=f"the end of run {config.start_run_id}",
                optimizer_state="load",
            )
        if self._target == "torchtitan":
            options = replace(options, model=self._model(shape))
        if self._store is not None and self._target == "huggingface":
            options = replace(
                options, planned_data=_planned_data(self._settings.evaluation, self._store, config)
            )
        recipe = run_recipe(name, config, self._sources(config), handover)
        exported = export_run(run.role, config, recipe, self._target, options)
        if config.kind == "trunk":
            self._starts[config.run_id] = exported
        return exported

    def name_of(self, config: RunConfig) -> str:
        """The shape of the run's trunk, or the checkpoint that it starts from, as study.yaml names it."""
        if config.start is not None:
            return next(name for name, held in self._planner.held.items() if held.start == config.start)
        return next(name for name in self._settings.shapes if self._planner.shape(name) == config.shape)

    def _start_of(self, config: RunConfig, shape: str) -> ExportedRun:
        """The run that a run starts from as it is exported, written or not: where its last checkpoint will lie."""
        if config.start_run_id not in self._starts:
            trunk = self._planner.start(shape)
            self._starts[trunk.config.run_id] = self._exported(trunk)
        return self._starts[str(config.start_run_id)]

    def _model(self, shape: str) -> str:
        """What the target calls the model of a shape."""
        settings = self._settings
        checkpoints = settings.checkpoints.models if settings.checkpoints else {}
        declared = settings.shapes.get(shape) or checkpoints.get(shape)
        model = self._models.get(shape) or getattr(declared, "model", None)
        if model is None:
            raise InvalidValueError(
                f"{'shapes' if shape in settings.shapes else 'checkpoints.models'}.{shape}",
                "no name of its model",
                f"must also have a name in {self._target}",
                f"Give it with --model {shape}=NAME.",
            )
        return str(model)

    def _with_model(
        self, options: ExportOptions, shape: str, config: RunConfig
    ) -> tuple[ExportOptions, HandOver | None]:
        """How a run from random weights finds its model."""
        if self._target != "huggingface":
            return options, None
        if self._store is None or shape in self._models:
            return replace(options, config_folder=self._model(shape)), None
        # the very weights with which the built-in trainer would begin
        folder = f"models/{shape}-{config.run_id}"
        _write_initial_weights(self._store, config, self._directory / folder)
        return options, HandOver(
            checkpoint=folder,
            lr=config.schedule.start_lr,
            lr_source="random weights",
            optimizer_state="fresh",
        )

    def _sources(self, config: RunConfig) -> dict[str, Source]:
        """What each source holds for a run, and where the target finds it."""
        settings, available = self._settings.sources, self._planner.corpus.available_tokens
        pools = {**available, **(config.pool_tokens or {})}
        found = {}
        for name, source in settings.items():
            tokens = min(pools[name], available[name])
            path = source.path if self._settings.is_declared else None
            if self._store is not None:
                path = _shard_path(self._store, name, tokens, self._target, self._directory)
            elif tokens < available[name] - config.shape.seq_len and config.mixture.share(name) > 0:
                path = source.part_path(tokens)
                if path is None:
                    raise InvalidValueError(
                        f"sources.{name}.proxy_path",
                        None,
                        f"must say where the {tokens:,} tokens lie that a proxy may read",
                        f"target.repetition_scale = {self._settings.target.repetition_scale:g} lets proxies "
                        "repeat their text as often as the target will.",
                    )
                if path != source.proxy_path:
                    self._parts[path] = f"the first {tokens:,} tokens of {name}"
            found[name] = Source(available_tokens=tokens, path=path, fingerprint=source.fingerprint)
        return found

    def _order(self, config: RunConfig) -> np.ndarray:
        """The sequences of a run: number of the source among ``PlannedData.shards`` and first token, [n, 2]."""
        from proxy_runs.data.sampler import MixtureSampler, available_sequences

        assert self._store is not None
        length, sequences = config.shape.seq_len, config.batch_tokens // config.shape.seq_len
        sampler = MixtureSampler(
            config.mixture,
            available_sequences(self._store, length, config.pool_tokens),
            seed=config.seed,
            batch_sequences=sequences,
        )
        source, sequence = sampler.assign(0, config.num_steps * sequences)
        return np.stack([source, sequence * length], axis=1)


def _open_store(corpus_dir: Path, target: str) -> TokenStore:
    """The prepared corpus, for a target that can read it.

    Raises:
        NotRepresentableError: the target reads no arrays of tokens.
    """
    if target not in READS_SHARDS:
        raise NotRepresentableError(
            target,
            [
                "'prepare' has written the text as arrays of tokens, which it does not read; "
                f"{' and '.join(READS_SHARDS)} do, and sources of format 'declared' can be in any format"
            ],
        )
    from proxy_runs.data.shards import TokenStore

    store = TokenStore.open(corpus_dir, verify=False)
    in_place = [name for name, source in store.manifest.sources.items() if source.store is not None]
    if in_place:
        raise NotRepresentableError(
            target,
            [
                f"sources.{in_place[0]} is a token store of which decaylaws holds out some documents, and the trainer "
                "would train on these too; take held-out documents out of the store and declare the source"
            ],
        )
    return store


def _planned_data(evaluation: EvaluationSettings, store: TokenStore, config: RunConfig) -> PlannedData:
    root, sources = store.directory.resolve(), store.manifest.sources
    return PlannedData(
        shards={name: str(root / sources[name].train.file.path) for name in sorted(config.mixture.support)},
        dtype=store.manifest.dtype,
        order_file=ORDER_FILE,
        heldout={name: str(root / source.heldout.file.path) for name, source in sources.items()},
        heldout_tokens=evaluation.tokens_per_domain,
        evaluations=evaluation.points,
    )


def _shard_path(store: TokenStore, name: str, tokens: int, target: str, directory: Path) -> str:
    """Where the target reads a source: the shard itself, or a copy of the part that the run may read."""
    shard = store.directory.resolve() / store.manifest.sources[name].train.file.path
    if target == "huggingface":
        return str(shard)
    whole = tokens >= store.available_tokens[name]
    folder = f"data/{store.fingerprint[:8]}"
    parts = {f"{folder}/{name}.npy" if whole else f"{folder}/{name}-{tokens}.npy": (shard, tokens)}
    heldout = store.directory / store.manifest.sources[name].heldout.file.path
    parts[f"{folder}/heldout/{name}.npy"] = (heldout, store.manifest.sources[name].heldout.tokens)
    for path, (source, count) in parts.items():
        if not (directory / path).is_file():
            with atomic_write(directory / path) as handle:
                handle.write(np.memmap(source, dtype=store.dtype, mode="r")[:count].data)
    return next(iter(parts))


def _write_initial_weights(store: TokenStore, config: RunConfig, folder: Path) -> None:
    """The model of a run before its first step, with its tokenizer, as a Hugging Face folder."""
    from transformers.utils import logging

    from proxy_runs.engine.model import init_params
    from proxy_runs.weights.hf import save_hf

    logging.disable_progress_bar()
    if (folder / "model.safetensors").is_file():
        return
    shape = config.llama
    save_hf(
        init_params(shape, config.seed),
        shape,
        folder,
        tokenizer_path=store.tokenizer_path,
        eos_token_id=store.eos_id,
    )


def runs_table(written: ExportedRuns) -> pd.DataFrame:
    """What was written: one row per role and size.

    Args:
        written: the runs.

    Returns:
        ``role``, ``N``, ``runs``, ``tokens`` of all of them and ``largest LR error`` against the plan.
    """
    rows = pd.DataFrame(
        [
            {
                "role": run.role,
                "N (non-embedding)": run.config.shape.non_embedding_params,
                "tokens": run.config.tokens,
                "error": run.export.max_abs_lr_error / (run.export.step_lrs.max() or 1.0),
            }
            for run in written.runs
        ]
    )
    if rows.empty:
        return rows
    table = rows.groupby(["role", "N (non-embedding)"], sort=False).agg(
        runs=("tokens", "size"), tokens=("tokens", "sum"), error=("error", "max")
    )
    table["largest LR error"] = [f"{error:.2%} of the peak" for error in table.pop("error")]
    return table.reset_index()
