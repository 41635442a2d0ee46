"""A study.yaml that changed after ``prepare``, and held-out parts that are short."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import DataError, InfeasibleError, InvalidValueError, StudyError
from decaylaws.study import Study
from decaylaws.study.checks import changed_text
from decaylaws.study.files import write_json
from decaylaws.study.plan import current_plan, plan_runs
from decaylaws.study.prepare import prepare
from tests.study.tiny import TINY_SETTINGS, decaylaws, make_tiny_study


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    make_tiny_study(root)
    decaylaws("prepare", str(root))
    return root


def with_settings(root: Path, **changes: Any) -> Study:
    (root / "study.yaml").write_text(
        yaml.safe_dump({**TINY_SETTINGS, **changes}, sort_keys=False), encoding="utf-8"
    )
    return Study.open(root)


def with_source(root: Path, name: str, **changes: Any) -> Study:
    sources = TINY_SETTINGS["sources"]
    return with_settings(root, sources={**sources, name: {**sources[name], **changes}})


def test_a_plan_on_a_corpus_of_other_settings_is_refused(root: Path) -> None:
    with pytest.raises(StudyError, match=r"'tokenizer\.vocab_size' .*changed.*decaylaws prepare"):
        plan_runs(with_settings(root, tokenizer={"vocab_size": 320}))
    with pytest.raises(StudyError, match=r"'sources\.code\.heldout_fraction'"):
        plan_runs(with_source(root, "code", heldout_fraction=0.2))
    more = {**TINY_SETTINGS["sources"], "more": TINY_SETTINGS["sources"]["code"]}
    with pytest.raises(StudyError, match=r"'sources\.more'"):
        plan_runs(with_settings(root, sources=more))


def test_a_vocabulary_that_the_text_cannot_fill_is_said(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    with_settings(tmp_path, tokenizer={"vocab_size": 90_000})
    prepared = prepare(Study.open(tmp_path))
    entries = Study.open(tmp_path).corpus().vocab_size
    assert entries < 1_000
    assert any(
        f"has {entries} entries, fewer than tokenizer.vocab_size = 90,000" in note for note in prepared.notes
    )


def test_what_does_not_decide_the_text_needs_no_new_corpus(root: Path) -> None:
    plan_runs(with_source(root, "code", max_epochs=3, upper=0.9))
    plan_runs(with_settings(root))


def test_a_corpus_that_does_not_say_its_settings_is_told_by_its_sources(root: Path) -> None:
    record = Study.open(root).shard_dir() / "settings.json"
    text = record.read_text()
    record.unlink()
    try:
        plan_runs(with_settings(root))
        more = {**TINY_SETTINGS["sources"], "more": TINY_SETTINGS["sources"]["code"]}
        with pytest.raises(StudyError, match=r"'sources\.more'"):
            plan_runs(with_settings(root, sources=more))
    finally:
        record.write_text(text)


def test_text_that_changed_since_is_noticed_by_what_comes_after_prepare(root: Path) -> None:
    study = with_settings(root)
    plan_runs(study)
    source = root / "data" / "maths.jsonl"
    text, state = source.read_text(), source.stat()
    os.utime(source, (1, 1))
    plan_runs(study)  # a copy has another time and the same content
    try:
        source.write_text(text + json.dumps({"text": "one more"}) + "\n")
        with pytest.raises(
            StudyError, match=r"text of 'sources\.maths' \(data/maths\.jsonl\) changed.*decaylaws prepare"
        ):
            plan_runs(study)
        assert changed_text(study) == ["maths"]
        # an SQLite file serves no Slurm job, so that nothing is trained here
        result = CliRunner().invoke(app, ["run", str(root), "--slurm", str(root / "job.sh")])
        said = " ".join(result.output.split())
        assert (
            "The text of maths changed since the corpus was prepared. The runs use the prepared corpus."
            in said
        )
        source.write_text(text.replace("sum", "mus"))
        assert changed_text(study) == ["maths"]
        (root / "data" / "web" / "new.txt").write_text("new")
        assert changed_text(study) == ["web", "maths"]
        (root / "data" / "web" / "new.txt").unlink()
        source.unlink()
        plan_runs(study)  # the corpus does not need the text that it was prepared from
    finally:
        source.write_text(text)
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert changed_text(study) == []


def test_a_corpus_that_an_earlier_version_read_otherwise_is_prepared_anew(root: Path) -> None:
    study = with_settings(root)
    path = study.shard_dir() / "settings.json"
    record = json.loads(path.read_text())
    for earlier in (
        {**record, "preparation": 1},
        {key: record[key] for key in record if key != "preparation"},
    ):
        write_json(path, earlier)
        with pytest.raises(StudyError, match=r"read text differently\. Run 'decaylaws prepare"):
            plan_runs(study)
    decaylaws("prepare", str(root))
    assert json.loads(path.read_text()) == record
    plan_runs(study)


def test_prepare_says_what_it_passed_over(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=300)) for _ in range(120)]
    rows = [json.dumps({"text": text}) for text in (*texts, "x" * 90_000)]
    (tmp_path / "data" / "maths.jsonl").write_text("\n".join([*rows, "{", '{"text": null}']) + "\n")
    limited = {"on_bad": "skip", "max_bytes": 80_000}
    with_source(tmp_path, "maths", **limited)
    said = " ".join(decaylaws("prepare", str(tmp_path)).split())
    assert (
        "maths: passed over: rows that are not JSON or have no text (1), rows whose text is null (1), doc"
        in said
    )
    assert "bytes of text taken of max_bytes = 80,000" in said


def test_a_short_held_out_part_is_said_by_prepare_and_stops_a_plan_if_it_fills_no_window(root: Path) -> None:
    with_settings(root, evaluation={"tokens_per_domain": 1_000_000, "points": 1})
    said = decaylaws("prepare", str(root))
    assert "evaluation.tokens_per_domain = 1,000,000: web, maths, code" in said
    with_settings(root)
    assert "have fewer held-out tokens" not in decaylaws("prepare", str(root))
    window = 1_000_000
    study = with_settings(
        root,
        seq_len=window,
        batch_tokens=window,
        trunk={**TINY_SETTINGS["trunk"], "tokens": window},
        design={**TINY_SETTINGS["design"], "batch_tokens": [], "decay_tokens": [window]},
        target={"shape": "target", "max_decay_tokens": window},
    )
    for refuse in (plan_runs, lambda study: decaylaws("prepare", str(study.root))):
        with pytest.raises(DataError, match=r"held-out part of 'sources\.web'.*seq_len \+ 1 = 1000001"):
            refuse(study)


def test_a_budget_that_the_search_could_not_use_stops_the_plan_and_not_the_search(root: Path) -> None:
    sources = {name: {**each, "max_epochs": 2} for name, each in TINY_SETTINGS["sources"].items()}
    beyond = {"shape": "target", "max_decay_tokens": 100_000_000}
    with pytest.raises(InfeasibleError, match=r"decay of 100,000,000 tokens.*shorten the decay"):
        plan_runs(with_settings(root, sources=sources, target=beyond))
    with pytest.raises(InvalidValueError, match=r"'target\.max_decay_tokens' .*2048; got 1024"):
        with_settings(root, target={"shape": "target", "max_decay_tokens": 1024})
    with pytest.raises(
        InvalidValueError, match=r"'objective\.guard_domains'.*got \['wbe'\].*web, maths, code"
    ):
        with_settings(root, objective={"weights": {"web": 1}, "guard_domains": ["wbe"]})


def test_evaluation_sets_that_were_named_after_prepare_need_a_new_corpus(root: Path) -> None:
    plan_runs(with_settings(root))
    named = {"evaluation_sets": {"exam": {"path": "data/exam.jsonl"}}}
    study = with_settings(root, decontamination=named)
    with pytest.raises(StudyError, match=r"'decontamination\.evaluation_sets' .*decaylaws prepare"):
        plan_runs(study)
    with pytest.raises(StudyError, match="decaylaws plan"):
        current_plan(study)
    plan_runs(
        with_settings(root, decontamination={"ngram": 20, "on_overlap": "allow"})
    )  # no set, no text to drop


def test_the_order_of_sources_decides_which_one_keeps_what_both_hold(root: Path) -> None:
    turned = dict(reversed(TINY_SETTINGS["sources"].items()))
    with pytest.raises(StudyError, match=r"'sources \(their order\)'"):
        plan_runs(with_settings(root, sources=turned))
