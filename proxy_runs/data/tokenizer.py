"""Byte-level BPE of the train split: training, encoding to shards, bytes behind each token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
_END_TOKENS = (
    EOS,
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[EOS]",
)
_BATCH_CHARS = 1 << 20
_MAX_PIECE_CHARS = 1 << 20
_MAX_VOCAB_SIZE = 1 << 22


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
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer=trainer)
    with atomic_write(path) as handle:
        handle.write(tokenizer.to_str(pretty=False).encode())


@dataclass(frozen=True)
class TextTokenizer:
    """A byte-level tokenizer for text as it stands: all of it, the same at every call, and nothing but text.

    A special token that is spelled out in the text is text, as in ``print("<|endoftext|>")``: the end of a document
    is never read out of its middle.

    Attributes:
        tokenizer: of the ``tokenizers`` package.
        end_id: token that ends a document.
        token_bytes: UTF-8 bytes of text behind each token [vocab_size]; 0 for special tokens.
    """

    tokenizer: Tokenizer
    end_id: int
    token_bytes: NDArray[np.uint16]

    @property
    def vocab_size(self) -> int:
        """Embeddings that a model needs: one more than the largest id, gaps included."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> Literal["<u2", "<u4"]:
        """Type of a token on disk."""
        return "<u2" if self.vocab_size <= 2**16 else "<u4"

    def to_json(self) -> bytes:
        """As ``tokenizer.json``."""
        return self.tokenizer.to_str().encode()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.generic]]:
        """The tokens of each text, without an end-of-document token.

        Raises:
            DataError: the tokenizer gives up on one.
        """
        return self._encode(texts)

    def decode(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """The text that the tokens of each document spell; bytes that are not UTF-8 become question marks."""
        return self.tokenizer.decode_batch([ids.tolist() for ids in documents], skip_special_tokens=False)

    def write(self, documents: Iterable[str], handle: IO[bytes]) -> Iterator[tuple[int, int, int]]:
        """Encode documents into ``handle``, each ended by the end-of-document token.

        Yields:
            (documents, bytes of text, tokens) of every batch written.

        Raises:
            DataError: the tokens do not spell the text, or the tokenizer gives up on it.
        """
        end = np.array([self.end_id], self.dtype)
        for batch in _batches(documents):
            parts: list[NDArray[np.generic]] = []
            text_bytes = 0
            for (text, is_last), ids in zip(batch, self._encode([text for text, _ in batch])):
                text_bytes += self._check(text, ids)
                parts += (ids, end) if is_last else (ids,)
            tokens = np.concatenate(parts)
            handle.write(tokens.tobytes())
            yield sum(is_last for _, is_last in batch), text_bytes, len(tokens)

    def _encode(self, texts: Sequence[str]) -> list[NDArray[np.generic]]:
        remedy = "Use another one, or mend the regular expression of its pre-tokenizer."
        with _tokenizer_errors("The tokenizer cannot encode the text", remedy):
            found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in found]

    def _check(self, text: str, ids: NDArray[np.generic]) -> int:
        """Bytes behind the tokens, which must be those of the text, in the form that the tokenizer normalises it to."""
        spelled, there = int(self.token_bytes[ids].sum(dtype=np.int64)), len(text.encode())
        if spelled == there:
            return there
        normalizer = self.tokenizer.normalizer
        if normalizer is not None:
            with _tokenizer_errors("The tokenizer cannot normalise the text", "Use another one."):
                if spelled == len(normalizer.normalize_str(text).encode()):
                    return spelled
        raise DataError(
            f"The tokenizer turns {there:,} bytes of text into tokens that spell {spelled:,} bytes (the text begins "
            f"with {text[:40]!r}): it adds or loses text. In tokenizer.json, set add_prefix_space to false and let no "
            "added token strip the blanks beside it, or leave tokenizer.path out to train a tokenizer."
        )


def load_tokenizer(
    path: Path, *, end_token: str | None = None, field: str = "tokenizer.path"
) -> TextTokenizer:
    """Read a ``tokenizer.json``, without what it holds for other uses: truncation, padding and dropout of merges.

    Args:
        path: the file.
        end_token: the token that ends a document; one of the usual ones, or that of a ``tokenizer_config.json`` beside
            the file, without it.
        field: of study.yaml, for messages.

    Raises:
        DataError: it is missing, is none, is not byte-level, or has no end-of-document token.
    """
    if not path.is_file():
        raise DataError(f"'{field}' finds no file at {path}. Correct the path, or leave it out to train one.")
    content = _read_json(path, field)
    _require_ids(path, content, field)
    end_token = _end_token(path, content, end_token)
    for entry in _added_tokens(content):
        entry["special"] = bool(entry.get("special")) or entry.get("content") == end_token
    with _tokenizer_errors(
        f"'{field}': {path} is not a tokenizer.json", "Save it again with its own library."
    ):
        tokenizer = whole_text_tokenizer(content)
    tokenizer.encode_special_tokens = True
    _require_byte_level(content)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocab.values()) + 1, dtype="<u2")
    for text, number in vocab.items():
        lengths[number] = min(len(text), 2**16 - 1)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = 0 if added.special else len(added.content.encode())
    end_id = vocab[end_token]
    lengths[end_id] = 0
    return TextTokenizer(tokenizer, end_id, lengths)


