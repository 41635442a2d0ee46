"""The folder of one run for an external trainer: its configuration, and where it finds text and its start.

Every import of ``proxy_runs`` stands inside a function: only a corpus that was prepared here needs its packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decaylaws.designs.design import PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters import ExportOptions
from decaylaws.exporters.base import PlannedData
from decaylaws.exporters.planned import ExportedRun, export_run, run_name, run_recipe, write_run
from decaylaws.io.files import atomic_write
from decaylaws.recipe import HandOver, Source
from decaylaws.runs.config import RunConfig
from decaylaws.settings.evaluation import EvaluationSettings

if TYPE_CHECKING:
    from proxy_runs.data.shards import TokenStore

ORDER_FILE = "sequences.npy"
READS_SHARDS = ("huggingface", "olmo-core")
"""Targets that can read the arrays of tokens that 'prepare' writes."""


class RunWriter:
    """Writes run after run; remembers where the runs end from which others start.

    Args:
        planner: of the study.
        checkpoints: where the target finds the checkpoints that study.yaml names, by their fingerprints.
        store: the prepared corpus; None where the text is declared.
        target: name of the trainer.
        directory: the folders of the runs go here.
        options: ranks, local batch, folder of the checkpoints and the like.
        models: by shape, what the target calls its model.

    Raises:
        InvalidValueError: a model is given for an unknown shape.
    """

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


def open_store(corpus_dir: Path, target: str) -> TokenStore:
    """The prepared corpus, for a target that can read it.

    Args:
        corpus_dir: its folder.
        target: name of the trainer.

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
