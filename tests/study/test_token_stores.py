"""A study whose sources are token stores of other projects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from decaylaws.errors import StudyError
from decaylaws.study import Study, plan, prepare
from decaylaws.study.checks import check_prepared
from tests.proxy_runs.data.token_stores import END, write_megatron, write_nanotron, write_tokenizer
from tests.study.tiny import decaylaws, make_tiny_study


def documents_of(path: Path) -> list[list[int]]:
    """The texts of a JSON Lines file as bytes, each ended by the end-of-document token."""
    return [[*yaml.safe_load(line)["text"].encode(), END] for line in path.read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tiny_study(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json")
    settings = yaml.safe_load((tmp_path / "study.yaml").read_text())
    for name, write, keys in (
        ("maths", write_megatron, {"format": "megatron"}),
        ("code", write_nanotron, {"format": "nanotron"}),
    ):
        folder = tmp_path / "data" / f"{name}-tokens"
        folder.mkdir()
        write(folder, documents_of(tmp_path / "data" / f"{name}.jsonl"))
        settings["sources"][name] = {"path": f"data/{folder.name}", **keys}
    settings["tokenizer"] = {"path": "tokenizer.json"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path


def test_prepare_states_what_it_found_in_a_store(root: Path) -> None:
    output = decaylaws("prepare", str(root))
    assert "token stores, read in place" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.strip()}
    assert rows["maths"][-3:-1] == ["256", "256"], "the largest id and the end-of-document token"
    assert "code: a held-out document begins: " in output
    prepared = prepare(Study.open(root))
    assert prepared.stores["source"].tolist() == ["maths", "code"]
    assert prepared.stores["documents"].tolist() == [150, 150]
    share = prepared.stores["end_share"][0]
    assert share == pytest.approx(150 / prepared.stores["tokens"][0])
    words = prepared.stores["beginning"][1].split()
    assert len(words) > 5
    assert all(word.strip(",.").isalpha() for word in words[:-1])


def test_prepare_says_how_much_of_a_large_store_was_searched_for_near_copies(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_runs.corpus.stores.CHUNK", 5_000)
    monkeypatch.setattr("proxy_runs.corpus.near_copies.MAX_TOKENS", 20_000)
    output = " ".join(decaylaws("prepare", str(root)).split())
    found = json.loads((Study.open(root).shard_dir() / "near_copies.json").read_text())
    assert 0 < found["share"]["maths"] < 1
    assert found["share"]["web"] == 1
    words = f"in {found['share']['maths']:.2g} of its train documents ({found['compared']['maths']:,})"
    assert f"maths: near copies of held-out documents were looked for {words}" in output
    assert "web: near copies" not in output


def test_a_study_of_stores_is_planned_and_trained_on_them(root: Path) -> None:
    from proxy_runs.data.shards import TokenStore
    from proxy_runs.engine.heldout import EvaluationSet

    study = Study.open(root)
    prepare(study)
    planned = plan(study)
    assert planned.is_new
    store = TokenStore.open(study.corpus_dir)
    assert set(EvaluationSet.build(store, seq_len=32, tokens_per_domain=512).windows) == set(store.names)


def test_a_store_that_changed_is_prepared_again(root: Path) -> None:
    study = Study.open(root)
    prepare(study)
    check_prepared(study)
    index = next((root / "data" / "code-tokens").glob("*.index"))
    index.write_bytes(index.read_bytes() + b"\0" * 8)
    with pytest.raises(StudyError, match=r"The text of 'sources.code' \(data/code-tokens\) changed"):
        check_prepared(study)


def test_a_study_without_stores_asks_what_it_asked(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    sources = Study.open(tmp_path).decisive_settings()["sources"]
    assert all(not {"tokens_from", "token_type", "append_end"} & set(source) for source in sources.values())
