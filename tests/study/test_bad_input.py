"""Bad input: one error that names the field, the value and the remedy, a non-zero exit, the study as it was."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from decaylaws.cli import main
from decaylaws.errors import DataError, InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.settings.study import load_settings, parse_settings
from decaylaws.study import Study
from decaylaws.study.template import template_text
from tests.study.tiny import TINY_SETTINGS

Settings = dict[str, Any]


@pytest.fixture
def settings() -> Settings:
    return yaml.safe_load(template_text("demo"))


def changed(settings: Settings, path: str, value: object) -> Settings:
    """A copy with the value at a dotted path replaced or added."""
    copied = copy.deepcopy(settings)
    *parents, last = path.split(".")
    here = copied
    for part in parents:
        here = here[part]
    here[last] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("trunk.peak_lr", -1e-3, ["trunk.peak_lr", "-0.001", "greater than 0"]),
        ("trunk.peak_lr", float("nan"), ["trunk.peak_lr"]),
        ("trunk.peak_lr", 6e30, ["trunk.peak_lr", "between 1e-100 and 1e+06", "6e+30"]),
        ("design.start_lr_factors", [1.0, 1e30], ["design.start_lr_factors.1", "1e+30"]),
        ("trunk.tokens", 10**30, ["trunk.tokens", "at most 1e+18"]),
        ("trunk.tokens", 10**6, ["trunk.tokens", "multiple of seq_len=128", "999_936 or 1_000_064"]),
        ("design.decay_tokens", [131_072, "50K"], ["design.decay_tokens", "50000", "49_920 or 50_048"]),
        ("design.decay_tokens", [512, 131_072], ["batch_tokens", "the shortest of design.decay_tokens, 512"]),
        ("design.batch_tokens", [1024, 131_072], ["design.batch_tokens", "131072", "65536"]),
        ("batch_tokens", 2**30, ["batch_tokens", "1073741824"]),
        ("optimizer", {"weight_decay": float("inf")}, ["optimizer.weight_decay"]),
        ("trunk.mixture", {"narrative": 0.4, "reference": 0.5}, ["trunk.mixture", "sum to one", "0.9"]),
        ("trunk.mixture", {"narative": 1.0}, ["trunk.mixture", "narative", "sources"]),
        ("trunk.peek_lr", 1e-3, ["trunk.peek_lr", "not a known key"]),
        ("sorces", {}, ["sorces", "not a known key"]),
        ("design.decay_tokens", [], ["design.decay_tokens"]),
        ("design.shapes", ["linaer"], ["design.shapes", "linaer"]),
        ("design.shapes", ["exponential"], ["design.shapes", "exponential", "linear"]),
        ("proxy", "tiny", ["'proxy'", "'tiny'", "small"]),
        ("name", "", ["'name'", "at least 1"]),
        ("batch_tokens", 1000, ["batch_tokens", "1000", "seq_len"]),
        ("objective.weights", {"narrative": 0.0}, ["objective", "positive"]),
        ("objective.guard_nats", -1, ["objective.guard_nats", "-1"]),
        ("sources.code.upper", 1.5, ["sources.code.upper", "1.5"]),
        ("sources.code.lower", 0.9, ["sources.code", "upper"]),
        ("sources.code.format", "jsonl", ["sources.code", "path"]),
        ("shapes.small.num_heads", 5, ["shapes.small.num_heads", "5", "d_model"]),
        ("target.max_decay_tokens", 0, ["target.max_decay_tokens", "0"]),
        (
            "target.max_decay_tokens",
            "4 barrels",
            ["target.max_decay_tokens", "'4 barrels'", "Write 2B, 4.86T"],
        ),
        ("trunk.tokens", "1.5", ["trunk.tokens", "whole number"]),
        ("objective.guard_nats", True, ["objective.guard_nats", "not true or false", "True"]),
        ("shapes.small.num_heads", True, ["shapes.small.num_heads", "not true or false"]),
        ("optimizer", {"beta1": True}, ["optimizer.beta1", "not true or false"]),
        ("optimizer", {"name": "muon"}, ["optimizer.name", "muon", "AdamW only"]),
        ("optimizer", {"muon": {"momentum": 0.9}}, ["optimizer", "needs name: muon"]),
        (
            "objective.weights",
            {"code": 10**400},
            ["objective.weights.code", "it is too large", "000..."],
        ),
        ("trunk.mixture", {"narrative": 10**400}, ["trunk.mixture.narrative", "too large"]),
        ("seed", 10**400, ["seed", "too large"]),
        ("objective", {"capabilities": {"maths": 1}}, ["'objective.capabilities.maths' is", "'mathematics'"]),
        ("sources", {"web": {"format": "embedded"}}, ["'sources' needs at least 2 entries; got ['web']."]),
        ("trunk.warmup_tokens", 10**9, ["'trunk'", "warmup_tokens=1000000000", "'peak_lr': "]),
    ],
)
def test_a_wrong_setting_is_named(settings: Settings, path: str, value: object, words: list[str]) -> None:
    wrong = changed(settings, path, value)
    if path == "sources.code.lower":
        wrong["sources"]["code"]["upper"] = 0.5
    with pytest.raises(InvalidValueError) as caught:
        parse_settings(wrong)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seq_len": "-1"}, r"'seq_len' .*; got '?-1'?\."),
        ({"sed": "1"}, r"'sed' is not a known key; got 1\. Check its spelling and its indent\."),
        (
            {"batch_tokens": "1000"},
            r"'batch_tokens' must be a multiple of seq_len=128; got 1000\. Write 896 or 1_024\.",
        ),
    ],
)
def test_the_file_is_named_besides_the_field(tmp_path: Path, change: dict[str, str], says: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(**change), encoding="utf-8")
    with pytest.raises(InvalidValueError, match=rf"^{says}.* The file is {re.escape(str(path))}\.$"):
        load_settings(path)


def test_a_missing_key_is_named(settings: Settings) -> None:
    del settings["trunk"]["tokens"]
    with pytest.raises(InvalidValueError, match=r"trunk\.tokens.*required"):
        parse_settings(settings)


@pytest.mark.parametrize("text", ["{", "- 1", "a: [", "\t", "!!python/object:os.system {}", "x: *unknown"])
def test_what_is_no_mapping_is_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((DataError, InvalidValueError)) as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "twice", ["seed: 1\nseed: 2\n", "sources:\n  web: {format: text}\n  web: {format: jsonl}\n"]
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(twice, encoding="utf-8")
    with pytest.raises(DataError, match=r"key '(seed|web)' twice \(line [23], column [13]\)"):
        load_settings(path)


def test_anchors_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    twin = (
        "  twin: &twin {d_model: 32, num_layers: 2, num_heads: 2, d_ff: 64}\n  other: {<<: *twin, d_ff: 96}\n"
    )
    text = template_text("demo").replace("proxy:", f"{twin}proxy:")
    path.write_text(text, encoding="utf-8")
    assert load_settings(path).shapes["other"].d_ff == 96


def study_text(**changes: str) -> str:
    """The demo's study.yaml with top-level keys of one line replaced, as somebody typed them."""
    lines = template_text("demo").splitlines(keepends=True)
    kept = [line for line in lines if line.split(":")[0] not in changes]
    return "".join(kept) + "".join(f"{key}: {value}\n" for key, value in changes.items())


