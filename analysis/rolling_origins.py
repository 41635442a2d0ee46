"""Every record with several sizes or lengths: the default law beside copying the nearest run, by rolling origin.

    python analysis/rolling_origins.py --data DIR --json OUT [--only NAME ...] [--table MD]

DIR is a folder of record folders, or one of them; a folder is known by its tables' columns. All its rows with a loss
are used, whatever their ``use``: an origin fits the rows up to one size, length or compute, and predicts each later
step. Nothing is chosen by what is predicted: a law chooses inside the rows that it is fitted on.

For each record: ``origins`` (one row per law, axis, last fitted and reached value), ``mean`` by law (every origin
counts once; only origins that all laws could be fitted on), ``worse_than`` (baselines that err less than the default)
and ``coverage_90`` of the default's intervals over all rows beyond their fit. ``copy_nearest`` copies the nearest
fitted run, ``without_mixture`` is the law without shares; where records hold no mixture, a published form stands
beside the default. ``--table`` writes the coverage as the table in docs/concepts/laws.md. With ``--only``, records that
stand in OUT already and are not asked for stay.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import continued_pretraining
import decay_grid
import joint_law
import midtraining
import numpy as np
import pandas as pd
import size_token_law
from _common import run, write_json
from _records import read_schedule_curves

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.io.json import load_json
from decaylaws.io.tables import read_csv
from decaylaws.laws.annealing import DEFAULT_LAW, LossCurve
from decaylaws.laws.continued.joint import JointLaw
from decaylaws.laws.continued.replay import ReplayLaw
from decaylaws.laws.kit.law import Law, Prediction
from decaylaws.laws.kit.nearest import NEAREST, CopyNearest
from decaylaws.laws.kit.report import NotIdentifiedWarning
from decaylaws.laws.kit.rolling import BoolArray, Predict, origin_errors, rolled, rolling_origins
from decaylaws.laws.scaling import (
    Chinchilla,
    DataConstrained,
    DecayGain,
    MidtrainingLaw,
    OverfittingPenalty,
    Skaling,
)

LEVEL = 0.9
MOST = 4  # fits of an axis
MANY_TARGETS = 10  # with more, the forms behind the default are not scored one by one
WITHOUT_MIXTURE = "without_mixture"
HONEST = (0.845, 0.955)  # what 90 % intervals should hold, as rounded figures
FEW = 30  # runs: all of them are held in one of 24 draws where intervals hold 90 %


@dataclass(frozen=True)
class Record:
    """One set of runs, what is predicted, and who predicts it.

    Attributes:
        name: of the folder's kind, and of a part of it.
        axes: what grows, by row [n].
        observed: losses [n] or [n, d].
        default: the default law.
        rivals: baselines and other laws by name; ``copy_nearest`` among them.
        names: of the losses [d].
    """

    name: str
    axes: Mapping[str, Any]
    observed: np.ndarray
    default: Predict
    rivals: Mapping[str, Predict]
    names: list[str] = field(default_factory=lambda: [""])


def by_law(make: Callable[[], Law], table: pd.DataFrame, losses: Any) -> Predict:
    """Fit a law to a table's rows and predict others."""

    def predict(fitted: BoolArray, asked: BoolArray) -> np.ndarray | Prediction:
        law = make().fit(table[fitted], losses[fitted])
        found: np.ndarray | Prediction = law.predict(table[asked], interval=LEVEL)
        return found

    return predict


def main() -> None:
    """Score every record that DIR holds."""
    parser = argparse.ArgumentParser(
        description="Rolling origins of the default laws and of copying the nearest run"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of records, or of such folders")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--only", nargs="*", help="names of records, or the beginnings of names")
    parser.add_argument("--table", type=Path, help="where the table of coverage goes, as Markdown")
    given = parser.parse_args()
    warnings.simplefilter("ignore", NotIdentifiedWarning)  # errors by origin say it in figures
    results: dict[str, Any] = {}
    if given.only and given.json.is_file():
        results = load_json(given.json.read_bytes(), given.json)
    for folder in [given.data, *sorted(path for path in given.data.glob("*") if path.is_dir())]:
        for record in records_of(folder):
            if given.only and not any(record.name.startswith(name) for name in given.only):
                continue
            results[record.name] = scored(record)
            print(line(record.name, results[record.name]), flush=True)
    if not results:
        raise DataError(f"{given.data} holds no records with several sizes or lengths.")
    write_json(given.json, results)
    if given.table:
        given.table.write_text(coverage_table(results), encoding="utf-8")


def records_of(folder: Path) -> list[Record]:
    """What a folder holds, read by the script of its own format."""
    found: list[Record] = []
    for reader in READERS:
        found += reader(folder)
    return found


