"""A planned sweep as a value: its runs, each with the question that it answers, and the corpus that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import RunConfig
from decaylaws.schedules import DecayTerms


@dataclass(frozen=True)
class CorpusFacts:
    """What a design needs to know of the prepared corpus.

    Attributes:
        fingerprint: hash of the content of all sources.
        vocab_size: entries of the tokenizer.
        available_tokens: train tokens by source.
    """

    fingerprint: str
    vocab_size: int
    available_tokens: Mapping[str, int]


@dataclass(frozen=True)
class PlannedRun:
    """A run and the question that it answers."""

    role: str
    config: RunConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"role": self.role, "run_id": self.config.run_id, "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlannedRun:
        """Rebuild from ``to_dict``; the stored run_id must be that of the content."""
        config = RunConfig.from_dict(values["config"])
        if config.run_id != values["run_id"]:
            raise InvalidValueError(
                "design.run_id",
                values["run_id"],
                f"must be the hash of the config ({config.run_id})",
                "Plan again.",
            )
        return cls(role=values["role"], config=config)


@dataclass(frozen=True)
class Design:
    """Planned runs in the order in which they should be claimed; starts come before their forks."""

    runs: tuple[PlannedRun, ...]

    def __iter__(self) -> Iterator[PlannedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def train_flops(self) -> int:
        """FLOPs of all runs; a fork does not pay for its trunk again."""
        return sum(run.config.train_flops for run in self.runs)

    def table(self) -> pd.DataFrame:
        """One row per run: what it is, how long, from which LR, and its FLOPs."""
        rows = [
            {
                "run_id": run.config.run_id,
                "role": run.role,
                "non_embedding_params": run.config.shape.non_embedding_params,
                "tokens": run.config.tokens if run.config.is_trained else 0,
                "start_lr": DecayTerms.of(run.config.schedule).start_lr,
                "end_lr": run.config.schedule.end_lr,
                "batch_tokens": run.config.batch_tokens,
                "shape": run.config.schedule.segments[-1].shape,
                "seed": run.config.seed,
                "train_flops": float(run.config.train_flops),  # sums of whole numbers end at 9.2e18
                **{f"mix:{name}": share for name, share in run.config.mixture.weights.items()},
            }
            for run in self.runs
        ]
        return pd.DataFrame(rows).fillna(0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is its inverse."""
        return {"runs": [run.to_dict() for run in self.runs]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Design:
        """Rebuild from ``to_dict``."""
        return cls(tuple(PlannedRun.from_dict(run) for run in values["runs"]))


def unique(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs in order, the first of equal ones: two equal configs are one run."""
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        seen.setdefault(run.config.run_id, run)
    return list(seen.values())
