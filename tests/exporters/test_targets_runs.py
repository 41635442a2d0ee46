"""Every run of every recipe in its real trainer: configuration, LR, mixture, steps, and a restart half-way.

The runs of a study for an external trainer ('export-runs') are tried in the same way, under the name ``PLANNED``.

Needs torchtitan, ai2-olmo-core, megatron-core, marin-levanter, llm-foundry with mosaicml, and transformers, which
'make test-targets' installs; nanotron's main branch, which is in no registry, from a checkout on PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from decaylaws import study as verbs
from decaylaws.exporters import ExportOptions, export
from decaylaws.exporters.torchtitan import DEFAULT_MODEL
from decaylaws.recipe import Recipe
from tests.exporters.conftest import MAIN_FILES
from tests.exporters.recipes import PEAK, RECIPES
from tests.exporters.test_runs import REFUSED, parts
from tests.exporters.test_targets import _module
from tests.exporters.trainers import import_trainer
from tests.study.external import DECLARED_SETTINGS, declared_study

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
BOUND = 1e-9 * PEAK
PLANNED = "planned runs of a study"


def written(target: str) -> Any:
    """Parametrises a test by the recipes that ``target`` takes, and by the runs of a study."""
    names = [name for name in RECIPES if target not in REFUSED.get(name, {})]
    return pytest.mark.parametrize("name", [*names, PLANNED])


def planned_runs(target: str, folder: Path) -> list[tuple[Recipe, Path, np.ndarray]]:
    """A run of every role, size and end of its decay out of a study, as 'export-runs' writes it."""
    design = {**DECLARED_SETTINGS["design"], "end_lr_factors": [0.0, 0.1]}
    study = declared_study(folder / "study", design=design)
    models = dict.fromkeys(study.settings.shapes, DEFAULT_MODEL)
    exported = verbs.export_runs(study, target, folder / "runs", models=models)
    chosen = {
        (run.role, run.config.shape, run.config.schedule.end_lr / run.config.schedule.start_lr)
        if run.config.kind == "decay"
        else (run.role, run.config.shape): run
        for run in exported.runs
    }
    ends = {key[2] for key in chosen if len(key) == 3}
    assert {round(end, 9) for end in ends} >= {0.0, 0.1}
    return [
        (run.recipe, folder / "runs" / run.name / MAIN_FILES[target], run.export.step_lrs)
        for run in chosen.values()
    ]


def runs(name: str, target: str, folder: Path) -> list[tuple[Recipe, Path, np.ndarray]]:
    """Each run of an export: the recipe that it trains, its main file, and the LR that was promised for its steps."""
    if name == PLANNED:
        return planned_runs(target, folder)
    result = export(RECIPES[name], target)
    result.write(folder)
    found, start = [], 0
    for part, path in parts(RECIPES[name], folder, target):
        found.append((part, path, result.step_lrs[start : start + part.num_steps]))
        start += part.num_steps
    assert start in (0, RECIPES[name].num_steps)
    return found


def shares(recipe: Recipe) -> dict[str, float]:
    return {str(recipe.sources[name].path): share for name, share in recipe.shares().items() if share > 0}


def trained(optimizer: Any, scheduler: Any, steps: int, *arguments: Any) -> list[float]:
    """LR of the next steps of a training loop."""
    lrs = []
    for _ in range(steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step(*arguments)
    return lrs


def adamw(lr: float, **settings: Any) -> Any:
    import torch

    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.AdamW([parameter], lr=lr, **settings)


# torchtitan ------------------------------------------------------------------------------------------------


@written("torchtitan")
def test_torchtitan(name: str, tmp_path: Path) -> None:
    import_trainer("torchtitan.models.llama3.config_registry")
    for part, path, promised in runs(name, "torchtitan", tmp_path):
        module = _module(path)
        config = module.midtrain()
        training, steps = config.training, part.num_steps
        batch = training.global_batch_size * training.seq_len
        assert (training.steps, batch, training.seq_len) == (
            steps,
            part.stages[0].batch_tokens,
            part.stages[0].seq_len,
        )
        assert dict(module.SOURCES.values()) == pytest.approx(shares(part))
        weights = {source.dataset: source.weight for source in config.dataloader.sources}
        assert weights == {source: share for source, (_, share) in module.SOURCES.items()}
        lr = config.optimizer.param_groups[0].optimizer_kwargs["lr"]
        lrs: list[float] = []
        state = None
        for length in (steps // 2, steps - steps // 2):  # as before and after a restart
            optimizer = adamw(lr)
            scheduler = config.lr_scheduler.build(optimizers=[optimizer], training_steps=steps)
            if state is not None:
                optimizer.load_state_dict(state[0])
                scheduler.load_state_dict(state[1])
            lrs += trained(optimizer, scheduler, length)
            state = optimizer.state_dict(), scheduler.state_dict()
        assert np.abs(np.array(lrs) - promised).max() < BOUND
        if part.stages[0].rope is not None:
            assert {rope.theta for rope in module._ropes(config.model_spec.model)} == {
                part.stages[0].rope.theta
            }


class _Model:
    """Weights, a norm and a bias: what the exported groups tell apart."""

    def __new__(cls) -> Any:
        import torch

        model = torch.nn.Module()
        model.linear = torch.nn.Linear(3, 2)
        model.norm = torch.nn.LayerNorm(2)
        return model


class _Counted:
    """Data loader or train state that a checkpoint holds."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def _titan(config: Any, folder: Path, steps: int) -> Any:
    """Optimiser, scheduler and checkpoints as torchtitan's trainer puts them together."""
    model = _Model()
    config.optimizer.implementation = "for-loop"
    optimizers = config.optimizer.build(model_parts=[model])
    schedulers = config.lr_scheduler.build(optimizers=optimizers, training_steps=steps)
    state, loader = _Counted(), _Counted()
    manager = config.checkpoint.build(
        dataloader=loader,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={"train_state": state},
        sd_adapter=None,
        base_folder=str(folder),
    )

    def train(number: int) -> list[float]:
        lrs = []
        for _ in range(number):
            for parameter in model.parameters():
                parameter.grad = parameter.detach().clone() + 1.0
            lrs.append(optimizers.optimizers[0].param_groups[0]["lr"])
            optimizers.step()
            schedulers.step()
            state.count += 1
            loader.count += 1
        return lrs

    return SimpleNamespace(
        model=model, optimizers=optimizers, manager=manager, state=state, loader=loader, train=train
    )


