"""What a study asks now, and which rows of its runs table belong to that question.

The queue and ``runs.csv`` keep every run that was ever recorded; study.yaml and the corpus change. A verb never looks
at the whole table: it takes the rows that the present question admits, and says how many it left out and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decaylaws.runs.config import NUMERICS_VERSION
from decaylaws.runs.table import (
    ACCURACY,
    ACCURACY_ERROR,
    AVERAGED_LOSS,
    AVERAGED_START_LOSS,
    BPB,
    BPB_ERROR,
    EPOCHS,
    EVALUATION,
    EVALUATION_SETS,
    LOSS,
    MIX,
    NUMERICS,
    POOLS,
    STABLE_MIX,
    START_LOSS,
)
from decaylaws.study.results import with_starts

STARTS = ("trunk", "checkpoint")
"""Kinds, and roles, of runs from which decays start."""
_BY_DOMAIN = (START_LOSS, LOSS, AVERAGED_LOSS, BPB, BPB_ERROR, ACCURACY, ACCURACY_ERROR)
CONFIRMING = ("confirm", "launch")
"""Roles, or their beginnings, of runs that no plan holds: they check a recipe."""
EARLIER_PLAN = "of an earlier plan"
"""Why a run is left out that differs from the planned ones in nothing but what a law varies."""


@dataclass(frozen=True)
class Question:
    """What decides whether a recorded run belongs to the present study.yaml, plan and corpus.

    A run's id is the hash of its config, hence of its trunk, corpus, optimiser, arithmetic and schedule: a planned run
    belongs. The config does not hold on which tokens and questions the run was evaluated, so the row says it.

    Attributes:
        planned: role of every run of the plan, by run_id.
        proposed: role of every run that the plan's sampler has proposed, by run_id.
        data_fingerprint: of the prepared corpus.
        evaluation_tokens: held-out tokens per domain.
        evaluation_sets: fingerprint of the evaluation domains and question sets; empty where there are none.
        pools: fingerprint of how much of each source a proxy may draw from.
        sources: names of the sources.
        domains: names of all that every run is evaluated on.
        keep_earlier: whether finished decays of earlier plans count that differ in nothing but what a law varies.
    """

    planned: Mapping[str, str]
    proposed: Mapping[str, str]
    data_fingerprint: str
    evaluation_tokens: int
    pools: str
    sources: tuple[str, ...]
    domains: tuple[str, ...]
    evaluation_sets: str = ""
    keep_earlier: bool = False

    @property
    def measured_on(self) -> str:
        """What ``runs.table.measured_on`` says of a row that belongs."""
        return f"{self.evaluation_tokens}/{self.evaluation_sets}"

    def split(self, runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows that belong to the question, and the others (``run_id``, ``role``, ``reason``).

        Roles of planned runs are those of the present plan, since an earlier one may have asked something else with
        the same run. Columns of sources and domains that the study no longer has are dropped, and
        ``averaged_start_loss`` is filled in from the trunks that belong.

        Args:
            runs: the whole runs table.
        """
        reasons = pd.Series(
            [self._reason(row) for row in runs.to_dict("records")], index=runs.index, dtype=object
        )
        left_out = runs.loc[reasons != "", ["run_id", "role"]].assign(reason=reasons[reasons != ""])
        kept = runs[reasons == ""].sort_values("run_id", ignore_index=True)
        kept = kept.assign(
            role=[
                self.planned.get(run_id) or self.proposed.get(run_id) or role
                for run_id, role in zip(kept["run_id"], kept["role"])
            ]
        )
        return with_starts(kept[self._columns(list(kept.columns))]), left_out.reset_index(drop=True)

    def _reason(self, row: Mapping[str, Any]) -> str:
        """Why a row does not belong; empty where it does."""
        tokens = row.get(EVALUATION)
        if tokens is None or pd.isna(tokens):
            return "recorded by an earlier version, which did not say on how many tokens it was evaluated"
        if int(tokens) != self.evaluation_tokens:
            return f"evaluated on {int(tokens):,} tokens per domain, not on {self.evaluation_tokens:,}"
        sets = row.get(EVALUATION_SETS)
        if (sets if isinstance(sets, str) else "") != self.evaluation_sets:
            return "measured on other evaluation domains or question sets"
        if row["run_id"] in self.planned or row["run_id"] in self.proposed:
            return ""
        if str(row["data_fingerprint"]) != self.data_fingerprint:
            return "trained on another corpus"
        if row.get(NUMERICS) not in (NUMERICS_VERSION, 0):  # 0: an external trainer, as its trunk then is
            return "trained by a version of the trainer with other numerics"
        start = row["run_id"] if row["kind"] in STARTS else row["start_run_id"]
        if self.planned.get(str(start)) not in STARTS:
            return "of a trunk or checkpoint that study.yaml no longer describes"
        if str(row.get(POOLS)) != self.pools:
            return "trained with another target.repetition_scale"
        if str(row["role"]).startswith(CONFIRMING) or (self.keep_earlier and row["kind"] == "decay"):
            return ""
        return EARLIER_PLAN

    def _columns(self, columns: Sequence[str]) -> list[str]:
        """The fixed columns, then those of the sources and the domains in the order of study.yaml."""
        prefixes = dict.fromkeys((MIX, EPOCHS, STABLE_MIX), self.sources)
        prefixes |= dict.fromkeys(_BY_DOMAIN, self.domains)
        fixed = [name for name in columns if not name.startswith((*prefixes, AVERAGED_START_LOSS))]
        by_name = [prefix + name for prefix, names in prefixes.items() for name in names]
        return [*fixed, *(name for name in by_name if name in columns)]


def left_out_words(left_out: pd.DataFrame) -> str:
    """How many recorded runs a verb did not use, and why, as one sentence; empty where it used all."""
    if left_out.empty:
        return ""
    counts = left_out["reason"].value_counts()
    parts = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    does, are = ("run does", "is") if len(left_out) == 1 else ("runs do", "are")
    return f"{len(left_out)} recorded {does} not belong to the present question and {are} left out: {parts}."


def content_hash(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 over JSON values; what an idempotent verb compares."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
