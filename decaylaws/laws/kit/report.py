"""What a fit has to say about itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class NotIdentifiedWarning(UserWarning):
    """A law answers a question that its runs do not decide."""


class ImplausibleUnitsWarning(UserWarning):
    """Counts of runs that only another unit can explain."""


class FitStatus(StrEnum):
    """How a fit ended; the worst thing that is true of it."""

    CONVERGED = "converged"
    STARTS_DISAGREE = "starts_disagree"
    AT_BOUNDS = "at_bounds"
    ILL_CONDITIONED = "ill_conditioned"
    NOT_CONVERGED = "not_converged"

    @property
    def is_identified(self) -> bool:
        """Whether the data determine the parameters, so that the law means something beyond the data."""
        return self in (FitStatus.CONVERGED, FitStatus.STARTS_DISAGREE)

    @property
    def sentence(self) -> str:
        """The status in words, with what to do about it."""
        return _SENTENCES[self]


_SENTENCES = {
    FitStatus.CONVERGED: "The optimiser converged and the starts agree.",
    FitStatus.STARTS_DISAGREE: "Converged, but less than half of the starts reached the best objective: "
    "use more starts, or trust the intervals more than the point estimate.",
    FitStatus.AT_BOUNDS: "Converged with parameters at their bounds: the data do not determine them.",
    FitStatus.ILL_CONDITIONED: "Converged in a valley: some combination of parameters is not determined by "
    "the data; predictions inside the data may be good, single parameters are not.",
    FitStatus.NOT_CONVERGED: "The optimiser stopped at its limit of evaluations before it converged.",
}


@dataclass(frozen=True)
class FitReport:
    """Diagnosis of one multi-start fit.

    Attributes:
        status: the worst thing that is true of the fit.
        objective: sum of (weighted, Huber) losses plus the prior's penalty at the solution.
        num_starts: starting points that were tried.
        agreeing_share: share of the starts that reached the best objective within 0.1 %.
        at_bounds: names of the parameters that lie on a bound.
        condition: condition number of the column-scaled Jacobian (prior included).
        gradient_norm: largest slope of the objective in a free parameter, per unit of its scale.
        num_observations: residuals in the fit.
        num_params: free parameters.
        seconds: wall-clock time of the fit.
    """

    status: FitStatus
    objective: float
    num_starts: int
    agreeing_share: float
    at_bounds: tuple[str, ...]
    condition: float
    gradient_norm: float
    num_observations: int
    num_params: int
    seconds: float

    @property
    def sentence(self) -> str:
        """The status in words, with the parameters that it concerns."""
        if not self.at_bounds:
            return self.status.sentence
        return f"{self.status.sentence} At bounds: {', '.join(self.at_bounds)}."

    def warn_unless_identified(self, question: str) -> None:
        """Warn that ``question`` (such as "the best size for a budget") is not decided by the fitted runs."""
        if not self.status.is_identified:
            warnings.warn(
                f"The runs do not decide {question}. {self.sentence}", NotIdentifiedWarning, stacklevel=3
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "status": self.status.value, "at_bounds": list(self.at_bounds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitReport:
        """Inverse of :meth:`to_dict`."""
        changed = {"status": FitStatus(values["status"]), "at_bounds": tuple(values["at_bounds"])}
        return cls(**{**values, **changed})
