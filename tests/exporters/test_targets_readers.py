"""What ``export --check`` takes for granted of a trainer, held against the trainer's own code ('make test-targets')."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.exporters.readers import huggingface, levanter, megatron, olmo_core, torchtitan
from decaylaws.exporters.readers.settings import Fields
from decaylaws.exporters.readers.value_files import read_values
from tests.exporters.trainers import import_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend


def _defaults(config: Any) -> dict[str, Any]:
    return {
        field.name: field.default if field.default is not dataclasses.MISSING else field.default_factory
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }


def test_defaults_of_levanter() -> None:
    optimizer = _defaults(import_trainer("levanter.optim").AdamConfig)
    assert {key: optimizer[key] for key, _ in levanter._DEFAULTS.values()} == dict(
        levanter._DEFAULTS.values()
    )
    assert (optimizer["learning_rate"], optimizer["min_lr_ratio"], optimizer["lr_schedule"]) == (
        6e-4,
        0.1,
        "cosine",
    )
    assert (optimizer["warmup"], optimizer["rewarmup"], optimizer["decay"]) == (0.01, 0.0, None)
    trainer = _defaults(import_trainer("levanter.trainer").TrainerConfig)
    assert trainer["num_train_steps"] == levanter._NUM_TRAIN_STEPS
    assert trainer["train_batch_size"] == levanter._TRAIN_BATCH_SIZE


def test_defaults_of_transformers() -> None:
    arguments = _defaults(import_trainer("transformers").TrainingArguments)
    assert {key: arguments[key] for key, _ in huggingface._DEFAULTS.values()} == dict(
        huggingface._DEFAULTS.values()
    )
    assert (arguments["learning_rate"], str(arguments["lr_scheduler_type"])) == (5e-5, "linear")
    assert "warmup_ratio" not in arguments or arguments["warmup_ratio"] is None


def test_defaults_of_torchtitan() -> None:
    import_trainer("torchtitan.models.llama3.config_registry")
    optimizer = import_trainer("torchtitan.components.optimizer")
    group = optimizer.default_adamw().param_groups[-1]
    assert group.optimizer_name == "AdamW"
    assert {key: group.optimizer_kwargs[key] for key in torchtitan._ADAMW} == torchtitan._ADAMW
    schedule = _defaults(optimizer.LRSchedulersContainer.Config)
    assert (schedule["warmup_steps"], schedule["decay_ratio"], schedule["min_lr_factor"]) == (200, None, 0.0)
    assert schedule["decay_type"] == "linear"


def test_defaults_of_olmo_core() -> None:
    optim = import_trainer("olmo_core.optim")
    for name in olmo_core._OPTIMIZERS:
        values = _defaults(getattr(optim, name))
        assert {key: values[key] for key in olmo_core._ADAMW} == olmo_core._ADAMW


def test_defaults_of_megatron() -> None:
    import argparse

    arguments = import_trainer("megatron.training.arguments")
    parsed = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args([])
    for flag, default in megatron._DEFAULTS.values():
        assert getattr(parsed, flag.replace("-", "_")) == default


@pytest.mark.parametrize("units", ["steps", "tokens"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("WSD", {"warmup": 10, "decay": 40, "decay_fraction": None}),
        ("WSD", {"warmup": 0, "decay_fraction": 0.3, "decay_min_lr": 0.1}),
        ("LinearWithWarmup", {"warmup": 20, "alpha_f": 0.05}),
        ("LinearWithWarmup", {"warmup_fraction": 0.25}),
        ("CosWithWarmup", {"warmup": 7}),
        ("HalfCosWithWarmup", {"warmup": 30, "alpha_f": 0.2, "warmup_min_lr": 0.01}),
        ("CosWithWarmupAndLinearDecay", {"warmup": 10}),
        (
            "CosWithWarmupAndLinearDecay",
            {"warmup": 0, "decay": 25, "decay_fraction": None, "decay_min_lr": 0.02},
        ),
        ("ConstantWithWarmup", {"warmup": 15}),
        ("ConstantScheduler", {}),
    ],
)
def test_schedulers_of_olmo_core(name: str, settings: dict[str, Any], units: str) -> None:
    module = import_trainer("olmo_core.optim.scheduler")
    steps, per_step = 100, 64 if units == "tokens" else 1
    scaled = {
        key: value * per_step if key in ("warmup", "decay") and value is not None else value
        for key, value in settings.items()
    }
    scheduler = getattr(module, name)(units=getattr(module.SchedulerUnits, units), **scaled)
    theirs = [float(scheduler.get_lr(1.0, step * per_step, steps * per_step)) for step in range(1, steps + 1)]
    ours = olmo_core.native_lrs(Fields(scaled, Path("o.py")), name, 1.0, steps, per_step)
    assert np.abs(ours - np.array(theirs)).max() < 1e-12


def test_interpolation_of_omegaconf(tmp_path: Path) -> None:
    omegaconf = import_trainer("omegaconf")
    text = (
        "variables: {length: 64, folder: /ckpt, nested: {deep: '${variables.length}'}}\n"
        "max_seq_len: ${variables.nested.deep}\nload_path: ${variables.folder}/step-${max_seq_len}\n"
        "copy: ${variables.nested}\nlist: [1, '${max_seq_len}']\n"
    )
    path = tmp_path / "f.yaml"
    path.write_text(text)
    theirs = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.load(path), resolve=True)
    assert read_values(path) == theirs
