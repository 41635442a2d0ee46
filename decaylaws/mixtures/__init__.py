"""Mixtures of sources: values on the simplex, the feasible set around them, and samples from it.

::

    space = MixtureSpace((SourceLimits("web", 10**12), SourceLimits("code", 2 * 10**9, max_epochs=4)))
    space.caps(decay_tokens=50 * 10**9)          # what share each source can carry
    space.project({"web": 0.5, "code": 0.5}, decay_tokens=50 * 10**9)
    space.sample(64, seed=0, decay_tokens=50 * 10**9)
"""

from decaylaws.mixtures.limits import SourceGroup, SourceLimits, SourceUse
from decaylaws.mixtures.mixture import Mixture
from decaylaws.mixtures.space import MixtureSpace

__all__ = ["Mixture", "MixtureSpace", "SourceGroup", "SourceLimits", "SourceUse"]
