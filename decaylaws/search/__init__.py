"""Search: from a fitted decay law to a recommended decay, with caps, guards and honest uncertainty.

::

    found = recommend(law, space, target=target, goal=goal, choices=choices)
    found.mixture, found.plan, found.gain, found.verdict
"""

from decaylaws.search.problem import Choices, DecayProblem, Goal, Plan, Target
from decaylaws.search.recommend import Estimate, Recommendation, Rival, recommend

__all__ = [
    "Choices",
    "DecayProblem",
    "Estimate",
    "Goal",
    "Plan",
    "Recommendation",
    "Rival",
    "Target",
    "recommend",
]
