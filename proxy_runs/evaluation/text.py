"""Text to tokens for scoring, such that it is known which characters every token stands for.

**Start.** A text is preceded by the beginning-of-sequence token, or by the end-of-sequence token where there is
none (as in a stream of documents), so that its first token is predicted as well. A tokenizer that has neither
leaves the first token out, together with its bytes.

**Special tokens.** A special token that is spelled out in a document is text there, as it is where a corpus is
prepared. In a context or an answer it is the token, so that a question can be put in a chat template.

**Answers.** Context and answer are tokenised together, since this is how a model sees them. A token may begin in
the context and end in the answer: byte-level tokenizers join a space to the word after it. The space stays in the
context: such a token counts with its probability *given* that the characters in the context are there,
``p(token) / sum of p(t) over tokens t that begin with those characters``. Numerator and denominator of bits per
byte then cover the same characters, those of the answer, whatever the tokenizer does at the seam.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from decaylaws.errors import DataError
from proxy_runs.answers.pieces import Piece
from proxy_runs.data.tokenizer import whole_text_tokenizer

_LAST_CHARACTER = chr(0x10FFFF)


@dataclass(frozen=True)
class EncodedDocument:
    """A text in tokens.

    Attributes:
        tokens: int64 ``[n + 1]``; the first is given, the other ``n`` are predicted.
        num_bytes: UTF-8 bytes of the text behind the predicted tokens.
    """

    tokens: NDArray[np.int64]
    num_bytes: int


@dataclass(frozen=True)
class EncodedAnswer:
    """A context with an answer in tokens.

    Attributes:
        piece: their tokens, the first of which that is scored holds characters of the answer. Its seam is all tokens
            that begin with the context's share of that first token, where it has one.
        num_bytes: UTF-8 bytes of the answer.
    """

    piece: Piece
    num_bytes: int


class TextEncoder:
    """A tokenizer for scoring.

    Args:
        tokenizer: of the ``tokenizers`` package.
        prefix_id: token that precedes every text; None where there is none.
    """

    def __init__(self, tokenizer: Tokenizer, prefix_id: int | None) -> None:
        content = json.loads(tokenizer.to_str())
        backend = whole_text_tokenizer(content)
        # a post-processor adds special tokens, and byte-level ones cut spaces out of the offsets
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        self._backend = backend
        self._plain = whole_text_tokenizer(content)
        self._plain.post_processor = backend.post_processor
        self._plain.encode_special_tokens = True
        self.prefix_id = prefix_id
        self.pad_id = prefix_id or 0

    @classmethod
    def of(cls, tokenizer: Any, *, fallback_prefix: int | Sequence[int] | None = None) -> Self:
        """The encoder of a ``PreTrainedTokenizerFast``.

        Args:
            tokenizer: as said; its beginning-of-sequence token precedes texts, or its end-of-sequence token.
            fallback_prefix: the model's own end-of-sequence token (or several), where the tokenizer names none.
        """
        return cls(tokenizer.backend_tokenizer, _prefix_id(tokenizer, fallback_prefix))

    def documents(self, texts: Sequence[str]) -> list[EncodedDocument]:
        """Whole texts; one that predicts nothing (empty, or a single token without a start) has no bytes."""
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [self._document(text, encoding) for text, encoding in zip(texts, encodings)]

    def answers(self, context: str, answers: Sequence[str]) -> list[EncodedAnswer]:
        """Every answer after the same context.

        Raises:
            DataError: nothing precedes the answer: no context, and no token that starts a text.
        """
        texts = [context + answer for answer in answers]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [self._answer(context, answer, found) for answer, found in zip(answers, encodings)]

    def count(self, text: str) -> int:
        """Tokens of a text, without any that starts it."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def _with_prefix(self, ids: Sequence[int]) -> NDArray[np.int64]:
        start = [] if self.prefix_id is None else [self.prefix_id]
        return np.array([*start, *ids], dtype=np.int64)

    def _document(self, text: str, encoding: Encoding) -> EncodedDocument:
        total = len(text.encode("utf-8", "replace"))
        if self.prefix_id is None and encoding.ids:
            total -= len(text[: encoding.offsets[0][1]].encode("utf-8", "replace"))
        return EncodedDocument(self._with_prefix(encoding.ids), total)

    def _answer(self, context: str, answer: str, encoding: Encoding) -> EncodedAnswer:
        boundary = len(context)
        index = next((k for k, (_, end) in enumerate(encoding.offsets) if end > boundary), None)
        shift = 0 if self.prefix_id is None else 1
        if index is None or index + shift == 0:
            raise DataError(
                f"The answer {answer!r} cannot be scored, because there is no text before it. Give it a context, or "
                "add a beginning-of-sequence token to the tokenizer."
            )
        seam = None
        if encoding.offsets[index][0] < boundary:
            seam = self._by_beginning(self._share_of_context(context, answer, encoding, index))
        piece = Piece(self._with_prefix(encoding.ids), index + shift, seam)
        return EncodedAnswer(piece, len(answer.encode("utf-8", "replace")))

    def _share_of_context(self, context: str, answer: str, encoding: Encoding, index: int) -> str:
        """What the token at the seam spells of the context, in the tokenizer's own letters."""
        token, (start, end), boundary = encoding.tokens[index], encoding.offsets[index], len(context)
        # a token may end within a character of several bytes; else count from its end, since letters that the
        # tokenizer puts before a text stand at the beginning of a token
        splits = index + 1 < len(encoding) and encoding.offsets[index + 1][0] < end
        length = (
            self._letters(context[start:]) if splits else len(token) - self._letters(answer[: end - boundary])
        )
        if not 0 < length < len(token):
            raise DataError(
                f"The tokenizer changes the text where {context[-20:]!r} meets {answer[:20]!r} (token {token!r}), "
                "so that the characters behind it are not known. End the context with a space or a line break."
            )
        return token[:length]

    def _letters(self, text: str) -> int:
        """Letters that spell a text in tokens: one a byte, or one a character."""
        return len(text.encode("utf-8", "replace")) if self._is_byte_level else len(text)

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether every character of a token stands for one byte."""
        parts = json.loads(self._backend.to_str())
        return '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]])

    @cached_property
    def _sorted_vocabulary(self) -> tuple[list[str], NDArray[np.int64]]:
        special = self._backend.get_added_tokens_decoder()
        entries = sorted((t, k) for t, k in self._backend.get_vocab().items() if k not in special)
        return [text for text, _ in entries], np.array([number for _, number in entries], dtype=np.int64)

    @lru_cache(maxsize=256)  # noqa: B019 - an encoder lives as long as the evaluation
    def _by_beginning(self, shared: str) -> NDArray[np.int64]:
        texts, numbers = self._sorted_vocabulary
        return numbers[bisect_left(texts, shared) : bisect_left(texts, shared + _LAST_CHARACTER)]


def _prefix_id(tokenizer: Any, fallback: int | Sequence[int] | None) -> int | None:
    for candidate in (tokenizer.bos_token_id, tokenizer.eos_token_id, fallback):
        if candidate is not None:
            return int(candidate if isinstance(candidate, int) else candidate[0])
    return None
