"""Mixture regressions by name."""

from __future__ import annotations

from collections.abc import Callable

from decaylaws.errors import InvalidValueError
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.blend import BlendedRegression
from decaylaws.laws.mixing.flexible import LightGBMRegression, LinearRegression
from decaylaws.laws.mixing.parametric import InverseSum, LogLinear
from decaylaws.laws.mixing.process import GaussianProcess

REGRESSIONS: dict[str, Callable[[], MixtureRegression]] = {
    "blend": BlendedRegression,
    "inverse_sum": InverseSum,
    "lightgbm": LightGBMRegression,
    "lightgbm_regmix": LightGBMRegression.regmix,
    "gaussian_process": GaussianProcess,
    "log_linear": LogLinear,
    "linear": LinearRegression,
}
"""Constructor of each regression, the most trusted first."""

DEFAULT_REGRESSION = "blend"


def regression(name: str = DEFAULT_REGRESSION) -> MixtureRegression:
    """A new, unfitted regression by name; an unknown name is an InvalidValueError."""
    if name not in REGRESSIONS:
        raise InvalidValueError("regression", name, f"must be one of {list(REGRESSIONS)}")
    return REGRESSIONS[name]()
