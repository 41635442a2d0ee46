"""Do 90 % intervals of the default mixture regression hold where mixtures leave the range of the fitted ones?

    python analysis/mixture_reach.py --data DIR --json OUT [--table MD] [--only NAME ...]
    python analysis/mixture_reach.py --worlds FIRST LAST --json OUT [--table MD]

Rolling origins along the mixture. Runs are ordered by their distance from the mean of all. The inner half is fitted
and asked about the next quarter and about the outermost one; then the inner three quarters about the outermost
quarter. Only runs outside the range of the fitted shares (or farther from their mean than any) are counted.

``DIR`` is a folder of records, or of such folders, in the formats of ``mixture_regression.py``, ``two_phase.py`` and
``joint_law.py`` (there the longest runs of each size). Rows with ``use == "fit"`` are taken, and of large records the
first 64, 128 and 256 rows and up to eight targets. ``--worlds`` takes planted worlds (``_foreign_worlds.py``) of these
seeds instead, which are also asked about mixtures between a run and a single source.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joint_law
import mixture_regression
import numpy as np
import pandas as pd
import two_phase
from _common import run, write_json
from _foreign_worlds import KINDS, World, world

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import BlendedRegression

LEVEL = 0.9
COUNTS = (64, 128, 256)  # rows of a large record that are taken
MOST_TARGETS = 8
FEWEST_RUNS = 16  # of which half can be fitted
ASKED_OF_WORLD = 200


@dataclass(frozen=True)
class Runs:
    """Mixtures and their losses.

    Attributes:
        name: of the record.
        shares: [n, sources].
        losses: [n, targets]; NaN where one was not measured.
        planted: the world that they were drawn from, if one was planted.
    """

    name: str
    shares: Array
    losses: Array
    planted: World | None = None


def main() -> None:
    """Score what was asked for and print a line for each question."""
    parser = argparse.ArgumentParser(
        description="Intervals of mixture regressions outside the fitted mixtures"
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, help="folder of records, or of such folders")
    given.add_argument(
        "--worlds", type=int, nargs=2, metavar=("FIRST", "LAST"), help="seeds of planted worlds"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--table", type=Path, help="where the table goes, as Markdown")
    parser.add_argument("--only", nargs="*", help="beginnings of names of records or kinds of worlds")
    asked = parser.parse_args()
    records = worlds(*asked.worlds) if asked.worlds else records_of(asked.data)
    rows: list[dict[str, Any]] = []
    for record in records:
        if not asked.only or any(record.name.startswith(name) for name in asked.only):
            rows += scored(record)
            print(f"{record.name}: {len(record.shares)} runs", flush=True)
    if not rows:
        raise DataError("Nothing there has enough mixtures.")
    found = summary(pd.DataFrame(rows))
    write_json(asked.json, {"questions": found.to_dict("records"), "rows": rows})
    text = markdown(found)
    print(text)
    if asked.table:
        asked.table.write_text(text, encoding="utf-8")


def records_of(data: Path) -> Iterator[Runs]:
    """The fit rows of every folder with mixtures."""
    for folder in [data] if (data / "runs.csv").is_file() else sorted(data.glob("*/")):
        for reader in (two_phase_runs, swarm_runs, joint_runs):
            try:
                found = list(reader(folder))
            except DecaylawsError:
                continue  # of another format
            if found:
                yield from found
                break


def two_phase_runs(folder: Path) -> Iterator[Runs]:
    """A scarce source in two halves of a run: a mixture of four."""
    table = two_phase.read_runs(folder)
    table = table[table["use"] == "fit"]
    yield Runs(folder.name, two_phase.as_mixture(table).to_numpy(), table[["code_bpb"]].to_numpy(dtype=float))


def swarm_runs(folder: Path) -> Iterator[Runs]:
    """Many mixtures at one size."""
    table, _ = mixture_regression.without_rare_sources(mixture_regression.load(folder))
    table = table[table["use"] == "fit"]
    table = table[table["model_size"] == table["model_size"].mode().iloc[0]]
    shares = table[[name for name in table if name.startswith(mixture_regression.SHARE)]].to_numpy(
        dtype=float
    )
    losses = table[mixture_regression.loss_columns(table)].to_numpy(dtype=float)
    for count in [each for each in COUNTS if each < len(table)] or [len(table)]:
        yield Runs(f"{folder.name}, {count} rows", shares[:count], losses[:count])
    if COUNTS[0] < len(table) < COUNTS[-1]:
        yield Runs(f"{folder.name}, {len(table)} rows", shares, losses)


def joint_runs(folder: Path) -> Iterator[Runs]:
    """Mixtures at several sizes: of each the longest runs."""
    table, targets, _ = joint_law.read_records(folder)
    table = table[table["use"] == "fit"]
    targets = [name for name in targets if name not in joint_law.EXCLUDED_FROM_MEAN]
    for size, rows in table.groupby("params"):
        longest = rows[rows["tokens"] == rows["tokens"].max()]
        if len(longest) >= FEWEST_RUNS:
            shares = longest[joint_law.shares_of(longest)].to_numpy(dtype=float)
            yield Runs(f"{folder.name}, {size / 1e6:.0f}M", shares, longest[targets].to_numpy(dtype=float))


def worlds(first: int, last: int) -> Iterator[Runs]:
    """One world of each kind for each seed."""
    for seed in range(first, last + 1):
        for kind in KINDS:
            planted = world(kind, seed)
            yield Runs(kind, planted.shares, planted.measured, planted)


def scored(record: Runs) -> list[dict[str, Any]]:
    """Of each question and target: rows outside, how many lie in their intervals, error and half width in log loss."""
    step = -(-record.losses.shape[1] // MOST_TARGETS)
    shares, losses = record.shares, record.losses[:, ::step]
    apart = np.abs(shares - shares.mean(axis=0)).sum(axis=1)
    half, most = np.quantile(apart, [0.5, 0.75])
    middle, outermost = (apart > half) & (apart <= most), apart > most
    found = []
    for part, fitted, questions in (
        ("half", apart <= half, {"next quarter": middle, "outermost": outermost}),
        ("three quarters", apart <= most, {"outermost": outermost}),
    ):
        for target in range(losses.shape[1]):
            seen = fitted & np.isfinite(losses[:, target])
            if seen.sum() < FEWEST_RUNS // 2:
                continue
            law = BlendedRegression().fit(shares[seen], losses[seen, target])
            for name, rows in questions.items():
                found.append(row_of(record.name, f"{part}, {name}", law, shares[rows], losses[rows, target]))
    if record.planted is not None:
        mixtures, truth = beyond(record.planted)
        for target in range(losses.shape[1]):
            law = BlendedRegression().fit(shares, losses[:, target])
            found.append(
                row_of(record.name, "all, towards one source", law, mixtures, truth[:, ::step][:, target])
            )
    return [each for each in found if each["asked"]]


def beyond(planted: World) -> tuple[Array, Array]:
    """Mixtures between a run and a single source, with losses as noisy as the runs'."""
    rng = np.random.default_rng([planted.seed, 77])
    sources = planted.shares.shape[1]
    alone = np.eye(sources)[rng.integers(0, sources, ASKED_OF_WORLD)]
    along = rng.uniform(0.1, 0.6, (ASKED_OF_WORLD, 1))
    mixtures = (1 - along) * planted.shares[
        rng.integers(0, len(planted.shares), ASKED_OF_WORLD)
    ] + along * alone
    losses = planted.losses(mixtures)
    return mixtures, losses + planted.noise_sd * rng.standard_normal(losses.shape)


