"""Schedules against other trainers' code and published numbers.

Step convention. torch's and transformers' schedulers, and the logs of published runs, give step k the value
of the curve at the *start* of the step, ``schedule.lr(k * batch_tokens)``: the first step of a warm-up has
LR 0. Ours gives it the mean over the step, ``schedule.step_lrs(batch_tokens)[k]``. The curve is the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.schedules import (
    Schedule,
    cosine,
    decay,
    from_steps,
    half_life,
    inverse_sqrt,
    linear_to_zero,
    multi_step,
    published_schedule,
    warmup,
    warmup_stable_decay,
)

LR, BATCH, STEPS, RISE, FALL = 3e-4, 4096, 100, 10, 20


def tokens(steps: int) -> int:
    return steps * BATCH


def at_step_starts(schedule: Schedule) -> np.ndarray:
    return schedule.lr(schedule.step_edges(BATCH))


def torch_lrs(make_scheduler) -> np.ndarray:
    """LR before each of STEPS steps and after the last one, from a torch scheduler."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make_scheduler(optimizer)
    lrs = [scheduler.get_last_lr()[0]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        lrs.append(scheduler.get_last_lr()[0])
    return np.array(lrs)


TORCH = {
    "LinearLR": (
        lambda module, opt: module.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=STEPS),
        decay(tokens(STEPS), LR, 0.1 * LR),
    ),
    "CosineAnnealingLR": (
        lambda module, opt: module.CosineAnnealingLR(opt, T_max=STEPS, eta_min=3e-5),
        decay(tokens(STEPS), LR, 3e-5, "cosine"),
    ),
    "ExponentialLR": (
        lambda module, opt: module.ExponentialLR(opt, gamma=0.5 ** (1 / 25)),
        half_life(tokens(STEPS), LR, tokens(25)),
    ),
    "PolynomialLR": (
        lambda module, opt: module.PolynomialLR(opt, total_iters=STEPS, power=1.5),
        decay(tokens(STEPS), LR, 0.0, "polynomial", exponent=1.5),
    ),
    "MultiStepLR": (
        lambda module, opt: module.MultiStepLR(opt, milestones=[60, 80], gamma=0.316),
        multi_step(tokens(STEPS), [LR, LR * 0.316, LR * 0.316**2], [tokens(60), tokens(80)]),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_scheduler_of_the_same_curve(name: str) -> None:
    module = pytest.importorskip("torch.optim.lr_scheduler")
    make, schedule = TORCH[name]
    np.testing.assert_allclose(
        at_step_starts(schedule), torch_lrs(lambda opt: make(module, opt)), rtol=1e-9, atol=1e-18
    )


def hf_wsd(decay_type: str, min_lr_ratio: float = 0.0):
    return lambda module, opt: module.get_wsd_schedule(
        opt, RISE, FALL, num_training_steps=STEPS, decay_type=decay_type, min_lr_ratio=min_lr_ratio
    )


def wsd(shape: str, end_lr: float = 0.0) -> Schedule:
    rise, stable, fall = tokens(RISE), tokens(STEPS - RISE - FALL), tokens(FALL)
    stages = warmup(rise, LR, start_lr=end_lr) + decay(stable, LR, LR, "constant")
    return stages + decay(fall, LR, end_lr, shape)


TRANSFORMERS = {
    "linear": (
        lambda module, opt: module.get_linear_schedule_with_warmup(opt, RISE, STEPS),
        linear_to_zero(tokens(STEPS), LR, warmup_tokens=tokens(RISE)),
    ),
    "cosine": (
        lambda module, opt: module.get_cosine_schedule_with_warmup(opt, RISE, STEPS),
        cosine(tokens(STEPS), LR, warmup_tokens=tokens(RISE)),
    ),
    "cosine_with_min_lr": (
        lambda module, opt: module.get_cosine_with_min_lr_schedule_with_warmup(opt, RISE, STEPS, min_lr=3e-5),
        cosine(tokens(STEPS), LR, warmup_tokens=tokens(RISE), end_lr=3e-5),
    ),
    "polynomial": (
        lambda module, opt: module.get_polynomial_decay_schedule_with_warmup(
            opt, RISE, STEPS, lr_end=1e-7, power=2.0
        ),
        warmup_stable_decay(
            tokens(STEPS),
            LR,
            warmup_tokens=tokens(RISE),
            decay_tokens=tokens(STEPS - RISE),
            end_lr=1e-7,
            shape="polynomial",
            exponent=2.0,
        ),
    ),
    "inverse_sqrt": (
        lambda module, opt: module.get_inverse_sqrt_schedule(opt, RISE, timescale=25),
        inverse_sqrt(tokens(STEPS), LR, warmup_tokens=tokens(RISE), timescale_tokens=tokens(25)),
    ),
    "constant_with_warmup": (
        lambda module, opt: module.get_constant_schedule_with_warmup(opt, RISE),
        warmup_stable_decay(tokens(STEPS), LR, warmup_tokens=tokens(RISE), decay_tokens=0),
    ),
    "wsd linear": (hf_wsd("linear"), wsd("linear")),
    "wsd cosine": (hf_wsd("cosine"), wsd("cosine")),
    "wsd 1-sqrt": (hf_wsd("1-sqrt"), wsd("1-sqrt")),
    "wsd linear to a tenth": (hf_wsd("linear", 0.1), wsd("linear", 0.1 * LR)),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_scheduler_of_the_same_curve(name: str) -> None:
    module = pytest.importorskip("transformers.optimization")
    make, schedule = TRANSFORMERS[name]
    np.testing.assert_allclose(
        at_step_starts(schedule), torch_lrs(lambda opt: make(module, opt)), rtol=1e-9, atol=1e-18
    )


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.8682, 0.55, 0.2318, 0.1]),
        ("megatron-exponential", [1.0, 0.7136, 0.4728, 0.2703, 0.1]),
        ("1-sqrt", [1.0, 0.55, 0.3636, 0.2206, 0.1]),
    ],
)
def test_megatron_wsd_decay_styles(shape: str, values: list[float]) -> None:
    """Megatron-LM, WSD from 1 to 0.1 over the last 40 of 100, at 60, 70, ... 100."""
    schedule = warmup_stable_decay(100, 1.0, decay_tokens=40, end_lr=0.1, shape=shape)
    np.testing.assert_allclose(schedule.lr([60, 70, 80, 90, 100]), values, atol=5e-5)


