import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import MultiPowerLaw
from decaylaws.laws.annealing.optimum import Budget, best_curve, best_decay, best_steps
from tests.laws.curves import LOW, PEAK, STEP, TOTAL, TRUTH, WARMUP, fit_curves, multi_power_loss

BUDGET = Budget(TOTAL, PEAK, WARMUP, LOW)


@pytest.fixture(scope="module")
def law():
    return MultiPowerLaw().fit(fit_curves())


def test_best_fraction_is_the_truth_s_best_fraction(law):
    found = best_decay(law, BUDGET, shapes=["linear"])
    fractions = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    truth = [multi_power_loss(BUDGET.wsd(f), [TOTAL // STEP], **TRUTH)[0] for f in fractions]
    low, high = found.near_optimal
    assert low - 0.05 <= fractions[int(np.argmin(truth))] <= high + 0.05
    assert found.loss.mean[0] == pytest.approx(min(truth), abs=3e-3)


def test_gains_are_differences_of_predictions(law):
    found = best_decay(law, BUDGET)
    cosine, wsd = law.predict_loss(BUDGET.cosine())[0], law.predict_loss(BUDGET.wsd(0.2))[0]
    assert found.gain_over_cosine.mean[0] == pytest.approx(cosine - found.loss.mean[0])
    assert found.gain_over_wsd20.mean[0] == pytest.approx(wsd - found.loss.mean[0])
    assert found.gain_over_wsd20.mean[0] >= -1e-9
    assert (
        found.gain_over_cosine.lower[0] <= found.gain_over_cosine.mean[0] <= found.gain_over_cosine.upper[0]
    )


def test_a_free_curve_is_monotone_keeps_the_floor_and_beats_every_named_shape(law):
    free, named = best_curve(law, BUDGET), best_decay(law, BUDGET, shapes=["linear", "1-sqrt"])
    lrs = free.schedule.lr(np.linspace(WARMUP, TOTAL, 500))
    assert (np.diff(lrs) <= 1e-15).all()
    assert lrs.min() >= LOW * (1 - 1e-9)
    assert free.schedule.tokens == TOTAL
    assert free.schedule.peak_lr == pytest.approx(PEAK)
    assert free.loss.mean[0] <= named.loss.mean[0] + 1e-9
    assert free.loss.mean[0] <= best_steps(law, BUDGET).loss.mean[0] + 1e-9
    assert free.seconds < 30  # 1 to 3 s on an idle core


def test_steps_fall_from_the_peak_to_above_the_floor(law):
    found = best_steps(law, BUDGET, stages=3)
    lrs = [segment.end_lr for segment in found.schedule][1:]
    assert lrs[0] == pytest.approx(PEAK)
    assert lrs == sorted(lrs, reverse=True)
    assert min(lrs) >= LOW
    assert found.gain_over_cosine.mean[0] > 0


def test_leaving_the_evidence_is_said(law):
    assert best_decay(law, BUDGET).extrapolations == ()
    notes = " ".join(best_decay(law, Budget(3 * TOTAL, 2 * PEAK, WARMUP, 0.1 * LOW)).extrapolations)
    assert "3 times" in notes
    assert "peak LR" in notes
    assert "end LR" in notes


def test_nothing_to_choose_from_is_named(law):
    budget = Budget(10**9, 1e-3)
    with pytest.raises(InvalidValueError, match="shapes"):
        best_decay(law, budget, shapes=[])


def test_impossible_budgets_are_named(law):
    with pytest.raises(InvalidValueError, match="warmup_tokens"):
        Budget(10, 1e-3, 10)
    with pytest.raises(InvalidValueError, match="floor_lr"):
        Budget(10, 1e-3, 1, 2e-3)
    with pytest.raises(InvalidValueError, match="stages"):
        best_steps(law, BUDGET, stages=1)
