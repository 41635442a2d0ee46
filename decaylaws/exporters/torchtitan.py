"""torchtitan 0.3.0: one Python module with a config function, since it reads no other configuration.

Launch the export with ``torchrun ... -m torchtitan.train --module <module> --config <name>``.
"""

from __future__ import annotations

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Export, ExportOptions, Floats
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.job import Job
from decaylaws.exporters.native import LrChoice, NativeScheduler, choose_table_or_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import torchtitan_factors
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe

TARGET, VERSION = "torchtitan", "0.3.0"
MODULE, FUNCTION = "midtrain_torchtitan", "midtrain"
CHECKPOINT_FOLDER = "checkpoint"  # below the folder of the run, as in torchtitan
DEFAULT_MODEL = "torchtitan.models.llama3.config_registry:llama3_8b"
DECAY_TYPES = {"linear": "linear", "cosine": "cosine", "1-sqrt": "sqrt"}


def export_torchtitan(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as a torchtitan 0.3.0 config module.

    The module registers the sources, mixes them with a seed of its own on every rank (0.3.0's interleaver
    draws the same source on all ranks at once), decays weights of matrices only, and takes the LR from
    torchtitan's own schedule or from a table, by ``options.lr_rule``.

    Args:
        recipe: every source with a path to JSON Lines.
        options: ``model`` is ``module:function`` of the config to start from.

    Raises:
        NotRepresentableError: torchtitan cannot express the recipe; the message says what.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION)
    if len({name.lower() for name in job.paths}) != len(job.paths):
        raise job.refuse("it lower-cases the names of sources, and two become the same")
    scheduler = NativeScheduler(tuple(DECAY_TYPES), _replay, table=True)
    lr = choose_table_or_native(job, scheduler)
    model_module, model_function = _model(job.options)
    text = render(
        "torchtitan.py.j2",
        name=recipe.name,
        version=VERSION,
        module=MODULE,
        function=FUNCTION,
        model_module=model_module,
        model_function=model_function,
        sources=[(name, path, job.shares[name]) for name, path in job.paths.items()],
        peak_lr=lr.peak_lr,
        factors=lr.factors,
        schedule=lr.path and _settings(lr.path),
        steps=recipe.num_steps,
        interval=job.save_interval,
        seq_len=job.stage.seq_len,
        global_batch_size=job.sequences,
        local_batch_size=job.options.local_batch_size,
        seed=recipe.seed,
        optimizer=recipe.optimizer,
        checkpoint=start_checkpoint(recipe),
        load_optimizer=takes_optimizer(recipe),
        rope_theta=job.rope_theta(),
        output=job.options.output,
        checkpoint_folder=CHECKPOINT_FOLDER,
    )
    return job.export(
        {f"{MODULE}.py": text},
        lr.step_lrs,
        _notes(recipe, lr),
        restart="Launch again with the same module: torchtitan goes on from the last checkpoint of the run itself, "
        "with its schedule, its step count and its place in the data. The hand-over is not read again.",
        last_checkpoint=f"{options.output}/{CHECKPOINT_FOLDER}/step-{recipe.num_steps}",
        launch="PYTHONPATH={folder}${PYTHONPATH:+:$PYTHONPATH} "
        f"{job.torchrun} -m torchtitan.train --module {MODULE} --config {FUNCTION}",
        approximations=lr.approximations,
    )


def _model(options: ExportOptions) -> tuple[str, str]:
    module, _, function = (options.model or DEFAULT_MODEL).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise InvalidValueError(
            "model", options.model, "must be 'module.path:function' of a torchtitan config"
        )
    return module, function


def _settings(path: WarmupHoldDecay) -> dict[str, object]:
    """Arguments of ``LRSchedulersContainer.Config``."""
    return {
        "warmup_steps": path.warmup_steps,
        # round(total * ratio) gives the steps back: they are whole
        "decay_ratio": path.decay_steps / path.num_steps,
        "decay_type": DECAY_TYPES.get(path.decay_shape, "linear"),
        "min_lr_factor": path.end_lr / path.peak_lr,
    }


def _replay(path: WarmupHoldDecay) -> Floats:
    factors = torchtitan_factors(
        path.num_steps,
        warmup_steps=path.warmup_steps,
        decay_ratio=path.decay_steps / path.num_steps,
        decay_shape=path.decay_shape,
        min_lr_factor=path.end_lr / path.peak_lr,
    )
    return path.peak_lr * factors


def _notes(recipe: Recipe, lr: LrChoice) -> tuple[str, ...]:
    steps = (
        "The LR of every step is a table in the module; it needs no schedule of torchtitan's."
        if lr.path is None
        else "The last step stays above the minimum LR: torchtitan decays towards a step it never trains."
    )
    return (
        steps,
        "torchtitan counts sequences, not tokens: global_batch_size is in sequences.",
        "Its sources loop without a word when they run out: the token caps of the recipe hold only for the "
        "steps that the module sets.",
        *open_ends(recipe),
        *state_notes(
            recipe,
            "It must be a DCP folder of torchtitan; a relative path is looked up where the trainer starts.",
        ),
    )
