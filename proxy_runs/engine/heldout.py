"""Held-out loss by domain, on the same tokens for every run of a corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.errors import DataError
from proxy_runs.data.shards import HeldOut, TokenStore
from proxy_runs.engine.model import StackedLlama

# rows of a forward pass: enough to fill the matmuls, few enough to stay near the cache; fixed, because
# the split decides in which order a sum is rounded
EVAL_SEQUENCES = 16


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out windows of each domain.

    Attributes:
        windows: by domain, int64 ``[n, seq_len + 1]``.
        bits_per_nat_byte: by domain, what turns nats per token into bits per byte of the same tokens.
        key: what decides these tokens; losses of equal keys may be compared pairwise.
    """

    windows: Mapping[str, Tensor]
    bits_per_nat_byte: Mapping[str, float]
    key: str

    @classmethod
    def build(
        cls,
        store: TokenStore,
        *,
        seq_len: int,
        tokens_per_domain: int,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The first ``tokens_per_domain`` held-out tokens of each domain, cut into windows of ``seq_len``.

        Args:
            store: the prepared corpus.
            seq_len: tokens of a window.
            tokens_per_domain: held-out tokens of each domain to use.
            device: where the windows are kept.

        Raises:
            DataError: a domain holds less than one window, or no text behind its tokens.
        """
        windows, factors = {}, {}
        for domain in store.names:
            rows, factors[domain] = _windows(store.heldout(domain), domain, seq_len, tokens_per_domain)
            windows[domain] = torch.from_numpy(rows).to(device)
        key = f"{store.fingerprint}/{seq_len}/{tokens_per_domain}"
        return cls(windows, factors, key)

    def bits_per_byte(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of losses in nats per token on these windows."""
        return {domain: loss * self.bits_per_nat_byte[domain] for domain, loss in losses.items()}

    def losses(self, model: StackedLlama, params: Mapping[str, Tensor]) -> list[dict[str, float]]:
        """Mean loss of every domain in nats per token, one mapping per member of the stack."""
        members = len(params["embed"])
        by_domain = {
            domain: _mean_losses(model, params, windows, members) for domain, windows in self.windows.items()
        }
        return [{domain: means[k] for domain, means in by_domain.items()} for k in range(members)]


def _windows(heldout: HeldOut, domain: str, seq_len: int, limit: int) -> tuple[NDArray[np.int64], float]:
    count = min(limit, len(heldout.tokens) - 1) // seq_len
    if count < 1:
        raise DataError(
            f"The held-out part of '{domain}' has {len(heldout.tokens)} tokens. Evaluation reads "
            f"{min(limit, seq_len)} of them and needs one window of {seq_len} + 1. "
            "Give the source more text, raise evaluation.tokens_per_domain or shorten seq_len."
        )
    starts = np.arange(count)[:, None] * seq_len
    rows = heldout.tokens[starts + np.arange(seq_len + 1)]
    predicted_bytes = int(heldout.token_bytes[1 : count * seq_len + 1].sum())
    if predicted_bytes == 0:
        raise DataError(
            f"The held-out part of '{domain}' has no text, only ends of documents. Give the source more text."
        )
    return rows, count * seq_len / predicted_bytes / math.log(2.0)


def _mean_losses(
    model: StackedLlama, params: Mapping[str, Tensor], windows: Tensor, members: int
) -> list[float]:
    parts = []
    for first in range(0, len(windows), EVAL_SEQUENCES):
        batch = windows[first : first + EVAL_SEQUENCES].expand(members, -1, -1)
        parts.append(model.token_losses(params, batch).flatten(1).double())
    # member by member: a reduction over a stack may be ordered differently from one over a single member
    return [float(torch.cat([part[k] for part in parts]).mean()) for k in range(members)]
