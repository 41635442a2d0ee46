"""Contamination in a study: evaluation items leave the train text, near copies of held-out text stop the sweep."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import DataError, StudyError
from decaylaws.study import Study
from decaylaws.study.near_copies import copies_read, copies_words, near_copies, read_copies
from decaylaws.study.overlap import evaluation_report, heldout_overlap
from decaylaws.study.plan import current_plan, plan_runs
from decaylaws.study.status import steps
from tests.decontamination.planted import document, every_eighth_changed, items, planted
from tests.study.tiny import TINY_SETTINGS, decaylaws

ITEMS = items(random.Random("items"), "sums", 4, shortest=30)


def make(root: Path, texts: dict[str, list[str]], **decontamination: object) -> Study:
    """A study of three sources with these documents."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    settings = {**TINY_SETTINGS, "sources": {}}
    for name, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        path = root / "data" / f"{name}.jsonl"
        if (
            not path.is_file() or path.read_text() != lines
        ):  # a file that was written again is another request
            path.write_text(lines)
        group = "general" if name == "web" else "specialised"
        settings["sources"][name] = {"format": "jsonl", "path": f"data/{name}.jsonl", "group": group}
    if decontamination:
        settings["decontamination"] = decontamination
    (root / "study.yaml").write_text(yaml.safe_dump(settings))
    rows = [{"question": item.text, "answer": "none"} for item in ITEMS]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Study.open(root)


