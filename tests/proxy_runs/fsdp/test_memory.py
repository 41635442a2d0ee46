"""No rank holds a whole model: not while it loads, and not while it exports; in between FSDP shares it out."""

from __future__ import annotations

import gc
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints.moments import OPTIMIZER_FILE
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.model import init_params
from proxy_runs.fsdp import export, trainer
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoints import MemberState, save_checkpoint
from proxy_runs.weights.hf import shape_of
from tests.proxy_runs.fsdp_runs import losses, recipe_of, settings_for, stage, train

SEQ_LEN = 16
CONFIG = LlamaConfig(
    vocab_size=257,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=SEQ_LEN,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    eos_token_id=256,
    bos_token_id=None,
)


FILE_BYTES = 2 * 2**20


class HeldMemory:
    """The most memory of its own that this process had since it was made, beyond what it had then; from a thread.

    Files that are mapped into memory do not count before a copy is made of them.
    """

    def __init__(self) -> None:
        self._before, self.peak = _own_bytes(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(0.01)

    def look(self) -> int:
        """The peak so far, with what the process has now."""
        self.peak = max(self.peak, _own_bytes() - self._before)
        return self.peak


def _own_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return 1024 * int(line.split()[1])


def measured(output: Path) -> Any:
    """Lets every rank write the most that it held while it loaded."""

    def prepare() -> None:
        export.FILE_BYTES = FILE_BYTES
        load = trainer.load_start

        def load_start(*values: Any, **named: Any) -> Any:
            gc.collect()
            held = HeldMemory()
            start = load(*values, **named)
            (output / f"held-{dist.get_rank()}.json").write_text(json.dumps(held.look()))
            return start

        trainer.load_start = load_start  # type: ignore[assignment]

    return prepare


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with moments as a Hugging Face folder, as a member, and as a launch's checkpoint."""
    root = tmp_path_factory.mktemp("memory")
    store = make_tiny_store(root / "corpus")
    shape = shape_of(CONFIG)
    params = init_params(shape, seed=0)
    generator = torch.Generator().manual_seed(1)
    moments = {name: 1e-3 * torch.randn(p.shape, generator=generator) for name, p in params.items()}
    squares = {name: moment.square() for name, moment in moments.items()}
    counts = {"step": 100, "run_step": 100, "tokens": 100 * 3 * SEQ_LEN}
    state = MemberState(
        run_id="trunk", shape=shape, params=params, exp_avg=moments, exp_avg_sq=squares, **counts
    )
    save_checkpoint(state, root / "member.safetensors")
    model = LlamaForCausalLM(CONFIG)
    model.bfloat16().save_pretrained(root / "folder")  # what is read is not what is kept
    model.float()
    stored = {
        f"{kind}.{name}": torch.rand_like(p) * scale
        for name, p in model.named_parameters()
        for kind, scale in (("exp_avg", 1e-3), ("exp_avg_sq", 1e-6))
    }
    save_file(stored | {"step": torch.tensor(100.0)}, root / "folder" / OPTIMIZER_FILE)
    recipe_for(store, "member.safetensors").save(root / "recipe.yaml")
    first = train(settings_for(root, "first", start=root / "folder", checkpoint_interval=3), ranks=2)
    (first / "checkpoints" / "step-00000003").rename(root / "launched")
    return root


def recipe_for(store: TokenStore, start: str) -> Recipe:
    values = recipe_of(store, stage(3, sequences=3, seq_len=SEQ_LEN)).to_dict()
    values["handover"] |= {"checkpoint": start, "optimizer_state": "load", "tokens": 100 * 3 * SEQ_LEN}
    return Recipe.from_dict(values)


@pytest.mark.parametrize("start", ["folder", "member.safetensors", "launched"])
def test_no_rank_holds_all_parameters(workspace: Path, start: str) -> None:
    recipe = recipe_for(TokenStore.open(workspace / "corpus"), start).save(workspace / f"{start}.yaml")
    values = {"recipe": recipe, "start": workspace / start, "checkpoint_interval": 0}
    alone = train(settings_for(workspace, f"{start}-1", **values), ranks=1)
    settings = settings_for(workspace, f"{start}-2", **values)
    together = train(settings, ranks=2, prepare=measured(settings.output))
    # a few units in the last place of float32: two ranks add their sums in another order
    assert losses(together) == pytest.approx(losses(alone), rel=2e-6)
    whole = sum(p.numel() * 4 for p in LlamaForCausalLM(CONFIG).parameters())
    for rank in range(2):
        held = json.loads((together / f"held-{rank}.json").read_text()) / whole
        # a half of the weights; of moments that lie in a file of their own nothing yet, of the others a half
        assert held < 0.5 * (1 if start == "folder" else 3) + 0.25
    # what the first rank has gathered at a time, when it exports
    sizes = [path.stat().st_size for path in (together / "hf").glob("*.safetensors")]
    assert len(sizes) > 4
    assert max(sizes) < 1.3 * FILE_BYTES < whole / 4
    single = AutoModelForCausalLM.from_pretrained(alone / "hf").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(together / "hf").state_dict().items():
        torch.testing.assert_close(tensor, single[name], atol=1e-4, rtol=2**-6)  # rounded to bfloat16
