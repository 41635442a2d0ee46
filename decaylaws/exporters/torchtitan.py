"""torchtitan 0.3.0: one Python module with a config function, since it reads no other configuration.

Launch the export with ``torchrun ... -m torchtitan.train --module <module> --config <name>``.
"""

from __future__ import annotations

from typing import Any

from decaylaws.errors import InvalidValueError, NotRepresentableError
from decaylaws.exporters.base import (
    Export,
    ExportOptions,
    chosen_lrs,
    global_batch_sequences,
    max_abs_error,
    single_stage,
    source_paths,
)
from decaylaws.exporters.notes import START_FOLDER, mixing_note, open_ends, start_checkpoint, state_notes
from decaylaws.exporters.rules import torchtitan_factors
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe

TARGET, VERSION = "torchtitan", "0.3.0"
MODULE, FUNCTION = "midtrain_torchtitan", "midtrain"
DEFAULT_MODEL = "torchtitan.models.llama3.config_registry:llama3_8b"
_DECAY_TYPES = {"linear": "linear", "cosine": "cosine", "1-sqrt": "sqrt", "constant": "linear"}


def export_torchtitan(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as a torchtitan 0.3.0 config module.

    The module registers the sources, mixes them with a seed of its own on every rank (0.3.0's interleaver
    draws the same source on all ranks at once), decays weights of matrices only, and takes the LR from
    torchtitan's own schedule or from a table, by ``options.lr_rule``.

    Args:
        recipe: one mixture, one batch size, one sequence length; every source with a path to JSON Lines.
        options: ``model`` is ``module:function`` of the config to start from.

    Raises:
        NotRepresentableError: torchtitan cannot express the recipe; the message says what.
    """
    options = options or ExportOptions()
    stage = single_stage(recipe, TARGET)
    paths = source_paths(recipe)
    _check_names(paths)
    sequences = global_batch_sequences(stage, options, TARGET)
    path = WarmupHoldDecay.of(recipe)
    schedule = _native_schedule(path)
    native_lrs = None
    if path is not None and schedule is not None:
        native_lrs = path.peak_lr * torchtitan_factors(recipe.num_steps, **schedule)
    step_lrs = chosen_lrs(recipe, native_lrs, options, TARGET)
    exact = step_lrs is not native_lrs
    peak_lr = float(step_lrs.max()) if path is None else path.peak_lr
    model_module, model_function = _model(options)
    text = render(
        "torchtitan.py.j2",
        name=recipe.name,
        version=VERSION,
        module=MODULE,
        function=FUNCTION,
        model_module=model_module,
        model_function=model_function,
        sources=[(name, paths[name], stage.mixture.share(name)) for name in paths],
        peak_lr=peak_lr,
        factors=[lr / peak_lr for lr in step_lrs.tolist()] if exact else None,
        schedule=schedule and schedule | {"decay_shape": _DECAY_TYPES[schedule["decay_shape"]]},
        steps=recipe.num_steps,
        seq_len=stage.seq_len,
        global_batch_size=sequences,
        local_batch_size=options.local_batch_size,
        seed=recipe.seed,
        optimizer=recipe.optimizer,
        checkpoint=start_checkpoint(recipe, folder=f"/{START_FOLDER}"),
        load_optimizer=recipe.handover.optimizer_state == "load",
        output=options.output,
    )
    return Export(
        target=TARGET,
        target_version=VERSION,
        files={f"{MODULE}.py": text},
        step_lrs=step_lrs,
        max_abs_lr_error=max_abs_error(step_lrs, recipe),
        realised_shares=dict(stage.mixture.weights),
        notes=_notes(recipe, exact=exact),
    )


def _model(options: ExportOptions) -> tuple[str, str]:
    module, _, function = (options.model or DEFAULT_MODEL).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise InvalidValueError(
            "model", options.model, "must be 'module.path:function' of a torchtitan config"
        )
    return module, function


def _check_names(paths: dict[str, str]) -> None:
    lowered = [name.lower() for name in paths]
    if len(set(lowered)) != len(lowered):
        raise NotRepresentableError(TARGET, ["it lower-cases the names of sources, and two become the same"])


def _native_schedule(path: WarmupHoldDecay | None) -> dict[str, Any] | None:
    """Arguments of ``torchtitan_factors``, or ``None`` if the path has another form."""
    if path is None or path.decay_shape not in _DECAY_TYPES or path.peak_lr == 0.0:
        return None
    return {
        "warmup_steps": path.warmup_steps,
        # round(total * ratio) gives the steps back: they are whole
        "decay_ratio": path.decay_steps / path.num_steps,
        "decay_shape": path.decay_shape,
        "min_lr_factor": path.end_lr / path.peak_lr,
    }


def _notes(recipe: Recipe, *, exact: bool) -> tuple[str, ...]:
    steps = (
        "The LR of every step is a table in the module; it needs no schedule of torchtitan's."
        if exact
        else "The last step stays above the minimum LR: torchtitan decays towards a step it never trains."
    )
    return (
        steps,
        "torchtitan counts sequences, not tokens: global_batch_size is in sequences.",
        "Its sources loop without a word when they run out: the token caps of the recipe hold only for the "
        "steps that the module sets.",
        *mixing_note(recipe),
        *open_ends(recipe),
        *state_notes(recipe, "A checkpoint must be a DCP folder of torchtitan with an absolute path."),
    )
