"""Near copies of held-out documents: planted ones are set aside with their cluster, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.errors import DataError
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus import near_copies, stores
from proxy_runs.corpus.cleaning import is_heldout
from proxy_runs.corpus.near_copies import RunIndex, token_runs, word_runs
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.corpus.readers import make_document
from proxy_runs.data.manifest import Manifest
from proxy_runs.data.shards import TokenStore
from tests.proxy_runs.data.token_stores import END, write_nanotron, write_tokenizer

WORDS = ["".join(random.Random(number).choices("abcdefghij", k=3 + number % 5)) for number in range(3000)]


def make_text(rng: random.Random, length: int = 120) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with this share of its words replaced by others."""
    words = text.split()
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def write_text(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make(base: Path, sources: dict[str, SourceSettings], name: str = "corpus", **changes: Any) -> Manifest:
    options = {"tokenizer": TokenizerSettings(path="tokenizer.json"), "base": base, **changes}
    return prepare_corpus(sources, base / name, **options)


def report(base: Path, manifest: Manifest, name: str = "corpus") -> dict[str, Any]:
    return json.loads((base / name / f"data-{manifest.request}" / "near_copies.json").read_text())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path


def plant(base: Path, as_store: bool) -> tuple[list[str], dict[str, SourceSettings]]:
    """Two sources; the second holds an edited copy of every held-out document of the first, among its own."""
    rng = random.Random(1)
    web = [make_text(rng) for _ in range(1500)]
    held = [text for text in web if is_heldout("web", make_document(text + "\n").key, fraction=0.1, seed=0)]
    copies = [edited(text, rng.uniform(0.05, 0.2), rng) for text in held]
    own = [make_text(rng) for _ in range(1000)]
    write_text(base / "web.jsonl", [text + "\n" for text in web])
    mixed = own + copies
    rng.shuffle(mixed)
    if as_store:
        (base / "store").mkdir()
        write_nanotron(base / "store", [[*text.encode(), END] for text in mixed])
        other = SourceSettings(format="nanotron", path="store")
    else:
        write_text(base / "other.jsonl", mixed)
        other = SourceSettings(format="jsonl", path="other.jsonl")
    return copies, {"web": SourceSettings(format="jsonl", path="web.jsonl"), "other": other}


@pytest.mark.parametrize("as_store", [False, True], ids=["text", "store"])
def test_planted_near_copies_end_in_the_cluster(base: Path, as_store: bool) -> None:
    copies, sources = plant(base, as_store)
    manifest = make(base, sources)
    store = TokenStore.open(base / "corpus")
    train = bytes(np.where(store.train("other") == END, 10, store.train("other")).astype(np.uint8)).decode()
    documents = set(train.split("\n"))
    left = [text for text in copies if text in documents]
    assert len(copies) > 100
    assert len(left) <= 0.05 * len(copies)
    # nothing else was set aside: the copies that are held out of 'other' themselves are the difference
    set_aside = manifest.sources["other"].counts["train_documents_near_heldout"]
    assert 0.8 * len(copies) < set_aside <= len(copies)
    found = report(base, manifest)
    (pair,) = [each for each in found["pairs"] if (each["source"], each["domain"]) == ("other", "web")]
    assert pair["set_aside"] == set_aside
    assert 0 <= pair["train_documents"][1] <= pair["train_documents"][0] <= set_aside
    assert found["share"] == {"web": 1.0, "other": pytest.approx(1.0, abs=0.01)}


def test_without_a_similarity_nothing_is_set_aside(base: Path) -> None:
    _, sources = plant(base, as_store=False)
    settings = DecontaminationSettings(heldout_similarity=None, on_overlap="allow")
    manifest = make(base, sources, decontamination=settings)
    assert "train_documents_near_heldout" not in manifest.sources["other"].counts
    assert not (base / "corpus" / f"data-{manifest.request}" / "near_copies.json").exists()
    assert make(base, sources, "other").request != manifest.request


def test_a_cluster_holds_what_is_like_its_members(base: Path) -> None:
    rng = random.Random(2)
    web = [make_text(rng, 200) for _ in range(200)]
    held = [text for text in web if is_heldout("web", make_document(text + "\n").key, fraction=0.1, seed=0)]
    first = [edited(text, 0.03, rng) for text in held]
    # of each copy the last fifth gives way to new text: too little like the held-out document, enough like the copy
    second = [" ".join(text.split()[:160] + make_text(rng, 40).split()) for text in first]
    write_text(base / "web.jsonl", [text + "\n" for text in web])
    write_text(base / "other.jsonl", [make_text(rng, 200) for _ in range(200)] + first + second)
    sources = {
        "web": SourceSettings(format="jsonl", path="web.jsonl"),
        "other": SourceSettings(format="jsonl", path="other.jsonl", heldout_fraction=0.03),
    }
    settings = DecontaminationSettings(heldout_similarity=0.65)
    counts = make(base, sources, decontamination=settings).sources["other"].counts
    assert counts["train_documents_near_heldout"] >= 2 * len(held) - 3


def test_jaccard_is_that_of_the_sets_of_runs() -> None:
    rng = random.Random(3)
    held = [make_text(rng, 60) for _ in range(30)]
    train = [edited(rng.choice(held), share, rng) for share in (0.0, 0.05, 0.1, 0.2, 0.3) for _ in range(10)]
    train += [make_text(rng, 60) for _ in range(20)]

    def runs_of(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[k : k + 5]) for k in range(len(words) - 4)}

    def hashes(text: str) -> Any:
        return word_runs([text])[0]

    index = RunIndex([hashes(text) for text in held])
    flat, owner = word_runs(train)
    found = {(t, h): s for t, h, s in zip(*(each.tolist() for each in index.find(flat, owner, 0.1)))}
    expected = {}
    for t, one in enumerate(train):
        for h, other in enumerate(held):
            a, b = runs_of(one), runs_of(other)
            if len(a & b) / len(a | b) >= 0.1:
                expected[t, h] = len(a & b) / len(a | b)
    assert found == pytest.approx(expected)
    assert len(expected) > 35


