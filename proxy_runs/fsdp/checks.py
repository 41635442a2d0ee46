"""What a trainer refuses before its first step: sequences, rotary embeddings and vocabularies that do not fit."""

from __future__ import annotations

from transformers import PreTrainedModel

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.recipe import Recipe
from proxy_runs.data.shards import TokenStore
from proxy_runs.fsdp.plan import TrainPlan
from proxy_runs.fsdp.rope import check_rope


def check_lengths(plan: TrainPlan, max_positions: int | None) -> None:
    """Refuse sequences longer than the model's positions reach.

    Args:
        plan: of the run.
        max_positions: the model's limit; ``None`` for positions that are not embedded (ALiBi, Mamba).

    Raises:
        InvalidValueError: as said.
    """
    for number, stage in enumerate(plan.recipe.stages):
        rope = plan.rope(number)
        longest = max_positions if rope is None else rope.max_seq_len
        if longest is not None and stage.seq_len > longest:
            made_for = "max_position_embeddings" if rope is None else "rope"
            raise InvalidValueError(
                f"stages.{number}.seq_len",
                stage.seq_len,
                f"must not exceed {longest:g}, the model's {made_for}",
                f"Give stages.{number} the rope settings that extend it (method none to extrapolate).",
            )


def check_ropes(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse rotary embeddings that cannot be set; only ABF changes the base that the checkpoint was trained with."""
    base = None
    for number, stage in enumerate(recipe.stages):
        if stage.rope is None:
            continue
        check_rope(model, stage.rope)
        known = base or model.config.get_text_config().rope_parameters["rope_theta"]
        if stage.rope.method != "abf" and stage.rope.theta != known:
            raise InvalidValueError(
                f"stages.{number}.rope.theta",
                stage.rope.theta,
                f"must be the base that the model was trained with, {known:,.10g}",
                "Only method abf changes it.",
            )
        base = stage.rope.theta


def check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    """Refuse a corpus with ids that the model's embedding does not have.

    Raises:
        DataError: as said.
    """
    if store.vocab_size > vocab_size:
        raise DataError(
            f"The corpus {store.directory} has {store.vocab_size} kinds of tokens, the checkpoint's model only "
            f"{vocab_size}. Prepare the corpus with the checkpoint's own tokenizer (tokenizer.path)."
        )
