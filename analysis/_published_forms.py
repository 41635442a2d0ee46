r"""The decay and continued-pretraining laws of the literature, each fitted alone: rivals of the decay law.

All but ``tissue`` and ``wang_cpt`` ignore the LR path; none is anchored at the checkpoint's measured loss. With
relative size :math:`n`, tokens of trunk and decay :math:`D_t`, tokens of the decay :math:`D`, a domain's own share
:math:`r`, shares :math:`p`, LR integral :math:`S` of trunk and decay, :math:`S_d` of the decay alone, and the LR's fall
with memory :math:`R`:

=================  ====================================================================================
name               loss of a domain
=================  ====================================================================================
``chinchilla``     :math:`E + A n^{-\alpha} + B D_t^{-\beta}` (Hoffmann et al. 2022)
``muennighoff``    the same with the effective tokens of repeated sources (arXiv 2305.16264)
``tissue``         :math:`E + A S^{-\alpha} - C R n^\gamma + B n^{-\beta}` (arXiv 2408.11029)
``data_mixing``    :math:`c + e^{t p}`, the mixing law alone (Ye et al. 2024, M4)
``bimix``          :math:`(r + \epsilon)^{-\alpha} (B D^{-\beta} + C)` (arXiv 2405.14908)
``d_cpt``          :math:`E + A n^{-\alpha} + B r^\eta D^{-\beta} + C (r + \epsilon)^{-\gamma}` (Que et al. 2024)
``wang_cpt``       :math:`E + A S^{-\alpha} - C e^{a r} R n^\gamma + F n^{-\beta} + B (1 - e^{a_1 (r - r_0)})
                   [1 - (1 + \kappa S_d)^{-b}]` (Wang et al. 2025)
=================  ====================================================================================

Wang's replay factor :math:`1 - e^{-a_1 r}` of the old corpus is read as a function of how far a domain's own share
fell below the trunk's :math:`r_0`: no shift where it did not. Tokens are in units of the trunk's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, NotFittedError
from decaylaws.laws.decay.inputs import decay_inputs, final_losses, plain_shares
from decaylaws.laws.kit.formulas import bimix, d_cpt, log_linear
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import solve
from decaylaws.laws.kit.threads import one_blas_thread
from decaylaws.runs.table import LOSS, MIX, names_with

_NOISE = 5e-3  # nats, of one final loss; sets how much the priors weigh
_EVALUATIONS = 60


@dataclass(frozen=True)
class Features:
    """What the forms read of a table, one value per row; tokens over the trunk's, sizes over the mean one."""

    size: Array
    tokens: Array
    effective_tokens: Array
    decay_tokens: Array
    intrinsic: Array
    drops: Array
    ages: Array
    shares: Array
    own: Array
    own_before: float

    @property
    def total_intrinsic(self) -> Array:
        """LR integral of trunk and decay, ``[n]``."""
        return self.tokens - self.decay_tokens + self.intrinsic

    def fall(self, memory_steps: float) -> Array:
        """Fall of the LR as far as the model has felt it, ``[n]``."""
        return np.sum(self.drops * -np.expm1(-self.ages / memory_steps), axis=1)


