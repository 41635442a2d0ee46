"""Continued pre-training with replay: losses at unseen replay shares, and the share that prevents forgetting.

    python analysis/continued_pretraining.py --data DIR --json OUT

``DIR`` holds ``continued_pretraining.csv`` (``run_tag``, ``step``, ``val_domain``, ``loss``, ``replay_share``,
``use``, perhaps ``model_size``) and ``valid_weights.csv``. Rows with ``use == "fit"`` are fitted, at the size with most
of them; where there are no others, only the fit's own error and the critical share are reported. The law knows no
size: errors at other sizes stand in ``by_size`` too. Rows without a finite loss and copies of rows are left out and
counted, domains without a weight or without a row to fit are left out by name; shares and steps beyond the fit's
stand in ``outside_fit``. The critical share is null where an old domain is missing (``missing_old_domains``): the
checkpoint's general loss is that of all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, without_copies, write_json

from decaylaws.errors import DataError
from decaylaws.io.tables import require_filled, with_numbers
from decaylaws.laws.continued.replay import ReplayLaw
from decaylaws.laws.kit.draws import coverage

TARGET = "python"
BASE = {"general": 2.8734, TARGET: 1.8381}  # losses before continued pre-training (README of the records)
ALTERNATIVES = {"d_cpt": ("d_cpt", "d_cpt"), "bimix": ("bimix", "bimix"), "log_share": ("log_share", "log_share"),
                "own_tokens": ("own_tokens", "own_tokens")}  # fmt: skip


def main() -> None:
    given = parse_args(__doc__ or "")
    rows, copies = read_rows(given.data)
    weight = read_weights(given.data)
    measured = rows["loss"].notna()
    unmeasured, rows = int((~measured).sum()), rows[measured]
    fit, predict, excluded = split(rows, weight)
    law = fitted("log_share", "own_tokens", fit, weight)
    missing = unfitted(fit, weight)
    share = None if missing else law.critical_share(float(fit["steps"].max()), BASE["general"])
    report = {"critical_replay_share": share, **errors(law, predict, weight), "fit": errors(law, fit, weight)}
    report["alternatives"] = {
        name: errors(fitted(*forms, fit, weight), predict, weight) for name, forms in ALTERNATIVES.items()
    }
    report["predictions"] = predictions(law, predict)
    report["missing_old_domains"] = missing
    report["fit_size"] = str(fit["model_size"].iloc[0])
    report["base_losses"] = BASE
    report["rows_without_loss"], report["excluded_domains"] = unmeasured, excluded
    report["copied_rows"] = copies
    report["outside_fit"] = {column: outside(fit[column], predict[column]) for column in ("share", "steps")}
    write_json(given.json, report)
    critical = f"{share:.3f}" if share is not None else f"not known without {', '.join(missing)}"
    print(f"critical replay share {critical}; mean absolute error on unseen rows {report['weighted_mae']}")


def read_rows(folder: Path) -> tuple[pd.DataFrame, int]:
    """The losses, one by size, domain, share and steps, and how many copies of others there were."""
    path = folder / "continued_pretraining.csv"
    columns = ["step", "val_domain", "loss", "replay_share", "use"]
    rows, copies = without_copies(read_table(folder, path.name, columns))
    require_filled(rows, ["val_domain"], path)
    rows = with_numbers(rows, ["step"], path)
    rows = with_numbers(rows, ["replay_share"], path, upper=1.0)
    rows = with_numbers(rows, ["loss"], path, positive=True, empty=True)
    rows["model_size"] = rows["model_size"].fillna("unnamed") if "model_size" in rows else "unnamed"
    return rows.rename(columns={"replay_share": "share", "step": "steps", "val_domain": "domain"}), copies


def read_weights(folder: Path) -> dict[str, float]:
    """Weight of each old domain in the general loss."""
    path = folder / "valid_weights.csv"
    table, _ = without_copies(read_table(folder, path.name, ["val_domain", "valid_weight"]))
    table = with_numbers(table, ["valid_weight"], path, empty=True)
    twice = table["val_domain"].duplicated()
    if twice.any():
        raise DataError(
            f"{path} weighs {table.loc[twice, 'val_domain'].iloc[0]} twice. Keep one of the rows."
        )
    return dict(zip(table["val_domain"], table["valid_weight"]))


def unfitted(fit: pd.DataFrame, weight: dict[str, float]) -> list[str]:
    """Weighed domains that no row to fit holds: without them the mean is another than the checkpoint's known one."""
    return sorted(name for name, value in weight.items() if value > 0 and name not in set(fit["domain"]))


