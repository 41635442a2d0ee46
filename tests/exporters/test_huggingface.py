from __future__ import annotations

import ast
import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from decaylaws.exporters import ExportOptions, export
from decaylaws.recipe import Recipe


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt", "wsd"])
def test_arguments_give_the_stated_lr(make_recipe, form: str, steps: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    recipe = make_recipe(form, steps)
    result = export(recipe, "huggingface", ExportOptions(lr_rule="native", tolerance=1.0))
    arguments = json.loads(result.files["training_arguments.json"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments["learning_rate"])
    scheduler = transformers.get_scheduler(
        arguments["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=arguments["warmup_steps"],
        scheduler_specific_kwargs=arguments["lr_scheduler_kwargs"],
    )
    theirs = []
    for _ in range(arguments["max_steps"]):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert np.abs(np.array(theirs) - result.step_lrs).max() < 1e-12 * arguments["learning_rate"]
    assert result.max_abs_lr_error == np.abs(np.array(theirs) - recipe.step_lrs()).max()


def test_the_table_is_the_recipe(make_recipe) -> None:
    recipe = make_recipe("exponential", 300)
    result = export(recipe, "huggingface")
    arguments = json.loads(result.files["training_arguments.json"])
    tree = ast.parse(result.files["train.py"])
    (table,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "LR_FACTORS"  # type: ignore[attr-defined]
    ]
    assert arguments["learning_rate"] * np.array(table) == pytest.approx(recipe.step_lrs(), rel=1e-12)
    assert arguments["lr_scheduler_type"] == "constant"


def test_batches_and_optimizer_are_the_recipes(make_recipe) -> None:
    options = ExportOptions(data_parallel_ranks=8, local_batch_size=4)
    arguments = json.loads(export(make_recipe(), "huggingface", options).files["training_arguments.json"])
    assert arguments["gradient_accumulation_steps"] * 8 * 4 == 256
    assert (arguments["adam_beta2"], arguments["weight_decay"], arguments["max_grad_norm"]) == (
        0.95,
        0.1,
        1.0,
    )


def test_moments_are_named_only_when_taken_over(make_recipe) -> None:
    loaded = export(make_recipe(), "huggingface").files["train.py"]
    assert "OPTIMIZER_STATE = '/ckpt/step928646/optimizer.pt'" in loaded
    fresh = make_recipe(handover={"lr": 6.1351e-5, "checkpoint": "/c", "optimizer_state": "fresh"})
    assert "OPTIMIZER_STATE = None" in export(fresh, "huggingface").files["train.py"]


def _counting_recipe(make_recipe, folder: Path) -> Recipe:
    """Two sources of 400 and 1,200 documents; a document is one word, which no other has."""
    stage = make_recipe("linear", 10).to_dict()["stages"][0]
    stage |= {"seq_len": 1, "batch_tokens": 64, "mixture": {"web": 0.75, "math": 0.25}}
    stage["lr"] = [{"tokens": 10 * 64, "start_lr": 6.1351e-5, "end_lr": 0.0, "shape": "linear"}]
    for name, count in (("math", 400), ("web", 1200)):
        (folder / name).mkdir()
        for part in range(2):
            words = range(part, count, 2)
            lines = [json.dumps({"text": f"{name}{word}"}) for word in words]
            (folder / name / f"{part}.jsonl").write_text("\n".join(lines))
    sources = {name: {"path": str(folder / name)} for name in ("math", "web")}
    return make_recipe(sources=sources, stages=[stage])


class _Words:
    """Of a tokenizer what the script calls: one token a word, and no end of a document that would be counted."""

    eos_token_id = -1

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.ids.setdefault(word, len(self.ids)) for word in text.split()]}


def test_no_rank_reads_the_examples_of_another(make_recipe, tmp_path: Path) -> None:
    """Eight ranks that read 150 examples each: 1,200 distinct ones, of the sources in their shares."""
    pytest.importorskip("datasets")
    recipe = _counting_recipe(make_recipe, tmp_path)
    export(recipe, "huggingface", ExportOptions(data_parallel_ranks=8)).write(tmp_path / "export")
    spec = importlib.util.spec_from_file_location("exported_train", tmp_path / "export" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    read: list[int] = []
    by_rank = []
    tokenizer = _Words()
    for rank in range(8):
        stream = iter(module.mixture(tokenizer, 11, rank, 8))
        rows = [row["input_ids"][0] for row in itertools.islice(stream, 260)]
        # every second sequence is the end of a document
        words = [token for token in rows if token != -1][:125]
        by_rank.append(words)
        read += words
    assert len(read) == 8 * 125
    assert len(set(read)) == len(read)
    math = {token for word, token in tokenizer.ids.items() if word.startswith("math")}
    assert sum(token in math for token in read) / len(read) == pytest.approx(0.25, abs=0.05)
    assert len({tuple(token in math for token in words) for words in by_rank}) == 8  # each with its own draws
