"""Byte-level BPE of the train split: training, encoding to shards, bytes behind each token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
_BATCH_BYTES = 1 << 20


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE and write it as ``tokenizer.json``.

    Every digit is its own token, so that numbers are spelled alike wherever they occur; all 256 bytes are in
    the alphabet, so that nothing is unknown; entry 0 ends a document.

    Args:
        texts: documents of the train split.
        vocab_size: entries, at least 257.
        path: where to write.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    with atomic_write(path) as handle:
        handle.write(tokenizer.to_str(pretty=False).encode())


def load_tokenizer(path: Path, *, field: str = "tokenizer.path") -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        DataError: it is missing or is none.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise DataError(f"'{field}' finds no file at {path}. Correct the path, or leave it out to train one.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"'{field}': {path} is no tokenizer.json ({error}).") from None


def eos_id(tokenizer: Tokenizer) -> int:
    """The token that ends a document: ours, or a ready tokenizer's own.

    Raises:
        DataError: the tokenizer has none of the usual ones.
    """
    for text in (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"):
        number = tokenizer.token_to_id(text)
        if number is not None:
            return int(number)
    raise DataError(f"The tokenizer has no end-of-document token. Add {EOS!r} to its special tokens.")


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """UTF-8 bytes of text behind each token [vocab_size]; 0 for special tokens.

    Byte-level tokenizers write each byte as one character, so a token's bytes are its characters.

    Raises:
        DataError: the tokenizer is not byte-level, so bits per byte would be wrong.
    """
    decoder = tokenizer.decoder
    if decoder is None or type(decoder).__name__ != "ByteLevel":
        raise DataError(
            "The tokenizer is not byte-level, so the bytes behind a token are not known. "
            "Use a byte-level BPE (as of GPT-2, Llama 3, OLMo), or leave tokenizer.path out to train one."
        )
    lengths = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), dtype="<u2")
    for text, number in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[number] = len(text)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = 0 if added.special else len(added.content.encode())
    return lengths


def write_tokens(
    documents: Iterable[str], tokenizer: Tokenizer, handle: IO[bytes], *, dtype: str
) -> Iterator[tuple[int, int, int]]:
    """Encode documents into ``handle``, each ended by the end-of-document token.

    Yields:
        (documents, bytes of text, tokens) of every batch written.
    """
    end = np.array([eos_id(tokenizer)], dtype=dtype)
    for batch in _batches(documents):
        parts: list[NDArray[np.generic]] = []
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts += (np.array(encoding.ids, dtype=dtype), end)
        tokens = np.concatenate(parts)
        handle.write(tokens.tobytes())
        yield len(batch), sum(len(text.encode()) for text in batch), len(tokens)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
