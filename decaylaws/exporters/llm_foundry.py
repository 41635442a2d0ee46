"""LLM Foundry 0.22: the parts of its YAML that a recipe decides."""

from __future__ import annotations

from typing import Any

from decaylaws.exporters.base import Export, ExportOptions
from decaylaws.exporters.chain import export_runs
from decaylaws.exporters.job import Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_lrs
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "llm-foundry", "0.22.0"


def export_llm_foundry(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_llm_foundry.yaml``, to be merged into the model's own config.

    LLM Foundry has no warm-up, hold, linear decay, but its inverse square root with ``alpha_f_decay: 1`` is
    just that.

    Args:
        recipe: sources with paths of streaming data sets.
        options: ranks and local batch size become ``device_train_microbatch_size``.

    Raises:
        NotRepresentableError: the path is neither warm-up from zero, hold, linear decay nor a cosine.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION)
    path, lr = choose_native(job, NativeScheduler(("linear", "cosine"), start_of_step_lrs, _has_scheduler))
    groups = (
        "Composer takes the settings of the optimiser's groups from the checkpoint: betas, eps, weight decay, and the "
        "LR of the first step. Compare them with those here before launching. From the second step on the LR is "
        "this one.",
    )
    return job.export(
        {"midtrain_llm_foundry.yaml": to_yaml(_config(job, path))},
        lr.step_lrs,
        (
            "LLM Foundry takes the LR at the start of each step: the first step has the hand-over LR itself.",
            "Its decoupled AdamW does not multiply weight decay by the peak LR; the value here already is.",
            "Check load_ignore_keys against the keys of the checkpoint before launching.",
            *(groups if takes_optimizer(recipe) else ()),
            *open_ends(recipe, "streaming data sets (MDS)"),
            *state_notes(recipe, "load_path takes a Composer checkpoint."),
        ),
        restart="Launch again with the same file: autoresume finds the last checkpoint of the run itself in "
        "save_folder, and load_path and load_ignore_keys are passed over then.",
        last_checkpoint=f"{options.output}/latest-rank0.pt",
        launch=f"composer -n {options.data_parallel_ranks} "
        '"${LLM_FOUNDRY:?set it to the folder of LLM Foundry}/scripts/train/train.py" '
        "{folder}/midtrain_llm_foundry.yaml",
        approximations=lr.approximations,
    )


def _has_scheduler(path: WarmupHoldDecay) -> bool:
    return path.decay_shape != "cosine" or path.hold_steps == 0


def _scheduler(path: WarmupHoldDecay, batch_tokens: int) -> dict[str, Any]:
    warmup = {"t_warmup": f"{path.warmup_steps * batch_tokens}tok"}
    if path.decay_shape == "constant":
        return {"name": "constant_with_warmup", **warmup}
    floor = path.end_lr / path.peak_lr
    if path.decay_shape == "cosine":
        return {"name": "cosine_with_warmup", **warmup, "alpha_f": floor}
    return {
        "name": "inv_sqrt_with_warmup",
        **warmup,
        "t_scale": f"{batch_tokens}tok",
        "t_cooldown": f"{path.decay_steps * batch_tokens}tok",
        "alpha_f_decay": 1.0,
        "alpha_f_cooldown": floor,
    }


def _config(job: Job, path: WarmupHoldDecay) -> dict[str, Any]:
    recipe, options, stage, optimizer = job.recipe, job.options, job.stage, job.recipe.optimizer
    config: dict[str, Any] = {
        "max_duration": f"{path.num_steps * stage.batch_tokens}tok",
        "max_seq_len": stage.seq_len,
        "global_train_batch_size": job.sequences,
        "device_train_microbatch_size": options.local_batch_size,
        "seed": recipe.seed,
        "scheduler": _scheduler(path, stage.batch_tokens),
        "optimizer": {
            "name": "decoupled_adamw",
            "lr": path.peak_lr,
            "betas": [optimizer.beta1, optimizer.beta2],
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay * path.peak_lr,
        },
        "algorithms": {
            "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": optimizer.clip_norm}
        },
        "train_loader": {"name": "text", "dataset": _dataset(job), "drop_last": True},
        "run_name": options.run_name or "midtrain",
        "autoresume": True,
        "save_folder": options.output,
        "save_latest_filename": "latest-rank{rank}.pt",
    }
    theta = job.rope_theta()
    if theta is not None:
        config["model"] = {"attn_config": {"rope": True, "rope_theta": theta}}
    checkpoint = start_checkpoint(recipe)
    if checkpoint is not None:
        config |= {
            "load_path": checkpoint,
            "load_weights_only": recipe.handover.optimizer_state == "fresh",
            "load_ignore_keys": ["state/schedulers/*", "state/timestamp/*", "state/dataset_state"],
        }
    return config


def _dataset(job: Job) -> dict[str, Any]:
    return {
        "max_seq_len": job.stage.seq_len,
        # without it the streams follow one another instead of mixing
        "shuffle": True,
        "batching_method": "stratified",
        "epoch_size": job.recipe.num_steps * job.sequences,
        "streams": {
            name: {"local": path, "split": "train", "proportion": job.shares[name]}
            for name, path in job.paths.items()
        },
    }
