"""``study.yaml``: what the user wants, checked key by key before anything runs.

Every model forbids unknown keys, so a typo is an error that names the key; every error carries the dotted
path of the field, the value and what it must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.mixtures import SourceGroup
from decaylaws.mixtures.mixture import SUM_TOLERANCE
from decaylaws.runs.config import ModelShape, OptimizerConfig
from decaylaws.settings.capabilities import Capability, objective_weights
from decaylaws.settings.groups import GroupSettings, source_groups
from decaylaws.settings.numbers import NUMBER, Count, NotNegative, Positive, Share, Tokens, Weight
from decaylaws.settings.quality import QualitySettings, cut_sources

DecayShape = Literal["linear", "cosine", "1-sqrt", "constant"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class SourceSettings(_Settings):
    """One source of text. Its held-out part is the evaluation domain of the same name.

    ``embedded`` sources are read out of installed packages or generated; every other format reads ``path``.
    """

    format: Literal["embedded", "jsonl", "text", "parquet", "datasets"]
    path: str | None = Field(
        None, description="file, folder or glob, relative to study.yaml; none for embedded"
    )
    text_field: str = Field(
        "text", description="column or key that holds the text (jsonl, parquet, datasets)"
    )
    group: Literal["general", "specialised"] = "specialised"
    capability: Capability | None = Field(None, description="what the source serves, for objectives by group")
    max_epochs: Positive | None = Field(None, description="how often the target run may repeat this source")
    lower: Share = 0.0
    upper: Share = 1.0
    max_bytes: Count | None = Field(None, description="take at most so many bytes of text (UTF-8)")
    min_document_bytes: Count | None = Field(
        None, description="take documents of at least so many bytes only: a length class"
    )
    max_document_bytes: Count | None = Field(None, description="take documents of fewer bytes only")
    heldout_fraction: Annotated[float, NUMBER, Field(gt=0, lt=0.5)] = 0.1
    on_bad: Literal["error", "skip"] = Field(
        "error",
        description="what a row that is no JSON or holds no text does: stop, or be passed over and counted",
    )
    quality: QualitySettings | None = Field(None, description="cuts the source into buckets by quality")

    @model_validator(mode="after")
    def _path_and_bounds(self) -> Self:
        if (self.format == "embedded") != (self.path is None):
            raise ValueError(f"format {self.format!r} {'takes no' if self.path else 'needs a'} path")
        if self.lower > self.upper:
            raise ValueError(f"lower={self.lower} must not exceed upper={self.upper}")
        if (self.min_document_bytes or 0) >= (self.max_document_bytes or math.inf):
            raise ValueError(
                f"min_document_bytes={self.min_document_bytes} must be below "
                f"max_document_bytes={self.max_document_bytes}"
            )
        if self.quality is not None and self.format == "embedded":
            raise ValueError("quality cuts the user's own text, not embedded domains")
        if self.quality is not None and self.quality.field and self.format == "text":
            raise ValueError("plain text has no quality.field; use jsonl or parquet, or a classifier")
        return self


class TokenizerSettings(_Settings):
    """Byte-level BPE trained on the train split, or a ready ``tokenizer.json``."""

    vocab_size: Annotated[int, NUMBER, Field(ge=257, le=2**32 - 1)] = 4096
    path: str | None = Field(None, description="a tokenizer.json to use instead of training one")
    end_token: str | None = Field(
        None, description="its token that ends a document, where it is none of the usual ones"
    )
    train_bytes_per_source: Count = 2_000_000


class ShapeSettings(_Settings):
    """A model shape by its free dimensions; the vocabulary comes from the tokenizer."""

    d_model: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count | None = None
    d_ff: Count
    rope_theta: Positive = 10_000.0
    tie_embeddings: bool = True

    def shape(self, *, vocab_size: int, seq_len: int) -> ModelShape:
        """The full shape, validated."""
        return ModelShape(
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            d_ff=self.d_ff,
            vocab_size=vocab_size,
            seq_len=seq_len,
            rope_theta=self.rope_theta,
            tie_embeddings=self.tie_embeddings,
        )


class OptimizerSettings(_Settings):
    """AdamW, shared by trunks, microanneals and the launched run."""

    beta1: Annotated[float, NUMBER, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, NUMBER, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: Weight = 0.1
    clip_norm: Positive = 1.0

    def config(self) -> OptimizerConfig:
        """The value type that runs carry."""
        return OptimizerConfig(**self.model_dump())


class TrunkSettings(_Settings):
    """The stable phase of each model shape: warm-up, then constant LR on the general mixture."""

    tokens: Tokens
    warmup_tokens: Tokens
    peak_lr: Positive
    mixture: dict[str, Share]
    seed: NotNegative = 0

    @model_validator(mode="after")
    def _sums(self) -> Self:
        _check_mixture("trunk.mixture", self.mixture)
        if self.warmup_tokens > self.tokens:
            raise ValueError(f"warmup_tokens={self.warmup_tokens} must not exceed tokens={self.tokens}")
        return self


class DesignSettings(_Settings):
    """Which microanneals the sweep runs."""

    num_mixtures: Annotated[int, NUMBER, Field(ge=4)] = 24
    decay_tokens: Annotated[list[Tokens], Field(min_length=1)]
    start_lr_factors: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    shapes: Annotated[list[DecayShape], Field(min_length=1)] = Field(
        ["linear"], description="decays end at LR 0, which no exponential reaches; constant keeps its LR"
    )
    batch_tokens: list[Tokens] = Field(
        default_factory=list, description="batch sizes of the decays to choose from; empty keeps the trunk's"
    )
    num_replicates: Annotated[int, NUMBER, Field(ge=2)] = 3
    runs_at_other_sizes: Annotated[int, NUMBER, Field(ge=2)] = 8
    read_outs: Annotated[int, NUMBER, Field(ge=0)] = Field(
        0,
        description="constant-LR runs, on the control and the first mixtures, that emulate decays of all shapes",
    )
    seed: NotNegative = 0


class ObjectiveSettings(_Settings):
    """What the search minimises and what it must not give up."""

    weights: dict[str, Weight] = Field(default_factory=dict, description="weight by domain")
    capabilities: dict[Capability, Weight] = Field(
        default_factory=dict, description="weight by group; shared equally by the domains of its sources"
    )
    guard_domains: list[str] = Field(default_factory=list)
    guard_nats: Weight = 0.02
    kl_strength: Weight = Field(
        0.0, description="nats of loss that one nat of KL divergence from the prior mixture has to earn"
    )
    prior: dict[str, Share] | None = Field(
        None, description="prior mixture; None takes every source in proportion to its tokens"
    )

    @model_validator(mode="after")
    def _prior_sums(self) -> Self:
        if self.prior is not None:
            _check_mixture("objective.prior", self.prior)
        return self


class TargetSettings(_Settings):
    """The run that all this is for."""

    shape: str
    max_decay_tokens: Tokens = Field(description="budget of the decay at target scale")
    repetition_scale: Positive = Field(
        1.0,
        description="how many times longer the target's decay is than a proxy's of the same design point; "
        "proxies see 1/scale of each source, so that both repeat it equally often",
    )


class EvaluationSettings(_Settings):
    """Held-out evaluation, the same tokens for every run."""

    tokens_per_domain: Tokens = 16_384
    points: Annotated[int, NUMBER, Field(ge=1)] = Field(
        2, description="evaluations of a microanneal after its start"
    )


class EvaluationSetSettings(_Settings):
    """Items that no train text may hold: JSON Lines (``.gz`` and ``.zst`` too) or Parquet."""

    path: str = Field(description="file, relative to study.yaml")
    text_fields: Annotated[list[str], Field(min_length=1)] = Field(
        ["text"], description="keys whose text makes up an item: question, choices, answer"
    )


class DecontaminationSettings(_Settings):
    """Train documents that hold an evaluation item are dropped; sources that repeat held-out text are refused."""

    evaluation_sets: dict[str, EvaluationSetSettings] = Field(default_factory=dict)
    ngram: Annotated[int, NUMBER, Field(ge=8)] = Field(13, description="words of a matching run")
    min_coverage: Share = Field(0.5, description="smallest share of an item's words in matching runs")
    hybrid: bool = Field(True, description="also near matches, by longest common subsequence of words")
    min_common: Share = Field(0.75, description="smallest common subsequence of a near match, as a share")
    max_heldout_overlap: Share = Field(
        0.05,
        description="largest share of a domain's held-out passages that the train text of a source may repeat",
    )
    on_overlap: Literal["refuse", "allow"] = "refuse"


class TrainSettings(_Settings):
    """How proxies compute; part of the identity of every run, unlike ``backend``."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the matmuls; bfloat16 pays where the processor has instructions for it, and moves losses "
        "by up to 1e-3 nats per token; auto tries it there",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile for the decoder blocks; auto measures when a long sweep is first planned "
        "and keeps the answer",
    )


