"""The verb ``plan``: which microanneals to run, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from decaylaws.designs.design import Design
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError
from decaylaws.io.files import record_content
from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress, silent
from decaylaws.runs.noise import Noise
from decaylaws.settings.study import StudySettings
from decaylaws.study.arithmetic import settle_arithmetic
from decaylaws.study.calibrate import calibrate
from decaylaws.study.checks import check_prepared
from decaylaws.study.directory import Study
from decaylaws.study.files import read_json, write_json
from decaylaws.study.hardware import Hardware
from decaylaws.study.identity import plan_inputs
from decaylaws.study.near_copies import copies_words, read_copies
from decaylaws.study.overlap import check_overlap
from decaylaws.study.results import decays
from decaylaws.study.stored import StoredPlan


@dataclass(frozen=True)
class Plan:
    """A planned sweep and what it costs on this machine.

    Attributes:
        design: every planned run.
        is_new: whether the design was made now; it is kept while settings and corpus stay as they are.
        cost: one row per role and size: ``role``, ``non_embedding_params``, ``runs``, ``tokens``, ``train_flops`` and
            ``hours`` with all workers, evaluation not counted; NaN where an external trainer's speed is unknown.
        hours: of the whole sweep.
        workers: worker processes that ``run`` would start here; 0 with an external trainer.
        detectable_effect: which difference between two runs is more than noise, in a sentence.
        arithmetic: how the proxies compute, in sentences, where that was decided now.
        near_copies: how many near copies of held-out documents the target's decay reads, in sentences; empty where none
            were found.
        hardware: other hardware whose cost was asked for. ``cost`` then has ``device_hours``, hours of one device.
        target_flops: FLOPs of a decay of ``target.max_decay_tokens`` at the target's shape, on top of the sweep.
    """

    design: Design
    is_new: bool
    cost: pd.DataFrame
    hours: float
    workers: int
    detectable_effect: str
    arithmetic: tuple[str, ...]
    near_copies: str = ""
    hardware: Hardware | None = None
    target_flops: int = 0


def plan(study: Study, *, hardware: Hardware | None = None, progress: Progress = silent) -> Plan:
    """Plan the sweep of a study and measure what it costs here.

    Args:
        study: the study.
        hardware: also price the sweep on these devices, by its FLOPs.
        progress: told what is measured.

    Raises:
        StudyError: study.yaml asks for another corpus, or a source repeats too much of the held-out text.
        DataError: a held-out part is shorter than one window.
        InfeasibleError: no mixture meets the caps at a decay of the design, or at ``target.max_decay_tokens``.
    """
    design, is_new = plan_runs(study)
    cost = (
        design.table()
        .groupby(["role", "non_embedding_params"], sort=False)
        .agg(runs=("run_id", "size"), tokens=("tokens", "sum"), train_flops=("train_flops", "sum"))
        .reset_index()
    )
    planner = study.planner()
    shares = proportional_mixture(planner).to_dict()
    copies = copies_words(read_copies(study), planner, shares, "the token-proportional mixture")
    effect = detectable_effect(study.settings, study.runs() if study.runs_file.is_file() else None)
    if hardware:
        cost["device_hours"] = [hardware.device_hours(flops) for flops in cost["train_flops"]]
    target = study.settings.target
    target_flops = target.max_decay_tokens * planner.start(target.shape).config.shape.train_flops_per_token
    planned = partial(Plan, near_copies=copies, hardware=hardware, target_flops=target_flops)
    if study.settings.trainer == "external":
        cost["hours"] = cost["train_flops"] / (study.settings.external.flops_per_second or np.nan) / 3600.0
        return planned(design, is_new, cost, float(cost["hours"].sum(skipna=False)), 0, effect, ())
    changed, arithmetic = settle_arithmetic(study, design, progress)
    if changed:
        design, is_new = plan_runs(study)
        planner = study.planner()  # whose runs compute otherwise now
    speed = calibrate(planner, study.calibration_file, study.held_folders())
    cost["hours"] = [
        speed.params_hours(row.non_embedding_params, int(row.tokens)) for row in cost.itertuples()
    ]
    return planned(design, is_new, cost, speed.plan_hours(design), speed.workers, effect, arithmetic)


def plan_runs(study: Study) -> tuple[Design, bool]:
    """The design of a study, without its cost; see :func:`plan`.

    Returns:
        The design, and whether it is new.
    """
    check_prepared(study)
    check_overlap(study)
    planner = study.planner()
    proportional_mixture(planner)  # there is one
    record_content(study.settings_file)
    wanted = plan_inputs(planner, study.evaluation_sets)
    if study.plan_file.is_file():
        stored = read_json(study.plan_file, StoredPlan)
        if stored.get("inputs") == wanted:
            return study.design(), False
    design = planner.sweep()
    write_json(study.plan_file, {"inputs": wanted, **design.to_dict()})
    return design, True


def proportional_mixture(planner: Planner) -> Mixture:
    """The token-proportional mixture within the caps of ``target.max_decay_tokens``.

    Args:
        planner: of the study.

    Raises:
        InfeasibleError: no mixture meets the caps at that length.
    """
    space = planner.space
    return space.project(space.token_proportional(), planner.settings.target.max_decay_tokens)


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
                f"Two runs are told apart if their objectives differ by {noise.detectable_effect():.3g} nats per "
                f"token ({replicates} seed replicates; t-test at 5 %, power 80 %)."
            )
        except InvalidValueError:
            pass  # no two replicates have finished
    now, doubled = (Noise(1.0, count - 1).detectable_effect() for count in (replicates, 2 * replicates))
    return (
        "The seed replicates will show which difference between two runs is more than noise. With "
        f"{replicates} replicates it is {now:.2g} times the standard deviation between seeds. With {2 * replicates} it "
        f"is {doubled:.2g} times (design.num_replicates; t-test at 5 %, power 80 %)."
    )


def current_plan(study: Study) -> Design:
    """The stored plan, if it still answers the settings and the corpus.

    Raises:
        StudyError: nothing is planned, something changed since, or a source repeats too much held-out text.
    """
    study.planned()
    check_overlap(study)
    return study.design()
