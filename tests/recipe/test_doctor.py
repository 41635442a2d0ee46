from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from decaylaws.cli.recipe import app
from decaylaws.errors import DataError
from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints import read_facts
from decaylaws.recipe.corpus_facts import PreparedCorpus
from decaylaws.recipe.doctor import examine, holds
from decaylaws.schedules import Schedule, Segment, decay

OLMO_BATCH = 4_194_304
OLMO_TOKENS = 928_646 * OLMO_BATCH


def _olmo2_handover_lr() -> float:
    """OLMo 2 7B: 2,000 steps of warm-up to 3e-4, cosine to a tenth set for 5T tokens, left at step 928,646."""
    warmup = 2000 * OLMO_BATCH
    trunk = Schedule(
        (Segment(warmup, 0.0, 3e-4, "linear"), Segment(5 * 10**12 - warmup, 3e-4, 3e-5, "cosine"))
    )
    return float(trunk.lr(OLMO_TOKENS))


def _recipe(lr: float, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "schema": "decaylaws.recipe/2",
        "handover": {"checkpoint": "c", "lr": lr, "tokens": OLMO_TOKENS},
        "stages": [
            {
                "lr": decay(50 * 10**9, lr, 0.0),
                "mixture": {"web": 0.7, "math": 0.3},
                "batch_tokens": 2**21,
                "seq_len": 4096,
            }
        ],
        "sources": {
            "web": {"fingerprint": "sha256:aa"},
            "math": {"available_tokens": 10**10, "max_epochs": 4.0},
        },
        "provenance": {"vocab_size": 100_278},
    }
    return Recipe.from_dict(values | changes)


def _corpus(web: str, **changes: Any) -> PreparedCorpus:
    values: dict[str, Any] = {
        "fingerprint": "f",
        "vocab_size": 100_278,
        "available_tokens": {"web": 10**12, "math": 10**10},
        "source_fingerprints": {"web": web},
        "tokenizer_fingerprint": "sha256:tt",
    }
    return PreparedCorpus(**values | changes)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the Hugging Face Trainer leaves behind."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100_352}))
    history = [{"step": 1, "learning_rate": 3e-4}, {"step": 928_646, "learning_rate": _olmo2_handover_lr()}]
    state = {"global_step": 928_646, "num_input_tokens_seen": OLMO_TOKENS, "log_history": history}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "optimizer.pt").write_bytes(b"")
    return tmp_path


def test_olmo2_hands_over_at_the_published_lr(checkpoint: Path) -> None:
    assert _olmo2_handover_lr() == pytest.approx(6.1351e-5, rel=1e-5)
    findings = examine(_recipe(6.1351e-5), checkpoint, corpus=_corpus("sha256:aa"))
    assert [finding.verdict for finding in findings] == ["ok"] * 6
    assert holds(findings)


def _verdicts(*arguments: Any, **changes: Any) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in examine(*arguments, **changes)}


