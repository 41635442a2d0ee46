"""What an answer to a table of runs holds, whether a regression or the decay law gave it, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.io.values import AS_JSON
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.search.recommendation import Estimate, Rival
from decaylaws.settings.mix import MixSettings

BEST_RUN = "best observed run"
MEAN_RUN = "mean of the runs"
AVAILABLE = "in proportion to tokens"


@dataclass(frozen=True, kw_only=True)
class TableAnswer:
    """A recommended mixture with what it rests on. Losses are in the unit of the table's targets.

    Attributes:
        mixture: the recommended shares.
        objective: its predicted objective with a 90 % interval for one run: the weighted mean of the targets, as losses
            (a score counts as its distance from the best one).
        rivals: ``rival``, its predicted ``objective``, what was ``observed`` of it (of the best run), what the
            recommendation ``gain``s with the ``lower`` and ``upper`` end of a 90 % interval, and whether the evidence
            ``supported`` that gain.
        supported: whether the evidence supports a gain over the first of the rivals.
        verdict: what follows, in words.
        shares: a row for each source: recommended ``share``, ``low`` and ``high`` over what the runs leave open, the
            shares of the best observed run, of the mean of the runs and of the trunk where there is one, finished
            ``runs`` with at least half of the recommended share, and the ``limit`` that it touches.
        targets: a row for each target or group of targets: ``weight`` and predicted value at the recommendation and at
            what it is compared with.
        guards: a row for each guard: ``limit``, predicted ``change`` against the control, ``margin`` and whether it
            ``holds`` with that margin.
        expected_regret: what the recommendation gives away on average over what the runs leave open.
        regret_upper: 90 % bound of that.
        held_out: errors on runs that were left out of the fit, beside baselines.
        law: name of the regression, or of the decay law and its member.
        num_runs: runs of the fit.
        divergence: KL divergence from the prior, nats; 0 without a strength.
        excluded: ``run`` and ``reason`` of the rows that were left out.
        notes: sentences for the reader.
        predicted: objective of every run by fits without it ``[runs]``, and what was observed ``[runs]``.
    """

    mixture: Mixture
    objective: Estimate
    rivals: pd.DataFrame
    supported: bool
    verdict: str
    shares: pd.DataFrame
    targets: pd.DataFrame
    guards: pd.DataFrame
    expected_regret: float
    regret_upper: float
    held_out: pd.DataFrame
    law: str
    num_runs: int
    divergence: float
    excluded: pd.DataFrame
    notes: tuple[str, ...]
    predicted: pd.DataFrame = field(repr=False, metadata={AS_JSON: None})


def mixture_of(shares: pd.Series) -> Mixture:
    """The mixture of a row of shares, which may sum to one only nearly."""
    return Mixture.normalised({str(name): float(value) for name, value in shares.items()})


def require_tokens(settings: MixSettings) -> None:
    """Refuse a mixture in proportion to tokens where the tokens of the sources are not known.

    Raises:
        InvalidValueError: names the setting.
    """
    for name in ("control", "prior"):
        if getattr(settings, name) == "available" and not settings.knows_tokens:
            raise InvalidValueError(name, "available", "needs the available_tokens of the sources")


def named_control(
    settings: MixSettings,
    known: Mapping[str, Mixture],
    space: MixtureSpace,
    shares: pd.DataFrame,
    runs: Sequence[str],
) -> tuple[Mixture, str]:
    """The mixture that ``settings.control`` names, and what to call it in a sentence.

    Args:
        settings: the question.
        known: holds the mean of the runs.
        space: the mixtures that may be recommended.
        shares: of the runs ``[runs, sources]``.
        runs: their names.

    Raises:
        InvalidValueError: there is no such run.
    """
    if settings.control == "mean":
        return known[MEAN_RUN], MEAN_RUN
    if settings.control == "available":
        return space.token_proportional(), AVAILABLE
    if settings.control not in runs:
        raise InvalidValueError("control", settings.control, "must be mean, available or the name of a run")
    row = list(runs).index(settings.control)
    return mixture_of(shares.iloc[row]), f"mixture of run '{settings.control}'"


def named_prior(settings: MixSettings, known: Mapping[str, Mixture], space: MixtureSpace) -> Mixture | None:
    """The mixture that ``settings.prior`` names, near which the answer is to stay; None without a price for leaving it.

    Args:
        settings: the question.
        known: holds the mean of the runs.
        space: the mixtures that may be recommended.
    """
    if settings.kl_strength == 0:
        return None
    return known[MEAN_RUN] if settings.prior == "mean" else space.token_proportional()


def rival_table(rivals: Iterable[Rival], run: str, observed: float, control: str = "control") -> pd.DataFrame:
    """``TableAnswer.rivals``.

    Args:
        rivals: in the order of the table.
        run: name of the best observed run.
        observed: its objective.
        control: what to call the control.
    """
    names = {"control": control, BEST_RUN: f"{BEST_RUN}: {run}"}
    return pd.DataFrame([
        {
            "rival": names.get(rival.name, rival.name),
            "objective": rival.objective,
            "observed": observed if rival.name == BEST_RUN else float("nan"),
            "gain": rival.gain.mean,
            "lower": rival.gain.lower,
            "upper": rival.gain.upper,
            "supported": rival.beaten,
        }
        for rival in rivals
    ])  # fmt: skip


def share_table(
    mixture: Mixture,
    intervals: Mapping[str, tuple[float, float]],
    others: Mapping[str, Mixture],
    support: Mapping[str, int],
    limits: Mapping[str, str],
    shares: pd.DataFrame,
) -> pd.DataFrame:
    """``TableAnswer.shares``, the largest recommended share first.

    Args:
        mixture: the recommended one.
        intervals: by source, the range of its share that the runs leave open.
        others: mixtures to stand beside it, by column.
        support: by source, runs with at least half of its share.
        limits: by source, the limit that its share touches, or an empty text.
        shares: of the runs ``[runs, sources]``.
    """
    rows = []
    for source, (low, high) in intervals.items():
        share, largest = mixture.share(source), float(shares[source].max())
        # a law has seen nothing beyond the largest share of any run, so the search stops there
        at_largest = share >= largest - 1e-3 and share > 1e-3
        rows.append({
            "source": source,
            "share": share,
            "low": low,
            "high": high,
            **{column: other.share(source) for column, other in others.items()},
            "runs": support.get(source, 0),
            "limit": limits[source] or ("largest share of any run" if at_largest else ""),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("share", ascending=False, kind="stable", ignore_index=True)


def beyond_runs(mixture: Mixture, shares: pd.DataFrame) -> list[str]:
    """A sentence where a lower bound takes shares beyond every run, else none.

    Args:
        mixture: the recommended one.
        shares: of the runs ``[runs, sources]``.
    """
    largest = shares.max()
    beyond = [
        f"{source} ({mixture.share(source):.4g}, at most {most:.4g} in any run)"
        for source, most in largest.items()
        if mixture.share(str(source)) > most + 1e-3
    ]
    if not beyond:
        return []
    return [
        f"Lower bounds take shares beyond every run, so that the prediction is an extrapolation: {', '.join(beyond)}."
    ]


def guard_table(
    limits: Mapping[str, float], slack: Mapping[str, float], margins: Mapping[str, float]
) -> pd.DataFrame:
    """``TableAnswer.guards``.

    Args:
        limits: by target, how much worse than the control it may become.
        slack: by target, what the predicted change leaves of that.
        margins: by target, the slack that errors on left-out runs ask for; 0 where it is not given.
    """
    columns = ["target", "limit", "change", "margin", "holds"]
    rows = []
    for name, limit in limits.items():
        margin = margins.get(name, 0.0)
        rows.append((name, limit, limit - slack[name], margin, slack[name] >= margin - 1e-6))
    return pd.DataFrame(rows, columns=columns)
