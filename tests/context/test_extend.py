from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.context import PUBLISHED_EXTENSIONS, extend_tail, with_long_share
from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, RopeSettings

BATCH, SEQ_LEN = 8192, 256
YARN = RopeSettings(method="yarn", factor=4.0, original_seq_len=SEQ_LEN)


def recipe(**changes: Any) -> Recipe:
    stage = {
        "lr": [{"tokens": 100 * BATCH, "start_lr": 1e-3, "end_lr": 0.0, "shape": "1-sqrt"}],
        "mixture": {"web": 0.6, "books": 0.3, "books-long": 0.1},
        "batch_tokens": BATCH,
        "seq_len": SEQ_LEN,
    }
    sources = {name: {"available_tokens": 10**6} for name in stage["mixture"]}
    return Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/2",
            "handover": {"lr": 1e-3},
            "stages": [stage | changes],
            "sources": sources,
        }
    )


def test_the_tail_of_the_decay_gets_longer_sequences() -> None:
    before = recipe()
    longer = with_long_share(before.stages[0].mixture, ["books-long"], 0.3)
    after = extend_tail(before, tokens=20 * BATCH, seq_len=4 * SEQ_LEN, rope=YARN, mixture=longer)
    assert [stage.tokens for stage in after.stages] == [80 * BATCH, 20 * BATCH]
    # the LR of every step is what it was, and a batch holds as many tokens in a quarter of the sequences
    np.testing.assert_array_equal(after.step_lrs(), before.step_lrs())
    assert [stage.batch_tokens // stage.seq_len for stage in after.stages] == [32, 8]
    assert after.stages[1].rope == YARN
    assert after.stages[1].mixture.share("books-long") == pytest.approx(0.3)
    assert after.stages[1].mixture.share("web") == pytest.approx(0.7 * 0.6 / 0.9)
    assert after.sources["books-long"].epochs == pytest.approx((80 * 0.1 + 20 * 0.3) * BATCH / 10**6)
    whole = extend_tail(before, tokens=100 * BATCH, seq_len=4 * SEQ_LEN, rope=YARN)
    assert len(whole.stages) == 1
    assert Recipe.from_dict(after.to_dict()) == after


def test_what_cannot_be_extended_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"tokens.*whole batches.*Take 163,840"):
        extend_tail(recipe(), tokens=20 * BATCH - 1, seq_len=4 * SEQ_LEN, rope=YARN)
    with pytest.raises(InfeasibleError, match="last stage 'decay' lasts 819,200 tokens"):
        extend_tail(recipe(), tokens=101 * BATCH, seq_len=4 * SEQ_LEN, rope=YARN)
    with pytest.raises(
        InvalidValueError, match=r"'stages\.1\.seq_len' is longer than the 1024 tokens.*; got 2048"
    ):
        extend_tail(recipe(), tokens=20 * BATCH, seq_len=8 * SEQ_LEN, rope=YARN)


def test_a_long_share_needs_long_sources_and_others() -> None:
    mixture = Mixture({"web": 0.5, "books-long": 0.5})
    for sources in ([], ["web", "books-long"], ["absent"]):
        with pytest.raises(InvalidValueError, match="long_sources"):
            with_long_share(mixture, sources, 0.3)
    with pytest.raises(InvalidValueError, match="long_share"):
        with_long_share(mixture, ["books-long"], 1.0)


def test_published_extensions_name_their_sources() -> None:
    wanted = {
        "llama-3-405b", "qwen3", "deepseek-v3", "phi-4", "minicpm", "afm-3b", "pangu-ultra", "longcat-flash",
        "glm-4.5", "hunyuan-large", "dots-llm1", "yi-lightning", "ernie-4.5",
    }  # fmt: skip
    assert wanted <= set(PUBLISHED_EXTENSIONS)
    for entry in PUBLISHED_EXTENSIONS.values():
        assert any(mark in entry.source for mark in ("arXiv:", "huggingface.co", "Technical Report"))
        for earlier, later in zip(entry.stages, entry.stages[1:]):
            assert later.from_seq_len == earlier.to_seq_len
        for stage in entry.stages:
            assert stage.from_seq_len is None or stage.from_seq_len < stage.to_seq_len
            assert stage.long_share is None or 0 < stage.long_share < 1
    assert PUBLISHED_EXTENSIONS["phi-4"].stages[0].theta == 2.5e5


def test_the_command_line_extends_and_shows(tmp_path: Path) -> None:
    runner = CliRunner()
    path, out = recipe().save(tmp_path / "recipe.yaml"), tmp_path / "longer.yaml"
    arguments = [
        "context",
        "extend",
        str(path),
        "--tokens",
        "163840",
        "--seq-len",
        "1024",
        "--theta",
        "1e4",
        "--out",
        str(out),
    ]
    result = runner.invoke(app, [*arguments, "--long-source", "books-long", "--long-share", "0.25"])
    assert result.exit_code == 0, result.output
    last = Recipe.load(out).stages[-1]
    assert last.rope == YARN
    assert last.mixture.share("books-long") == pytest.approx(0.25)
    refused = runner.invoke(app, [*arguments, "--method", "longrope"])
    assert isinstance(refused.exception, InvalidValueError)
    for wrong, field in ((("--theta", "nan"), "'theta'"), (("--seq-len", "2"), "'seq-len'")):
        refused = runner.invoke(app, [*arguments, "--method", "yarn", *wrong])
        assert isinstance(refused.exception, InvalidValueError)
        assert field in str(refused.exception)
    library = runner.invoke(app, ["context", "library"]).output
    assert "250,000" in library
    assert "arXiv:2412.08905" in library
    table = runner.invoke(
        app, ["context", "rope", "--seq-len", "1024", "--original-seq-len", "256", "--head-dim", "64"]
    ).output
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert rows["yarn"].split()[-3:] == ["0", "of", "32"]
    assert rows["none"].split()[-3:] != ["0", "of", "32"]
    assert "1.1386" in rows["yarn"]
