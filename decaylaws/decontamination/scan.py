"""``decontaminate``: every shard of every source against the evaluation items, in parallel, resumable by shard.

Each worker holds the index and one megabyte of text at a time, so memory does not grow with the shards. What was found
in a shard is one JSON file, written when the shard (and its filtered copy) is complete; a shard whose record
answers the same request is not read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decaylaws.decontamination.index import ContaminationIndex, MatchRules
from decaylaws.decontamination.items import Item
from decaylaws.decontamination.processes import in_processes
from decaylaws.decontamination.report import Report, ShardResult, Tally
from decaylaws.decontamination.shards import (
    ShardSource,
    check_sources,
    named_shards,
    read_rows,
    row_writer,
)
from decaylaws.errors import DataError
from decaylaws.io.documents import READING_VERSION
from decaylaws.io.files import write_text
from decaylaws.progress import Progress, silent

FORMAT_VERSION = 1
"""Goes up whenever the same request would find something else."""


@dataclass(frozen=True)
class _Work:
    """One shard of one source."""

    source: str
    shard: Path
    text_field: str
    record: Path
    filtered: Path | None
    request: str


def decontaminate(
    sources: Sequence[ShardSource],
    items: Sequence[Item],
    directory: Path,
    *,
    rules: MatchRules | None = None,
    filters: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> Report:
    """Look for evaluation items in candidate sources; write what stays to ``directory/filtered`` if asked.

    Args:
        sources: what might be trained on.
        items: what must not be in it.
        directory: ``records/`` holds one file per shard, ``report.json`` the whole, ``filtered/<source>/`` the rows
            that hold no item.
        rules: what counts as a match.
        filters: whether the filtered shards are written.
        workers: processes.
        progress: told of every shard.

    Returns:
        Counts by source and task, with examples.

    Raises:
        DataError: no shard, an unreadable shard, no items.
        InvalidValueError: two sources of one name.
    """
    if not items:
        raise DataError("There are no evaluation items to look for. Name an evaluation set.")
    check_sources(sources)
    rules = rules or MatchRules()
    request = _request(items, rules, filters)
    work = [each for source in sources for each in _work(source, directory, request, filters=filters)]
    index = ContaminationIndex(items, rules)
    results = _run(work, items, rules, index, workers=workers, progress=progress)
    report = Report.of(results, index)
    write_text(directory / "report.json", report.to_json())
    return report


def _request(items: Sequence[Item], rules: MatchRules, filters: bool) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, READING_VERSION, asdict(rules), filters]).encode())
    for item in items:
        digest.update(json.dumps([item.task, item.key, item.text]).encode())
    return digest.hexdigest()[:16]


def _work(source: ShardSource, directory: Path, request: str, *, filters: bool) -> Iterator[_Work]:
    for name, shard in named_shards(source.name, source.path):
        state = shard.stat()
        facts = [request, source.text_field, str(shard.resolve()), state.st_size, state.st_mtime_ns]
        yield _Work(
            source=source.name,
            shard=shard,
            text_field=source.text_field,
            record=directory / "records" / source.name / f"{name}.json",
            filtered=directory / "filtered" / source.name / name if filters else None,
            request=hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16],
        )


def _run(
    work: Sequence[_Work],
    items: Sequence[Item],
    rules: MatchRules,
    index: ContaminationIndex,
    *,
    workers: int,
    progress: Progress,
) -> list[ShardResult]:
    """Results of all shards in order, those of an earlier call taken as they are."""
    results = {each.record: known for each in work if (known := _recorded(each)) is not None}
    missing = [each for each in work if each.record not in results]
    total = sum(each.shard.stat().st_size for each in work)
    done = total - sum(each.shard.stat().st_size for each in missing)
    progress("decontaminate", done, total)
    found: Iterable[tuple[_Work, ShardResult]]
    if workers == 1 or len(missing) < 2:
        found = ((each, _scan(each, index)) for each in missing)
    else:
        found = in_processes(
            _scan_in_worker, missing, workers=workers, start=_start_worker, arguments=(items, rules)
        )
    for each, result in found:
        results[each.record] = result
        done += each.shard.stat().st_size
        progress("decontaminate", done, total, each.shard.name)
    return [results[each.record] for each in work]


_index_of_worker: ContaminationIndex | None = None


def _start_worker(items: Sequence[Item], rules: MatchRules) -> None:
    global _index_of_worker
    _index_of_worker = ContaminationIndex(items, rules)


def _scan_in_worker(work: _Work) -> ShardResult:
    assert _index_of_worker is not None
    return _scan(work, _index_of_worker)


def _recorded(work: _Work) -> ShardResult | None:
    """What an earlier call found in the shard, if it answers this request and its files are there."""
    if work.filtered and not work.filtered.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(work.record.read_bytes())
        return ShardResult.from_dict(content["result"]) if content["request"] == work.request else None
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None  # there is none, or it is damaged: the shard is read again


def _scan(work: _Work, index: ContaminationIndex) -> ShardResult:
    tally = Tally(index, ShardResult(source=work.source, shard=str(work.shard)))
    writing = row_writer(work.filtered, work.shard, work.text_field) if work.filtered else nullcontext(None)
    with writing as writer:
        for rows in read_rows(work.shard, work.text_field):
            dropped = tally.add(rows.first, rows.texts, index.find(rows.texts))
            if writer is not None:
                writer.write(
                    rows, [None if number in dropped else text for number, text in enumerate(rows.texts)]
                )
    content = {"request": work.request, "result": tally.result.to_dict()}
    write_text(work.record, json.dumps(content) + "\n")
    return tally.result
