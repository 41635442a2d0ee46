"""Search: from a fitted decay law to a recommended decay, with caps, guards and honest uncertainty.

::

    found = recommend(law, space, target=target, goal=goal, choices=choices)
    found.mixture, found.plan, found.gain, found.verdict

``recommend_stages`` chooses the mixture of a stable stage before the decay too. ``recommend_mixture`` does without the
decay law, from a mixture regression alone. ``decay_recipe`` and ``mixture_recipe`` make a ``Recipe`` of what was found.
"""

from decaylaws.search.certainty import Candidate
from decaylaws.search.evidence import ShareEvidence
from decaylaws.search.front import pareto_front
from decaylaws.search.problem import Choices, DecayProblem, Goal, Plan, StableStage, Target
from decaylaws.search.recipes import decay_recipe, mixture_recipe
from decaylaws.search.recommend import recommend
from decaylaws.search.recommendation import Estimate, Recommendation, Rival
from decaylaws.search.regression import MixtureChoice, MixtureTerms, recommend_mixture
from decaylaws.search.stages import StageChoice, StageOption, recommend_stages

__all__ = [
    "Candidate",
    "Choices",
    "DecayProblem",
    "Estimate",
    "Goal",
    "MixtureChoice",
    "MixtureTerms",
    "Plan",
    "Recommendation",
    "Rival",
    "ShareEvidence",
    "StableStage",
    "StageChoice",
    "StageOption",
    "Target",
    "decay_recipe",
    "mixture_recipe",
    "pareto_front",
    "recommend",
    "recommend_mixture",
    "recommend_stages",
]
