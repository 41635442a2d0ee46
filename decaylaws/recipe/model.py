"""``Recipe`` and its parts (schema ``decaylaws.recipe/2``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from decaylaws.errors import InvalidValueError
from decaylaws.io.files import write_text
from decaylaws.recipe import files
from decaylaws.recipe.fields import (
    Count,
    Finite,
    JsonMapping,
    LrPath,
    Name,
    Natural,
    NonNegative,
    Positive,
    Shares,
    Value,
)
from decaylaws.recipe.migrations import SCHEMA, migrate
from decaylaws.recipe.rope import RopeSettings

EPOCHS_TOLERANCE = 1e-6
HANDOVER_TOLERANCE = 1e-3
GUARD_TOLERANCE = 1e-4  # nats: an optimum at a limit lies on it only as exactly as the optimiser stops


class HandOver(Value):
    """What the decay takes over from the checkpoint that it starts from.

    ``lr`` is the LR of the checkpoint's last step, and ``lr_source`` says where that figure comes from (the
    schedule at that token, a scheduler state, a log): most failed anneals failed here.
    """

    checkpoint: str | None = Field(default=None, description="path or URI; none starts from random weights")
    run_id: str | None = Field(default=None, description="the run that wrote the checkpoint")
    tokens: Natural = Field(default=0, description="tokens that the checkpoint has seen")
    lr: NonNegative = Field(description="LR at the hand-over")
    lr_source: str = Field(default="", description="where that LR comes from")
    optimizer_state: Literal["load", "fresh"] = Field(
        default="load", description="moments of the optimiser: taken from the checkpoint or started from zero"
    )
    lr_jump: bool = Field(default=False, description="the first LR differs from lr on purpose")


class Stage(Value):
    """A stretch of tokens with one mixture, one batch size and one sequence length.

    ``lr`` is an absolute LR over the stage's own tokens; its length is the stage's length.
    """

    name: Name = "decay"
    lr: LrPath
    mixture: Shares
    batch_tokens: Count
    seq_len: Count
    rope: RopeSettings | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the stage."""
        return int(self.lr.tokens)

    @property
    def num_steps(self) -> int:
        """Optimiser steps; the last one may be partial."""
        return -(-self.tokens // self.batch_tokens)

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.batch_tokens % self.seq_len:
            raise InvalidValueError(
                "batch_tokens", self.batch_tokens, f"must be a multiple of seq_len={self.seq_len}"
            )
        if self.rope is not None and self.seq_len > self.rope.max_seq_len:
            raise InvalidValueError(
                "seq_len", self.seq_len,
                f"is longer than the {self.rope.max_seq_len:g} tokens that rope allows ({self.rope.describe()})",
                "Raise rope.factor.",
            )  # fmt: skip
        return self


class Source(Value):
    """What is known of a source: how much there is, how often it may be repeated, which content it had."""

    available_tokens: Count | None = None
    max_epochs: Positive | None = None
    epochs: NonNegative | None = Field(
        default=None,
        description="passes that the stages make over the source; filled in, and checked when given",
    )
    path: str | None = Field(default=None, description="where the target trainer finds it")
    fingerprint: str | None = None


class MuonSettings(Value):
    """Muon for the hidden matrices, as ``torch.optim.Muon`` computes it; AdamW has embeddings, head and norms."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw", description="how the update of a matrix is scaled by its shape"
    )
    lr_factor: Positive = Field(
        default=1.0, description="LR of the hidden matrices as a factor of the stages'"
    )


class OptimizerSettings(Value):
    """AdamW: decoupled weight decay on matrices only, gradients clipped by their global norm; or another optimiser.

    ``muon`` gives the hidden matrices to Muon and leaves the rest to AdamW. ``as_checkpoint`` is for exports: the
    target keeps the optimiser and the groups of the checkpoint, and the LR of each is scaled along the stages' LR.
    """

    name: Literal["adamw", "muon", "as_checkpoint"] = "adamw"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip_norm: Positive = 1.0
    hidden_lr_factor: Positive | None = Field(
        default=None,
        description="LR of the matrices of the decoder blocks as a factor of the stages'; 1 if absent",
    )
    hidden_weight_decay_factor: Positive | None = Field(
        default=None, description="weight decay of these matrices as a factor of weight_decay; 1 if absent"
    )
    muon: MuonSettings | None = None

    @model_validator(mode="after")
    def _muon_where_it_is_used(self) -> Self:
        if self.name == "muon" and self.muon is None:
            object.__setattr__(self, "muon", MuonSettings())
        if self.name != "muon" and self.muon is not None:
            raise ValueError(f"muon needs name: muon; the name is {self.name!r}")
        return self

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a run's optimiser.

        Args:
            values: what ``decaylaws.runs.optimizer.OptimizerConfig.to_dict`` gives.
        """
        return cls.model_validate({"name": "muon" if "muon" in values else "adamw", **values})


class Prediction(Value):
    """Predicted final loss of a domain in nats per token, with its interval, beside the matched control's."""

    mean: Finite
    lower: Finite
    upper: Finite
    control: Finite | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower <= self.mean <= self.upper:
            raise ValueError(f"needs lower <= mean <= upper; got {self.lower}, {self.mean}, {self.upper}")
        return self


class Guard(Value):
    """A domain that may lose at most ``limit`` nats per token against the control."""

    limit: NonNegative
    predicted: Finite = Field(description="predicted loss of the recipe minus that of the control")
    upper: Finite | None = Field(default=None, description="upper end of the interval of that difference")
    holds: bool = Field(description="whether that upper end keeps the limit")

    @property
    def verdict(self) -> str:
        """``holds``; ``NOT SURE`` where only the prediction keeps the limit; ``BROKEN`` where it does not."""
        if self.holds:
            return "holds"
        return "NOT SURE" if self.predicted <= self.limit + GUARD_TOLERANCE else "BROKEN"


class HorizonRecord(Value):
    """How far a law is to be believed along one axis, by fits to smaller or shorter runs."""

    axis: Name = Field(description="size (parameters), tokens (of the decay) or compute (FLOPs of the decay)")
    fitted_to: NonNegative = Field(description="largest fitted value")
    tested_to: NonNegative | None = Field(
        default=None, description="largest value up to which the error is known; none where no run tests it"
    )
    error: NonNegative | None = Field(
        default=None, description="mean relative error of the loss beyond the fitted runs"
    )
    bias: Finite | None = Field(
        default=None, description="the same with its sign: above 0 if predicted too high"
    )
    asked: NonNegative = Field(description="value of this recipe")


class LawRecord(Value):
    """A fitted law that the recommendation rests on."""

    name: Name
    parameters: JsonMapping = Field(default_factory=dict)
    heldout_error: dict[str, Finite] = Field(default_factory=dict, description="error by metric, nats/token")
    horizon: tuple[HorizonRecord, ...] = ()


class Evidence(Value):
    """The runs behind the recommendation."""

    run_ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    beyond_horizon: tuple[str, ...] = Field(
        default=(), description="where the recipe lies farther out than any run that tested the law"
    )


class Provenance(Value):
    """Where the recipe comes from."""

    created: str | None = Field(default=None, description="UTC, ISO 8601")
    study: str | None = None
    decaylaws_version: str | None = None
    code_fingerprint: str | None = None
    data_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    vocab_size: Count | None = None
    non_embedding_params: Count | None = Field(
        default=None, description="size for which the losses are predicted"
    )
    laws: tuple[LawRecord, ...] = ()
    evidence: Evidence = Evidence()


class Recipe(Value):
    """The recommended run.

    Attributes:
        name: what to call it.
        handover: checkpoint, its LR and what is taken over.
        stages: LR path, mixture, batch size and sequence length, stage after stage.
        sources: by name; holds at least every source that a stage gives a share.
        optimizer: AdamW, Muon with AdamW, or the checkpoint's own.
        seed: keys the order of the data.
        interval: coverage of the predicted intervals.
        predictions: final loss by domain.
        guards: by domain.
        provenance: laws, fingerprints, run ids.

    Raises:
        InvalidValueError: through :meth:`from_dict` and :meth:`load`, with the path of the field.
    """

    schema_id: Literal["decaylaws.recipe/2"] = Field(default="decaylaws.recipe/2", alias="schema")
    name: Name = "recipe"
    handover: HandOver
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    sources: dict[Name, Source]
    optimizer: OptimizerSettings = OptimizerSettings()
    seed: Natural = 0
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    predictions: dict[Name, Prediction] = Field(default_factory=dict)
    guards: dict[Name, Guard] = Field(default_factory=dict)
    provenance: Provenance = Provenance()

    @property
    def decay(self) -> Stage:
        """The decay: the last stage."""
        return self.stages[-1]

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def sha256(self) -> str:
        """Identity of the content: equal recipes have equal digests, whatever file they came from."""
        return hashlib.sha256(files.to_json(self.to_dict()).encode()).hexdigest()

    def step_lrs(self) -> np.ndarray:
        """LR of every optimiser step, [num_steps]: the mean of the path over the tokens of the step."""
        return np.concatenate([stage.lr.step_lrs(stage.batch_tokens) for stage in self.stages])

    def source_tokens(self) -> dict[str, float]:
        """Tokens that the stages ask of each source."""
        return {
            name: sum(stage.mixture.share(name) * stage.tokens for stage in self.stages)
            for name in self.sources
        }

    def shares(self) -> dict[str, float]:
        """Share of each source in the tokens of all stages."""
        return {name: tokens / self.tokens for name, tokens in self.source_tokens().items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_names()
        self._check_handover()
        filled = {name: self._with_epochs(name, source) for name, source in self.sources.items()}
        # The model is frozen for its users; here it is still being made.
        object.__setattr__(self, "sources", filled)
        return self

    def _check_names(self) -> None:
        for index, stage in enumerate(self.stages):
            unknown = [name for name in stage.mixture.names if name not in self.sources]
            if unknown:
                raise InvalidValueError(
                    f"stages.{index}.mixture", unknown[0], "must give shares to sources that 'sources' lists only",
                    "Add the source there, or take its share away.",
                )  # fmt: skip
        unknown = [domain for domain in self.guards if domain not in self.predictions]
        if unknown:
            raise InvalidValueError(
                "guards", unknown[0], "must guard domains that 'predictions' lists only", "Remove the guard."
            )

    def _check_handover(self) -> None:
        first = self.stages[0].lr.start_lr
        if self.handover.checkpoint is None and self.handover.run_id is None:
            return
        jump = abs(first - self.handover.lr) > HANDOVER_TOLERANCE * max(first, self.handover.lr)
        if jump and not self.handover.lr_jump:
            raise InvalidValueError(
                "stages.0.lr", first, f"must start at handover.lr={self.handover.lr!r}",
                "Start at the checkpoint's LR, or set handover.lr_jump: true if the jump is intended.",
            )  # fmt: skip

    def _with_epochs(self, name: str, source: Source) -> Source:
        if source.available_tokens is None:
            if source.epochs is not None:
                raise InvalidValueError(
                    f"sources.{name}.epochs", source.epochs, f"needs sources.{name}.available_tokens"
                )
            return source
        epochs = self.source_tokens()[name] / source.available_tokens
        if source.epochs is not None and abs(source.epochs - epochs) > EPOCHS_TOLERANCE * max(1.0, epochs):
            raise InvalidValueError(
                f"sources.{name}.epochs", source.epochs, f"must be the {epochs:.6g} that the stages make",
                "Leave it out.",
            )  # fmt: skip
        if source.max_epochs is not None and epochs > source.max_epochs * (1 + EPOCHS_TOLERANCE):
            raise InvalidValueError(
                f"sources.{name}.max_epochs", source.max_epochs,
                f"is less than the {epochs:.4g} passes that the stages make over its {source.available_tokens:,} "
                "tokens", "Lower its share or the tokens, or raise the cap.",
            )  # fmt: skip
        return source.model_copy(update={"epochs": epochs})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A recipe from plain values of this schema or an older one.

        Raises:
            InvalidValueError: a field is missing, unknown or holds what it must not.
        """
        try:
            return cls.model_validate(migrate(data))
        except ValidationError as error:
            raise as_invalid_value(error) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is its inverse."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file.

        Raises:
            DataError: the file cannot be read or parsed.
            InvalidValueError: its content is no recipe.
        """
        return cls.from_dict(files.read_mapping(Path(path)))

    def save(self, path: str | Path) -> Path:
        """Write YAML or JSON, by suffix; equal recipes give equal bytes."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in files.SUFFIXES:
            raise InvalidValueError("path", str(path), files.WRONG_SUFFIX)
        write_text(path, (files.to_json if suffix == ".json" else files.to_yaml)(self.to_dict()))
        return path

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of the file format."""
        schema = cls.model_json_schema(by_alias=True, mode="validation")
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def as_invalid_value(error: ValidationError) -> InvalidValueError:
    """The first problem of a recipe that was made in Python or read, by the path of its field."""
    problems = error.errors(include_url=False)
    # a list that lost its only item to a problem inside is not too short
    inside = {each["loc"][:depth] for each in problems for depth in range(len(each["loc"]))}
    problems = [each for each in problems if each["loc"] not in inside] or problems
    # a misspelt key is also a missing one: the misspelling is the cause
    first = min(problems, key=lambda each: each["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    others = len(problems) - 1
    more = f"({others} more problem{'s' if others > 1 else ''}.)" if others else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValueError):
        own = cause.field.removeprefix(path.rpartition(".")[2] + ".")  # both may begin with the part's name
        field = path if path.endswith(cause.field) else f"{path}.{own}".lstrip(".")
        return InvalidValueError(field, cause.value, cause.constraint, f"{cause.remedy} {more}".strip())
    path, value = path or "recipe", first["input"]
    if first["type"] == "extra_forbidden":
        return InvalidValueError(path, value, "is not a key of a recipe", f"Remove it or correct it. {more}")
    if first["type"] == "missing":
        return InvalidValueError(path, None, "is required", more)
    return InvalidValueError(path, value, f"is not valid: {message}", more)
