"""nanotron (main of April 2026): the parts of its YAML that a recipe decides."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from decaylaws.exporters.base import Export, ExportOptions
from decaylaws.exporters.chain import RECIPE_FILE, export_runs, part_recipe
from decaylaws.exporters.job import Job
from decaylaws.exporters.native import NativeScheduler, choose_native
from decaylaws.exporters.notes import open_ends, start_checkpoint, state_notes, takes_optimizer
from decaylaws.exporters.rules import start_of_step_lrs
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, Stage
from decaylaws.recipe.files import to_yaml

TARGET, VERSION = "nanotron", "main of 2026-04 (2411b022)"
DECAY_SHAPES = ("linear", "cosine", "1-sqrt")  # nanotron has our names


def export_nanotron(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``midtrain_nanotron.yaml``, to be merged into the model's own config.

    Steps of the decay and the LR at its end are always written: left out, nanotron stops the decay on the
    way, or does not decay at all. nanotron also takes the settings of the optimiser's groups from a checkpoint, its
    peak LR among them; ``start_checkpoint.py`` makes a copy of the checkpoint that has the recipe's.

    Stages that differ in their mixture only become ``data_stages`` of one run with one schedule. nanotron loads the
    data of the last stage that a config names, so that every stage has a config of its own.

    Args:
        recipe: sources with folders of tokenised data.
        options: ranks and local batch size become ``parallelism.dp``, ``micro_batch_size`` and accumulation.

    Raises:
        NotRepresentableError: the path is no warm-up from zero, hold, decay of a shape that nanotron has.
    """
    return export_runs(recipe, options, _export_run)


def _export_run(recipe: Recipe, options: ExportOptions) -> Export:
    job = Job.of(recipe, options, TARGET, VERSION, mixture_stages=True)
    path, lr = choose_native(job, NativeScheduler(DECAY_SHAPES, start_of_step_lrs))
    groups = [tuple(group) for _, group in groupby(recipe.stages, key=lambda stage: stage.mixture)]
    stages = _data_stages(groups)
    files = {}
    for number, stage in enumerate(stages, start=1):
        folder = f"stage-{number}/" if len(stages) > 1 else ""
        checkpoint = start_checkpoint(recipe) if number == 1 else f"{options.output}/{stage.start - 1}"
        start = f"{options.output}/start" if number == 1 else f"{options.output}/start-{number}"
        config = _config(job, path, stages[:number])
        if (
            number > 1
        ):  # as a restart does, a later stage goes on from the run's own checkpoint and its schedule
            config["checkpoints"] |= _own_checkpoint(start)
        own = config["checkpoints"] | _own_checkpoint(f"{options.output}/restart")
        files[f"{folder}midtrain_nanotron.yaml"] = to_yaml(config)
        files[f"{folder}restart_nanotron.yaml"] = to_yaml(config | {"checkpoints": own})
        files[f"{folder}start_checkpoint.py"] = render(
            "nanotron.py.j2",
            name=recipe.name,
            version=VERSION,
            checkpoint=checkpoint,
            start=start,
            restart=f"{options.output}/restart",
            lr=path.peak_lr,
            optimizer=recipe.optimizer,
        )
        if folder:
            part = part_recipe(recipe, groups, number, checkpoint or "", recipe.seed)
            files[folder + RECIPE_FILE] = to_yaml(part.to_dict())
    return job.export(
        files,
        lr.step_lrs,
        _notes(job, path, stages),
        restart=f"Run 'python start_checkpoint.py {options.output}/STEP' with the step of the last checkpoint, then "
        "launch with restart_nanotron.yaml (of the stage that was running). Resumed from its own checkpoint as it is, "
        "nanotron would be one step ahead in its schedule, and at a wrong LR in a decay that ends above zero.",
        last_checkpoint=f"{options.output}/{recipe.num_steps}",
        launch=_launch(job, "stage-1/" if len(stages) > 1 else ""),
        approximations=lr.approximations,
    )


def _launch(job: Job, stage: str) -> str:
    copied = f"python {{folder}}/{stage}start_checkpoint.py && " if takes_optimizer(job.recipe) else ""
    script = '"${NANOTRON:?set it to the folder of nanotron}/run_train.py"'
    return f"{copied}{job.torchrun} {script} --config-file {{folder}}/{stage}midtrain_nanotron.yaml"


