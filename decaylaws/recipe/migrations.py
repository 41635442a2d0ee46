"""Reading recipes of older schemas: one step per version, from plain values to plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from decaylaws.errors import InvalidValueError

SCHEMA = "decaylaws.recipe/2"


def _from_0(data: dict[str, Any]) -> dict[str, Any]:
    """The draft form: one LR segment per stage, one batch size and sequence length, caps by stage."""
    try:
        batch_tokens, seq_len = data["global_batch_tokens"], data["seq_len"]
        stages = [_stage_from_0(stage, batch_tokens, seq_len) for stage in data["stages"]]
        caps = {name: cap for stage in data["stages"] for name, cap in stage.get("max_epochs", {}).items()}
        sources = {
            name: {"available_tokens": int(float(source["tokens"])), "fingerprint": source.get("fingerprint")}
            | ({"max_epochs": caps[name]} if name in caps else {})
            for name, source in data["sources"].items()
        }
        handover = dict(data["handover"])
        handover["optimizer_state"] = "load" if handover.pop("optimizer_state", True) else "fresh"
        handover.pop("dataloader_state", None)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InvalidValueError(
            "recipe", "decaylaws.recipe/0", f"is not a complete draft recipe ({error!r})"
        ) from error
    return {"schema": "decaylaws.recipe/1", "handover": handover, "stages": stages, "sources": sources}


def _stage_from_0(stage: dict[str, Any], batch_tokens: int, seq_len: int) -> dict[str, Any]:
    lr = stage["lr"]
    segment = {
        "tokens": stage["tokens"],
        "start_lr": lr["start"],
        "end_lr": lr["end"],
        "shape": lr.get("shape", "linear"),
    }
    return {
        "name": stage["name"],
        "lr": [segment],
        "mixture": stage["mixture"],
        "batch_tokens": batch_tokens,
        "seq_len": seq_len,
    }


# rope.kind of format 1 -> rope.method; a base of its own was all that "default" could say
_ROPE_METHODS = {"default": "abf", "linear": "position_interpolation", "yarn": "yarn"}


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 named rotary embeddings after ``transformers``' types, which do not tell the methods apart."""
    stages = data.get("stages")
    if isinstance(stages, list | tuple):
        stages = [_stage_from_1(number, stage) for number, stage in enumerate(stages)]
    return data | {"schema": "decaylaws.recipe/2"} | ({} if stages is None else {"stages": stages})


def _stage_from_1(number: int, stage: Any) -> Any:
    rope = stage.get("rope") if isinstance(stage, dict) else None
    if not isinstance(rope, dict):
        return stage
    kind = rope.get("kind", "default")
    if kind not in _ROPE_METHODS:
        raise InvalidValueError(
            f"stages.{number}.rope.kind",
            kind,
            f"must be one of {', '.join(_ROPE_METHODS)}, the kinds that this version knows",
            "Write rope.method: ntk or yarn in a recipe of the current format.",
        )
    rest = {name: value for name, value in rope.items() if name != "kind"}
    return stage | {"rope": {"method": _ROPE_METHODS[kind], **rest}}


_MIGRATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "decaylaws.recipe/1": _from_1,
    "decaylaws.recipe/0": _from_0,
}


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` in the current schema.

    Raises:
        InvalidValueError: the schema is unknown, most often because a newer decaylaws wrote the file.
    """
    if not isinstance(data, dict):
        raise InvalidValueError("recipe", type(data).__name__, "must be a mapping of fields")
    schema = data.get("schema")
    while schema != SCHEMA:
        if not isinstance(schema, str) or schema not in _MIGRATIONS:
            known = ", ".join([SCHEMA, *_MIGRATIONS])
            raise InvalidValueError("schema", schema, f"must be one of {known}", "Is decaylaws up to date?")
        data = _MIGRATIONS[schema](data)
        schema = data["schema"]
    return data
