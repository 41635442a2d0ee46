"""What ``study.yaml`` says where the runs are trained elsewhere: by which trainer, on which models and which text.

A team's text and models are where its trainer finds them. A study of such runs needs to know how much text there is and
how large the models are, so sources and shapes can be *declared* instead of prepared and described.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from decaylaws.errors import InvalidValueError
from decaylaws.runs.declared import DeclaredModel
from decaylaws.runs.start import CheckpointStart
from decaylaws.settings.numbers import LearningRate, Positive, Tokens
from decaylaws.settings.section import Section

Trainer = Literal["built-in", "external"]
DECLARED = "declared"
"""Format of a source that only the external trainer reads."""
BUILT_IN_ONLY = ("train", "backend")
"""Sections of ``study.yaml`` that say how the built-in trainer computes."""
TOKENS_PLACE = "{tokens}"
"""Stands in ``proxy_path`` for how many of a source's first tokens lie there: the source can then be cut for a run."""

DECLARED_KEYS = ("tokens", "fingerprint", "proxy_path")
"""Keys of a source that only a declared one has."""
READ_KEYS = (
    "text_field", "max_bytes", "min_document_bytes", "max_document_bytes", "heldout_fraction", "on_bad",
)  # fmt: skip
"""Keys of a source that say how its text is read and split."""


class ExternalSettings(Section):
    """What ``plan`` needs to know of the machines of an external trainer."""

    flops_per_second: Positive | None = Field(
        None,
        description="FLOPs per second that all machines of the sweep reach together, for the hours of plan; None "
        "gives FLOPs only",
    )


class DeclaredShape(Section):
    """A model that the external trainer builds: its name there, and its size."""

    model: Annotated[str, Field(min_length=1)] = Field(
        description="what the trainer calls the model: a folder, a config function; part of the identity of its runs"
    )
    non_embedding_params: Tokens = Field(
        description="parameters without embedding and output head, such as 190M; the N of the laws"
    )
    embedding_params: Tokens | None = Field(
        None, description="parameters of embedding and output head; only counted"
    )

    def shape(self, *, vocab_size: int, seq_len: int) -> DeclaredModel:
        """The model that runs carry; the vocabulary is the trainer's own affair."""
        return DeclaredModel(
            model=self.model,
            non_embedding_params=self.non_embedding_params,
            embedding_params=self.embedding_params or 0,
            seq_len=seq_len,
        )


class DeclaredCheckpoint(DeclaredShape):
    """A checkpoint that the external trainer has: where it finds it, and where in its run it stands."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="where the trainer finds the checkpoint, in its own format"
    )
    tokens: Tokens = Field(description="tokens that the checkpoint has seen")
    lr: LearningRate = Field(description="LR of its last step, from which decays take over")
    fingerprint: str | None = Field(
        None, description="version of its weights; part of the identity of the runs that start from it"
    )

    def start(self, *, optimizer_state: str) -> CheckpointStart:
        """Its identity, which does not hold where it lies.

        Args:
            optimizer_state: ``load`` or ``fresh``.
        """
        content = [self.model, self.non_embedding_params, self.fingerprint]
        digest = hashlib.sha256(json.dumps({DECLARED: content}).encode()).hexdigest()
        return CheckpointStart(
            fingerprint=digest[:16],
            family=DECLARED,
            tokens=self.tokens,
            lr=self.lr,
            optimizer_state=optimizer_state,
        )


BY_PARAMETERS, BY_DIMENSIONS = "by parameters", "by dimensions"
"""The two types of one of ``shapes``; pydantic puts these names into the path of a field."""


def shape_type(value: Any) -> str:
    """Which of the two types a shape is of: a declared one names the trainer's model or its parameters."""
    names = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", {})
    return BY_PARAMETERS if {"non_embedding_params", "model"} & set(names) else BY_DIMENSIONS


def check_source(source: Any) -> None:
    """Refuse keys that mean nothing for a declared source, or for one that is read.

    Raises:
        ValueError: in pydantic's manner, which adds the path of the source.
    """
    fields = type(source).model_fields
    given = {name for name in source.model_fields_set if getattr(source, name) != fields[name].default}
    if source.format != DECLARED:
        if wrong := sorted(given & set(DECLARED_KEYS)):
            raise ValueError(f"only a source of format {DECLARED!r} has {', '.join(wrong)}")
        return
    if source.tokens is None:
        raise ValueError(f"format {DECLARED!r} needs tokens: how many train tokens the source holds")
    if wrong := sorted(given & {*READ_KEYS, "quality"}):
        raise ValueError(
            f"format {DECLARED!r} is not read here, so {', '.join(wrong)} would do nothing; leave it out"
        )


def check_trainer(settings: Any) -> None:
    """Refuse what the trainer of a study cannot do: sources and shapes it cannot read, settings it would ignore.

    Raises:
        InvalidValueError: naming the key.
    """
    declared = [name for name, source in settings.sources.items() if source.format == DECLARED]
    if declared and len(declared) < len(settings.sources):
        others = [name for name in settings.sources if name not in declared]
        raise InvalidValueError(
            f"sources.{others[0]}.format",
            settings.sources[others[0]].format,
            f"must be {DECLARED!r} as that of {declared[0]}",
            "A study either prepares the text of all its sources or of none.",
        )
    if settings.trainer != "external":
        _check_built_in(settings, declared)
        return
    for section in BUILT_IN_ONLY:
        if getattr(settings, section) != type(settings).model_fields[section].default:
            raise InvalidValueError(
                section, "...", "is about the built-in trainer", "Leave it out, or leave trainer out."
            )
    if settings.design.read_outs:
        raise InvalidValueError(
            "design.read_outs",
            settings.design.read_outs,
            "must be 0 with trainer: external",
            "Only the built-in trainer merges checkpoints on the way.",
        )
    if settings.sampler is not None and settings.sampler.prune:
        raise InvalidValueError(
            "sampler.prune",
            settings.sampler.prune,
            "is not possible with trainer: external",
            "Its runs are recorded when they have ended.",
        )


def _check_built_in(settings: Any, declared: Iterable[str]) -> None:
    for name in declared:
        raise InvalidValueError(
            f"sources.{name}.format",
            DECLARED,
            "needs trainer: external",
            "The built-in trainer reads text: name its format and path.",
        )
    for name, shape in settings.shapes.items():
        if isinstance(shape, DeclaredShape):
            raise InvalidValueError(
                f"shapes.{name}.model",
                shape.model,
                "needs trainer: external",
                "The built-in trainer needs the dimensions: d_model, num_layers, num_heads and d_ff.",
            )
    for name, checkpoint in (settings.checkpoints.models if settings.checkpoints else {}).items():
        if isinstance(checkpoint, DeclaredCheckpoint):
            raise InvalidValueError(
                f"checkpoints.models.{name}.model",
                checkpoint.model,
                "needs trainer: external",
                "The built-in trainer needs the path of a Hugging Face folder alone.",
            )
    if settings.external != ExternalSettings():
        raise InvalidValueError(
            "external", "...", "needs trainer: external", "Add that line, or leave it out."
        )


def declared_fingerprint(sources: Mapping[str, Any]) -> str:
    """Identity of declared text: first 16 hex digits of the SHA-256 over tokens and fingerprint of every source.

    Args:
        sources: settings of every source by name.
    """
    content = {name: [source.tokens, source.fingerprint] for name, source in sources.items()}
    canonical = json.dumps({DECLARED: content}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
