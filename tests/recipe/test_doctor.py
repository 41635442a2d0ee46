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