def scored(record: Record) -> dict[str, Any]:
    """Errors of the default and its rivals on the same origins."""
    began = time.process_time()
    origins = rolling_origins(record.axes, least_rows=3, most=MOST)
    tables = {
        name: rolled(origins, predict, record.observed, names=record.names)
        for name, predict in {"default": record.default, **record.rivals}.items()
    }
    by_origin = {name: origin_errors(table) for name, table in tables.items()}
    usable = np.all([errors["error"].notna() for errors in by_origin.values()], axis=0)
    mean = {name: float(errors.loc[usable, "error"].mean()) for name, errors in by_origin.items()}
    default = tables["default"]
    inside = default["observed"].between(default["lower"], default["upper"])[default["lower"].notna()]
    axes = by_origin["default"]["axis"]
    return {
        "mean": mean,
        "by_axis": {
            axis: {
                name: float(errors.loc[usable & (axes == axis), "error"].mean())
                for name, errors in by_origin.items()
            }
            for axis in dict.fromkeys(axes[usable])
        },
        "worse_than": [
            name for name in (NEAREST, WITHOUT_MIXTURE) if name in mean and mean["default"] > mean[name]
        ],
        "coverage_90": float(inside.mean()) if len(inside) else None,
        "bias": float(by_origin["default"].loc[usable, "bias"].mean()),
        "num_origins": int(usable.sum()),
        "num_without_fit": int((~usable).sum()),
        "notes": sorted({str(note) for table in tables.values() for note in table["note"] if note}),
        "origins": [
            {"law": name, **row}
            for name, errors in by_origin.items()
            for row in errors[usable].to_dict("records")
        ],
        "cpu_seconds": time.process_time() - began,
    }


def line(name: str, result: Mapping[str, Any]) -> str:
    """One record in one line."""
    errors = ", ".join(f"{law} {100 * value:.2f} %" for law, value in result["mean"].items())
    held = "-" if result["coverage_90"] is None else f"{100 * result['coverage_90']:.0f} %"
    worse = f"; WORSE than {', '.join(result['worse_than'])}" if result["worse_than"] else ""
    return (
        f"{name:26s} {result['num_origins']:3d} origins  {errors}; bias {100 * result['bias']:+.2f} %, intervals hold "
        f"{held}, {result['cpu_seconds']:.0f} s{worse}"
    )


def coverage_table(results: Mapping[str, Any]) -> str:
    """Which records' intervals hold what they should outside the fitted range, as Markdown."""
    rows = ["| records | origins | runs beyond the fit | 90 % intervals held | |", "|---|---|---|---|---|"]
    for name, result in sorted(results.items()):
        held = result["coverage_90"]
        if held is None:
            continue
        verdict = "too narrow" if held < HONEST[0] else "too wide" if held > HONEST[1] else "as they should"
        runs = sum(row["num_rows"] for row in result["origins"] if row["law"] == "default")
        few = ", but so few runs cannot tell" if verdict != "as they should" and runs < FEW else ""
        rows.append(f"| {name} | {result['num_origins']} | {runs} | {100 * held:.0f} % | {verdict}{few} |")
    return "\n".join(rows) + "\n"


def size_token_records(folder: Path) -> list[Record]:
    """Size-and-token formats of ``size_token_law.py``."""
    found = []
    for form, raw in size_token_law.recognised(folder):
        table = form.read(raw.assign(use="fit")).reset_index(drop=True)
        repeats = "unique_tokens" in table and bool((table["unique_tokens"] < 0.999 * table["tokens"]).any())
        if form.name.endswith("_240"):
            continue  # the same points once more
        losses = table["loss"].to_numpy(dtype=float)
        table = table[[name for name in ("params", "tokens", "unique_tokens", "run") if name in table]]
        kind: type = OverfittingPenalty if repeats else Skaling
        scale = ("params", "tokens", "unique_tokens") if repeats else ("params", "tokens")
        found.append(
            Record(
                form.name,
                {"size": table["params"], "tokens": table["tokens"]},
                losses,
                by_law(lambda kind=kind: kind(prior=True), table, losses),  # type: ignore[misc]
                {
                    NEAREST: by_law(lambda scale=scale: CopyNearest(scale), table, losses),  # type: ignore[misc]
                    "chinchilla": by_law(lambda: Chinchilla(prior=True), table, losses),
                    **(
                        {"muennighoff": by_law(lambda: DataConstrained(prior=True), table, losses)}
                        if repeats
                        else {}
                    ),
                },
            )
        )
    return found


