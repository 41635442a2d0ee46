"""The survey's three questions, each a slice of one law, forgetting, and the critical mixture ratio.

Each slice takes one planned decay (a row of the runs table's form) and varies one thing; ``slice_scores_`` says what
it is worth on the law's own runs, held out by its own question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.repetition import Onset
from decaylaws.runs.table import AVERAGED_START_LOSS, EPOCHS, MIX, START_LOSS, values_by

_GRID = np.linspace(0.0, 1.0, 65)


@dataclass(frozen=True)
class CriticalRatio:
    """Largest share of a source that keeps the general loss inside a tolerance.

    Attributes:
        share: by the point prediction; NaN where no share keeps it, 1 where even the pure source does.
        lower: the largest share at which the whole interval keeps it: the safe choice; NaN where there is none.
        upper: the largest share at which the interval still reaches inside.
        level: probability of the intervals.
    """

    share: float
    lower: float
    upper: float
    level: float


class DecaySlices(Law):
    """What a decay law answers, on top of the losses that it predicts."""

    domains_: list[str]
    sources_: list[str]
    is_measured_: bool
    onsets_: tuple[Onset, ...]

    @abstractmethod
    def predict_objective(
        self, runs: pd.DataFrame, weights: Mapping[str, float], interval: float | None = None
    ) -> Array | Prediction:
        """Weighted mean loss over domains, ``[n]``."""

    @abstractmethod
    def weight_vector(self, weights: Mapping[str, float]) -> Array:
        """Weights in the order of ``domains_``, summing to one."""

    def predict_table(self, runs: pd.DataFrame, interval: float = 0.9) -> pd.DataFrame:
        """Predictions in long form: ``run`` (index of the row), ``domain``, ``mean``, ``lower``, ``upper``, nats."""
        found = self.predict(runs, interval)
        labels = pd.MultiIndex.from_product([runs.index, self.domains_], names=["run", "domain"])
        columns = {"mean": found.mean.ravel(), "lower": found.lower.ravel(), "upper": found.upper.ravel()}
        return pd.DataFrame(columns, index=labels).reset_index()

    def forgetting(self, runs: pd.DataFrame, domains: Sequence[str], interval: float = 0.9) -> pd.DataFrame:
        """Rise of the loss of ``domains`` over the decay, long form; negative where a domain still improves.

        Args:
            runs: planned decays, as in a runs table.
            domains: domains to return.
            interval: coverage of the interval.
        """
        table = self.predict_table(runs, interval)
        before = values_by(runs, START_LOSS, self.domains_).ravel()
        rise = table.assign(**{name: table[name] - before for name in ("mean", "lower", "upper")})
        return rise[rise["domain"].isin(list(domains))].reset_index(drop=True)

    def predict_size(
        self,
        plan: pd.Series,
        start_losses: Mapping[int, Mapping[str, float]],
        *,
        averaged_losses: Mapping[int, Mapping[str, float]] | None = None,
        interval: float = 0.9,
    ) -> pd.DataFrame:
        """Losses at other sizes; ratio and tokens are given.

        Args:
            plan: the decay.
            start_losses: by non-embedding parameters, losses of that size's checkpoint by domain, nats per token.
            averaged_losses: the same of the mean of its last weights. A law whose annealing gain was measured
                (``is_measured_``) needs them, since another checkpoint gains something else.
            interval: probability that the intervals are to hold.

        Returns:
            One row per size and domain: ``non_embedding_params``, ``domain``, ``mean``, ``lower``, ``upper``.

        Raises:
            InvalidValueError: a size lacks the loss of a domain, or has one of a domain that the law does not know.
        """
        given = {"start_losses": (START_LOSS, start_losses)}
        if self.is_measured_:
            given["averaged_losses"] = (AVERAGED_START_LOSS, averaged_losses or {})
        for field, (_, losses) in given.items():
            for size in start_losses:
                if set(losses.get(size, {})) != set(self.domains_):
                    constraint = f"must hold the loss of each of {', '.join(self.domains_)}"
                    raise InvalidValueError(f"{field}.{size}", dict(losses.get(size, {})), constraint)
        rows = [
            {**plan, "non_embedding_params": size}
            | {
                prefix + name: losses[size][name]
                for prefix, losses in given.values()
                for name in self.domains_
            }
            for size in start_losses
        ]
        return self._labelled(pd.DataFrame(rows), "non_embedding_params", list(start_losses), interval)

    def predict_ratio(
        self, plan: pd.Series, source: str, shares: Sequence[float], *, interval: float = 0.9
    ) -> pd.DataFrame:
        """Losses at other shares of one source, the rest in proportion; size, checkpoint and tokens are given.

        Args:
            plan: one planned decay, as a row of a runs table.
            source: the source whose share changes.
            shares: its shares.
            interval: coverage of the interval.

        Returns:
            One row per share and domain: ``share``, ``domain``, ``mean``, ``lower``, ``upper``.
        """
        rows = pd.DataFrame([self._with_share(plan, source, share) for share in shares])
        return self._labelled(rows, "share", list(shares), interval)

    def predict_tokens(
        self, plan: pd.Series, decay_tokens: Sequence[int], *, interval: float = 0.9
    ) -> pd.DataFrame:
        """Losses at other lengths of the decay; size, checkpoint and ratio are given.

        Args:
            plan: one planned decay, as a row of a runs table.
            decay_tokens: lengths of the decay.
            interval: coverage of the interval.

        Returns:
            One row per length and domain: ``decay_tokens``, ``domain``, ``mean``, ``lower``, ``upper``.
        """
        rows = []
        for tokens in decay_tokens:
            scale = tokens / plan["decay_tokens"]
            epochs = {name: plan[name] * scale for name in plan.index if str(name).startswith(EPOCHS)}
            rows.append({**plan, **epochs, "decay_tokens": tokens})
        return self._labelled(pd.DataFrame(rows), "decay_tokens", list(decay_tokens), interval)

    def critical_mixture_ratio(
        self,
        plan: pd.Series,
        source: str,
        general: Mapping[str, float],
        tolerance: float,
        *,
        interval: float = 0.9,
    ) -> CriticalRatio:
        """Largest share of ``source`` that keeps the general loss within ``tolerance`` of the checkpoint's (CMR).

        The critical mixture ratio of Gu et al. 2024 (arXiv 2407.17467) as an inequality on the fitted law.

        Args:
            plan: the decay; its other sources keep their proportions.
            source: the specialised source.
            general: weights of the general domains.
            tolerance: nats per token.
            interval: probability that the intervals are to hold.
        """
        start = values_by(pd.DataFrame([plan]), START_LOSS, self.domains_)[0]
        limit = float(self.weight_vector(general) @ start) + tolerance

        def excess(bound: str) -> Callable[[Array], Array]:
            def above(shares: Array) -> Array:
                rows = pd.DataFrame([self._with_share(plan, source, float(share)) for share in shares])
                return np.asarray(getattr(self.predict_objective(rows, general, interval), bound) - limit)

            return above

        found = {bound: _largest_inside(excess(bound)) for bound in ("mean", "upper", "lower")}
        return CriticalRatio(found["mean"], found["upper"], found["lower"], interval)

    def _with_share(self, plan: pd.Series, source: str, share: float) -> dict[str, object]:
        """The plan with another share of one source; epochs follow the shares."""
        if source not in self.sources_ or not 0 <= share <= 1:
            raise InvalidValueError(
                "share", {source: share}, f"must be a share of one of {', '.join(self.sources_)}"
            )
        before = {name: float(plan.get(MIX + name, 0.0)) for name in self.sources_}
        rest = sum(value for name, value in before.items() if name != source)
        if rest <= 0 and share < 1:
            raise InvalidValueError(
                f"mix:{source}", before[source], "must leave room for other sources", "Plan a mixture."
            )
        after = {name: (1 - share) * value / rest if rest else 0.0 for name, value in before.items()}
        after[source] = share
        row: dict[str, object] = dict(plan)
        for name, value in after.items():
            row[MIX + name] = value
            if value > 0 and before[name] == 0 and any(name == onset.source for onset in self.onsets_):
                remedy = f"Plan a decay that has a share of {name}."
                raise InvalidValueError(
                    f"mix:{name}",
                    before[name],
                    "must be above 0 for a law that counts its repetition: the plan does not say how large it is",
                    remedy,
                )
            if EPOCHS + name in plan and before[name] > 0:
                row[EPOCHS + name] = plan[EPOCHS + name] * value / before[name]
        return row

    def _labelled(
        self, rows: pd.DataFrame, column: str, values: Sequence[float], interval: float
    ) -> pd.DataFrame:
        table = self.predict_table(rows.reset_index(drop=True), interval)
        return table.assign(run=table["run"].map(dict(enumerate(values)))).rename(columns={"run": column})


def _largest_inside(excess: Callable[[Array], Array]) -> float:
    """Largest share whose excess is not positive, NaN where there is none."""
    inside = np.flatnonzero(excess(_GRID) <= 0)
    if not len(inside):
        return float("nan")
    last = int(inside[-1])
    if last == len(_GRID) - 1:
        return 1.0
    return float(brentq(lambda share: excess(np.array([share]))[0], _GRID[last], _GRID[last + 1], xtol=1e-5))