def row_of(name: str, question: str, law: BlendedRegression, shares: Array, losses: Array) -> dict[str, Any]:
    """One law asked about mixtures [k, sources] with these losses [k], as far as they lie outside its range."""
    rows = (law.box_.outside(shares) > 0) & np.isfinite(losses)
    found = law.predict(shares[rows], interval=LEVEL, allow_unseen=True)
    truth = losses[rows]
    return {
        "record": name,
        "question": question,
        "asked": int(rows.sum()),
        "held": int(((found.lower <= truth) & (truth <= found.upper)).sum()),
        "error": float(np.abs(np.log(found.mean / truth)).sum()),
        "bias": float(np.log(found.mean / truth).sum()),
        "half_width": float(np.log(found.upper / found.mean).sum()),
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By record and question: losses asked about, share held, means of error, bias and half width in log loss."""
    found = rows.groupby(["record", "question"], sort=False).sum().reset_index()
    for name in ("held", "error", "bias", "half_width"):
        found[name] = found[name] / found["asked"]
    return found


def markdown(found: pd.DataFrame) -> str:
    """The summary as a table."""
    head = (
        "| records | fitted, asked about | losses | held | error | bias | half width |\n" + "|---" * 7 + "|\n"
    )
    rows = (
        f"| {row.record} | {row.question} | {row.asked} | {100 * row.held:.0f} % | {row.error:.4f} | "
        f"{row.bias:+.4f} | {row.half_width:.4f} |\n"
        for row in found.itertuples()
    )
    return head + "".join(rows)


if __name__ == "__main__":
    run(main)
