"""Token stores: every format gives the documents that were written, and whatever is wrong with one is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus import store_scan
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.corpus.readers import source_files
from proxy_runs.data.manifest import Manifest
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences
from proxy_runs.data.shards import TokenStore
from proxy_runs.data.stores import TokenFile, open_files, reopen_files
from proxy_runs.data.tokenizer import load_tokenizer
from tests.proxy_runs.data.token_stores import (
    END,
    FORMATS,
    VOCAB,
    make_documents,
    write_datasets,
    write_mds,
    write_megatron,
    write_nanotron,
    write_numpy,
    write_raw,
    write_raw_with_index,
    write_tokenizer,
)

END_TOKENIZER = TokenizerSettings(path="tokenizer.json", end_token="<end>")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path


def settings(name: str, **changes: Any) -> SourceSettings:
    return SourceSettings(**{"path": "store", **FORMATS[name][1], **changes})


def open_store(base: Path, source: SourceSettings) -> list[TokenFile]:
    return open_files("web", source, source_files("web", source, base), end_id=END)


def read_documents(files: list[TokenFile]) -> list[list[int]]:
    """Documents as a store states them; by end tokens where it does not."""
    found = []
    for file in files:
        tokens = file.read(0, file.tokens)
        ends = file.document_ends()
        ends = np.flatnonzero(tokens == END) + 1 if ends is None else ends
        found += [part.tolist() for part in np.split(tokens, ends[:-1])]
    return found


def make(base: Path, source: SourceSettings, name: str = "corpus", **changes: Any) -> Manifest:
    options = {"tokenizer": TokenizerSettings(path="tokenizer.json"), "base": base, **changes}
    return prepare_corpus({"web": source}, base / name, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_a_store_gives_the_documents_that_were_written(base: Path, name: str) -> None:
    documents = make_documents(50)
    FORMATS[name][0](base / "store", documents)
    files = open_store(base, settings(name))
    assert read_documents(files) == documents
    entries = [{**file.to_dict(), "path": str(file.path)} for file in files]
    assert read_documents(reopen_files(entries, base, end_id=END)) == documents
    for file in files:
        for start, count in ((0, 1), (7, 300), (file.tokens - 5, 5)):
            assert (
                file.read(start, count).tolist() == file.read(0, file.tokens)[start : start + count].tolist()
            )


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_held_out_is_copied_and_all_else_is_read_in_place(base: Path, name: str) -> None:
    documents = make_documents(300)
    FORMATS[name][0](base / "store", documents)
    before = {path: path.read_bytes() for path in (base / "store").iterdir()}
    manifest = make(base, settings(name, heldout_fraction=0.2))
    store = TokenStore.open(base / "corpus")
    heldout = np.split(store.heldout("web").tokens, np.flatnonzero(store.heldout("web").tokens == END) + 1)[
        :-1
    ]
    chosen = {tuple(document.tolist()) for document in heldout}
    assert 0.1 < len(chosen) / 300 < 0.3
    train = [document for document in documents if tuple(document) not in chosen]
    assert store.train("web").tolist() == [token for document in train for token in document]
    entry = manifest.sources["web"]
    assert (entry.train.documents, entry.heldout.documents) == (len(train), len(chosen))
    assert entry.train.text_bytes == entry.train.tokens - entry.train.documents
    assert entry.counts["stored_documents"] == 300
    assert entry.counts["end_tokens"] == 300
    assert entry.counts["largest_id"] == END
    assert {path: path.read_bytes() for path in (base / "store").iterdir()} == before
    assert sum(file.bytes for file in (entry.train.file, entry.store)) < 4000  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FORMATS)
def test_a_training_batch_is_that_of_the_same_text_prepared_here(base: Path, name: str) -> None:
    documents = make_documents(120, low=20)
    FORMATS[name][0](base / "store", documents)
    make(base, settings(name))
    store = TokenStore.open(base / "corpus")
    # the train text of the store, written as a shard by our own tokenizer
    tokenizer = load_tokenizer(base / "tokenizer.json")
    heldout = set(bytes(store.heldout("web").tokens.astype(np.uint8)).split(bytes([END % 256])))
    texts = [bytes(document[:-1]).decode() for document in documents]
    with open(base / "shard.bin", "wb") as shard:
        for _ in tokenizer.write((text for text in texts if text.encode() not in heldout), shard):
            pass
    expected = np.fromfile(base / "shard.bin", tokenizer.dtype)

    sequences = available_sequences(store, 32)
    sampler = MixtureSampler(Mixture({"web": 1.0}), sequences, seed=3, batch_sequences=8)
    rows = BatchReader(store, sampler, 32).batch(5, 40)
    _, numbers = sampler.assign(5, 40)
    assert len(expected) == store.available_tokens["web"]
    assert rows.tolist() == [expected[number * 32 : number * 32 + 33].tolist() for number in numbers]


def test_windows_of_packed_documents_are_cut_at_end_tokens(base: Path) -> None:
    documents = make_documents(200)
    whole = [token for document in documents for token in document]
    windows = [whole[start : start + 64] for start in range(0, len(whole) - 63, 64)]
    write_mds(base / "store", windows, "ndarray:uint16:64")
    make(base, settings("mds"), "mds")
    write_datasets(base / "data", windows)
    make(base, settings("datasets", path="data"), "datasets")
    for name in ("mds", "datasets"):
        store = TokenStore.open(base / name)
        held = store.heldout("web").tokens
        chosen = [part.tolist() for part in np.split(held, np.flatnonzero(held == END) + 1)[:-1]]
        assert 5 < len(chosen) < 60
        assert all(document in documents for document in chosen)
        left = [token for document in documents if document not in chosen for token in document]
        assert store.train("web").tolist() == left[: store.available_tokens["web"]]


def test_datasets_are_read_as_their_own_library_reads_them(base: Path) -> None:
    import datasets

    documents = make_documents(2500)
    write_datasets(base / "store", documents, "int64")
    reference = datasets.load_from_disk(str(base / "store"))
    files = open_store(base, settings("datasets"))
    assert [file.type.name for file in files] == ["int64", "int64"]
    assert read_documents(files) == list(reference["input_ids"])
    assert (
        files[0].read(90_000, 30_000).tolist() == files[0].read(0, files[0].tokens)[90_000:120_000].tolist()
    )
    content = files[0].path.read_bytes()
    place = files[0].offset(90_000)
    assert content[place : place + 8] == int(files[0].read(90_000, 1)[0]).to_bytes(8, "little")
    datasets.DatasetDict({"train": reference, "test": reference}).save_to_disk(str(base / "both"))
    assert read_documents(open_store(base, settings("datasets", path="both"))) == documents
    datasets.DatasetDict({"a": reference, "test": reference}).save_to_disk(str(base / "neither"))
    with pytest.raises(DataError, match="holds the splits a, test, and none is called train"):
        open_store(base, settings("datasets", path="neither"))


def test_shards_of_another_study_keep_their_split(base: Path) -> None:
    lines = [bytes(document[:-1]).decode() for document in make_documents(100, low=80)]
    (base / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    tokenizer = TokenizerSettings(path="tokenizer.json")
    text = SourceSettings(format="jsonl", path="text.jsonl")
    prepare_corpus({"notes": text}, base / "other" / "corpus", tokenizer=tokenizer, base=base)
    other = TokenStore.open(base / "other" / "corpus")
    make(base, SourceSettings(format="decaylaws", path="other", tokens_from="notes"))
    store = TokenStore.open(base / "corpus")
    assert store.train("web").tolist() == other.train("notes").tolist()
    assert store.heldout("web").tokens.tolist() == other.heldout("notes").tokens.tolist()
    for name, corpus in (("web", store), ("notes", other)):
        sampler = MixtureSampler(Mixture({name: 1.0}), available_sequences(corpus, 16), seed=0)
        assert BatchReader(corpus, sampler, 16).batch(0, 20).shape == (20, 17)
    with pytest.raises(DataError, match=r"has no source 'web' \(it has: notes\)"):
        make(base, SourceSettings(format="decaylaws", path="other/corpus"))
    with pytest.raises(DataError, match="is itself a token store that is read in place"):
        make(base, SourceSettings(format="decaylaws", path="corpus", tokens_from="web"), "third")
    write_tokenizer(base / "tokenizer.json", end_token="<end>")
    with pytest.raises(DataError, match=r"has another tokenizer than tokenizer.path.* Use its own"):
        make(
            base,
            SourceSettings(format="decaylaws", path="other", tokens_from="notes"),
            tokenizer=END_TOKENIZER,
        )


def test_columns_that_hold_no_tokens_are_told(base: Path) -> None:
    write_mds(base / "store", make_documents(20))
    for keys, problem in (
        ({"tokens_from": "ids"}, r"shard.00000.mds has no column 'ids' \(it has: id, tokens, url\)"),
        ({"tokens_from": "url"}, r"holds str in its column 'url', not token ids"),
        ({"token_type": "int64"}, r"says that its tokens are uint16, and token_type says int64"),
    ):
        with pytest.raises(DataError, match=problem):
            make(base, settings("mds", **keys))
    write_mds(base / "store", make_documents(20), "bytes")
    with pytest.raises(DataError, match=r"holds its tokens as bytes, .* Add token_type"):
        make(base, settings("mds"))
    write_datasets(base / "data", make_documents(20))
    for column, problem in (
        ("labels", r"has no column 'labels' \(it has: input_ids, id\)"),
        ("id", "holds int64 in"),
    ):
        with pytest.raises(DataError, match=problem):
            make(base, settings("datasets", path="data", tokens_from=column))


def test_damaged_shards_and_datasets_name_file_and_byte(base: Path) -> None:
    documents, folder = make_documents(30), base / "store"
    write_mds(folder, documents)
    shard = folder / "shard.00001.mds"
    whole = shard.read_bytes()
    cut(shard, 4)
    with pytest.raises(
        DataError, match=rf"shard.00001.mds ends at byte {len(whole) - 4}, and index.json says"
    ):
        make(base, settings("mds"))
    shifted = bytearray(whole)
    shifted[4 + 4 * 3 : 4 + 4 * 4] = (5).to_bytes(4, "little")
    shard.write_bytes(bytes(shifted))
    with pytest.raises(
        DataError, match=r"shard.00001.mds has a shifted table of samples: entry 2 \(byte 12\)"
    ):
        make(base, settings("mds"))
    swapped = np.frombuffer(whole[: 4 * 17], "<u4").astype(">u4").tobytes() + whole[4 * 17 :]
    shard.write_bytes(swapped)
    with pytest.raises(DataError, match=r"shard.00001.mds was written in big-endian order"):
        make(base, settings("mds"))
    shard.unlink()
    with pytest.raises(DataError, match=r"lists shard.00001.mds, and there is no such file"):
        make(base, settings("mds"))
    (folder / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index.json is not the index of MDS shards"):
        make(base, settings("mds"))
    write_datasets(base / "data", documents)
    arrow = min((base / "data").glob("*.arrow"))
    cut(arrow, 600)
    with pytest.raises(DataError, match=r"arrow is not a readable file of a datasets folder"):
        make(base, settings("datasets", path="data"))


def test_many_files_are_one_source_in_the_order_of_their_names(base: Path) -> None:
    documents = make_documents(400)
    for number in range(200):
        folder = base / "store" / f"{number:03}"
        folder.mkdir()
        write_megatron(folder, documents[2 * number : 2 * number + 2], "<u2")
    files = open_store(base, settings("megatron"))
    assert len(files) == 200
    assert read_documents(files) == documents
    make(base, settings("megatron"))
    train = TokenStore.open(base / "corpus").train("web").tolist()
    ends = [index + 1 for index, token in enumerate(train) if token == END]
    kept = [train[start:stop] for start, stop in zip([0, *ends], ends)]
    assert all(document in documents for document in kept)
    assert sorted(kept, key=documents.index) == kept


def test_a_pair_of_megatron_can_be_named_by_its_prefix(base: Path) -> None:
    write_megatron(base / "store", make_documents(20))
    source = settings("megatron", path="store/web_text_document")
    assert len(read_documents(open_store(base, source))) == 20


def test_the_split_depends_on_content_and_seed_and_not_on_format_or_files(base: Path) -> None:
    documents = make_documents(300)
    heldout = []
    for number, name in enumerate(("raw", "megatron", "nanotron")):
        (base / str(number)).mkdir()
        FORMATS[name][0](base / str(number), documents)
        make(base, settings(name, path=str(number)), name)
        heldout.append(TokenStore.open(base / name).heldout("web").tokens.tolist())
    assert heldout[0] == heldout[1] == heldout[2]
    make(base, settings("megatron", path="1"), "seed", seed=1)
    assert TokenStore.open(base / "seed").heldout("web").tokens.tolist() != heldout[0]


def test_long_documents_and_files_that_cut_them_do_not_change_the_hashes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nanotron(base / "store", make_documents(60, high=3000))
    first = make(base, settings("nanotron", heldout_fraction=0.3))
    monkeypatch.setattr(store_scan, "CHUNK", 500)
    second = make(base, settings("nanotron", heldout_fraction=0.3), "again")
    assert first.fingerprint == second.fingerprint


def test_equal_documents_share_a_split_and_one_of_them_is_evaluated(base: Path) -> None:
    documents = make_documents(100)
    write_nanotron(base / "store", documents * 2)
    manifest = make(base, settings("nanotron", heldout_fraction=0.2))
    entry = manifest.sources["web"]
    assert entry.counts["heldout_documents_repeated"] == entry.heldout.documents
    assert entry.train.documents == 200 - 2 * entry.heldout.documents


def test_an_end_is_put_after_documents_that_have_none(base: Path) -> None:
    documents = make_documents(80)
    bare = [document[:-1] for document in documents]
    write_megatron(base / "store", bare, "<u2")
    with pytest.raises(DataError, match=r"80 of the 80 documents of .*bin do not end .*append_end: true"):
        make(base, settings("megatron"))
    files = open_store(base, settings("megatron", append_end=True))
    assert read_documents(files) == documents
    whole = files[0].read(0, files[0].tokens)
    for start in range(0, files[0].tokens, 37):
        count = min(90, files[0].tokens - start)
        assert files[0].read(start, count).tolist() == whole[start : start + count].tolist()
    make(base, settings("megatron", append_end=True))
    train = TokenStore.open(base / "corpus").train("web")
    assert (train == END).sum() == TokenStore.open(base / "corpus").manifest.sources["web"].train.documents
    write_megatron(base / "store", documents, "<u2")
    with pytest.raises(DataError, match="already end with the end-of-document token 256"):
        make(base, settings("megatron", append_end=True))


def test_text_and_token_sources_stand_side_by_side(base: Path) -> None:
    write_nanotron(base / "store", make_documents(100))
    lines = [bytes(document[:-1]).decode() for document in make_documents(100, seed=1, low=80)]
    (base / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    sources = {"web": settings("nanotron"), "text": SourceSettings(format="jsonl", path="text.jsonl")}
    tokenizer = TokenizerSettings(path="tokenizer.json")
    prepare_corpus(sources, base / "corpus", tokenizer=tokenizer, base=base)
    store = TokenStore.open(base / "corpus")
    sampler = MixtureSampler(Mixture({"web": 0.5, "text": 0.5}), available_sequences(store, 16), seed=0)
    assert BatchReader(store, sampler, 16).batch(0, 50).max() <= END


def test_a_scan_goes_on_where_it_was_interrupted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (base / "store" / str(number)).mkdir()
        write_nanotron(base / "store" / str(number), make_documents(40, seed=number))
    expected = make(base, settings("nanotron"), "whole")
    read, calls = store_scan._Reader.read, []

    def interrupted(self: Any, file: TokenFile, *rest: Any, **options: Any) -> Any:
        calls.append(file.path.parent.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, file, *rest, **options)

    monkeypatch.setattr(store_scan._Reader, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(base, settings("nanotron"))
    assert make(base, settings("nanotron")).fingerprint == expected.fingerprint
    assert calls == ["0", "1", "2", "2"]


def test_a_study_moves_with_its_store_and_a_changed_store_is_refused(base: Path) -> None:
    write_nanotron(base / "store", make_documents(100))
    make(base, settings("nanotron"))
    moved = base.parent / "moved"
    base.rename(moved)
    store = TokenStore.open(moved / "corpus")
    file = next((moved / "store").glob("*.ds"))
    content = bytearray(file.read_bytes())
    content[:2] = b"\xff\xff"
    file.write_bytes(bytes(content))
    TokenStore.open(moved / "corpus", verify=False)
    with pytest.raises(DataError, match=r"\.ds changed since it was prepared: samples of it differ"):
        TokenStore.open(moved / "corpus")
    with pytest.raises(DataError, match=r"holds an id at byte 0 that is beyond the vocabulary of 257"):
        store.read_into("web", 0, np.empty(8, store.dtype))
    file.write_bytes(bytes(content)[:-2])
    with pytest.raises(DataError, match=r"\.ds holds \d+ bytes, and \d+ when it was prepared"):
        TokenStore.open(moved / "corpus", verify=False)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[: -count or None])


def test_a_store_that_is_cut_short_names_file_and_byte(base: Path) -> None:
    documents, folder = make_documents(30), base / "store"
    write_raw(folder, documents)
    cut(folder / "part-0.npy", 3)
    with pytest.raises(DataError, match=r"part-0.npy ends within a token: from byte \d+ on it holds 1 bytes"):
        make(base, settings("raw"))
    write_raw_with_index(folder, documents)
    cut(folder / "part-0.npy", 2)
    with pytest.raises(
        DataError, match=r"part-0.csv.gz and part-0.npy do not belong together: line 30 says .*byte"
    ):
        make(base, settings("raw with index"))
    (folder / "part-0.csv.gz").unlink()
    write_numpy(folder, documents)
    cut(folder / "part-0.npy", 2)
    with pytest.raises(
        DataError, match=r"part-0.npy is cut short .* tokens up to byte \d+, and it ends at byte"
    ):
        make(base, settings("numpy"))
    (folder / "part-0.npy").unlink()
    write_megatron(folder, documents)
    cut(folder / "web_text_document.bin", 4)
    with pytest.raises(
        DataError, match=r"\.bin ends at byte \d+, and by .*\.idx its last sequence ends at byte"
    ):
        make(base, settings("megatron"))
    write_megatron(folder, documents)
    cut(folder / "web_text_document.idx", 8)
    with pytest.raises(
        DataError, match=r"\.idx is cut short: by byte 18 it indexes 30 sequences and 31 document"
    ):
        make(base, settings("megatron"))
    write_nanotron(folder, documents)
    cut(folder / "00000_00000_shuffled.ds", 2)
    with pytest.raises(
        DataError, match=r"\.ds holds \d[\d,]* tokens and ends at byte \d+; by .*metadata it has"
    ):
        make(base, settings("nanotron"))
    (folder / "00000_00000_shuffled.ds.metadata").unlink()
    with pytest.raises(
        DataError, match=r"index and its file of tokens .* by entry 29 \(byte 232\) the last document"
    ):
        make(base, settings("nanotron", token_type="uint16"))


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_is_named(base: Path, name: str) -> None:
    FORMATS[name][0](base / "store", make_documents(10))
    suffixes = (".npy", ".bin", ".ds", ".mds", ".arrow")
    file = min(path for path in (base / "store").iterdir() if path.suffix in suffixes)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"'sources.web': .*{file.name} is empty \(it ends at byte 0\)"):
        make(base, settings(name))


def test_files_of_two_widths_are_two_sources(base: Path) -> None:
    for number, dtype in enumerate(("<u2", "<i4")):
        (base / "store" / str(number)).mkdir()
        write_megatron(base / "store" / str(number), make_documents(20), dtype)
    with pytest.raises(
        DataError, match=r"0/web_text_document.bin holds uint16 and .*1/web_text_document.bin int32"
    ):
        make(base, settings("megatron"))


def test_a_wrong_type_is_explained(base: Path) -> None:
    write_raw(base / "store", make_documents(40), "<u4")
    with pytest.raises(
        DataError, match=r"Every second token of .*npy is 0, from byte 0 on: its tokens are uint32"
    ):
        make(base, settings("raw", token_type="uint16"))
    write_raw(base / "store", make_documents(40), "<u2")
    with pytest.raises(DataError, match=r"holds the id [\d,]+ at byte 0.* Read as uint16, all ids"):
        make(base, settings("raw", token_type="uint32"))
    write_numpy(base / "store", make_documents(40), "<u2")
    with pytest.raises(
        DataError, match=r"says at byte 0 that its tokens are uint16, and token_type says uint32"
    ):
        make(base, settings("numpy", token_type="uint32"))
    write_raw(base / "store", make_documents(40), "<u2")
    with pytest.raises(DataError, match=r"does not say of which type its tokens are. Add token_type: uint16"):
        make(base, settings("numpy"))


def test_a_shifted_index_names_the_first_document_that_it_cuts(base: Path) -> None:
    documents, folder = make_documents(30), base / "store"
    # the tokens of the same documents in another order: lengths and sum are right, ends are not
    write_nanotron(folder, documents)
    file = folder / "00000_00000_shuffled.ds"
    other = np.array([token for document in documents[::-1] for token in document], "<u2")
    file.write_bytes(other.tobytes())
    with pytest.raises(
        DataError, match=r"documents of .*\.ds do not end .* the first of them ends at byte \d+ with"
    ):
        make(base, settings("nanotron"))
    file.unlink()
    write_megatron(folder, documents)
    index = bytearray((folder / "web_text_document.idx").read_bytes())
    at = 34 + 4 * 30 + 8 * 7
    index[at : at + 8] = (int.from_bytes(index[at : at + 8], "little") + 4).to_bytes(8, "little")
    (folder / "web_text_document.idx").write_bytes(bytes(index))
    with pytest.raises(
        DataError, match=rf"shifted against its tokens: sequence 7 \(byte {at} of the index\)"
    ):
        make(base, settings("megatron"))
    write_raw_with_index(folder, documents)
    content = (folder / "part-0.npy").read_bytes()
    (folder / "part-0.npy").write_bytes(content[4:])
    with pytest.raises(DataError, match=r"part-0.csv.gz and part-0.npy do not belong together"):
        make(base, settings("raw with index"))


def test_a_foreign_byte_order_is_told(base: Path) -> None:
    documents, folder = make_documents(30), base / "store"
    write_raw(folder, documents, ">u4")
    with pytest.raises(DataError, match=r"holds the id [\d,]+ at byte 0, .* the store is big-endian"):
        make(base, settings("raw"))
    write_raw(folder, documents, ">u2")
    with pytest.raises(DataError, match="the store is big-endian"):
        make(base, settings("raw", token_type="uint16"))
    write_numpy(folder, documents, ">u2")
    with pytest.raises(DataError, match=r"part-0.npy is big-endian \(>u2 at byte 0\)"):
        make(base, settings("numpy"))
    write_megatron(folder, documents, order=">")
    with pytest.raises(DataError, match=r"was written in big-endian order \(byte 9\)"):
        make(base, settings("megatron"))


def test_an_id_beyond_the_vocabulary_names_file_and_byte(base: Path) -> None:
    documents = make_documents(30)
    documents[20][4] = VOCAB
    offset = 2 * (sum(map(len, documents[:20])) + 4)
    write_nanotron(base / "store", documents)
    with pytest.raises(
        DataError, match=rf"\.ds holds the id 257 at byte {offset}, and the tokenizer has ids below 257"
    ):
        make(base, settings("nanotron"))


def test_another_end_token_is_told(base: Path) -> None:
    documents = [[*document[:-1], 10] for document in make_documents(50)]
    write_raw(base / "store", documents)
    with pytest.raises(DataError, match=r"part-0.npy \(byte 0\) on, none are the end-of-document token 256"):
        make(base, settings("raw"))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"format": "megatron", "max_bytes": 5}, "max_bytes is about text"),
        ({"format": "megatron", "text_field": "body"}, "text_field is about text"),
        ({"format": "megatron", "token_type": "uint16"}, "states its own"),
        ({"format": "jsonl", "append_end": True}, "append_end is for token stores"),
        ({"format": "jsonl", "tokens_from": "tokens"}, "tokens_from belongs to the formats"),
    ],
)
def test_keys_that_say_nothing_of_a_format_are_refused(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SourceSettings(path="store", **keys)


def test_a_store_needs_the_tokenizer_that_it_was_written_with() -> None:
    from decaylaws.settings.study import parse_settings
    from tests.study.tiny import TINY_SETTINGS

    sources = {**TINY_SETTINGS["sources"], "maths": {"format": "megatron", "path": "store"}}
    with pytest.raises(
        InvalidValueError, match=r"'tokenizer.path' must name the tokenizer.json whose ids 'sources.maths'"
    ):
        parse_settings({**TINY_SETTINGS, "sources": sources})
