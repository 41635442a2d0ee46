"""A run gives the same numbers whoever trains beside it, wherever it is interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from decaylaws.errors import DataError, InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import Arithmetic, RunConfig
from decaylaws.runs.optimizer import OptimizerConfig
from decaylaws.runs.table import curves_table, fit_ready, runs_table
from decaylaws.schedules import Schedule, Segment
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.compiled_code import CACHE_VARIABLE
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import Backend, saves
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.weights.checkpoint_files import final_checkpoint, kept_checkpoint, resume_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint
from proxy_runs.weights.hf import from_hf_weights, to_hf_model
from tests.proxy_runs.tiny_runs import (
    BATCH,
    EVALUATION,
    PEAK_LR,
    SEQ_LEN,
    Results,
    stop_after,
    tiny_trunk,
    train_all,
)


@pytest.fixture(scope="module")
def trunk(store: TokenStore) -> RunConfig:
    schedule = Schedule((Segment(BATCH * 10, 0.0, PEAK_LR), Segment(BATCH * 30, PEAK_LR, PEAK_LR)))
    return tiny_trunk(store).with_changes(schedule=schedule, mixture=Mixture({"general": 0.75, "code": 0.25}))


def fork(
    trunk: RunConfig, tokens: int, *, lr: float = PEAK_LR, maths: float = 0.5, seed: int = 0
) -> RunConfig:
    return trunk.with_changes(
        kind="decay",
        schedule=Schedule((Segment(tokens, lr, 0.0),)),
        mixture=Mixture({"general": 1.0 - maths, "maths": maths}),
        seed=seed,
        start_run_id=trunk.run_id,
        start_tokens=trunk.tokens,
    )


def forks(trunk: RunConfig, **arithmetic: Any) -> list[RunConfig]:
    """Different lengths, mixtures, LRs and seeds; one ends in a partial step."""
    configs = [
        fork(trunk, BATCH * 12, seed=1),
        fork(trunk, BATCH * 5 + SEQ_LEN, maths=0.2, seed=2),
        fork(trunk, BATCH * 20, lr=PEAK_LR / 2, seed=3),
        fork(trunk, BATCH * 7, maths=1.0, seed=4),
        fork(trunk, BATCH * 3, seed=5),
    ]
    return [config.with_changes(arithmetic=Arithmetic(**arithmetic)) for config in configs]


# What comes out --------------------------------------------------------------------------------------------


def test_rows_and_curves_are_tables_that_a_fit_takes(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path
) -> None:
    results = train_all(store, forks(trunk), trunk_dir, slots=2)
    table = runs_table({**result.row, "role": "grid"} for result in results.values())
    kept, excluded = fit_ready(table, store.names, data_fingerprint=store.fingerprint)
    assert (len(kept), len(excluded)) == (5, 0)
    assert set(table["decay_tokens"]) == {config.tokens for config in forks(trunk)}
    curves = curves_table(entry for result in results.values() for entry in result.curve)
    for config in forks(trunk):
        mine = curves[(curves["run_id"] == config.run_id) & (curves["domain"] == "maths")]
        half = -(-config.num_steps // 2)
        assert mine["step"].tolist() == [0, half, config.num_steps]
        assert mine["tokens"].tolist() == [0, half * BATCH, config.tokens]
        assert mine["lr"].tolist() == pytest.approx(config.schedule.lr(mine["tokens"]).tolist())
        row = results[config.run_id].row
        assert mine["loss"].tolist()[0] == row["start_loss:maths"]
        assert mine["loss"].tolist()[-1] == row["loss:maths"] < row["start_loss:maths"]
        assert mine["bits_per_byte"].tolist()[-1] == row["bpb:maths"]
        assert (mine["bits_per_byte"] / mine["loss"]).tolist() == pytest.approx(
            [row["bpb:maths"] / row["loss:maths"]] * 3
        )
        assert row["bpb:maths"] == pytest.approx(row["loss:maths"] / np.log(2.0), rel=0.1)


def test_the_realised_mixture_is_recorded_as_epochs(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path
) -> None:
    config = fork(trunk, BATCH * 8, maths=0.25).with_changes(pool_tokens={"maths": 65})
    row = train_all(store, [config], trunk_dir)[config.run_id].row
    assert row["epochs:maths"] == 32 * 0.25 / 4  # 32 sequences, a pool of four
    assert row["epochs:general"] == 24 / ((store.available_tokens["general"] - 1) // SEQ_LEN)
    assert row["epochs:code"] == 0.0
    assert (row["mix:maths"], row["mix:code"]) == (0.25, 0.0)


# Against a plain loop --------------------------------------------------------------------------------------


def plain_losses(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig, store: TokenStore
) -> None:
    """Train a transformers model on the batches of a run with torch's own AdamW."""
    sequences = config.batch_tokens // SEQ_LEN
    sampler = MixtureSampler(
        config.mixture, available_sequences(store, SEQ_LEN), seed=config.seed, batch_sequences=sequences
    )
    reader = BatchReader(store, sampler, SEQ_LEN)
    for step, lr in enumerate(config.schedule.step_lrs(config.batch_tokens)):
        windows = torch.from_numpy(reader.batch(step * sequences, sequences))
        logits = model(windows[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        optimizer.step()
        optimizer.zero_grad()


def plain_adamw(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


@pytest.mark.slow
def test_trunk_and_fork_follow_a_plain_transformers_loop_over_200_steps(
    store: TokenStore, trunk: RunConfig, tmp_path: Path
) -> None:
    """A fork through a checkpoint equals the same history in one process, without one."""
    stable = Schedule((Segment(BATCH * 20, 0.0, PEAK_LR), Segment(BATCH * 80, PEAK_LR, PEAK_LR)))
    trunk = trunk.with_changes(schedule=stable)
    candidates = [fork(trunk, BATCH * 100, seed=1), fork(trunk, BATCH * 60, maths=0.1, seed=2)]
    results = train_all(store, [trunk], tmp_path) | train_all(store, candidates, tmp_path, slots=2)
    evaluation = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=EVALUATION.tokens_per_domain)
    for config in candidates:
        model = to_hf_model(init_params(trunk.shape, trunk.seed), trunk.shape)
        optimizer = plain_adamw(model, trunk.optimizer)
        for part in (trunk, config):
            plain_losses(model, optimizer, part, store)
            params = stack_params([from_hf_weights(model.state_dict(), trunk.shape)])
            (expected,) = evaluation.losses(StackedLlama(trunk.shape), params)
            for domain, loss in expected.items():
                assert results[part.run_id].row[f"loss:{domain}"] == pytest.approx(loss, abs=1e-4)


# Independence of members -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_slots_change_nothing(store: TokenStore, trunk: RunConfig, trunk_dir: Path, slots: int) -> None:
    """Slots are refilled and given up on the way; every number stays the same to the last bit."""
    alone = train_all(store, forks(trunk), trunk_dir, slots=1)
    assert train_all(store, forks(trunk), trunk_dir, slots=slots) == alone
    assert train_all(store, forks(trunk)[::-1], trunk_dir, slots=slots) == alone


def test_free_slots_are_filled_with_runs_that_are_asked_for(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path
) -> None:
    first, second, *others = forks(trunk)  # of 12 and 6 steps; of 20, 7 and 3
    asked: list[int] = []

    def more(like: RunConfig, count: int) -> list[RunConfig]:
        assert like == first
        asked.append(count)
        return [others.pop() for _ in range(min(count, len(others)))]

    found = train_all(store, [first, second], trunk_dir, slots=2, more=more)
    assert found == train_all(store, forks(trunk), trunk_dir)
    assert asked == [1, 1, 1, 1], (
        "at the ends of the second, the fifth, the first and the fourth, not after the last"
    )


def test_a_diverged_run_is_closed_with_a_reason_and_its_neighbours_go_on_bit_for_bit(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path
) -> None:
    healthy = forks(trunk)
    broken = fork(trunk, BATCH * 9).with_changes(optimizer=OptimizerConfig(weight_decay=3e37))
    results = train_all(store, [healthy[0], broken, *healthy[1:]], trunk_dir, slots=3)
    result = results.pop(broken.run_id)
    assert results == train_all(store, healthy, trunk_dir, slots=3)
    assert (result.status, result.row["reached_target"]) == ("diverged", False)
    assert result.reason.startswith("diverged at step 3: loss ")
    assert "loss:maths" not in result.row
    assert result.row["train_flops"] == 2 * BATCH * trunk.shape.train_flops_per_token
    table = runs_table({**r.row, "role": "grid"} for r in [result, *results.values()])
    assert len(fit_ready(table, store.names)[0]) == len(healthy)


def test_a_pruned_run_leaves_its_neighbours_alone(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path
) -> None:
    victim = forks(trunk)[2].run_id
    asked: list[int] = []

    def should_prune(config: RunConfig, tokens: int, row: Mapping[str, float]) -> bool:
        asked.append(tokens)
        assert set(row) == {prefix + name for prefix in ("loss:", "bpb:") for name in store.names}
        return config.run_id == victim

    results = train_all(store, forks(trunk), trunk_dir, slots=3, should_prune=should_prune)
    pruned = results.pop(victim)
    undisturbed = train_all(store, forks(trunk), trunk_dir, slots=3)
    expected_curve = undisturbed.pop(victim).curve
    assert results == undisturbed
    assert (pruned.status, pruned.reason) == ("pruned", "pruned at step 10")
    assert pruned.curve == [entry for entry in expected_curve if entry["step"] <= 10]
    assert sorted(asked) == sorted(BATCH * -(-config.num_steps // 2) for config in forks(trunk))


def check_close(found: Results, expected: Results, store: TokenStore) -> None:
    assert found.keys() == expected.keys()
    for run_id, result in expected.items():
        for domain in store.names:
            key = f"loss:{domain}"
            assert found[run_id].row[key] == pytest.approx(result.row[key], abs=1e-4)


def test_a_stack_that_steps_as_a_whole_agrees_and_keeps_its_members_apart(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, here without recording: slots are refilled and left empty, one member diverges."""
    memberwise = train_all(store, forks(trunk), trunk_dir, slots=3)
    monkeypatch.setattr(Backend, "is_stackwise", True)
    stackwise = train_all(store, forks(trunk), trunk_dir, slots=3)
    check_close(stackwise, memberwise, store)
    assert stackwise != memberwise, "the same arithmetic in another order"
    broken = fork(trunk, BATCH * 9).with_changes(optimizer=OptimizerConfig(weight_decay=3e37))
    results = train_all(store, [forks(trunk)[0], broken, *forks(trunk)[1:]], trunk_dir, slots=3)
    assert results.pop(broken.run_id).status == "diverged"
    assert results == stackwise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # the compiler names TensorFloat32, which would change numbers
@pytest.mark.parametrize("arithmetic", [{}, {"compiled": True}], ids=["eager", "compiled"])
def test_a_recorded_step_on_a_gpu_agrees_with_the_cpu(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, arithmetic: dict[str, bool]
) -> None:
    expected = train_all(store, forks(trunk), trunk_dir, slots=3)
    found = train_all(store, forks(trunk, **arithmetic), trunk_dir, slots=3, device="cuda")
    ours = [config.run_id for config in forks(trunk, **arithmetic)]
    renamed = {config.run_id: found[run_id] for config, run_id in zip(forks(trunk), ours)}
    check_close(renamed, expected, store)


def test_bfloat16_follows_float32_closely(store: TokenStore, trunk: RunConfig, trunk_dir: Path) -> None:
    exact = train_all(store, forks(trunk), trunk_dir, slots=3)
    rough = train_all(store, forks(trunk, precision="bfloat16"), trunk_dir, slots=3)
    for config, other in zip(forks(trunk), forks(trunk, precision="bfloat16")):
        for domain in store.names:
            key = f"loss:{domain}"
            assert rough[other.run_id].row[key] == pytest.approx(exact[config.run_id].row[key], abs=5e-3)
            assert rough[other.run_id].row[key] != exact[config.run_id].row[key]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler looks at gradients of inner tensors
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_runs_depend_on_no_neighbour_and_agree_closely(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    configs = forks(trunk, compiled=True)
    exact = train_all(store, forks(trunk), trunk_dir, slots=2)
    compiled = train_all(store, configs, trunk_dir, slots=2)
    for config, eager in zip(configs, forks(trunk)):
        for domain in store.names:
            key = f"loss:{domain}"
            assert compiled[config.run_id].row[key] == pytest.approx(exact[eager.run_id].row[key], abs=1e-4)
    assert (
        train_all(store, configs[:1], trunk_dir, slots=3, should_stop=stop_after(5)) == {}
    )  # the state is saved
    assert train_all(store, configs[:1], trunk_dir) == {configs[0].run_id: compiled[configs[0].run_id]}
    assert len(list(tmp_path.glob("*/complete"))) == 1, "all stacks of the shape share one folder of code"


def test_a_machine_without_a_compiler_says_so(
    store: TokenStore, trunk: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InvalidValueError, match=r"C\+\+ compiler"):
        train_all(store, [trunk.with_changes(arithmetic=Arithmetic(compiled=True))], tmp_path)


def test_runs_of_several_shapes_and_batches_may_be_given_together(
    store: TokenStore, trunk: RunConfig, tmp_path: Path
) -> None:
    deeper = trunk.with_changes(shape=dataclasses.replace(trunk.shape, num_layers=2))
    wider_batch = trunk.with_changes(batch_tokens=2 * BATCH)
    together = train_all(store, [trunk, deeper, wider_batch], tmp_path / "together", slots=3)
    for config in (trunk, deeper, wider_batch):
        assert train_all(store, [config], tmp_path / "alone")[config.run_id] == together[config.run_id]


# Interruption ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_between_stops", [1, 3, 5])
def test_stopping_and_going_on_changes_nothing(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, steps_between_stops: int
) -> None:
    undisturbed = train_all(store, forks(trunk), trunk_dir, slots=2)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    results: Results = {}
    calls = 0
    while len(results) < len(undisturbed):
        calls += 1
        left = [config for config in forks(trunk) if config.run_id not in results]
        slots = 1 + calls % 3
        stop = stop_after(steps_between_stops)
        results |= train_all(store, left, tmp_path, slots=slots, should_stop=stop, start_checkpoints=starts)
    assert results == undisturbed
    assert calls > 3
    assert list(tmp_path.iterdir()) == []


def test_a_crash_costs_at_most_the_time_between_saves(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # save as soon as the last one is written, however long that takes
    monkeypatch.setattr(saves, "SAVE_SHARE", math.inf)
    config = fork(trunk, BATCH * 30)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}

    def die() -> bool:
        while resume.is_file():
            with contextlib.suppress(DataError):  # replaced by a newer one between its tensors and its header
                if load_checkpoint(resume).run_step >= 7:
                    raise KeyboardInterrupt
                return False
        return False

    resume = resume_checkpoint(tmp_path, config.run_id)
    with pytest.raises(KeyboardInterrupt):
        train_all(store, [config], tmp_path, should_stop=die, start_checkpoints=starts, save_seconds=0.0)
    assert train_all(store, [config], tmp_path, start_checkpoints=starts) == train_all(
        store, [config], trunk_dir
    )


def test_a_damaged_resume_state_costs_time_and_nothing_else(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path
) -> None:
    config = fork(trunk, BATCH * 12)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    train_all(store, [config], tmp_path, should_stop=stop_after(5), start_checkpoints=starts)
    resume = resume_checkpoint(tmp_path, config.run_id)
    content = bytearray(resume.read_bytes())
    content[-100] ^= 1
    resume.write_bytes(content)
    notes: list[str] = []
    results = train_all(
        store,
        [config],
        tmp_path,
        start_checkpoints=starts,
        progress=lambda stage, done, total, note="": notes.append(note),
    )
    assert results == train_all(store, [config], trunk_dir)
    assert any("starts over" in note and "damaged" in note for note in notes)


def test_a_state_measured_otherwise_is_not_resumed(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path
) -> None:
    config = fork(trunk, BATCH * 12)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    train_all(store, [config], tmp_path, should_stop=stop_after(8), start_checkpoints=starts)
    other = EvaluationSettings(tokens_per_domain=64, points=3)
    results = train_all(store, [config], tmp_path, start_checkpoints=starts, evaluation=other)
    assert {entry["step"] for entry in results[config.run_id].curve} == {0, 4, 8, 12}


# Checkpoints -----------------------------------------------------------------------------------------------


def test_forks_from_the_middle_of_a_trunk(store: TokenStore, trunk: RunConfig, tmp_path: Path) -> None:
    middle = BATCH * 25
    train_all(store, [trunk], tmp_path, keep_at=lambda _: [middle])
    state = load_checkpoint(kept_checkpoint(tmp_path, trunk.run_id, middle))
    assert (state.step, state.tokens) == (25, middle)
    early = fork(trunk, BATCH * 4).with_changes(start_tokens=middle)
    late = fork(trunk, BATCH * 4)
    results = train_all(store, [early, late], tmp_path, slots=2)
    shorter = trunk.with_changes(schedule=trunk.schedule.truncate(middle))
    train_all(store, [shorter], tmp_path)
    same = early.with_changes(start_run_id=shorter.run_id)
    expected = train_all(store, [same], tmp_path)[same.run_id].row
    for domain in store.names:
        assert results[early.run_id].row[f"loss:{domain}"] == expected[f"loss:{domain}"]
        assert results[early.run_id].row[f"loss:{domain}"] != results[late.run_id].row[f"loss:{domain}"]


def test_a_trunk_that_is_missing_damaged_or_another_is_a_clear_error(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path
) -> None:
    config = fork(trunk, BATCH * 4)
    with pytest.raises(DataError, match="no checkpoint at"):
        train_all(store, [config], tmp_path)
    path = final_checkpoint(tmp_path, trunk.run_id)
    content = bytearray(final_checkpoint(trunk_dir, trunk.run_id).read_bytes())
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"starts from run {trunk.run_id} at 640"):
        train_all(store, [config.with_changes(start_tokens=640)], tmp_path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        train_all(store, [config], tmp_path)


def test_a_plan_that_cannot_run_does_not_cost_the_others_their_work(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path
) -> None:
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    good, short = fork(trunk, BATCH * 12), fork(trunk, BATCH * 3)
    bad = fork(trunk, BATCH * 4).with_changes(pool_tokens={"maths": SEQ_LEN})
    with pytest.raises(InfeasibleError, match="'maths'"):
        train_all(store, [good, short, bad], tmp_path, slots=2, start_checkpoints=starts)
    assert load_checkpoint(resume_checkpoint(tmp_path, good.run_id)).run_step == 3


def test_plans_that_do_not_fit_the_corpus_are_refused(
    store: TokenStore, trunk: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="planned for the corpus other"):
        train_all(store, [trunk.with_changes(data_fingerprint="other")], tmp_path)
    ragged = trunk.with_changes(schedule=Schedule((Segment(BATCH + 1, PEAK_LR, 0.0),)))
    with pytest.raises(InvalidValueError, match="multiple of seq_len=16"):
        train_all(store, [ragged], tmp_path)
    small = trunk.with_changes(shape=dataclasses.replace(trunk.shape, vocab_size=100))
    with pytest.raises(InvalidValueError, match=r"shape\.vocab_size"):
        train_all(store, [small], tmp_path)
    with pytest.raises(InvalidValueError, match="slots"):
        train_all(store, [trunk], tmp_path, slots=0)
    with pytest.raises(InvalidValueError, match="device"):
        train_all(store, [trunk], tmp_path, device="tpu")
    with pytest.raises(InvalidValueError, match="precision"):
        forks(trunk, precision="float8")
