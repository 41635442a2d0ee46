"""What stands in the JSON files of a study, as types: a verb that reads one gets these, or one error with its name.

Keys that are not listed are kept; rows of tables hold text, numbers, truth values or nothing. Those of the corpus
are in ``decaylaws.study.stored_corpus``.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

import pandas as pd
from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict

from decaylaws.mixtures import Mixture
from decaylaws.study.stored_corpus import Count, more_allowed

Row = dict[str, str | bool | int | FiniteFloat | None]


@more_allowed
class StoredArithmetic(TypedDict):
    """``arithmetic.json``."""

    precision: str
    compiled: bool


@more_allowed
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


@more_allowed
class StoredCalibration(TypedDict):
    """``calibration.json``: tokens per second by shape and number of slots."""

    machine: dict[str, Any]
    speeds: dict[str, dict[Annotated[str, Field(pattern=r"^[1-9][0-9]*$")], Annotated[float, Field(gt=0)]]]
    matmul_flops: NotRequired[Annotated[float, Field(gt=0)]]


@more_allowed
class Planned(TypedDict):
    """A planned run."""

    role: str
    run_id: str
    config: dict[str, Any]


@more_allowed
class StoredPlan(TypedDict):
    """``plan.json`` and ``proposals.json``."""

    inputs: NotRequired[str]
    runs: list[Planned]


@more_allowed
class StoredPoint(TypedDict):
    """Loss of a domain at an evaluation on the way."""

    tokens: Count
    domain: str
    loss: float


@more_allowed
class Begun(TypedDict):
    """A run that had not ended, and its curve so far."""

    role: str
    config: dict[str, Any]
    curve: list[StoredPoint]


@more_allowed
class StoredBegun(TypedDict):
    """``laws/on_the_way.json``."""

    runs: list[Begun]


@more_allowed
class ErrorRow(TypedDict):
    """Held-out error of a law; a number that was not finite is null."""

    held_out: str
    law: str
    num_runs: Count
    mae: float | None
    worst: float | None
    bias: float | None
    spearman: float | None


@more_allowed
class HeldOutRow(TypedDict):
    """Prediction of a held-out run."""

    run_id: str
    domain: str
    predicted: float
    lower: float
    upper: float
    observed: float


@more_allowed
class GuardRow(TypedDict):
    """Change of a domain against the matched control."""

    run_id: str
    domain: str
    predicted: float
    observed: float


@more_allowed
class ExcludedRow(TypedDict):
    """A run that the fit could not use."""

    run_id: str
    reason: str


@more_allowed
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
    fits: NotRequired[Count]
    slope: NotRequired[float]


@more_allowed
class StoredMixtureReach(TypedDict):
    """Held-out error by the distance of the mixture."""

    farthest: float
    near: float | None
    far: float | None
    num_runs: Count


@more_allowed
class StoredHeldOutShape(TypedDict):
    """Errors on the decays of one shape, predicted from the others."""

    shape: str
    num_runs: Count
    mae: float
    bias: float
    share: float
    share_sd: float


@more_allowed
class StoredShapeReach(TypedDict):
    """What is known of shapes that no run has."""

    seen: list[str]
    held_out: list[StoredHeldOutShape]


@more_allowed
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


@more_allowed
class StoredTrust(TypedDict):
    """How far a fit is to be believed."""

    reaches: list[StoredReach]
    mixture: StoredMixtureReach
    shapes: StoredShapeReach
    errors: list[OriginRow]


@more_allowed
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


@more_allowed
class Interval(TypedDict):
    """A prediction, nats per token."""

    mean: float
    lower: float
    upper: float


@more_allowed
class Entry(TypedDict):
    """What was predicted of one confirming run."""

    candidate: Literal["recommended", "control", "token_proportional", "best_of_sweep", "one_mixture"]
    scale: Literal["proxy", "target"]
    run_id: str
    config: dict[str, Any]
    objective: Interval
    predicted: dict[str, Interval]


@more_allowed
class StoredConfirmation(TypedDict):
    """All that was predicted for one recipe."""

    key: NotRequired[str]
    created: str
    entries: list[Entry]


@more_allowed
class StoredConfirmations(TypedDict):
    """``confirm.json``; an earlier version wrote a single confirmation without this list around it."""

    confirmations: NotRequired[list[StoredConfirmation]]


@more_allowed
class ExportedRun(TypedDict):
    """A run that was written for an external trainer."""

    target: str
    last_step: Count
    last_sample: Count


StoredExportedRuns = dict[str, ExportedRun]
"""``exported_runs.json``, by run."""


@more_allowed
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
        return more_allowed(TypedDict(hint.__name__, keys))  # type: ignore[operator]
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
