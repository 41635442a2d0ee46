"""What a decay law sees of a runs table: sizes, mixtures, losses at the start, and features of the LR path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.expected import loss_errors
from decaylaws.laws.kit.formulas import REPEAT_SCALE, effective_epochs
from decaylaws.laws.kit.law import Array
from decaylaws.runs.table import (
    AVERAGED_SHARE,
    AVERAGED_START_LOSS,
    AVERAGED_START_TOKENS,
    EPOCHS,
    HANDOVER_LR,
    LOSS,
    MIX,
    STABLE_MIX,
    STABLE_TOKENS,
    START_LOSS,
    WARMUP_TOKENS,
    names_with,
    require_decays,
    values_by,
)
from decaylaws.schedules import decay

CONSTANT = "constant"
"""The shape of decays whose LR does not fall on the way: it may drop at the hand-over, of which no fall tells."""

PATH_NODES = 32  # pieces into which a decay is cut for the annealing kernel
LR_MEMORY = 0.5
"""Power of the LR by which a step counts for the memory of a fall: 0 counts steps, 1 the LR integral.

A model forgets its noise the slower the lower its LR is. Decays of unlike shapes on published records, each shape
predicted from the others, ask for a power in the middle (``analysis/LOG.md``).
"""

_FINER = 8  # parts of each piece, by which a memory that slows with the LR is integrated; an even number


@dataclass(frozen=True)
class DecayInputs:
    """One row per planned or finished decay.

    Attributes:
        params: non-embedding parameters, shape ``[n]``.
        start_tokens: tokens that the trunk had seen at the checkpoint, ``[n]``.
        decay_tokens: tokens of the decay, ``[n]``.
        intrinsic: LR integral of the decay over the reference LR, in tokens, ``[n]``.
        drops: falls of the LR along the path over the reference LR, hand-over first, ``[n, 1 + PATH_NODES]``.
        ages: steps of the reference batch between each fall and the end, each counted by the relative LR to the power
            ``LR_MEMORY``, ``[n, 1 + PATH_NODES]``.
        shares: effective shares of the sources; below the plain share where a source repeats, ``[n, m]``.
        epochs: passes over every source, 0 where they are not known, ``[n, m]``; those of a stable stage count too.
        stable_intrinsic: tokens of the stable stage before the decay, 0 where there is none, ``[n]``.
        stable_shares: effective shares of the sources in that stage, ``[n, m]``.
        start_loss: loss of every domain at the checkpoint, nats per token, ``[n, d]``.
        measured_gain: how much lower the loss of the mean of the trunk's last weights is, nats per token, ``[n, d]``;
            1 where the law does without.
        averaged_steps: steps of the trunk over which that mean goes, ``[n]``; infinite where the law does without.
        log_batch: log of the batch size over the reference, ``[n]``.
        loss_error: standard error of a final loss that was expected from the curve of an unfinished run, nats per
            token; 0 where it was measured, ``[n, d]``.
    """

    params: Array
    start_tokens: Array
    decay_tokens: Array
    intrinsic: Array
    drops: Array
    ages: Array
    shares: Array
    epochs: Array
    start_loss: Array
    measured_gain: Array
    averaged_steps: Array
    log_batch: Array
    loss_error: Array
    stable_intrinsic: Array
    stable_shares: Array

    @property
    def has_stages(self) -> bool:
        """Whether any of the decays starts after a stable stage."""
        return bool(self.stable_intrinsic.any())

    def exposures(self, staged: bool) -> Array:
        """Effective shares by which mixtures are compared ``[n, m]``.

        Args:
            staged: put the shares of both stages beside each other, each by its part of the tokens ``[n, 2 m]``.
        """
        if not staged:
            return self.shares
        part = (self.stable_intrinsic / (self.stable_intrinsic + self.decay_tokens))[:, None]
        return np.hstack([(1.0 - part) * self.shares, part * self.stable_shares])

    @property
    def is_finished(self) -> NDArray[np.bool_]:
        """Rows whose final losses were measured, ``[n]``."""
        return (self.loss_error == 0).all(axis=1)

    @property
    def is_measured(self) -> bool:
        """Whether the annealing gain of every checkpoint was measured."""
        return bool(np.isfinite(self.averaged_steps).all())

    def rows(self, mask: NDArray[np.bool_]) -> DecayInputs:
        """Some of the rows."""
        return DecayInputs(**{name: values[mask] for name, values in vars(self).items()})

    def on_mixture(self, shares: Array) -> DecayInputs:
        """The same decays, and the stable stages before them, on fresh text of one mixture ``[m]``."""
        every = np.broadcast_to(shares, self.shares.shape)
        staged = np.where(self.stable_intrinsic[:, None] > 0, every, 0.0)
        return replace(self, shares=every, stable_shares=staged, epochs=np.zeros_like(self.epochs))

    def __len__(self) -> int:
        return len(self.params)


def decay_inputs(
    runs: pd.DataFrame,
    *,
    sources: Sequence[str],
    domains: Sequence[str],
    reference_lr: float,
    reference_batch_tokens: int | None = None,
    measured: bool = False,
    lr_memory: float = LR_MEMORY,
) -> DecayInputs:
    """Read the inputs of a decay law out of a runs table (or a table of plans with the same columns).

    Args:
        runs: rows with sizes, tokens, LR, ``mix:<source>``, ``start_loss:<domain>`` and, where sources repeat,
            ``epochs:<source>``.
        sources: order of the sources; a source that the table does not hold has share 0.
        domains: order of the domains.
        reference_lr: LR of the trunk at the hand-over; a decay that starts lower falls there at once. Where the table
            has ``handover_lr``, that of each row counts.
        reference_batch_tokens: tokens of a step of the trunk; without it every decay counts as at the trunk's.
        measured: whether to take the annealing gain of every checkpoint from ``averaged_start_loss:<domain>``.
        lr_memory: power of the relative LR by which a step counts for ``ages``.

    Raises:
        SchemaError: a column is missing.
        InvalidValueError: a value is not finite or not positive where it must be, or a mixture has tokens in a
            source that the law does not know.
    """
    require_decays(runs, domains)
    for prefix in (MIX, STABLE_MIX):
        for name in names_with(runs, prefix):
            if name not in sources and (runs[prefix + name] > 0).any():
                raise InvalidValueError(
                    prefix + name, float(runs[prefix + name].max()), "is a source that the law was not fitted on",
                    f"Known sources: {', '.join(sources)}.",
                )  # fmt: skip
    batch = _positive(runs, "batch_tokens")
    trunk_batch = batch if reference_batch_tokens is None else np.full(len(runs), reference_batch_tokens)
    own_lr = _positive(runs, HANDOVER_LR) if HANDOVER_LR in runs else np.full(len(runs), reference_lr)
    paths = [
        _path(*plan, int(steps), float(lr), lr_memory)
        for plan, steps, lr in zip(_plans(runs), trunk_batch, own_lr)
    ]
    start_loss = _finite(values_by(runs, START_LOSS, domains), START_LOSS, domains)
    start_tokens, epochs = _positive(runs, "start_tokens"), epochs_of(runs, sources)
    gain, steps = np.ones_like(start_loss), np.full(len(runs), np.inf)
    if measured:
        gain = start_loss - _averaged_losses(runs, domains)
        stretch = AVERAGED_SHARE * start_tokens
        if AVERAGED_START_TOKENS in runs:  # of checkpoints that were averaged over a stretch of their own
            own = runs[AVERAGED_START_TOKENS].to_numpy(dtype=float)
            stretch = np.where(np.isfinite(own), own, stretch)
        steps = stretch / trunk_batch
    return DecayInputs(
        params=_positive(runs, "non_embedding_params"),
        start_tokens=start_tokens,
        decay_tokens=_positive(runs, "decay_tokens"),
        intrinsic=np.array([path[0] for path in paths]),
        drops=np.array([path[1] for path in paths]).reshape(len(runs), -1),
        ages=np.array([path[2] for path in paths]).reshape(len(runs), -1),
        shares=plain_shares(runs, sources) * worth_of(epochs),
        epochs=epochs,
        start_loss=start_loss,
        measured_gain=gain,
        averaged_steps=steps,
        log_batch=np.log(batch / trunk_batch),
        loss_error=loss_errors(runs, domains),
        stable_intrinsic=stable_tokens(runs),
        stable_shares=stable_shares(runs, sources) * worth_of(epochs),
    )


def has_measured_gains(runs: pd.DataFrame, domains: Sequence[str]) -> bool:
    """Whether every row tells by ``averaged_start_loss:<domain>`` what a decay gains from its checkpoint."""
    columns = [(START_LOSS + name, AVERAGED_START_LOSS + name) for name in domains]
    return all(
        averaged in runs and start in runs and bool((runs[averaged] < runs[start]).all())
        for start, averaged in columns
    )


def final_losses(runs: pd.DataFrame, domains: Sequence[str]) -> Array:
    """Observed losses after the decay, nats per token, ``[n, d]``."""
    return _finite(values_by(runs, LOSS, domains), LOSS, domains)


def plain_shares(runs: pd.DataFrame, sources: Sequence[str]) -> Array:
    """Requested shares ``[n, m]``; a source that the table does not hold has share 0."""
    columns = [
        runs[MIX + name].to_numpy(dtype=float) if MIX + name in runs else np.zeros(len(runs))
        for name in sources
    ]
    shares = np.column_stack(columns)
    totals = shares.sum(axis=1)
    wrong = np.flatnonzero(~(np.isfinite(totals) & (np.abs(totals - 1.0) < 1e-3) & (shares >= 0).all(axis=1)))
    if len(wrong):
        raise InvalidValueError(
            f"mix:* of row {runs.index[wrong[0]]}",
            shares[wrong[0]].tolist(),
            "must be shares that sum to one",
        )
    return shares / totals[:, None]


def stable_tokens(runs: pd.DataFrame) -> Array:
    """Tokens of the stable stage before each decay ``[n]``; 0 where there is none."""
    if STABLE_TOKENS not in runs:
        return np.zeros(len(runs))
    found = runs[STABLE_TOKENS].fillna(0.0).to_numpy(dtype=float)
    if not (np.isfinite(found) & (found >= 0)).all():
        raise InvalidValueError(STABLE_TOKENS, float(found.min()), "must be finite and not negative")
    return found


def stable_shares(runs: pd.DataFrame, sources: Sequence[str]) -> Array:
    """Shares of the sources in the stable stage ``[n, m]``; zeros where there is none."""
    staged, found = stable_tokens(runs) > 0, np.zeros((len(runs), len(sources)))
    if staged.any():
        own = runs.loc[staged, [name for name in runs if str(name).startswith(STABLE_MIX)]].fillna(0.0)
        found[staged] = plain_shares(
            own.rename(columns=lambda name: MIX + str(name).removeprefix(STABLE_MIX)), sources
        )
    return found


def mixture_groups(runs: pd.DataFrame, sources: Sequence[str]) -> Array:
    """A number for every distinct mixture, ``[n]``: replicates and other lengths of one mixture share it.

    With a stable stage, for every pair of mixtures.
    """
    columns = [prefix + name for prefix in (MIX, STABLE_MIX) for name in sources if prefix + name in runs]
    shares = runs[columns].fillna(0.0).to_numpy(dtype=float).round(6)
    return np.unique(shares, axis=0, return_inverse=True)[1].ravel().astype(float)


def epochs_of(runs: pd.DataFrame, sources: Sequence[str]) -> Array:
    """Passes over every source ``[n, m]``; 0 where the table does not say them."""
    columns = [
        runs[EPOCHS + name].to_numpy(dtype=float) if EPOCHS + name in runs else np.zeros(len(runs))
        for name in sources
    ]
    return np.nan_to_num(np.column_stack(columns), nan=0.0)


def worth_of(epochs: Array, repeat_scale: float = REPEAT_SCALE) -> Array:
    """What a token is worth where its source is seen so often, against one that is seen once; any shape."""
    worth = effective_epochs(epochs, repeat_scale) / np.where(epochs > 0, epochs, 1.0)
    return np.where(epochs > 0, worth, 1.0)


def at_reference_batch(inputs: DecayInputs, exponent: float) -> DecayInputs:
    """The same decays as the reference batch would see them.

    Token for token, steps of b times its size at LR eta count like LR ``eta * b**-exponent`` at that size.

    With Adam the exponent is 1/2 where the noise of the gradients rules (square-root scaling: Malladi et al. 2022,
    arXiv:2205.10287) and 1 where it does not, since a step then moves by its LR whatever it averages over.
    """
    if not inputs.log_batch.any():
        return inputs
    factor = np.exp(-exponent * inputs.log_batch)[:, None]
    handover, falls = inputs.drops[:, :1], inputs.drops[:, 1:]
    return replace(
        inputs,
        intrinsic=inputs.intrinsic * factor[:, 0],
        drops=np.hstack([1.0 - (1.0 - handover) * factor, falls * factor]),
        ages=inputs.ages * factor,
    )


def _plans(runs: pd.DataFrame) -> list[tuple[int, float, float, str, int]]:
    tokens = _positive(runs, "decay_tokens")
    start, end = _positive(runs, "start_lr"), runs["end_lr"].to_numpy(dtype=float)
    wrong = np.flatnonzero(~(np.isfinite(end) & (end >= 0)))
    if len(wrong):
        row = runs.index[wrong[0]]
        raise InvalidValueError(
            f"end_lr of row {row}", float(end[wrong[0]]), "must be finite and not negative"
        )
    shapes = runs["decay_shape"].astype(str)
    warmup = runs[WARMUP_TOKENS].fillna(0) if WARMUP_TOKENS in runs else np.zeros(len(runs))
    return [
        (int(t), float(a), float(b), s, int(w)) for t, a, b, s, w in zip(tokens, start, end, shapes, warmup)
    ]


@lru_cache(maxsize=4096)
def _path(
    tokens: int,
    start_lr: float,
    end_lr: float,
    shape: str,
    warmup_tokens: int,
    batch_tokens: int,
    reference_lr: float,
    lr_memory: float,
) -> tuple[float, Array, Array]:
    """Intrinsic tokens, relative LR drops and their ages in steps of ``batch_tokens``; a sweep repeats few paths.

    A step counts for the ages by the relative LR to the power ``lr_memory``. A re-warm-up falls to 0 at once and rises
    again, which is a fall below zero.
    """
    schedule = decay(tokens, start_lr, end_lr, shape, warmup_tokens=warmup_tokens)
    edges = np.linspace(0.0, tokens, PATH_NODES + 1)
    rates = np.asarray(schedule.lr(np.minimum(edges, np.nextafter(tokens, 0))), dtype=float)
    rates[0], rates[-1] = schedule.start_lr, end_lr
    drops = np.concatenate([[reference_lr - rates[0]], -np.diff(rates)]) / reference_lr
    finer = np.linspace(0.0, tokens, PATH_NODES * _FINER + 1)
    relative = np.asarray(schedule.lr(0.5 * (finer[1:] + finer[:-1])), dtype=float) / reference_lr
    passed = np.concatenate([[0.0], np.cumsum(relative**lr_memory * np.diff(finer))])
    fallen = np.concatenate([[0.0], passed[_FINER // 2 :: _FINER]])  # a piece's fall stands in its middle
    ages = (passed[-1] - fallen) / batch_tokens
    return float(schedule.integral()) / reference_lr, drops, ages


def _positive(runs: pd.DataFrame, column: str) -> Array:
    values = runs[column].to_numpy(dtype=float)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        row = runs.index[wrong[0]]
        raise InvalidValueError(
            f"{column} of row {row}", float(values[wrong[0]]), "must be finite and positive"
        )
    return values


def _averaged_losses(runs: pd.DataFrame, domains: Sequence[str]) -> Array:
    """Losses of the mean of the last weights before the checkpoint, ``[n, d]``."""
    remedy = "Measure that mean at this checkpoint too, or fit the law on runs without these columns."
    missing = [AVERAGED_START_LOSS + name for name in domains if AVERAGED_START_LOSS + name not in runs]
    if missing:
        raise SchemaError("plan for a law with measured gains", missing=missing, remedy=remedy)
    values = values_by(runs, AVERAGED_START_LOSS, domains)
    if not (np.isfinite(values) & (values > 0)).all():
        column = AVERAGED_START_LOSS + domains[int(np.argwhere(~(values > 0))[0, 1])]
        raise InvalidValueError(
            column, runs[column].tolist(), "must be a finite positive loss in every row", remedy
        )
    return values


def _finite(values: Array, prefix: str, names: Sequence[str]) -> Array:
    rows, columns = np.nonzero(~(np.isfinite(values) & (values > 0)))
    if len(rows):
        raise InvalidValueError(
            f"{prefix}{names[columns[0]]}", float(values[rows[0], columns[0]]), "must be a finite positive loss",
            "Select the rows with decaylaws.runs.table.fit_ready first.",
        )  # fmt: skip
    return values
