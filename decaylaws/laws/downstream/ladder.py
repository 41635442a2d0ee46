"""The two-step ladder: size and tokens to the task's loss, the loss to accuracy (arXiv 2412.04403)."""

from __future__ import annotations

from typing import Any, Self

import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.downstream.sigmoid import SigmoidLink
from decaylaws.laws.downstream.tables import accuracies, finished
from decaylaws.laws.kit.draws import quantile_interval
from decaylaws.laws.kit.law import Law
from decaylaws.laws.scaling.law import SizeTokenLaw
from decaylaws.laws.scaling.laws import Chinchilla, Skaling

_LOSS_LAWS: dict[str, type[SizeTokenLaw]] = {"chinchilla": Chinchilla, "skaling": Skaling}


class TaskLadder(Law):
    """Accuracy from size and tokens through the task's loss.

    ``X`` has the columns ``params``, ``tokens``, ``loss`` (the task's, such as the gold answer's bits per
    byte), and may have ``run`` and ``final``: only rows where ``final`` is true, those of finished runs, are
    fitted in the first step; the second takes all. ``y`` is the accuracy, the column ``accuracy`` without it.
    Prediction needs ``params`` and ``tokens``.

    Args:
        loss_law: ``chinchilla``, as published, or ``skaling``.
        prior: whether the loss law's exponents get priors.
        floor: of the sigmoid; fitted without it.
        ceiling: of the sigmoid; fitted without it.
        ideal: whether the sigmoid is shown accuracy 1 at loss 0.
        num_draws: draws behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: ``loss`` and ``link``: the parameters of both steps.
        report_: diagnosis of the second step; ``loss_law_.report_`` has that of the first.
        loss_law_: the fitted first step.
        link_: the fitted second step.
    """

    unit, target = "accuracy", "accuracy"
    loss_law_: SizeTokenLaw
    link_: SigmoidLink

    def __init__(
        self,
        *,
        loss_law: str = "chinchilla",
        prior: bool = False,
        floor: float | None = None,
        ceiling: float | None = None,
        ideal: bool = True,
        num_draws: int = 200,
        seed: int = 0,
    ) -> None:
        self.loss_law = loss_law
        self.prior = prior
        self.floor = floor
        self.ceiling = ceiling
        self.ideal = ideal
        self.num_draws = num_draws
        self.seed = seed

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return ("params", "tokens")

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit both steps.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: an unknown loss law, no finished run, or a step cannot be fitted.
        """
        if self.loss_law not in _LOSS_LAWS:
            raise InvalidValueError("loss_law", self.loss_law, f"must be one of {', '.join(_LOSS_LAWS)}")
        if "loss" not in X:
            raise SchemaError("runs", missing=["loss"])
        table = X.assign(accuracy=accuracies(X, y))
        final = finished(table)
        kind = _LOSS_LAWS[self.loss_law]
        self.loss_law_ = kind(prior=self.prior, num_draws=self.num_draws, seed=self.seed).fit(final)
        self.link_ = SigmoidLink(
            floor=self.floor,
            ceiling=self.ceiling,
            ideal=self.ideal,
            num_draws=self.num_draws,
            seed=self.seed + 1,
        ).fit(table)
        self.params_ = {"loss": self.loss_law_.params_, "link": self.link_.params_}
        self.report_ = self.link_.report_
        return self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Accuracy of every row; with ``interval`` the range of a new run, the errors of both steps in it."""
        self._require_fitted()
        loss = self.loss_law_.predict(X)
        mean = self.link_.predict(pd.DataFrame({"loss": loss}))
        if interval is None:
            return mean
        return quantile_interval(mean, self.link_.draws_at(self.loss_law_.loss_draws(X)), interval)

    def _state(self) -> dict[str, Any]:
        return {"loss_law": self.loss_law_.to_dict(), "link": self.link_.to_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.loss_law_ = SizeTokenLaw.from_dict(state["loss_law"])
        self.link_ = SigmoidLink.from_dict(state["link"])
        self.params_ = {"loss": self.loss_law_.params_, "link": self.link_.params_}