def gain_records(folder: Path) -> list[Record]:
    """Gains of decays; the undecayed curves that a fit sees end with its rows."""
    path = folder / "cooldown_pairs.csv"
    if not path.is_file():
        return []
    pairs = read_csv(path)
    points = read_csv(folder / "points.csv") if (folder / "points.csv").is_file() else None
    gains = pairs["gain"].to_numpy(dtype=float)

    def default(fitted: BoolArray, asked: BoolArray) -> Prediction:
        rows, curves = pairs[fitted], None
        if points is not None:
            seen = (points["phase"] == "hot") & (points["params"] <= rows["params"].max())
            hot = points[seen & (points["tokens"] <= rows["tokens_end"].max())]
            curves = hot.rename(columns={"model": "run", "val_loss": "loss"})
        found: Prediction = DecayGain().fit(rows, curves=curves).predict(pairs[asked], interval=LEVEL)
        return found

    copied = by_law(lambda: CopyNearest(("params", "tokens_begin")), pairs[["params", "tokens_begin"]], gains)
    axes = {"size": pairs["params"], "tokens": pairs["tokens_begin"]}
    return [Record("gemstones_gain", axes, gains, default, {NEAREST: copied})]


def joint_records(folder: Path) -> list[Record]:
    """Mixtures at several sizes and lengths."""
    try:
        rows, targets, _ = joint_law.read_records(folder)
    except DecaylawsError:
        return []
    targets = [name for name in targets if name not in joint_law.EXCLUDED_FROM_MEAN]
    table = rows[["params", "tokens", *joint_law.shares_of(rows)]].reset_index(drop=True)
    losses = rows[targets].reset_index(drop=True)
    if table["tokens"].nunique() < 3 and table["params"].nunique() < 3:
        return []
    return [
        Record(
            "dmsl" if (folder / "runs.csv").is_file() else "redpajama",
            {"size": table["params"], "tokens": table["tokens"]},
            losses.to_numpy(dtype=float),
            by_law(JointLaw, table, losses),
            {
                NEAREST: by_law(CopyNearest, table, losses),
                WITHOUT_MIXTURE: by_law(lambda: JointLaw("chinchilla"), table, losses),
                **{
                    form: by_law(lambda form=form: JointLaw(form), table, losses)  # type: ignore[misc]
                    for form in joint_law.FORMS
                    if form != "chinchilla" and len(targets) <= MANY_TARGETS
                },
            },
            targets,
        )
    ]


def midtraining_records(folder: Path) -> list[Record]:
    """Decays of several checkpoints at fixed lengths."""
    if not (folder / "runs.csv").is_file() or not midtraining.holds_midtraining(folder / "runs.csv"):
        return []
    rows = read_csv(folder / "runs.csv")
    rows = rows[rows["series"].astype(str).str.startswith(midtraining.FIXED_LENGTH)].reset_index(drop=True)
    table, losses = (
        rows[["params", "pretrain_tokens", "decay_tokens"]],
        rows["math_val_loss"].to_numpy(dtype=float),
    )
    compute = 6.0 * table["params"].astype(float) * table["pretrain_tokens"]
    rivals = {name: by_law(make, table, losses) for name, make in midtraining.RIVALS.items()}
    axes = {"compute": compute, "tokens": table["decay_tokens"]}
    return [Record("marin_delphi", axes, losses, by_law(MidtrainingLaw, table, losses), rivals)]


def replay_records(folder: Path) -> list[Record]:
    """Continued pre-training with a replay share: steps are the only axis with three values."""
    if not (folder / "continued_pretraining.csv").is_file():
        return []
    rows, _ = continued_pretraining.read_rows(folder)
    weight = continued_pretraining.read_weights(folder)
    rows = rows[rows["loss"].notna()]
    rows, _, _ = continued_pretraining.split(rows.assign(use="fit"), weight)
    rows = rows.reset_index(drop=True)
    losses = rows["loss"].to_numpy(dtype=float)

    def law(fitted: BoolArray, asked: BoolArray) -> Prediction:
        found: Prediction = continued_pretraining.fitted(
            "log_share", "own_tokens", rows[fitted], weight
        ).predict(rows[asked], interval=LEVEL)
        return found

    def without(fitted: BoolArray, asked: BoolArray) -> Any:
        """The same forms with one share for all rows."""
        flat = rows.assign(share=0.5)
        return (
            ReplayLaw([continued_pretraining.TARGET], weights=weight).fit(flat[fitted]).predict(flat[asked])
        )

    def copied(fitted: BoolArray, asked: BoolArray) -> Any:
        found = np.empty(int(asked.sum()))
        domains = rows["domain"].to_numpy()
        for domain in np.unique(domains):
            here = domains == domain
            table = rows[["share", "steps"]].assign(w_new=1 - rows["share"])
            law = CopyNearest(("steps",)).fit(table[fitted & here], losses[fitted & here])
            found[here[asked]] = law.predict(table[asked & here])
        return found

    return [
        Record("replay", {"steps": rows["steps"]}, losses, law, {NEAREST: copied, WITHOUT_MIXTURE: without})
    ]