def distinct(seed: str, count: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [document(rng) for _ in range(count)]


def three_sources() -> dict[str, list[str]]:
    return {name: distinct(name) for name in ("web", "maths", "code")}


def test_near_copies_of_heldout_text_stop_the_sweep_until_it_is_told_otherwise(tmp_path: Path) -> None:
    texts = three_sources()
    texts["code"] = [every_eighth_changed(text) for text in texts["maths"]]
    study = make(tmp_path, texts, heldout_similarity=None)
    result = CliRunner().invoke(app, ["prepare", str(tmp_path)])
    assert isinstance(result.exception, StudyError), (
        "what 'plan' would refuse is said where the text can be mended"
    )
    assert "max_heldout_overlap" in str(result.exception)
    assert "decaylaws plan" not in result.output
    prepared, *_ = steps(study)
    assert (prepared.verb, prepared.state) == ("prepare", "stale"), "status sends nobody on to 'plan'"
    assert "max_heldout_overlap" in prepared.why
    table = heldout_overlap(study).set_index(["source", "domain"])["share"]
    assert table["code", "maths"] > 0.8
    assert table["web", "maths"] == 0.0
    with pytest.raises(
        StudyError, match=r"'(code|maths)' repeats .* of '(code|maths)'.*on_overlap: allow"
    ) as caught:
        plan_runs(study)
    assert "\n" not in str(caught.value)
    assert CliRunner().invoke(app, ["run", str(tmp_path)]).exit_code != 0
    plan_runs(make(tmp_path, texts, heldout_similarity=None, on_overlap="allow"))
    with pytest.raises(StudyError, match="max_heldout_overlap"):
        current_plan(study)


def test_near_copies_of_heldout_text_are_set_aside_and_counted_for_the_target(tmp_path: Path) -> None:
    texts = three_sources()
    texts["code"] = [f"another beginning {' '.join(text.split())}" for text in texts["maths"]] + texts["code"]
    study = make(tmp_path, texts)
    output = decaylaws("prepare", str(tmp_path))
    assert "train documents that resemble held-out ones, set aside (Jaccard similarity)" in output
    table = near_copies(read_copies(study)).set_index(["source", "domain"])
    assert table.loc[("code", "maths"), "set_aside"] >= 2
    assert table.loc[("code", "maths"), "train>=0.75"] == table.loc[("code", "maths"), "set_aside"]
    assert table["heldout>=0.5"].between(0, 1).all()
    plan_runs(study)
    available = study.corpus().available_tokens
    half = copies_read(read_copies(study), available, {"code": 1.0}, available["code"] / 2).set_index(
        "domain"
    )
    twice = copies_read(read_copies(study), available, {"code": 1.0}, 2 * available["code"]).set_index(
        "domain"
    )
    assert (half["copies"] * 4).tolist() == pytest.approx(twice["copies"].tolist())
    expected = table.loc[("code", "maths"), "train>=0.5"]
    assert half["copies"].get("maths", 0.0) == pytest.approx(expected / 2)
    assert copies_read(read_copies(study), available, {"web": 1.0}, 1000).empty
    said = copies_words(read_copies(study), study.planner(), {"code": 1.0}, "code alone")
    assert said.endswith("since 'prepare' set them aside.")
    # without the setting nothing is stated, and another corpus is asked for
    study = make(tmp_path, texts, heldout_similarity=None, on_overlap="allow")
    with pytest.raises(StudyError, match=r"'decontamination.heldout_similarity' in study.yaml changed"):
        plan_runs(study)
    assert near_copies(read_copies(study)).empty


def test_evaluation_items_leave_the_train_text(tmp_path: Path) -> None:
    texts = three_sources()
    rng = random.Random(1)
    texts["maths"] += [planted(rng, item.text) for item in ITEMS] * 3
    sets = {"sums": {"path": "sums.jsonl", "text_fields": ["question"]}}
    before = make(tmp_path / "before", texts)
    decaylaws("prepare", str(before.root))
    study = make(tmp_path / "after", texts, evaluation_sets=sets)
    output = decaylaws("prepare", str(study.root))
    assert "evaluation items, their documents dropped" in output
    report = evaluation_report(study)
    assert report is not None
    found = report.task_table().set_index("source")["found"].to_dict()
    assert found["web"] == found["code"] == 0
    assert 1 <= found["maths"] <= 4
    counts = json.loads((study.corpus_dir / "manifest.json").read_text())["sources"]
    dropped = counts["maths"]["counts"]["train_documents_contaminated"]
    assert dropped == report.sources["maths"].dropped_documents > 0
    assert counts["maths"]["train"]["documents"] == counts["maths"]["counts"]["train_documents"] - dropped
    assert study.corpus().fingerprint != before.corpus().fingerprint
    assert evaluation_report(before) is None
    plan_runs(study)


def test_a_study_without_these_settings_is_prepared_as_ever(tmp_path: Path) -> None:
    texts = three_sources()
    study = make(tmp_path, texts)
    decaylaws("prepare", str(tmp_path))
    first = (study.corpus_dir / "manifest.json").read_text()
    (study.shard_dir() / "heldout_overlap.json").unlink()
    with pytest.raises(StudyError, match="Run 'decaylaws prepare"):
        plan_runs(study)
    decaylaws("prepare", str(tmp_path))
    second = (study.corpus_dir / "manifest.json").read_text()
    without = [{**json.loads(text), "created": ""} for text in (first, second)]
    assert without[0] == without[1]
    assert "train_documents_contaminated" not in first
    make(tmp_path, texts, on_overlap="allow", max_heldout_overlap=0.5)
    decaylaws("prepare", str(tmp_path))
    assert (study.corpus_dir / "manifest.json").read_text() == second, "a limit is no other text"


def test_a_source_that_is_nothing_but_items_and_a_missing_set_are_one_error(tmp_path: Path) -> None:
    texts = three_sources()
    rng = random.Random(2)
    texts["code"] = [planted(rng, ITEMS[number % 4].text) for number in range(40)]
    study = make(
        tmp_path, texts, evaluation_sets={"sums": {"path": "sums.jsonl", "text_fields": ["question"]}}
    )
    with pytest.raises(DataError, match=r"'sources\.code': every train document holds an item"):
        CliRunner().invoke(app, ["prepare", str(study.root)], catch_exceptions=False)
    make(tmp_path, texts, evaluation_sets={"sums": {"path": "nowhere.jsonl"}})
    with pytest.raises(DataError, match="'sums' finds no file"):
        CliRunner().invoke(app, ["prepare", str(study.root)], catch_exceptions=False)
