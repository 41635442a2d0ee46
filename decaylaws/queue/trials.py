"""What a trial of the queue carries: its run as attributes, its design variables as parameters, its attempts."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from decaylaws.errors import StudyError
from decaylaws.runs.columns import BPB, LOSS, UNFINISHED, Unit, config_row
from decaylaws.runs.config import RunConfig
from decaylaws.runs.forecast import forecast_run, of_kind
from decaylaws.runs.objective import objective_value, weighed_columns

MAX_DEATHS = 20  # a run that took down so many workers is the cause, not the victim
MAX_ATTEMPTS = 2

CONFIG, ROLE, RUN_ID = "config", "role", "run_id"
RESULT, LOG, ATTEMPT, WORKER = "result", "log", "attempt", "worker"
DEATHS, TICKET, REPEATS = "deaths", "ticket", "repeats"
CHECKSUM, CURVE = "sha256", "curve"
"""Of the config and the result; and losses on the way of a run that has not ended."""
SERVES, MEASURE = "serves", "measure"
"""What a waiting run is wanted for, and what besides its config decides the numbers of its result."""

PRUNE_LEVEL = 0.9
"""Level of the interval of a run's final objective whose better end must be too bad for the run to be ended."""


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
        curve=attrs.get(CURVE),
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
    curve: list[dict[str, Any]] | None = None,
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
        curve: losses on the way that earlier workers have measured.
        repeats: number of the ended trial that this one takes the place of.
        serves: what the run is wanted for; only a queue that serves the same claims it.
        measure: what besides the config decides the numbers of the result.
    """
    params, distributions = _design_variables(config)
    optional = {
        RESULT: result,
        CURVE: curve,
        REPEATS: repeats,
        SERVES: serves or None,
        MEASURE: measure or None,
    }
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
    return trial.state == TrialState.PRUNED and trial.user_attrs[RESULT]["row"].get("status") in UNFINISHED


def is_poor(
    trial: FrozenTrial,
    trials: Iterable[FrozenTrial],
    percentile: float,
    objective: Mapping[str, float],
    unit: Unit = "nats_per_token",
) -> bool:
    """Whether a run on its way will hardly end among the best ``percentile`` percent of the finished runs of its kind.

    Its final objective is expected from its curve and theirs; the better end of the interval must be worse than what
    that share of them reached. None is judged before five of its kind have finished.

    Args:
        trial: the run, with the objective at its own tokens as intermediate values.
        trials: those of the queue.
        percentile: share of the finished runs that counts as good enough, in percent.
        objective: weights by domain. Finished runs are valued by these, whatever weights they were trained under.
        unit: what these weights weigh.
    """
    row, every = config_row(config_of(trial)), finished_curves(trials, objective, unit)
    rivals = [every[position] for position in of_kind(row, every)]
    found = forecast_run(row, trial.intermediate_values, rivals)
    if found is None:
        return False
    reached = [losses[max(losses)] for _, losses in rivals]
    return found.interval(PRUNE_LEVEL)[0] > float(np.percentile(reached, percentile))


def finished_curves(
    trials: Iterable[FrozenTrial], objective: Mapping[str, float], unit: Unit
) -> list[tuple[Mapping[str, Any], dict[int, float]]]:
    """Row of every finished run, and its objective by own tokens along its recorded curve."""
    finished = (trial.user_attrs[RESULT] for trial in trials if trial.state == TrialState.COMPLETE)
    valued = [(each["row"], _objective_along(each["curve"], objective, unit)) for each in finished]
    return [(row, losses) for row, losses in valued if losses and max(losses) == row.get("decay_tokens")]


def _objective_along(
    curve: Iterable[Mapping[str, Any]], objective: Mapping[str, float], unit: Unit
) -> dict[int, float]:
    """Objective by own tokens, where a curve holds all that it weighs."""
    rows: dict[int, dict[str, float]] = {}
    for point in curve:
        row = rows.setdefault(int(point["tokens"]), {})
        row[LOSS + point["domain"]] = point["loss"]
        if point.get("bits_per_byte") is not None:
            row[BPB + point["domain"]] = point["bits_per_byte"]
    weighed = weighed_columns(objective, unit)
    return {
        tokens: objective_value(row, objective, unit) for tokens, row in rows.items() if weighed <= set(row)
    }


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
    # the choices are part of what Optuna stores: a storage of an earlier version has these two
    if config.kind in ("trunk", "decay"):
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
