"""What stands in the JSON files of a prepared corpus, as types."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

more_allowed = with_config(ConfigDict(extra="allow", allow_inf_nan=False))
"""Keys that a type does not list are kept."""
Count = Annotated[int, Field(ge=0)]


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or not path.isprintable():
        raise ValueError("it must lie in the folder")
    return path


@more_allowed
class Split(TypedDict):
    """One split of a prepared source."""

    tokens: Count
    documents: Count
    text_bytes: Count


@more_allowed
class File(TypedDict):
    """A file of the corpus."""

    path: Annotated[str, AfterValidator(_inside)]


@more_allowed
class Source(TypedDict):
    """One prepared source; ``store`` only where it is a token store."""

    train: Split
    heldout: Split
    counts: dict[str, Count]
    store: NotRequired[File | None]


@more_allowed
class StoredStore(TypedDict):
    """``NAME.store.json``: the files of a token store, and some of its text."""

    beginning: str
    files: list[dict[str, Any]]


@more_allowed
class StoredManifest(TypedDict):
    """``corpus/manifest.json``, as far as verbs without the trainer read it."""

    fingerprint: str
    vocab_size: Count
    tokenizer: File
    sources: dict[str, Source]


@more_allowed
class EvaluationEntry(TypedDict):
    """One evaluation domain or question set."""

    kind: Literal["domain", "questions"]
    documents: Count
    tokens: Count


@more_allowed
class StoredEvaluation(TypedDict):
    """``corpus/evaluation.json``, as far as verbs without the trainer read it."""

    fingerprint: str
    sets: dict[str, EvaluationEntry]


@more_allowed
class StoredOverlap(TypedDict):
    """``heldout_overlap.json``: share of the held-out passages of a domain that a source repeats."""

    overlap: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]


@more_allowed
class CopiedPair(TypedDict):
    """Near copies in the train text of a source of the held-out documents of a domain, by level of similarity."""

    source: str
    domain: str
    set_aside: Count
    train_documents: list[Count]
    heldout_documents: list[Count]


@more_allowed
class StoredCopies(TypedDict):
    """``near_copies.json``: train documents that resemble held-out ones, and which ``share`` of a source was read."""

    levels: list[float]
    similarity: float
    heldout_documents: dict[str, Count]
    compared: dict[str, Count]
    share: dict[str, Annotated[float, Field(ge=0, le=1)]]
    pairs: list[CopiedPair]


@more_allowed
class StoredSettings(TypedDict):
    """``settings.json`` beside the shards: what they were prepared from."""

    sources: dict[str, dict[str, Any]]
    text: NotRequired[dict[str, dict[str, Any]]]
    decontamination: NotRequired[dict[str, Any]]
