"""No rank ever holds a whole model: not while it loads, not while it trains, not while it exports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints.moments import OPTIMIZER_FILE
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.model import init_params
from proxy_runs.fsdp import export, trainer
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoints import MemberState, save_checkpoint
from proxy_runs.weights.hf import shape_of
from tests.proxy_runs.fsdp_runs import losses, recipe_of, settings_for, stage, train

SEQ_LEN = 16
CONFIG = LlamaConfig(
    vocab_size=257,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=SEQ_LEN,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    eos_token_id=256,
    bos_token_id=None,
)


class HeldBytes(TorchDispatchMode):
    """The most bytes of memory that operators of this process have made and not given back.

    What lies in a file that is mapped into memory is not counted before something copies it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = [storage for storage in _storages(result) if storage._cdata not in given]
        self._made |= {storage._cdata: StorageWeakRef(storage) for storage in made}
        if made:
            self.peak = max(self.peak, self._held())
        return result

    def _held(self) -> int:
        self._made = {key: ref for key, ref in self._made.items() if not ref.expired()}
        # FSDP empties the storages of gathered weights and fills them again: their present size counts
        storages = (torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in self._made.values())
        return sum(storage.nbytes() for storage in storages if storage is not None)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor) and not value.is_meta]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return [tensor.untyped_storage() for tensor in local if tensor.numel() > 250]


def measured(output: Path) -> Any:
    """Lets every rank write the most that it held once its weights were there, and at the end."""

    def prepare() -> None:
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads that read would go unseen
        export.FILE_BYTES = 40_000
        held, load = HeldBytes(), trainer.load_start
        begin, run = Trainer.__init__, Trainer.train
        found = {}

        def load_start(*values: Any, **named: Any) -> Any:
            start = load(*values, **named)
            found["loaded"] = held.peak
            return start

        def begin_measured(self: Trainer, *values: Any, **named: Any) -> None:
            with held:
                begin(self, *values, **named)

        def run_and_tell(self: Trainer) -> Any:
            with held:
                result = run(self)
            found["whole"] = held.peak
            (output / f"held-{dist.get_rank()}.json").write_text(json.dumps(found))
            return result

        trainer.load_start = load_start  # type: ignore[assignment]
        Trainer.__init__ = begin_measured  # type: ignore[method-assign]
        Trainer.train = run_and_tell  # type: ignore[method-assign]

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
    model.save_pretrained(root / "folder")
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
    assert losses(together) == pytest.approx(losses(alone), abs=1e-6)
    weights = {name: p.numel() * 4 for name, p in LlamaForCausalLM(CONFIG).named_parameters()}
    whole, largest = sum(weights.values()), max(weights.values())
    layer = sum(size for name, size in weights.items() if ".layers.0." in name)
    for rank in range(2):
        held = json.loads((together / f"held-{rank}.json").read_text())
        # a half of the weights; of moments that lie in a file of their own nothing yet, of the others a half
        parts = 1 if start == "folder" else 3
        assert held["loaded"] < 0.5 * parts * whole + 3 * largest
        # a half of weights, two moments and gradients; some layers gathered, and a file that is written
        print(start, held, whole, layer)
        assert held["whole"] < 2 * whole + 4 * layer
    names = sorted(path.name for path in (together / "hf").glob("*.safetensors"))
    assert len(names) > 8
    single = AutoModelForCausalLM.from_pretrained(alone / "hf").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(together / "hf").state_dict().items():
        torch.testing.assert_close(tensor, single[name], atol=1e-5, rtol=1e-4)
