"""``CheckpointFacts``, and how junk in a checkpoint becomes "not said" instead of an error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.families import active_experts, num_experts

MAX_JSON_BYTES = 256 * 1024 * 1024
STEP_NAMES = ("step", "global_step", "iteration")
TOKEN_NAMES = ("tokens", "ntokens_seen", "global_train_tokens_seen", "num_input_tokens_seen")


@dataclass(frozen=True)
class CheckpointFacts:
    """What was found; ``None`` where the checkpoint does not say.

    Attributes:
        kind: format of the checkpoint.
        step: optimiser steps behind it.
        tokens: tokens behind it.
        samples: sequences behind it.
        lrs: LR of its last step, of each group of parameters that has one of its own.
        lr_step: the step of that LR, where it is an older one than the checkpoint's.
        has_optimizer: whether it holds the optimiser's moments.
        vocab_size: rows of the embedding, or the config's figure.
        tokenizer_fingerprint: of the tokenizer beside it, see
            :func:`decaylaws.recipe.corpus_facts.tokenizer_fingerprint`.
        run_id: the run that wrote it.
        non_embedding_params: parameters without embedding and output head; of experts, those that a token is routed to.
        config: of a Hugging Face model.
    """

    kind: str
    step: int | None = None
    tokens: int | None = None
    samples: int | None = None
    lrs: tuple[float, ...] = ()
    lr_step: int | None = None
    has_optimizer: bool | None = None
    vocab_size: int | None = None
    tokenizer_fingerprint: str | None = None
    run_id: str | None = None
    non_embedding_params: int | None = None
    config: Mapping[str, Any] | None = None

    @property
    def lr(self) -> float | None:
        """LR of the first group of parameters."""
        return self.lrs[0] if self.lrs else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it cannot be read, is too large, or holds no object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} has more than {MAX_JSON_BYTES:,} bytes.")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object.")
    return content


def whole(value: object) -> int | None:
    """``value`` if it is a count of 64 bits."""
    plain = isinstance(value, int) and not isinstance(value, bool)
    return value if plain and 0 <= value < 2**63 else None  # type: ignore[operator, return-value]


def number(value: object) -> float | None:
    """``value`` if it is a finite number, zero or above."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) and result >= 0 else None


def rates(values: Iterable[object]) -> tuple[float, ...]:
    """The different LRs among ``values``, in their order; what is none is left out."""
    return tuple(dict.fromkeys(rate for value in values if (rate := number(value)) is not None))


def first_whole(values: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """The first of ``names`` that ``values`` has as a count."""
    return next((count for name in names if (count := whole(values.get(name))) is not None), None)


_OTHER_TENSORS = ("exp_avg", "optim", "position", "wpe")
_EMBEDDINGS, _HEADS = ("embed", "wte"), ("lm_head", "param.head")
# masks and frequencies that older checkpoints hold beside their weights (GPT-2, GPT-NeoX)
BUFFERS = ("attention.bias", "attn.bias", "masked_bias", "inv_freq")


def embedding_rows(shapes: Mapping[str, Iterable[int]]) -> int | None:
    """Rows of the token embedding among tensors by name; moments and position embeddings are none."""
    for name, shape in shapes.items():
        sizes = list(shape)
        other = any(part in name for part in _OTHER_TENSORS)
        if any(part in name for part in _EMBEDDINGS) and not other and len(sizes) == 2:
            return whole(sizes[0])
    return None


def is_beside_embeddings(name: str) -> bool:
    """Whether a tensor of that name is neither embedding nor output head nor a buffer nor state of the optimiser."""
    left_out = _OTHER_TENSORS + _EMBEDDINGS + _HEADS
    return not any(part in name for part in left_out) and not name.endswith(BUFFERS)


def non_embedding_params(shapes: Mapping[str, Iterable[int]]) -> int | None:
    """Numbers in the tensors that are neither embedding nor output head nor state of the optimiser."""
    counts = [math.prod(shape) for name, shape in shapes.items() if is_beside_embeddings(name)]
    return whole(sum(counts)) or None


def idle_params(shapes: Mapping[str, Iterable[int]], config: Mapping[str, Any]) -> int:
    """Parameters of the experts that a token is not routed to. Experts that see every token are never idle."""
    experts, active = num_experts(config), active_experts(config)
    if experts < 2 or active is None:
        return 0
    routed = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if ".experts." in name and is_beside_embeddings(name)
    )
    return routed * (experts - active) // experts
