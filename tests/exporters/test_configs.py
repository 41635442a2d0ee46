"""OLMo-core, Megatron, nanotron, LLM Foundry: the written configuration, read back."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters import EXPORTERS, ExportOptions, export
from decaylaws.io.yaml import load_yaml
from tests.exporters.conftest import CLEAN_SOURCES

BATCH_TOKENS, SEQUENCES = 256 * 64, 256


def _yaml(text: str) -> dict[str, Any]:
    return load_yaml(text, "text")


@pytest.mark.parametrize("target", ["megatron", "nanotron", "llm-foundry"])
def test_what_cannot_be_said_is_refused(make_recipe, target: str) -> None:
    for form in ("exponential", "three-stage"):
        with pytest.raises(NotRepresentableError, match="no LR path of the form"):
            export(make_recipe(form, sources=CLEAN_SOURCES), target)
    with pytest.raises(NotRepresentableError, match="takes no LR table"):
        export(make_recipe(sources=CLEAN_SOURCES), target, ExportOptions(lr_rule="exact"))


def test_olmo_core_draws_any_path(make_recipe) -> None:
    recipe = make_recipe("exponential", 1000)
    peak = recipe.step_lrs().max()
    lines = {}
    for rule, bound in (("native", 1e-2), ("auto", 1e-3), ("exact", 1e-9)):
        result = export(recipe, "olmo-core", ExportOptions(lr_rule=rule))
        assert result.max_abs_lr_error <= bound * peak
        lines[rule] = int(result.notes[0].split(":")[1].split(";")[0])
    assert lines["native"] < lines["auto"] < 50 < lines["exact"]
    # one straight line, shifted by half a step, is the linear decay itself
    assert export(make_recipe("linear"), "olmo-core").max_abs_lr_error < 1e-12 * peak
    mixture = _yaml(export(recipe, "olmo-core").files["source_mixture.yaml"])
    assert [source["target_ratio"] for source in mixture["sources"]] == [0.3, 0.7]
    assert [source["max_repetition_ratio"] for source in mixture["sources"]] == [4.0, 1.0]


def _flags(text: str) -> dict[str, list[str]]:
    lines = [shlex.split(line) for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines}


def test_megatron_counts_on_with_the_optimizer(make_recipe) -> None:
    handover = {"lr": 6.1351e-5, "checkpoint": "/c/my-run", "tokens": 1000 * BATCH_TOKENS}
    recipe = make_recipe("1-sqrt", 200, sources=CLEAN_SOURCES, handover=handover)
    flags = _flags(export(recipe, "megatron", ExportOptions(tolerance=0.1)).files["midtrain_megatron.args"])
    assert flags["--train-samples"] == flags["--lr-decay-samples"] == [str(1200 * SEQUENCES)]
    assert flags["--lr-wsd-decay-samples"] == [str(200 * SEQUENCES)]
    assert flags["--lr-wsd-decay-style"] == ["minus_sqrt"]
    assert flags["--load"] == ["/c/my-run"]
    assert flags["--override-opt_param-scheduler"] == []
    assert flags["--data-path"] == ["0.3", "/data/math", "0.7", "/data/web"]
    fresh = make_recipe(
        "wsd", 1000, sources=CLEAN_SOURCES, handover=handover | {"lr": 0.0, "optimizer_state": "fresh"}
    )
    flags = _flags(export(fresh, "megatron", ExportOptions(tolerance=0.1)).files["midtrain_megatron.args"])
    assert "--finetune" in flags
    assert flags["--train-samples"] == [str(1000 * SEQUENCES)]
    assert flags["--lr-warmup-samples"] == [str(200 * SEQUENCES)]


def test_megatron_refuses_blanks_and_new_warmups(make_recipe) -> None:
    spaced = {"web": {"path": "/data/the web"}, "math": {"path": "/m"}, "unused": {}}
    with pytest.raises(NotRepresentableError, match=r"sources\.web\.path is empty or contains a blank"):
        export(make_recipe(sources=spaced), "megatron")
    with pytest.raises(NotRepresentableError, match="a new warm-up needs optimizer_state: fresh"):
        export(make_recipe("wsd", sources=CLEAN_SOURCES), "megatron", ExportOptions(tolerance=0.1))


def test_megatron_gets_paths_as_they_are_through_the_shell(make_recipe, tmp_path: Path) -> None:
    """``$(cat FILE)`` takes quotes as they stand: a quoted path would be another one."""
    sources = {"web": {"path": "/data/wéb"}, "math": {"path": "/data/m,a(1)&~"}, "unused": {}}
    flags = tmp_path / "flags"
    flags.write_text(
        export(make_recipe(sources=sources), "megatron").files["midtrain_megatron.args"], encoding="utf-8"
    )
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' $(cat {flags})"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[words.index("--data-path") :][1:5] == ["0.3", "/data/m,a(1)&~", "0.7", "/data/wéb"]
    handover = {"lr": 6.1351e-5, "checkpoint": "/my start", "tokens": 500 * BATCH_TOKENS}
    with pytest.raises(NotRepresentableError, match=r"handover\.checkpoint='/my start' holds ' '"):
        export(make_recipe(handover=handover, sources=CLEAN_SOURCES), "megatron")
    for name in ("it's", "[v2]", "$HOME"):
        bad = {"web": {"path": f"/data/{name}"}, "math": {"path": "/m"}, "unused": {}}
        with pytest.raises(
            NotRepresentableError, match=r"sources\.web\.path='?\"?/data/.*which a shell may change"
        ):
            export(make_recipe(sources=bad), "megatron")


def test_two_sources_of_one_folder_keep_their_shares(make_recipe) -> None:
    sources = {"web": {"path": "/data/all"}, "math": {"path": "/data/all"}, "unused": {}}
    config = _yaml(export(make_recipe(sources=sources), "nanotron").files["midtrain_nanotron.yaml"])
    dataset = config["data_stages"][0]["data"]["dataset"]
    assert dataset == {"dataset_folder": ["/data/all", "/data/all"], "dataset_weights": [0.3, 0.7]}


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_a_last_batch_that_is_filled_up_is_told(make_recipe, target: str) -> None:
    stage = make_recipe("linear", 64, sources=CLEAN_SOURCES).to_dict()["stages"][0]
    whole = export(make_recipe(stages=[stage], sources=CLEAN_SOURCES), target)
    stage["lr"][0]["tokens"] -= 100
    part = export(make_recipe(stages=[stage], sources=CLEAN_SOURCES), target)
    told = "tokens of stage 'decay' are no whole number of batches"
    assert told not in " ".join(whole.notes)
    assert f"{64 * BATCH_TOKENS - 100:,} {told}" in " ".join(part.notes)
    assert f"64 steps are {64 * BATCH_TOKENS:,} tokens" in " ".join(part.notes)


def test_nanotron_always_says_how_the_decay_ends(make_recipe) -> None:
    handover = {"lr": 6.1351e-5, "checkpoint": "/c", "tokens": 500 * BATCH_TOKENS}
    config = _yaml(export(make_recipe(handover=handover), "nanotron").files["midtrain_nanotron.yaml"])
    assert config["optimizer"]["learning_rate_scheduler"] == {
        "learning_rate": 6.1351e-5,
        "lr_warmup_steps": 0,
        "lr_warmup_style": "constant",
        "lr_decay_style": "linear",
        "lr_decay_starting_step": 0,
        "lr_decay_steps": 1000,
        "min_decay_lr": 0.0,
    }
    # counted from zero: load_lr_scheduler is false, and nanotron then starts at step 1
    assert config["checkpoints"]["load_lr_scheduler"] is False
    assert config["tokens"]["train_steps"] == 1000
    odd = make_recipe(handover=handover | {"tokens": 500 * BATCH_TOKENS + 1})
    assert _yaml(export(odd, "nanotron").files["midtrain_nanotron.yaml"])["tokens"] == config["tokens"]


def test_llm_foundry_speaks_in_tokens(make_recipe) -> None:
    config = _yaml(export(make_recipe(), "llm-foundry").files["midtrain_llm_foundry.yaml"])
    assert config["max_duration"] == f"{1000 * BATCH_TOKENS}tok"
    assert config["scheduler"] == {
        "name": "inv_sqrt_with_warmup",
        "t_warmup": "0tok",
        "t_scale": f"{BATCH_TOKENS}tok",
        "t_cooldown": f"{1000 * BATCH_TOKENS}tok",
        "alpha_f_decay": 1.0,
        "alpha_f_cooldown": 0.0,
    }
    assert config["optimizer"]["weight_decay"] == pytest.approx(0.1 * 6.1351e-5)
    assert config["train_loader"]["dataset"]["streams"]["web"]["proportion"] == 0.7
