"""Hugging Face Trainer (transformers 5.24) with datasets 5: training arguments and their script."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from decaylaws.exporters.base import Export, ExportOptions, Floats
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.job import Job
from decaylaws.exporters.native import LrChoice, NativeScheduler, choose_table_or_native
from decaylaws.exporters.notes import (
    START_FOLDER,
    open_ends,
    start_checkpoint,
    state_notes,
    takes_optimizer,
)
from decaylaws.exporters.rules import transformers_wsd_factors
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json

TARGET, VERSION = "huggingface", "5.24.0"
AS_CHECKPOINT = "as_checkpoint"
DECAY_SHAPES = ("linear", "cosine", "1-sqrt")  # transformers has our names


def export_huggingface(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``training_arguments.json`` and ``train.py``.

    The script shares the documents of every source out among the ranks, packs them before it mixes, and gives every
    rank a seed of its own; with one seed all ranks would read the same source at the same moment. The LR is
    ``warmup_stable_decay`` or, where that misses the path, a table in the script, by ``options.lr_rule``.

    Args:
        recipe: every source with a path to JSON Lines.
        options: ``model`` is the Hugging Face folder to start from; when left out, the hand-over checkpoint,
            or ``start`` if the recipe names none.

    Raises:
        NotRepresentableError: the Trainer cannot express the recipe; the message says what.
    """
    options = options or ExportOptions()
    return export_runs(_starting_from(options.model, recipe), replace(options, model=None), _export_run)


def _starting_from(model: str | None, recipe: Recipe) -> Recipe:
    if model is None:
        return recipe
    state = "load" if takes_optimizer(recipe) else "fresh"
    handover = recipe.handover.model_copy(
        update={"checkpoint": model, "optimizer_state": state, "lr_jump": True}
    )
    return recipe.model_copy(update={"handover": handover})


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION, optimizers=("adamw", AS_CHECKPOINT))
    keeps_groups = recipe.optimizer.name == AS_CHECKPOINT
    if keeps_groups:
        lr = _scaled_groups(job)
    else:
        lr = choose_table_or_native(job, NativeScheduler(DECAY_SHAPES, _replay, table=True))
    model = start_checkpoint(recipe)
    script = render(
        "huggingface.py.j2",
        name=recipe.name,
        version=VERSION,
        ranks=job.options.data_parallel_ranks,
        start=model or options.config_folder or START_FOLDER,
        random_weights=model is None,
        optimizer_state=f"{model.rstrip('/')}/optimizer.pt" if model and takes_optimizer(recipe) else None,
        keeps_groups=keeps_groups,
        seq_len=job.stage.seq_len,
        rope=job.stage.rope,
        # for heads of two dimensions the base of NTK-aware scaling has no meaning: the script works it out
        rope_parameters=job.stage.rope and job.stage.rope.transformers_parameters(4),
        sources=[(name, path, job.shares[name]) for name, path in job.paths.items()],
        factors=lr.factors,
        data=options.planned_data,
        run_id=options.run_id,
    )
    return job.export(
        {"training_arguments.json": to_json(_arguments(job, lr)), "train.py": script},
        lr.step_lrs,
        _notes(job, lr),
        restart="Launch again with the same command: the script goes on from the last checkpoint in output_dir, and "
        "reads again, without training on it, what the run had read.",
        last_checkpoint=f"{options.output}/checkpoint-{recipe.num_steps}",
        launch=f"{job.torchrun} {{folder}}/train.py",
        approximations=lr.approximations,
        # whole sequences are dealt out by share where they are planned; else they are drawn
        realised_shares=job.shares if options.planned_data is not None else None,
    )


def _scaled_groups(job: Job) -> LrChoice:
    """A table of factors on the LR that each group of the checkpoint's optimiser has at the hand-over.

    Raises:
        NotRepresentableError: there are no groups to keep, or no LR at the hand-over to scale from.
    """
    handover = job.recipe.handover
    if not takes_optimizer(job.recipe) or handover.lr == 0:
        raise job.refuse(
            "the optimiser is as_checkpoint, which needs handover.optimizer_state: load and a handover.lr above zero"
        )
    return LrChoice(job.recipe.step_lrs(), path=None, peak_lr=handover.lr)


