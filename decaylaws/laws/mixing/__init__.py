"""Regressions and laws that predict loss from the mixture of sources.

All of them take shares [runs, sources] and losses [runs] or [runs, targets], and answer with intervals::

    law = regression().fit(shares, losses)
    law.predict(new_shares, interval=0.9)

``Recalibration`` carries a fit on small proxies to the scale of a few larger runs.
"""

from decaylaws.laws.mixing.base import Exclusion, MixtureRegression
from decaylaws.laws.mixing.blend import BlendedRegression
from decaylaws.laws.mixing.data import shares_frame
from decaylaws.laws.mixing.flexible import LightGBMRegression, LinearRegression
from decaylaws.laws.mixing.optimum import simulated_optimum
from decaylaws.laws.mixing.parametric import InverseSum, LogLinear
from decaylaws.laws.mixing.process import GaussianProcess
from decaylaws.laws.mixing.recalibrate import Recalibration, recalibrate
from decaylaws.laws.mixing.registry import DEFAULT_REGRESSION, REGRESSIONS, regression

__all__ = [
    "DEFAULT_REGRESSION",
    "REGRESSIONS",
    "BlendedRegression",
    "Exclusion",
    "GaussianProcess",
    "InverseSum",
    "LightGBMRegression",
    "LinearRegression",
    "LogLinear",
    "MixtureRegression",
    "Recalibration",
    "recalibrate",
    "regression",
    "shares_frame",
    "simulated_optimum",
]
