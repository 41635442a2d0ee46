"""The exported Hugging Face script on two ranks, interrupted and launched again.

Needs transformers, accelerate and datasets, which 'make test-targets' installs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from decaylaws.exporters import ExportOptions, export
from tests.exporters.test_targets import PEAK
from tests.exporters.trainers import import_trainer

STEPS, RANKS, LOCAL, SEQ_LEN = 8, 2, 3, 4
DRIVER = """
import importlib.util, json, os, sys
import torch, transformers
torch.set_num_threads(1)
script, stop = sys.argv[1], int(sys.argv[2])
spec = importlib.util.spec_from_file_location("exported_train", script)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
seen, lrs = [], []

class Recorded(module.RecipeTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        seen.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if stop and self.state.global_step == stop:
            raise SystemExit(0)

class Lr(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        lrs.append(kwargs["optimizer"].param_groups[0]["lr"])

module.RecipeTrainer = lambda **kwargs: Recorded(callbacks=[Lr()], **kwargs)
try:
    module.main()
finally:
    with open(f"seen-{stop}-{os.environ['RANK']}.json", "w") as file:
        json.dump({"seen": seen, "lrs": lrs}, file)
"""


def _prepare(make_recipe, folder: Path) -> np.ndarray:
    """A tiny Llama, documents of which no two are alike, and the export; returns the LRs that it promises."""
    tokenizers, transformers = import_trainer("tokenizers"), import_trainer("transformers")
    words = {"</s>": 0} | {f"w{number}": number for number in range(1, 600)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(
        folder / "model"
    )
    config = transformers.LlamaConfig(
        vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=SEQ_LEN,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    sources = {}
    for name, numbers in (("web", range(1, 400)), ("math", range(400, 600))):
        (folder / name).mkdir()
        # three words and the end of the document: every sequence is one document
        lines = [json.dumps({"text": f"w{number} w{number} w{number}"}) for number in numbers]
        (folder / name / "part.jsonl").write_text("\n".join(lines))
        sources[name] = {"path": str(folder / name)}
    handover = {"lr": PEAK, "checkpoint": str(folder / "model"), "optimizer_state": "fresh"}
    batch = RANKS * LOCAL * SEQ_LEN
    stage = make_recipe("linear", 10).to_dict()["stages"][0]
    stage |= {"batch_tokens": batch, "seq_len": SEQ_LEN, "mixture": {"web": 0.7, "math": 0.3}}
    stage["lr"] = [{"tokens": STEPS * batch, "start_lr": PEAK, "end_lr": 0.0, "shape": "linear"}]
    recipe = make_recipe(sources=sources, handover=handover, stages=[stage])
    result = export(recipe, "huggingface", ExportOptions(data_parallel_ranks=RANKS, local_batch_size=LOCAL))
    result.write(folder / "export")
    arguments = folder / "export" / "training_arguments.json"
    cpu = {"use_cpu": True, "ddp_backend": "gloo", "save_steps": 3}
    arguments.write_text(json.dumps(json.loads(arguments.read_text()) | cpu))
    (folder / "driver.py").write_text(DRIVER)
    return result.step_lrs


def _launch(folder: Path, stop: int) -> list[dict[str, list]]:
    folder.mkdir(exist_ok=True)
    script = [str(folder.parent / "driver.py"), str(folder.parent / "export" / "train.py"), str(stop)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", *script],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"seen-{stop}-{rank}.json").read_text()) for rank in range(RANKS)]


def test_two_ranks_read_disjoint_examples_and_go_on_after_a_stop(make_recipe, tmp_path: Path) -> None:
    import_trainer("accelerate")
    import_trainer("datasets")
    promised = _prepare(make_recipe, tmp_path)
    whole = _launch(tmp_path / "whole", 0)
    stopped, resumed = _launch(tmp_path / "cut", 3), _launch(tmp_path / "cut", 0)
    for rank in range(RANKS):
        read = [tuple(row) for batch in whole[rank]["seen"] for row in batch]
        assert len(read) == STEPS * LOCAL
        assert whole[rank]["seen"] == stopped[rank]["seen"] + resumed[rank]["seen"]
        assert np.abs(np.array(whole[rank]["lrs"]) - promised).max() < 1e-12 * PEAK
        assert stopped[rank]["lrs"] + resumed[rank]["lrs"] == whole[rank]["lrs"]
        assert len(stopped[rank]["lrs"]) == 3
    rows = [tuple(row) for rank in whole for batch in rank["seen"] for row in batch]
    assert len(set(rows)) == len(rows) == STEPS * RANKS * LOCAL
