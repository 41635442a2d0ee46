"""A proxy taken from 256 to 1,024 tokens by each way of extending its rotary embedding, against plain extrapolation.

    python analysis/context_extension.py --json OUT [--work DIR] [--steps 30] [--trunk-steps 300]

A small Llama trains at 256 tokens on long documents of installed packages (the proxies' engine), then a decay of a few
steps runs at 1,024 tokens with each method through the full-scale trainer. Losses are those of long held-out text in
nats per token, by position: what stands beyond 256 was never trained on. ``before`` is the trunk under the new
embedding without a step of training, so ``none before`` is plain extrapolation. Some minutes on a CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _common import run, write_json
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, RopeSettings
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import Schedule, constant, warmup
from decaylaws.settings.evaluation import EvaluationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs import engine
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.fsdp.metrics import read_metrics
from proxy_runs.fsdp.parallel import World, open_world
from proxy_runs.fsdp.rope import set_rope
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.start import load_start
from proxy_runs.fsdp.trainer import METRICS_FILE, Trainer
from proxy_runs.weights.checkpoint_files import final_checkpoint

SHORT, LONG = 256, 1024
BATCH_TOKENS = 2048
LR = 4e-3
PROXY = {"d_model": 64, "num_layers": 3, "num_heads": 2, "num_kv_heads": 2, "d_ff": 176}
SOURCES = ("code", "reference")
LONG_DOCUMENT_BYTES = 6_000
SPANS = {"0-256": (0, 256), "256-512": (256, 512), "512-1024": (512, 1024)}
LENGTHS: dict[str, Any] = {"factor": LONG / SHORT, "original_seq_len": SHORT}
METHODS = {
    "none": RopeSettings(),
    "abf": RopeSettings(method="abf", theta=100_000.0),
    "position_interpolation": RopeSettings(method="position_interpolation", **LENGTHS),
    "ntk": RopeSettings(method="ntk", **LENGTHS),
    "yarn": RopeSettings(method="yarn", **LENGTHS),
}


def prepare(folder: Path) -> TokenStore:
    """Long documents of installed packages."""
    settings = {"format": "embedded", "max_bytes": 2_000_000, "min_document_bytes": LONG_DOCUMENT_BYTES}
    sources = {name: SourceSettings.model_validate(settings) for name in SOURCES}
    prepare_corpus(sources, folder, tokenizer=TokenizerSettings(vocab_size=512))
    return TokenStore.open(folder)


def train_trunk(store: TokenStore, folder: Path, steps: int) -> Path:
    """The proxy at 256 tokens, by the proxies' engine; its checkpoint, moments included."""
    shape = ModelShape(**PROXY, vocab_size=store.vocab_size, seq_len=SHORT)
    tokens = steps * BATCH_TOKENS
    config = RunConfig(
        kind="trunk",
        shape=shape,
        schedule=warm_up_and_hold(tokens),
        batch_tokens=BATCH_TOKENS,
        mixture=even_mixture(store),
        seed=0,
        data_fingerprint=store.fingerprint,
    )
    engine.train(
        [config],
        store,
        checkpoint_dir=folder,
        evaluation=EvaluationSettings(tokens_per_domain=2 * SHORT),
        on_result=lambda _: None,
        device="cpu",
    )
    return final_checkpoint(folder, config.run_id)


def warm_up_and_hold(tokens: int) -> Schedule:
    """A trunk's schedule: a tenth of warm-up, then constant."""
    return warmup(tokens // 10, LR).then(constant(tokens - tokens // 10, LR))


def even_mixture(store: TokenStore) -> Mixture:
    return Mixture(dict.fromkeys(store.names, 1 / len(store.names)))


def extension(store: TokenStore, rope: RopeSettings, steps: int) -> Recipe:
    """A linear decay at 1,024 tokens; a batch holds a quarter of the trunk's sequences."""
    stage = {
        "lr": [{"tokens": steps * BATCH_TOKENS, "start_lr": LR, "end_lr": 0.0, "shape": "linear"}],
        "mixture": even_mixture(store).to_dict(),
        "batch_tokens": BATCH_TOKENS,
        "seq_len": LONG,
        "rope": rope.model_dump(exclude_none=True),
    }
    return Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/2",
            "handover": {"checkpoint": "trunk", "lr": LR},
            "stages": [stage],
            "sources": {name: {} for name in store.names},
            "seed": 1,
        }
    )


