"""A study that is judged by questions alone: which source teaches their answers, and what that costs elsewhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from decaylaws.study import Study
from decaylaws.study.fit_inputs import read_fit_inputs
from decaylaws.study.objective import objective, signal_table
from decaylaws.study.verdict import read_outcome
from tests.study.in_process import work_in_this_process
from tests.study.tiny import TINY_SETTINGS, WORDS, decaylaws

SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "qi",
    "ro",
    "su",
    "ta",
    "ve",
    "wi",
    "xo",
    "yu",
]

SETTINGS: dict[str, Any] = {
    **TINY_SETTINGS,
    "name": "asked",
    "sources": {
        "web": {"format": "jsonl", "path": "data/web.jsonl", "group": "general"},
        "arithmetic": {"format": "jsonl", "path": "data/arithmetic.jsonl"},
        "facts": {"format": "jsonl", "path": "data/facts.jsonl"},
    },
    "shapes": {
        "small": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
        "medium": {"d_model": 24, "num_layers": 1, "num_heads": 2, "d_ff": 48},
        "target": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
    },
    "design": {
        "num_mixtures": 8,
        "decay_tokens": [4096],
        "start_lr_factors": [1.0],
        "shapes": ["linear"],
        "num_replicates": 3,
        "runs_at_other_sizes": 3,
    },
    "objective": {"weights": {"sums": 1}, "guard_domains": ["web"], "guard_bits_per_byte": 1.0},
    "evaluation": {
        "tokens_per_domain": 512,
        "points": 1,
        "questions": {
            "sums": {"path": "data/sums.jsonl", "capability": "mathematics"},
            "capitals": {"path": "data/capitals.jsonl", "capability": "general"},
        },
    },
}  # fmt: skip


def asked(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


def make_study(root: Path) -> Study:
    """Sums of small numbers and capitals of made-up countries; most of the text is neither."""
    rng, data = random.Random(0), root / "data"
    data.mkdir(parents=True)
    sums = [(f"{a} + {b}", str(a + b)) for a in range(2, 40) for b in range(2, 40)]
    names = ["".join(rng.sample(SYLLABLES, 3)).capitalize() for _ in range(400)]
    capitals = [(f"capital of {name}", "".join(rng.sample(SYLLABLES, 2)).capitalize()) for name in names]
    rng.shuffle(sums)
    words = WORDS["web"].split()
    texts = {
        "web": [
            " ".join(rng.choice(words) + rng.choice(["", ",", "."]) for _ in range(120)) for _ in range(200)
        ],
        "arithmetic": ["\n".join(asked(*each) for each in rng.sample(sums[:1200], 12)) for _ in range(120)],
        "facts": ["\n".join(asked(*each) for each in rng.sample(capitals[:300], 12)) for _ in range(160)],
    }
    for name, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name, pairs in (("sums", sums[1200:1260]), ("capitals", capitals[300:360])):
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "study.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return Study.open(root)


@pytest.mark.slow
def test_the_recommendation_wins_on_the_questions_and_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in_this_process(monkeypatch)
    study = make_study(tmp_path)
    printed = {
        verb: decaylaws(verb, str(tmp_path))
        for verb in ("prepare", "plan", "run", "fit", "recommend", "confirm")
    }
    decaylaws("report", str(tmp_path))
    assert "sums" in printed["prepare"]
    assert "one is" in printed["fit"]
    usable = read_fit_inputs(study).usable
    own = objective(study.settings, usable)
    signals = signal_table(study.settings, usable, own).set_index("name")
    assert signals.loc["sums", "signal"] > 0.8
    assert signals.loc["objective", "mixture_sd"] == pytest.approx(signals.loc["sums", "mixture_sd"])
    assert own.stated == {"sums": 1.0}
    outcome = read_outcome(study)
    costs = outcome.costs
    target = costs[costs["scale"] == "target"].set_index("domain")
    assert set(target.index) == {"web", "arithmetic", "facts", "sums", "capitals"}
    assert target.loc["sums", "recommended"] < target.loc["sums", "token_proportional"]
    assert target.loc["sums", "recommended"] < target.loc["sums", "control"]
    table = outcome.candidates.set_index(["scale", "candidate"])
    assert table.loc[("target", "recommended"), "guards_hold"]
    lines = outcome.verdict
    assert any("target scale: the objective in bits per byte: recommended" in line for line in lines)
    worst = target[target["weight"] == 0]["against_proportional"].idxmax()
    assert target.loc[worst, "against_proportional"] > 0
    assert any(f"outside the objective the recommendation costs most on '{worst}'" in line for line in lines)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the recommendation gains and costs by domain" in page
    assert "How much of the variance between mixtures is signal" in page