def test_numbers_are_read_as_they_stand_there(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "\ufeff" + study_text(seq_len="0128", batch_tokens="1K", search_trials="+40"), encoding="utf-8"
    )
    with pytest.raises(InvalidValueError, match="'batch_tokens' must be a multiple of seq_len=128; got 1000"):
        load_settings(path)
    path.write_text(
        study_text(seq_len="0128", batch_tokens="1.024K", search_trials="1_000"), encoding="utf-8"
    )
    assert load_settings(path).seq_len == 128
    assert load_settings(path).batch_tokens == 1024
    assert load_settings(path).search_trials == 1000
    for wrong, shown in (("1:40", "1:40"), ("yes", "yes"), ("0x80", "0x80"), ("true", "True")):
        path.write_text(study_text(seq_len=wrong), encoding="utf-8")
        with pytest.raises(InvalidValueError, match=f"'seq_len' is not valid.*{shown}"):
            load_settings(path)


def test_a_file_in_place_of_the_study_folder_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"is a file. Give the study's folder, {tmp_path}\."):
        Study.open(tmp_path / "study.yaml")


def test_token_counts_take_units(settings: Settings) -> None:
    large = changed(
        changed(settings, "target.max_decay_tokens", "50B"), "evaluation", {"tokens_per_domain": "4K"}
    )
    checked = parse_settings(changed(large, "design.decay_tokens", ["1.024M", 2_000_000, "4e6", 8e6]))
    assert checked.target.max_decay_tokens == 50_000_000_000
    assert checked.evaluation.tokens_per_domain == 4000
    assert checked.design.decay_tokens == [1_024_000, 2_000_000, 4_000_000, 8_000_000]


def test_names_that_yaml_1_1_takes_for_values(tmp_path: Path) -> None:
    text = (
        template_text("demo")
        .replace("narrative", "no")
        .replace("reference:", "2023:")
        .replace("name: ", "name: 2024 #")
    )
    path = tmp_path / "study.yaml"
    path.write_text(text.replace("reference", "2023"), encoding="utf-8")
    checked = load_settings(path)
    assert checked.name == "2024"
    assert {"no", "2023"} <= set(checked.sources)
    assert set(checked.trunk.mixture) <= set(checked.sources)