@dataclass(frozen=True)
class Form:
    """One published law: names, prior means (from a typical loss) and deviations, and the loss."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    value: Callable[[Array, Features], Array]


def _chinchilla(theta: Array, f: Features) -> Array:
    return _size_tokens(theta, f.size, f.tokens)


def _muennighoff(theta: Array, f: Features) -> Array:
    return _size_tokens(theta, f.size, f.effective_tokens)


def _size_tokens(theta: Array, size: Array, tokens: Array) -> Array:
    floor, log_a, log_alpha, log_b, log_beta = theta
    by_size = np.exp(log_a) * size ** -np.exp(log_alpha)
    return np.exp(floor) + by_size + np.exp(log_b) * tokens ** -np.exp(log_beta)


def _tissue(theta: Array, f: Features) -> Array:
    return _level(theta, f) - _gain(theta, f)


def _level(theta: Array, f: Features) -> Array:
    """Loss at constant LR."""
    floor, log_a, log_alpha, *_, log_b, log_beta = theta[: len(_TISSUE[0])]
    progress = np.exp(log_a) * f.total_intrinsic ** -np.exp(log_alpha)
    return np.exp(floor) + progress + np.exp(log_b) * f.size ** -np.exp(log_beta)


def _gain(theta: Array, f: Features) -> Array:
    """Gain by the fall of the LR."""
    log_c, log_memory, gamma = theta[3:6]
    return np.exp(log_c) * f.fall(np.exp(log_memory)) * f.size**gamma


def _data_mixing(theta: Array, f: Features) -> Array:
    return np.exp(theta[0]) + log_linear(theta[1:], f.shares)[0]


def _bimix(theta: Array, f: Features) -> Array:
    return bimix(theta, f.own, f.decay_tokens)


def _d_cpt(theta: Array, f: Features) -> Array:
    by_size = np.exp(theta[1]) * f.size ** -np.exp(theta[2])
    return by_size + d_cpt(np.delete(theta, [1, 2]), f.own, f.decay_tokens)


def _wang_cpt(theta: Array, f: Features) -> Array:
    follows, shift, log_a1, log_kappa, log_b = theta[len(_TISSUE[0]) :]
    more = f.own - f.own_before
    reached = -np.expm1(-np.exp(log_b) * np.log1p(np.exp(log_kappa) * f.intrinsic))
    moved = -shift * np.expm1(np.exp(log_a1) * more) * reached
    return _level(theta, f) - np.exp(follows * more) * _gain(theta, f) + moved


_SIZE_TOKENS = (("floor", "log_A", "log_alpha", "log_B", "log_beta"),
                (0.6, -1.5, np.log(0.3), -1.5, np.log(0.35)), (0.5, 1.0, 0.5, 1.0, 0.5))  # fmt: skip
_TISSUE = (("floor", "log_A", "log_alpha", "log_C", "log_memory", "gamma", "log_B", "log_beta"),
           (0.6, -1.5, np.log(0.4), -2.3, np.log(50.0), 0.15, -1.5, np.log(0.3)),
           (0.5, 1.0, 0.5, 1.0, 1.5, 0.1, 1.0, 0.5))  # fmt: skip

FORMS: Mapping[str, Form] = {
    "chinchilla": Form(*_SIZE_TOKENS, _chinchilla),
    "muennighoff": Form(*_SIZE_TOKENS, _muennighoff),
    "tissue": Form(*_TISSUE, _tissue),
    "data_mixing": Form(("floor",), (0.8,), (0.5,), _data_mixing),
    "bimix": Form(("log_alpha", "log_B", "log_beta", "log_C"), (np.log(0.03), -1.0, np.log(0.3), 1.0),
                  (1.0, 1.0, 0.7, 0.5), _bimix),
    "d_cpt": Form(("floor", "log_A", "log_alpha", "log_B", "log_eta", "log_beta", "log_C", "log_gamma"),
                  (0.6, -1.5, np.log(0.3), -2.0, 0.0, np.log(0.3), -1.5, np.log(0.1)),
                  (0.5, 1.0, 0.5, 1.0, 0.7, 0.7, 1.0, 0.7), _d_cpt),
    "wang_cpt": Form((*_TISSUE[0], "a", "B_shift", "log_a1", "log_kappa", "log_b"),
                     (*_TISSUE[1], 0.0, 0.1, 0.0, np.log(5.0), np.log(0.5)),
                     (*_TISSUE[2], 0.5, 0.5, 1.0, 1.5, 0.5), _wang_cpt),
}  # fmt: skip


class PublishedForm:
    """One published law, fitted to every domain of a runs table by itself.

    Args:
        name: one of ``FORMS``.
        trunk_mixture: share of every source in the trunk's data; what Wang's shift starts from.
        domains: domains to predict; by default every ``loss:<domain>`` of the table.

    A domain whose name is no source has no own share: it counts as constant.

    Attributes:
        params_: by domain, fitted parameters by name.
    """

    def __init__(
        self, name: str, trunk_mixture: Mapping[str, float], *, domains: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self.trunk_mixture = trunk_mixture
        self.domains = domains

    @one_blas_thread()
    def fit(self, X: pd.DataFrame) -> Self:
        """Fit on finished decays, a runs table.

        Raises:
            InvalidValueError: an unknown name, a loss that is missing.
            SchemaError: a column is missing.
        """
        if self.name not in FORMS:
            raise InvalidValueError("name", self.name, f"must be one of {', '.join(FORMS)}")
        self.domains_ = list(self.domains) if self.domains is not None else names_with(X, LOSS)
        self.sources_ = list(dict.fromkeys([*self.trunk_mixture, *names_with(X, MIX)]))
        self._reference = {
            "lr": float(X["start_lr"].max()),
            "params": float(np.exp(np.log(X["non_embedding_params"].to_numpy(dtype=float)).mean())),
            "tokens": float(X["start_tokens"].to_numpy(dtype=float).mean()),
        }
        observed = final_losses(X, self.domains_)
        self.params_: dict[str, dict[str, float]] = {}
        for column, domain in enumerate(self.domains_):
            self._fit_domain(domain, self._features(X, domain), observed[:, column])
        return self

    def predict(self, X: pd.DataFrame) -> Array:
        """Losses after planned decays, nats per token, ``[n, d]``."""
        if not hasattr(self, "params_"):
            raise NotFittedError(self)
        form = FORMS[self.name]
        columns = [
            form.value(np.array(list(self.params_[domain].values())), self._features(X, domain))
            for domain in self.domains_
        ]
        return np.column_stack(columns)

    def _fit_domain(self, domain: str, features: Features, losses: Array) -> None:
        form = FORMS[self.name]
        extra = len(self.sources_) if self.name == "data_mixing" else 0
        names = (*form.names, *(f"t:{source}" for source in self.sources_[:extra]))
        mean, sd = np.array([*form.mean, *[0.0] * extra]), np.array([*form.sd, *[1.0] * extra])
        found = solve(
            lambda theta: form.value(theta, features) - losses,
            np.vstack([mean, mean + 0.3 * sd]), lower=mean - 6 * sd, upper=mean + 6 * sd,
            huber_delta=2 * _NOISE, names=names, prior_mean=mean, prior_sd=sd, noise_sd=_NOISE,
            max_evaluations=_EVALUATIONS, polish=False,
        )  # fmt: skip
        self.params_[domain] = dict(zip(names, found.theta.tolist()))

    def _features(self, runs: pd.DataFrame, domain: str) -> Features:
        reference = self._reference
        inputs = decay_inputs(
            runs, sources=self.sources_, domains=self.domains_, reference_lr=reference["lr"],
            lr_memory=0.0,  # as published: the memory counts steps
        )  # fmt: skip
        unit, shares = reference["tokens"], plain_shares(runs, self.sources_)
        known = domain in self.sources_
        return Features(
            size=inputs.params / reference["params"],
            tokens=(inputs.start_tokens + inputs.decay_tokens) / unit,
            effective_tokens=(inputs.start_tokens + inputs.decay_tokens * inputs.shares.sum(axis=1)) / unit,
            decay_tokens=inputs.decay_tokens / unit,
            intrinsic=inputs.intrinsic / unit,
            drops=inputs.drops,
            ages=inputs.ages,
            shares=shares,
            own=shares[:, self.sources_.index(domain)] if known else np.ones(len(runs)),
            own_before=float(self.trunk_mixture.get(domain, 0.0)) if known else 1.0,
        )


def published_forms(trunk_mixture: Mapping[str, float]) -> dict[str, Callable[[], PublishedForm]]:
    """Every form, unfitted, ready for ``held_out_fits``."""
    return {name: functools.partial(PublishedForm, name, trunk_mixture) for name in FORMS}
