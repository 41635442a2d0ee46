"""From a recommendation to a recipe without a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.recipe import HandOver, Recipe, Source
from decaylaws.schedules import decay
from decaylaws.search import (
    Choices,
    Goal,
    Target,
    decay_recipe,
    mixture_recipe,
    recommend,
    recommend_mixture,
)

START = {"web": 3.2, "code": 2.9, "maths": 3.6}
SPACE = MixtureSpace(tuple(SourceLimits(name, 10**7, 4.0) for name in START))
HANDOVER = HandOver(checkpoint="run/step-1000", tokens=1_000_000, lr=2e-3, lr_source="its log")


def test_a_recommended_decay_becomes_a_recipe_that_says_the_same(law, control, tmp_path) -> None:
    target = Target(non_embedding_params=100_000, start_tokens=1_000_000, batch_tokens=1000, start_loss=START)
    goal = Goal(weights=dict.fromkeys(START, 1.0), control=control, guard_domains=["web"], guard_nats=0.1,
                guard_margins={"web": 0.01}, risk=0.0)  # fmt: skip
    choices = Choices(decay_tokens=(100_000, 200_000), start_lr=(1e-3, 1e-3))
    found = recommend(law, SPACE, target=target, goal=goal, choices=choices, trials=10)
    recipe = decay_recipe(found, sources=SPACE, handover=HANDOVER, seq_len=100)
    stage = recipe.stages[0]
    assert (stage.mixture, stage.tokens, stage.batch_tokens) == (found.mixture, found.plan.decay_tokens, 1000)
    assert recipe.handover.lr_jump  # the search chose another LR than the checkpoint's
    assert recipe.predictions["code"].mean == found.predicted["code"].mean
    assert recipe.guards["web"].predicted == pytest.approx(0.1 - found.guards["web"])
    assert recipe.guards["web"].upper == pytest.approx(0.11 - found.guards["web"])
    assert recipe.guards["web"].holds == found.feasible
    assert Recipe.load(recipe.save(tmp_path / "recipe.yaml")) == recipe


def test_a_mixture_that_a_regression_chose_becomes_a_recipe() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 24)
    losses = 1.5 + 0.4 / (0.05 + shares @ [0.2, 0.3, 0.5]) + rng.normal(0, 0.003, 24)
    table = (pd.DataFrame(shares, columns=list(START)), pd.DataFrame({"web": losses}))
    choice = recommend_mixture(*table, SPACE, {"web": 1.0}, law="inverse_sum", num_draws=2)
    given = {"handover": HANDOVER, "seq_len": 100, "batch_tokens": 1000}
    recipe = mixture_recipe(choice, decay(10_000, 2e-3), sources=SPACE, **given)
    assert recipe.stages[0].mixture == choice.mixture
    assert recipe.sources["web"].available_tokens == 10**7
    assert recipe.predictions == {}
    scarce = {name: Source(available_tokens=100, max_epochs=1) for name in START}
    with pytest.raises(InvalidValueError, match="max_epochs"):
        mixture_recipe(choice, decay(10_000, 2e-3), sources=scarce, **given)
    with pytest.raises(InvalidValueError, match="must be a multiple of seq_len"):
        mixture_recipe(choice, decay(10_000, 2e-3), sources=SPACE, **given | {"seq_len": 300})
