"""What a fit says of its own accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay.trust import choice_notes, coverage_doubts, guard_changes
from decaylaws.runs.noise import seed_noise
from decaylaws.study.fit_notes import accuracy_notes, held_notes, size_notes

PLAN = {
    "start_run_id": "t", "decay_tokens": 1000, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear",
    "batch_tokens": 10,
}  # fmt: skip


def row(share: float, loss: float) -> dict[str, object]:
    return {**PLAN, "mix:web": share, "mix:code": 1 - share, "loss:web": loss, "loss:code": 2.0}


def test_noise_is_pooled_over_plans_that_were_repeated() -> None:
    # variances 0.02 (two runs) and 0.01 (three runs); the single run says nothing
    runs = pd.DataFrame(
        [row(0.5, 3.0), row(0.5, 3.2), row(0.1, 1.0), row(0.1, 1.1), row(0.1, 1.2), row(0.9, 7.0)]
    )
    noise = seed_noise(runs, ["web", "code"])
    assert noise["web"] == pytest.approx(np.sqrt((1 * 0.02 + 2 * 0.01) / 3))
    assert noise["code"] == 0.0


def test_without_a_repeated_plan_noise_is_unknown() -> None:
    assert np.isnan(seed_noise(pd.DataFrame([row(0.5, 3.0), row(0.1, 1.0)]), ["web"])["web"])


class ControlLaw:
    """Predicts 3.0 and 2.0 for every control."""

    domains_ = ("web", "code")

    def predict(self, runs: pd.DataFrame) -> np.ndarray:
        return np.tile([3.0, 2.0], (len(runs), 1))


def test_changes_are_measured_against_the_control_of_the_same_plan() -> None:
    longer = {**row(1.0, 2.9), "decay_tokens": 2000}
    runs = pd.DataFrame([row(1.0, 3.1), longer, row(0.5, 3.3), {**row(0.5, 3.2), "start_lr": 5e-4}])
    runs = runs.assign(role=["control", "control", "simplex", "simplex"], run_id=["c", "d", "a", "unmatched"])
    held_out = pd.DataFrame(
        [("a", "web", 3.4, 3.3), ("a", "code", 2.3, 2.0), ("unmatched", "web", 3.0, 3.2)],
        columns=["run_id", "domain", "predicted", "observed"],
    )
    found = guard_changes(ControlLaw(), runs, held_out).set_index(["run_id", "domain"])
    assert found.loc[("a", "web")].tolist() == pytest.approx([0.4, 0.2])
    assert found.loc[("a", "code")].tolist() == pytest.approx([0.3, 0.0])
    assert len(found) == 2


@pytest.mark.parametrize(
    ("bias", "sizes", "expected"),
    [
        (0.117, [50_000, 150_000], "predicted from 1 smaller one, the law is 0.117 nats too pessimistic"),
        (-0.1, [1, 2, 3], "predicted from 2 smaller ones, the law is 0.100 nats too optimistic"),
        (0.0, [50_000], "All microanneals have 50,000 parameters"),
    ],
)
def test_errors_to_one_side_at_another_size_are_said(bias: float, sizes: list[int], expected: str) -> None:
    rows = [
        ("decay:effective", "size", 0.12, bias),
        ("regmix", "size", 0.1, 0.09),
        ("decay:effective", "mixture", 0.1, 0.1),
    ]
    errors = pd.DataFrame(rows, columns=["law", "held_out", "mae", "bias"])
    (note,) = size_notes(errors, sizes)
    assert expected in note
    assert size_notes(errors.assign(bias=0.01), [1, 2]) == []


def test_a_choice_that_hangs_on_a_few_runs_is_said() -> None:
    (note,) = choice_notes("effective_gain", {"effective_gain": 0.63, "effective_saturating": 0.37})
    assert "'effective_gain' is best in 63 % of the samples and 'effective_saturating' in 37 %" in note
    assert choice_notes("effective_gain", {"effective_gain": 0.95, "effective_saturating": 0.05}) == []
    assert choice_notes("effective_gain", {"effective_gain": 1.0}) == []


def test_intervals_that_miss_too_much_are_doubted() -> None:
    observed = np.array([0.0] * 6 + [9.0] * 4 + [0.0] * 3 + [9.0])
    table = pd.DataFrame({"held_out": ["mixture"] * 10 + ["size"] * 4, "lower": -1.0, "upper": 1.0})
    assert coverage_doubts(table.assign(observed=observed)) == [
        "90 % intervals hold only 60 % of the losses on held-out mixture."
    ]


def test_replicates_without_a_recorded_seed_count_and_copies_do_not() -> None:
    rows = [row(0.5, 3.0), row(0.5, 3.2), row(0.5, 3.0)]
    for table in (pd.DataFrame(rows), pd.DataFrame(rows).assign(seed=None)):
        assert seed_noise(table, ["web", "code"])["web"] == pytest.approx(np.sqrt(0.02))
    seeded = pd.DataFrame(rows).assign(seed=[0, 1, 2])
    assert seed_noise(seeded, ["web"])["web"] == pytest.approx(np.std([3.0, 3.2, 3.0], ddof=1))


def test_unknown_seed_noise_is_said_with_the_setting_that_measures_it() -> None:
    errors = pd.DataFrame({"law": ["decay:effective_gain"], "held_out": ["mixture"], "mae": [0.02]})
    assert "No plan was run under two seeds" in accuracy_notes(errors, float("nan"))[-1]
    assert "below 0.0080 nats on a new seed" in accuracy_notes(errors, 0.01)[-1]


@pytest.mark.parametrize(
    ("held", "count", "said"),
    [
        (12, 12, "hold 100 % of the 12 losses on held-out size."),
        (46, 60, "hold 77 % of the 60 losses on held-out size, fewer than chance explains."),
        (60, 60, "hold 100 % of the 60 losses on held-out size, more than chance explains."),
        (54, 60, "hold 90 % of the 60 losses on held-out size."),
    ],
)
def test_a_share_of_held_intervals_is_odd_only_where_chance_does_not_explain_it(
    held: int, count: int, said: str
) -> None:
    observed = [0.0] * held + [2.0] * (count - held)
    (note,) = held_notes(
        pd.DataFrame({"held_out": "size", "lower": -1.0, "upper": 1.0, "observed": observed})
    )
    assert said in note
