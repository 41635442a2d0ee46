import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from analysis._schedule_rivals import ForwardMomentumLaw, FunctionalScalingLaw, TwoExponentialLaw
from decaylaws.errors import InvalidValueError, NotFittedError
from decaylaws.laws.annealing import (
    DEFAULT_LAW,
    LossCurve,
    MomentumLaw,
    MultiPowerLaw,
    ReducibleMultiPowerLaw,
    held_out_folds,
    knot_path,
    lr_path,
    warmup_tokens,
)
from decaylaws.laws.kit.compare import compare
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Law
from decaylaws.laws.kit.report import FitStatus
from decaylaws.schedules import (
    constant,
    decay,
    from_points,
    from_steps,
    parse_schedule,
    warmup,
    warmup_stable_decay,
)
from tests.laws.curves import (
    LATE,
    LONG,
    PEAK,
    SCHEDULES,
    STEP,
    TOTAL,
    TRUTH,
    WARMUP,
    fit_curves,
    simulated,
)

LAWS = [
    MomentumLaw,
    MultiPowerLaw,
    FunctionalScalingLaw,
    TwoExponentialLaw,
    ReducibleMultiPowerLaw,
    ForwardMomentumLaw,
]


# What a law sees of a schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), LATE], ids=[*SCHEDULES, "late"])
def test_drops_add_up_to_the_fall_from_the_plateau(schedule):
    path = lr_path(schedule, [schedule.tokens])
    assert path.plateau_lr == pytest.approx(PEAK)
    assert path.plateau_lr - path.drops.sum() == pytest.approx(schedule.end_lr, abs=1e-15)
    assert path.progress[0] == pytest.approx(schedule.integral(), rel=1e-12)


def test_a_drop_counts_only_after_it_happened():
    path = lr_path(SCHEDULES["hold"], [3_999 * STEP, 4_000 * STEP, 4_001 * STEP])
    assert path.elapsed.shape == (3, 1)
    np.testing.assert_allclose(path.elapsed[:, 0], [0, 0, STEP])
    np.testing.assert_allclose(path.gained[:, 0], [0, 0, 0.3 * PEAK * STEP], rtol=1e-9)
    assert path.drop_lr[0] == pytest.approx(0.3 * PEAK)


def test_a_warm_up_is_progress_and_no_drop():
    path = lr_path(SCHEDULES["constant"], [WARMUP, TOTAL])
    assert len(path.drops) == 0
    assert path.progress[0] == pytest.approx(0.5 * WARMUP * PEAK)
    assert warmup_tokens(SCHEDULES["constant"]) == WARMUP
    assert warmup_tokens(constant(5, 1e-3)) == 0


def test_a_logged_lr_has_the_warm_up_of_the_schedule_behind_it():
    schedule = warmup_stable_decay(10_000, 1e-3, warmup_tokens=500, decay_tokens=2_000, end_lr=1e-4)
    assert warmup_tokens(schedule) == 500
    assert warmup_tokens(from_steps(schedule.step_lrs(100), 100)) == 500
    assert warmup_tokens(from_points([0, 500, 8_000, 10_000], [0.0, 1e-3, 1e-3, 1e-4])) == 500


def test_a_logged_drop_falls_at_once():
    held = constant(80_000, 1e-3) + constant(20_000, 1e-4)
    at = np.array([80_100.0, 80_500.0, 100_000.0])
    own, logged = (lr_path(s, at) for s in (held, from_steps(held.step_lrs(100), 100)))
    for time_tokens in (300.0, 3_000.0):
        arrived = [(1 - np.exp(-path.elapsed / time_tokens)) @ path.drops for path in (own, logged)]
        np.testing.assert_allclose(arrived[1], arrived[0], rtol=1e-9)


def test_a_later_rise_is_a_negative_drop():
    schedule = constant(100, 1e-3) + decay(100, 1e-3, 1e-4) + constant(100, 1e-3)
    path = lr_path(schedule, [300])
    assert path.drops.min() == pytest.approx(-9e-4)
    assert path.drops.sum() == pytest.approx(0, abs=1e-15)


