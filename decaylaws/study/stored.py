"""What stands in the JSON files of a study, as types: a verb that reads one gets these, or one error with its name.

Keys that are not listed are kept; rows of tables hold text, numbers, truth values or nothing.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict

from decaylaws.mixtures import Mixture

_stored = with_config(ConfigDict(extra="allow", allow_inf_nan=False))
Count = Annotated[int, Field(ge=0)]
Row = dict[str, str | bool | int | FiniteFloat | None]


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or not path.isprintable():
        raise ValueError("it must lie in the folder")
    return path


@_stored
class Split(TypedDict):
    """One split of a prepared source."""

    tokens: Count
    documents: Count
    text_bytes: Count


@_stored
class File(TypedDict):
    """A file of the corpus."""

    path: Annotated[str, AfterValidator(_inside)]


@_stored
class Source(TypedDict):
    """One prepared source; ``store`` only where it is a token store."""

    train: Split
    heldout: Split
    counts: dict[str, Count]
    store: NotRequired[File | None]


@_stored
class StoredStore(TypedDict):
    """``NAME.store.json``: the files of a token store, and some of its text."""

    beginning: str
    files: list[dict[str, Any]]


@_stored
class StoredManifest(TypedDict):
    """``corpus/manifest.json``, as far as verbs without the trainer read it."""

    fingerprint: str
    vocab_size: Count
    tokenizer: File
    sources: dict[str, Source]


@_stored
class EvaluationEntry(TypedDict):
    """One evaluation domain or question set."""

    kind: Literal["domain", "questions"]
    documents: Count
    tokens: Count


@_stored
class StoredEvaluation(TypedDict):
    """``corpus/evaluation.json``, as far as verbs without the trainer read it."""

    fingerprint: str
    sets: dict[str, EvaluationEntry]


@_stored
class StoredOverlap(TypedDict):
    """``heldout_overlap.json``: share of the held-out passages of a domain that a source repeats."""

    overlap: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]


@_stored
class CopiedPair(TypedDict):
    """Near copies in the train text of a source of the held-out documents of a domain, by level of similarity."""

    source: str
    domain: str
    set_aside: Count
    train_documents: list[Count]
    heldout_documents: list[Count]


@_stored
class StoredCopies(TypedDict):
    """``near_copies.json``: train documents that resemble held-out ones, and which ``share`` of a source was read."""

    levels: list[float]
    similarity: float
    heldout_documents: dict[str, Count]
    compared: dict[str, Count]
    share: dict[str, Annotated[float, Field(ge=0, le=1)]]
    pairs: list[CopiedPair]


@_stored
class StoredSettings(TypedDict):
    """``settings.json`` beside the shards: what they were prepared from."""

    sources: dict[str, dict[str, Any]]
    text: NotRequired[dict[str, dict[str, Any]]]
    decontamination: NotRequired[dict[str, Any]]


@_stored
class StoredArithmetic(TypedDict):
    """``arithmetic.json``."""

    precision: str
    compiled: bool


@_stored
class HeldEntry(TypedDict):
    """What was read of one checkpoint's folder, and of which state of it."""

    moment: str
    told: dict[str, Any]
    start: dict[str, Any]
    shape: dict[str, Any]
    lr_source: str
    average: NotRequired[dict[str, Any]]


StoredHeld = dict[str, HeldEntry]
"""``checkpoints.json``."""


@_stored
class StoredCalibration(TypedDict):
    """``calibration.json``: tokens per second by shape and number of slots."""

    machine: dict[str, Any]
    speeds: dict[str, dict[Annotated[str, Field(pattern=r"^[1-9][0-9]*$")], Annotated[float, Field(gt=0)]]]
    matmul_flops: NotRequired[Annotated[float, Field(gt=0)]]


@_stored
class Planned(TypedDict):
    """A planned run."""

    role: str
    run_id: str
    config: dict[str, Any]


@_stored
class StoredPlan(TypedDict):
    """``plan.json`` and ``proposals.json``."""

    inputs: NotRequired[str]
    runs: list[Planned]


@_stored
class StoredPoint(TypedDict):
    """Loss of a domain at an evaluation on the way."""

    tokens: Count
    domain: str
    loss: float


@_stored
class Begun(TypedDict):
    """A run that had not ended, and its curve so far."""

    role: str
    config: dict[str, Any]
    curve: list[StoredPoint]


@_stored
class StoredBegun(TypedDict):
    """``laws/on_the_way.json``."""

    runs: list[Begun]


