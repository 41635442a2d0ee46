"""A Hugging Face causal LM folder, ready to be scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.digest import content_digest
from proxy_runs.evaluation.text import TextEncoder
from proxy_runs.weights.causal_lm import load_causal_lm, require_checkpoint

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


@dataclass(frozen=True)
class Checkpoint:
    """A causal LM with its tokenizer.

    Attributes:
        directory: its folder.
        model: on its device, in evaluation mode.
        encoder: text to tokens.
        context_tokens: longest input.
        device: where the model is.
    """

    directory: Path
    model: Any
    encoder: TextEncoder
    context_tokens: int
    device: torch.device

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        context_tokens: int | None = None,
    ) -> Checkpoint:
        """Load a folder that ``save_pretrained``, ``decaylaws launch`` or ``proxy_runs.weights.hf.save_hf`` wrote.

        Args:
            directory: the folder; nothing is downloaded, and no code of the folder is run.
            device: such as ``cpu`` or ``cuda``.
            dtype: ``float32`` or ``bfloat16``.
            context_tokens: longest input; the model's own limit without it.

        Raises:
            DataError: there is no model or no tokenizer, transformers cannot load one of them, or the weights are not
                those of the config.
            InvalidValueError: an unknown dtype, a device that is not there, or a context longer than the model's.
        """
        if dtype not in _DTYPES:
            raise InvalidValueError("dtype", dtype, f"must be one of {', '.join(_DTYPES)}")
        require_checkpoint(directory)
        _require_device(device)
        model = load_causal_lm(directory, dtype=_DTYPES[dtype])
        limit = _context_limit(model.config, context_tokens)
        encoder = TextEncoder.of(_tokenizer(directory), fallback_prefix=model.config.eos_token_id)
        return cls(directory, model.to(device).eval(), encoder, limit, torch.device(device))

    @cached_property
    def takes_logits_to_keep(self) -> bool:
        """Whether the model can leave out the logits that nobody asks for."""
        import inspect

        return "logits_to_keep" in inspect.signature(self.model.forward).parameters


def fingerprints(directory: Path) -> tuple[str, str]:
    """Hashes of the whole checkpoint and of its tokenizer alone, 16 hex digits each.

    Raises:
        DataError: the folder holds no model.
    """
    require_checkpoint(directory)
    return content_digest(directory, _WEIGHTS + _TOKENIZER)[:16], content_digest(directory, _TOKENIZER)[:16]


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InvalidValueError("device", device, "must be one that this machine has", f"{reason}.") from None


def _tokenizer(directory: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The tokenizer in {directory} cannot be loaded: {error} Save it beside the model "
            "(tokenizer.save_pretrained)."
        ) from None
    if not tokenizer.is_fast:
        raise DataError(
            f"The tokenizer in {directory} has no tokenizer.json, so that the text behind a token is not "
            "known. Save its fast version."
        )
    return tokenizer


def _context_limit(config: Any, asked: int | None) -> int:
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = asked or own
    if limit is None:
        raise InvalidValueError(
            "context_tokens", asked, "must be given: the model's config names no limit", "For example 4096."
        )
    if limit < 2 or (own is not None and limit > own):
        raise InvalidValueError(
            "context_tokens", limit, f"must lie between 2 and the model's own {own} tokens"
        )
    return int(limit)
