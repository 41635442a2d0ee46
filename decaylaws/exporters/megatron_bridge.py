"""Megatron-Bridge: overrides of one of its recipes, and the blend of data that its pretraining scripts read.

Its training loop and its LR are Megatron's: see :mod:`decaylaws.exporters.megatron`.
"""

from __future__ import annotations

from typing import Any

from decaylaws.exporters.base import Export, ExportOptions
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.counters import counters_at_start
from decaylaws.exporters.job import Job
from decaylaws.exporters.megatron import WSD_STYLES, accepts, refuse_blanks, replay_lrs, run_settings
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json, to_yaml

TARGET, VERSION = "megatron-bridge", "0.3.1"
CONFIG_FILE, RESTART_FILE, BLEND_FILE = (
    "midtrain_megatron_bridge.yaml",
    "restart_megatron_bridge.yaml",
    "blend.json",
)
SECTIONS = {
    "optimizer": (
        "optimizer",
        "lr",
        "min_lr",
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "weight_decay",
        "clip_grad",
    ),
    "scheduler": (
        "lr_warmup_init",
        "lr_warmup_samples",
        "lr_decay_samples",
        "lr_decay_style",
        "lr_wsd_decay_style",
        "lr_wsd_decay_samples",
    ),
    "train": ("train_samples", "exit_interval", "global_batch_size", "micro_batch_size"),
    "rng": ("seed",),
    "checkpoint": ("save", "save_interval"),
    "model": ("seq_length", "rotary_base"),
}
"""Where Megatron-Bridge keeps what Megatron-LM has as arguments of one level."""


def export_megatron_bridge(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_megatron_bridge.yaml``, the ``--config-file`` of a pretraining script of
    Megatron-Bridge, and ``blend.json``, its ``--per-split-data-args-path``.

    Args:
        recipe: sources with prefixes of indexed data.
        options: as for :func:`~decaylaws.exporters.megatron.export_megatron`.

    Raises:
        NotRepresentableError: as for Megatron-LM.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION)
    path, lr = choose_native(job, NativeScheduler(tuple(WSD_STYLES), replay_lrs, accepts))
    seen, known, assumed = counters_at_start(job, path, "samples")
    refuse_blanks(job)
    values = run_settings(job, path, seen)
    config: dict[str, dict[str, Any]] = {
        section: {name: values[name] for name in names if name in values}
        for section, names in SECTIONS.items()
    }
    # a recipe of Megatron-Bridge counts iterations, and refuses to be given both
    config["train"] |= {"train_iters": None, "exit_interval": values.get("exit_interval")}
    config["scheduler"] |= {
        "lr_warmup_iters": 0,
        "lr_warmup_fraction": None,
        "lr_decay_iters": None,
        "lr_wsd_decay_iters": None,
        # the decay of weights is the scheduler's, which a recipe sets apart from the optimiser's
        "start_weight_decay": values["weight_decay"],
        "end_weight_decay": values["weight_decay"],
        "weight_decay_incr_style": "constant",
        "override_opt_param_scheduler": True,
    }
    config["dataset"] = {"seq_length": values["seq_length"], "random_seed": values["seed"]}
    restart = {"load": options.output, "load_optim": True, "load_rng": True, "finetune": False}
    blend = [word for name, prefix in job.paths.items() for word in (repr(job.shares[name]), prefix)]
    return job.export(
        {
            CONFIG_FILE: _text(config, _start(job)),
            RESTART_FILE: _text(config, restart | {"pretrained_checkpoint": None}),
            BLEND_FILE: to_json({"train": blend, "valid": None, "test": None}),
        },
        lr.step_lrs,
        (
            "Megatron takes the LR at the start of each step: the first step has the hand-over LR itself.",
            f"The files override a recipe of Megatron-Bridge, which keeps its model and its parallelism. {BLEND_FILE} "
            "names no validation data: put prefixes of held-out text under 'valid' to have them evaluated.",
            "Sources repeat without a word when they run out; the caps hold for the samples set here.",
            *known,
            *open_ends(recipe, "prefixes of indexed data"),
            *state_notes(recipe, "It must be a Megatron checkpoint folder (torch_dist)."),
        ),
        restart=f"Launch with {RESTART_FILE}, which loads the last checkpoint of the run itself. The other file would "
        "start again from the hand-over.",
        last_checkpoint=options.output,
        launch=f'{job.torchrun} "${{BRIDGE_SCRIPT:?set it to a pretraining script of Megatron-Bridge}}" '
        f"--config-file {{folder}}/{CONFIG_FILE} --per-split-data-args-path {{folder}}/{BLEND_FILE}",
        approximations=lr.approximations,
        counts_from=seen,
        assumptions=assumed,
    )


def _start(job: Job) -> dict[str, Any]:
    """Where a run begins: the checkpoint with its moments and counters, its weights alone, or nothing."""
    checkpoint, with_state = start_checkpoint(job.recipe), takes_optimizer(job.recipe)
    return {
        "load": checkpoint if with_state else None,
        "pretrained_checkpoint": None if with_state else checkpoint,
        "load_optim": True,
        "load_rng": False,
        "finetune": False,
    }


def _text(config: dict[str, dict[str, Any]], checkpoint: dict[str, Any]) -> str:
    return to_yaml(config | {"checkpoint": config["checkpoint"] | checkpoint})
