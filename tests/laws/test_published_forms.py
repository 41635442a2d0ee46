"""Published laws of decay and continued pretraining, which the analysis compares the decay law with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError, NotFittedError
from tests.laws.test_decay_law import SOURCES, TRUNK, simulated

ANALYSIS = Path(__file__).resolve().parents[2] / "analysis"
NAMES = ("chinchilla", "muennighoff", "tissue", "data_mixing", "bimix", "d_cpt", "wang_cpt")


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ANALYSIS))
    return __import__("_published_forms")


@pytest.mark.parametrize("name", NAMES)
def test_a_published_law_predicts_what_it_planted(name: str, forms: Any) -> None:
    assert set(forms.published_forms(TRUNK)) == set(NAMES)
    runs = simulated(30, noise=0.0)
    law = forms.PublishedForm(name, TRUNK).fit(runs.head(8))
    for domain in SOURCES:  # another truth of the same form, away from the prior's mean
        for parameter in law.params_[domain]:
            law.params_[domain][parameter] += 0.2
    unseen = simulated(10, seed=3)
    truth, planted = law.predict(unseen), law.predict(runs)
    runs[[f"loss:{domain}" for domain in SOURCES]] = planted
    error = np.abs(forms.PublishedForm(name, TRUNK).fit(runs).predict(unseen) - truth).mean()
    assert error < 0.1 * np.abs(truth - planted.mean(axis=0)).mean() + 1e-4


def test_a_published_law_says_what_it_cannot_do(forms: Any) -> None:
    with pytest.raises(InvalidValueError, match="must be one of"):
        forms.PublishedForm("guess", TRUNK).fit(simulated(8))
    with pytest.raises(NotFittedError):
        forms.PublishedForm("bimix", TRUNK).predict(simulated(4))
