"""Preparation as a whole: what comes out, what is not repeated, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus import prepare, request
from proxy_runs.corpus.demo.texts import Source
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.data.shards import TokenStore
from proxy_runs.evaluation.sources import HeldOutPart

TOKENIZER = TokenizerSettings(vocab_size=400, train_bytes_per_source=20_000)
SOURCES = {
    "code": SourceSettings(format="embedded", max_bytes=60_000, heldout_fraction=0.3),
    "qa": SourceSettings(format="embedded", max_bytes=30_000),
    "mine": SourceSettings(format="jsonl", path="mine.jsonl", heldout_fraction=0.2),
}


def sentence(rng: random.Random) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(20))


@pytest.fixture
def base(tmp_path):
    rng = random.Random(0)
    documents = ["\n\n".join(sentence(rng) for _ in range(4)) for _ in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return tmp_path


def make(base, name="corpus", **changes):
    settings = {"sources": SOURCES, "tokenizer": TOKENIZER, "seed": 0, "base": base, **changes}
    return prepare_corpus(settings.pop("sources"), base / name, **settings)


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_corpus_holds_what_its_manifest_says(base):
    import tokenizers

    manifest = make(base)
    store = TokenStore.open(base / "corpus")
    tokenizer = tokenizers.Tokenizer.from_file(str(store.tokenizer_path))
    assert store.vocab_size == tokenizer.get_vocab_size() == 400
    assert store.names == ("code", "qa", "mine")
    assert [source.kind for source in manifest.sources.values()] == ["embedded", "generated", "jsonl"]
    for name in store.names:
        split = manifest.sources[name].heldout
        heldout = store.heldout(name)
        assert len(heldout.tokens) == split.tokens > 0
        assert heldout.token_bytes.sum() == split.text_bytes
        assert (heldout.tokens == store.eos_id).sum() == split.documents
        text = tokenizer.decode(heldout.tokens.tolist(), skip_special_tokens=False)
        assert len(text.replace("<|endoftext|>", "").encode()) == split.text_bytes
    assert len(store.train("mine")) == store.available_tokens["mine"]
    assert {"python", "tokenizers", "pip"} <= set(manifest.libraries)
    assert sorted(path.name for path in (base / "corpus").glob("[!.]*")) == [
        f"data-{manifest.request}",
        "manifest.json",
    ]


def test_the_tokenizer_spells_numbers_by_digit_and_knows_every_byte(base):
    import tokenizers

    make(base)
    tokenizer = tokenizers.Tokenizer.from_file(str(TokenStore.open(base / "corpus").tokenizer_path))
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]
    odd = "\u00e4\u4e2d\U0001f600\x00\t\r\n"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd


def test_two_preparations_agree_byte_for_byte_and_other_requests_differ(base):
    first, second = make(base, "1"), make(base, "2")
    assert first.fingerprint == second.fingerprint
    assert contents(base / "1" / f"data-{first.request}") == contents(base / "2" / f"data-{second.request}")
    other = make(base, "3", seed=1)
    assert other.fingerprint != first.fingerprint
    bounded = {**SOURCES, "code": SOURCES["code"].model_copy(update={"max_epochs": 3.0, "upper": 0.5})}
    assert make(base, "2", sources=bounded) == second, "bounds of the search do not touch the text"


def test_a_second_run_repeats_nothing(base, monkeypatch):
    first = make(base)
    monkeypatch.setattr(prepare, "collect", None)
    assert make(base) == first


def test_changed_input_is_noticed_and_the_old_shards_go(base):
    first = make(base)
    with open(base / "mine.jsonl", "a") as lines:
        lines.write(json.dumps({"text": sentence(random.Random(9)) * 3}) + "\n")
    second = make(base)
    assert second.fingerprint != first.fingerprint
    assert second.sources["code"].counts == first.sources["code"].counts
    assert not (base / "corpus" / f"data-{first.request}").exists()


def test_a_damaged_shard_is_prepared_again(base):
    first = make(base)
    for entry in (first.sources["code"].train.file, first.tokenizer):
        path = base / "corpus" / entry.path
        path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    with pytest.raises(DataError, match="changed since it was prepared"):
        TokenStore.open(base / "corpus")
    assert make(base).fingerprint == first.fingerprint
    assert TokenStore.open(base / "corpus").fingerprint == first.fingerprint


def test_generated_instances_never_share_a_split_and_heldout_documents_are_new(base):
    make(base)
    store = TokenStore.open(base / "corpus")
    train, heldout = (
        {tuple(part) for part in np.split(tokens, np.flatnonzero(tokens == store.eos_id))}
        for tokens in (np.asarray(store.train("qa")), store.heldout("qa").tokens)
    )
    assert len(heldout) > 10
    assert not {part[1:] for part in train} & {part[1:] for part in heldout} - {()}


def test_a_user_s_short_rows_and_licences_are_kept(base):
    rows = [f"Q: {k} plus {k}? A: {2 * k}. All rights reserved." for k in range(200)]
    (base / "mine.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = make(base).sources["mine"]
    assert source.train.documents + source.heldout.documents == 200
    assert source.train.text_bytes + source.heldout.text_bytes == sum(len(row) + 1 for row in rows)


def test_max_bytes_bounds_a_user_s_source_and_progress_never_falls(base):
    reports = []
    limited = {"mine": SOURCES["mine"].model_copy(update={"max_bytes": 20_000}), "qa": SOURCES["qa"]}
    make(
        base,
        sources=limited,
        progress=lambda stage, done, total, note="": reports.append((stage, done / total)),
    )
    source = TokenStore.open(base / "corpus").manifest.sources["mine"]
    assert 19_000 < source.train.text_bytes + source.heldout.text_bytes <= 20_000
    for stage in ("text", "overlap", "tokenizer", "shards"):
        shares = [share for name, share in reports if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


@pytest.mark.parametrize("place", [0, 3])
def test_a_document_that_does_not_fit_is_passed_over_and_those_after_it_are_taken(base, place):
    rng = random.Random(3)
    rows = [sentence(rng) for _ in range(300)]
    long = "x " * 30_000
    texts = [*rows[:place], long, *rows[place:]]
    (base / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    limit = 35_000
    source = make(base, sources={"mine": SOURCES["mine"].model_copy(update={"max_bytes": limit})}).sources[
        "mine"
    ]
    taken = source.train.text_bytes + source.heldout.text_bytes
    assert 0.95 * limit < taken <= limit + len(rows), "cleaning ends every document with a line feed"
    assert source.counts["documents_over_max_bytes"] >= 1
    with pytest.raises(DataError, match=r"Passed over: documents that did not fit into max_bytes \(301\)"):
        make(base, "none", sources={"mine": SOURCES["mine"].model_copy(update={"max_bytes": 3})})


def test_documents_that_spell_out_special_tokens_stay_whole(base):
    rng = random.Random(5)
    texts = [f"{sentence(rng)} <|endoftext|> {sentence(rng)}\n" for _ in range(60)]
    (base / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    manifest = make(base, sources={"mine": SOURCES["mine"]})
    store = TokenStore.open(base / "corpus")
    for split, tokens in (
        ("train", np.asarray(store.train("mine"))),
        ("heldout", store.heldout("mine").tokens),
    ):
        entry = getattr(manifest.sources["mine"], split)
        assert (tokens == store.eos_id).sum() == entry.documents > 0
    assert set(HeldOutPart(base / "corpus", "mine").texts()) <= set(texts)
    content = json.loads(store.tokenizer_path.read_text())
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (base / "used.json").write_text(json.dumps({**content, "truncation": truncation}))
    again = make(
        base, "again", sources={"mine": SOURCES["mine"]}, tokenizer=TokenizerSettings(path="used.json")
    )
    assert again.fingerprint == manifest.fingerprint


def test_a_corpus_of_an_earlier_preparation_is_made_anew(base, monkeypatch):
    sources = {"mine": SOURCES["mine"]}
    monkeypatch.setattr(request, "PREPARATION_VERSION", 1)
    earlier = make(base, sources=sources)
    monkeypatch.undo()
    now = make(base, sources=sources)
    assert now.request != earlier.request
    assert now.fingerprint == earlier.fingerprint, "the same tokens: runs on them stay valid"
    assert not (base / "corpus" / f"data-{earlier.request}").exists()


def test_a_tokenizer_learns_from_few_long_documents_too(base):
    rng = random.Random(4)
    texts = [" ".join(["statistical", "gradient", sentence(rng)] * 60) for _ in range(12)]
    (base / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = TokenizerSettings(vocab_size=300, train_bytes_per_source=1_000)
    source = SOURCES["mine"].model_copy(update={"heldout_fraction": 0.4})
    manifest = make(base, sources={"mine": source}, tokenizer=settings)
    assert manifest.vocab_size == 300, "without a sample only bytes and the end of a document are in it"


def test_line_ends_do_not_change_the_corpus(base):
    texts = json.loads("[" + ",".join((base / "mine.jsonl").read_text().splitlines()) + "]")
    rows = [text["text"] + "\n\n" + texts[0]["text"] for text in texts]
    sources = {"mine": SOURCES["mine"]}
    manifests = []
    for end in ("\n", "\r\n", "\r"):
        content = "".join(json.dumps({"text": row.replace("\n", end)}) + "\n" for row in rows)
        (base / "mine.jsonl").write_text(content)
        manifests.append(make(base, f"corpus{len(manifests)}", sources=sources))
    assert len({manifest.fingerprint for manifest in manifests}) == 1
    assert {manifest.sources["mine"].counts["paragraphs_repeated"] for manifest in manifests} == {4 * 60}


def test_less_is_held_out_of_a_large_source(tmp_path):
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(200_000_000)
    large = Source("large", SourceSettings(format="text", path="large.txt"), tmp_path, 0)
    assert large.heldout_fraction == pytest.approx(0.02)
    limited = SourceSettings(format="text", path="large.txt", max_bytes=10_000_000)
    assert Source("large", limited, tmp_path, 0).heldout_fraction == 0.1


def test_heldout_documents_that_train_gives_away_are_dropped_and_counted(base):
    rng = random.Random(1)
    copied = [sentence(rng) + " " + sentence(rng) for _ in range(30)]
    rows = [f"{text}\n\n{sentence(rng)}\n\n{sentence(rng)}" for text in copied]
    rows += [f"{text} changed at its end {sentence(rng)}\n\n{sentence(rng)}" for text in copied]
    rows += ["\n\n".join(sentence(rng) for _ in range(4)) for _ in range(60)]
    (base / "mine.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    near_copies_stay = DecontaminationSettings(heldout_similarity=None)
    source = make(base, decontamination=near_copies_stay).sources["mine"]
    assert source.counts["heldout_documents_overlapping"] >= 5
    assert (
        source.heldout.documents
        == source.counts["heldout_documents"] - source.counts["heldout_documents_overlapping"]
    )
    assert source.overlap is not None
    assert source.overlap < 0.02


class Killed(BaseException):
    """Stands for the signal that cannot be caught."""


def test_interrupted_at_any_stage_it_goes_on_to_the_same_corpus(base):
    old = make(base, sources={name: SOURCES[name] for name in ("qa", "mine")})
    expected = make(base, "undisturbed")
    stages: list[tuple[str, str]] = []

    def stop_once(stage, done, total, note=""):
        if (stage, note) not in stages:
            stages.append((stage, note))
            raise Killed

    for _ in range(30):
        try:
            manifest = make(base, progress=stop_once)
            break
        except Killed:
            assert TokenStore.open(base / "corpus").manifest == old
    assert len(stages) >= 11
    assert manifest.fingerprint == expected.fingerprint
    assert manifest.sources == expected.sources


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_corpus(base):
    expected = make(base, "undisturbed")
    program = (
        "import sys, pathlib, tests.proxy_runs.corpus.test_prepare as t\n"
        "base = pathlib.Path(sys.argv[1]); print('go', flush=True); t.make(base)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rng = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(base)], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if (base / "corpus" / "manifest.json").exists():
            assert TokenStore.open(base / "corpus").fingerprint == expected.fingerprint
    assert make(base).sources == expected.sources
    assert not list((base / "corpus").glob("work-*"))


BAD = {
    "a source that does not exist": (
        {"format": "jsonl", "path": "nowhere.jsonl"},
        DataError,
        r"'sources\.new\.path' finds no file at .*nowhere\.jsonl",
    ),
    "an unknown embedded domain": (
        {"format": "embedded"},
        InvalidValueError,
        r"'sources\.new' is not an embedded domain; .* There are narrative, reference, code",
    ),
    "an empty file": (
        {"format": "text", "path": "empty.txt"},
        DataError,
        r"'sources\.new' has no usable text \(empty\.txt\)",
    ),
    "a source too small to hold out anything": (
        {"format": "text", "path": "single.txt"},
        DataError,
        r"'sources\.new' leaves its (heldout|train) split empty: it has 1 document.* a (larger|smaller) heldout_fr",
    ),
    "an interrupted download": (
        {"format": "jsonl", "path": "cut.jsonl"},
        DataError,
        r"'sources\.new': .*cut\.jsonl:1 is not valid JSON",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_one_error_and_leave_the_corpus_as_it_was(base, case):
    settings, error, message = BAD[case]
    old = make(base, sources={"qa": SOURCES["qa"]})
    (base / "empty.txt").write_text("\n\n")
    (base / "single.txt").write_text(sentence(random.Random(2)) * 3)
    (base / "cut.jsonl").write_text('{"text": "wo')
    before = contents(base / "corpus" / f"data-{old.request}")
    with pytest.raises(error, match=message):
        make(base, sources={"qa": SOURCES["qa"], "new": SourceSettings(**settings)})
    assert TokenStore.open(base / "corpus").manifest == old
    assert contents(base / "corpus" / f"data-{old.request}") == before


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "two words"])
def test_a_name_that_is_no_file_name_is_refused(base, name):
    with pytest.raises(InvalidValueError, match="'sources' must name each source by letters"):
        make(base, sources={name: SOURCES["mine"]})
    assert not (base / "corpus").exists()


def test_a_ready_tokenizer_is_taken_and_checked(base):
    make(base, "first")
    ready = TokenStore.open(base / "first").tokenizer_path
    manifest = make(base, tokenizer=TokenizerSettings(path=str(ready)))
    assert manifest.vocab_size == 400
    with pytest.raises(DataError, match=r"'tokenizer\.path' finds no file"):
        make(base, tokenizer=TokenizerSettings(path="nowhere.json"))
    content = json.loads(ready.read_text())
    (base / "other.json").write_text(json.dumps({**content, "decoder": {"type": "Fuse"}}))
    with pytest.raises(DataError, match="not byte-level"):
        make(base, tokenizer=TokenizerSettings(path="other.json"))


def test_a_place_that_cannot_be_written_is_one_error(base):
    (base / "corpus").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="Cannot write"):
        make(base)


def test_a_full_disk_is_one_error_and_goes_on_afterwards(base, monkeypatch):
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device\. Free space"):
        make(base)
    assert not (base / "corpus" / "manifest.json").exists()
    assert not list((base / "corpus").rglob("*.tmp"))
    assert make(base).sources


def test_length_classes_part_a_source(base):
    rng = random.Random(1)
    texts = [sentence(rng) * (1 + 9 * (number % 3 == 0)) for number in range(60)]
    (base / "books.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    books = {"format": "jsonl", "path": "books.jsonl", "heldout_fraction": 0.2}
    limit = 500
    sources = {
        "books": SourceSettings(**books, max_document_bytes=limit),
        "books-long": SourceSettings(**books, min_document_bytes=limit),
    }
    manifest = make(base, sources=sources)
    for name, wanted in (
        ("books", [text for text in texts if len(text) < limit]),
        ("books-long", [text for text in texts if len(text) >= limit]),
    ):
        source = manifest.sources[name]
        assert source.train.documents + source.heldout.documents == len(wanted) > 0
        # cleaning ends every document with a line feed
        assert source.train.text_bytes + source.heldout.text_bytes == sum(len(text) + 1 for text in wanted)
    with pytest.raises(DataError, match=r"books-long.*outside min_document_bytes"):
        make(
            base, "none", sources=sources | {"books-long": SourceSettings(**books, min_document_bytes=10**6)}
        )
    with pytest.raises(ValueError, match=r"min_document_bytes=500 must be below max_document_bytes=500"):
        SourceSettings(**books, min_document_bytes=limit, max_document_bytes=limit)


def test_a_corpus_without_length_classes_keeps_its_name(base):
    source = Source("mine", SOURCES["mine"], base, 0)
    assert not [key for key in request._source_request(source) if "document_bytes" in key]