def _replay(path: WarmupHoldDecay) -> Floats:
    factors = transformers_wsd_factors(
        path.num_steps,
        warmup_steps=path.warmup_steps,
        hold_steps=path.hold_steps,
        decay_steps=path.decay_steps,
        decay_shape=path.decay_shape,
        min_lr_ratio=_floor(path),
    )
    return path.peak_lr * factors


def _floor(path: WarmupHoldDecay) -> float:
    # the floor is also where a warm-up begins; a run that ends at its peak is better warmed up from zero
    return path.end_lr / path.peak_lr if path.decay_steps else 0.0


def _scheduler(path: WarmupHoldDecay | None) -> dict[str, Any]:
    """The scheduler's share of ``TrainingArguments``."""
    if path is None:
        # train.py replaces it by its table; alone, these arguments keep the LR constant
        return {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": path.warmup_steps,
        "lr_scheduler_kwargs": {
            "num_stable_steps": path.hold_steps,
            "num_decay_steps": path.decay_steps,
            "warmup_type": "linear",
            "decay_type": path.decay_shape if path.decay_steps else "linear",
            "min_lr_ratio": _floor(path),
        },
    }


def _arguments(job: Job, lr: LrChoice) -> dict[str, Any]:
    """``TrainingArguments``."""
    recipe, options, optimizer = job.recipe, job.options, job.recipe.optimizer
    return {
        "output_dir": options.output,
        "max_steps": recipe.num_steps,
        "per_device_train_batch_size": options.local_batch_size,
        "gradient_accumulation_steps": job.accumulation,
        "learning_rate": lr.peak_lr,
        "optim": "adamw_torch",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip_norm,
        "seed": recipe.seed,
        "logging_steps": 10,
        "save_steps": job.save_interval,
        "report_to": options.tracker,
        **({"project": options.project} if options.project and options.tracker == "trackio" else {}),
        **({"run_name": options.run_name} if options.run_name else {}),
        **_scheduler(lr.path),
        **_evaluation(job),
    }


def _evaluation(job: Job) -> dict[str, Any]:
    """When a run whose data are planned is evaluated on its held-out text."""
    data = job.options.planned_data
    if data is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": -(-job.recipe.num_steps // data.evaluations),
        "eval_on_start": True,
        "per_device_eval_batch_size": job.options.local_batch_size,
    }


def _notes(job: Job, lr: LrChoice) -> tuple[str, ...]:
    recipe = job.recipe
    steps = (
        "The LR of every step is a table in train.py; training_arguments.json alone keeps it constant."
        if lr.path is None
        else "The Trainer takes the LR at the start of each step: the first step has the hand-over LR itself."
    )
    if recipe.optimizer.name == AS_CHECKPOINT:
        steps = (
            "Every group of the checkpoint's optimizer.pt keeps its settings. Its LR there is multiplied by the "
            f"recipe's LR over {recipe.handover.lr:g}, the LR at the hand-over. Set optim in "
            "training_arguments.json to the optimiser that wrote the checkpoint: its other settings there do not count."
        )
    folder = job.options.config_folder or START_FOLDER
    config = f"The script expects the model's config and tokenizer in '{folder}'."
    if job.options.planned_data is not None:
        return (
            steps,
            "The script reads the arrays of tokens that the study has prepared, in the order that it has planned. It "
            "measures the held-out loss of every domain and writes metrics.jsonl into output_dir.",
            *state_notes(recipe, "Its optimizer.pt is read without running code in it."),
        )
    return (
        steps,
        *(() if start_checkpoint(recipe) else (config,)),
        "The model shifts labels itself: a sequence of n tokens has n - 1 targets.",
        "Sources start again without a word when they run out: the token caps of the recipe hold only for "
        "the steps that max_steps sets.",
        *open_ends(recipe),
        *state_notes(recipe, "Its optimizer.pt is read without running code in it."),
    )
