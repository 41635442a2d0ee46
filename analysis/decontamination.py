"""How well contamination is found, and how fast: planted items, clean text, one gigabyte.

Items are passages of the prose of one installed package; clean text is the prose and the reference pages of others, so
that whatever is found there without planting is a false positive or a real near-copy (the first of them are kept for
reading). ``--bytes`` writes shards of that size into ``--work`` and scans them.

    python analysis/decontamination.py --json out.json [--bytes 1000000000 --work DIR --workers 2]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import run, write_json

from decaylaws.decontamination import ContaminationIndex, Item, MatchRules, ShardSource, decontaminate
from decaylaws.decontamination.deduplicate import deduplicate
from decaylaws.io.files import atomic_write
from proxy_runs.corpus.cleaning import Cleaner, SeenParagraphs
from proxy_runs.corpus.demo import generated_documents
from proxy_runs.corpus.demo.embedded import embedded_documents

NUM_ITEMS = 1500
NUM_SHARDS = 20
EDIT_RATES = (0.05, 0.10, 0.15, 0.20)
SHORTEST, LONGEST = 13, 120
ITEM_PACKAGE = "torch/"
RULES = {"13-gram": MatchRules(hybrid=False), "hybrid": MatchRules()}


@dataclass(frozen=True)
class Material:
    """What is planted, and where.

    Attributes:
        items: passages of prose.
        clean: documents that hold none of them by construction, by kind.
    """

    items: list[Item]
    clean: dict[str, list[str]]


def material(rng: random.Random) -> Material:
    """Prose of ``ITEM_PACKAGE`` gives the items; what other packages wrote is the clean text."""
    seen = SeenParagraphs()  # over all kinds: a paragraph that stands in two documents is in one of them only
    clean: dict[str, list[str]] = {}
    paragraphs: list[list[str]] = []
    for kind in ("narrative", "reference", "code"):
        cleaner = Cleaner(keeps_licences=False, min_bytes=200, seen=seen)
        for _, document in embedded_documents(kind):
            kept = cleaner.clean(document)
            if kept is None:
                continue
            if kind == "narrative" and kept.key.startswith(ITEM_PACKAGE):
                paragraphs += [paragraph.split() for paragraph in kept.text.split("\n\n")]
            else:
                clean.setdefault(kind, []).append(kept.text)
    paragraphs = [words for words in paragraphs if len(words) >= SHORTEST + 2]
    rng.shuffle(paragraphs)
    items = [
        Item("prose", str(number), " ".join(words[: rng.randint(SHORTEST, LONGEST)]))
        for number, words in enumerate(paragraphs[:NUM_ITEMS])
    ]
    return Material(items, clean)


def edited(rng: random.Random, text: str, rate: float, vocabulary: Sequence[str]) -> str:
    """A share of the words replaced (60 % of the edits), left out (20 %) or followed by a new one (20 %)."""
    out: list[str] = []
    for word in text.split():
        draw = rng.random() / rate
        new = rng.choice(vocabulary)
        out += [word] if draw > 1 else [new] if draw < 0.6 else [] if draw < 0.8 else [word, new]
    return " ".join(out)


def recall(given: Material, rng: random.Random) -> dict[str, Any]:
    """Share of the planted items that are found, by rule and rate of edits."""
    vocabulary = sorted({word for item in given.items for word in item.text.split()})
    hosts = [text[:3000] for text in given.clean["reference"]]
    found: dict[str, Any] = {}
    for rate in (0.0, *EDIT_RATES):
        texts = []
        for item in given.items:
            planted = edited(rng, item.text, rate, vocabulary) if rate else item.text
            texts.append(f"{rng.choice(hosts)}\n{planted}\n{rng.choice(hosts)}")
        for name, rules in RULES.items():
            index = ContaminationIndex(given.items, rules)
            keys = {item.key: number for number, item in enumerate(index.items)}
            hits = {(match.text, match.item) for match in index.find(texts)}
            planted_at = [
                (number, keys[item.key]) for number, item in enumerate(given.items) if item.key in keys
            ]
            found.setdefault(f"edited {rate:.0%}", {})[name] = sum(p in hits for p in planted_at) / len(
                planted_at
            )
    return found


def false_positives(given: Material) -> dict[str, Any]:
    """Share of clean documents that are flagged, with the first matches to be read."""
    out: dict[str, Any] = {}
    for name, rules in RULES.items():
        index = ContaminationIndex(given.items, rules)
        for kind, texts in given.clean.items():
            out[f"{name}, {kind}"] = _flagged(index, texts)
        index = ContaminationIndex(_problems(seed=1), rules)
        out[f"{name}, same templates with other numbers"] = _flagged(
            index, [item.text for item in _problems(seed=2)]
        )
    return out


def _flagged(index: ContaminationIndex, texts: Sequence[str]) -> dict[str, Any]:
    matches = index.find(texts)
    return {
        "documents": len(texts),
        "flagged": len({match.text for match in matches}) / len(texts),
        "examples": [
            [index.items[match.item].text[:200], match.snippet[:200], match.coverage, match.common]
            for match in matches[:5]
        ],
    }


def _problems(*, seed: int) -> list[Item]:
    documents = generated_documents("worked_maths", seed=seed)
    return [Item("sums", str(number), next(documents).text) for number in range(500)]


def gigabyte(given: Material, work: Path, size: int, workers: int, rng: random.Random) -> dict[str, Any]:
    """Wall and CPU seconds, and the largest memory of a process, over shards of ``size`` bytes in all."""
    _write_shards(given, work / "shards", size, rng)
    source = [ShardSource("made", str(work / "shards"))]
    return {
        "bytes": sum(path.stat().st_size for path in (work / "shards").iterdir()),
        "workers": workers,
        "items": len(given.items),
        "decontaminate and filter": _timed(
            lambda: (
                decontaminate(source, given.items, work / "clean", filters=True, workers=workers)
                .sources["made"]
                .dropped_documents
            )
        ),
        "deduplicate (paragraphs)": _timed(
            lambda: (
                deduplicate(source, work / "paragraphs", near=None, workers=workers)["paragraphs_repeated"]
                .sum()
                .item()
            )
        ),
        "deduplicate (paragraphs and MinHash)": _timed(
            lambda: deduplicate(source, work / "minhash", workers=workers)["documents_near"].sum().item()
        ),
    }


def _timed(work: Callable[[], int]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    found = work()
    kilobytes = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "found": found,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": _cpu_seconds() - cpu,
        "largest_process_mb": kilobytes / 1024,
    }


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _write_shards(given: Material, directory: Path, size: int, rng: random.Random) -> None:
    """JSON Lines of shuffled real paragraphs, one document in a thousand with an item in it."""
    paragraphs = [part for texts in given.clean.values() for text in texts for part in text.split("\n\n")]
    for number in range(NUM_SHARDS):
        path = directory / f"{number:02d}.jsonl"
        if path.is_file():
            continue
        written = 0
        with atomic_write(path) as file:
            while written < size / NUM_SHARDS:
                parts = rng.choices(paragraphs, k=8)
                if rng.random() < 0.001:
                    parts.append(rng.choice(given.items).text)
                written += file.write(json.dumps({"text": "\n\n".join(parts)}).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--bytes", type=int, default=0, help="size of the shards to time, in bytes")
    parser.add_argument("--work", type=Path, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.bytes and given.work is None:
        parser.error("--bytes needs --work")
    rng = random.Random(given.seed)
    text = material(rng)
    out: dict[str, Any] = {"items": len(text.items), "recall": recall(text, rng)}
    out["false_positives"] = false_positives(text)
    if given.bytes:
        out["gigabyte"] = gigabyte(text, given.work, given.bytes, given.workers, rng)
    write_json(given.json, out)
    print(json.dumps({key: value for key, value in out.items() if key != "false_positives"}, indent=1))
    for name, figures in out["false_positives"].items():
        print(f"{name}: {figures['flagged']:.2%} of {figures['documents']} documents")


if __name__ == "__main__":
    run(main)
