"""The experiment on order: what its arms share, its statistics on planted losses, and a small run of it, resumed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from decaylaws.runs.columns import LOSS
from proxy_runs.data.sampler import MixtureSampler, available_sequences
from proxy_runs.data.shards import TokenStore
from proxy_runs.testing import make_tiny_store


@pytest.fixture
def script() -> Any:
    import order_experiment

    return order_experiment


@pytest.fixture
def store(tmp_path: Path, script: Any) -> TokenStore:
    sources = [*script.GENERAL, *script.SCARCE]
    return make_tiny_store(tmp_path / "tiny", sources=sources, train_tokens=500_000, heldout_tokens=10_000)


def read(config: Any, store: TokenStore) -> Counter[tuple[str, int]]:
    """How often a run reads each sequence."""
    sampler = MixtureSampler(
        config.mixture,
        available_sequences(store, config.shape.seq_len, config.pool_tokens),
        seed=config.seed,
        batch_sequences=config.batch_tokens // config.shape.seq_len,
    )
    source, sequence = sampler.assign(0, config.tokens // config.shape.seq_len)
    return Counter((sampler.names[name], int(number)) for name, number in zip(source, sequence))


def test_arms_differ_in_nothing_but_when_the_scarce_source_is_seen(script: Any, store: TokenStore) -> None:
    arms = [arm for arm in script.arms_of(0, store) if arm.scarce == "code"]
    totals = {}
    for arm in arms:
        sequences = read(arm.trunk, store) + read(arm.decay, store)
        scarce = {number: times for (name, number), times in sequences.items() if name == "code"}
        totals[arm.name] = {
            name: sum(times for (source, _), times in sequences.items() if source == name)
            for name in ("narrative", "reference", "code")
        }
        assert sum(scarce.values()) == {"spread_half": 400, "none": 0}.get(arm.name, 800)
        if arm.name in script.SPLITS:
            assert set(scarce.values()) == {4}
    alike = [totals[name] for name in script.SPLITS]
    assert all(each == alike[0] for each in alike)
    in_decay = [sum(1 for name, _ in read(arm.decay, store).elements() if name == "code") for arm in arms]
    assert dict(zip([arm.name for arm in arms], in_decay)) == {
        "stable": 0, "spread": 200, "stable_then_decay": 400, "decay": 800, "spread_half": 100, "none": 0,
    }  # fmt: skip
    trunks = {arm.trunk.run_id for arm in script.arms_of(0, store)}
    assert len(trunks) == 9  # without a scarce source one trunk serves both


def planted(script: Any, effect: float, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(8):
        level = rng.normal(0, 0.1)
        for scarce in script.SCARCE:
            for arm in (*script.SPLITS, *script.SCALE):
                moved = effect if arm == "decay" else 0.0
                losses = {
                    LOSS + name: 3 + level + rng.normal(0, 0.0077) - (moved if name == scarce else 0.0)
                    for name in (*script.GENERAL, *script.SCARCE)
                }
                rows.append({"arm": arm, "scarce": scarce, "seed": number, **losses})
    return pd.DataFrame(rows)


def test_planted_effects_are_found_and_none_is_invented(script: Any) -> None:
    found = script.analyse(planted(script, effect=0.06))
    for scarce in script.SCARCE:
        assert found["block_tests"][f"{scarce}/objective"]["p_value"] < 1e-4
        assert found["block_tests"][f"{scarce}/general"]["p_value"] > 0.01
        (row,) = (
            each for each in found["differences"]
            if (each["scarce"], each["outcome"], each["arm"]) == (scarce, "objective", "decay")
        )  # fmt: skip
        assert row["lower"] < -0.03 < row["upper"]
        assert row["p_value_holm"] < 0.01
    nothing = [script.analyse(planted(script, effect=0.0, seed=seed)) for seed in range(20)]
    alarms = [
        min(each.get("p_value_holm", 1.0) for each in analysed["differences"]) < 0.05 for analysed in nothing
    ]
    assert sum(alarms) <= 4


def test_the_stated_power_is_that_of_the_test(script: Any) -> None:
    assert script.detectable(0.0077 * 2**0.5, 8, 0.8) == pytest.approx(0.018, abs=5e-4)
    rng, effect = np.random.default_rng(0), script.detectable(1.0, 8, 0.8)
    draws = pd.DataFrame(rng.normal(effect, 1.0, (8, 2000)))
    hits = [script.paired(draws[column])["p_value"] < 0.05 / 6 for column in draws]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.03)
    assert script.holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])


def test_the_script_trains_writes_and_goes_on(
    script: Any, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    torch.set_num_threads(1)
    shrunk = {
        "SEQ_LEN": 16, "BATCH_TOKENS": 64, "WARMUP_TOKENS": 64, "STABLE_TOKENS": 768, "DECAY_TOKENS": 256,
        "POOL_SEQUENCES": 2, "EPOCHS": 4,
        "SHAPE": {"d_model": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "d_ff": 16, "vocab_size": 257},
        "EVALUATION": script.EVALUATION.model_copy(update={"tokens_per_domain": 64, "points": 2}),
        "corpus": lambda _: store,
    }  # fmt: skip
    for name, value in shrunk.items():
        monkeypatch.setattr(script, name, value)
    work, out = tmp_path / "work", tmp_path / "out.json"
    work.mkdir()
    command = ["order_experiment", "--work", str(work), "--json", str(out), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    script.run(script.main)
    first = json.loads(out.read_text())
    assert first["num_seeds"] == 2
    assert {each["arm"] for each in first["means"]} == {*script.SPLITS, *script.SCALE}
    lines = (work / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (9 + 11)
    (work / "results.jsonl").write_text("".join(line + "\n" for line in lines[:-3]))
    out.unlink()
    capsys.readouterr()
    script.run(script.main)
    assert "decay: 19 of 22 done" in capsys.readouterr().out
    assert json.loads(out.read_text()) == first
