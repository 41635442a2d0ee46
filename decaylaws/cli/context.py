"""``decaylaws context``: library, rope, extend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import ValidationError

from decaylaws.cli.answers import VerbApp
from decaylaws.cli.console import text_columns
from decaylaws.context import (
    PUBLISHED_EXTENSIONS,
    ExtensionStage,
    extend_tail,
    rotary_frequencies,
    with_long_share,
)
from decaylaws.errors import InvalidValueError
from decaylaws.recipe import Recipe, RopeSettings
from decaylaws.recipe.rope import FACTOR_METHODS
from decaylaws.schedules.quantities import parse_tokens, round_tokens

app = VerbApp(help="Extend the sequence length in the decay.", no_args_is_help=True)

Method = Annotated[str, typer.Option(help="none, abf, position_interpolation, ntk or yarn")]
Theta = Annotated[
    float, typer.Option(help="base of the checkpoint's rotary embedding (rope_theta); for abf the new base")
]
OriginalLength = Annotated[int | None, typer.Option(help="sequence length of the checkpoint", min=1)]
UNKNOWN = "?"


@app.command()
def library() -> dict[str, object]:
    """List how published models were extended, with sources. A ? was not stated or not verified."""
    for entry in PUBLISHED_EXTENSIONS.values():
        typer.echo(f"{entry.name}  {entry.model}")
        if entry.stages:
            typer.echo(text_columns([_stage_row(stage) for stage in entry.stages]))
        typer.echo(f"  {entry.source}{f'; {entry.remark}' if entry.remark else ''}\n")
    return {"extensions": list(PUBLISHED_EXTENSIONS.values())}


@app.command()
def rope(
    seq_len: Annotated[int, typer.Option(help="sequence length to extend to", min=1)],
    original_seq_len: Annotated[int, typer.Option(help="sequence length of the checkpoint", min=1)],
    head_dim: Annotated[int, typer.Option(help="dimensions of an attention head")] = 128,
    theta: Annotated[float, typer.Option(help="base of the checkpoint's rotary embedding")] = 10_000.0,
    abf_theta: Annotated[float, typer.Option(help="the larger base of abf")] = 1_000_000.0,
) -> dict[str, object]:
    """Compare the methods of extending a rotary embedding."""
    variants = [
        _rope("none", theta, seq_len, original_seq_len),
        _rope("abf", abf_theta, seq_len, original_seq_len),
        *(_rope(method, theta, seq_len, original_seq_len) for method in FACTOR_METHODS),
    ]
    trained = rotary_frequencies(variants[0], head_dim).inverse * original_seq_len
    rows = [_variant_row(variant, head_dim, seq_len, trained) for variant in variants]
    typer.echo(text_columns(rows))
    typer.echo(
        "slowest turn: positions of a full turn of the slowest pair; unseen: pairs that reach angles which the "
        "checkpoint has not been trained on"
    )
    return {"variants": variants}


@app.command()
def extend(
    path: Annotated[Path, typer.Argument(help="recipe.yaml or recipe.json")],
    tokens: Annotated[str, typer.Option(help="length of the longer stage, such as 50B")],
    seq_len: Annotated[int, typer.Option(help="sequence length of the longer stage", min=1)],
    out: Annotated[Path, typer.Option(help="file of the new recipe")],
    theta: Theta,
    method: Method = "yarn",
    original_seq_len: OriginalLength = None,
    long_source: Annotated[
        list[str] | None, typer.Option(help="a source of long documents; can be repeated")
    ] = None,
    long_share: Annotated[float, typer.Option(help="share of the long sources in the longer stage")] = 0.3,
) -> dict[str, object]:
    """Write a recipe whose last tokens have a longer sequence length. The LR does not change."""
    recipe = Recipe.load(path)
    last = recipe.stages[-1]
    longer = extend_tail(
        recipe,
        tokens=parse_tokens(tokens, "tokens"),
        seq_len=seq_len,
        rope=_rope(method, theta, seq_len, original_seq_len or last.seq_len),
        mixture=with_long_share(last.mixture, long_source, long_share) if long_source else None,
    )
    typer.echo(f"written to {longer.save(out)}")
    return {"file": out, "recipe": longer}


def _rope(method: str, theta: float, seq_len: int, original_seq_len: int) -> RopeSettings:
    """The settings that take a checkpoint of ``original_seq_len`` to ``seq_len``."""
    values: dict[str, object] = {"method": method, "theta": theta}
    if method in FACTOR_METHODS:
        if seq_len <= original_seq_len:
            raise InvalidValueError(
                "seq-len", seq_len, f"must be longer than the checkpoint's {original_seq_len}"
            )
        values |= {"factor": seq_len / original_seq_len, "original_seq_len": original_seq_len}
    try:
        return RopeSettings.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "rope"
        raise InvalidValueError(field, problem["input"], f"is not valid: {problem['msg']}") from None


def _stage_row(stage: ExtensionStage) -> dict[str, str]:
    return {
        "from": _or_unknown(stage.from_seq_len, ","),
        "to": f"{stage.to_seq_len:,}",
        "tokens": UNKNOWN if stage.tokens is None else round_tokens(int(stage.tokens)),
        "method": stage.method or UNKNOWN,
        "base": UNKNOWN if stage.theta is None else f"{stage.theta:,.0f}",
        "factor": "" if stage.method not in ("yarn", None) else _or_unknown(stage.factor, "g"),
        "long share": _or_unknown(stage.long_share, ".0%"),
    }


def _or_unknown(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def _variant_row(
    rope: RopeSettings, head_dim: int, seq_len: int, trained: NDArray[np.float64]
) -> dict[str, str]:
    """One method; ``trained`` holds the largest angle of each pair that the checkpoint knows [head_dim / 2]."""
    found = rotary_frequencies(rope, head_dim)
    # a pair that has made a full turn has seen every angle
    reached = np.minimum(found.inverse * seq_len, 2 * np.pi)
    unseen = int((reached > np.minimum(trained, 2 * np.pi) * (1 + 1e-9)).sum())
    return {
        "method": rope.method,
        "base": f"{rope.base(head_dim):,.0f}",
        "slowest turn": f"{found.wavelengths[-1]:,.0f}",
        "attention factor": f"{found.attention_factor:.4f}",
        "unseen": f"{unseen} of {head_dim // 2}",
    }