def test_knots_and_segments_see_the_same_curve():
    tokens = np.array([0.0, *range(10, 101)]) * STEP
    lrs = np.interp(tokens / STEP, [0, 10, 60, 80, 100], [0, 1, 1, 0.4, 0.1]) * PEAK
    schedule = (
        warmup(10 * STEP, PEAK)
        + constant(50 * STEP, PEAK)
        + decay(20 * STEP, PEAK, 0.4 * PEAK)
        + decay(20 * STEP, 0.4 * PEAK, 0.1 * PEAK)
    )
    quick, exact = knot_path(tokens, lrs), lr_path(schedule, [100 * STEP])
    assert quick.progress[0] == pytest.approx(exact.progress[0])
    assert quick.plateau_lr == pytest.approx(exact.plateau_lr)
    assert quick.drops @ quick.gained[0] == pytest.approx(exact.drops @ exact.gained[0], rel=1e-3)


def test_cost_does_not_grow_with_tokens():
    law = ReducibleMultiPowerLaw().fit(fit_curves())
    huge = parse_schedule("Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Linear(3e-5, 5T)")
    path = lr_path(huge, [huge.tokens])
    assert path.elapsed.shape[1] < 200
    # the law works on that path: as much memory as for a schedule a million times as short
    short = parse_schedule("Warmup(3e-4, 2000) -> Constant(3e-4, 10M) -> Linear(3e-5, 5M)")
    assert lr_path(short, [short.tokens]).elapsed.shape == path.elapsed.shape
    law.predict_loss(short)  # what is computed once only
    peaks = []
    for schedule in (short, huge):
        tracemalloc.start()
        assert np.isfinite(law.predict_loss(schedule)).all()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 2_000_000


# The laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAWS)
def test_derivatives_match_finite_differences(kind):
    law = kind()
    family = law._family()
    rng = np.random.default_rng(1)
    schedule = LATE
    path = lr_path(schedule, [WARMUP * 3, TOTAL * 0.9, TOTAL], lr_unit=1.2 * PEAK, token_unit=TOTAL)
    shared = np.array([p.start for p in family.shared])
    free = np.array([p.lower < p.upper for p in family.shared])
    shared[free] += 0.1 * rng.normal(size=free.sum())
    own = np.array([2.5, -1.0, -0.7, 0.1])
    value, by_shared, by_own = family.value(path, shared, own, 0.3)
    assert np.isfinite(value).all()
    numeric = approx_fprime(
        shared[free], lambda t: family.value(path, _put(shared, free, t), own, 0.3)[0], 1e-7
    )
    np.testing.assert_allclose(by_shared[:, free], numeric, rtol=2e-4, atol=1e-6)
    numeric = approx_fprime(own, lambda t: family.value(path, shared, t, 0.3)[0], 1e-7)
    np.testing.assert_allclose(by_own, numeric, rtol=2e-4, atol=1e-6)


def _put(values, where, part):
    out = values.copy()
    out[where] = part
    return out


