"""Damaged, hostile and absurd files: one line of error, never a traceback, and nothing in them runs."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from decaylaws.cli import main
from decaylaws.errors import DecaylawsError
from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints import read_facts
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.recipe.doctor import examine

torch = pytest.importorskip("torch")

VALUES: dict[str, Any] = {
    "schema": "decaylaws.recipe/2",
    "handover": {"lr": 1e-3, "checkpoint": "c", "tokens": 640},
    "stages": [
        {
            "lr": [{"tokens": 1024, "start_lr": 1e-3, "end_lr": 0.0, "shape": "linear"}],
            "mixture": {"web": 0.5, "math": 0.5},
            "batch_tokens": 64,
            "seq_len": 16,
            "rope": {"method": "yarn", "factor": 2.0, "original_seq_len": 16},
        }
    ],
    "sources": {"web": {"available_tokens": 512, "max_epochs": 4.0}, "math": {"path": "m"}},
    "provenance": {"vocab_size": 7},
}


def _run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the command line; any exception but an exit fails the test."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["decaylaws", *arguments]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as ending:
        return int(ending.code or 0), errors.getvalue()
    finally:
        sys.argv = before
    return 0, errors.getvalue()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sound files by the name under which they are read."""
    from tests.recipe.others import save_dcp

    folder = tmp_path_factory.mktemp("samples")
    save_dcp(folder / "dcp", train_state={"step": torch.tensor(5)})
    torch.save(
        {"step": 5, "optimizer": {"param_groups": [{"lr": 1e-3}], "state": {0: 1}}}, folder / "full.pt"
    )
    torch.save({"iteration": 5, "optimizer": {"param_groups": [{"lr": 1e-3}]}}, folder / "common.pt")
    tensors = {"embed": np.zeros((7, 2), np.float32)}
    save_file(tensors, folder / "m.safetensors", metadata={"header": '{"step": 5, "tokens": 640}'})
    state = {"global_step": 5, "num_input_tokens_seen": 640, "log_history": [{"learning_rate": 1e-3}]}
    return {
        "recipe.yaml": Recipe.from_dict(VALUES).save(folder / "r.yaml").read_bytes(),
        "recipe.json": Recipe.from_dict(VALUES).save(folder / "r.json").read_bytes(),
        "dcp/.metadata": (folder / "dcp" / ".metadata").read_bytes(),
        "dcp/__0_0.distcp": (folder / "dcp" / "__0_0.distcp").read_bytes(),
        "full.pt": (folder / "full.pt").read_bytes(),
        "megatron/common.pt": (folder / "common.pt").read_bytes(),
        "member.safetensors": (folder / "m.safetensors").read_bytes(),
        "hf/trainer_state.json": json.dumps(state).encode(),
        "sharded/state.json": b'{"step": 5, "tokens": 640, "lr": 0.001}',
    }


def _write(folder: Path, samples: dict[str, bytes]) -> None:
    for name, content in samples.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


SAMPLES = (
    "recipe.yaml",
    "recipe.json",
    "dcp/.metadata",
    "dcp/__0_0.distcp",
    "full.pt",
    "megatron/common.pt",
    "member.safetensors",
    "hf/trainer_state.json",
    "sharded/state.json",
)


@st.composite
def _damage(draw: st.DrawFn) -> tuple[str, int, bytes]:
    kind = draw(st.sampled_from(["cut", "flip", "insert", "swap", "encode", "replace"]))
    return kind, draw(st.integers(0, 2**16)), draw(st.binary(min_size=1, max_size=12))


def _damaged(content: bytes, damage: tuple[str, int, bytes]) -> bytes:
    kind, seed, extra = damage
    place = seed % max(len(content), 1)
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + extra[:1] + content[place + 1 :]
    if kind == "insert":
        return content[:place] + extra + content[place:]
    if kind == "swap":
        return content[place:] + content[:place]
    if kind == "encode":
        return content.decode("latin-1").encode(["utf-16", "utf-32", "utf-8-sig", "utf-7"][seed % 4])
    return pickle.dumps(extra)


