"""Runs that were ended on their way become rows of a fit, with the losses that their curves lead to expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from decaylaws.study.unfinished import unfinished_rows

DOMAINS = ("web", "maths")
TOKENS = np.arange(0, 1001, 100)


def study_of(count: int, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A runs table and its curves: decays of one kind on mixtures of their own."""
    rng = np.random.default_rng(seed)
    rows, points = [], []
    for number in range(count):
        share, run_id = rng.uniform(), f"run{number}"
        row: dict[str, Any] = {
            "run_id": run_id, "kind": "decay", "status": "finished", "reached_target": True, "start_run_id": "trunk",
            "start_tokens": 5000, "decay_tokens": 1000, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear",
            "batch_tokens": 100, "non_embedding_params": 1000, "warmup_tokens": np.nan, "mix:maths": share,
        }  # fmt: skip
        for domain, weight in zip(DOMAINS, (1 - share, share)):
            done = TOKENS / 1000
            losses = (
                3 - 0.6 * weight * (1 - np.exp(-3 * done)) - 0.1 * done**2 + rng.normal(0, 0.003, len(done))
            )
            row[f"loss:{domain}"] = losses[-1]
            points += [
                {"run_id": run_id, "domain": domain, "tokens": at, "loss": loss}
                for at, loss in zip(TOKENS, losses)
            ]
        rows.append(row)
    return pd.DataFrame(rows), pd.DataFrame(points)


def ended(runs: pd.DataFrame, curves: pd.DataFrame, status: str, names: list[str]) -> tuple[Any, ...]:
    """These runs without their second half, and what they would have reached."""
    cut = runs["run_id"].isin(names)
    truth = runs[cut].set_index("run_id")[[f"loss:{name}" for name in DOMAINS]]
    runs = runs.assign(
        status=runs["status"].where(~cut, status), reached_target=~cut,
        **{f"loss:{name}": runs[f"loss:{name}"].where(~cut) for name in DOMAINS},
    )  # fmt: skip
    return runs, curves[~curves["run_id"].isin(names) | (curves["tokens"] <= 500)], truth


def test_expected_losses_and_their_errors() -> None:
    names = [f"run{number}" for number in range(12)]
    runs, curves, truth = ended(*study_of(24), "pruned", names)
    found = unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).set_index("run_id")
    assert list(found.index) == names
    errors = found[truth.columns] - truth
    assert np.abs(errors).to_numpy().mean() < 0.01  # the losses of the finished runs lie .1 apart
    said = found[[f"loss_error:{name}" for name in DOMAINS]].to_numpy()
    assert (said > 0).all()
    assert 0.5 < np.sqrt(np.mean(errors.to_numpy() ** 2)) / np.sqrt(np.mean(said**2)) < 1.5


def test_only_runs_that_were_ended_count_and_only_beside_enough_others() -> None:
    runs, curves, _ = ended(*study_of(24), "diverged", ["run0"])
    assert unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).empty
    runs, curves, _ = ended(*study_of(5), "interrupted", ["run0"])
    assert unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS).empty
    runs, curves, _ = ended(*study_of(6), "interrupted", ["run0"])
    assert len(unfinished_rows(runs, runs[runs["reached_target"]], curves, DOMAINS)) == 1
    of_web = curves[(curves["run_id"] != "run0") | (curves["domain"] == "web")]
    assert unfinished_rows(runs, runs[runs["reached_target"]], of_web, DOMAINS).empty
