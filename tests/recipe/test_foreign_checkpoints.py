"""DCP, OLMo-core and Megatron checkpoints: facts are found, and nothing in them is executed."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from decaylaws.cli.recipe import app
from decaylaws.errors import DataError
from decaylaws.exporters import export
from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints import inert_pickle, read_facts
from decaylaws.recipe.corpus_facts import read_corpus, tokenizer_fingerprint
from decaylaws.recipe.doctor import examine, holds
from tests.recipe.others import LR, STEP, TOKENS, Bomb, save_dcp

torch = pytest.importorskip("torch")


@pytest.fixture
def titan(tmp_path: Path) -> Path:
    """A torchtitan checkpoint of OLMo 2 7B's hand-over."""
    counters = {"step": torch.tensor(STEP), "ntokens_seen": torch.tensor(TOKENS)}
    save_dcp(tmp_path / "step", train_state=counters, lr_scheduler={"last_epoch": STEP})
    return tmp_path / "step"


@pytest.fixture
def olmo(tmp_path: Path) -> Path:
    """OLMo-core's layout: tensors in DCP, counters beside them."""
    save_dcp(tmp_path / "olmo" / "model_and_optim")
    (tmp_path / "olmo" / "train").mkdir()
    counters = {"global_step": STEP, "global_train_tokens_seen": TOKENS}
    torch.save(counters, tmp_path / "olmo" / "train" / "rank0.pt")
    return tmp_path / "olmo"


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    """Megatron's distributed format, and the tracker that names its newest iteration."""
    folder = tmp_path / "megatron" / f"iter_{STEP:07d}"
    save_dcp(folder)
    arguments = argparse.Namespace(
        consumed_train_samples=TOKENS // 4096,
        seq_length=4096,
        padded_vocab_size=100_352,
        params_dtype=torch.bfloat16,
    )
    optimizer = {"optimizer": {"param_groups": [{"lr": LR, "wd_mult": 1.0}]}}
    torch.save({"args": arguments, "iteration": STEP, "optimizer": optimizer}, folder / "common.pt")
    (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").write_text(str(STEP))
    return tmp_path / "megatron"


@pytest.mark.parametrize("layout", ["titan", "olmo", "megatron"])
def test_olmo2_hands_over_from_every_format(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    facts = read_facts(folder)
    assert (facts.step, facts.tokens, facts.lr, facts.has_optimizer) == (STEP, TOKENS, LR, True)
    assert facts.vocab_size == (100_352 if layout == "megatron" else 12)
    assert holds(examine(_recipe(LR), folder))
    findings = {finding.check: finding.verdict for finding in examine(_recipe(3e-4), folder)}
    assert findings["lr"] == "wrong"


def _recipe(lr: float) -> Recipe:
    return Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/2",
            "handover": {"checkpoint": "c", "lr": lr, "tokens": TOKENS},
            "stages": [
                {
                    "lr": [{"tokens": 50 * 10**9, "start_lr": lr, "end_lr": 0.0, "shape": "linear"}],
                    "mixture": {"web": 1.0},
                    "batch_tokens": 2**21,
                    "seq_len": 4096,
                }
            ],
            "sources": {"web": {}},
        }
    )


def test_an_export_goes_on_from_what_the_checkpoint_counts(megatron: Path) -> None:
    """Pre-trained at 4,096 tokens and decayed at 8,192: the run begins at the checkpoint's own sample."""
    values = _recipe(LR).to_dict()
    values["handover"]["checkpoint"] = str(megatron)
    values["stages"][0] |= {"seq_len": 8192, "batch_tokens": 2**22}
    recipe = Recipe.from_dict(values)
    exported = export(recipe, "megatron")
    samples = TOKENS // 4096
    assert f"--train-samples {samples + recipe.num_steps * 512}" in exported.files["midtrain_megatron.args"]
    assert f"Its schedule goes on from sample {samples:,} of the checkpoint." in exported.notes
    assert exported.assumptions == ()
    assumed = export(_recipe(LR), "megatron").assumptions  # its checkpoint is not on this machine
    assert "--seen-samples" in assumed[0]


