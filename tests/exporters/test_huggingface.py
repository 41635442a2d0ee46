from __future__ import annotations

import ast
import json

import numpy as np
import pytest

from decaylaws.exporters import ExportOptions, export


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
