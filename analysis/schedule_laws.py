"""Which law predicts the loss curve of another schedule, and a longer one?

    python analysis/schedule_laws.py --data DIR --json OUT [--figure PNG]

Reads the format of the multipowerlaw records (arXiv 2503.12811), fits every law on the ``fit`` runs of each
model size alone (``default`` names the one that the library starts with), and scores it on the ``predict`` runs:
means over runs, each run over its logged points. A named law that a size's runs cannot identify is written with
its error instead of numbers. With ``fit`` runs of several sizes the default is also fitted with one kernel for
all of them (``..._shared``), which then predicts sizes without fit runs as well. Also: the best free
non-increasing schedule of 24,000 steps with a warm-up of 2,160, not below the lowest LR of the fit runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import parse_args, run, write_json
from _records import STEP_TOKENS, read_schedule_curves
from _schedule_rivals import ForwardMomentumLaw, FunctionalScalingLaw, TwoExponentialLaw

from decaylaws.errors import DecaylawsError
from decaylaws.laws.annealing import (
    DEFAULT_LAW,
    LossCurve,
    MomentumLaw,
    MultiPowerLaw,
    ReducibleMultiPowerLaw,
    ScheduleLaw,
)
from decaylaws.laws.annealing.optimum import Budget, best_curve
from decaylaws.laws.kit.draws import coverage

LAWS: dict[str, type[ScheduleLaw]] = {
    "reducible_multi_power": ReducibleMultiPowerLaw,
    "two_exponentials": TwoExponentialLaw,
    "momentum": MomentumLaw,
    "multi_power": MultiPowerLaw,
    "functional": FunctionalScalingLaw,
    "forward_momentum": ForwardMomentumLaw,
}
DEFAULT = next(name for name, law in LAWS.items() if law is DEFAULT_LAW)
OPTIMUM_STEPS, OPTIMUM_WARMUP = 24_000, 2_160
LEVEL = 0.9


def main() -> None:
    arguments = parse_args(__doc__ or "")
    curves = read_schedule_curves(arguments.data)
    sizes = list(dict.fromkeys(curve.model for curve in curves["fit"]))
    results: dict[str, dict[str, Any]] = {name: {} for name in LAWS}
    optima: dict[str, Any] = {}
    for size in sizes:
        fit, held_out = ([c for c in curves[use] if c.model == size] for use in ("fit", "predict"))
        for name, kind in LAWS.items():
            results[name][size], law = _score(kind(), fit, held_out)
            if name == DEFAULT and law is not None:
                optima[size] = _optimum(law, fit, size)
    if len(sizes) > 1:
        unfitted = list(dict.fromkeys(c.model for c in curves["predict"] if c.model not in sizes))
        shared = _shared(curves, [*sizes, *unfitted])
        results[f"{DEFAULT}_shared"] = shared
        results[DEFAULT].update({size: shared[size] for size in unfitted})
    write_json(arguments.json, {"default": DEFAULT, "laws": results, "optimum": optima})
    if arguments.figure:
        _draw(arguments.figure, curves, sizes)


def _score(
    law: ScheduleLaw, fit: list[LossCurve], held_out: list[LossCurve]
) -> tuple[dict[str, Any], ScheduleLaw | None]:
    began = time.perf_counter()
    try:
        law.fit(fit)
    except DecaylawsError as error:
        if isinstance(law, DEFAULT_LAW):
            raise  # without the default there is nothing to report on this size
        return {"error": str(error)}, None
    entry = {
        "fit_seconds": time.perf_counter() - began,
        "status": law.report_.sentence,
        "agreeing_share": law.report_.agreeing_share,
        "params": law.params_,
        "param_intervals": law.param_intervals(LEVEL),
    }
    return {**entry, **_errors(law, held_out)}, law


def _errors(law: ScheduleLaw, held_out: list[LossCurve]) -> dict[str, Any]:
    """Metrics of every predict run, and their means."""
    runs: dict[str, dict[str, float]] = {}
    for curve in held_out:
        prediction = law.predict([curve], interval=LEVEL)
        error = prediction.mean - curve.loss
        runs[curve.run_id.split("/", 1)[1]] = {
            "mae": np.mean(np.abs(error)),
            "rmse": np.sqrt(np.mean(error**2)),
            "r2": 1 - np.sum(error**2) / np.sum((curve.loss - curve.loss.mean()) ** 2),
            "worst_relative_error": np.max(np.abs(error) / curve.loss),
            "final_error": error[-1],
            "coverage_90": coverage(prediction, curve.loss),
        }
    if not runs:
        return {"runs": {}}
    means = {
        key: np.mean([metrics[key] for metrics in runs.values()])
        for key in ("mae", "rmse", "r2", "worst_relative_error", "coverage_90")
    }
    finals = [abs(runs[c.run_id.split("/", 1)[1]]["final_error"]) for c in held_out if _decays(c)]
    return {**means, "final_loss_error": np.mean(finals) if finals else None, "runs": runs}


def _decays(curve: LossCurve) -> bool:
    return curve.schedule.end_lr < curve.schedule.peak_lr


def _shared(curves: dict[str, list[LossCurve]], sizes: list[str]) -> dict[str, Any]:
    """The default law with one kernel for all sizes."""
    law = DEFAULT_LAW()
    entry, _ = _score(law, curves["fit"], [])
    return {
        size: {**entry, **_errors(law, [c for c in curves["predict"] if c.model == size])} for size in sizes
    }


def _optimum(law: ScheduleLaw, fit: list[LossCurve], size: str) -> dict[str, Any]:
    """The best free schedule, at the peak LR of the data and not below the lowest LR that the law has seen."""
    budget = Budget(
        tokens=OPTIMUM_STEPS * STEP_TOKENS,
        peak_lr=max(curve.schedule.peak_lr for curve in fit),
        warmup_tokens=OPTIMUM_WARMUP * STEP_TOKENS,
        floor_lr=min(curve.schedule.end_lr for curve in fit),
        model=size,
    )
    best = best_curve(law, budget)
    steps = np.linspace(OPTIMUM_WARMUP, OPTIMUM_STEPS, 40).round()
    return {
        "seconds": best.seconds,
        "predicted_final_loss": best.loss.mean[0],
        "lower": best.loss.lower[0],
        "upper": best.loss.upper[0],
        "gain_over_cosine": best.gain_over_cosine.mean[0],
        "gain_over_wsd20": best.gain_over_wsd20.mean[0],
        "floor_lr": budget.floor_lr,
        "step": steps,
        "lr": best.schedule.lr(steps * STEP_TOKENS),
    }


def _draw(path: Path, curves: dict[str, list[LossCurve]], sizes: list[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 4), squeeze=False)
    for axis, size in zip(axes[0], sizes):
        law = DEFAULT_LAW().fit([c for c in curves["fit"] if c.model == size])
        for curve in (c for c in curves["predict"] if c.model == size):
            line = axis.plot(
                curve.tokens / STEP_TOKENS, curve.loss, lw=1, label=curve.run_id.split("/", 1)[1]
            )
            axis.plot(curve.tokens / STEP_TOKENS, law.predict([curve]), "--", lw=1, color=line[0].get_color())
        axis.set(title=f"{size}: solid observed, dashed predicted", xlabel="step", ylabel="loss (nats/token)")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
