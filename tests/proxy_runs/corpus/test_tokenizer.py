"""Text to tokens: all of the text, the same at every call, and nothing but text."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from decaylaws.errors import DataError
from proxy_runs.data import tokenizer as module
from proxy_runs.data.tokenizer import EOS, load_tokenizer, train_tokenizer

TEXTS = ["The cat sat on the mat. " * 40, "print('<|endoftext|>')\n", "caf\u00e9 \u4e2d", "x"]


def token(number: int, content: str, **changes: object) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags, **changes}


@pytest.fixture
def ready(tmp_path):
    """A tokenizer.json, and a function that writes it with changes."""
    path = tmp_path / "tokenizer.json"
    train_tokenizer(TEXTS, vocab_size=300, path=path)
    content = json.loads(path.read_text())

    def changed(**changes: object):
        path.write_text(json.dumps({**content, **changes}))
        return path

    changed.content = content
    changed.path = path
    return changed


def tokens(path, texts=TEXTS, **options):
    tokenizer = load_tokenizer(path, **options)
    file = io.BytesIO()
    totals = np.sum(list(tokenizer.write(texts, file)), axis=0)
    return np.frombuffer(file.getvalue(), tokenizer.dtype), totals.tolist()


def test_the_end_of_a_document_is_never_read_out_of_its_middle(ready):
    ids, (documents, text_bytes, total) = tokens(ready.path)
    tokenizer = load_tokenizer(ready.path)
    assert (ids == tokenizer.end_id).sum() == documents == len(TEXTS)
    assert (
        text_bytes == sum(len(text.encode()) for text in TEXTS) == tokenizer.token_bytes[ids].sum(dtype=int)
    )
    assert total == len(ids)
    assert tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == "".join(
        t + EOS for t in TEXTS
    )


def test_what_a_tokenizer_holds_for_other_uses_is_off(ready):
    expected, totals = tokens(ready.path)
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 64}
    padding |= {"pad_id": 5, "pad_type_id": 0, "pad_token": "!"}
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    model = {**ready.content["model"], "dropout": 0.5}
    for changes in ({"truncation": truncation}, {"padding": padding}, {"model": model}):
        ids, other = tokens(ready(**changes))
        assert np.array_equal(ids, expected)
        assert other == totals


def test_a_tokenizer_that_adds_or_loses_text_is_refused(ready):
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {text: k for text, k in ready.content["model"]["vocab"].items() if text != "x"}
    for changes in (
        {"pre_tokenizer": spaced},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}},
        {"added_tokens": [*ready.content["added_tokens"], token(300, "mat", special=False, lstrip=True)]},
        {"model": {**ready.content["model"], "vocab": vocab, "merges": []}},
    ):
        with pytest.raises(DataError, match=r"turns .* bytes of text into tokens that spell .* bytes"):
            tokens(ready(**changes))


def test_canonical_unicode_forms_count_as_the_tokenizer_sees_them(ready):
    ids, (_, text_bytes, _) = tokens(ready(normalizer={"type": "NFC"}), ["cafe\u0301"])
    assert text_bytes == len("caf\u00e9".encode())
    assert load_tokenizer(ready.path).token_bytes[ids].sum() == text_bytes


def test_ids_with_gaps_and_ids_without_end(ready):
    vocab = {**ready.content["model"]["vocab"], "far": 500}
    path = ready(model={**ready.content["model"], "vocab": vocab, "merges": []})
    assert load_tokenizer(path).vocab_size == 501
    assert load_tokenizer(path).token_bytes[500] == len("far")
    assert tokens(path)[1][1] == sum(len(text.encode()) for text in TEXTS)
    with pytest.raises(DataError, match=r"an id of 1,000,000,000"):
        load_tokenizer(ready(added_tokens=[*ready.content["added_tokens"], token(10**9, "<|far|>")]))
    model = {**ready.content["model"], "vocab": {"a": -1}}
    with pytest.raises(DataError, match="not a table of tokens and ids"):
        load_tokenizer(ready(model=model))


def test_another_end_token_is_named_or_found_beside_the_file(ready):
    vocab = {text.replace(EOS, "<END>"): k for text, k in ready.content["model"]["vocab"].items()}
    path = ready(
        model={**ready.content["model"], "vocab": vocab}, added_tokens=[token(0, "<END>", special=False)]
    )
    with pytest.raises(DataError, match=r"Name its own as tokenizer\.end_token"):
        load_tokenizer(path)
    ids, (documents, *_) = tokens(path, ["a<END>b", "c"], end_token="<END>")
    assert (ids == 0).sum() == documents == 2
    with pytest.raises(DataError, match=r"'tokenizer\.end_token': .* has no token '<NONE>'"):
        load_tokenizer(path, end_token="<NONE>")
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<END>"}}))
    assert load_tokenizer(path).end_id == 0


def test_a_sequence_of_decoders_is_byte_level_where_one_of_them_is(ready):
    level = ready.content["decoder"]
    expected, _ = tokens(ready.path)
    ids, _ = tokens(ready(decoder={"type": "Sequence", "decoders": [level, {"type": "Fuse"}]}))
    assert np.array_equal(ids, expected)
    with pytest.raises(DataError, match="not byte-level"):
        load_tokenizer(ready(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}]}))


def test_an_expression_that_backtracks_is_one_error(ready):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    path = ready(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})
    with pytest.raises(
        DataError, match=r"cannot encode the text \(.*retry-limit.*mend the regular expression"
    ):
        tokens(path, ["a" * 500 + "b"])


@pytest.mark.parametrize(
    "content", ["[]", "{}", "{", '{"model": 3}', "[" * 200_000, '{"model": {"vocab": []}}']
)
def test_what_is_no_tokenizer_is_one_error(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(
        DataError, match=r"'tokenizer\.path': .*x\.json (is not a tokenizer\.json|is not a byte-level BPE)"
    ):
        load_tokenizer(tmp_path / "x.json")


def test_a_tokenizer_that_makes_its_library_panic_is_one_error(ready):
    merges = [["a", "b"]]
    model = {**ready.content["model"], "merges": merges, "continuing_subword_prefix": "\u00e9" * 50}
    with pytest.raises(DataError, match=r"'tokenizer\.path': .*is not a tokenizer\.json .*Save it again"):
        load_tokenizer(ready(model=model))
    for added in (3.5, [[]], {"a": 1}):
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            load_tokenizer(ready(added_tokens=added))


def test_long_documents_are_encoded_in_pieces_to_the_same_tokens(ready, monkeypatch):
    text = "".join(f"line {number} of a long text\n  indented\n\n" for number in range(300))
    expected, totals = tokens(ready.path, [text, "x"])
    monkeypatch.setattr(module, "_MAX_PIECE_CHARS", 500)
    monkeypatch.setattr(module, "_BATCH_CHARS", 700)
    pieces = list(module._pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1000
    ids, other = tokens(ready.path, [text, "x"])
    assert np.array_equal(ids, expected)
    assert other == totals
    ids, other = tokens(ready.path, ["x" * 5_000])
    assert other == [1, 5_000, len(ids)]


MEMORY = """
import io, random, resource, sys
from pathlib import Path
from proxy_runs.data.tokenizer import load_tokenizer
tokenizer = load_tokenizer(Path(sys.argv[1]))
list(tokenizer.write(["warm up"], io.BytesIO()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = "".join(random.Random(0).choices("abcdefgh", k=1_000_000)) * 8
list(tokenizer.write([text], io.BytesIO()))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_a_document_without_blanks(ready):
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(ready.path)], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 600, "MB for a document of 8 MB; in one piece it takes more than 1,000"


def test_the_alphabet_is_whole(ready):
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(ready.content["model"]["vocab"])
