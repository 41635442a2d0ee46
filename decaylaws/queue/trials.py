"""What a trial of the queue carries: its run as attributes, its design variables as parameters, its attempts."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import PercentilePruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from decaylaws.errors import StudyError
from decaylaws.runs.columns import BPB, LOSS, PRUNED, Unit
from decaylaws.runs.config import RunConfig
from decaylaws.runs.objective import objective_value, weighed_columns

MAX_DEATHS = 20  # a run that took down so many workers is the cause, not the victim
MAX_ATTEMPTS = 2

CONFIG, ROLE, RUN_ID = "config", "role", "run_id"
RESULT, LOG, ATTEMPT, WORKER = "result", "log", "attempt", "worker"
DEATHS, TICKET, REPEATS = "deaths", "ticket", "repeats"
CHECKSUM = "sha256"
SERVES, MEASURE = "serves", "measure"
"""What a waiting run is wanted for, and what besides its config decides the numbers of its result."""

MIN_RIVALS = 5
"""Finished runs of its kind without which no run is pruned."""


def config_of(trial: FrozenTrial) -> RunConfig:
    """The run of a trial.

    Raises:
        StudyError: the storage holds another config than was queued.
    """
    attrs = trial.user_attrs
    if attrs.get(CHECKSUM) not in (None, _checksum(attrs[RUN_ID], attrs[CONFIG])):
        raise _damaged(trial)
    return RunConfig.from_dict(attrs[CONFIG])


def sealed(result: Mapping[str, Any], run_id: str, measure: str) -> dict[str, Any]:
    """A result with the checksum of its content and of the run that it is of.

    Args:
        result: the result of a run.
        run_id: the run.
        measure: what besides a config decides the numbers of a run.
    """
    content = {key: value for key, value in result.items() if key != CHECKSUM}
    return {**content, CHECKSUM: _checksum(run_id, measure, content)}


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """The result of an ended trial.

    Raises:
        StudyError: the storage holds another one than was recorded.
    """
    attrs = trial.user_attrs
    content = {key: value for key, value in attrs[RESULT].items() if key != CHECKSUM}
    stored = attrs[RESULT].get(CHECKSUM)  # an older version stored none
    if stored not in (None, _checksum(attrs[RUN_ID], attrs.get(MEASURE, ""), content)):
        raise _damaged(trial)
    return content


def _checksum(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _damaged(trial: FrozenTrial) -> StudyError:
    return StudyError(
        f"The storage is damaged: trial {trial.number}, of run {trial.user_attrs[RUN_ID]}, does not hold what was "
        "recorded. Put the storage back from a copy, or delete it and run again."
    )


def again(trial: FrozenTrial, *, deaths: int = 0) -> FrozenTrial:
    """The next attempt at the run of a trial; a result that was stored goes along."""
    attrs = trial.user_attrs
    return waiting_trial(
        attrs[ROLE],
        config_of(trial),
        attempt=int(attrs[ATTEMPT]),
        deaths=int(attrs[DEATHS]) + deaths,
        result=attrs.get(RESULT),
        serves=attrs.get(SERVES, ""),
        measure=attrs.get(MEASURE, ""),
    )


def waiting_trial(
    role: str,
    config: RunConfig,
    *,
    attempt: int = 1,
    deaths: int = 0,
    result: dict[str, Any] | None = None,
    repeats: int | None = None,
    serves: str = "",
    measure: str = "",
) -> FrozenTrial:
    """A trial that puts a run into the queue.

    Args:
        role: the question that the run answers.
        config: the run.
        attempt: counts the times that it was tried, with the one to come.
        deaths: workers that died over it.
        result: what an earlier worker has recorded, and not closed.
        repeats: number of the ended trial that this one takes the place of.
        serves: what the run is wanted for; only a queue that serves the same claims it.
        measure: what besides the config decides the numbers of the result.
    """
    params, distributions = _design_variables(config)
    optional = {RESULT: result, REPEATS: repeats, SERVES: serves or None, MEASURE: measure or None}
    return create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions=distributions,
        user_attrs={
            RUN_ID: config.run_id,
            ROLE: role,
            CONFIG: config.to_dict(),
            CHECKSUM: _checksum(config.run_id, config.to_dict()),
            ATTEMPT: attempt,
            DEATHS: deaths,
            TICKET: uuid.uuid4().hex,
            **{name: value for name, value in optional.items() if value is not None},
        },
    )


def is_pruned(trial: FrozenTrial) -> bool:
    """Whether the run was ended on its way; Optuna's own state says so of diverged runs too."""
    return trial.state == TrialState.PRUNED and trial.user_attrs[RESULT]["row"].get("status") == PRUNED