def test_cells_reproduce_the_sum_over_steps_of_the_momentum_law():
    """S2 of Tissue et al.: m_i = lambda m_(i-1) + (eta_(i-1) - eta_i), summed over steps."""
    lam, schedule = 0.998, LATE
    lr = schedule.step_lrs(STEP) / PEAK
    drops = np.concatenate([[0.0], lr[:-1] - lr[1:]])
    drops[: WARMUP // STEP + 1] = 0.0
    momentum = total = 0.0
    for drop in drops:
        momentum = lam * momentum + drop
        total += momentum
    path = lr_path(schedule, [TOTAL], lr_unit=PEAK, token_unit=TOTAL)
    time_constant = -1 / np.log(lam) * STEP / TOTAL
    share, _ = MomentumLaw()._family().kernel.response(path, np.array([np.log(time_constant)]))
    assert share[0] @ path.drops == pytest.approx((1 - lam) * total, rel=2e-3)


def test_multi_power_law_recovers_the_paper_s_own_sum():
    law = MultiPowerLaw().fit(fit_curves())
    late, long = simulated("late", LATE), simulated("long", LONG)
    assert law.report_.status is not FitStatus.NOT_CONVERGED
    np.testing.assert_allclose(law.predict([late]), late.loss, atol=2e-3)
    np.testing.assert_allclose(law.predict([long]), long.loss, atol=4e-3)


def test_default_law_contains_the_multi_power_law():
    law = DEFAULT_LAW().fit(fit_curves())
    late = simulated("late", LATE)
    assert np.abs(law.predict([late]) - late.loss).mean() < 1.5e-3


def with_worth(name, schedule, worth, num=30):
    """A curve whose loss falls in units of what a token at a higher LR is worth, without any other surprise."""
    steps = np.unique(np.linspace(2 * WARMUP // STEP, schedule.tokens // STEP, num).round().astype(int))
    path = lr_path(schedule, steps * float(STEP), lr_unit=PEAK, token_unit=TOTAL)
    family = DEFAULT_LAW()._family()
    shared = {"logit_rho": -1.0, "log_q": -0.5, "p": worth, "log_gain": np.log(0.3), "log_rate": 4.0}
    theta = np.array([shared.get(parameter.name, parameter.start) for parameter in family.shared])
    loss, _, _ = family.value(path, theta, np.array([2.7, np.log(0.35), np.log(0.46), 0.0]), 0.0)
    return LossCurve(name, schedule, steps * float(STEP), loss, "model")


@pytest.mark.parametrize("worth", [1.0, 1.3])
def test_a_low_lr_is_carried_to_twice_its_horizon(worth):
    """The run at a tenth of the other peaks never gets beyond their burn-in: its later half counts all the same."""
    peaks = [PEAK, 0.5 * PEAK, 0.1 * PEAK]
    plans = [(peak, length) for peak in peaks for length in (0, TOTAL // 5, TOTAL // 2)]
    fitted = [
        with_worth(
            f"{peak}/{length}",
            warmup_stable_decay(TOTAL, peak, warmup_tokens=WARMUP, decay_tokens=length),
            worth,
        )
        for peak, length in plans
    ]
    law = DEFAULT_LAW().fit(fitted)
    assert law.params_["p"] == pytest.approx(worth, abs=0.1)
    slow = warmup_stable_decay(2 * TOTAL, 0.1 * PEAK, warmup_tokens=WARMUP, decay_tokens=TOTAL // 2)
    ask = with_worth("slow", slow, worth, num=2)
    assert law.predict([ask])[-1] == pytest.approx(ask.loss[-1], abs=4e-3)


def test_one_peak_says_nothing_of_the_worth_of_an_lr():
    law = DEFAULT_LAW().fit(fit_curves(noise=1e-3))
    assert law.params_["p"] == 1.0
    assert law.param_intervals()["p"] == (1.0, 1.0)


def test_intervals_hold_the_truth_of_new_schedules():
    held = []
    for seed in range(10):
        law = MultiPowerLaw().fit(fit_curves(noise=5e-4, seed=seed))
        for schedule in (LATE, LONG):
            curve = simulated("new", schedule, noise=5e-4, seed=1000 + seed, num=12)
            held.append(coverage(law.predict([curve], interval=0.9), curve.loss))
    assert 0.80 <= np.mean(held) <= 0.97


def test_models_share_the_kernel_and_a_size_without_decays_borrows_it():
    small = fit_curves(model="small", params=1e8)
    bigger = {**TRUTH, "level": 2.4, "gain": TRUTH["gain"] * 4**0.15}
    big = simulated("big", SCHEDULES["constant"], truth=bigger, model="big", params=4e8)
    law = MultiPowerLaw().fit([*small, big])
    late = simulated("late", LATE, truth=bigger, model="big", params=4e8)
    np.testing.assert_allclose(law.predict([late])[-1], late.loss[-1], atol=5e-3)
    assert law.predict_loss(LATE, model="big")[0] == pytest.approx(law.predict([late])[-1])
    path = lr_path(LATE, [TOTAL], **law.units_)
    assert law.predict_path(path, model="big")[0] == pytest.approx(law.predict([late])[-1])
    low, high = law.param_intervals()["small.level"]
    assert low <= law.params_["models"]["small"]["level"] <= high
    unseen = LossCurve("unseen", LATE, [TOTAL], model="other", params=2e8)
    assert 2.5 < law.predict([unseen])[0] < 3.2
    assert law.predict_loss(LATE, model="other", params=2e8) == pytest.approx(law.predict([unseen]))
    with pytest.raises(InvalidValueError, match="fitted models"):
        law.predict([LossCurve("nameless", LATE, [TOTAL], model="other")])
    assert law.predict_loss(LATE, params=4e8) == law.predict_loss(LATE, model="big")  # the last model
    with pytest.raises(
        InvalidValueError, match=r"'params' must be the 400000000 parameters of the fitted model 'big'"
    ):
        law.predict_loss(LATE, params=2e8)


def of_size(params, *, slope, noise=0.0, seed=0, schedule=None):
    """Curves of a model whose level falls by ``slope`` nats at 1e8 parameters times N^-1/3."""
    truth = {**TRUTH, "level": 1.9 + slope * (params / 1e8) ** (-1 / 3)}
    name = f"{params:.0e}"
    if schedule is None:
        return fit_curves(noise=noise, seed=seed, truth=truth, model=name, params=params)
    return simulated("asked", schedule, num=3, truth=truth, model=name, params=params)


@pytest.mark.parametrize("sizes", [[4e7], [4e7, 6e7], [4e7, 5e7, 6e7]])
@pytest.mark.parametrize("slope", [0.5, 0.7])
def test_sizes_close_together_and_the_prior_lead_to_a_larger_one(sizes, slope):
    curves = [
        curve
        for seed, params in enumerate(sizes)
        for curve in of_size(params, slope=slope, noise=1e-3, seed=seed)
    ]
    law = DEFAULT_LAW().fit(curves)
    asked = of_size(2e8, slope=slope, schedule=LATE)
    found = law.predict([asked], interval=0.9)
    largest = of_size(sizes[-1], slope=slope, schedule=LATE)
    copied = np.abs(largest.observed / asked.observed - 1)
    assert copied.min() > 0.05
    assert np.abs(found.mean / asked.observed - 1).max() < 0.4 * copied.max()
    assert coverage(found, asked.observed) == 1.0
    fitted = law.predict([of_size(sizes[-1], slope=slope, schedule=LATE)], interval=0.9)
    assert (found.upper - found.lower).min() > 3 * (fitted.upper - fitted.lower).max()


def test_the_trend_of_sizes_far_apart_is_their_own():
    curves = [curve for params in (2e7, 5e7, 1e8, 2e8) for curve in of_size(params, slope=0.3)]
    law = DEFAULT_LAW(origin_fits=0).fit(curves)
    asked = of_size(6e8, slope=0.3, schedule=LATE)
    assert law.predict([asked]) == pytest.approx(asked.observed, rel=6e-3)


def test_peaks_near_one_another_say_nothing_of_the_worth_of_an_lr():
    """A factor of two, and another shape of the schedule with each: any worth fits."""
    low = warmup_stable_decay(TOTAL, 0.5 * PEAK, warmup_tokens=WARMUP, decay_tokens=TOTAL // 5)
    high = [with_worth(name, schedule, 1.0) for name, schedule in SCHEDULES.items()]
    assert DEFAULT_LAW().fit([*high, with_worth("low", low, 1.3)]).params_["p"] == 1.0


def test_fitting_twice_is_fitting_once_and_json_keeps_everything(tmp_path):
    curves = fit_curves()
    law = TwoExponentialLaw(num_draws=20)
    first = law.fit(curves).predict(curves)
    np.testing.assert_array_equal(law.fit(curves).predict(curves), first)
    law.save(tmp_path / "law.json")
    again = Law.load(tmp_path / "law.json")
    before, after = law.predict(curves[:1], interval=0.9), again.predict(curves[:1], interval=0.9)
    np.testing.assert_array_equal(after.lower, before.lower)
    assert again.evidence_ == law.evidence_


def test_compare_ranks_on_another_shape_and_a_longer_horizon():
    curves = [*fit_curves(noise=1e-3), simulated("late", LATE), simulated("long", LONG)]
    folds = held_out_folds(curves)
    assert {fold.name for fold in folds} >= {"another schedule: late", "longer horizon: long"}
    table = compare({"multi_power": MultiPowerLaw(), "forward": ForwardMomentumLaw()}, folds)
    assert table["law"].iloc[0] == "multi_power"
    assert np.isfinite(table["mae"]).all()


# Bad input ----------------------------------------------------------------------------------------------------


def test_bad_curves_are_named():
    schedule = SCHEDULES["cosine"]
    with pytest.raises(InvalidValueError, match="loss of run a"):
        LossCurve("a", schedule, [TOTAL / 2, TOTAL], [3.0, np.nan])
    with pytest.raises(InvalidValueError, match="must increase"):
        LossCurve("a", schedule, [TOTAL, TOTAL / 2], [3.0, 3.1])
    with pytest.raises(InvalidValueError, match="beyond the warm-up"):
        LossCurve("a", schedule, [WARMUP / 2], [5.0])
    with pytest.raises(InvalidValueError, match="within the schedule"):
        LossCurve("a", schedule, [TOTAL + 1], [3.0])
    with pytest.raises(InvalidValueError, match="shape"):
        LossCurve("a", schedule, [TOTAL / 2, TOTAL], [3.0])


@pytest.mark.parametrize(("name", "value"), [("burn_in", 1.0), ("num_draws", 0)])
def test_bad_settings_are_named_by_fit(name, value):
    with pytest.raises(InvalidValueError, match=name):
        MomentumLaw(**{name: value}).fit(fit_curves())


def test_a_horizon_without_steps_is_named():
    with pytest.raises(InvalidValueError, match="horizon_steps"):
        ForwardMomentumLaw(horizon_steps=0).fit(fit_curves())


def test_one_curve_that_holds_its_lr_before_it_falls_is_enough():
    held = []
    for seed in range(4):
        law = DEFAULT_LAW().fit([simulated("late", LATE, noise=5e-4, seed=seed)])
        for index, (name, schedule) in enumerate([*SCHEDULES.items(), ("long", LONG)]):
            curve = simulated(name, schedule, noise=5e-4, seed=100 * index + seed)
            asked = curve.select(np.arange(len(curve.tokens) - 5, len(curve.tokens)))
            found = law.predict([asked], interval=0.9)
            assert found.mean == pytest.approx(asked.observed, rel=0.015)
            held.append(coverage(found, asked.observed))
    assert np.mean(held) >= 0.7


def test_too_little_evidence_is_named():
    curves = fit_curves()
    with pytest.raises(InvalidValueError, match="at least 1"):
        MomentumLaw().fit([])
    with pytest.raises(InvalidValueError, match="LR falls"):
        MomentumLaw().fit(curves[:1])
    with pytest.raises(InvalidValueError, match=r"hold the LR over 8 evaluations .* \(here 0 and \d+\)"):
        MomentumLaw().fit(curves[1:2])
    longer = warmup_stable_decay(TOTAL + STEP, PEAK, warmup_tokens=WARMUP, decay_tokens=0)
    flat = [curves[0], simulated("twin", longer)]
    with pytest.raises(InvalidValueError, match="LR falls"):
        MomentumLaw().fit(flat)
    with pytest.raises(InvalidValueError, match="different schedules"):
        MomentumLaw().fit([curves[1], curves[1]])
    few = [curve.select(np.array([len(curve.tokens) - 1])) for curve in curves[1:]]
    with pytest.raises(InvalidValueError, match="observations"):
        MomentumLaw(burn_in=0.0).fit(few)
    with pytest.raises(InvalidValueError, match="loss of run"):
        MomentumLaw().fit([curves[0], LossCurve("question", LATE, [TOTAL])])
    with pytest.raises(NotFittedError):
        MomentumLaw().predict(curves)


# Published records --------------------------------------------------------------------------------------------


def test_published_curves_are_predicted_better_than_by_the_published_fit(shared_data: Path):
    """Published test MAE of the multi-power law: .00376 (25M); error of the last point of its WSD run .0096."""
    from _records import read_schedule_curves

    curves = read_schedule_curves(shared_data / "multipowerlaw")
    fit, held_out = ([c for c in curves[use] if c.model == "25M"] for use in ("fit", "predict"))
    law = DEFAULT_LAW().fit(fit)
    errors = {curve.run_id: law.predict([curve]) - curve.loss for curve in held_out}
    assert len(errors) == 6
    assert np.mean([np.abs(error).mean() for error in errors.values()]) < 0.00376
    assert np.abs(errors["25M/wsd_20000_24000"][-1]) < 0.0096
    assert law.report_.agreeing_share > 0.5
