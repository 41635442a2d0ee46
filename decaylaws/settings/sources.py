"""The sources of text in ``study.yaml``, and how their text becomes tokens."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from decaylaws.settings.capabilities import Capability
from decaylaws.settings.external import DECLARED, TOKENS_PLACE, check_source
from decaylaws.settings.numbers import NUMBER, Count, Positive, Share, Tokens
from decaylaws.settings.quality import QualitySettings
from decaylaws.settings.section import Section

TokenType = Literal["uint16", "uint32", "int32", "int64"]

ALWAYS_TOKENS = ("array", "megatron", "nanotron", "mds", "decaylaws")
"""Formats that hold token ids only; a ``datasets`` folder does where ``tokens_from`` names a column."""

_NAMED_BY = {
    "mds": "the column that holds the token ids",
    "datasets": "the column that holds the token ids",
    "decaylaws": "the source of the other study",
}
_TYPE_UNKNOWN = ("array", "nanotron", "mds")
_OF_TEXT = (
    "text_field",
    "max_bytes",
    "min_document_bytes",
    "max_document_bytes",
    "on_bad",
    "quality",
)


class SourceSettings(Section):
    """One source of text. Its held-out part is the evaluation domain of the same name.

    ``embedded`` sources are read out of installed packages or generated; every other format reads ``path``.
    """

    format: Literal[
        "embedded",
        "jsonl",
        "text",
        "parquet",
        "datasets",
        "array",
        "megatron",
        "nanotron",
        "mds",
        "decaylaws",
        "declared",
    ] = Field(
        description="how the text is stored; embedded text comes from installed packages, the formats from array to "
        "decaylaws hold token ids, which are read in place, and declared text is read by an external trainer only"
    )
    path: str | None = Field(
        None, description="file, folder or glob, relative to study.yaml; none for embedded"
    )
    text_field: str = Field(
        "text", description="column or key that holds the text (jsonl, parquet, datasets)"
    )
    tokens_from: str | None = Field(
        None,
        description="what holds the token ids: a column (datasets; mds, tokens by default), or a source of the other "
        "study (decaylaws, the same name by default)",
    )
    token_type: TokenType | None = Field(
        None, description="type of a stored token id, where the store does not say (array, nanotron, mds)"
    )
    append_end: bool = Field(
        False,
        description="put the end-of-document token after each document of a token store that was written without it",
    )
    group: Literal["general", "specialised"] = Field(
        "specialised",
        description="general text keeps abilities, specialised text adds them; the front of the search shows both",
    )
    capability: Capability | None = Field(
        None, description="what the source serves, for objectives by group of domains"
    )
    max_epochs: Positive | None = Field(None, description="how often the target run may repeat this source")
    lower: Share = Field(0.0, description="smallest share of the source in a mixture")
    upper: Share = Field(1.0, description="largest share of the source in a mixture")
    max_bytes: Count | None = Field(None, description="largest amount of text to take, in bytes (UTF-8)")
    min_document_bytes: Count | None = Field(
        None, description="take only documents of at least this many bytes"
    )
    max_document_bytes: Count | None = Field(None, description="take only documents of fewer bytes")
    heldout_fraction: Annotated[float, NUMBER, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of the documents that is held out for evaluation"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error",
        description="error stops at a row that is not valid JSON or has no text; skip leaves such rows out",
    )
    quality: QualitySettings | None = Field(None, description="cuts the source into buckets by quality")
    tokens: Tokens | None = Field(None, description="train tokens of a declared source")
    fingerprint: str | None = Field(
        None, description="version of the content of a declared source; part of the identity of its runs"
    )
    proxy_path: str | None = Field(
        None,
        description="where the external trainer finds the tokens / target.repetition_scale that proxies may read of a "
        "declared source; path where both are the same. With {tokens} in it, which stands for their number, the source "
        "can be cut further for design.repetition_runs",
    )

    @model_validator(mode="after")
    def _path_and_bounds(self) -> Self:
        check_source(self)
        if self.format != DECLARED and (self.format == "embedded") != (self.path is None):
            raise ValueError(f"format {self.format!r} {'takes no' if self.path else 'needs a'} path")
        if self.lower > self.upper:
            raise ValueError(f"lower={self.lower} must not exceed upper={self.upper}")
        if self.on_bad == "skip" and self.format in ("embedded", "text"):
            raise ValueError(f"format {self.format!r} has no rows that on_bad could skip; leave it out")
        if (self.min_document_bytes or 0) >= (self.max_document_bytes or math.inf):
            raise ValueError(
                f"min_document_bytes={self.min_document_bytes} must be below "
                f"max_document_bytes={self.max_document_bytes}"
            )
        if self.quality is not None and self.format == "embedded":
            raise ValueError("quality cuts the user's own text, not embedded domains")
        if self.quality is not None and self.quality.field and self.format == "text":
            raise ValueError("plain text has no quality.field; use jsonl or parquet, or a classifier")
        _check_store_keys(self)
        return self

    @property
    def can_be_cut(self) -> bool:
        """Whether a run may read less of it than others: of a declared source only if its parts have paths."""
        return self.format != DECLARED or TOKENS_PLACE in (self.proxy_path or "")

    def part_path(self, tokens: int) -> str | None:
        """Where the external trainer finds the first ``tokens`` of a declared source; None if that is not known."""
        return self.proxy_path and self.proxy_path.replace(TOKENS_PLACE, str(tokens))


def is_token_store(source: SourceSettings) -> bool:
    """Whether a source holds token ids."""
    return source.format in ALWAYS_TOKENS or (source.format == "datasets" and source.tokens_from is not None)


def _check_store_keys(source: SourceSettings) -> None:
    """Refuse keys that say nothing about the source's format.

    Raises:
        ValueError: a key of text for a token store, or one of token stores for text.
    """
    if source.tokens_from is not None and source.format not in _NAMED_BY:
        raise ValueError(
            f"tokens_from belongs to the formats {', '.join(_NAMED_BY)}, not to {source.format!r}"
        )
    if source.token_type is not None and source.format not in _TYPE_UNKNOWN:
        raise ValueError(
            f"token_type belongs to the formats {', '.join(_TYPE_UNKNOWN)}; format {source.format!r} states its own"
        )
    if source.append_end and (not is_token_store(source) or source.format in ("array", "decaylaws")):
        raise ValueError(
            "append_end is for token stores that say where a document ends: megatron, nanotron, mds, datasets"
        )
    if not is_token_store(source):
        return
    for key in _OF_TEXT:
        if getattr(source, key) != type(source).model_fields[key].default:
            raise ValueError(
                f"{key} is about text, and format {source.format!r} holds token ids; leave it out"
            )


def tokens_from(name: str, source: SourceSettings) -> str:
    """Column or source that holds the token ids of a store.

    Args:
        name: of the source.
        source: its settings.
    """
    if source.tokens_from is not None:
        return source.tokens_from
    return name if source.format == "decaylaws" else "tokens"


class TokenizerSettings(Section):
    """Byte-level BPE trained on the train split, or a ready ``tokenizer.json``."""

    vocab_size: Annotated[int, NUMBER, Field(ge=257, le=2**32 - 1)] = Field(
        4096, description="entries of the tokenizer that is trained"
    )
    path: str | None = Field(None, description="a tokenizer.json to use instead of training one")
    end_token: str | None = Field(
        None, description="the token that ends a document, if it is not one of the usual ones"
    )
    train_bytes_per_source: Count = Field(
        2_000_000, description="text of each source that the tokenizer is trained on, in bytes"
    )

    @model_validator(mode="after")
    def _end_token_of_a_ready_one(self) -> Self:
        if self.end_token is not None and self.path is None:
            raise ValueError(
                "end_token names a token of tokenizer.path; a tokenizer that is trained here has its own"
            )
        return self