def test_each_break_is_found(checkpoint: Path) -> None:
    assert _verdicts(_recipe(3e-4), checkpoint)["lr"] == "wrong"
    changed = _verdicts(_recipe(6.1351e-5), checkpoint, corpus=_corpus("sha256:bb"))
    assert changed["source.web"] == "wrong"
    larger = _recipe(6.1351e-5, provenance={"vocab_size": 128_256})
    assert _verdicts(larger, checkpoint)["vocabulary"] == "wrong"
    earlier = _recipe(6.1351e-5, handover={"checkpoint": "c", "lr": 6.1351e-5, "tokens": OLMO_TOKENS // 2})
    assert _verdicts(earlier, checkpoint)["tokens"] == "wrong"
    (checkpoint / "optimizer.pt").unlink()
    assert _verdicts(_recipe(6.1351e-5), checkpoint)["optimizer"] == "wrong"
    fresh = {"checkpoint": "c", "lr": 6.1351e-5, "tokens": OLMO_TOKENS, "optimizer_state": "fresh"}
    assert _verdicts(_recipe(6.1351e-5, handover=fresh), checkpoint)["optimizer"] == "ok"


def test_a_jump_that_is_meant_is_fine(checkpoint: Path) -> None:
    meant = {"checkpoint": "c", "lr": 6.1351e-5, "tokens": OLMO_TOKENS, "lr_jump": True}
    assert _verdicts(_recipe(3e-4, handover=meant), checkpoint)["lr"] == "ok"
    # meant, but from somewhere else
    assert _verdicts(_recipe(3e-4, handover=meant | {"lr": 1e-4}), checkpoint)["lr"] == "wrong"


def test_other_formats(tmp_path: Path) -> None:
    file = tmp_path / "member.safetensors"
    tensors = {"param.embed": np.zeros((7, 2), np.float32), "exp_avg.embed": np.zeros((7, 2), np.float32)}
    save_file(tensors, file, metadata={"header": json.dumps({"step": 5, "tokens": 640})})
    facts = read_facts(file)
    assert (facts.step, facts.tokens, facts.has_optimizer, facts.vocab_size, facts.lr) == (
        5,
        640,
        True,
        7,
        None,
    )
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text(json.dumps({"step": 9, "tokens": 90, "lr": 1e-3}))
    facts = read_facts(tmp_path / "step")
    assert (facts.step, facts.tokens, facts.lr, facts.has_optimizer) == (9, 90, 1e-3, False)


def test_torch_files_are_never_executed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    adamw = torch.optim.AdamW(model.parameters(), lr=6e-5)
    model(torch.ones(1, 2)).sum().backward()
    adamw.step()
    torch.save({"optimizer": adamw.state_dict(), "iteration": 1}, tmp_path / "full.pt")
    facts = read_facts(tmp_path / "full.pt")
    assert (facts.step, facts.lr, facts.has_optimizer) == (1, 6e-5, True)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"optimizer": Bomb()}))
    with pytest.raises(DataError, match="without running code"):
        read_facts(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.txt", "folder", "state"])
def test_what_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "state":
        path.mkdir()
        (path / "state.json").write_text("[")
    else:
        path.write_bytes(b"\x00" * 64)
    with pytest.raises(DataError):
        read_facts(path)
    with pytest.raises(DataError, match="no checkpoint at"):
        read_facts(tmp_path / "none")


@given(
    st.dictionaries(
        st.sampled_from(["step", "tokens", "lr"]), st.none() | st.booleans() | st.floats() | st.text()
    )
)
def test_junk_in_a_state_file_is_unknown_not_a_crash(state: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state.json").write_text(json.dumps(state))
        facts = read_facts(folder)
    assert facts.lr is None or np.isfinite(facts.lr)


def test_command_line(checkpoint: Path) -> None:
    runner = CliRunner()
    good, bad = checkpoint / "good.yaml", checkpoint / "bad.yaml"
    _recipe(6.1351e-5).save(good)
    _recipe(3e-4).save(bad)
    result = runner.invoke(app, ["doctor", str(good), str(checkpoint)])
    assert result.exit_code == 0
    assert "ok       lr: " in result.output
    result = runner.invoke(app, ["doctor", str(bad), str(checkpoint)])
    assert result.exit_code == 1
    assert "wrong    lr: The checkpoint ends at 6.135" in result.output
    result = runner.invoke(app, ["diff", str(good), str(bad)])
    assert result.exit_code == 1
    assert "handover.lr: 6.1351e-05 -> 0.0003" in result.output
    assert runner.invoke(app, ["show", str(good)]).output.startswith("recipe: 50B tokens")
    assert json.loads(runner.invoke(app, ["schema"]).output)["$id"] == "decaylaws.recipe/2"


def test_groups_with_lrs_of_their_own_are_compared_with_any(checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    # muP: matrices at a tenth of the embeddings' LR
    torch.save({"_last_lr": [6.1351e-4, 6.1351e-5, 6.1351e-5]}, checkpoint / "scheduler.pt")
    assert read_facts(checkpoint).lrs == (6.1351e-4, 6.1351e-5)
    for lr, verdict in ((6.1351e-4, "ok"), (6.1351e-5, "ok"), (3e-4, "wrong")):
        (finding,) = (item for item in examine(_recipe(lr), checkpoint) if item.check == "lr")
        assert finding.verdict == verdict
        assert "0.00061351 and 6.1351e-05 (LRs of its 2 groups of parameters)" in finding.message


def test_the_last_lr_of_a_log_is_not_that_of_a_later_step(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["log_history"][-1]["step"] -= 400
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (finding,) = (item for item in examine(_recipe(3e-4), checkpoint) if item.check == "lr")
    assert finding.verdict == "unknown"
    assert "log ends with 6.13511e-05 at step 928,246" in finding.message


def test_json_with_a_byte_order_mark_is_read(checkpoint: Path) -> None:
    for name in ("trainer_state.json", "config.json"):
        text = (checkpoint / name).read_text()
        (checkpoint / name).write_text(text, encoding="utf-8-sig")
    facts = read_facts(checkpoint)
    assert (facts.step, facts.tokens, facts.vocab_size) == (928_646, OLMO_TOKENS, 100_352)


def test_the_vocabulary_of_a_nested_text_model_is_found(checkpoint: Path) -> None:
    config = {
        "model_type": "gemma3",
        "text_config": {"vocab_size": 262_208},
        "vision_config": {"hidden_size": 8},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert read_facts(checkpoint).vocab_size == 262_208
    found = {item.check: item for item in examine(_recipe(6.1351e-5), checkpoint)}
    assert found["vocabulary"].verdict == "ok"
    assert found["model"].verdict == "wrong"
    assert "'gemma3' model has a vision tower" in found["model"].message


@pytest.mark.parametrize(
    "place",
    [
        "optimizer.bin",
        "optimizer_0/.metadata",
        "global_step1000/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "optimizer.safetensors",
    ],
)
def test_moments_are_found_where_trainers_put_them(checkpoint: Path, place: str) -> None:
    (checkpoint / "optimizer.pt").unlink()
    assert read_facts(checkpoint).has_optimizer is False
    (checkpoint / place).parent.mkdir(exist_ok=True)
    (checkpoint / place).write_bytes(b"")
    if place == "optimizer.safetensors":
        save_file({"exp_avg.w": np.zeros((2, 2), np.float32)}, checkpoint / place)
    assert read_facts(checkpoint).has_optimizer is True


def member(path: Path, *, run_id: str, d_model: int, tokens: int = 640) -> Path:
    tensors = {
        "param.embed": np.zeros((257, d_model), np.float32),
        "param.layers.0.qkv": np.zeros((d_model, 3 * d_model), np.float32),
        "exp_avg.layers.0.qkv": np.zeros((d_model, 3 * d_model), np.float32),
    }
    save_file(tensors, path, metadata={"header": json.dumps({"run_id": run_id, "step": 5, "tokens": tokens})})
    return path


def test_trunks_are_told_apart(tmp_path: Path) -> None:
    handover = {"run_id": "trunk-64", "lr": 3e-4, "tokens": 640}
    recipe = _recipe(3e-4, handover=handover, provenance={"non_embedding_params": 3 * 64 * 64})
    right = member(tmp_path / "right.safetensors", run_id="trunk-64", d_model=64)
    assert holds(examine(recipe, right))
    for d_model in (16, 32, 128):
        other = member(tmp_path / f"{d_model}.safetensors", run_id=f"trunk-{d_model}", d_model=d_model)
        found = _verdicts(recipe, other)
        assert (found["run"], found["size"]) == ("wrong", "wrong")
    (finding,) = (item for item in examine(recipe, other) if item.check == "run")
    assert "starts from run trunk-64, and run trunk-128 wrote the checkpoint" in finding.message
    # tokens that a recipe leaves out are not said to be zero
    unsaid = _recipe(3e-4, handover={"checkpoint": "c", "lr": 3e-4})
    assert _verdicts(unsaid, right)["tokens"] == "unknown"
