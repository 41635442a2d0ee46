"""Megatron-LM / Megatron-Core 0.16: command-line flags."""

from __future__ import annotations

import re
from collections.abc import Mapping

from decaylaws.exporters.base import Export, ExportOptions, Floats
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.counters import counters_at_start
from decaylaws.exporters.job import Counters, Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_factors
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe

TARGET, VERSION = "megatron", "0.16.1"
_NOT_A_WORD = re.compile(r"[\s'\"\\*?\[$`#]")
WSD_STYLES = {
    "linear": "linear",
    "cosine": "cosine",
    "1-sqrt": "minus_sqrt",
    "megatron-exponential": "exponential",
}


def export_megatron(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_megatron.args``, one flag per line, for ``pretrain_gpt.py $(cat ...)``.

    Everything is counted in samples, as Megatron does itself, and the new LR settings override those of the
    checkpoint. ``restart_megatron.args`` is for a run that was interrupted.

    Args:
        recipe: sources with prefixes of indexed data.
        options: ``data_parallel_ranks`` and ``local_batch_size`` become the micro-batch size; ``seen_samples`` is
            where the checkpoint's counter stands.

    Raises:
        NotRepresentableError: the path is no warm-up, hold, decay of a shape that Megatron has, or a source's
            path holds a blank, which its data arguments cannot.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION)
    path, lr = choose_native(job, NativeScheduler(tuple(WSD_STYLES), replay_lrs, accepts))
    seen, known, assumed = counters_at_start(job, path, "samples")
    groups = ("Adam's betas and eps come from the checkpoint's groups: compare them with those here.",)
    refuse_blanks(job)
    data = " ".join(
        f"{job.shares[name]!r} {_word(job, path, f'sources.{name}.path')}" for name, path in job.paths.items()
    )
    common = {
        **{
            name.replace("_", "-"): _word(job, value, name) if isinstance(value, str) else repr(value)
            for name, value in run_settings(job, path, seen).items()
        },
        "data-path": data,
        "split": "99,1,0",
    }
    # the run's own checkpoints hold its samples, its random state and the settings that override those of the start
    restart = {"load": options.output, "override-opt_param-scheduler": ""}
    return job.export(
        {
            "midtrain_megatron.args": _text(common | _start_flags(job)),
            "restart_megatron.args": _text(common | restart),
        },
        lr.step_lrs,
        (
            "Megatron takes the LR at the start of each step: the first step has the hand-over LR itself.",
            "Versions before the fix of issue 1284 keep the checkpoint's LR in spite of the override flag: look "
            "at the first LR that is logged.",
            "Sources repeat without a word when they run out; the caps hold for the samples set here.",
            *known,
            *(groups if takes_optimizer(recipe) else ()),
            *open_ends(recipe, "prefixes of indexed data"),
            *state_notes(recipe, "--load takes a Megatron checkpoint folder."),
        ),
        restart="Launch with restart_megatron.args, which loads the last checkpoint of the run itself. The other file "
        "would start again from the hand-over.",
        last_checkpoint=options.output,
        launch=f'{job.torchrun} "${{MEGATRON:?set it to the folder of Megatron-LM}}/pretrain_gpt.py" '
        "$(cat {folder}/midtrain_megatron.args) ${MODEL_ARGS:?set it to the flags of the model and the tokenizer}",
        approximations=lr.approximations,
        counts_from=seen,
        assumptions=assumed,
    )


def _word(job: Job, text: str, field: str) -> str:
    """A value of a flag as ``$(cat FILE)`` gives it to Megatron: the shell divides it at blanks and expands patterns
    in it, and takes quotes as they stand.

    Raises:
        NotRepresentableError: the value might not arrive as it is; names it.
    """
    if found := _NOT_A_WORD.search(text):
        raise job.refuse(
            f"{field}={text!r} holds {found[0]!r}, which a shell may change on the way from the file of flags to "
            "Megatron; give it another name or a link without it"
        )
    return text


