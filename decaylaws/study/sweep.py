"""The verb ``plan``, and the tables that a sweep leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaylaws import __version__
from decaylaws.designs.planner import Design
from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.io.files import record_content
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import Noise
from decaylaws.runs.table import (
    AVERAGED_LOSS,
    AVERAGED_START_LOSS,
    LOSS,
    READ_OUT,
    START_LOSS,
    config_row,
    curves_table,
    names_with,
    runs_table,
    write_table,
)
from decaylaws.study.checks import check_prepared
from decaylaws.study.directory import Study, content_hash, read_json, write_json
from decaylaws.study.overlap import check_overlap


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
    wanted = _plan_inputs(study)
    if study.plan_file.is_file():
        stored = read_json(study.plan_file)
        if stored.get("inputs") == wanted:
            return Design.from_dict(stored), False
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


def detectable_effect(study: Study) -> str:
    """Smallest true difference of the objective between two microanneals that the sweep's seeds tell from noise.

    A two-sided t-test at 5 %, power 80 %, with the noise of the seed replicates: in nats per token once they have
    run. Before, nothing is known but how many times that noise it will be.

    Returns:
        A sentence or two.
    """
    replicates = study.settings.design.num_replicates
    if study.runs_file.is_file():
        try:
            noise = Noise.from_replicates(decays(study.runs()), study.settings.objective_weights)
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
    design = study.design()
    if read_json(study.plan_file).get("inputs") != _plan_inputs(study):
        raise StudyError(
            f"study.yaml or the corpus of {study.root} changed since the plan was made. "
            f"Run 'decaylaws plan {study.root}'; runs that both plans hold are not repeated."
        )
    check_overlap(study)
    return design


def _plan_inputs(study: Study) -> str:
    return content_hash(__version__, study.decisive_settings(), vars(study.corpus()))


def write_results(study: Study, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Write the runs and curves tables from the results in the storage; returns the runs table."""
    runs = with_averaged_starts(runs_table(result["row"] for result in results))
    write_table(runs, study.runs_file, recorded=True)
    curves = curves_table(point for result in results for point in result["curve"])
    write_table(curves, study.curves_file, recorded=True)
    read_outs = [row for result in results for row in result.get("read_outs", [])]
    if read_outs:
        write_table(pd.DataFrame(read_outs), study.read_outs_file, recorded=True)
    return runs


def with_averaged_starts(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with ``averaged_start_loss:<domain>`` of every run that starts at the end of a trunk.

    Left out where one trunk has no average: a law fitted on the others could say nothing about its decays.
    """
    if runs.empty:
        return runs
    trunks = runs[(runs["kind"] == "trunk") & runs["reached_target"].astype(bool)].set_index("run_id")
    starts = runs["start_run_id"]
    at_end = trunks["decay_tokens"].reindex(starts).to_numpy() == runs["start_tokens"].to_numpy()
    return runs.assign(
        **{
            AVERAGED_START_LOSS + domain: np.where(at_end, averages.reindex(starts).to_numpy(), np.nan)
            for domain in names_with(runs, AVERAGED_LOSS)
            if (averages := trunks[AVERAGED_LOSS + domain]).notna().all()
        }
    )


def decays(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows that a decay law may learn from: decays of the sweep, none that confirm it or were only read out."""
    role = runs["role"].astype(str)
    return runs[(runs["kind"] == "decay") & ~role.str.startswith(("confirm", "launch", READ_OUT))]


def planned_rows(study: Study, configs: Sequence[RunConfig], runs: pd.DataFrame) -> pd.DataFrame:
    """Planned decays as rows that a law predicts: config columns and the losses of their trunks.

    Raises:
        StudyError: a trunk has not been trained.
    """
    available = study.corpus().available_tokens
    rows = [{**config_row(config, available), **start_losses(config, runs)} for config in configs]
    return pd.DataFrame(rows)


def start_losses(config: RunConfig, runs: pd.DataFrame) -> dict[str, float]:
    """Losses from which a decay starts, as columns: those at the end of the trunk from which it forks.

    ``start_loss:<domain>`` and, where the trunk's weights were averaged, ``averaged_start_loss:<domain>``.
    """
    trunk = runs[runs["run_id"] == config.start_run_id]
    if len(trunk) != 1:
        raise StudyError(f"The trunk {config.start_run_id} has no result yet. Run 'decaylaws run' first.")
    row = trunk.iloc[0]
    return {
        to + domain: float(row[of + domain])
        for of, to in ((LOSS, START_LOSS), (AVERAGED_LOSS, AVERAGED_START_LOSS))
        for domain in names_with(runs, of)
        if pd.notna(row[of + domain])
    }
