"""Does the hand-over hold? A recipe against the checkpoint that it is to start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from decaylaws.recipe.checkpoints import CheckpointFacts, read_facts
from decaylaws.recipe.corpus_facts import PreparedCorpus
from decaylaws.recipe.families import why_not_trainable
from decaylaws.recipe.model import Recipe

LR_TOLERANCE = 1e-3
TOKENS_TOLERANCE = 1e-3
PARAMS_TOLERANCE = 0.2
"""A model is counted in several ways (biases, norms, a second head), and another size is mostly twice as large."""

Verdict = Literal["ok", "unknown", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was compared.
        verdict: ``unknown`` where one side does not say.
        message: both values, and what to do if they disagree.
    """

    check: str
    verdict: Verdict
    message: str


def examine(recipe: Recipe, checkpoint: str | Path, *, corpus: PreparedCorpus | None = None) -> list[Finding]:
    """Compare a recipe with a checkpoint.

    Args:
        recipe: the recipe.
        checkpoint: file or folder, see :mod:`decaylaws.recipe.checkpoints`.
        corpus: the corpus as it is now, to find sources and tokenizers that changed, and what is left of a source.

    Raises:
        DataError: the checkpoint cannot be read.
    """
    facts = read_facts(checkpoint)
    return [
        _lr(recipe, facts),
        _optimizer(recipe, facts),
        _tokens(recipe, facts),
        *_model(recipe, facts),
        _vocabulary(recipe, facts),
        *_tokenizers(recipe, facts, corpus),
        *_epochs(recipe, corpus),
        *([] if corpus is None else _sources(recipe, corpus)),
    ]


def holds(findings: list[Finding]) -> bool:
    """Whether no check found something wrong."""
    return all(finding.verdict != "wrong" for finding in findings)


def _lr(recipe: Recipe, facts: CheckpointFacts) -> Finding:
    first = recipe.stages[0].lr.start_lr
    if not facts.lrs:
        return Finding(
            "lr", "unknown", f"The recipe starts at {first:.6g}; the checkpoint does not say its LR."
        )
    if facts.lr_step is not None:
        return Finding(
            "lr",
            "unknown",
            f"The recipe starts at {first:.6g}; the checkpoint's log ends with {facts.lrs[0]:.6g} at step "
            f"{facts.lr_step:,}, and the checkpoint was written at another step.",
        )
    said = " and ".join(f"{lr:.6g}" for lr in facts.lrs)
    groups = f" (LRs of its {len(facts.lrs)} groups of parameters)" if len(facts.lrs) > 1 else ""
    if any(same_lr(first, lr) for lr in facts.lrs):
        return Finding(
            "lr", "ok", f"The recipe starts at {first:.6g}, and the checkpoint ends at {said}{groups}."
        )
    jump = f"The checkpoint ends at {said}{groups}, the recipe starts at {first:.6g}"
    if recipe.handover.lr_jump and any(same_lr(recipe.handover.lr, lr) for lr in facts.lrs):
        return Finding("lr", "ok", f"{jump}, as handover.lr_jump says.")
    return Finding("lr", "wrong", f"{jump}. Start the first stage at the checkpoint's LR.")


def same_lr(one: float, other: float) -> bool:
    """Whether two LRs are one, as far as logs and configurations round them."""
    return abs(one - other) <= LR_TOLERANCE * max(one, other)


def same_tokens(one: int, other: int) -> bool:
    """Whether two counts of tokens are one, as far as a last partial step and rounding go."""
    return abs(one - other) <= TOKENS_TOLERANCE * max(one, other)


def _model(recipe: Recipe, facts: CheckpointFacts) -> Iterator[Finding]:
    """Whether it is the model that the recipe was made for, and one that can be trained."""
    wanted = recipe.handover.run_id
    if wanted is not None and facts.run_id is not None:
        if wanted == facts.run_id:
            yield Finding("run", "ok", f"Run {wanted} wrote the checkpoint.")
        else:
            yield Finding(
                "run",
                "wrong",
                f"The recipe starts from run {wanted}, and run {facts.run_id} wrote the checkpoint. Give that run's "
                "checkpoint, or correct handover.run_id.",
            )
    params, found = recipe.provenance.non_embedding_params, facts.non_embedding_params
    if params is not None and found is not None:
        sizes = f"The checkpoint has {found:,} parameters beside its embedding, the recipe was made for {params:,}."
        if abs(params - found) <= PARAMS_TOLERANCE * max(params, found):
            yield Finding("size", "ok", sizes)
        else:
            yield Finding("size", "wrong", f"{sizes} Is it another model?")
    reason = None if facts.config is None else why_not_trainable(facts.config)
    if reason is not None:
        yield Finding("model", "wrong", f"'decaylaws launch' cannot train it: {reason}")