def extend(
    store: TokenStore, trunk: Path, rope: RopeSettings, steps: int, folder: Path, world: World
) -> float:
    """Train the extension; returns the share of its sequences that lie within one document."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = TrainSettings(
        recipe=extension(store, rope, steps).save(folder / "recipe.yaml"),
        corpus=store.directory,
        start=trunk,
        output=folder,
        device="cpu",
        micro_batch_sequences=4,
        checkpoint_interval=0,
        eval_tokens_per_domain=LONG,
    )
    Trainer(settings, world).train()
    lines = [line for line in read_metrics(folder / METRICS_FILE) if "loss" in line]
    return sum(line["unbroken_sequences"] for line in lines) / sum(line["sequences"] for line in lines)


@torch.no_grad()
def losses_by_position(model: PreTrainedModel, windows: Tensor) -> dict[str, float]:
    """Mean held-out loss of each span of positions, and of all."""
    model.eval()
    rows = [
        torch.nn.functional.cross_entropy(model(row[None, :-1]).logits[0], row[1:], reduction="none")
        for row in windows
    ]
    mean = torch.stack(rows).double().mean(0)
    return {"all": float(mean.mean())} | {name: float(mean[a:b].mean()) for name, (a, b) in SPANS.items()}


def compare(work: Path, store: TokenStore, args: argparse.Namespace) -> dict[str, Any]:
    """The table: each method before and after its training."""
    trunk = train_trunk(store, work / "trunk", args.trunk_steps)
    evaluation = EvaluationSet.build(store, seq_len=LONG, tokens_per_domain=args.eval_tokens)
    windows = torch.cat(list(evaluation.windows.values()))
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port)}
    world = open_world("cpu", replicas=1)
    table, unbroken = {}, 0.0
    for name, rope in METHODS.items():
        model = load_start(trunk, with_optimizer=False).model
        set_rope(model, rope, LONG)
        before = losses_by_position(model, windows)
        unbroken = extend(store, trunk, rope, args.steps, work / name, world)
        after = losses_by_position(AutoModelForCausalLM.from_pretrained(work / name / "hf"), windows)
        table[name] = {"before": before, "after": after}
        print(row(name, before, after), flush=True)
    dist.destroy_process_group()
    plain = table["none"]["before"]["all"]
    return {
        "trunk_tokens": args.trunk_steps * BATCH_TOKENS,
        "extension_tokens": args.steps * BATCH_TOKENS,
        "heldout_windows": len(windows),
        "unbroken_share": unbroken,
        "losses": table,
        "gain_on_plain_extrapolation": {name: plain - found["after"]["all"] for name, found in table.items()},
    }


def row(name: str, before: dict[str, float], after: dict[str, float]) -> str:
    cells = [f"{found[span]:9.4f}" for found in (before, after) for span in ("all", *SPANS)]
    return f"{name:24}" + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument(
        "--work", type=Path, help="folder of corpus and checkpoints, kept; a temporary one if left out"
    )
    parser.add_argument("--corpus", type=Path, help="a prepared corpus to use instead of installed packages")
    parser.add_argument("--trunk-steps", type=int, default=300, help="steps of 2,048 tokens at 256")
    parser.add_argument("--steps", type=int, default=30, help="steps of 2,048 tokens at 1,024")
    parser.add_argument("--eval-tokens", type=int, default=12 * LONG, help="held-out tokens of each source")
    parser.add_argument("--port", type=int, default=29_512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        store = TokenStore.open(args.corpus) if args.corpus else prepare(work / "corpus")
        spans = "".join(f"{span:>9}" for span in ("all", *SPANS))
        print(f"{'':24}{'before':>9}{'':27}{'after':>9}\n{'':24}{spans}{spans}")
        found = compare(work, store, args)
    write_json(args.json, {"torch": torch.__version__, **found})


if __name__ == "__main__":
    run(main)
