"""Train text against the user's evaluation sets, and against the study's own held-out text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from decaylaws.decontamination import (
    ContaminationIndex,
    EvaluationSet,
    Item,
    MatchRules,
    Report,
    read_items,
)
from decaylaws.decontamination.report import ShardResult, Tally
from decaylaws.decontamination.shards import grouped
from decaylaws.settings.decontamination import DecontaminationSettings

PASSAGE_WORDS = 128
"""Held-out documents are compared in passages of so many words: a long one may be given away in part."""

ReadTrain = Callable[[str], Iterable[str]]
"""Train documents of a source, by its name."""


def evaluation_index(settings: DecontaminationSettings, base: Path) -> ContaminationIndex:
    """Items of the evaluation sets that ``settings`` name.

    Raises:
        DataError: a set is missing, unreadable or empty.
    """
    sets = [
        EvaluationSet(name, base / each.path, tuple(each.text_fields))
        for name, each in settings.evaluation_sets.items()
    ]
    rules = MatchRules(settings.ngram, settings.min_coverage, settings.hybrid, settings.min_common)
    return ContaminationIndex(read_items(sets), rules)


def evaluation_request(settings: DecontaminationSettings, base: Path) -> dict[str, object]:
    """All that decides which documents are dropped, as JSON values; empty where no set is named."""
    if not settings.evaluation_sets:
        return {}
    # a missing file has its own error, where the items are read
    states = {
        name: (base / each.path).stat() if (base / each.path).is_file() else None
        for name, each in settings.evaluation_sets.items()
    }
    files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items() if state}
    return {"settings": settings.model_dump(exclude={"max_heldout_overlap", "on_overlap"}), "files": files}


def find_items(
    names: Sequence[str], read_train: ReadTrain, index: ContaminationIndex
) -> tuple[Report, dict[str, list[int]]]:
    """Evaluation items in the train text of each source: the report, and which documents hold them."""
    results = []
    for name in names:
        tally = Tally(index, ShardResult(source=name, shard=name))
        for rows in grouped((text, text) for text in read_train(name)):
            tally.add(rows.first, rows.texts, index.find(rows.texts))
        results.append(tally.result)
    return Report.of(results, index), {result.source: result.dropped_rows for result in results}


def heldout_overlap(
    heldout: Mapping[str, Iterable[str]], names: Sequence[str], read_train: ReadTrain
) -> dict[str, dict[str, float]]:
    """Share of each domain's held-out passages that the train text of each source repeats, exactly or nearly.

    Args:
        heldout: held-out documents by domain.
        names: of the sources.
        read_train: their train documents.

    Returns:
        Shares by source, then by domain.
    """
    index = ContaminationIndex(
        [
            Item(domain, f"{number}.{part}", passage)
            for domain, texts in heldout.items()
            for number, text in enumerate(texts)
            for part, passage in enumerate(_passages(text))
        ]
    )
    passages = dict.fromkeys(heldout, 0)
    for item in index.items:
        passages[item.task] += 1
    out = {}
    for name in names:
        found: set[int] = set()
        for rows in grouped((text, text) for text in read_train(name)):
            found.update(match.item for match in index.find(rows.texts))
        by_domain = [index.items[item].task for item in found]
        out[name] = {domain: by_domain.count(domain) / max(1, total) for domain, total in passages.items()}
    return out


def to_json(overlap: Mapping[str, Mapping[str, float]]) -> bytes:
    """The shares as they lie beside the shards."""
    return (json.dumps({"passage_words": PASSAGE_WORDS, "overlap": overlap}, indent=1) + "\n").encode()


def _passages(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[k : k + PASSAGE_WORDS]) for k in range(0, len(words), PASSAGE_WORDS)]