@pytest.mark.parametrize(
    "bomb",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 5000,
        "a: " + "{b: " * 5000,
        f"seed: {'9' * 5000}\n",
    ],
    ids=["aliases", "itself", "itself-in-a-mapping", "nested-lists", "nested-mappings", "digits"],
)
def test_a_small_file_that_stands_for_a_large_one_is_refused(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(bomb, encoding="utf-8")
    tracemalloc.start()
    with pytest.raises(DataError, match=r"study\.yaml is not valid YAML") as caught:
        load_settings(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_weights_that_do_not_sum_to_one() -> None:
    with pytest.raises(InvalidValueError, match=r"0\.9"):
        Mixture({"web": 0.5, "code": 0.4})


def test_a_study_whose_caps_leave_no_mixture(settings: Settings) -> None:
    from decaylaws.designs.design import CorpusFacts
    from decaylaws.designs.planner import Planner

    long = changed(settings, "design.decay_tokens", [10**9])
    checked = parse_settings(changed(long, "target.max_decay_tokens", 10**9))
    facts = CorpusFacts("f", 4096, dict.fromkeys(checked.sources, 50_000))
    with pytest.raises(InfeasibleError) as caught:
        Planner(checked, facts).sweep()
    assert "max_epochs" in str(caught.value)


# Through the command line --------------------------------------------------------------------------------------


def snapshot(root: Path) -> dict[str, str]:
    """Hash of every file below ``root``."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_verb(*arguments: str) -> SimpleNamespace:
    """The entry point in this process; any exception but its own exit is a failure of the test."""
    out, errors, code = StringIO(), StringIO(), 0
    with patch.object(sys, "argv", ["decaylaws", *arguments]), redirect_stdout(out), redirect_stderr(errors):
        try:
            main()
        except SystemExit as ending:
            code = ending.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=errors.getvalue())


def small_study(root: Path, change: Callable[[Settings], None] = lambda settings: None) -> Path:
    """A study with two JSON Lines sources."""
    (root / "data").mkdir(parents=True)
    for name in ("web", "code"):
        rng = random.Random(name)
        texts = (" ".join(f"{name}{rng.randrange(500)}" for _ in range(60)) for _ in range(60))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (root / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    settings = yaml.safe_load(template_text("study"))
    settings["sources"] = {
        "web": {"format": "jsonl", "path": "data/web.jsonl", "group": "general"},
        "code": {"format": "jsonl", "path": "data/code.jsonl"},
    }
    settings["objective"]["weights"] = {"web": 1, "code": 1}
    settings["tokenizer"] = {"vocab_size": 300}
    # the template's own sizes take half a minute to plan: their shapes are timed
    for key in ("shapes", "seq_len", "batch_tokens", "trunk", "design"):
        settings[key] = copy.deepcopy(TINY_SETTINGS[key])
    change(settings)
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return root


def missing_file(settings: Settings) -> None:
    settings["sources"]["code"]["path"] = "data/cod.jsonl"


def typo(settings: Settings) -> None:
    settings["objectve"] = settings.pop("objective")


@pytest.mark.parametrize(
    ("verb", "change", "words"),
    [
        ("prepare", missing_file, ["cod.jsonl"]),
        ("prepare", typo, ["objectve"]),
        ("plan", lambda settings: None, ["decaylaws prepare"]),
        ("run", lambda settings: None, ["decaylaws prepare"]),
        ("fit", lambda settings: None, ["decaylaws plan"]),
        ("recommend", lambda settings: None, ["decaylaws fit"]),
        ("confirm", lambda settings: None, ["decaylaws recommend"]),
        ("export", lambda settings: None, ["decaylaws recommend"]),
        ("report", lambda settings: None, ["decaylaws recommend"]),
    ],
)
def test_a_verb_that_cannot_work_says_why_and_changes_nothing(
    tmp_path: Path, verb: str, change: Callable[[Settings], None], words: list[str]
) -> None:
    root = small_study(tmp_path / "study", change)
    before = snapshot(root)
    result = run_verb(verb, str(root))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert snapshot(root) == before


def test_an_empty_source_a_changed_plan_and_a_changed_shard(tmp_path: Path) -> None:
    root = small_study(tmp_path / "study")
    text = (root / "data" / "code.jsonl").read_text(encoding="utf-8")
    (root / "data" / "code.jsonl").write_text("", encoding="utf-8")
    before = snapshot(root)
    empty = run_verb("prepare", str(root))
    assert snapshot(root) == before
    assert not (root / "corpus").exists()
    assert empty.returncode == 2
    assert "code" in empty.stderr
    assert "Traceback" not in empty.stderr
    (root / "data" / "code.jsonl").write_text(text, encoding="utf-8")
    assert run_verb("prepare", str(root)).returncode == 0

    assert run_verb("plan", str(root)).returncode == 0
    settings = yaml.safe_load((root / "study.yaml").read_text(encoding="utf-8"))
    settings["design"]["num_replicates"] += 1
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    changed = run_verb("run", str(root))
    assert changed.returncode == 2
    assert "changed since the plan" in changed.stderr

    (shard,) = (
        path for path in (root / "corpus").rglob("*") if path.name.startswith("code") and "train" in path.name
    )
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(bytes(content))
    from proxy_runs.data.shards import TokenStore

    with pytest.raises(DataError, match="changed since it was prepared"):
        TokenStore.open(root / "corpus")