class BackendSettings(_Settings):
    """Where and how proxies run; never changes what is computed, only how fast."""

    workers: Count | None = Field(None, description="processes; None takes one per core, and one for a GPU")
    slots: Count | None = Field(
        None, description="members that train as one stack in a worker; None takes what measures fastest"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep_checkpoints: bool = Field(False, description="keep the last checkpoint of every decay")


class SamplerSettings(_Settings):
    """Runs that Optuna proposes after the design, guided by what was measured so far."""

    kind: Literal["tpe", "gp", "nsga2"] = Field(
        description="tpe and gp lower the objective; nsga2 spans the front of general against specialised loss"
    )
    trials: Count = 24
    batch: Count = Field(8, description="proposals under way at once")
    promote: Annotated[int, NUMBER, Field(ge=2)] | None = Field(
        None,
        description="start every proposal with the shortest of design.decay_tokens and take the best one in "
        "so many to the next length; None lets the sampler choose the length",
    )

    prune: Annotated[float, NUMBER, Field(gt=0, lt=100)] | None = Field(
        None,
        description="end a proposal at an evaluation on its way (evaluation.points) unless it is among the best so "
        "many percent of the runs of its length, batch size and shape; None runs all to their end",
    )

    @model_validator(mode="after")
    def _one_goal_to_stop_by(self) -> Self:
        for name in ("promote", "prune"):
            if self.kind == "nsga2" and getattr(self, name):
                raise ValueError(f"{name} needs one goal; nsga2 has two")
        return self


class StudySettings(_Settings):
    """The whole of ``study.yaml``."""

    name: Annotated[str, Field(min_length=1)]
    sources: Annotated[dict[str, SourceSettings], Field(min_length=2)]
    groups: dict[str, GroupSettings] = Field(
        default_factory=dict, description="sources whose total is bounded, or whose proportions are fixed"
    )
    tokenizer: TokenizerSettings = TokenizerSettings()
    seq_len: Count = 128
    batch_tokens: Tokens = 1024
    shapes: Annotated[dict[str, ShapeSettings], Field(min_length=2)]
    proxy: str = Field(description="the shape that runs the whole design; the others run a part of it")
    optimizer: OptimizerSettings = OptimizerSettings()
    trunk: TrunkSettings
    design: DesignSettings
    sampler: SamplerSettings | None = Field(None, description="proposals after the design; None makes none")
    objective: ObjectiveSettings
    target: TargetSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    decontamination: DecontaminationSettings = DecontaminationSettings()
    train: TrainSettings = TrainSettings()
    backend: BackendSettings = BackendSettings()
    storage: str | None = Field(None, description="Optuna storage URL; None keeps a file in the study")
    search_trials: Count = 400
    seed: NotNegative = 0

    @field_validator("sources", mode="before")
    @classmethod
    def _cut_by_quality(cls, sources: Any) -> Any:
        return cut_sources(sources) if isinstance(sources, Mapping) else sources

    @field_validator("batch_tokens", mode="before")
    @classmethod
    def _one_batch_size(cls, batch_tokens: Any) -> Any:
        if isinstance(batch_tokens, list):
            constraint, remedy = (
                "must be one number, the trunk's",
                "List those of the decays in design.batch_tokens.",
            )
            raise InvalidValueError("batch_tokens", batch_tokens, constraint, remedy)
        return batch_tokens

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        self._check_sources()
        self._check_shapes()
        for key, sizes in (
            ("batch_tokens", [self.batch_tokens]),
            ("design.batch_tokens", self.design.batch_tokens),
        ):
            for size in sizes:
                if size % self.seq_len:
                    raise InvalidValueError(key, size, f"must be a multiple of seq_len={self.seq_len}")
        if min(self.design.decay_tokens) > self.target.max_decay_tokens:
            raise InvalidValueError(
                "target.max_decay_tokens",
                self.target.max_decay_tokens,
                f"must reach the shortest of design.decay_tokens, {min(self.design.decay_tokens)}",
            )
        return self

    def _check_shapes(self) -> None:
        for key, name in (("proxy", self.proxy), ("target.shape", self.target.shape)):
            if name not in self.shapes:
                raise InvalidValueError(key, name, f"must be one of the shapes {', '.join(self.shapes)}")
        for name, shape in self.shapes.items():
            try:
                shape.shape(vocab_size=self.tokenizer.vocab_size, seq_len=self.seq_len)
            except InvalidValueError as error:
                field = f"shapes.{name}.{error.field.removeprefix('shape.')}"
                raise InvalidValueError(field, error.value, error.constraint, error.remedy) from None

    def _check_sources(self) -> None:
        named = {
            "trunk.mixture": self.trunk.mixture,
            "objective.weights": self.objective.weights,
            "objective.guard_domains": self.objective.guard_domains,
            "objective.prior": self.objective.prior or {},
        }
        for key, names in named.items():
            unknown = sorted(set(names) - set(self.sources))
            if unknown:
                raise InvalidValueError(
                    key, unknown, "names what is no source", f"The sources are {', '.join(self.sources)}."
                )
        _ = self.objective_weights  # groups without a source, and domains that count twice
        _ = self.source_groups  # members that are not there, proportions that are fixed twice

    @property
    def objective_weights(self) -> dict[str, float]:
        """Weight of every domain that counts in the objective, from ``objective.weights`` and ``.capabilities``."""
        capabilities = {name: source.capability for name, source in self.sources.items()}
        return objective_weights(self.objective.capabilities, capabilities, self.objective.weights)

    @property
    def source_groups(self) -> tuple[SourceGroup, ...]:
        """The buckets of each source that is cut by quality, and ``groups``."""
        return source_groups(self.groups, self.sources)

    @property
    def general_sources(self) -> list[str]:
        """Names of the sources of the general group."""
        return [name for name, source in self.sources.items() if source.group == "general"]


def load_settings(path: Path) -> StudySettings:
    """Read and check ``study.yaml``.

    Raises:
        DataError: the file is missing or is no YAML mapping.
        InvalidValueError: a key is unknown or a value is not what it must be.
    """
    if not path.is_file():
        raise DataError(f"There is no study.yaml at {path}. Run 'decaylaws init DIR' first.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    content = load_yaml(text, path, aliases=True)
    if not isinstance(content, Mapping):
        holds = "nothing" if content is None else type(content).__name__
        raise DataError(f"{path} must hold a mapping of settings; it holds {holds}.")
    return parse_settings(content)


def parse_settings(content: Mapping[str, Any]) -> StudySettings:
    """Check a mapping of settings; the first problem becomes one ``InvalidValueError``."""
    try:
        return StudySettings.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None


def _check_mixture(field: str, mixture: Mapping[str, float]) -> None:
    total = sum(mixture.values())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise InvalidValueError(field, dict(mixture), f"must sum to one; the weights sum to {total:.6g}")


def _first_problem(error: ValidationError) -> InvalidValueError:
    # a misspelt key is also a missing one: the misspelling is the cause
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValueError):
        return cause
    path = ".".join(str(part) for part in problem["loc"]) or "study.yaml"
    if problem["type"] == "extra_forbidden":
        return InvalidValueError(
            path, problem["input"], "is not a known key", "Check its spelling and its indent."
        )
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"] if not isinstance(problem["input"], Mapping) else "..."
    if problem["type"] == "missing":
        return InvalidValueError(path, None, "is required", "Add it to study.yaml.")
    return InvalidValueError(path, value, f"is not valid ({message})")