def _notes(job: Job, path: WarmupHoldDecay, stages: list[DataStage]) -> tuple[str, ...]:
    recipe, options = job.recipe, job.options
    notes = [
        "nanotron takes the LR at the start of each step: the first step has the hand-over LR itself.",
        "Steps are counted from 1 again, and so is the schedule: load_lr_scheduler is false.",
        f"The batch is divided among {options.data_parallel_ranks:,} data-parallel ranks (parallelism.dp). For "
        "another number export again with --ranks: batch_accumulation_per_replica depends on it.",
        "It decays the gains of norms too: weight_decay_exclude_named_params fails in this version for models whose "
        "embeddings are not tied.",
        "The one on PyPI (0.4) has other keys.",
        *open_ends(recipe, "tokenised folders"),
        *state_notes(recipe, "It has to be a nanotron checkpoint folder."),
    ]
    if takes_optimizer(recipe):
        notes.append(
            f"Run start_checkpoint.py before the launch: it writes a copy of the checkpoint to {options.output}/start "
            "whose optimiser has the recipe's LR, betas and weight decay. nanotron would go on with the checkpoint's: "
            f"its LR would be the checkpoint's peak LR where the schedule says {path.peak_lr:.6g}."
        )
    for number, (before, stage) in enumerate(pairwise(stages), start=2):
        notes.append(
            f"Stage {number} ({stage.name}) goes on after step {before.end:,} of the same run: run start_checkpoint.py "
            f"of stage-{number}, then launch with the file beside it. Checked with --seen-steps {before.end}."
        )
    return tuple(notes)


@dataclass(frozen=True)
class DataStage:
    """A stretch of steps with one mixture.

    Attributes:
        name: unique in the run.
        mixture: shares of the sources.
        start: its first step, counted from 1 at the hand-over.
        end: its last step.
    """

    name: str
    mixture: Mixture
    start: int
    end: int


def _data_stages(groups: list[tuple[Stage, ...]]) -> list[DataStage]:
    """A data stage for each group of stages of one mixture."""
    stages: list[DataStage] = []
    for own in groups:
        start = stages[-1].end + 1 if stages else 1
        taken = any(stage.name == own[0].name for stage in stages)
        name = f"{own[0].name} {len(stages) + 1}" if taken else own[0].name
        stages.append(
            DataStage(name, own[0].mixture, start, start - 1 + sum(stage.num_steps for stage in own))
        )
    return stages


def _own_checkpoint(folder: str) -> dict[str, Any]:
    return {"resume_checkpoint_path": folder, "load_lr_scheduler": True, "load_optimizer": True}


def _config(job: Job, path: WarmupHoldDecay, stages: list[DataStage]) -> dict[str, Any]:
    """The config of the run up to the end of ``stages``."""
    recipe, options, optimizer = job.recipe, job.options, job.recipe.optimizer
    scheduler = {
        "learning_rate": path.peak_lr,
        "lr_warmup_steps": path.warmup_steps,
        # 'linear' without a warm-up would give the first step an LR of zero
        "lr_warmup_style": "linear" if path.warmup_steps else "constant",
        "lr_decay_style": path.decay_shape if path.decay_steps else "linear",
        "lr_decay_starting_step": path.warmup_steps + path.hold_steps,
        "lr_decay_steps": max(1, path.decay_steps),
        "min_decay_lr": path.end_lr,
    }
    checkpoint, theta = start_checkpoint(recipe), job.rope_theta()
    return {
        "optimizer": {
            "learning_rate_scheduler": scheduler,
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": optimizer.beta1,
                "adam_beta2": optimizer.beta2,
                "adam_eps": optimizer.eps,
                "torch_adam_is_fused": True,
            },
            "weight_decay": optimizer.weight_decay,
            "clip_grad": optimizer.clip_norm,
        },
        "data_stages": [
            {
                "name": stage.name,
                "start_training_step": stage.start,
                "data": {
                    "seed": recipe.seed,
                    "num_loading_workers": 1,
                    "dataset": _dataset(job, stage.mixture),
                },
            }
            for stage in stages
        ],
        "checkpoints": {
            "checkpoints_path": options.output,
            "checkpoint_interval": job.save_interval,
            "resume_checkpoint_path": f"{options.output}/start" if takes_optimizer(recipe) else checkpoint,
            "load_lr_scheduler": False,
            "load_optimizer": takes_optimizer(recipe),
        },
        **({} if theta is None else {"model": {"model_config": {"rope_theta": theta}}}),
        "parallelism": {"dp": options.data_parallel_ranks},
        "tokens": {
            # counted from the hand-over: without the checkpoint's scheduler nanotron starts at step 1
            "train_steps": stages[-1].end,
            "sequence_length": job.stage.seq_len,
            "micro_batch_size": options.local_batch_size,
            "batch_accumulation_per_replica": job.accumulation,
        },
    }


def _dataset(job: Job, mixture: Mixture) -> dict[str, Any]:
    used = [name for name in job.paths if mixture.share(name) > 0]
    return {
        "dataset_folder": [job.paths[name] for name in used],
        "dataset_weights": [mixture.share(name) for name in used],
    }