@_stored
class ErrorRow(TypedDict):
    """Held-out error of a law; a number that was not finite is null."""

    held_out: str
    law: str
    num_runs: Count
    mae: float | None
    worst: float | None
    bias: float | None
    spearman: float | None


@_stored
class HeldOutRow(TypedDict):
    """Prediction of a held-out run."""

    run_id: str
    domain: str
    predicted: float
    lower: float
    upper: float
    observed: float


@_stored
class GuardRow(TypedDict):
    """Change of a domain against the matched control."""

    run_id: str
    domain: str
    predicted: float
    observed: float


@_stored
class ExcludedRow(TypedDict):
    """A run that the fit could not use."""

    run_id: str
    reason: str


@_stored
class StoredReach(TypedDict):
    """What rolling origins say of one axis; a number that is not known is null."""

    axis: Literal["size", "tokens", "compute"]
    low: float
    high: float
    steps: Count
    origins: Count
    factor: float
    error: float | None
    bias: float | None
    rate: float | None
    gap: float
    noise: float


@_stored
class StoredMixtureReach(TypedDict):
    """Held-out error by the distance of the mixture."""

    farthest: float
    near: float | None
    far: float | None
    num_runs: Count


@_stored
class OriginRow(TypedDict):
    """Error of the decay law or of copying the nearest run at one rolling origin."""

    law: str
    axis: str
    last: float
    reached: float
    factor: float
    num_runs: Count
    mae: float
    bias: float


@_stored
class StoredTrust(TypedDict):
    """How far a fit is to be believed."""

    reaches: list[StoredReach]
    mixture: StoredMixtureReach
    errors: list[OriginRow]


@_stored
class StoredFit(TypedDict):
    """``laws/fit.json``."""

    format: Count
    inputs: str
    member: str
    errors: list[ErrorRow]
    held_out: list[HeldOutRow]
    guard_changes: list[GuardRow]
    excluded: list[ExcludedRow]
    trust: StoredTrust
    notes: list[str]


@_stored
class Interval(TypedDict):
    """A prediction, nats per token."""

    mean: float
    lower: float
    upper: float


@_stored
class Entry(TypedDict):
    """What was predicted of one confirming run."""

    candidate: Literal["recommended", "control", "token_proportional", "best_of_sweep", "one_mixture"]
    scale: Literal["proxy", "target"]
    run_id: str
    config: dict[str, Any]
    objective: Interval
    predicted: dict[str, Interval]


@_stored
class StoredConfirmation(TypedDict):
    """All that was predicted for one recipe."""

    key: NotRequired[str]
    created: str
    entries: list[Entry]


@_stored
class StoredConfirmations(TypedDict):
    """``confirm.json``; an earlier version wrote a single confirmation without this list around it."""

    confirmations: NotRequired[list[StoredConfirmation]]


@_stored
class ExportedRun(TypedDict):
    """A run that was written for an external trainer."""

    target: str
    last_step: Count
    last_sample: Count


StoredExportedRuns = dict[str, ExportedRun]
"""``exported_runs.json``, by run."""


@_stored
class StoredResult(TypedDict):
    """``launch/result.json``, as far as status and report read it."""

    recipe_sha256: NotRequired[str]
    losses: dict[str, float]
    steps: Count
    tokens: Count


def stored_form(hint: Any) -> Any:
    """The JSON type of a value type: data classes become objects, mixtures shares by name, tables lists of rows.

    Args:
        hint: a data class, or the annotation of one of its fields.
    """
    if hint is Mixture:
        return dict[str, Annotated[float, Field(ge=0, le=1)]]
    if hint is pd.DataFrame:
        return list[Row]
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        # a field with a default may be newer than the file
        keys = {
            each.name: stored_form(hints[each.name])
            if each.default is MISSING and each.default_factory is MISSING
            else NotRequired[stored_form(hints[each.name])]
            for each in fields(hint)
        }
        return _stored(TypedDict(hint.__name__, keys))  # type: ignore[operator]
    # built from values, not from names: a type checker cannot follow
    inner: Any = tuple(each if each is Ellipsis else stored_form(each) for each in get_args(hint))
    origin: Any = get_origin(hint)
    if origin is Mapping:
        return dict.__class_getitem__(inner)
    if origin is Sequence or (origin is tuple and Ellipsis in inner):
        return list.__class_getitem__(inner[0])
    if origin is tuple:
        return tuple.__class_getitem__(inner)
    if origin in (Union, types.UnionType):
        return Union.__getitem__(inner)
    return hint
