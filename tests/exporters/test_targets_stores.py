"""Token stores that their own projects write are read here as their own readers read them ('make test-targets')."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaylaws.settings.sources import SourceSettings
from proxy_runs.corpus.readers import source_files
from proxy_runs.data.stores import TokenFile, open_files
from tests.exporters.trainers import import_trainer
from tests.proxy_runs.data.token_stores import END, make_documents, write_raw_with_index
from tests.proxy_runs.data.token_stores import FORMATS as WRITTEN_HERE

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend


def open_store(folder: Path, **keys: Any) -> list[TokenFile]:
    source = SourceSettings(path=str(folder), **keys)
    return open_files("web", source, source_files("web", source, folder), end_id=END)


def documents_of(files: list[TokenFile]) -> list[list[int]]:
    found = []
    for file in files:
        tokens, ends = file.read(0, file.tokens), file.document_ends()
        ends = np.flatnonzero(tokens == END) + 1 if ends is None else ends
        found += [part.tolist() for part in np.split(tokens, ends[:-1])]
    return found


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron(tmp_path: Path, dtype: Any) -> None:
    dataset = import_trainer("megatron.core.datasets.indexed_dataset")
    torch = import_trainer("torch")
    documents = make_documents(200)
    builder = dataset.IndexedDatasetBuilder(str(tmp_path / "web.bin"), dtype=dtype)
    for number, document in enumerate(documents):
        if number % 3:
            builder.add_item(torch.tensor(document))
            builder.end_document()
        else:  # a document of two sequences
            builder.add_document(torch.tensor(document), [4, len(document) - 4])
    builder.finalize(str(tmp_path / "web.idx"))
    files = open_store(tmp_path, format="megatron")
    assert documents_of(files) == documents
    reference = dataset.IndexedDataset(str(tmp_path / "web"))
    bounds = reference.document_indices
    sequences = [reference[number] for number in range(len(reference))]
    theirs = [np.concatenate(sequences[first:last]).tolist() for first, last in pairwise(bounds)]
    assert theirs == documents


def test_megatron_reads_what_the_tests_write(tmp_path: Path) -> None:
    dataset = import_trainer("megatron.core.datasets.indexed_dataset")
    documents = make_documents(50)
    WRITTEN_HERE["megatron"][0](tmp_path, documents)
    reference = dataset.IndexedDataset(str(tmp_path / "web_text_document"))
    assert [reference[number].tolist() for number in range(len(reference))] == documents


def test_olmo_core(tmp_path: Path) -> None:
    data = import_trainer("olmo_core.data.utils")
    documents = make_documents(200)
    write_raw_with_index(tmp_path, documents)
    path = tmp_path / "part-0.npy"
    bounds = list(data.iter_document_indices(str(path), use_array_if_local=False))
    theirs = [data.load_array_slice(str(path), *bound, np.uint16).tolist() for bound in bounds]
    assert documents_of(open_store(tmp_path, format="array", token_type="uint16")) == theirs == documents
    (tmp_path / "part-0.csv.gz").unlink()
    data.write_document_indices(path, dtype=np.uint16, eos_token_id=END)
    assert open_store(tmp_path, format="array", token_type="uint16")[0].document_ends() is not None
    assert documents_of(open_store(tmp_path, format="array", token_type="uint16")) == documents


@pytest.mark.parametrize("size", [2, 4])
def test_datatrove_and_nanotron(tmp_path: Path, size: int) -> None:
    writing = import_trainer("datatrove.pipeline.tokens.tokenizer")
    reading = import_trainer("datatrove.utils.dataset")
    documents = make_documents(200)
    name = "00000_00000_shuffled.ds"
    out = writing.TokenizedFile(str(tmp_path), name, save_final_metadata=True, token_size=size)
    for document in documents:
        out.write(document, None)
    out.close()
    files = open_store(tmp_path, format="nanotron")
    assert documents_of(files) == documents
    windows = reading.DatatroveFileDataset(str(tmp_path / name), 31, token_size=size)
    tokens = files[0].read(0, files[0].tokens)
    assert len(windows) == len(tokens) // 32
    for number in (0, 7, len(windows) - 1):
        assert windows[number]["input_ids"].tolist() == tokens[number * 32 : number * 32 + 32].tolist()


@pytest.mark.parametrize("encoding", ["ndarray:uint16", "ndarray:int32:40", "ndarray", "bytes"])
def test_mosaicml_streaming(tmp_path: Path, encoding: str) -> None:
    writer = import_trainer("streaming.base.format.mds.writer")
    reader = import_trainer("streaming.base.format.mds.reader")
    fixed = encoding.endswith(":40")
    documents = make_documents(120, low=39, high=40) if fixed else make_documents(120, high=400)
    dtype = {"ndarray:uint16": np.uint16, "bytes": np.int64}.get(encoding, np.int32)
    columns = {"id": "int", "tokens": encoding, "a_text": "str"}
    with writer.MDSWriter(columns=columns, out=str(tmp_path), size_limit=20_000) as out:
        for number, document in enumerate(documents):
            tokens: Any = np.array(document, dtype)
            tokens = tokens.tobytes() if encoding == "bytes" else tokens
            out.write({"id": number, "tokens": tokens, "a_text": "x" * (number % 7)})
    index = json.loads((tmp_path / "index.json").read_text())
    theirs = []
    for shard in index["shards"]:
        samples = reader.MDSReader.from_json(str(tmp_path), "", shard)
        for number in range(samples.samples):
            value = samples.decode_sample(samples.get_sample_data(number))["tokens"]
            theirs.append((np.frombuffer(value, np.int64) if encoding == "bytes" else value).tolist())
    assert len(index["shards"]) > 1
    keys = {"token_type": "int64"} if encoding == "bytes" else {}
    assert documents_of(open_store(tmp_path, format="mds", **keys)) == theirs == documents


def test_streaming_reads_what_the_tests_write(tmp_path: Path) -> None:
    reader = import_trainer("streaming.base.format.mds.reader")
    documents = make_documents(30)
    WRITTEN_HERE["mds of arrays"][0](tmp_path, documents)
    theirs = []
    for shard in json.loads((tmp_path / "index.json").read_text())["shards"]:
        options = {"compression": None, "hashes": [], "size_limit": None, **shard}
        samples = reader.MDSReader.from_json(str(tmp_path), "", options)
        data = map(samples.get_sample_data, range(samples.samples))
        theirs += [samples.decode_sample(each)["tokens"].tolist() for each in data]
    assert theirs == documents
