"""What decontamination found, by source and task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import pandas as pd

from decaylaws.decontamination.index import ContaminationIndex, Match

EXAMPLES_PER_TASK = 5
"""Examples that are kept of each source and task."""


@dataclass(frozen=True)
class Example:
    """One match, to be looked at.

    Attributes:
        shard: file.
        row: index of the document in it, from 0.
        item: key of the evaluation item.
        kind: ``ngram`` or ``near``.
        share: of the item's words, in matching runs or in the longest common subsequence.
        item_text: the item, cut short.
        found: the place in the document, cut short.
    """

    shard: str
    row: int
    item: str
    kind: str
    share: float
    item_text: str
    found: str


@dataclass
class TaskHits:
    """Matches with the items of one task.

    Attributes:
        documents: that hold an item.
        items: key of each item that was found, and how (``ngram`` or ``near``).
        examples: a few of the matches.
    """

    documents: int = 0
    items: dict[str, str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    def add(self, other: TaskHits) -> None:
        """Add the hits in another shard."""
        self.documents += other.documents
        for key, kind in other.items.items():
            if self.items.get(key) != "ngram":
                self.items[key] = kind
        self.examples = (self.examples + other.examples)[:EXAMPLES_PER_TASK]


@dataclass
class ShardResult:
    """What was found in one shard, or in all shards of a source.

    Attributes:
        source: its name.
        shard: file; empty for a whole source.
        documents: rows that were read.
        text_bytes: UTF-8 bytes of their text.
        dropped_rows: rows that hold an item, from 0; empty for a whole source.
        dropped_bytes: UTF-8 bytes of their text.
        tasks: hits by task.
    """

    source: str
    shard: str
    documents: int = 0
    text_bytes: int = 0
    dropped_rows: list[int] = field(default_factory=list)
    dropped_bytes: int = 0
    tasks: dict[str, TaskHits] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``."""
        return cls(**{**values, "tasks": _tasks(values["tasks"])})


@dataclass
class Tally:
    """Counts the matches of one shard.

    Args:
        index: that found them.
        result: what is counted so far.
    """

    index: ContaminationIndex
    result: ShardResult
    _seen: set[tuple[str, int]] = field(default_factory=set)

    def add(self, first: int, texts: Sequence[str], matches: Sequence[Match]) -> set[int]:
        """Count the matches in ``texts``, of which the first is row ``first``; the indices of those to be dropped.

        Args:
            first: row of the shard at which ``texts`` begins.
            texts: documents of one chunk.
            matches: what was found in them; ``match.text`` is an index into ``texts``.
        """
        dropped = {match.text for match in matches}
        sizes = [len(text.encode("utf-8", "replace")) for text in texts]
        self.result.documents += len(sizes)
        self.result.text_bytes += sum(sizes)
        self.result.dropped_rows += [first + number for number in sorted(dropped)]
        self.result.dropped_bytes += sum(sizes[number] for number in dropped)
        for match in matches:
            self._count(match, first + match.text)
        return dropped

    def _count(self, match: Match, row: int) -> None:
        item = self.index.items[match.item]
        hits = self.result.tasks.setdefault(item.task, TaskHits())
        hits.items.setdefault(item.key, match.kind)
        if (item.task, row) not in self._seen:
            self._seen.add((item.task, row))
            hits.documents += 1
        if len(hits.examples) < EXAMPLES_PER_TASK:
            share = match.common or match.coverage
            hits.examples.append(
                Example(self.result.shard, row, item.key, match.kind, share, item.text[:400], match.snippet)
            )


@dataclass
class SourceCounts:
    """Counts of one source, before and after the documents that hold an item are dropped."""

    documents: int = 0
    text_bytes: int = 0
    dropped_documents: int = 0
    dropped_bytes: int = 0
    tasks: dict[str, TaskHits] = field(default_factory=dict)

    def add(self, result: ShardResult) -> None:
        """Add one shard."""
        self.documents += result.documents
        self.text_bytes += result.text_bytes
        self.dropped_documents += len(result.dropped_rows)
        self.dropped_bytes += result.dropped_bytes
        for task, hits in result.tasks.items():
            self.tasks.setdefault(task, TaskHits()).add(hits)


@dataclass
class Report:
    """Contamination of candidate sources by evaluation sets.

    Attributes:
        items: distinct items by task.
        unchecked: those too short to be looked for, or nothing but template, by task.
        sources: counts by source.
    """

    items: dict[str, int]
    unchecked: dict[str, int]
    sources: dict[str, SourceCounts]

    @classmethod
    def of(cls, results: Sequence[ShardResult], index: ContaminationIndex) -> Self:
        """Add up the shards."""
        items: dict[str, int] = {}
        for item in index.items:
            items[item.task] = items.get(item.task, 0) + 1
        sources: dict[str, SourceCounts] = {}
        for result in results:
            sources.setdefault(result.source, SourceCounts()).add(result)
        return cls(items, dict(index.unchecked), sources)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON that ``to_json`` wrote."""
        sources = {
            name: SourceCounts(**{**counts, "tasks": _tasks(counts["tasks"])})
            for name, counts in values["sources"].items()
        }
        return cls(dict(values["items"]), dict(values["unchecked"]), sources)

    def filter_table(self) -> pd.DataFrame:
        """One row per source: documents and bytes before and after."""
        rows = [
            {
                "source": name,
                "documents before": counts.documents,
                "documents after": counts.documents - counts.dropped_documents,
                "MB before": counts.text_bytes / 1e6,
                "MB after": (counts.text_bytes - counts.dropped_bytes) / 1e6,
            }
            for name, counts in self.sources.items()
        ]
        return pd.DataFrame(rows)

    def task_table(self) -> pd.DataFrame:
        """One row per source and task: documents that hold an item, items found word for word and nearly."""
        rows = []
        for name, counts in self.sources.items():
            for task, total in self.items.items():
                hits = counts.tasks.get(task, TaskHits())
                kinds = list(hits.items.values())
                rows.append(
                    {
                        "source": name,
                        "task": task,
                        "items": total,
                        "unchecked": self.unchecked.get(task, 0),
                        "found": len(kinds),
                        "of these near": kinds.count("near"),
                        "documents": hits.documents,
                    }
                )
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """The whole report, examples included."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def _tasks(values: Mapping[str, Any]) -> dict[str, TaskHits]:
    return {
        task: TaskHits(
            hits["documents"], dict(hits["items"]), [Example(**example) for example in hits["examples"]]
        )
        for task, hits in values.items()
    }