def test_a_checkpoint_of_megatron_bridge_says_where_it_stands(tmp_path: Path) -> None:
    """It keeps no arguments, and its tracker is a file of tensors: the schedule's count of samples stands for both."""
    samples = TOKENS // 4096
    for iteration in (9, STEP, 80):
        folder = tmp_path / "bridge" / f"iter_{iteration:07d}"
        save_dcp(folder)
        common = {
            "iteration": iteration,
            "opt_param_scheduler": {"max_lr": 3e-4, "num_steps": iteration * samples // STEP},
            "optimizer": {"optimizer": {"param_groups": [{"lr": LR}]}},
        }
        torch.save(common, folder / "common.pt")
    torch.save({"step": torch.tensor(STEP, dtype=torch.int32)}, tmp_path / "bridge" / "latest_train_state.pt")
    facts = read_facts(tmp_path / "bridge")
    assert (facts.kind, facts.step, facts.samples, facts.lr) == ("megatron", STEP, samples, LR)
    assert facts.has_optimizer
    values = _recipe(LR).to_dict()
    values["handover"]["checkpoint"] = str(tmp_path / "bridge")
    exported = export(Recipe.from_dict(values), "megatron-bridge")
    assert f"Its schedule goes on from sample {samples:,} of the checkpoint." in exported.notes
    assert exported.assumptions == ()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "latest_train_state.pt").touch()
    with pytest.raises(DataError, match="no checkpoint in a folder iter_NUMBER"):
        read_facts(tmp_path / "empty")


def test_moments_that_are_missing_are_missed(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"w": torch.zeros(2)}}, checkpoint_id=str(tmp_path), no_dist=True)
    facts = read_facts(tmp_path)
    assert (facts.has_optimizer, facts.lr, facts.step, facts.tokens) == (False, None, None, None)
    assert not holds(examine(_recipe(LR), tmp_path))


def _zip_pickle(path: Path, content: object) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))


@pytest.mark.parametrize(
    "place",
    [
        "step/.metadata",
        "megatron/iter_0928646/common.pt",
        "olmo/train/rank0.pt",
        "olmo/model_and_optim/.metadata",
        "step/__0_0.distcp",
    ],
)
def test_bombs_do_not_go_off(titan: Path, olmo: Path, megatron: Path, tmp_path: Path, place: str) -> None:
    target, bomb = tmp_path / place, Bomb(tmp_path / "exploded")
    if target.suffix == ".pt":
        _zip_pickle(target, {"args": bomb})
    else:
        target.write_bytes(pickle.dumps(bomb))
    with pytest.raises(DataError, match=r"so that nothing in it can run|without running code"):
        read_facts(tmp_path / place.split("/")[0])
    assert not (tmp_path / "exploded").exists()
    # the bomb is live: whoever unpickles it makes the folder
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "exploded").exists()


def test_metadata_may_not_point_outside(titan: Path) -> None:
    metadata = (titan / ".metadata").read_bytes()
    (titan / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../../passwd"))
    with pytest.raises(DataError, match="points outside its folder"):
        read_facts(titan)


def test_a_memo_index_fills_no_memory(titan: Path) -> None:
    # LONG_BINPUT of index 2**32 - 1: pickle's reader in C would set aside tens of gigabytes
    (titan / ".metadata").write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    with pytest.raises(DataError, match="describes no tensors"):
        read_facts(titan)


@pytest.mark.parametrize("text", ["", "12x", "../..", "77", "\udcff"])
def test_trackers_that_name_nothing(megatron: Path, text: str) -> None:
    tracker = megatron / "latest_checkpointed_iteration.txt"
    tracker.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="latest_checkpointed_iteration"):
        read_facts(megatron)


def _tokenizer(path: Path, vocabulary: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"model": {"vocab": vocabulary}, **more}))
    return path


