"""Published laws of decay and continued pretraining, which the analysis compares the decay law with."""

from __future__ import annotations

import numpy as np
import pytest

from analysis._published_forms import FORMS, PublishedForm, published_forms
from decaylaws.errors import InvalidValueError, NotFittedError
from tests.laws.test_decay_law import SOURCES, TRUNK, simulated


@pytest.mark.parametrize("name", list(FORMS))
def test_a_published_law_predicts_what_it_planted(name: str) -> None:
    assert set(published_forms(TRUNK)) == set(FORMS)
    runs = simulated(30, noise=0.0)
    law = PublishedForm(name, TRUNK).fit(runs.head(8))
    for domain in SOURCES:  # another truth of the same form, away from the prior's mean
        for parameter in law.params_[domain]:
            law.params_[domain][parameter] += 0.2
    unseen = simulated(10, seed=3)
    truth, planted = law.predict(unseen), law.predict(runs)
    runs[[f"loss:{domain}" for domain in SOURCES]] = planted
    error = np.abs(PublishedForm(name, TRUNK).fit(runs).predict(unseen) - truth).mean()
    assert error < 0.1 * np.abs(truth - planted.mean(axis=0)).mean() + 1e-4


def test_a_published_law_says_what_it_cannot_do() -> None:
    with pytest.raises(InvalidValueError, match="must be one of"):
        PublishedForm("guess", TRUNK).fit(simulated(8))
    with pytest.raises(NotFittedError):
        PublishedForm("bimix", TRUNK).predict(simulated(4))
