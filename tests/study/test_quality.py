"""Quality buckets: sources like any other, from study.yaml through the shards to the design."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import DataError, InvalidValueError
from decaylaws.settings.sources import SourceSettings
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.plan import plan_runs
from proxy_runs.corpus.demo.texts import Source
from proxy_runs.corpus.quality import score_source
from tests.decontamination.planted import document
from tests.study.tiny import TINY_SETTINGS, decaylaws

BY_FIELD = {"field": "score", "quantiles": [0.6]}
MIXTURE = {"web.high": 0.5, "web.low": 0.5}


def settings(quality: dict[str, Any], **web: Any) -> dict[str, Any]:
    """The tiny study with the web cut in two."""
    source = {"format": "jsonl", "path": "data/web.jsonl", "group": "general", "quality": quality, **web}
    others = {
        name: {"format": "jsonl", "path": f"data/{name}.jsonl", "max_epochs": 2} for name in ("maths", "code")
    }
    return {
        **TINY_SETTINGS,
        "sources": {"web": source, **others},
        "trunk": {**TINY_SETTINGS["trunk"], "mixture": MIXTURE},
        "objective": {"weights": {"maths": 1, "code": 1}, "guard_domains": ["web.low"], "guard_nats": 0.3},
    }


def rows(name: str, count: int = 120) -> list[dict[str, Any]]:
    rng = random.Random(name)
    return [
        {"text": document(rng, sentences=6), "score": round(rng.random(), 3), "id": f"{name}{number}"}
        for number in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def make(root: Path, quality: dict[str, Any], **web: Any) -> Study:
    for name in ("web", "maths", "code"):
        write(root / "data" / f"{name}.jsonl", rows(name))
    (root / "study.yaml").write_text(yaml.safe_dump(settings(quality, **web), sort_keys=False))
    return Study.open(root)


def source(root: Path, quality: dict[str, Any], **web: Any) -> Source:
    """The upper bucket."""
    checked = parse_settings(settings(quality, **web)).sources["web.high"]
    return Source("web.high", checked, root, 0)


def test_buckets_are_sources_with_shards_a_design_and_common_bounds(tmp_path: Path) -> None:
    study = make(tmp_path, BY_FIELD, lower=0.2, upper=0.7)
    output = decaylaws("prepare", str(tmp_path))
    assert "web.high" in output
    tokens = study.corpus().available_tokens
    assert list(tokens) == ["web.high", "web.low", "maths", "code"]
    assert 0.3 < tokens["web.high"] / (tokens["web.high"] + tokens["web.low"]) < 0.5
    report = json.loads((study.shard_dir() / "web.quality.json").read_text())
    entries = json.loads((study.corpus_dir / "manifest.json").read_text())["sources"]
    for bucket in ("high", "low"):
        for split in ("train", "heldout"):
            counted = report["buckets"][bucket][split]["documents"]
            assert entries[f"web.{bucket}"][split]["documents"] == counted > 0
    design, _ = plan_runs(study)
    table = design.table()
    shares = table[["mix:web.high", "mix:web.low"]].sum(axis=1)[table["role"] == "simplex"]
    assert shares.between(0.2 - 1e-6, 0.7 + 1e-6).all()
    assert table["mix:web.high"].nunique() > 5


def test_every_document_is_in_one_bucket_by_its_score_and_keeps_its_split(tmp_path: Path) -> None:
    make(tmp_path, BY_FIELD)
    content = settings({"field": "score", "thresholds": [0.35, 0.65], "names": ["bad", "fair", "good"]})
    content["trunk"]["mixture"] = {"web.bad": 0.2, "web.fair": 0.5, "web.good": 0.3}
    content["objective"]["guard_domains"] = ["web.bad"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    decaylaws("prepare", str(tmp_path))
    cut = json.loads((tmp_path / "corpus" / "manifest.json").read_text())["sources"]
    scores = [row["score"] for row in rows("web")]
    expected = {"bad": sum(s < 0.35 for s in scores), "good": sum(s >= 0.65 for s in scores)}
    counts = {
        name: cut[f"web.{name}"]["train"]["documents"] + cut[f"web.{name}"]["heldout"]["documents"]
        for name in ("bad", "fair", "good")
    }
    assert sum(counts.values()) == 120
    assert {name: counts[name] for name in expected} == expected

    whole = Source("web", SourceSettings(format="jsonl", path="data/web.jsonl"), tmp_path, 0)
    part = source(tmp_path, BY_FIELD)
    documents = [document for _, document in whole.documents()]
    assert [whole.heldout(each) for each in documents] == [part.heldout(each) for each in documents]


def test_quantiles_are_shares_of_train_bytes_and_heldout_scores_do_not_move_them(tmp_path: Path) -> None:
    make(tmp_path, BY_FIELD)
    scored = score_source(source(tmp_path, BY_FIELD))
    quality = source(tmp_path, BY_FIELD).settings.quality
    assert quality is not None
    cuts = scored.cuts(quality)
    train = ~scored.heldout
    below = scored.text_bytes[train & (scored.scores < cuts[0])].sum() / scored.text_bytes[train].sum()
    assert below == pytest.approx(0.6, abs=0.02)
    scored.scores[scored.heldout] = 99.0
    assert scored.cuts(quality) == cuts


def test_a_column_of_parquet_holds_the_scores(tmp_path: Path) -> None:
    make(tmp_path, BY_FIELD)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows("web")), tmp_path / "data" / "web.parquet")
    by_column = score_source(source(tmp_path, BY_FIELD, format="parquet", path="data/web.parquet"))
    np.testing.assert_array_equal(by_column.scores, score_source(source(tmp_path, BY_FIELD)).scores)


def test_a_classifier_tells_good_from_bad_and_never_learns_from_heldout_text(tmp_path: Path) -> None:
    rng = random.Random(0)
    good, bad = (
        [f"{word} {document(rng, sentences=3)} {word}" for _ in range(60)] for word in ("fine", "poor")
    )
    make(tmp_path, BY_FIELD)
    write(tmp_path / "data" / "web.jsonl", [{"text": text} for text in [*good[30:], *bad[30:]]])
    write(tmp_path / "good.jsonl", [{"text": text} for text in good[:40]])
    write(tmp_path / "bad.jsonl", [{"text": text} for text in bad[:40]])
    quality = {"classifier": {"good": "good.jsonl", "bad": "bad.jsonl"}, "thresholds": [0.5]}
    scored = score_source(source(tmp_path, quality))
    assert scored.scores[:30].min() > 0.5 > scored.scores[30:].max()
    assert scored.facts["cross_validated_auc"] > 0.95
    # examples that are held-out documents of the source change nothing
    held = [text for text, out in zip([*good[30:], *bad[30:]], scored.heldout) if out]
    assert held
    write(tmp_path / "good.jsonl", [{"text": text} for text in [*good[:40], *held]])
    np.testing.assert_array_equal(score_source(source(tmp_path, quality)).scores, scored.scores)


@pytest.mark.slow
def test_a_language_model_scores_by_bits_per_byte(tmp_path: Path) -> None:
    from proxy_runs.evaluation.checkpoint import Checkpoint
    from proxy_runs.evaluation.domains import score_documents
    from tests.proxy_runs.evaluation.checkpoints import make_checkpoint

    make(tmp_path, BY_FIELD)
    write(tmp_path / "data" / "web.jsonl", rows("web", 5))
    make_checkpoint(tmp_path / "judge")
    quality = {"perplexity": {"checkpoint": "judge"}, "quantiles": [0.5]}
    scored = score_source(source(tmp_path, quality))
    table = score_documents(Checkpoint.load(tmp_path / "judge"), [row["text"] for row in rows("web", 5)])
    np.testing.assert_allclose(scored.scores, -table["nats"] / np.log(2) / table["bytes"], rtol=1e-5)
    assert (scored.scores < 0).all()


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"thresholds": [0.5]}, ["sources.web.quality", "one of field, classifier and perplexity"]),
        ({"field": "score"}, ["sources.web.quality", "either thresholds or quantiles"]),
        ({"field": "score", "thresholds": []}, ["sources.web.quality", "rise"]),
        ({"field": "score", "quantiles": [0.5, 0.5]}, ["sources.web.quality", "rise"]),
        ({"field": "score", "quantiles": [1.5]}, ["sources.web.quality.quantiles"]),
        (
            {"field": "score", "quantiles": [0.5], "names": ["one"]},
            ["sources.web.quality", "2 different names"],
        ),
        ({"feild": "score", "quantiles": [0.5]}, ["sources.web.quality.feild", "not a known key"]),
    ],
)
def test_a_wrong_quality_is_one_error_that_names_it(quality: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_settings(settings(quality))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_names_of_buckets_are_those_that_other_settings_must_use() -> None:
    content = settings(BY_FIELD)
    content["trunk"]["mixture"] = {"web": 1.0}
    with pytest.raises(InvalidValueError, match=r"'trunk\.mixture' .*got \['web'\].*web\.high, web\.low"):
        parse_settings(content)
    checked = parse_settings(settings(BY_FIELD))
    assert parse_settings(checked.model_dump()) == checked, "what was cut is not cut again"
    clash = settings(BY_FIELD)
    clash["sources"]["web.low"] = {"format": "text", "path": "x"}
    with pytest.raises(InvalidValueError, match=r"'web\.low' has the name of another source"):
        parse_settings(clash)


@pytest.mark.parametrize(
    ("content", "quality", "message"),
    [
        ([{"text": "no score"}], BY_FIELD, r"'sources\.web\.quality\.field': .*:1 has no finite number under 'score'"),
        ([{"text": "x", "score": "high"}], BY_FIELD, "no finite number under 'score'; it holds 'high'"),
        (None, {"classifier": {"good": "x", "bad": "x"}, "thresholds": [0.5]}, "classifier.good.*finds no file"),
        (None, {"field": "score", "thresholds": [2.0]}, r"'sources\.web\.high' has no usable text"),
    ],
)  # fmt: skip
def test_bad_scores_are_one_error(
    tmp_path: Path, content: list[dict[str, Any]] | None, quality: dict[str, Any], message: str
) -> None:
    make(tmp_path, quality)
    if content is not None:
        write(tmp_path / "data" / "web.jsonl", content)
    with pytest.raises(DataError, match=message):
        CliRunner().invoke(app, ["prepare", str(tmp_path)], catch_exceptions=False)
