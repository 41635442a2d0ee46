"""Exports for Megatron-Bridge in its own recipes: overrides, blend and schedule, with real classes and code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.exporters import export
from tests.exporters.recipes import PEAK, RECIPES, SEQ_LEN, SEQUENCES
from tests.exporters.test_targets_runs import PLANNED, runs, shares, written
from tests.exporters.trainers import import_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
NAME = "midtrain_megatron_bridge.yaml"


def base_config(configs: Any) -> Any:
    """What a pretraining recipe of Megatron-Bridge sets: it counts iterations and decays by a cosine.

    Its recipes themselves cannot be imported without packages for images and audio.
    """
    tokenizers = import_trainer("megatron.bridge.training.tokenizers.config")
    return configs.ConfigContainer(
        model=configs.GPTModelProvider(
            num_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=16, seq_length=4096
        ),
        train=configs.TrainingConfig(train_iters=300_000, global_batch_size=32, micro_batch_size=2),
        optimizer=configs.OptimizerConfig(optimizer="adam", lr=3e-4, min_lr=3e-5, weight_decay=0.1),
        scheduler=configs.SchedulerConfig(
            start_weight_decay=0.033,
            end_weight_decay=0.033,
            weight_decay_incr_style="constant",
            lr_decay_style="cosine",
            lr_warmup_iters=500,
            lr_decay_iters=300_000,
        ),
        dataset=configs.GPTDatasetConfig(
            seq_length=4096,
            random_seed=1234,
            reset_attention_mask=False,
            reset_position_ids=False,
            eod_mask_loss=False,
            split="9999,8,2",
        ),
        logger=configs.LoggerConfig(),
        tokenizer=tokenizers.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=16),
        checkpoint=configs.CheckpointConfig(save="checkpoints", load="checkpoints", save_interval=500),
    )


def bridge_config(folder: Path, name: str = NAME) -> Any:
    """A recipe of Megatron-Bridge with the exported overrides and blend, put together and checked by its own code."""
    configs = import_trainer("megatron.bridge.training.config")
    overrides = import_trainer("megatron.bridge.training.utils.omegaconf_utils")
    loaders = import_trainer("megatron.bridge.data.loaders")
    config = base_config(configs)
    _, per_split = loaders.get_blend_and_blend_per_split(per_split_data_args_path=str(folder / "blend.json"))
    # as its recipes do with a blend of its own for each split
    config.dataset.blend_per_split, config.dataset.split = per_split, None
    overrides.process_config_with_overrides(config, config_filepath=str(folder / name))
    config.train.finalize()
    config.scheduler.finalize()
    config.optimizer.finalize()
    config._validate_training_scheduler_compatibility()
    config._calculate_scheduler_steps()
    return config


def lrs_of(config: Any, seen_samples: int, steps: int) -> np.ndarray:
    """LR of every step, from the scheduler that Megatron-Bridge makes; it takes over that of a checkpoint."""
    import torch

    optim = import_trainer("megatron.bridge.training.optim")
    parameter = torch.nn.Parameter(torch.zeros(1))

    def scheduler_of(lr: float) -> Any:
        optimizer = torch.optim.SGD([parameter], lr=0.0)
        optimizer.param_groups[0]["wd_mult"] = 1.0
        settings = config.optimizer.__class__(lr=lr, min_lr=config.optimizer.min_lr)
        return optimizer, optim._get_scheduler(settings, config.scheduler, optimizer)

    optimizer, scheduler = scheduler_of(config.optimizer.lr)
    if seen_samples:
        _, before = scheduler_of(3 * config.optimizer.lr)
        before.step(increment=seen_samples)
        scheduler.load_state_dict(before.state_dict())
        scheduler.step(increment=0)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(increment=config.train.global_batch_size)
    return np.array(found)


@written("megatron-bridge")
def test_every_run_of_a_recipe_in_megatron_bridge(name: str, tmp_path: Path) -> None:
    import_trainer("megatron.bridge.training.config")
    seen_steps = seen_samples = 0
    for number, (part, path, promised) in enumerate(runs(name, "megatron-bridge", tmp_path)):
        first = part.stages[0]
        if number == 0 or name == PLANNED:  # else a run goes on from the one before it
            takes_state = part.handover.optimizer_state == "load" and part.handover.checkpoint is not None
            seen_steps = part.handover.tokens // first.batch_tokens if takes_state else 0
            seen_samples = part.handover.tokens // first.seq_len if takes_state else 0
        config = bridge_config(path.parent)
        batch = config.train.global_batch_size
        assert (batch * first.seq_len, config.dataset.seq_length) == (first.batch_tokens, first.seq_len)
        assert config.model.seq_length == first.seq_len
        # its loop ends at train_iters, or where exit_interval says, whichever comes first
        end = min(config.train.train_iters, config.train.exit_interval or config.train.train_iters)
        lrs = lrs_of(config, seen_samples, end - seen_steps)
        assert len(lrs) == part.num_steps
        assert np.abs(lrs - promised).max() < 1e-12 * PEAK
        (paths, weights), valid, test = config.dataset.blend_per_split
        assert dict(zip(paths, weights)) == pytest.approx(shares(part))
        assert (valid, test, config.dataset.split) == (None, None, None)
        seen_steps, seen_samples = end, seen_samples + len(lrs) * batch


def test_settings_reach_megatron_bridge(tmp_path: Path) -> None:
    import_trainer("megatron.bridge.training.config")
    recipe = RECIPES["linear above zero"]
    export(recipe, "megatron-bridge").write(tmp_path)
    config = bridge_config(tmp_path)
    optimizer = recipe.optimizer
    assert (config.optimizer.adam_beta1, config.optimizer.adam_beta2) == (optimizer.beta1, optimizer.beta2)
    assert (config.optimizer.adam_eps, config.optimizer.clip_grad) == (optimizer.eps, optimizer.clip_norm)
    assert config.scheduler.start_weight_decay == config.scheduler.end_weight_decay == optimizer.weight_decay
    assert (config.optimizer.lr, config.optimizer.min_lr) == (PEAK, pytest.approx(0.12 * PEAK))
    assert (config.train.global_batch_size, config.dataset.seq_length) == (SEQUENCES, SEQ_LEN)
    assert config.rng.seed == config.dataset.random_seed == recipe.seed + 1
    assert (config.checkpoint.load, config.checkpoint.save) == ("/ckpt/start", "outputs")
    assert (config.checkpoint.load_optim, config.checkpoint.finetune) == (True, False)
    restarted = bridge_config(tmp_path, "restart_megatron_bridge.yaml")
    assert (restarted.checkpoint.load, restarted.train.train_samples) == (
        "outputs",
        config.train.train_samples,
    )
