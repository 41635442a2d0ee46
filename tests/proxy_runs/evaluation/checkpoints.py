"""Tiny Llamas with tokenizers that disagree about spaces, as Hugging Face folders, built without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    "Paris is the capital of France. Rome is the capital of Italy, and nobody doubts it.\n",
    "def total(values):\n    return sum(values)  # naïve — but it works\n",
    "The code of Ada is 4711. The code of Omar is 1234.\n\nAnswer: forty-two  apples",
    "日本の首都は東京です。 Größe und Maße — 3½ €.",
]
VOCABULARY = 420


def plain() -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2: a space joins the word after it; one token ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    _train(tokenizer, VOCABULARY, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def spaced() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts a space before every text, and a beginning-of-sequence token before that."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, VOCABULARY - 60, ["<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace() -> PreTrainedTokenizerFast:
    """Llama 2's way: spaces are written as a letter, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(tokenizer, 256 + VOCABULARY, ["<unk>", "<s>", "</s>", *byte_tokens], [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "plain": plain,
    "spaced": spaced,
    "metaspace": metaspace,
}


def make_checkpoint(directory: Path, tokenizer: str = "plain", *, seed: int = 0, context: int = 48) -> Path:
    """Save a tiny Llama of random weights, large enough that its losses differ between tokens."""
    made = TOKENIZERS[tokenizer]()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    made.save_pretrained(directory)
    return directory


def _train(tokenizer: Tokenizer, size: int, special: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer=trainer)