@pytest.mark.parametrize("name", ["linear above zero", "two decays in one stage"])
def test_torchtitan_starts_and_restarts(name: str, tmp_path: Path) -> None:
    """Its CheckpointManager takes the moments and not the settings of the hand-over, then everything of its own."""
    import torch

    import_trainer("torchtitan.models.llama3.config_registry")
    values = RECIPES[name].to_dict()
    values["handover"]["checkpoint"] = str(tmp_path / "old/checkpoint/step-3")
    recipe = Recipe.from_dict(values)
    result = export(recipe, "torchtitan")
    result.write(tmp_path)
    module = _module(tmp_path / "midtrain_torchtitan.py")
    steps, half = recipe.num_steps, recipe.num_steps // 2

    def config() -> Any:
        made = module.midtrain()
        made.checkpoint.keep_latest_k = 0
        return made

    # a pre-training with an LR, betas and weight decay of its own
    before = config()
    for group in before.optimizer.param_groups:
        group.optimizer_kwargs |= {"lr": 7.0, "betas": (0.5, 0.6), "weight_decay": 0.77}
    before.checkpoint.initial_load_path = None
    before.checkpoint.interval = 1
    old = _titan(before, tmp_path / "old", steps)
    old.train(3)
    assert old.manager.save(3)

    new = _titan(config(), tmp_path / "new", steps)
    assert new.manager.load()
    moments = [state["exp_avg"] for state in old.optimizers.optimizers[0].state.values()]
    taken = [state["exp_avg"] for state in new.optimizers.optimizers[0].state.values()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(taken, moments, strict=True))
    assert torch.equal(new.model.linear.weight, old.model.linear.weight)
    assert (new.state.count, new.loader.count) == (0, 0)
    groups = new.optimizers.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    assert {(tuple(group["betas"]), group["eps"]) for group in groups} == {((0.9, 0.95), 1e-8)}
    lrs = new.train(half)
    new.manager.interval = half
    assert new.manager.save(half)

    again = _titan(config(), tmp_path / "new", steps)
    assert again.manager.load()
    assert (again.state.count, again.loader.count) == (half, half)
    lrs += again.train(steps - half)
    assert np.abs(np.array(lrs) - result.step_lrs).max() < BOUND


