"""The objective that runs allow: units, what seeds explain, the limits of guards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import StudyError
from decaylaws.runs.noise import signals
from decaylaws.runs.objective import objective_value, objective_values
from decaylaws.settings.study import StudySettings, parse_settings
from decaylaws.study.objective import objective, signal_table
from tests.study.tiny import TINY_SETTINGS

FACTORS = {"web": 0.3, "maths": 0.5, "code": 0.4, "sums": 0.8, "facts": 0.6}
"""Bits per byte of one nat per token."""


def settings_with(unit: str | None = None, *, facts: str = "mathematics", **objective: Any) -> StudySettings:
    settings = copy.deepcopy(TINY_SETTINGS)
    settings["evaluation"]["questions"] = {
        "sums": {"path": "sums.jsonl", "capability": "mathematics"},
        "facts": {"path": "facts.jsonl", "capability": facts},
    }
    settings["objective"] = {"unit": unit, **objective}
    return parse_settings(settings)


def decays_of(noise: dict[str, float], *, mixtures: int = 12, seeds: int = 6) -> pd.DataFrame:
    """One plan with many mixtures and one of them under many seeds; every domain learns from maths."""
    rng = np.random.default_rng(0)
    shares = [*np.linspace(0, 1, mixtures), *[0.5] * seeds]
    rows = []
    for number, share in enumerate(shares):
        row: dict[str, Any] = {
            "run_id": f"r{number}", "seed": number, "start_run_id": "t", "decay_tokens": 64, "start_lr": 1e-3,
            "batch_tokens": 8, "non_embedding_params": 100, "mix:web": 1 - share, "mix:maths": share, "mix:code": 0.0,
        }  # fmt: skip
        for name, factor in FACTORS.items():
            loss = 3.0 - (0.0 if name == "facts" else 0.5 * share) + rng.normal(0, noise.get(name, 0.01))
            row |= {f"loss:{name}": loss, f"bpb:{name}": loss * factor}
        rows.append(row)
    return pd.DataFrame(rows)


def test_bits_per_byte_are_weighed_as_stated_and_ranked_the_same() -> None:
    settings, runs = settings_with(weights={"web": 1, "sums": 3}), decays_of({})
    own = objective(settings, runs)
    assert own.unit == "bits_per_byte"
    assert own.stated == {"web": 0.25, "sums": 0.75}
    stated = [objective_value(row, own.stated, "bits_per_byte") for row in runs.to_dict("records")]
    assert own.per_nat * objective_values(runs, own.weights) == pytest.approx(stated)
    assert "one is 0.675 bits per byte" in own.notes[-1]


def test_nats_where_they_are_asked_for_or_nothing_else_is_measured() -> None:
    asked = settings_with("nats_per_token", weights={"web": 1, "sums": 3})
    own = objective(asked, decays_of({}))
    assert (own.unit, own.per_nat, own.notes) == ("nats_per_token", 1.0, ())
    assert own.weights == asked.objective_weights
    plain = parse_settings(TINY_SETTINGS)
    assert plain.objective_unit == "nats_per_token"


def test_guards_in_bits_per_byte_limit_each_domain_in_its_own_nats() -> None:
    settings = settings_with(weights={"sums": 1}, guard_domains=["web", "facts"], guard_bits_per_byte=0.06)
    own = objective(settings, decays_of({}))
    assert own.guard_limits == pytest.approx({"web": 0.2, "facts": 0.1})
    in_nats = settings_with(weights={"sums": 1}, guard_domains=["web"], guard_nats=0.3)
    assert objective(in_nats, decays_of({})).guard_limits == {"web": 0.3}


def test_an_ability_counts_without_what_seeds_explain_by_name_and_with_the_figure() -> None:
    runs = decays_of({"facts": 0.2})
    own = objective(settings_with(capabilities={"mathematics": 1}), runs)
    assert own.left_out == ("facts",)
    assert own.stated == {"sums": 1.0}
    (line,) = [note for note in own.notes if note.startswith("'facts' (mathematics) is left out")]
    (signal,) = signals(runs, runs[["bpb:facts"]].to_numpy())  # type: ignore[misc]
    assert f"signal {100 * signal.share:.0f} % of the variance, p = {signal.p_value:.2g}" in line
    insisting = objective(settings_with(capabilities={"mathematics": 1}, insist=["facts"]), runs)
    assert insisting.left_out == ()
    assert insisting.stated == {"sums": 0.5, "facts": 0.5}
    assert "'facts' counts in the objective, although seeds explain" in " ".join(insisting.notes)


def test_an_ability_of_which_nothing_is_left_does_not_count() -> None:
    runs = decays_of({"facts": 0.2})
    settings = settings_with(capabilities={"mathematics": 1, "reasoning": 1}, facts="reasoning")
    own = objective(settings, runs)
    counts = signal_table(settings, runs, own).set_index("name")["counts"]
    assert own.stated == {"sums": 1.0}
    assert counts[["facts", "ability: mathematics", "ability: reasoning", "objective"]].tolist() == [
        False, True, False, True,
    ]  # fmt: skip


def test_a_domain_that_is_weighed_by_name_is_never_left_out() -> None:
    own = objective(settings_with(weights={"facts": 1}), decays_of({"facts": 0.2}))
    assert own.stated == {"facts": 1.0}
    assert "'facts' counts in the objective, although seeds explain" in own.notes[0]


def test_an_objective_nothing_but_noise_is_refused() -> None:
    runs = decays_of({"facts": 0.2, "sums": 5.0})
    with pytest.raises(StudyError, match=r"all that the objective weighs \(sums, facts\).*objective\.insist"):
        objective(settings_with(capabilities={"mathematics": 1}), runs)


def test_without_replicates_all_counts_and_that_is_said() -> None:
    own = objective(settings_with(capabilities={"mathematics": 1}), decays_of({"facts": 0.2}, seeds=0))
    assert own.stated == {"sums": 0.5, "facts": 0.5}
    assert "nothing is known of what seeds explain" in own.notes[0]


def test_two_replicates_do_not_make_a_clear_difference_noise() -> None:
    """With one degree of freedom the F-test needs variances 161 times apart."""
    own = objective(settings_with(capabilities={"mathematics": 1}), decays_of({"sums": 0.03}, seeds=2))
    assert "sums" in own.stated


def test_runs_without_bytes_are_refused_where_bits_are_asked_for() -> None:
    runs = decays_of({}).drop(columns="bpb:sums")
    with pytest.raises(StudyError, match=r"bits per byte of 'sums' .*objective\.unit: nats_per_token"):
        objective(settings_with(weights={"sums": 1}), runs)


def test_signal_is_the_share_of_variance_that_seeds_leave() -> None:
    runs = decays_of({"sums": 0.05}, mixtures=400, seeds=400)
    (found,) = signals(runs, runs[["loss:sums"]].to_numpy())  # type: ignore[misc]
    between = 0.25 / 12 * 401 / 399  # of evenly spaced shares, times a half
    assert found.seed_sd == pytest.approx(0.05, rel=0.1)
    assert found.share == pytest.approx(between / (between + 0.05**2), abs=0.03)
    assert not found.is_noise
