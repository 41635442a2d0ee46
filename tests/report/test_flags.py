"""Planted truths: each red flag and each risk is raised by what it speaks of, with its figures, and by nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from decaylaws.mixtures import Mixture

# by name: the package holds functions of the same names
flags, risks = (import_module(f"decaylaws.report.sections.{name}") for name in ("flags", "risks"))

PLAN = {"start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": 1000, "seed": 0}
SIZES = (100_000, 200_000)
NOISE = 0.01  # standard deviation between seeds at both scales


def sweep(*, turned: bool = False, moved: float = 0.1) -> pd.DataFrame:
    """Four mixtures of one plan at two sizes, far apart, which the larger size ranks alike or the other way round."""
    rows = []
    for size in SIZES:
        for step, share in enumerate((0.2, 0.4, 0.6, 0.8)):
            rank = 3 - step if turned and size == SIZES[1] else step
            rows.append(
                {"kind": "decay", "role": "simplex", "reached_target": True, "decay_tokens": 1000 * 2**5, **PLAN}
                | {"mix:web": share, "mix:code": 1 - share, "non_embedding_params": size}
                | {"start_loss:web": 4.0, "loss:web": 4.0 - moved - 0.5 * rank}
                | {"start_loss:code": 3.0, "loss:code": 3.0}
            )  # fmt: skip
    return pd.DataFrame(rows)


def domains(inside: int, of: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {"run_id": "r", "domain": range(of), "inside": [number < inside for number in range(of)]}
    )


class Planted(SimpleNamespace):
    """What sections read of a study, as plain values."""

    def noise_sd(self, scale: str) -> float:
        return self.sd[scale]

    def confirmed_row(self, candidate: str, scale: str) -> dict[str, bool]:
        return {"guards_hold": self.guards_hold, "won": self.won}

    def observed_gain_over(self, rival: str, scale: str) -> float:
        return self.gains[rival]


@pytest.fixture
def sound() -> Planted:
    """A study with nothing to complain about."""
    evidence = {
        "non_embedding_params": SIZES,
        "decay_tokens": (8000, 32_000),
        "shares": {"web": (0.2, 0.8), "code": (0.2, 0.8)},
    }
    errors = [("mixture", "decay:effective_gain", 0.01), ("mixture", "nearest_run", 0.05)]
    stage = SimpleNamespace(mixture=Mixture({"web": 0.4, "code": 0.6}))
    problem = SimpleNamespace(
        law=SimpleNamespace(evidence_=evidence, domains_=("web", "code")),
        target=SimpleNamespace(non_embedding_params=250_000),
        plan=SimpleNamespace(decay_tokens=16_000),
    )
    decontamination = SimpleNamespace(evaluation_sets={"exam": None})
    return Planted(
        settings=SimpleNamespace(decontamination=decontamination),
        observed_domains=domains(9),
        near_copies="",
        runs=sweep(),
        weights={"web": 1.0},
        noise={"proxy": object(), "target": object()},
        sd={"proxy": NOISE, "target": NOISE},
        confirmed=True,
        guards_hold=True,
        won=True,
        gains={"control": 0.2, "best_of_sweep": 0.1},
        candidates={"recommended": None, "control": None, "best_of_sweep": None},
        confirmation=pd.DataFrame(
            {"scale": ["proxy", "target"], "observed": [3.0, 3.0], "predicted": [3.0, 3.0]}
        ),
        problem=problem,
        recipe=SimpleNamespace(
            decay=stage,
            guards={"web": SimpleNamespace(holds=True)},
            provenance=SimpleNamespace(evidence=SimpleNamespace(beyond_horizon=())),
        ),
        fit=SimpleNamespace(errors=pd.DataFrame(errors, columns=["held_out", "law", "mae"])),
        found={
            "beyond_evidence": [], "near_optimal": {"web": (0.35, 0.5)}, "support": {"web": 3, "code": 5},
            "binding": [], "feasible": True, "rivals": [{"gain": {"mean": 0.2, "lower": 0.1, "upper": 0.3}}],
        },
    )  # fmt: skip


Change = Callable[[Planted], None]


def at(path: str, value: Any) -> Change:
    """A change of the value at a dotted path."""

    def change(inputs: Planted) -> None:
        here, *parents, last = inputs, *path.split(".")
        for name in parents:
            here = here[name] if isinstance(here, dict) else getattr(here, name)
        if isinstance(here, dict):
            here[last] = value
        else:
            setattr(here, last, value)

    return change


def errors(*rows: tuple[str, str, float]) -> Change:
    return at("fit.errors", pd.DataFrame(rows, columns=["held_out", "law", "mae"]))


def at_the_edge(inputs: Planted) -> None:
    inputs.problem.plan.decay_tokens = 32_000
    inputs.recipe.decay.mixture = Mixture({"web": 0.73, "code": 0.27})


FLAGS: list[tuple[Change, list[str]]] = [
    (at("confirmed", False), ["not confirmed"]),
    (at("guards_hold", False), ["guard broke", "target"]),
    (at("gains", {"control": 0.2, "best_of_sweep": 0.02}), ["told apart", "best of sweep", "seed"]),
    (at("gains", {"control": 0.2, "best_of_sweep": -0.02}), ["told apart", "best of sweep", "seed"]),
    (at("observed_domains", domains(8)), ["90 % intervals held 80 %"]),
    (at("runs", sweep(turned=True)), ["0 of 6 pairs", "100,000", "200,000"]),
    (at("problem.target.non_embedding_params", 400_000), ["2.0 times the parameters"]),
    (at("found.beyond_evidence", ["decay tokens are 9; the runs span 1 to 8"]), ["decay tokens are 9"]),
    (at("recipe.provenance.evidence.beyond_horizon", ("9 decay tokens is 4.0 times the largest.",)), ["beyond", "4.0"]),
    (at_the_edge, ["longest decay", "73 %", "web"]),
    (at("recipe.guards", {"web": SimpleNamespace(holds=False)}), ["guard of web", "margin"]),
    (errors(("size", "decay:effective_gain", 0.03), ("size", "control", 0.02)), ["control", "0.0200", "0.0300"]),
    (at("runs", sweep(moved=1.5)), ["web", "more than 1 nat"]),
    (at("settings.decontamination.evaluation_sets", {}), ["decontamination.evaluation_sets"]),
]  # fmt: skip


def test_a_sound_study_raises_no_flag(sound: Planted) -> None:
    assert flags.red_flags(sound) == []
    assert risks.risks(sound).notes == [*risks._ALWAYS]


@pytest.mark.parametrize(("change", "words"), FLAGS)
def test_each_flag_is_raised_by_its_own_truth_alone(sound: Planted, change: Change, words: list[str]) -> None:
    change(sound)
    (flag,) = flags.red_flags(sound)
    assert all(word in flag for word in words), flag


QUIET: list[Change] = [
    at("gains", {"control": 0.2, "best_of_sweep": 0.031}),  # three standard deviations are told apart
    at("gains", {"control": 0.2, "best_of_sweep": 0.0}),  # the same mixture, hence the same run
    at("observed_domains", domains(17, 20)),
    at("runs", sweep(moved=0.24)),  # the median change stays within a nat
    at("problem.target.non_embedding_params", 300_000),
    at("problem.plan.decay_tokens", 32_000),  # long, but of a mixture inside
    errors(("size", "decay:effective_gain", 0.03), ("size", "regmix", 0.02)),  # not a simple predictor
]


@pytest.mark.parametrize("change", QUIET)
def test_what_is_just_right_raises_no_flag(sound: Planted, change: Change) -> None:
    change(sound)
    assert flags.red_flags(sound) == []


def biased(change: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"scale": ["proxy", "target"], "observed": [3.0, 3.0 + change], "predicted": [3.0, 3.0]}
    )


RISKS: list[tuple[Change, list[str]]] = [
    (at("confirmed", False), ["No run has tested"]),
    (at("won", False), ["did not win"]),
    (at("observed_domains", domains(8)), ["90 % intervals held 80 %"]),
    (at("confirmation", biased(0.05)), ["target", "optimistic by 0.050 nats"]),
    (at("confirmation", biased(-0.05)), ["target", "pessimistic by 0.050 nats"]),
    (at("gains", {"control": 0.2, "best_of_sweep": 0.02}), ["best of sweep"]),
    (at("found.beyond_evidence", ["decay tokens are 9; the runs span 1 to 8"]), ["decay tokens are 9"]),
    (at("found.near_optimal", {"web": (0.1, 0.5)}), ["web", "10 % to 50 %"]),
    (at("found.support", {"web": 2, "code": 5}), ["Fewer than 3 runs", "web"]),
    (at("found.binding", ["code"]), ["at its limit for code"]),
    (at("problem.target.non_embedding_params", 400_000), ["2.0 times", "unseen size"]),
    (at("found.feasible", False), ["guard", "margin", "objective.guard_nats"]),
    (at("recipe.guards", {"web": SimpleNamespace(holds=False)}), ["guard", "margin"]),
    (errors(("size", "decay:effective_gain", 0.03), ("size", "regmix", 0.02)), ["size", "boosted trees (RegMix)"]),
    (at("found.rivals", [{"gain": {"mean": 0.1, "lower": 0.0, "upper": 0.2}}]), ["not certain", "0"]),
    (at("noise", {"proxy": None, "target": None}), ["two seeds", "noise"]),
    (at("near_copies", "A decay reads 40 near copies."), ["40 near copies"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), RISKS)
def test_each_risk_is_told_by_its_own_truth_alone(sound: Planted, change: Change, words: list[str]) -> None:
    change(sound)
    (risk,) = [note for note in risks.risks(sound).notes if note not in risks._ALWAYS]
    assert all(word in risk for word in words), risk


def test_an_error_at_an_unseen_size_is_pointed_to_where_there_is_one(sound: Planted) -> None:
    at("problem.target.non_embedding_params", 400_000)(sound)
    (untested,) = [note for note in risks.risks(sound).notes if "2.0 times" in note]
    errors(("size", "decay:effective_gain", 0.01), ("size", "control", 0.05))(sound)
    (tested,) = [note for note in risks.risks(sound).notes if "2.0 times" in note]
    assert "do not test" in untested
    assert "'size'" in tested


def test_weights_times_ten_raise_the_same_flags(sound: Planted) -> None:
    sound.runs = sweep(turned=True)
    before = flags.red_flags(copy.deepcopy(sound))
    sound.weights = {"web": 10.0}
    assert flags.red_flags(sound) == before