# OLMo-core -------------------------------------------------------------------------------------------------


@written("olmo-core")
def test_olmo_core(name: str, tmp_path: Path) -> None:
    import dataclasses

    import torch

    import_trainer("olmo_core.data.source_mixture")
    trainer = import_trainer("olmo_core.train.config")
    for part, path, promised in runs(name, "olmo-core", tmp_path):
        module = _module(path)
        batch, scheduler = module.BATCH_TOKENS, module.scheduler()
        assert (batch, module.SEQUENCE_LENGTH) == (part.stages[0].batch_tokens, part.stages[0].seq_len)
        # the trainer counts the step before it asks; the schedule has no state but the count
        lrs = [scheduler.get_lr(1.0, step * batch, 1) for step in range(1, part.num_steps + 1)]
        assert np.abs(np.array(lrs) - promised).max() < BOUND
        sources = module.SourceMixtureList.from_yaml(str(path.with_name("source_mixture.yaml"))).sources
        ratios = {source.paths[0].removesuffix("/*.npy"): source.target_ratio for source in sources}
        assert ratios == pytest.approx(shares(part))
        settings = module.trainer_settings()
        assert settings["max_duration"].value == part.num_steps * batch
        assert set(settings) <= {field.name for field in dataclasses.fields(trainer.TrainerConfig)}
        # a checkpoint's optimiser keeps its moments and loses its settings
        model = _Model()
        theirs = torch.optim.AdamW(model.parameters(), lr=7.0, betas=(0.5, 0.6), weight_decay=0.77)
        ours = module.optimizer().build(model, strict=False)
        saved = ours.state_dict()
        for group in saved["param_groups"]:
            group |= {"lr": 7.0, "initial_lr": 9.0, "betas": (0.5, 0.6), "weight_decay": 0.77, "eps": 1.0}
        ours.load_state_dict(saved)
        assert sorted({group["weight_decay"] for group in ours.param_groups}) == [0.0, 0.1]
        assert {(tuple(group["betas"]), group["eps"]) for group in ours.param_groups} == {((0.9, 0.95), 1e-8)}
        del theirs


# Megatron --------------------------------------------------------------------------------------------------


def _flags(path: Path) -> dict[str, list[str]]:
    lines = [shlex.split(line) for line in path.read_text().splitlines()]
    return {words[0].removeprefix("--"): words[1:] for words in lines}


def _megatron_scheduler(optimizer: Any, flags: dict[str, list[str]], scheduler: Any) -> Any:
    wsd = flags["lr-decay-style"][0] == "WSD"
    return scheduler(
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
        wsd_decay_steps=int(flags["lr-wsd-decay-samples"][0]) if wsd else None,
        lr_wsd_decay_style=flags["lr-wsd-decay-style"][0] if wsd else None,
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler="override-opt_param-scheduler" in flags,
    )


