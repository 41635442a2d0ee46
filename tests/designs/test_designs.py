"""The design: every run for a reason, trunks first, caps kept, equal plans for equal settings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from decaylaws.designs.design import CorpusFacts, Design
from decaylaws.designs.planner import Planner, balanced_levels
from decaylaws.designs.space import pool_tokens
from decaylaws.errors import InvalidValueError
from decaylaws.runs.noise import Noise
from decaylaws.runs.table import RUN_COLUMNS
from decaylaws.settings.study import StudySettings, parse_settings
from decaylaws.study.plan import detectable_effect
from decaylaws.study.template import template_text
from tests.study.tiny import TINY_SETTINGS

AVAILABLE = {
    "narrative": 600_000,
    "reference": 1_300_000,
    "code": 900_000,
    "symbolic_maths": 1_100_000,
    "worked_maths": 190_000,
    "qa": 70_000,
    "instructions": 70_000,
}


@pytest.fixture(scope="module")
def settings() -> StudySettings:
    return parse_settings(yaml.safe_load(template_text("demo")))


@pytest.fixture(scope="module")
def planner(settings: StudySettings) -> Planner:
    return Planner(settings, CorpusFacts("fingerprint", 4096, AVAILABLE))


@pytest.fixture(scope="module")
def design(planner: Planner) -> Design:
    return planner.sweep()


def test_the_demo_runs_at_least_forty_microanneals(design: Design) -> None:
    assert sum(run.config.kind == "decay" for run in design) >= 40


def test_trunks_come_first_and_costliest_first(design: Design, settings: StudySettings) -> None:
    trunks = [run for run in design if run.role == "trunk"]
    assert list(design)[: len(trunks)] == trunks
    assert len(trunks) == len(settings.shapes)
    costs = [run.config.train_flops for run in trunks]
    assert costs == sorted(costs, reverse=True)


def test_every_decay_forks_from_a_planned_trunk(design: Design) -> None:
    trunks = {run.config.run_id: run.config for run in design if run.role == "trunk"}
    for run in design:
        if run.config.kind == "decay":
            assert run.config.shape == trunks[run.config.start_run_id].shape
            assert run.config.start_tokens == trunks[run.config.start_run_id].tokens


def test_every_shape_that_may_be_chosen_is_run(design: Design, settings: StudySettings) -> None:
    """The search chooses among the shapes of the runs: one that chance gave to no mixture could not be chosen."""
    assert not [run for run in design if run.role == "shape"]  # the demo's mixtures have both of its shapes
    added = 0
    for seed in range(3):
        few = {"shapes": ["linear", "1-sqrt", "cosine"], "num_mixtures": 4, "seed": seed}
        changed = settings.model_copy(update={"design": settings.design.model_copy(update=few)})
        runs = list(Planner(changed, CorpusFacts("fingerprint", 4096, AVAILABLE)).sweep())
        assert {run.config.schedule.segments[-1].shape for run in runs if run.config.kind == "decay"} >= set(
            few["shapes"]
        )
        alone = [run for run in runs if run.role == "shape"]
        assert all(run.config.tokens == max(settings.design.decay_tokens) for run in alone)
        added += len(alone)
    assert added > 0


def test_the_target_runs_no_microanneal(design: Design, planner: Planner, settings: StudySettings) -> None:
    target = planner.shape(settings.target.shape)
    assert all(run.role == "trunk" for run in design if run.config.shape == target)


def test_every_mixture_is_affordable(design: Design, planner: Planner) -> None:
    for run in design:
        if run.config.kind == "decay":
            planner.space.check(run.config.mixture, run.config.tokens)


def test_controls_match_every_length_and_lr(
    design: Design, planner: Planner, settings: StudySettings
) -> None:
    proxy = planner.start(settings.proxy).config.run_id
    controls = {
        (run.config.tokens, run.config.schedule.start_lr)
        for run in design
        if run.role == "control" and run.config.start_run_id == proxy
    }
    wanted = {
        (tokens, settings.trunk.peak_lr * factor)
        for tokens in settings.design.decay_tokens
        for factor in settings.design.start_lr_factors
    }
    assert controls == wanted


def test_replicates_differ_in_their_seed_only(design: Design) -> None:
    replicates = [run.config for run in design if run.role == "replicate"]
    assert len(replicates) >= 2
    assert len({config.with_changes(seed=0).run_id for config in replicates}) == 1
    assert len({config.seed for config in replicates}) == len(replicates)


def test_equal_settings_give_equal_plans_and_no_run_twice(design: Design, planner: Planner) -> None:
    assert planner.sweep() == design
    identities = [run.config.run_id for run in design]
    assert len(set(identities)) == len(identities)


def test_a_design_survives_json(design: Design) -> None:
    assert Design.from_dict(design.to_dict()) == design


def test_an_edited_design_is_refused(design: Design) -> None:
    stored = design.to_dict()
    stored["runs"][0]["config"]["seed"] += 1
    with pytest.raises(InvalidValueError, match="run_id"):
        Design.from_dict(stored)


def test_batch_sizes_are_crossed_with_the_other_choices(settings: StudySettings, planner: Planner) -> None:
    sizes = [settings.batch_tokens, 4 * settings.batch_tokens]
    changed = settings.model_copy(
        update={"design": settings.design.model_copy(update={"batch_tokens": sizes})}
    )
    runs = list(Planner(changed, planner.corpus).sweep())
    trunks = {run.config.batch_tokens for run in runs if run.role == "trunk"}
    assert trunks == {settings.batch_tokens}
    drawn = [run.config.batch_tokens for run in runs if run.role == "simplex"]
    assert abs(drawn.count(sizes[0]) - drawn.count(sizes[1])) <= 1
    controls = {(run.config.tokens, run.config.schedule.start_lr) for run in runs if run.role == "control"}
    for size in sizes:
        own = [run for run in runs if run.role == "control" and run.config.batch_tokens == size]
        assert {(run.config.tokens, run.config.schedule.start_lr) for run in own} == controls
    assert planner.microanneal(
        "x", settings.proxy, planner.decay_schedule(settings.proxy, 4096, 1.0, "linear"),
        planner.control_mixture, seed=0,
    ).config.batch_tokens == settings.batch_tokens  # fmt: skip


def test_a_batch_of_part_of_a_sequence_is_refused(settings: StudySettings) -> None:
    given = settings.model_dump(mode="json")
    given["design"]["batch_tokens"] = [settings.seq_len + 1]
    with pytest.raises(ValueError, match=r"'design\.batch_tokens' must be a multiple of seq_len"):
        StudySettings.model_validate(given)


def test_levels_are_balanced() -> None:
    levels = [(1, 1.0, "linear", 8), (2, 1.0, "linear", 8), (3, 1.0, "linear", 8)]
    drawn = balanced_levels(levels, 10, seed=0)
    counts = [drawn.count(level) for level in levels]
    assert sum(counts) == 10
    assert max(counts) - min(counts) <= 1


def test_pools_shrink_with_the_repetition_scale(settings: StudySettings) -> None:
    whole = pool_tokens(settings, AVAILABLE)
    fourth = pool_tokens(settings, AVAILABLE, repetition_scale=4.0)
    for name, tokens in AVAILABLE.items():
        assert whole[name] <= tokens
        np.testing.assert_allclose(fourth[name], tokens / 4, atol=settings.seq_len)


def test_the_table_prices_every_run(design: Design) -> None:
    table = design.table()
    assert table["train_flops"].sum() == design.train_flops
    shares = table[[column for column in table if column.startswith("mix:")]].sum(axis=1)
    np.testing.assert_allclose(shares, 1.0)


def test_a_plan_says_what_it_can_detect_before_it_runs(settings: StudySettings) -> None:
    replicates = settings.design.num_replicates
    now, doubled = (Noise(1.0, count - 1).detectable_effect() for count in (replicates, 2 * replicates))
    assert f"With {replicates} replicates it is {now:.2g} times the standard" in detectable_effect(
        settings, None
    )
    assert f"With {2 * replicates} it is {doubled:.2g} times (design.num_replicates" in detectable_effect(
        settings, None
    )
    column = {f"loss:{name}": [3.0, 3.01, 3.02] for name in settings.sources}
    constant = dict.fromkeys(RUN_COLUMNS, 1) | {"kind": "decay", "role": "replicate", "reached_target": True}
    rows = pd.DataFrame([constant] * 3).assign(
        run_id=["a", "b", "c"], seed=[1, 2, 3], **column, **{"mix:code": 1.0}
    )
    measured = Noise(0.01, 2).detectable_effect()
    assert f"differ by {measured:.3g} nats per token (3 seed replicates" in detectable_effect(settings, rows)


@pytest.mark.parametrize("scaled", [False, True])
def test_under_mup_the_hidden_matrices_of_a_wider_shape_have_a_smaller_lr(scaled: bool) -> None:
    trunk = TINY_SETTINGS["trunk"] | {"scale_lr": "mup", "scale_weight_decay": scaled}
    settings = parse_settings(TINY_SETTINGS | {"trunk": trunk})
    corpus = CorpusFacts(
        fingerprint="f", vocab_size=300, available_tokens=dict.fromkeys(settings.sources, 100_000)
    )
    planner = Planner(settings, corpus)
    narrow, wide = (planner.start(name).config for name in (settings.proxy, settings.target.shape))
    assert narrow.optimizer == settings.optimizer.config()
    factor = narrow.llama.d_model / wide.llama.d_model
    assert (wide.optimizer.hidden_lr_factor, wide.schedule) == (factor, narrow.schedule)
    assert wide.optimizer.hidden_weight_decay_factor == (1 / factor if scaled else 1.0)
    schedule = planner.decay_schedule(settings.target.shape, 2048, 1.0, "linear")
    fork = planner.microanneal(
        "control", settings.target.shape, schedule, planner.control_mixture, seed=1
    ).config
    assert fork.optimizer == wide.optimizer


def test_weight_decay_is_scaled_with_mup_only() -> None:
    trunk = TINY_SETTINGS["trunk"] | {"scale_weight_decay": True}
    with pytest.raises(InvalidValueError, match="needs scale_lr: mup"):
        parse_settings(TINY_SETTINGS | {"trunk": trunk})


def test_scarce_sources_are_repeated_ever_more_often_on_one_mixture(planner: Planner) -> None:
    assert planner.scarce_sources() == {}  # the demo limits its small sources to two passes
    open_sources = {
        name: source.model_copy(update={"max_epochs": None})
        for name, source in planner.settings.sources.items()
    }
    settings = planner.settings.model_copy(update={"sources": open_sources})
    scarcer = Planner(settings, CorpusFacts("fingerprint", 4096, {**AVAILABLE, "qa": 20_000}))
    assert scarcer.scarce_sources() == {"qa": pytest.approx(1.5 * 262_144 / 19_968)}
    runs = [run.config for run in scarcer.sweep() if run.role == "repetition"]
    assert len(runs) == settings.design.repetition_runs
    assert len({config.with_changes(pool_tokens=None).run_id for config in runs}) == 1
    assert {config.tokens for config in runs} == {131_072}
    epochs = [config.mixture.share("qa") * config.tokens / config.pool_tokens["qa"] for config in runs]
    assert epochs == sorted(epochs)
    assert 1.5 <= epochs[0] <= 3.0
    assert epochs[-1] == pytest.approx(1.5 * 262_144 / 19_968, rel=0.2)
    without = settings.model_copy(
        update={"design": settings.design.model_copy(update={"repetition_runs": 0})}
    )
    assert not [run for run in Planner(without, scarcer.corpus).sweep() if run.role == "repetition"]
