"""The prepared corpus on disk: what is read, and what is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.files import atomic_write, record_of
from proxy_runs.data.manifest import read_manifest, write_manifest
from proxy_runs.data.shards import TokenStore
from proxy_runs.testing import byte_alphabet, make_tiny_store


def test_a_store_reads_back_what_was_written(tmp_path):
    store = make_tiny_store(tmp_path, train_tokens=3000, heldout_tokens=500)
    tokens = store.train("code")
    assert tokens.dtype == np.dtype("<u2")
    assert store.available_tokens["code"] == len(tokens) == 3000
    assert tokens[-1] == store.eos_id
    heldout = store.heldout("code")
    assert len(heldout.tokens) == len(heldout.token_bytes) == 500
    assert (heldout.token_bytes == (heldout.tokens != store.eos_id)).all()


def test_the_fingerprint_depends_on_content_only(tmp_path):
    one, same = make_tiny_store(tmp_path / "1"), make_tiny_store(tmp_path / "2")
    other = make_tiny_store(tmp_path / "3", seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_the_tiny_tokenizer_is_one_that_tokenizers_reads(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    store = make_tiny_store(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(store.tokenizer_path))
    text = "na\u00efve 12\n\tx"
    encoded = tokenizer.encode(text)
    assert [byte_alphabet()[byte] for byte in text.encode()] == encoded.tokens
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == store.eos_id


def test_a_flipped_byte_is_found(tmp_path):
    store = make_tiny_store(tmp_path)
    path = tmp_path / store.manifest.sources["code"].train.file.path
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"code\.train\.bin changed since it was prepared.*decaylaws prepare"):
        TokenStore.open(tmp_path)
    TokenStore.open(tmp_path, verify=False)


def test_a_cut_or_missing_shard_is_found_without_reading_it(tmp_path):
    store = make_tiny_store(tmp_path)
    path = tmp_path / store.manifest.sources["maths"].heldout.file.path
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"holds 3998 bytes; the manifest says 4000"):
        TokenStore.open(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(DataError, match=r"maths\.heldout\.bin is missing"):
        TokenStore.open(tmp_path)


def test_a_shard_cut_while_it_is_read_is_found(tmp_path):
    store = make_tiny_store(tmp_path)
    row = np.empty(64, dtype=store.dtype)
    store.read_into("code", 0, row)
    (tmp_path / "code.train.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="ends before token 64"):
        store.read_into("code", 0, row)


def test_a_missing_or_damaged_manifest_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"no prepared corpus.*decaylaws prepare"):
        TokenStore.open(tmp_path)
    make_tiny_store(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "vocab_size": 2}))
    with pytest.raises(
        DataError, match=r"manifest\.json changed since decaylaws wrote it.*decaylaws prepare"
    ):
        TokenStore.open(tmp_path)
    record_of(path).unlink()
    path.write_text(json.dumps({**content, "dtype": "<i2"}))
    with pytest.raises(DataError, match=r"manifest\.json is damaged \(dtype"):
        TokenStore.open(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"manifest\.json is not valid JSON.*decaylaws prepare"):
        TokenStore.open(tmp_path)


def test_an_unknown_source_names_those_that_exist(tmp_path):
    with pytest.raises(InvalidValueError, match="must be one of general, code, maths"):
        make_tiny_store(tmp_path).train("poetry")


_READ_MUCH = """
import pathlib, resource, sys
from decaylaws.mixtures import Mixture
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences
from proxy_runs.data.shards import TokenStore

store = TokenStore.open(pathlib.Path(sys.argv[1]), verify=False)
order = MixtureSampler(Mixture({"code": 1.0}), available_sequences(store, 512), seed=0, batch_sequences=64)
reader = BatchReader(store, order, 512)
for step in range(300):
    reader.batch(64 * step, 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_of_the_data_path_does_not_grow_with_the_corpus(tmp_path):
    """A corpus of 2 GB and one of 20 MB, read at random: the same peak of resident memory."""
    peaks = []
    for megabytes in (20, 2000):
        directory = tmp_path / str(megabytes)
        make_tiny_store(directory, sources=("code",))
        _enlarge(directory, megabytes * 10**6)
        output = subprocess.run(
            [sys.executable, "-c", _READ_MUCH, str(directory)], capture_output=True, text=True, check=True
        ).stdout
        peaks.append(int(output) * 1024)
    assert peaks[1] - peaks[0] < 8_000_000


def _enlarge(directory, size):
    """A train shard of ``size`` bytes; a hole in a sparse file, so that it takes no place on the disk."""
    manifest = read_manifest(directory)
    source = manifest.sources["code"]
    os.truncate(directory / source.train.file.path, size)
    file = source.train.file.model_copy(update={"bytes": size})
    train = source.train.model_copy(update={"file": file, "tokens": size // 2})
    sources = {"code": source.model_copy(update={"train": train})}
    write_manifest(manifest.model_copy(update={"sources": sources}), directory)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as handle:
            handle.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with atomic_write(path) as handle:
        handle.write(b"new")
    assert path.read_bytes() == b"new"


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="Cannot write"), atomic_write(tmp_path / "file" / "below"):
        pass


def test_held_out_text_that_changes_after_the_store_was_opened_is_refused(tmp_path):
    store = make_tiny_store(tmp_path)
    path = tmp_path / store.manifest.sources["maths"].heldout.file.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=rf"{path.name} changed since it was prepared.*decaylaws prepare"):
        store.heldout("maths")
    assert store.heldout("code").tokens.size > 0


@pytest.mark.parametrize("name", ["x" * 10_000, "a\x00b"])
def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path, name):
    store = make_tiny_store(tmp_path)
    entry = store.manifest.tokenizer.model_copy(update={"path": name})
    write_manifest(store.manifest.model_copy(update={"tokenizer": entry}), tmp_path)
    with pytest.raises(DataError, match=r"cannot be read.*decaylaws prepare") as caught:
        TokenStore.open(tmp_path)
    assert len(str(caught.value)) < 600