def is_poor(
    trial: FrozenTrial,
    trials: Iterable[FrozenTrial],
    percentile: float,
    objective: Mapping[str, float],
    unit: Unit = "nats_per_token",
) -> bool:
    """Whether a run stands worse on its way than the best ``percentile`` percent of finished ones did there.

    Optuna's percentile pruner, asked in a study of its own: only runs of the same start, length, batch size and
    shape of decay are rivals, and none is judged before five of them have finished.

    Args:
        trial: the run, with the objective at its own tokens as intermediate values.
        trials: those of the queue.
        percentile: share of the rivals that counts as good enough, in percent.
        objective: weights by domain. Rivals are valued by these, whatever weights they were trained under.
        unit: what these weights weigh.
    """
    rivals = [
        _valued(each, objective, unit)
        for each in trials
        if each.state == TrialState.COMPLETE and _kind(each) == _kind(trial)
    ]
    study = optuna.create_study(pruner=PercentilePruner(percentile, n_startup_trials=MIN_RIVALS))
    study.add_trials(rivals)
    return study.pruner.prune(study, trial)


def _valued(trial: FrozenTrial, objective: Mapping[str, float], unit: Unit) -> FrozenTrial:
    """A finished run with the objective along its recorded curve as intermediate values; the trial itself is cached."""
    rows: dict[int, dict[str, float]] = {}
    for point in trial.user_attrs[RESULT]["curve"]:
        row = rows.setdefault(int(point["tokens"]), {})
        row[LOSS + point["domain"]] = point["loss"]
        if point.get("bits_per_byte") is not None:
            row[BPB + point["domain"]] = point["bits_per_byte"]
    valued, weighed = copy.copy(trial), weighed_columns(objective, unit)
    valued.intermediate_values = {
        tokens: objective_value(row, objective, unit) for tokens, row in rows.items() if weighed <= set(row)
    }
    return valued


def _kind(trial: FrozenTrial) -> list[Any]:
    """What two runs must share for their losses on the way to be comparable."""
    config = trial.user_attrs[CONFIG]
    names = ("kind", "start_run_id", "start_tokens", "batch_tokens")
    shapes = [segment["shape"] for segment in config["schedule"]["segments"]]
    return [trial.params["tokens"], shapes, *(config[name] for name in names)]


def _design_variables(config: RunConfig) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Parameters by which the dashboard and samplers know a run."""
    params: dict[str, Any] = {f"mix:{name}": share for name, share in config.mixture.weights.items()}
    distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in params}
    fixed: dict[str, tuple[Any, BaseDistribution]] = {
        "tokens": (config.tokens, IntDistribution(1, 10**15)),
        "start_lr": (config.schedule.start_lr, FloatDistribution(0.0, 10.0)),
        "non_embedding_params": (config.shape.non_embedding_params, IntDistribution(1, 10**13)),
        "seed": (config.seed, IntDistribution(0, 2**62)),
    }
    if (
        config.is_trained
    ):  # the choices are part of what Optuna stores: a storage of an earlier version has these two
        fixed["kind"] = (config.kind, CategoricalDistribution(("trunk", "decay")))
    params.update({name: value for name, (value, _) in fixed.items()})
    distributions.update({name: distribution for name, (_, distribution) in fixed.items()})
    return params, distributions


def is_owed(trial: FrozenTrial) -> bool:
    """Whether a closed attempt still owes its run another one that a crash kept from the queue."""
    if trial.state != TrialState.FAIL or int(trial.user_attrs[DEATHS]) >= MAX_DEATHS:
        return False
    return LOG not in trial.user_attrs or int(trial.user_attrs[ATTEMPT]) < MAX_ATTEMPTS


def replaces(trial: FrozenTrial, before: FrozenTrial) -> bool:
    """Whether a trial counts in the place of an earlier one of the same run; else the run was queued twice at once."""
    return before.state == TrialState.FAIL or trial.user_attrs.get(REPEATS) == before.number


def is_retried(trial: FrozenTrial) -> bool:
    """Whether the run has raised before."""
    return int(trial.user_attrs[ATTEMPT]) > 1


def fits(first: RunConfig, other: RunConfig, trial: FrozenTrial) -> bool:
    """Whether ``other``, the run of ``trial``, may train in one stack with ``first``.

    Args:
        first: a run.
        other: another run.
        trial: the trial of ``other``.
    """
    names = ("shape", "optimizer", "batch_tokens", "kind", "arithmetic")
    return not is_retried(trial) and all(getattr(first, name) == getattr(other, name) for name in names)
