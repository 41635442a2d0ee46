"""Sources that hold token ids instead of text: which formats there are, and which keys of a source go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from decaylaws.settings.sources import SourceSettings

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


def is_token_store(source: SourceSettings) -> bool:
    """Whether a source holds token ids."""
    return source.format in ALWAYS_TOKENS or (source.format == "datasets" and source.tokens_from is not None)


def check_store_keys(source: SourceSettings) -> None:
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
