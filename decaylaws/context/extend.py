"""A recipe whose last stretch runs at a longer sequence length."""

from __future__ import annotations

from collections.abc import Collection

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.recipe import Recipe, RopeSettings


def with_long_share(mixture: Mixture, long_sources: Collection[str], share: float) -> Mixture:
    """``mixture`` with ``share`` of its tokens from ``long_sources``.

    The long sources keep their proportions among themselves, and so do the others. A long source is one whose
    documents are long: list a source twice in ``study.yaml``, with ``min_document_bytes`` and
    ``max_document_bytes``.

    Args:
        mixture: shares of all sources.
        long_sources: names of sources of long documents.
        share: total share that they get, between 0 and 1.

    Raises:
        InvalidValueError: a long source has no share, every source is long, or ``share`` is not within 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise InvalidValueError("long_share", share, "must lie between 0 and 1")
    missing = sorted(set(long_sources) - set(mixture.support))
    others = sorted(set(mixture.support) - set(long_sources))
    if missing or not long_sources or not others:
        raise InvalidValueError(
            "long_sources",
            sorted(long_sources),
            f"must be some of the sources with a share, not all: {', '.join(mixture.support)}",
        )
    held = sum(mixture.share(name) for name in long_sources)
    weights = {
        name: mixture.share(name) * (share / held if name in long_sources else (1.0 - share) / (1.0 - held))
        for name in mixture.support
    }
    return Mixture.normalised(weights)


def extend_tail(
    recipe: Recipe,
    *,
    tokens: int,
    seq_len: int,
    rope: RopeSettings,
    mixture: Mixture | None = None,
    batch_tokens: int | None = None,
    name: str = "long-context",
) -> Recipe:
    """``recipe`` with its last ``tokens`` run at ``seq_len``; the LR goes its way as if nothing had happened.

    Args:
        recipe: the recipe; its last stage is cut in two.
        tokens: of the longer stage, at most the last stage's.
        seq_len: its sequence length.
        rope: its rotary embedding.
        mixture: its mixture; the last stage's if ``None``.
        batch_tokens: its batch; the last stage's if ``None``, so that a batch holds fewer sequences.
        name: what to call the stage.

    Raises:
        InvalidValueError: the cut does not fall between two steps, or ``seq_len`` does not divide the batch.
        InfeasibleError: the last stage is shorter than ``tokens``.
    """
    last = recipe.stages[-1]
    before = last.tokens - tokens
    if before < 0:
        raise InfeasibleError(
            f"The last stage '{last.name}' lasts {last.tokens:,} tokens, so its last {tokens:,} cannot be extended."
        )
    if before % last.batch_tokens:
        nearest = last.tokens - before // last.batch_tokens * last.batch_tokens
        raise InvalidValueError(
            "tokens",
            tokens,
            f"must leave whole batches of {last.batch_tokens:,} tokens",
            f"Take {nearest:,}.",
        )
    longer = {
        "name": name,
        "lr": last.lr.after(before) if before else last.lr,
        "mixture": mixture or last.mixture,
        "batch_tokens": batch_tokens or last.batch_tokens,
        "seq_len": seq_len,
        "rope": rope,
    }
    stages = [*recipe.stages[:-1], last.model_copy(update=longer)]
    if before:
        stages.insert(-1, last.model_copy(update={"lr": last.lr.truncate(before)}))
    values = recipe.model_copy(update={"stages": tuple(stages)}).to_dict()
    for source in values["sources"].values():
        source.pop("epochs", None)  # filled in anew: another mixture makes other passes
    return Recipe.from_dict(values)
