"""Samplers after the design: resumable proposals in log-ratio coordinates, fronts, and promotion by length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from decaylaws.designs.design import CorpusFacts, PlannedRun
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError
from decaylaws.mixtures.coordinates import from_log_ratios, log_ratio_basis, to_log_ratios
from decaylaws.runs.config import RunConfig
from decaylaws.search.proposals import Proposals
from decaylaws.settings.design import SamplerSettings
from decaylaws.settings.study import parse_settings
from tests.study.tiny import TINY_SETTINGS

BEST = np.array([0.2, 0.6, 0.2])  # web, maths, code
FACTS = CorpusFacts("f", 300, {"web": 200_000, "maths": 200_000, "code": 200_000})


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def storage() -> BaseStorage:
    return InMemoryStorage()


def proposals(storage: BaseStorage | str, **sampler: Any) -> Proposals:
    planner = Planner(parse_settings({**TINY_SETTINGS, "sampler": sampler}), FACTS)
    return Proposals(planner, SamplerSettings(**sampler), storage, "tiny")


def row(config: RunConfig) -> dict[str, Any]:
    """A truth: losses grow with the distance to the best mixture and fall with the length."""
    shares = config.mixture.array(("web", "maths", "code"))
    loss = 2.0 + float(((shares - BEST) ** 2).sum()) + 100.0 / config.tokens
    losses = {"loss:web": loss - shares[0], "loss:maths": loss - shares[1], "loss:code": loss - shares[2]}
    return {"run_id": config.run_id, "reached_target": True, **losses}


def work_off(found: Proposals, *, failed: int = 0) -> list[PlannedRun]:
    """Train everything that is proposed; the first ``failed`` runs fail for good."""
    rows: dict[str, dict[str, Any]] = {}
    runs: list[PlannedRun] = []
    bad: list[str] = []
    while open_runs := found.ask():
        for run in open_runs:
            runs.append(run)
            if len(bad) < failed:
                bad.append(run.config.run_id)
            elif run.config.run_id not in bad:
                rows[run.config.run_id] = row(run.config)
        found.tell(list(rows.values()), bad)
    return runs


@pytest.mark.parametrize("promote", [None, 2])
def test_a_pruned_run_closes_its_proposal_and_teaches_the_sampler(
    storage: BaseStorage, promote: int | None
) -> None:
    found = proposals(storage, kind="tpe", trials=2, batch=2, prune=50, promote=promote)
    pruned, whole = (run.config for run in found.ask())
    unfinished = {"run_id": pruned.run_id, "reached_target": False}
    found.tell([unfinished, row(whole)], pruned={pruned.run_id: 4.5})
    first = found.study.trials[0]
    assert first.state == TrialState.PRUNED
    assert first.intermediate_values == ({0: 4.5} if promote is None else {})
    assert found.study.trials[1].state == (TrialState.COMPLETE if promote is None else TrialState.RUNNING)
    with pytest.raises(InvalidValueError, match="prune needs one goal"):
        parse_settings({**TINY_SETTINGS, "sampler": {"kind": "nsga2", "prune": 50}})


def test_log_ratios_are_orthonormal_coordinates_of_the_simplex() -> None:
    basis = log_ratio_basis(5)
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(basis.sum(axis=1), 0.0, atol=1e-12)
    shares = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    np.testing.assert_allclose(from_log_ratios(to_log_ratios(shares)), shares)
    np.testing.assert_allclose(from_log_ratios(np.zeros(4)), 0.2)


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_sampler_does_better_than_chance_and_counts_its_proposals(storage: BaseStorage, kind: str) -> None:
    found = proposals(storage, kind=kind, trials=20, batch=4)
    runs = work_off(found)
    assert found.asked == 20 == len(found.study.trials)
    assert {run.role for run in runs} == {kind}
    assert {run.config.tokens for run in runs} == {2048, 4096}
    values = np.array([trial.value for trial in found.study.trials])
    assert values[12:].mean() < values[:8].mean()
    assert found.best()["objective"].iloc[0] == values.min()
    for run in runs:
        found.planner.space.check(run.config.mixture, run.config.tokens)


def test_opening_a_sampler_says_nothing(storage: BaseStorage, caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.create_study(storage=storage)
    assert "A new study created" in caplog.text
    caplog.clear()
    proposals(storage, kind="tpe", trials=4, batch=4)
    assert caplog.text == ""
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_a_batch_is_open_at_once_and_survives_its_asker(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'storage.sqlite3'}"
    first = proposals(storage, kind="tpe", trials=6, batch=4)
    asked = [run.config for run in first.ask()]
    assert len(asked) == 4
    assert len({config.run_id for config in asked}) == 4
    again = proposals(storage, kind="tpe", trials=6, batch=4)
    assert [run.config for run in again.ask()] == asked
    again.tell([row(asked[0]), row(asked[1]), row(asked[2])])
    assert len(again.ask()) == 3  # one of the four still runs, and only two more may be asked
    work_off(again)
    assert [trial.state for trial in first.study.trials] == [TrialState.COMPLETE] * 6


def test_a_half_asked_trial_and_a_failed_run_hold_nothing_up(
    storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = proposals(storage, kind="tpe", trials=5, batch=2)
    found.study.ask()  # killed before it had drawn a coordinate
    runs = work_off(found, failed=1)
    assert len(runs) >= 5
    states = [trial.state for trial in found.study.trials]
    assert states.count(TrialState.RUNNING) == 1
    monkeypatch.setattr("decaylaws.search.proposals.HALF_ASKED_SECONDS", -1.0)
    found.tell([])
    states = [trial.state for trial in found.study.trials]
    assert (states.count(TrialState.COMPLETE), states.count(TrialState.FAIL)) == (4, 2)


def test_short_decays_come_first_and_the_best_are_promoted(storage: BaseStorage) -> None:
    found = proposals(storage, kind="tpe", trials=18, batch=6, promote=3)
    work_off(found)
    rungs = [len(trial.intermediate_values) for trial in found.study.trials]
    pruned = [trial for trial in found.study.trials if trial.state == TrialState.PRUNED]
    assert set(rungs) == {1, 2}
    assert len(pruned) == rungs.count(1)
    assert rungs.count(2) < 10
    best = found.best()
    shares = best.loc[0, ["web", "maths", "code"]].to_numpy(float)
    assert np.abs(shares - BEST).max() < 0.35


def test_nsga2_spans_a_front_of_general_and_specialised_loss(storage: BaseStorage) -> None:
    found = proposals(storage, kind="nsga2", trials=24, batch=8)
    work_off(found)
    front = found.best()
    assert len(front) > 1
    assert front["general"].is_monotonic_increasing
    assert front["specialised"].is_monotonic_decreasing
    with pytest.raises(InvalidValueError, match="promote needs one goal"):
        parse_settings({**TINY_SETTINGS, "sampler": {"kind": "nsga2", "promote": 2}})


def test_the_design_s_runs_are_learnt_once(storage: BaseStorage) -> None:
    found = proposals(storage, kind="tpe", trials=4, batch=4)
    design = [(run.config, row(run.config)) for run in found.planner.sweep() if run.config.kind == "decay"]
    known = found.learn(design)
    assert known >= 10
    assert found.learn(design) == 0
    assert found.asked == 0
    first = found.study.trials[0]
    run = next(config for config, _ in design if config.run_id == first.user_attrs["run_id"])
    shares = from_log_ratios([first.params["log_ratio_1"], first.params["log_ratio_2"]])
    np.testing.assert_allclose(shares, run.mixture.array(("web", "maths", "code")), atol=0.02)
    assert first.params["decay_tokens"] == run.tokens
    assert len(found.ask()) == 4


def test_every_run_that_was_proposed_is_known_when_it_has_ended(storage: BaseStorage) -> None:
    found = proposals(storage, kind="tpe", trials=4, batch=2, promote=2)
    trained = {run.config.run_id for run in work_off(found)}
    again = proposals(storage, kind="tpe", trials=4, batch=2, promote=2)
    known = {run.config.run_id for run in again.runs()}
    assert trained <= known  # and the next length of those that were not promoted, which nobody trains
    assert len(known) <= len(trained) + 4