def outside(fit: pd.Series, predict: pd.Series) -> list[float]:
    """Values to predict that lie beyond those of the fit: what is said there is extrapolated."""
    return sorted(set(predict[(predict < fit.min()) | (predict > fit.max())].tolist()))


def split(rows: pd.DataFrame, weight: dict[str, float]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Rows to fit, rows to predict, and the domains that are left out with the reason."""
    known = [*(name for name, value in weight.items() if value > 0), TARGET]
    fit = rows[(rows["use"] == "fit") & rows["domain"].isin(known)]
    fit = fit[fit["model_size"] == fit["model_size"].mode().iloc[0]] if len(fit) else fit
    for name, present in ((TARGET, fit["domain"] == TARGET), ("an old domain", fit["domain"] != TARGET)):
        if not present.any():
            held = f"They hold {', '.join(sorted(set(fit['domain']))) or 'no domain'} of those in valid_weights.csv."
            raise DataError(f"No row with use = fit and a loss is one of {name}. {held}")
    excluded = {
        str(name): "no row to fit" if name in known else "no positive valid_weight"
        for name in sorted(set(rows["domain"]) - set(fit["domain"]))
    }
    return fit, rows[(rows["use"] != "fit") & ~rows["domain"].isin(list(excluded))], excluded


def fitted(old_form: str, new_form: str, fit: pd.DataFrame, weight: dict[str, float]) -> ReplayLaw:
    law = ReplayLaw([TARGET], old_form, new_form, base_losses=BASE, weights=weight)
    return law.fit(fit, fit["loss"])


def errors(law: ReplayLaw, rows: pd.DataFrame, weight: dict[str, float]) -> dict[str, Any]:
    """Mean absolute errors by domain and share; the general domain is the weighted mean loss."""
    if rows.empty:
        return {"mae": {}, "weighted_mae": None, "by_share": {}, "by_size": {}}
    found = law.predict(rows, interval=0.9)
    off = rows.assign(predicted=found.mean)
    off = pd.concat([off, general(off, weight)], ignore_index=True)
    off["error"] = (off["predicted"] - off["loss"]).abs()
    by_domain = off.groupby("domain")["error"].mean().to_dict()
    old = [name for name in by_domain if name in weight]
    weights = [weight[name] for name in old]
    errors_of_old = [by_domain[name] for name in old]
    return {
        "mae": by_domain,
        "coverage_90": coverage(found, rows["loss"]),
        "half_width_90": float((found.upper - found.mean).mean()),
        "weighted_mae": float(np.average(errors_of_old, weights=weights)) if old else None,
        "by_share": errors_by(off, "share"),
        "by_size": errors_by(off, "model_size"),
    }


def errors_by(off: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Mean absolute error by domain for each value of ``column``."""
    groups = off.groupby(column, sort=True)
    return {str(value): part.groupby("domain")["error"].mean().to_dict() for value, part in groups}


def general(rows: pd.DataFrame, weight: dict[str, float]) -> pd.DataFrame:
    """Weighted mean over the old domains of every size, share and step, predicted by the law of the mean's parts."""
    old = rows[rows["domain"].isin(list(weight))]
    parts = old.assign(weight=old["domain"].map(weight))
    for column in ("loss", "predicted"):
        parts[column] *= parts["weight"]
    sums = parts.groupby(["model_size", "share", "steps"], as_index=False)[
        ["loss", "predicted", "weight"]
    ].sum()
    sums[["loss", "predicted"]] = sums[["loss", "predicted"]].div(sums["weight"], axis=0)
    return sums.assign(domain="general")


def predictions(law: ReplayLaw, rows: pd.DataFrame) -> list[dict[str, Any]]:
    if rows.empty:
        return []
    found = law.predict(rows, interval=0.9)
    shown = rows[["model_size", "share", "steps", "domain"]].assign(
        predicted=found.mean, lower=found.lower, upper=found.upper, observed=rows["loss"]
    )
    return shown.to_dict("records")


if __name__ == "__main__":
    run(main)