def test_olmo_2_7b_hand_over_lr() -> None:
    """6.1351e-5 at step 928,646 of a cosine set for 5T tokens (olmo-cookbook: 6.135e-5)."""
    schedule = published_schedule("olmo-2-7b").template.fill()
    expected = 3e-5 + 2.7e-4 * (1 + np.cos(np.pi * (928_646 - 2_000) / (5e12 / 4_194_304 - 2_000))) / 2
    assert schedule.boundaries[2] == 928_646 * 4_194_304
    assert schedule.segments[1].end_lr == pytest.approx(expected, rel=1e-9)
    assert schedule.segments[1].end_lr == pytest.approx(6.1351e-5, abs=5e-10)


def test_nemotron_3_super_in_samples_of_8192_tokens() -> None:
    schedule = published_schedule("nemotron-3-super").template.fill()
    assert schedule.tokens == 3_048_706_055 * 8_192
    assert schedule.segments[0].tokens == 24_414_063 * 8_192
    assert schedule.segments[2].tokens == 610_351_563 * 8_192


def test_mean_rule_wastes_neither_the_first_nor_the_last_step() -> None:
    """WSD of 100 steps, warm-up 10, linear decay 20: trainers' conventions sum to 84, 85 or 86 peak steps."""
    schedule = warmup_stable_decay(100, 1.0, warmup_tokens=10, decay_tokens=20)
    lrs = schedule.step_lrs(1)
    assert lrs.sum() == pytest.approx(85.0, rel=1e-12)
    np.testing.assert_allclose(lrs[[0, 79, 80, 99]], [0.05, 1.0, 0.975, 0.025])


RUN_SHAPES = {"cosine": "cosine", "wsd_exponential": "exponential", "wsd_linear": "linear"}


def published_run(run: pd.Series) -> Schedule:
    """A run of ``multipowerlaw`` with one token per step."""
    rise = warmup(run.warmup_steps, run.peak_lr)
    if run.schedule == "constant":
        return rise.extend(run.total_steps - run.warmup_steps)
    stable = int(run.decay_start_step) - run.warmup_steps
    head = rise.extend(stable) if stable else rise
    fall = run.total_steps - int(run.decay_start_step)
    if run.schedule == "two_stage_step":
        return head + decay(fall, run.end_lr, run.end_lr, "constant")
    return head + decay(fall, run.peak_lr, run.end_lr, RUN_SHAPES[run.schedule])


def test_logged_lrs_of_published_runs(shared_data: Path) -> None:
    """Every LR that the multi-power law's runs logged, from the runs' descriptions alone."""
    runs = pd.read_csv(shared_data / "multipowerlaw" / "runs.csv")
    curves = pd.read_csv(shared_data / "multipowerlaw" / "curves.csv")
    assert len(runs) >= 14
    for run in runs.itertuples(index=False):
        logged = curves[(curves.model_size == run.model_size) & (curves.run == run.run)]
        assert len(logged) > 50
        np.testing.assert_allclose(published_run(run).lr(logged.step.to_numpy()), logged.lr, rtol=1e-6)


def test_a_logged_curve_comes_back_from_its_steps() -> None:
    lrs = cosine(tokens(STEPS), LR, warmup_tokens=tokens(RISE)).step_lrs(BATCH)
    schedule = from_steps(lrs, BATCH)
    np.testing.assert_allclose(schedule.step_lrs(BATCH), lrs, rtol=1e-14)
    assert schedule.integral() == pytest.approx(lrs.sum() * BATCH, rel=1e-12)
