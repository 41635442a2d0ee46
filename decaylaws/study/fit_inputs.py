"""What a fit is given: the decays of the sweep that it may use, and what it is told of the study besides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import pandas as pd

from decaylaws import __version__
from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.io.json import rebuilding
from decaylaws.runs.columns import INTERRUPTED, UNFINISHED
from decaylaws.runs.config import RunConfig
from decaylaws.runs.table import fit_ready, read_curves
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import Study
from decaylaws.study.files import read_json
from decaylaws.study.question import content_hash
from decaylaws.study.results import decays, planned_rows
from decaylaws.study.stored import StoredBegun
from decaylaws.study.sweep import MeasuredSweep
from decaylaws.study.trainer import to_the_end
from decaylaws.study.unfinished import unfinished_rows

FIT_FORMAT = 20  # of laws/fit.json; an older file is fitted anew


@dataclass(frozen=True)
class Told:
    """All that a fit is told of the study besides its runs.

    Attributes:
        trunk_mixture: share of each source in the trunks.
        trunk_lr: LR at the end of the trunks, or of the proxy's start where they differ.
        trunk_batch_tokens: tokens of an optimiser step of the trunks.
        seed: of the bootstrap.
        target_params: non-embedding parameters of the target where it is the proxy too, else None.
    """

    trunk_mixture: Mapping[str, float]
    trunk_lr: float
    trunk_batch_tokens: int
    seed: int
    target_params: int | None = None

    @classmethod
    def by(cls, settings: StudySettings, planner: Planner) -> Self:
        """What the settings say of the runs that the planner makes."""
        proxy, target = settings.proxy, settings.target.shape
        return cls(
            settings.control_mixture,
            planner.handover_lr(proxy),
            settings.batch_tokens,
            settings.seed,
            planner.shape(target).non_embedding_params if proxy == target else None,
        )


@dataclass(frozen=True)
class FitInputs:
    """All that decides a fit, with the sweep that it comes from.

    Attributes:
        sweep: what the study asks, and every run that belongs to it.
        told: what the fit is told besides its runs.
        usable: decays of the sweep that the fit may use.
        unfinished: decays that were pruned or interrupted, with expected final losses and their standard errors.
        excluded: the decays that the fit can use in neither way: ``run_id`` and ``reason``.
    """

    sweep: MeasuredSweep
    told: Told
    usable: pd.DataFrame
    unfinished: pd.DataFrame
    excluded: pd.DataFrame

    @cached_property
    def digest(self) -> str:
        """Hash of the rows and of what the fit is told."""
        known = {name: value for name, value in vars(self.told).items() if value is not None}
        tables = [self.usable, self.unfinished] if len(self.unfinished) else [self.usable]
        rows = [table.sort_values("run_id").to_csv(index=False) for table in tables]
        return content_hash(__version__, FIT_FORMAT, known, *rows)


def read_fit_inputs(study: Study, sweep: MeasuredSweep | None = None) -> FitInputs:
    """Read what a fit of the study is given now.

    Args:
        study: the study.
        sweep: what it asks, with its runs, where these have been read already.

    Raises:
        StudyError: too few runs have finished, or the plan is not the present one.
    """
    sweep = sweep or study.measured()
    settings, runs = sweep.settings, decays(sweep.runs)
    # sources, not domains: a mixture is made of them, and domains may be many more than the runs
    usable, excluded = fit_ready(runs, settings.domains, data_fingerprint=sweep.planner.corpus.fingerprint)
    if len(usable) < len(settings.sources) + 2:
        raise StudyError(
            f"Only {len(usable)} microanneals have finished, too few for {len(settings.sources)} sources. "
            + to_the_end(study.root, study.settings)
        )
    usable = usable.reset_index(drop=True)
    path = study.on_the_way_file
    stored = read_json(path, StoredBegun)["runs"] if path.is_file() else []
    with rebuilding(path, f"Run 'decaylaws fit {study.root} --partial' again."):
        begun, points = _begun_runs(stored, sweep, set(runs["run_id"]))
    rows = pd.DataFrame(begun).reindex(columns=runs.columns)
    ended = pd.concat([runs, rows], ignore_index=True) if begun else runs
    unfinished = runs.head(0)
    if ended["status"].isin(UNFINISHED).any():
        curves = [sweep.own(read_curves(study.curves_file)), pd.DataFrame(points)]
        unfinished = unfinished_rows(ended, usable, pd.concat(curves, ignore_index=True), settings.domains)
    excluded = excluded[~excluded["run_id"].isin(unfinished["run_id"])].reset_index(drop=True)
    return FitInputs(sweep, Told.by(settings, sweep.planner), usable, unfinished, excluded)


def _begun_runs(
    stored: Sequence[Mapping[str, Any]], sweep: MeasuredSweep, ended: set[str]
) -> tuple[list[dict[Any, Any]], list[dict[str, Any]]]:
    """Rows and points of the curves of those runs of a partial fit that the study still asks for and that go on."""
    question, rows, points = sweep.question, [], []
    for each in stored:
        config = RunConfig.from_dict(each["config"])
        asked = config.run_id in question.planned or config.run_id in question.proposed
        if not asked or config.run_id in ended:
            continue
        (row,) = planned_rows([config], sweep.runs, sweep.planner.corpus.available_tokens).to_dict("records")
        rows.append({**row, "role": each["role"], "status": INTERRUPTED, "reached_target": False})
        points += [{"run_id": config.run_id, **point} for point in each["curve"]]
    return rows, points