def schedule_records(folder: Path) -> list[Record]:
    """Loss curves, one record for each model size and one over the sizes: the last loss of every curve is asked for."""
    try:
        read = read_schedule_curves(folder)
    except DecaylawsError:
        return []
    curves = [curve for each in read.values() for curve in each]
    models = list(dict.fromkeys(curve.model for curve in curves))
    found = [
        curve_record(f"curves_{model}", [curve for curve in curves if curve.model == model], "tokens")
        for model in models
    ]
    if len(models) > 1 and all(curve.params for curve in curves):
        found.append(curve_record("curves_of_sizes", curves, "size"))
    return found


def grid_records(folder: Path) -> list[Record]:
    """Decay fraction, peak LR and length; each data set is a record."""
    try:
        runs = decay_grid.read_table(folder, "runs.csv", decay_grid.RUN_COLUMNS, decay_grid.LABELS)
        points = decay_grid.read_table(
            folder, "curves.csv", ["run_id", "step", "val_loss"], decay_grid.LABELS
        )
    except DecaylawsError:
        return []
    runs, _ = decay_grid._known(runs)
    by_run = dict(list(points.groupby("run_id", sort=False)))
    found = []
    for dataset, rows in runs.groupby("dataset", sort=False):
        if rows["total_steps"].nunique() >= 3 or rows["params"].nunique() >= 3:
            found.append(grid_record(f"decay_grid_{dataset}", list(rows.itertuples()), by_run))
    return found


def grid_record(name: str, rows: list[Any], points: dict[Any, pd.DataFrame]) -> Record:
    """Final losses of one data set by ``decay_grid.py``'s own fit and intervals."""
    table = pd.DataFrame(
        {
            "params": [float(row.params) for row in rows],
            "tokens": [float(row.total_steps) * row.tokens_per_step for row in rows],
            "peak_lr": [float(row.peak_lr) for row in rows],
            "end": [max(float(decay_grid._schedule(row).end_lr), 1e-9) for row in rows],
        }
    )
    losses = np.array([float(row.final_val_loss) for row in rows])

    def law(fitted: BoolArray, asked: BoolArray) -> Prediction:
        dataset = rows[0].dataset
        laws = {dataset: decay_grid._fit(pd.DataFrame([rows[i] for i in np.flatnonzero(fitted)]), points)}
        found = [decay_grid._predict(rows[i], laws, dataset) for i in np.flatnonzero(asked)]
        return Prediction(
            *(np.array([each[key] for each in found]) for key in ("predicted", "lower", "upper")), LEVEL
        )

    copied = by_law(lambda: CopyNearest(("params", "tokens"), ("peak_lr", "end")), table, losses)
    return Record(name, {"size": table["params"], "tokens": table["tokens"]}, losses, law, {NEAREST: copied})


def curve_record(name: str, curves: list[LossCurve], axis: str) -> Record:
    """The last loss of every curve, by the default law of curves."""
    table = pd.DataFrame(
        {
            "size": [float(curve.params or 1.0) for curve in curves],
            "tokens": [float(curve.tokens[-1]) for curve in curves],
            "end": [float(curve.schedule.end_lr) for curve in curves],
            "peak": [float(curve.schedule.peak_lr) for curve in curves],
        }
    )
    losses = np.array([float(curve.observed[-1]) for curve in curves])
    ends = [replace(curve, tokens=curve.tokens[-1:], loss=curve.observed[-1:]) for curve in curves]

    def law(fitted: BoolArray, asked: BoolArray) -> Prediction:
        seen = DEFAULT_LAW().fit([curves[i] for i in np.flatnonzero(fitted)])
        found: Prediction = seen.predict([ends[i] for i in np.flatnonzero(asked)], interval=LEVEL)
        return found

    copied = by_law(lambda: CopyNearest(("size", "tokens"), ("peak", "end")), table, losses)
    return Record(name, {axis: table[axis]}, losses, law, {NEAREST: copied})


READERS: tuple[Callable[[Path], list[Record]], ...] = (
    size_token_records, gain_records, joint_records, midtraining_records, replay_records, schedule_records,
    grid_records,
)  # fmt: skip


if __name__ == "__main__":
    run(main)
