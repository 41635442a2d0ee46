"""Exports in their real trainers: 'make test-targets' installs them. Megatron-LM comes as a checkout on the path."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from decaylaws.exporters import ExportOptions, export
from decaylaws.recipe.checkpoints import read_facts
from tests.exporters.conftest import CLEAN_SOURCES
from tests.exporters.trainers import import_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
BATCH_TOKENS, SEQUENCES = 256 * 64, 256
PEAK = 6.1351e-5
STEPS = [10, 1000, 24_000]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"exported_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stepped(optimizer: Any, scheduler: Any, steps: int, *arguments: Any) -> np.ndarray:
    """LR of every optimiser step, as a training loop would use it."""
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*arguments)
    return np.array(lrs)


def _optimizer(lr: float) -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt", "exponential", "wsd", "three-stage"])
@pytest.mark.parametrize("rule", ["auto", "native", "exact"])
def test_torchtitan(make_recipe, form: str, steps: int, rule: str, tmp_path: Path) -> None:
    import_trainer("torchtitan.models.llama3.config_registry")
    options = ExportOptions(
        lr_rule=rule, tolerance=0.35, on_inexpressible="approximate", data_parallel_ranks=8
    )
    result = export(make_recipe(form, steps), "torchtitan", options)
    path, _notes = result.write(tmp_path)
    module = _module(path)
    config = module.midtrain()
    assert (config.training.steps, config.training.global_batch_size) == (steps, SEQUENCES)
    lr = config.optimizer.param_groups[0].optimizer_kwargs["lr"]
    optimizer = _optimizer(lr)
    schedulers = config.lr_scheduler.build(optimizers=[optimizer], training_steps=steps)
    assert np.abs(_stepped(optimizer, schedulers, steps) - result.step_lrs).max() < 1e-12 * lr
    assert type(config.dataloader)._owner is module.RankOffsetDataLoader


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt", "exponential", "wsd", "three-stage"])
def test_olmo_core(make_recipe, form: str, steps: int, tmp_path: Path) -> None:
    import_trainer("olmo_core.data.source_mixture")
    result = export(make_recipe(form, steps), "olmo-core")
    result.write(tmp_path)
    module = _module(tmp_path / "midtrain_olmo_core.py")
    scheduler = module.scheduler()
    theirs = [scheduler.get_lr(1.0, step * BATCH_TOKENS, 1) for step in range(1, steps + 1)]
    assert np.abs(np.array(theirs) - result.step_lrs).max() < 1e-12 * PEAK
    sources = module.SourceMixtureList.from_yaml(str(tmp_path / "source_mixture.yaml")).sources
    assert {source.source_name: source.target_ratio for source in sources} == {"web": 0.7, "math": 0.3}
    assert module.optimizer().betas == (0.9, 0.95)
    assert module.trainer_settings()["load_optim_state"] is True


def _megatron_flags(text: str) -> dict[str, list[str]]:
    lines = [shlex.split(line) for line in text.splitlines()]
    return {words[0].removeprefix("--"): words[1:] for words in lines}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt", "wsd"])
def test_megatrons_scheduler(make_recipe, form: str, steps: int) -> None:
    module = import_trainer("megatron.core.optimizer_param_scheduler")
    handover = {"lr": 0.0 if form == "wsd" else PEAK, "checkpoint": "/c", "optimizer_state": "fresh"}
    recipe = make_recipe(form, steps, sources=CLEAN_SOURCES, handover=handover)
    result = export(recipe, "megatron", ExportOptions(tolerance=0.35))
    flags = _megatron_flags(result.files["midtrain_megatron.args"])
    optimizer = _optimizer(0.0)
    scheduler = module.OptimizerParamScheduler(
        optimizer,
        init_lr=float(flags["lr-warmup-init"][0]),
        max_lr=float(flags["lr"][0]),
        min_lr=float(flags["min-lr"][0]),
        lr_warmup_steps=int(flags["lr-warmup-samples"][0]),
        lr_decay_steps=int(flags["lr-decay-samples"][0]),
        lr_decay_style=flags["lr-decay-style"][0],
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=1,
        wd_incr_style="constant",
        wsd_decay_steps=int(flags["lr-wsd-decay-samples"][0]),
        lr_wsd_decay_style=flags["lr-wsd-decay-style"][0],
    )
    assert np.abs(_stepped(optimizer, scheduler, steps, SEQUENCES) - result.step_lrs).max() < 1e-12 * PEAK


def test_megatrons_parser_takes_the_flags(make_recipe) -> None:
    """Needs a checkout of Megatron-LM on the path: its parser is not in the wheel of megatron-core."""
    arguments = import_trainer("megatron.training.arguments")
    recipe = make_recipe("1-sqrt", 200, sources=CLEAN_SOURCES)
    text = export(recipe, "megatron", ExportOptions(tolerance=0.1)).files["midtrain_megatron.args"]
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    parsed, unknown = parser.parse_known_args(shlex.split(text))
    assert unknown == []
    assert (parsed.lr, parsed.min_lr, parsed.lr_decay_style) == (PEAK, 0.0, "WSD")
    assert (parsed.lr_wsd_decay_style, parsed.lr_wsd_decay_samples) == ("minus_sqrt", 200 * SEQUENCES)
    assert (parsed.train_samples, parsed.global_batch_size) == (200 * SEQUENCES, SEQUENCES)
    assert parsed.data_path == ["0.3", "/data/math", "0.7", "/data/web"]
    assert parsed.override_opt_param_scheduler is True


def _tiny_llama(folder: Path) -> None:
    tokenizers, transformers = import_trainer("tokenizers"), import_trainer("transformers")
    words = {word: number for number, word in enumerate(["</s>", "one", "two", "three"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("rule", ["native", "exact"])
def test_the_trainer_runs_the_script(make_recipe, rule: str, tmp_path: Path, monkeypatch) -> None:
    """The exported script trains a tiny Llama; its LRs are those stated, and the doctor reads its checkpoint."""
    import_trainer("accelerate")
    transformers = import_trainer("transformers")
    monkeypatch.chdir(tmp_path)
    _tiny_llama(tmp_path / "model")
    sources = {}
    for name in ("web", "math"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"text": "one two three " * 40}) for _ in range(400)]
        (tmp_path / name / "part.jsonl").write_text("\n".join(lines))
        sources[name] = {"path": str(tmp_path / name)}
    handover = {"lr": PEAK, "checkpoint": str(tmp_path / "model"), "optimizer_state": "fresh"}
    stage = make_recipe("linear", 10).to_dict()["stages"][0]
    stage |= {"batch_tokens": 4 * 64, "mixture": {"web": 0.7, "math": 0.3}}
    stage["lr"] = [{"tokens": 10 * 4 * 64, "start_lr": PEAK, "end_lr": 0.0, "shape": "linear"}]
    recipe = make_recipe(sources=sources, handover=handover, stages=[stage])
    result = export(recipe, "huggingface", ExportOptions(lr_rule=rule, tolerance=0.1, local_batch_size=2))
    result.write(tmp_path / "export")
    arguments = tmp_path / "export" / "training_arguments.json"
    arguments.write_text(json.dumps(json.loads(arguments.read_text()) | {"save_steps": 10, "use_cpu": True}))
    module = _module(tmp_path / "export" / "train.py")
    used: list[float] = []

    class Record(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
            used.append(kwargs["optimizer"].param_groups[0]["lr"])

    class Recorded(module.RecipeTrainer):  # type: ignore[name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[Record()], **kwargs)

    monkeypatch.setattr(module, "RecipeTrainer", Recorded)
    module.main()
    assert np.abs(np.array(used) - result.step_lrs).max() < 1e-12 * PEAK
    facts = read_facts(tmp_path / "outputs" / "checkpoint-10")
    assert (facts.step, facts.has_optimizer, facts.vocab_size) == (10, True, 4)
