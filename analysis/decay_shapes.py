"""What does the decay law know of a shape of the decay that no fitted run has?

    python analysis/decay_shapes.py --data DIR --json OUT

Reads the format of the lr_scheduling or the multipowerlaw records. Runs that leave a constant LR are decays from a
checkpoint on that LR's course: by each model and peak LR a law of one domain is fitted to all decays but those of one
shape, which it then predicts. A decay that is broken off early counts as a decay to the LR that it has there, where
its shape is one that can be broken off (linear, exponential, constant). Of lr_scheduling the ``fit`` rows are taken, of
multipowerlaw all, since only steps are to be fitted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json

from decaylaws.errors import DataError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.inputs import CONSTANT, final_losses
from decaylaws.laws.decay.shapes import HeldOutShape

DOMAIN, LEVEL = "text", 0.9
LEAST_RUNS = 4  # that the law takes
COURSE = 1500  # steps of the constant LR, through whose losses a line gives that of the checkpoint
VALIDATION_SET = 0.036  # nats by which the full validation set of lr_scheduling lies above the curves'
BROKEN_OFF = (0.25, 0.5, 0.75, 1.0)  # of a decay's length
SHAPES = {"linear": "linear", "sqrt": "1-sqrt", "wsd_linear": "linear", "wsd_exponential": "exponential",
          "two_stage_step": CONSTANT}  # fmt: skip
STEP_TOKENS = 1000  # where the records give no batch; nothing that the law predicts depends on it


def decays(folder: Path) -> pd.DataFrame:
    """A runs table of all decays in a folder of either format, with ``group`` for those that are fitted together."""
    runs, curves = read_table(folder, "runs.csv", ["total_steps"]), read_table(folder, "curves.csv", ["step"])
    rows = list((_forked if "decay_frac" in runs else _scheduled)(runs, curves))
    if not rows:
        raise DataError(
            f"{folder} holds no decays from a constant LR. Give lr_scheduling or multipowerlaw records."
        )
    return pd.DataFrame(rows)


def _forked(runs: pd.DataFrame, curves: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Decays of the lr_scheduling records: whole ones by their validation loss, parts of linear ones by their curve."""
    wanted = (runs["use"] == "fit") & (runs["scheduler"] == "wsd") & runs["decay_frac"].between(0.01, 0.65)
    for each in runs[wanted].itertuples():
        curve = curves[curves["run_id"] == each.run_id].sort_values("step")
        start = round((1 - each.decay_frac) * each.total_steps)
        before = curve[curve["step"].between(start - COURSE, start)]
        if len(before) < 3:
            continue
        for part in BROKEN_OFF if each.decay_type == "linear" else (1.0,):
            end = start + round(part * (each.total_steps - start))
            whole = each.final_val_loss - VALIDATION_SET
            loss = whole if part == 1 else float(np.interp(end, curve["step"], curve["val_loss"]))
            yield _row(
                f"{each.dataset} {each.params} {each.peak_lr:g}", each.params, each.tokens_per_step, start, end,
                (each.peak_lr, each.peak_lr, each.peak_lr * (1 - part)), SHAPES[each.decay_type],
                _level(before["step"] - start, before["val_loss"]), loss,
            )  # fmt: skip


def _scheduled(runs: pd.DataFrame, curves: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Decays of the multipowerlaw records, each also broken off early, from the curve at constant LR."""
    points = dict(list(curves.groupby(["model_size", "run"], sort=False)))
    for size, mine in runs.groupby("model_size", sort=False):
        courses = [points.get((size, name)) for name in mine.loc[mine["schedule"] == "constant", "run"]]
        known = [each for each in courses if each is not None]
        for each in mine[mine["schedule"].isin(list(SHAPES))].itertuples():
            curve, start = points.get((size, each.run)), int(each.decay_start_step)
            reaching = [one for one in known if one["step"].max() >= start]
            if curve is None or not reaching:
                continue
            near = reaching[0][reaching[0]["step"].between(start - COURSE, start + COURSE)]
            shape, fall = SHAPES[each.schedule], each.end_lr / each.peak_lr
            for part in BROKEN_OFF:
                end = start + int(part * (each.total_steps - start))
                around = curve.loc[curve["step"].between(end - 200, end + 200), "loss"]
                if around.empty:
                    continue
                reached = {"linear": 1 + (fall - 1) * part, "exponential": fall**part, "constant": fall}[
                    shape
                ]
                lrs = (fall if shape == CONSTANT else 1.0, reached)
                yield _row(
                    str(size), float(str(size).rstrip("M")) * 1e6, STEP_TOKENS, start, end,
                    (each.peak_lr, *(each.peak_lr * lr for lr in lrs)), shape,
                    _level(near["step"] - start, near["loss"]), float(around.mean()),
                )  # fmt: skip


def _level(steps: pd.Series, losses: pd.Series) -> float:
    """Where a line through the losses of a course is at step 0."""
    return float(np.polyval(np.polyfit(steps, losses, 1), 0.0))


def _row(
    group: str, params: float, batch: float, start: int, end: int, lrs: tuple[float, float, float], shape: str,
    start_loss: float, loss: float,
) -> dict[str, Any]:  # fmt: skip
    """One decay; ``lrs`` are those at the hand-over, after it and at the end."""
    return {
        "group": group, "kind": "decay", "role": "simplex", "non_embedding_params": params, "decay_shape": shape,
        "start_tokens": start * batch, "decay_tokens": (end - start) * batch, "batch_tokens": batch,
        "handover_lr": lrs[0], "start_lr": lrs[1], "end_lr": lrs[2], f"mix:{DOMAIN}": 1.0,
        f"start_loss:{DOMAIN}": start_loss, f"loss:{DOMAIN}": loss,
    }  # fmt: skip


def questions(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Errors on the decays of each shape, predicted from the others of their model and peak LR, nats per token."""
    found = []
    for group, rows in runs.groupby("group", sort=False):
        for shape in dict.fromkeys(rows["decay_shape"]):
            test = (rows["decay_shape"] == shape).to_numpy()
            if (~test).sum() < LEAST_RUNS:
                continue
            law = DecayLaw({DOMAIN: 1.0}, num_draws=0, num_folds=5).fit(rows[~test])
            asked, observed = law.predict(rows[test], interval=LEVEL), final_losses(rows[test], [DOMAIN])
            gain = law.annealing_gain(law.inputs(rows[test]))
            held = (asked.lower <= observed) & (observed <= asked.upper)
            found.append(
                {"group": group, "fitted_runs": int((~test).sum()), "coverage_90": float(held.mean()),
                 **vars(HeldOutShape.of(shape, asked.mean - observed, gain))}
            )  # fmt: skip
    return found


def main() -> None:
    given = parse_args(__doc__.splitlines()[0])
    found = questions(decays(given.data))
    falling = [each["share"] for each in found if each["shape"] != CONSTANT]
    usual = float(np.sqrt(np.mean(np.square(falling)))) if falling else None
    write_json(given.json, {"questions": found, "usual_share": usual})
    for each in found:
        print(
            f"{each['group']:28s} without {each['shape']:12s} {each['fitted_runs']:3d} fitted, {each['num_runs']:3d} "
            f"predicted  error {each['mae']:.4f} (bias {each['bias']:+.4f}), {100 * each['share']:+.1f} % of the gain, "
            f"intervals hold {100 * each['coverage_90']:.0f} %"
        )


if __name__ == "__main__":
    run(main)