def test_runs_of_tokens_are_equal_where_the_tokens_are() -> None:
    tokens = np.array([5, 1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5], np.uint16)
    runs = token_runs(tokens, 10, 5)
    assert len(runs) == 8
    assert runs[1] == runs[7]
    assert len(np.unique(runs)) == 7
    assert len(token_runs(tokens[:3], 10, 5)) == 0


def test_template_text_and_short_documents_are_no_copies(base: Path) -> None:
    rng = random.Random(4)
    frame = make_text(rng, 30)
    texts = [f"{frame} {make_text(rng, 12)} {frame[::-1]}" for _ in range(600)]
    short = [f"what is {a} plus {b} it is {a + b} of course" for a in range(30) for b in range(30)]
    write_text(base / "templates.jsonl", texts)
    write_text(base / "short.jsonl", short)
    sources = {name: SourceSettings(format="jsonl", path=f"{name}.jsonl") for name in ("templates", "short")}
    settings = DecontaminationSettings(on_overlap="allow")
    manifest = make(base, {"short": sources["short"]}, decontamination=settings)
    assert manifest.sources["short"].counts["train_documents_near_heldout"] == 0
    index = RunIndex([word_runs([text])[0] for text in texts[:60]])
    flat, owner = word_runs(texts[60:])
    assert len(index.find(flat, owner, 0.1)[0]) == 0


def test_a_source_of_copies_is_refused(base: Path) -> None:
    rng = random.Random(5)
    web = [make_text(rng) for _ in range(300)]
    held = [text for text in web if is_heldout("web", make_document(text + "\n").key, fraction=0.1, seed=0)]
    write_text(base / "web.jsonl", [text + "\n" for text in web])
    write_text(base / "copies.jsonl", [edited(text, 0.1, rng) for text in held for _ in range(5)])
    sources = {name: SourceSettings(format="jsonl", path=f"{name}.jsonl") for name in ("web", "copies")}
    with pytest.raises(
        DataError, match=r"'sources.copies': \d+ of \d+ train documents resemble held-out .* to null"
    ):
        make(base, sources)


def test_of_a_large_store_a_part_is_looked_through_and_said(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sources = plant(base, as_store=True)
    monkeypatch.setattr(stores, "CHUNK", 20_000)
    monkeypatch.setattr(near_copies, "MAX_TOKENS", 200_000)
    manifest = make(base, sources)
    found = report(base, manifest)
    assert 0.1 < found["share"]["other"] < 0.6
    counts = manifest.sources["other"].counts
    assert 0 < counts["train_documents_near_heldout"] < 100
    assert found["compared"]["other"] < counts["stored_documents"]