def _names(name: str) -> tuple[str, str]:
    """The recipe and the checkpoint to examine when ``name`` is the file in question."""
    if name.startswith("recipe"):
        return name, "full.pt"
    return "recipe.json", name.split("/")[0]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_command_line_says_one_line(samples: dict[str, bytes], tmp_path: Path, name: str) -> None:
    _write(tmp_path, samples)
    command = ["doctor", *(str(tmp_path / part) for part in _names(name))]
    code, errors = _run(*command)
    assert (code, errors) in ((0, ""), (1, ""))  # 1: the doctor found something, which is no error
    for damage in (("cut", len(samples[name]) // 2, b""), ("replace", 0, b"")):
        (tmp_path / name).write_bytes(_damaged(samples[name], damage))
        code, errors = _run(*command)
        assert (code, errors[:11]) == (2, "decaylaws: ")
        assert "Traceback" not in errors


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=30)
@given(damage=_damage())
def test_damaged_files(samples: dict[str, bytes], name: str, damage: tuple[str, int, bytes]) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _write(folder, samples)
        (folder / name).write_bytes(_damaged(samples[name], damage))
        recipe, checkpoint = _names(name)
        with contextlib.suppress(DecaylawsError):
            examine(Recipe.load(folder / recipe), folder / checkpoint)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf"), "../../etc/passwd", "\x00"]
    )
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from _places(value[key], (*path, key))


@settings(max_examples=150)
@given(junk=JUNK, place=st.sampled_from(sorted(_places(VALUES), key=str)))
def test_junk_anywhere_in_a_recipe(junk: Any, place: tuple[Any, ...]) -> None:
    values = json.loads(json.dumps(VALUES))
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = junk
    with contextlib.suppress(DecaylawsError):
        recipe = Recipe.from_dict(values)
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@settings(max_examples=80)
@given(
    state=st.dictionaries(st.sampled_from(["step", "tokens", "lr", "global_step", "log_history"]), JUNK),
    config=st.dictionaries(st.sampled_from(["vocab_size", "model_type"]), JUNK),
    name=st.sampled_from(["state.json", "trainer_state.json", "manifest.json"]),
)
def test_junk_in_json_is_unknown_not_a_crash(
    state: dict[str, Any], config: dict[str, Any], name: str
) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / name).write_text(json.dumps(state))
        (folder / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(DecaylawsError):
            facts = read_facts(folder)
            assert facts.lr is None or np.isfinite(facts.lr)
        with contextlib.suppress(DecaylawsError):
            read_corpus(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",  # billion laughs
        b"a: &a {<<: *a}\n",
        b"!!python/object/apply:os.mkdir [exploded]\n",
        b"!!python/object/new:os.mkdir {args: [exploded]}\n",
        b"stages: " + b"[" * 200_000,
        b"stages: " + b"{a: " * 200_000,
        b"? " * 100_000,
        b"- " * 100_000,
        b"a: " + b"9" * 100_000,
        b"a: 1e" + b"9" * 1000,
        b"\x00" * 64,
        b"%YAML 9.9\n---\na: 1\n",
        b"--- 1\n--- 2\n",
        "schema: decaylaws.recipe/2\nna\u2028me: x\n".encode(),
        b"{1: 2, [3]: 4}\n",
        b"? {a: b}\n: c\n",
        b"<<: [1, 2]\n",
        b"2024-01-01: x\n",
        b"\xef\xbb\xbfschema: x\n",
    ],
)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_bombs_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"r.{suffix}").write_bytes(content)
    code, errors = _run("recipe", "show", f"r.{suffix}")
    assert code == 2
    assert errors.startswith("decaylaws: ")
    assert "Traceback" not in errors
    assert len(errors) < 2000
    assert [path.name for path in tmp_path.iterdir()] == [f"r.{suffix}"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "..", "/dev/null", "nothing\x00.yaml", "x" * 5000, "~", "\udcff.yaml", "/proc/self/mem"],
)
def test_paths_that_are_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("recipe", "show", name), ("doctor", "none.yaml", name), ("doctor", name, ".")):
        code, errors = _run(*arguments)
        assert code == 2
        assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_loops_and_folders_in_place_of_files(samples: dict[str, bytes], tmp_path: Path) -> None:
    _write(tmp_path, samples)
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "hf" / "config.json").mkdir()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".metadata").mkdir()
    for name in ("loop.pt", "hf", "folder.pt", "odd", "recipe.yaml"):
        code, errors = _run("doctor", str(tmp_path / "recipe.yaml"), str(tmp_path / name))
        assert code in (1, 2)
        assert "Traceback" not in errors


def test_a_header_of_absurd_length(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in (2**63, 2**40, 10**8):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(DecaylawsError):
            read_facts(path)