def whole_text_tokenizer(content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` without truncation, padding and dropout of merges."""
    from tokenizers import Tokenizer

    model = {**content["model"], "dropout": None} if "dropout" in content["model"] else content["model"]
    return Tokenizer.from_str(json.dumps({**content, "truncation": None, "padding": None, "model": model}))


def _read_json(path: Path, field: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{field}': {path} is not a tokenizer.json ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(f"'{field}': {path} is not a tokenizer.json (it has no key 'model').")
    return content


def _vocab(content: Mapping[str, Any]) -> dict[str, int]:
    """Every token with its id, as far as the file holds a table of them."""
    vocab = content["model"].get("vocab")
    found = dict(vocab) if isinstance(vocab, dict) else {}
    for token in _added_tokens(content):
        found[str(token.get("content"))] = token.get("id")
    return found


def _added_tokens(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = content.get("added_tokens")
    return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []


@contextmanager
def _tokenizer_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turns what the ``tokenizers`` package raises, bare exceptions and panics of its Rust code, into one message."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{problem} ({' '.join(str(error).split())}). {remedy}") from None


def _require_ids(path: Path, content: Mapping[str, Any], field: str) -> None:
    ids = list(_vocab(content).values())
    if not ids or not all(type(number) is int and number >= 0 for number in ids):
        raise DataError(
            f"'{field}': {path} is not a byte-level BPE (its vocabulary is not a table of tokens and ids). Use the "
            "tokenizer.json of a byte-level BPE (as of GPT-2, Llama 3, OLMo)."
        )
    if max(ids) >= _MAX_VOCAB_SIZE:
        raise DataError(
            f"'{field}': {path} has {len(ids):,} tokens and an id of {max(ids):,}; a model needs an embedding for "
            f"every id below. Number the tokens without such gaps (below {_MAX_VOCAB_SIZE:,})."
        )


def _end_token(path: Path, content: Mapping[str, Any], asked: str | None) -> str:
    """The token that ends a document."""
    vocab = _vocab(content)
    if asked is not None:
        if asked in vocab:
            return asked
        raise DataError(f"'tokenizer.end_token': {path} has no token {asked!r}. Name one of its tokens.")
    for token in (*_END_TOKENS, _configured_end_token(path.with_name("tokenizer_config.json"))):
        if token in vocab:
            return token
    raise DataError(
        f"{path} has none of the usual tokens that end a document ({', '.join(_END_TOKENS)}). Name its own as "
        "tokenizer.end_token in study.yaml."
    )


def _configured_end_token(path: Path) -> str:
    """What the configuration beside a tokenizer names as its end of a sequence; empty without one."""
    try:
        token = json.loads(path.read_bytes()).get("eos_token")
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _require_byte_level(content: Mapping[str, Any]) -> None:
    """Byte-level tokenizers write each byte as one character, so that a token's bytes are its characters."""
    decoder = content.get("decoder") or {}  # of a form that the tokenizers package has read
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    if "ByteLevel" not in [step.get("type") for step in steps]:
        raise DataError(
            "The tokenizer is not byte-level, so the bytes behind a token are not known. "
            "Use a byte-level BPE (as of GPT-2, Llama 3, OLMo), or leave tokenizer.path out to train one."
        )


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, about a megabyte at a time, each with whether it ends its document."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for text in documents:
        pieces = list(_pieces(text))
        for number, piece in enumerate(pieces, start=1):
            batch.append((piece, number == len(pieces)))
            size += len(piece)
            if size >= _BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces, since encoding takes a hundred times the memory of the text.

    It is cut where byte-level pre-tokenizers cut as well, before a line that begins with a letter; in a text without
    such lines, before a blank, and without blanks after every ``_MAX_PIECE_CHARS`` characters.
    """
    begin = 0
    while len(text) - begin > 2 * _MAX_PIECE_CHARS:
        middle, end = begin + _MAX_PIECE_CHARS // 2, begin + _MAX_PIECE_CHARS
        lines = [found.end() for found in re.compile(r"\n(?=\w)").finditer(text, middle, end)]
        blank = text.rfind(" ", middle, end)
        cut = lines[-1] if lines else blank if blank > 0 else end
        yield text[begin:cut]
        begin = cut
    yield text[begin:]
