"""Reading recipes of older schemas: one step per version, from plain values to plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from decaylaws.errors import InvalidValueError

SCHEMA = "decaylaws.recipe/1"


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
    return {"schema": SCHEMA, "handover": handover, "stages": stages, "sources": sources}


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


_MIGRATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"decaylaws.recipe/0": _from_0}


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` in the current schema.

    Raises:
        InvalidValueError: the schema is unknown, most often because a newer decaylaws wrote the file.
    """
    schema = data.get("schema")
    while schema != SCHEMA:
        if not isinstance(schema, str) or schema not in _MIGRATIONS:
            known = ", ".join([SCHEMA, *_MIGRATIONS])
            raise InvalidValueError("schema", schema, f"must be one of {known}", "Is decaylaws up to date?")
        data = _MIGRATIONS[schema](data)
        schema = data["schema"]
    return data