@written("megatron")
def test_megatron(name: str, tmp_path: Path) -> None:
    scheduler = import_trainer("megatron.core.optimizer_param_scheduler").OptimizerParamScheduler
    seen = seen_steps = 0
    for number, (part, path, promised) in enumerate(runs(name, "megatron", tmp_path)):
        if number == 0 or name == PLANNED:  # else a run goes on from the one before it
            seen = part.handover.tokens // part.stages[0].seq_len
            seen_steps = part.handover.tokens // part.stages[0].batch_tokens
        flags, restart = _flags(path), _flags(path.with_name("restart_megatron.args"))
        sequences, steps = int(flags["global-batch-size"][0]), part.num_steps
        batch = sequences * int(flags["seq-length"][0])
        assert (batch, int(flags["seq-length"][0])) == (part.stages[0].batch_tokens, part.stages[0].seq_len)
        optimizer = adamw(0.0)
        made = _megatron_scheduler(optimizer, flags, scheduler)
        if "load" in flags and "finetune" not in flags:
            # the state of a pre-training with another schedule
            made.load_state_dict(
                {
                    "max_lr": 7.0, "min_lr": 0.3, "lr_warmup_steps": 5, "lr_decay_steps": 9, "lr_decay_style": "cosine",
                    "num_steps": seen, "start_wd": 0.1, "end_wd": 0.1, "wd_incr_style": "constant",
                    "wd_incr_steps": 1,
                }
            )  # fmt: skip
        else:
            seen = seen_steps = 0
        # its loop counts iterations, up to the samples in batches of this run
        ends = [int(flags["train-samples"][0]) // sequences, *map(int, flags.get("exit-interval", []))]
        assert min(ends) == seen_steps + steps
        assert int(flags["train-samples"][0]) >= seen + steps * sequences
        lrs = trained(optimizer, made, steps // 2, sequences)
        assert restart["load"] == flags["save"]
        assert "finetune" not in restart
        optimizer = adamw(0.0)
        again = _megatron_scheduler(optimizer, restart, scheduler)
        again.load_state_dict(made.state_dict())
        lrs += trained(optimizer, again, steps - steps // 2, sequences)
        assert np.abs(np.array(lrs) - promised).max() < BOUND
        pairs = dict(zip(flags["data-path"][1::2], map(float, flags["data-path"][::2])))
        assert pairs == pytest.approx(shares(part))
        seen += steps * sequences
        seen_steps += steps


# nanotron --------------------------------------------------------------------------------------------------

NANOTRON_REST = """
general: {project: p, run: r, seed: 1}
parallelism: {dp: 1, pp: 1, tp: 1, pp_engine: 1f1b, tp_mode: ALL_REDUCE}
model:
  init_method: {std: 0.02}
  model_config: {bos_token_id: 1, eos_token_id: 2, hidden_size: 8, intermediate_size: 16, num_attention_heads: 2,
    num_hidden_layers: 1, num_key_value_heads: 2, vocab_size: 32, is_llama_config: true, max_position_embeddings: 64}
tokenizer: {tokenizer_name_or_path: none}
optimizer: {zero_stage: 0, accumulate_grad_in_fp32: true}
"""


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _nanotron_config(path: Path) -> Any:
    config = import_trainer("nanotron.config")
    merged = _merged(yaml.safe_load(NANOTRON_REST), yaml.safe_load(path.read_text()))
    for stage in merged["data_stages"]:
        # nanotron reads the vocabulary from the folders of data, which are not here
        stage["data"]["dataset"] |= {"vocab_size": 32, "tokenizer_name": "none"}
    return config.get_config_from_dict(merged, config_class=config.Config)


class _Nanotron:
    """nanotron's optimiser and schedule, put together, saved and loaded as its trainer does it."""

    def __init__(self, config: Any) -> None:
        import torch

        optim = import_trainer("nanotron.optim.named_optimizer")
        builder = import_trainer("nanotron.helpers").lr_scheduler_builder
        made = config.optimizer.optimizer_factory
        self.parameter = torch.nn.Parameter(torch.ones(2))
        self.optimizer = optim.NamedOptimizer(
            [{"named_params": [("w", self.parameter)], "lr": config.optimizer.learning_rate_scheduler.learning_rate}],
            lambda groups: torch.optim.AdamW(
                groups, betas=(made.adam_beta1, made.adam_beta2), eps=made.adam_eps,
                weight_decay=config.optimizer.weight_decay,
            ),
        )  # fmt: skip
        start = config.checkpoints.resume_checkpoint_path
        if start is not None and config.checkpoints.load_optimizer:
            state = torch.load(Path(str(start)) / "optimizer/optimizer_0.pt", weights_only=True)
            self.optimizer.load_state_dict(state, map_location="cpu")
        self.scheduler = builder(
            self.optimizer, config.optimizer.learning_rate_scheduler, config.tokens.train_steps
        )
        if start is not None and config.checkpoints.load_lr_scheduler:
            self.scheduler.load_state_dict(
                torch.load(Path(str(start)) / "lr_scheduler/lr_scheduler_0.pt", weights_only=True)
            )
            self.scheduler._initial_step()

    def train(self, steps: int) -> list[float]:
        import torch

        lrs = []
        for _ in range(steps):
            self.parameter.grad = torch.ones(2)
            lrs.append(self.optimizer.get_base_optimizer().param_groups[0]["lr"])
            self.optimizer.step()
            self.scheduler.step()
        return lrs

    def save(self, folder: Path) -> None:
        import torch

        for part in ("optimizer", "lr_scheduler"):
            (folder / part).mkdir(parents=True)
        torch.save(self.optimizer.state_dict(), folder / "optimizer/optimizer_0.pt")
        torch.save(self.scheduler.state_dict(), folder / "lr_scheduler/lr_scheduler_0.pt")
        (folder / "model_config.json").write_text("{}")


def _start_checkpoint(script: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        _module(script).main()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process, which nanotron's log asks for its rank."""
    distributed = pytest.importorskip("torch").distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in RECIPES if "nanotron" not in REFUSED.get(name, {})])
@pytest.mark.usefixtures("alone")
def test_nanotron(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_trainer("nanotron.helpers")
    monkeypatch.chdir(tmp_path)
    values = RECIPES[name].to_dict()
    if "checkpoint" in values["handover"]:
        values["handover"]["checkpoint"] = "start"
    recipe = Recipe.from_dict(values)
    result = export(recipe, "nanotron", ExportOptions(data_parallel_ranks=4))
    result.write(tmp_path / "export")
    # a pre-training that has decayed, with a peak LR, betas and weight decay of its own
    config = _nanotron_config(next((tmp_path / "export").rglob("midtrain_nanotron.yaml")))
    config.checkpoints.resume_checkpoint_path = None
    schedule = config.optimizer.learning_rate_scheduler
    schedule.learning_rate, schedule.lr_decay_steps, schedule.min_decay_lr = 7.0, 10, 1.0
    schedule.lr_warmup_style, schedule.lr_warmup_steps, schedule.lr_decay_starting_step = "constant", 0, 0
    config.optimizer.weight_decay = 0.77
    old = _Nanotron(config)
    old.train(5)
    old.save(tmp_path / "start")

    folders = sorted((tmp_path / "export").glob("stage-*")) or [tmp_path / "export"]
    lrs: list[float] = []
    mixtures = []
    for folder in folders:
        config = _nanotron_config(folder / "midtrain_nanotron.yaml")
        script = folder / "start_checkpoint.py"
        native = "stage-" not in str(config.checkpoints.checkpoints_path)  # data stages of one run
        done = len(lrs) if native else 0
        steps = config.tokens.train_steps - done
        data = config.data_stages[-1].data.dataset
        mixtures.append(dict(zip(data.dataset_folder, data.dataset_weights)))
        assert config.global_batch_size_in_tokens in {stage.batch_tokens for stage in recipe.stages}
        start = config.checkpoints.resume_checkpoint_path
        output = Path(str(config.checkpoints.checkpoints_path))
        if start is not None and config.checkpoints.load_optimizer:
            _start_checkpoint(script)
        run = _Nanotron(config)
        group = run.optimizer.get_base_optimizer().param_groups[0]
        assert (group["weight_decay"], tuple(group["betas"])) == (0.1, (0.9, 0.95))
        lrs += run.train(steps // 2)
        run.save(output / f"half-{done}")
        _remove(output / "restart")
        _start_checkpoint(script, str(output / f"half-{done}"))
        run = _Nanotron(_nanotron_config(folder / "restart_nanotron.yaml"))
        lrs += run.train(steps - steps // 2)
        run.save(output / str(done + steps))
        _remove(output / "restart")
    assert np.abs(np.array(lrs) - result.step_lrs).max() < BOUND
    wanted = [
        {f"/data/{source}": share for source, share in stage.mixture.weights.items() if share > 0}
        for stage in recipe.stages
    ]
    assert mixtures[0] == wanted[0]
    assert mixtures[-1] == wanted[-1]
    assert all(mixture in wanted for mixture in mixtures)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# LLM Foundry -----------------------------------------------------------------------------------------------


@functools.cache
def _foundry_schedulers() -> dict[str, Any]:
    composer, foundry = import_trainer("composer.optim"), import_trainer("llmfoundry.optim.scheduler")
    return {
        "constant_with_warmup": composer.ConstantWithWarmupScheduler,
        "cosine_with_warmup": composer.CosineAnnealingWithWarmupScheduler,
        "inv_sqrt_with_warmup": foundry.InverseSquareRootWithWarmupScheduler,
    }


@written("llm-foundry")
def test_llm_foundry(name: str, tmp_path: Path) -> None:
    import dataclasses

    core, omegaconf = import_trainer("composer.core"), import_trainer("omegaconf")
    known = {
        field.name
        for field in dataclasses.fields(import_trainer("llmfoundry.utils.config_utils").TrainConfig)
    }
    for part, path, promised in runs(name, "llm-foundry", tmp_path):
        config = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.load(path), resolve=True)
        # max_seq_len is a variable of the file, which train.py puts into variables
        assert set(config) <= known | {"max_seq_len"}
        batch = config["global_train_batch_size"] * config["max_seq_len"]
        assert (batch, config["max_seq_len"]) == (part.stages[0].batch_tokens, part.stages[0].seq_len)
        settings = dict(config["scheduler"])
        scheduler = _foundry_schedulers()[settings.pop("name")](**settings)
        lrs = []
        for step in range(part.num_steps):
            stamp = core.Timestamp(batch=step, token=step * batch)
            state = SimpleNamespace(
                timestamp=stamp, max_duration=core.Time.from_timestring(config["max_duration"])
            )
            lrs.append(config["optimizer"]["lr"] * scheduler(state))
        assert np.abs(np.array(lrs) - promised).max() < BOUND
        streams = config["train_loader"]["dataset"]["streams"].values()
        assert {stream["local"]: stream["proportion"] for stream in streams} == pytest.approx(shares(part))
        # a restart finds the run's own checkpoint, and then passes over what holds for the hand-over
        assert (config["autoresume"], bool(config["run_name"])) == (True, True)


# levanter --------------------------------------------------------------------------------------------------


@written("levanter")
def test_levanter(name: str, tmp_path: Path) -> None:
    draccus = import_trainer("draccus")
    train_lm = import_trainer("levanter.main.train_lm")
    model = {"model": {"type": "llama"}}  # of the config that the export is merged into
    for part, path, promised in runs(name, "levanter", tmp_path):
        config, restart = (
            draccus.decode(train_lm.TrainLmConfig, _merged(model, yaml.safe_load(file.read_text())))
            for file in (path, path.with_name("restart_levanter.yaml"))
        )
        if part.stages[0].rope is not None:
            assert config.model.rope.theta == part.stages[0].rope.theta
        trainer = config.trainer
        batch = trainer.train_batch_size * config.train_seq_len
        assert (batch, config.train_seq_len) == (part.stages[0].batch_tokens, part.stages[0].seq_len)
        schedule = config.optimizer.lr_scheduler(trainer.num_train_steps)
        first = trainer.num_train_steps - part.num_steps
        assert (trainer.initialize_from is not None) == (first > 0)
        lrs = [float(schedule(step)) for step in range(first, trainer.num_train_steps)]
        # levanter counts in single precision
        assert np.abs(np.array(lrs) - promised).max() < 1e-6 * promised.max()
        stages = config.data.train_weights
        ends = [*(start for start, _ in stages[1:]), trainer.num_train_steps]
        steps = [
            min(end, trainer.num_train_steps) - max(start, first) for (start, _), end in zip(stages, ends)
        ]
        mean = {str(source.path): 0.0 for source in part.sources.values()}
        for (_, weights), length in zip(stages, steps):
            for source, share in weights.items():
                mean[str(part.sources[source].path)] += share * length / part.num_steps
        assert {source: share for source, share in mean.items() if share > 0} == pytest.approx(shares(part))
        assert restart.trainer.load_checkpoint is True
        assert restart.optimizer == config.optimizer
        assert restart.trainer.checkpointer == trainer.checkpointer
        assert restart.trainer.num_train_steps == trainer.num_train_steps


@pytest.mark.parametrize("rare", [0.0014, 0.0004, 4e-5])
def test_levanter_deals_out_small_shares_as_the_export_says(make_recipe, rare: float) -> None:
    mixture = import_trainer("levanter.data.mixture")
    dataset = import_trainer("levanter.data.dataset")
    stage = make_recipe("linear", 64).to_dict()["stages"][0] | {"mixture": {"web": 1 - rare, "math": rare}}
    result = export(make_recipe(stages=[stage]), "levanter")
    data = yaml.safe_load(result.files["midtrain_levanter.yaml"])["data"]
    block = data["mixture_block_size"]
    dealt = mixture.MixtureDataset(
        {name: dataset.ListAsyncDataset([name] * block) for name in ("web", "math")},
        data["train_weights"],
        block,
        key=0,
    )
    read = asyncio.run(dealt.get_batch(range(block)))
    assert read.count("math") / block == pytest.approx(result.realised_shares["math"])
    assert read.count("math") > 0


# Hugging Face ----------------------------------------------------------------------------------------------


@written("huggingface")
def test_huggingface(name: str, tmp_path: Path) -> None:
    import_trainer("accelerate")
    transformers = import_trainer("transformers")
    for part, path, promised in runs(name, "huggingface", tmp_path):
        values = json.loads(path.read_text())
        arguments = transformers.TrainingArguments(**values, use_cpu=True)
        module = _module(path.with_name("train.py"))
        steps = part.num_steps
        batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * module.SEQ_LEN
        assert (arguments.max_steps, batch) == (steps, part.stages[0].batch_tokens)
        assert dict(module.SOURCES.values()) == pytest.approx(shares(part))
        lrs: list[float] = []
        state = None
        for length in (steps // 2, steps - steps // 2):
            optimizer = adamw(arguments.learning_rate)
            trainer = SimpleNamespace(lr_scheduler=None, optimizer=optimizer)
            if hasattr(module, "LR_FACTORS"):
                scheduler = module.RecipeTrainer.create_scheduler(trainer, steps, optimizer)
            else:
                scheduler = transformers.get_scheduler(
                    arguments.lr_scheduler_type,
                    optimizer,
                    num_warmup_steps=arguments.get_warmup_steps(steps),
                    num_training_steps=steps,
                    scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
                )
            if state is not None:
                optimizer.load_state_dict(state[0])
                scheduler.load_state_dict(state[1])
            lrs += trained(optimizer, scheduler, length)
            state = optimizer.state_dict(), scheduler.state_dict()
        assert np.abs(np.array(lrs) - promised).max() < BOUND
