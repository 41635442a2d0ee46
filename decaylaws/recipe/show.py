"""A recipe for human eyes: a page of text, and the difference of two recipes field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from decaylaws.recipe.model import Recipe, Stage


class Change(NamedTuple):
    """One field that differs; ``None`` stands for a field that one side lacks."""

    path: str
    before: object
    after: object


def show_recipe(recipe: Recipe) -> str:
    """The recipe as a page of plain text."""
    lines = [f"{recipe.name}: {_count(recipe.tokens)} tokens in {recipe.num_steps:,} steps", ""]
    lines += _handover_lines(recipe)
    for stage in recipe.stages:
        lines += ["", *_stage_lines(recipe, stage)]
    lines += _prediction_lines(recipe)
    lines += _provenance_lines(recipe)
    return "\n".join(lines) + "\n"


def _handover_lines(recipe: Recipe) -> list[str]:
    handover = recipe.handover
    start = handover.checkpoint or handover.run_id
    if start is None:
        return ["Starts from random weights"]
    source = f" ({handover.lr_source})" if handover.lr_source else ""
    return [
        f"Starts from    {start} at {_count(handover.tokens)} tokens",
        f"Hand-over LR   {handover.lr:.6g}{source}",
        f"Optimiser      AdamW, state: {handover.optimizer_state}",
    ]


def _stage_lines(recipe: Recipe, stage: Stage) -> list[str]:
    lines = [
        f"Stage '{stage.name}': {_count(stage.tokens)} tokens, {stage.num_steps:,} steps of "
        f"{stage.batch_tokens:,} tokens in sequences of {stage.seq_len:,}"
    ]
    for segment in stage.lr.to_dict()["segments"]:
        path = f"{segment['start_lr']:.6g} -> {segment['end_lr']:.6g} ({segment['shape']})"
        lines.append(f"  LR  {path} over {_count(segment['tokens'])} tokens")
    if stage.rope is not None:
        lines.append(f"  RoPE  {stage.rope.describe()}")
    width = max(len(name) for name in stage.mixture.names)
    for name in sorted(stage.mixture.names, key=stage.mixture.share, reverse=True):
        share = stage.mixture.share(name)
        bar = "#" * round(30 * share)
        lines.append(f"  {name:<{width}}  {100 * share:6.2f} %  {bar:<30}  {_epochs(recipe, name)}".rstrip())
    return lines


def _epochs(recipe: Recipe, name: str) -> str:
    source = recipe.sources[name]
    if source.epochs is None:
        return ""
    cap = f" of at most {source.max_epochs:g}" if source.max_epochs is not None else ""
    return f"{source.epochs:.3g} epochs{cap}"


def _prediction_lines(recipe: Recipe) -> list[str]:
    if not recipe.predictions:
        return []
    width = max(len(name) for name in recipe.predictions)
    lines = ["", f"Predicted loss, nats/token, with {100 * recipe.interval:g} % intervals"]
    for name, value in recipe.predictions.items():
        control = f"  control {value.control:.4f}" if value.control is not None else ""
        lines.append(
            f"  {name:<{width}}  {value.mean:.4f}  [{value.lower:.4f}, {value.upper:.4f}]"
            f"{control}{_guard(recipe, name)}"
        )
    return lines


def _guard(recipe: Recipe, name: str) -> str:
    guard = recipe.guards.get(name)
    if guard is None:
        return ""
    bound = "" if guard.upper is None else f" (at most {guard.upper:+.4f})"
    return f"  guard {guard.predicted:+.4f}{bound} of {guard.limit:+.4f}: {guard.verdict}"


def _provenance_lines(recipe: Recipe) -> list[str]:
    provenance = recipe.provenance
    rows = {
        "Study": provenance.study,
        "Created": provenance.created,
        "decaylaws": provenance.decaylaws_version,
        "Data": provenance.data_fingerprint,
        "Laws": ", ".join(law.name for law in provenance.laws) or None,
        "Evidence": f"{len(provenance.evidence.run_ids)} runs" if provenance.evidence.run_ids else None,
    }
    lines = [f"{label:<13}  {value}" for label, value in rows.items() if value is not None]
    return ["", *lines, *provenance.evidence.notes] if lines else []


def _count(tokens: float) -> str:
    """``1234567`` as ``1.235M``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:g}"


def diff_recipes(before: Recipe, after: Recipe) -> list[Change]:
    """Fields in which two recipes differ, by dotted path, in the order of the file."""
    old, new = dict(_flatten(before.to_dict())), dict(_flatten(after.to_dict()))
    paths = [*old, *(path for path in new if path not in old)]
    return [Change(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)  # type: ignore[assignment]
    else:
        yield path, value
        return
    for key, item in pairs:
        yield from _flatten(item, f"{path}.{key}" if path else str(key))
