"""The verb ``plan``, and the tables that a sweep leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from decaylaws.designs.planner import Design
from decaylaws.errors import InvalidValueError
from decaylaws.io.files import record_content
from decaylaws.io.tables import read_csv
from decaylaws.mixtures import Mixture
from decaylaws.runs.noise import Noise
from decaylaws.runs.table import EVALUATION, curves_table, read_curves, runs_table, write_table
from decaylaws.settings.study import StudySettings
from decaylaws.study.checks import check_prepared
from decaylaws.study.directory import Study, read_json, write_json
from decaylaws.study.overlap import check_overlap
from decaylaws.study.results import decays, with_averaged_starts
from decaylaws.study.stored import StoredPlan


def plan(study: Study) -> tuple[Design, bool]:
    """Plan the sweep of a study, unless the plan that lies there answers the same settings and corpus.

    Returns:
        The design, and whether it is new.

    Raises:
        StudyError: study.yaml asks for another corpus, or a source repeats too much of the held-out text.
        DataError: a held-out part is shorter than one window.
        InfeasibleError: no mixture meets the caps at a decay of the design, or at ``target.max_decay_tokens``.
    """
    check_prepared(study)
    check_overlap(study)
    proportional_mixture(study)
    record_content(study.settings_file)
    wanted = study.plan_inputs()
    if study.plan_file.is_file():
        stored = read_json(study.plan_file, StoredPlan)
        if stored.get("inputs") == wanted:
            return study.design(), False
    design = study.planner().sweep()
    write_json(study.plan_file, {"inputs": wanted, **design.to_dict()})
    return design, True


def proportional_mixture(study: Study) -> Mixture:
    """The token-proportional mixture within the caps of ``target.max_decay_tokens``.

    Raises:
        InfeasibleError: no mixture meets the caps at that length.
    """
    space = study.planner().space
    return space.project(space.token_proportional(), study.settings.target.max_decay_tokens)


def detectable_effect(settings: StudySettings, runs: pd.DataFrame | None) -> str:
    """Smallest true difference of the objective between two microanneals that the sweep's seeds tell from noise.

    A two-sided t-test at 5 %, power 80 %, with the noise of the seed replicates: in nats per token once they have
    run. Before, nothing is known but how many times that noise it will be.

    Args:
        settings: of the study.
        runs: the rows that belong to its question; None before any has finished.

    Returns:
        A sentence or two.
    """
    replicates = settings.design.num_replicates
    if runs is not None:
        try:
            noise = Noise.from_replicates(decays(runs), settings.objective_weights)
            return (
                f"Two runs can be told apart where their objectives differ by {noise.detectable_effect():.3g} nats per "
                f"token ({replicates} seed replicates; t-test at 5 %, power 80 %)."
            )
        except InvalidValueError:
            pass  # no two replicates have finished
    now, doubled = (Noise(1.0, count - 1).detectable_effect() for count in (replicates, 2 * replicates))
    return (
        "Which difference between two runs is more than noise is known when the seed replicates have run. With "
        f"{replicates} of them it takes {now:.2g} times the standard deviation between seeds, with {2 * replicates} "
        f"{doubled:.2g} times (design.num_replicates; t-test at 5 %, power 80 %)."
    )


def current_plan(study: Study) -> Design:
    """The stored plan, if it still answers the settings and the corpus.

    Raises:
        StudyError: nothing is planned, something changed since, or a source repeats too much held-out text.
    """
    study.question()
    check_overlap(study)
    return study.design()


def write_results(study: Study, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Write the runs and curves tables; rows that the tables hold and the storage does not stay in them.

    Args:
        study: the study.
        results: what the storage recorded, of earlier plans too.

    Returns:
        The runs table.
    """
    runs = runs_table(result["row"] for result in results)
    if study.runs_file.is_file():
        runs = _with_earlier(runs, study.recorded_runs())
    curves = curves_table(point for result in results for point in result["curve"])
    if study.curves_file.is_file():
        curves = _with_earlier(curves, read_curves(study.curves_file))
    if EVALUATION in runs:
        measured = runs.groupby(EVALUATION, sort=False, dropna=False)
        runs = pd.concat([with_averaged_starts(rows) for _, rows in measured], ignore_index=True)
    write_table(runs, study.runs_file, recorded=True)
    write_table(curves, study.curves_file, recorded=True)
    read_outs = pd.DataFrame([row for result in results for row in result.get("read_outs", [])])
    if study.read_outs_file.is_file():
        read_outs = _with_earlier(read_outs, read_csv(study.read_outs_file, text=["run_id"]))
    if not read_outs.empty:
        write_table(read_outs, study.read_outs_file, recorded=True)
    return runs


def _with_earlier(rows: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """``rows``, and those of an earlier table of other runs, or of the same runs on other evaluation tokens."""

    def identity(table: pd.DataFrame) -> pd.Index:
        tokens = table[EVALUATION].fillna(-1) if EVALUATION in table else pd.Series(-1, index=table.index)
        return pd.Index(table["run_id"].astype(str) + "/" + tokens.astype(int).astype(str))

    if rows.empty:
        return earlier
    kept = earlier[~identity(earlier).isin(identity(rows))]
    return rows if kept.empty else pd.concat([rows, kept], ignore_index=True)