def _optimizer(recipe: Recipe, facts: CheckpointFacts) -> Finding:
    if recipe.handover.optimizer_state == "fresh":
        return Finding("optimizer", "ok", "The recipe starts the optimiser afresh.")
    if facts.has_optimizer:
        return Finding("optimizer", "ok", "The checkpoint holds the optimiser's moments.")
    return Finding(
        "optimizer",
        "wrong",
        "The recipe takes the optimiser's moments over, and the checkpoint holds none. Find the full checkpoint "
        "or set handover.optimizer_state: fresh.",
    )


def _tokens(recipe: Recipe, facts: CheckpointFacts) -> Finding:
    wanted = recipe.handover.tokens
    step = "" if facts.step is None else f" at step {facts.step:,}"
    if facts.tokens is None:
        return Finding(
            "tokens", "unknown", f"The recipe expects {wanted:,}; the checkpoint{step} does not say."
        )
    if wanted == 0 and recipe.handover.checkpoint is not None:
        return Finding(
            "tokens",
            "unknown",
            f"The recipe does not say handover.tokens; the checkpoint{step} has seen {facts.tokens:,}.",
        )
    if same_tokens(facts.tokens, wanted):
        return Finding("tokens", "ok", f"The checkpoint{step} has seen {facts.tokens:,} tokens.")
    return Finding(
        "tokens",
        "wrong",
        f"The recipe expects {wanted:,} tokens, the checkpoint{step} has seen {facts.tokens:,}. Is it another one?",
    )


def _vocabulary(recipe: Recipe, facts: CheckpointFacts) -> Finding:
    wanted = recipe.provenance.vocab_size
    if wanted is None or facts.vocab_size is None:
        return Finding("vocabulary", "unknown", "The recipe or the checkpoint does not say its vocabulary.")
    if facts.vocab_size >= wanted:
        return Finding(
            "vocabulary", "ok", f"{wanted:,} tokens fit into an embedding of {facts.vocab_size:,} rows."
        )
    return Finding(
        "vocabulary",
        "wrong",
        f"The data were tokenised with {wanted:,} entries, the checkpoint's embedding has {facts.vocab_size:,}. "
        "Tokenise them with the checkpoint's tokenizer.",
    )


def _tokenizers(recipe: Recipe, facts: CheckpointFacts, corpus: PreparedCorpus | None) -> Iterator[Finding]:
    wanted = recipe.provenance.tokenizer_fingerprint
    if wanted is None:
        return
    found = {"checkpoint": facts.tokenizer_fingerprint, "corpus": corpus and corpus.tokenizer_fingerprint}
    for owner, fingerprint in found.items():
        if fingerprint == wanted:
            yield Finding("tokenizer", "ok", f"The {owner} has the recipe's tokenizer.")
        elif fingerprint is not None:
            yield Finding(
                "tokenizer",
                "wrong",
                f"The tokenizer of the {owner} gives tokens other ids ({fingerprint}) than that of the recipe "
                f"({wanted}). Tokenise the data with the checkpoint's tokenizer and recommend again.",
            )


def _epochs(recipe: Recipe, corpus: PreparedCorpus | None) -> Iterator[Finding]:
    """Passes over each source; a recipe beyond its own caps cannot be made, but the corpus may have shrunk."""
    asked = recipe.source_tokens()
    for name, source in recipe.sources.items():
        left = source.available_tokens
        if corpus is not None:
            now = corpus.available_tokens.get(name, 0)
            # the recipe may use a part of a source only: its pool matches the target's repetition
            left = now if left is None else min(left, now)
        if source.max_epochs is None or left is None or asked[name] == 0:
            continue
        if asked[name] <= source.max_epochs * left * (1 + TOKENS_TOLERANCE):
            yield Finding(
                f"epochs.{name}", "ok", f"{asked[name] / left:.3g} passes of at most {source.max_epochs:g}."
            )
            continue
        yield Finding(
            f"epochs.{name}",
            "wrong",
            f"The stages take {asked[name]:,.0f} tokens, more than {source.max_epochs:g} passes over the {left:,} "
            "that there are now. Restore the source or recommend again.",
        )


def _sources(recipe: Recipe, corpus: PreparedCorpus) -> Iterator[Finding]:
    for name, source in recipe.sources.items():
        if source.fingerprint is None:
            continue
        now = corpus.source_fingerprints.get(name, "missing in the corpus")
        if source.fingerprint == now:
            yield Finding(f"source.{name}", "ok", "Its content is that of the recipe.")
        else:
            yield Finding(
                f"source.{name}",
                "wrong",
                f"Its content is {now}, the recipe was made for {source.fingerprint}. Restore it or recommend again.",
            )
