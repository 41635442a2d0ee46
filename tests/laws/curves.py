"""Loss curves with a known truth, computed step by step rather than through the library's cells."""

import numpy as np

from decaylaws.laws.annealing import LossCurve
from decaylaws.schedules import cosine, multi_step, warmup_stable_decay

STEP = 1000
TOTAL, WARMUP, PEAK, LOW = 8_000 * STEP, 400 * STEP, 3e-4, 3e-5
SCHEDULES = {
    "constant": warmup_stable_decay(TOTAL, PEAK, warmup_tokens=WARMUP, decay_tokens=0),
    "cosine": cosine(TOTAL, PEAK, warmup_tokens=WARMUP, end_lr=LOW),
    "hold": multi_step(TOTAL, [PEAK, 0.3 * PEAK], [4_000 * STEP], warmup_tokens=WARMUP),
}
LATE = warmup_stable_decay(TOTAL, PEAK, warmup_tokens=WARMUP, decay_tokens=1_600 * STEP, end_lr=LOW)
LONG = cosine(2 * TOTAL, PEAK, warmup_tokens=WARMUP, end_lr=LOW)


def multi_power_loss(schedule, steps, *, level, amplitude, alpha, gain, rate, beta, gamma):
    """Equation 1 of arXiv 2503.12811 with drops at every step; LR in units of the peak, time in steps."""
    lr = schedule.step_lrs(STEP) / PEAK
    progress = np.cumsum(lr)
    drops = np.concatenate([[0.0], lr[:-1] - lr[1:]])
    drops[: WARMUP // STEP + 1] = 0.0
    losses = []
    for step in steps:
        since = progress[step - 1] - np.concatenate([[0.0], progress[: step - 1]])
        share = 1 - (1 + rate * lr[:step] ** -gamma * since) ** -beta
        losses.append(level + amplitude * progress[step - 1] ** -alpha - gain * drops[:step] @ share)
    return np.array(losses)


TRUTH = {
    "level": 2.7,
    "amplitude": 12.0,
    "alpha": 0.45,
    "gain": 0.12,
    "rate": 0.01,
    "beta": 0.6,
    "gamma": 0.3,
}


def simulated(name, schedule, *, noise=0.0, seed=0, num=50, truth=TRUTH, model="model", params=None):
    steps = np.unique(np.linspace(2 * WARMUP // STEP, schedule.tokens // STEP, num).round().astype(int))
    loss = multi_power_loss(schedule, steps, **truth)
    rng = np.random.default_rng(seed)
    wander = noise * rng.normal() + 0.5 * noise * rng.normal(size=len(steps))
    return LossCurve(name, schedule, steps * float(STEP), loss * (1 + wander), model, params)


def fit_curves(**options):
    return [
        simulated(name, schedule, **{**options, "seed": options.get("seed", 0) * 10 + index})
        for index, (name, schedule) in enumerate(SCHEDULES.items())
    ]