def _text(flags: Mapping[str, str]) -> str:
    return "".join(f"--{name}{f' {value}' if value else ''}\n" for name, value in flags.items())


def accepts(path: WarmupHoldDecay) -> bool:
    """Whether Megatron's scheduler can follow a path of its shapes."""
    # OptimizerParamScheduler asserts lr_warmup_steps < lr_decay_steps
    return path.warmup_steps < path.num_steps


def replay_lrs(path: WarmupHoldDecay) -> Floats:
    """LR that Megatron uses at every step [num_steps]."""
    return path.peak_lr * start_of_step_factors(path, warmup_start=path.warmup_start_lr / path.peak_lr)


def run_settings(job: Job, path: WarmupHoldDecay, seen: Counters) -> dict[str, float | int | str]:
    """What every run sets but its start and data, by the names of Megatron's arguments, which Megatron-Bridge has too.

    Args:
        job: the run.
        path: its LR path.
        seen: where the checkpoint's counters stand.

    Raises:
        NotRepresentableError: the base of RoPE is no whole number.
    """
    recipe, options, optimizer = job.recipe, job.options, job.recipe.optimizer
    theta = job.rope_theta()
    if theta is not None and theta != round(theta):
        raise job.refuse(
            f"it takes a whole number as the base of RoPE, and stages.rope.theta={theta:g} is not one"
        )
    return {
        **_lr_settings(path, job.sequences, seen.samples),
        **_end(job, seen),
        "global_batch_size": job.sequences,
        "micro_batch_size": options.local_batch_size,
        "seq_length": job.stage.seq_len,
        "optimizer": "adam",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "clip_grad": optimizer.clip_norm,
        "seed": recipe.seed + 1,  # Megatron refuses seed 0
        "save": options.output,
        "save_interval": job.save_interval,
        **({} if theta is None else {"rotary_base": round(theta)}),
    }


def _lr_settings(path: WarmupHoldDecay, sequences: int, seen_samples: int) -> dict[str, float | int | str]:
    settings: dict[str, float | int | str] = {
        "lr": path.peak_lr,
        "min_lr": path.end_lr,
        "lr_warmup_init": path.warmup_start_lr if path.warmup_steps else 0.0,
        "lr_warmup_samples": path.warmup_steps * sequences,
        "lr_decay_samples": seen_samples + path.num_steps * sequences,
    }
    if path.decay_steps == 0:
        return settings | {"lr_decay_style": "constant"}
    return settings | {
        "lr_decay_style": "WSD",
        "lr_wsd_decay_style": WSD_STYLES[path.decay_shape],
        "lr_wsd_decay_samples": path.decay_steps * sequences,
    }


def _end(job: Job, seen: Counters) -> dict[str, int]:
    """Where Megatron is told to end.

    It takes samples, divides them by the run's own batch, and ends at that iteration. Where the checkpoint has counted
    its iterations by another batch, that would be too early or too late.
    """
    iteration = seen.steps + job.recipe.num_steps
    samples = seen.samples + job.recipe.num_steps * job.sequences
    if samples // job.sequences > iteration:
        return {"train_samples": samples, "exit_interval": iteration}
    return {"train_samples": max(samples, iteration * job.sequences)}


def _start_flags(job: Job) -> dict[str, str]:
    checkpoint = start_checkpoint(job.recipe)
    if checkpoint is None:
        return {}
    flags = {"load": _word(job, checkpoint, "handover.checkpoint"), "no-load-rng": ""}
    # --finetune starts the counters anew and leaves the moments behind
    return flags | ({"override-opt_param-scheduler": ""} if takes_optimizer(job.recipe) else {"finetune": ""})


def refuse_blanks(job: Job) -> None:
    """Refuse paths that Megatron's lists of data, divided at blanks, cannot hold."""
    blank = [name for name, path in job.paths.items() if path.split() != [path]]
    if blank:
        raise job.refuse(f"sources.{blank[0]}.path is empty or contains a blank")