def test_tokenizers_agree_when_ids_do(tmp_path: Path) -> None:
    plain = tokenizer_fingerprint(_tokenizer(tmp_path / "a.json", {"a": 0, "b": 1}))
    same = [
        _tokenizer(tmp_path / "b.json", {"b": 1, "a": 0}, version="9"),
        _tokenizer(tmp_path / "c.json", [["a", -1.0], ["b", -2.0]]),
        _tokenizer(tmp_path / "d.json", {"a": 0}, added_tokens=[{"content": "b", "id": 1}]),
    ]
    assert {tokenizer_fingerprint(path) for path in same} == {plain}
    assert tokenizer_fingerprint(_tokenizer(tmp_path / "e.json", {"a": 1, "b": 0})) != plain
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        tokenizer_fingerprint(_tokenizer(tmp_path / "f.json", 5))


def _write_corpus(folder: Path, tokens: int) -> None:
    folder.mkdir(exist_ok=True)
    _tokenizer(folder / "tokenizer.json", {"a": 0})
    (folder / "web.bin").write_bytes(b"12")
    file = {
        "path": "web.bin",
        "bytes": 2,
        "sha256": "6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918",
    }
    manifest = {
        "fingerprint": "f",
        "vocab_size": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "sources": {"web": {"train": {"tokens": tokens, "file": file}}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_doctor_looks_at_the_corpus(titan: Path, tmp_path: Path) -> None:
    _write_corpus(tmp_path / "corpus", tokens=25 * 10**9)
    corpus = read_corpus(tmp_path / "corpus", hash_shards=True)
    values = _recipe(LR).to_dict()
    values["sources"]["web"] = {
        "available_tokens": 25 * 10**9,
        "max_epochs": 2.0,
        "fingerprint": corpus.source_fingerprints["web"],
    }
    values["provenance"] = {"tokenizer_fingerprint": corpus.tokenizer_fingerprint}
    recipe = Recipe.from_dict(values)
    assert holds(examine(recipe, titan, corpus=corpus))
    path = recipe.save(tmp_path / "recipe.yaml")
    command = ["doctor", str(path), str(titan), "--corpus", str(tmp_path / "corpus")]
    assert CliRunner().invoke(app, command).exit_code == 0

    # a cap counts also where the recipe leaves out how much there is
    values["sources"]["web"] = {"max_epochs": 0.5}
    capped = {item.check: item.verdict for item in examine(Recipe.from_dict(values), titan, corpus=corpus)}
    assert capped["epochs.web"] == "wrong"

    (tmp_path / "corpus" / "web.bin").write_bytes(b"13")  # same size: only hashing tells
    assert CliRunner().invoke(app, command).exit_code == 0
    result = CliRunner().invoke(app, [*command, "--hash-shards"])
    assert (result.exit_code, "wrong    source.web: Its content is sha256:" in result.output) == (1, True)

    _write_corpus(tmp_path / "corpus", tokens=24 * 10**9)
    _tokenizer(tmp_path / "corpus" / "tokenizer.json", {"b": 0})
    (tmp_path / "corpus" / "web.bin").unlink()
    found = {
        item.check: item.verdict for item in examine(recipe, titan, corpus=read_corpus(tmp_path / "corpus"))
    }
    assert {found[name] for name in ("source.web", "epochs.web", "tokenizer")} == {"wrong"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sources": 3}', '{"sources": {"a": {"train": 1}}}'])
def test_damaged_manifests(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="is not the manifest of a corpus"):
        read_corpus(tmp_path)


def test_the_trainers_scheduler_knows_better_than_its_log(tmp_path: Path) -> None:
    state = {"global_step": 9, "log_history": [{"learning_rate": 1e-3, "step": 1}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_facts(tmp_path).lr == 1e-3
    torch.save({"last_epoch": 9, "_last_lr": [LR]}, tmp_path / "scheduler.pt")
    assert read_facts(tmp_path).lr == LR
    buffer = io.BytesIO()
    torch.save({"_last_lr": []}, buffer)
    (tmp_path / "scheduler.pt").write_bytes(buffer.getvalue())
    assert read_facts(tmp_path).lr == 1e-3


def _deep_key(levels: int) -> bytes:
    """A dictionary whose key is a tuple of two references to a tuple of two references and so on."""
    doubled = b"".join(bytes([ord("h"), k, ord("h"), k, 0x86, ord("q"), k + 1]) for k in range(levels))
    return b"\x80\x02})q\x00" + doubled + b"K\x01s."


def _references(levels: int) -> Any:
    """Lists of references to lists, ten each: a walk that looks into each of them ends never."""
    content: Any = [1]
    for _ in range(levels):
        content = [content] * 60
    return {"args": None, "optimizer": content}


def _stored(data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
    return buffer.getvalue()


HOSTILE = {
    "a nested key": (_stored(_deep_key(200)), "a key is a nested tuple"),
    "a set of nested keys": (
        _stored(_deep_key(200).replace(b"})q", b"\x8f()q").replace(b"K\x01s.", b"\x90.")),
        "a key is a nested tuple",
    ),
    "a zip bomb": (_stored(b"]" * 2**26, zipfile.ZIP_DEFLATED), "unpacks to more bytes than it has"),
    "many containers": (_stored(b"\x80\x02" + b"]" * 2**18 + b"."), "more than 100,000 containers"),
    "a long path": (
        _stored(
            b"\x80\x02cpathlib\nPosixPath\n(X\xff\xff\x00\x00"
            + b"a" * 65_535
            + b"q\x00"
            + b"h\x00" * 64
            + b"tR."
        ),
        "a path has more than 65,536 characters",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["megatron/iter_0928646/common.pt", "olmo/train/rank0.pt", "full.pt"])
def test_small_files_that_want_all_memory_or_all_time(
    megatron: Path, olmo: Path, tmp_path: Path, name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_CONTAINERS", 100_000)
    content, message = HOSTILE[name]
    (tmp_path / place).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_facts(tmp_path / place.split("/")[0])


def test_references_are_followed_once(megatron: Path) -> None:
    (megatron / f"iter_{STEP:07d}" / "common.pt").write_bytes(
        _stored(pickle.dumps(_references(6), protocol=2))
    )
    assert read_facts(megatron).lr is None


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        ({"optimizer_state_dict": "adamw", "step": STEP}, ".pt"),
        ({"optimizer_states": ["adamw"], "global_step": STEP}, ".ckpt"),
        ({"optim": "adamw", "step": STEP}, ".pth"),
    ],
)
def test_files_of_other_conventions(tmp_path: Path, content: dict[str, Any], suffix: str) -> None:
    model = torch.nn.Linear(2, 2)
    adamw = torch.optim.AdamW([{"params": [model.weight], "lr": 10 * LR}, {"params": [model.bias]}], lr=LR)
    model(torch.ones(1, 2)).sum().backward()
    adamw.step()
    state = adamw.state_dict()
    filled = {
        key: state if value == "adamw" else [state] if value == ["adamw"] else value
        for key, value in content.items()
    }
    torch.save(filled, tmp_path / f"full{suffix}")
    torch.save(filled, tmp_path / f"old{suffix}", _use_new_zipfile_serialization=False)
    for name in ("full", "old"):
        facts = read_facts(tmp_path / f"{name}{suffix}")
        assert (facts.step, facts.lrs, facts.has_optimizer) == (STEP, (10 * LR, LR), True)


@pytest.mark.parametrize(
    ("module", "is_read"), [("lightning.fabric.utilities.data", True), ("of.somebody", False)]
)
def test_settings_of_a_trainer_beside_the_optimiser_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, is_read: bool
) -> None:
    """Lightning keeps its hyperparameters in a dictionary of its own class."""
    attributes = type("AttributeDict", (dict,), {"__module__": module})
    parts = module.split(".")
    for path in (".".join(parts[: end + 1]) for end in range(len(parts))):
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    monkeypatch.setattr(sys.modules[module], "AttributeDict", attributes, raising=False)
    content = {
        "hyper_parameters": attributes(lr=1.0, betas=[0.9, 0.95]),
        "optimizer_states": [{"state": {0: 1}, "param_groups": [{"lr": LR}]}],
        "global_step": STEP,
    }
    (tmp_path / "last.ckpt").write_bytes(_stored(pickle.dumps(content, protocol=2)))
    if is_read:
        facts = read_facts(tmp_path / "last.ckpt")
        assert (facts.step, facts.lrs, facts.has_optimizer) == (STEP, (LR,), True)
    else:
        with pytest.raises(DataError, match="without running code"):
            read_facts(tmp_path / "last.ckpt")
