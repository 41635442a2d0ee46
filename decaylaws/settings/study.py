"""``study.yaml``: what the user wants, checked key by key before anything runs.

Every model forbids unknown keys, so a typo is an error that names the key; every error carries the dotted
path of the field, the value and what it must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.mixtures import SourceGroup
from decaylaws.runs.columns import Unit
from decaylaws.runs.config import ModelShape
from decaylaws.settings.backend import BackendSettings
from decaylaws.settings.capabilities import Capability, objective_weights
from decaylaws.settings.checkpoints import CheckpointsSettings, with_their_tokenizer
from decaylaws.settings.evaluation import (
    EvaluationDomainSettings,
    EvaluationSettings,
    QuestionSetSettings,
    check_evaluation,
)
from decaylaws.settings.external import (
    BY_DIMENSIONS,
    BY_PARAMETERS,
    DECLARED,
    DeclaredShape,
    ExternalSettings,
    Trainer,
    check_source,
    check_trainer,
    shape_type,
)
from decaylaws.settings.groups import GroupSettings, source_groups
from decaylaws.settings.numbers import (
    NUMBER,
    Count,
    NotNegative,
    Positive,
    Share,
    Tokens,
    check_mixture,
)
from decaylaws.settings.objective import ObjectiveSettings
from decaylaws.settings.optimizer import OptimizerSettings
from decaylaws.settings.quality import QualitySettings, cut_sources
from decaylaws.settings.stores import TokenType, check_store_keys, is_token_store
from decaylaws.settings.tracker import TrackerSettings

DecayShape = Literal["linear", "cosine", "1-sqrt", "constant"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class SourceSettings(_Settings):
    """One source of text. Its held-out part is the evaluation domain of the same name.

    ``embedded`` sources are read out of installed packages or generated; every other format reads ``path``.
    """

    format: Literal[
        "embedded",
        "jsonl",
        "text",
        "parquet",
        "datasets",
        "array",
        "megatron",
        "nanotron",
        "mds",
        "decaylaws",
        "declared",
    ] = Field(
        description="how the text is stored; embedded text comes from installed packages, the formats from array to "
        "decaylaws hold token ids, which are read in place, and declared text is read by an external trainer only"
    )
    path: str | None = Field(
        None, description="file, folder or glob, relative to study.yaml; none for embedded"
    )
    text_field: str = Field(
        "text", description="column or key that holds the text (jsonl, parquet, datasets)"
    )
    tokens_from: str | None = Field(
        None,
        description="what holds the token ids: a column (datasets; mds, tokens by default), or a source of the other "
        "study (decaylaws, the same name by default)",
    )
    token_type: TokenType | None = Field(
        None, description="type of a stored token id, where the store does not say (array, nanotron, mds)"
    )
    append_end: bool = Field(
        False,
        description="put the end-of-document token after each document of a token store that was written without it",
    )
    group: Literal["general", "specialised"] = Field(
        "specialised",
        description="general text keeps abilities, specialised text adds them; the front of the search shows both",
    )
    capability: Capability | None = Field(
        None, description="what the source serves, for objectives by group of domains"
    )
    max_epochs: Positive | None = Field(None, description="how often the target run may repeat this source")
    lower: Share = Field(0.0, description="smallest share of the source in a mixture")
    upper: Share = Field(1.0, description="largest share of the source in a mixture")
    max_bytes: Count | None = Field(None, description="largest amount of text to take, in bytes (UTF-8)")
    min_document_bytes: Count | None = Field(
        None, description="take only documents of at least this many bytes"
    )
    max_document_bytes: Count | None = Field(None, description="take only documents of fewer bytes")
    heldout_fraction: Annotated[float, NUMBER, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of the documents that is held out for evaluation"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error",
        description="error stops at a row that is not valid JSON or has no text; skip leaves such rows out",
    )
    quality: QualitySettings | None = Field(None, description="cuts the source into buckets by quality")
    tokens: Tokens | None = Field(None, description="train tokens of a declared source")
    fingerprint: str | None = Field(
        None, description="version of the content of a declared source; part of the identity of its runs"
    )
    proxy_path: str | None = Field(
        None,
        description="where the external trainer finds the tokens / target.repetition_scale that proxies may read of a "
        "declared source; path where both are the same",
    )

    @model_validator(mode="after")
    def _path_and_bounds(self) -> Self:
        check_source(self)
        if self.format != DECLARED and (self.format == "embedded") != (self.path is None):
            raise ValueError(f"format {self.format!r} {'takes no' if self.path else 'needs a'} path")
        if self.lower > self.upper:
            raise ValueError(f"lower={self.lower} must not exceed upper={self.upper}")
        if self.on_bad == "skip" and self.format in ("embedded", "text"):
            raise ValueError(f"format {self.format!r} has no rows that on_bad could skip; leave it out")
        if (self.min_document_bytes or 0) >= (self.max_document_bytes or math.inf):
            raise ValueError(
                f"min_document_bytes={self.min_document_bytes} must be below "
                f"max_document_bytes={self.max_document_bytes}"
            )
        if self.quality is not None and self.format == "embedded":
            raise ValueError("quality cuts the user's own text, not embedded domains")
        if self.quality is not None and self.quality.field and self.format == "text":
            raise ValueError("plain text has no quality.field; use jsonl or parquet, or a classifier")
        check_store_keys(self)
        return self


class TokenizerSettings(_Settings):
    """Byte-level BPE trained on the train split, or a ready ``tokenizer.json``."""

    vocab_size: Annotated[int, NUMBER, Field(ge=257, le=2**32 - 1)] = Field(
        4096, description="entries of the tokenizer that is trained"
    )
    path: str | None = Field(None, description="a tokenizer.json to use instead of training one")
    end_token: str | None = Field(
        None, description="the token that ends a document, if it is not one of the usual ones"
    )
    train_bytes_per_source: Count = Field(
        2_000_000, description="text of each source that the tokenizer is trained on, in bytes"
    )

    @model_validator(mode="after")
    def _end_token_of_a_ready_one(self) -> Self:
        if self.end_token is not None and self.path is None:
            raise ValueError(
                "end_token names a token of tokenizer.path; a tokenizer that is trained here has its own"
            )
        return self


class ShapeSettings(_Settings):
    """A model shape by its free dimensions; the vocabulary comes from the tokenizer."""

    d_model: Count = Field(description="width of the residual stream")
    num_layers: Count = Field(description="decoder layers")
    num_heads: Count = Field(description="attention heads; d_model must be a multiple")
    num_kv_heads: Count | None = Field(
        None, description="key and value heads (grouped-query attention); num_heads by default"
    )
    d_ff: Count = Field(description="width of the feed-forward layers")
    rope_theta: Positive = Field(10_000.0, description="base of the rotary embedding")
    tie_embeddings: bool = Field(True, description="whether input and output embeddings are one matrix")

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


AnyShape = Annotated[
    Annotated[ShapeSettings, Tag(BY_DIMENSIONS)] | Annotated[DeclaredShape, Tag(BY_PARAMETERS)],
    Discriminator(shape_type),
]


class TrunkSettings(_Settings):
    """The stable phase of each model shape: warm-up, then constant LR on the general mixture."""

    tokens: Tokens = Field(description="length of the stable phase in tokens, warm-up included")
    warmup_tokens: Tokens = Field(description="tokens over which the learning rate rises from 0")
    peak_lr: Positive = Field(description="learning rate of the constant phase, and so of the hand-over")
    scale_lr: Literal["none", "width", "mup"] | dict[str, Positive] = Field(
        "none",
        description="LR by shape: none gives all shapes peak_lr; width gives a shape peak_lr times the proxy's d_model "
        "over its own; mup does so for the matrices of the decoder blocks only, as muP does under Adam, and exports "
        "refuse such a recipe; a mapping gives factors on peak_lr by shape",
    )
    scale_weight_decay: bool = Field(
        False,
        description="with scale_lr: mup, divide the weight decay of these matrices by the factor of their LR, so that "
        "an update shrinks them equally at every width",
    )
    mixture: dict[str, Share] = Field(
        description="share of each source; decays on this mixture are the controls"
    )
    seed: NotNegative = Field(0, description="seed of the initial weights and of the order of the data")

    @model_validator(mode="after")
    def _sums(self) -> Self:
        check_mixture("trunk.mixture", self.mixture)
        if self.warmup_tokens > self.tokens:
            raise ValueError(f"warmup_tokens={self.warmup_tokens} must not exceed tokens={self.tokens}")
        if self.scale_weight_decay and self.scale_lr != "mup":
            raise ValueError("scale_weight_decay needs scale_lr: mup")
        return self


class DesignSettings(_Settings):
    """Which microanneals the sweep runs."""

    num_mixtures: Annotated[int, NUMBER, Field(ge=4)] = Field(
        24, description="candidate mixtures that the proxy runs"
    )
    decay_tokens: Annotated[list[Tokens], Field(min_length=1)] = Field(
        description="lengths of the decays in tokens"
    )
    start_lr_factors: Annotated[list[Positive], Field(min_length=1)] = Field(
        [1.0], description="start learning rates of the decays, as factors of the LR at the hand-over"
    )
    shapes: Annotated[list[DecayShape], Field(min_length=1)] = Field(
        ["linear"], description="shapes of the decays; constant keeps the start LR"
    )
    end_lr_factors: Annotated[list[Annotated[float, NUMBER, Field(ge=0, lt=1)]], Field(min_length=1)] = Field(
        [0.0],
        description="LRs at the end of the decays, as factors of the LR from which each starts; 0.1 ends at a tenth",
    )
    batch_tokens: list[Tokens] = Field(
        default_factory=list, description="batch sizes of the decays to choose from; empty keeps the trunk's"
    )
    num_replicates: Annotated[int, NUMBER, Field(ge=2)] = Field(
        3, description="runs of one plan that differ only in their seed"
    )
    runs_at_other_sizes: Annotated[int, NUMBER, Field(ge=2)] = Field(
        8, description="runs of the design that are repeated at each further size"
    )
    read_outs: Annotated[int, NUMBER, Field(ge=0)] = Field(
        0,
        description="constant-LR runs, on the control and the first mixtures, that emulate decays of all shapes",
    )
    keep_earlier: bool = Field(
        False,
        description="also fit finished decays of earlier plans with the same starts; false makes the answer "
        "depend on study.yaml and the corpus alone",
    )
    seed: NotNegative = Field(0, description="seed of the mixtures and of the order of the data")


class TargetSettings(_Settings):
    """The run that all this is for."""

    shape: str = Field(
        description="the shape or checkpoint that the recommendation is for; it runs no microanneal unless it is the "
        "proxy"
    )
    max_decay_tokens: Tokens = Field(description="budget of the decay at target scale")
    repetition_scale: Positive = Field(
        1.0,
        description="how many times longer the target's decay is than a proxy's of the same design point; "
        "proxies see 1/scale of each source, so that both repeat it equally often",
    )


class EvaluationSetSettings(_Settings):
    """Items that no train text may hold: JSON Lines (``.gz`` and ``.zst`` too) or Parquet."""

    path: str = Field(description="file, relative to study.yaml")
    text_fields: Annotated[list[str], Field(min_length=1)] = Field(
        ["text"], description="keys whose text makes up an item: question, choices, answer"
    )


class DecontaminationSettings(_Settings):
    """Train documents that hold an evaluation item are dropped; sources that repeat held-out text are refused."""

    evaluation_sets: dict[str, EvaluationSetSettings] = Field(
        default_factory=dict,
        description="evaluation sets by name; train documents that hold one of their items are dropped",
    )
    ngram: Annotated[int, NUMBER, Field(ge=8)] = Field(13, description="length in words of a matching run")
    min_coverage: Share = Field(0.5, description="smallest share of an item's words in matching runs")
    hybrid: bool = Field(
        True, description="also find near matches, by the longest common subsequence of words"
    )
    min_common: Share = Field(
        0.75, description="smallest common subsequence of a near match, as a share of the item's words"
    )
    heldout_similarity: Annotated[float, NUMBER, Field(gt=0, le=1)] | None = Field(
        0.1,
        description="train documents of this Jaccard similarity to a held-out document and more are set aside (runs of "
        "five words, of a token store as much in tokens); null keeps them",
    )
    max_heldout_overlap: Share = Field(
        0.05,
        description="largest share of a domain's held-out passages that the train text of a source may repeat",
    )
    on_overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="whether plan refuses a corpus above max_heldout_overlap"
    )


class TrainSettings(_Settings):
    """How proxies compute; part of the identity of every run, unlike ``backend``."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the matmuls; bfloat16 is faster on processors with instructions for it and "
        "changes losses by up to 1e-3 nats per token; auto measures which is faster",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile for the decoder blocks; auto measures when a long sweep is first planned "
        "and keeps the answer",
    )


class SamplerSettings(_Settings):
    """Runs that Optuna proposes after the design, guided by what was measured so far."""

    kind: Literal["tpe", "gp", "nsga2"] = Field(
        description="tpe and gp lower the objective; nsga2 spans the front of general against specialised loss"
    )
    trials: Count = Field(24, description="total number of proposed runs")
    batch: Count = Field(8, description="proposals that run at the same time")
    promote: Annotated[int, NUMBER, Field(ge=2)] | None = Field(
        None,
        description="start every proposal with the shortest of design.decay_tokens and run the best 1/promote of them "
        "at the next length; None lets the sampler choose the length",
    )

    prune: Annotated[float, NUMBER, Field(gt=0, lt=100)] | None = Field(
        None,
        description="stop a proposal early, at one of the evaluation.points, unless it is among the best prune percent "
        "of the runs of its length, batch size and shape; None stops no proposal early",
    )

    @model_validator(mode="after")
    def _one_goal_to_stop_by(self) -> Self:
        for name in ("promote", "prune"):
            if self.kind == "nsga2" and getattr(self, name):
                raise ValueError(f"{name} needs one goal; nsga2 has two")
        return self


class StudySettings(_Settings):
    """The whole of ``study.yaml``."""

    name: Annotated[str, Field(min_length=1)] = Field(
        description="name of the study, also in a shared storage"
    )
    sources: Annotated[dict[str, SourceSettings], Field(min_length=2)] = Field(
        description="sources of text by name; at least two"
    )
    groups: dict[str, GroupSettings] = Field(
        default_factory=dict, description="groups of sources with a bounded total or with fixed proportions"
    )
    tokenizer: TokenizerSettings = Field(TokenizerSettings(), description="how text becomes tokens")
    seq_len: Count = Field(128, description="tokens of a training sequence")
    batch_tokens: Tokens = Field(1024, description="tokens of an optimiser step, a multiple of seq_len")
    shapes: dict[str, AnyShape] = Field(
        default_factory=dict,
        description="shapes of models that the study trains itself, by name; at least two",
    )
    checkpoints: CheckpointsSettings | None = Field(
        None,
        description="models that exist, from which decays start; in place of shapes and trunk, or beside them",
    )
    proxy: str = Field(
        description="the shape or checkpoint that runs the whole design; the others run a part of it"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(), description="the optimiser of trunks, microanneals and the launched run"
    )
    trunk: TrunkSettings | None = Field(None, description="the stable phase of every shape")
    design: DesignSettings = Field(description="the microanneals of the sweep")
    sampler: SamplerSettings | None = Field(
        None, description="runs that Optuna proposes after the design; None proposes no runs"
    )
    objective: ObjectiveSettings = Field(description="what the search minimises, and the guards")
    target: TargetSettings = Field(description="the run that the recommendation is for")
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="how held-out losses are measured"
    )
    decontamination: DecontaminationSettings = Field(
        DecontaminationSettings(), description="evaluation items that are kept out of train text"
    )
    train: TrainSettings = Field(TrainSettings(), description="number format and compiler of the proxies")
    backend: BackendSettings = Field(BackendSettings(), description="where and how fast proxies run")
    tracker: TrackerSettings | None = Field(
        None, description="where runs also log their figures; None keeps them in the study alone"
    )
    storage: str | None = Field(None, description="Optuna storage URL; None keeps a file in the study")
    search_trials: Count = Field(400, description="trials of the search on the fitted law")
    seed: NotNegative = Field(0, description="seed of the fit and the search")
    trainer: Trainer = Field(
        "built-in",
        description="external: another trainer does the runs, see export-runs and record; built-in: run does them",
    )
    external: ExternalSettings = Field(
        ExternalSettings(), description="what is known of the machines of an external trainer"
    )

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

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_the_checkpoints(cls, content: Any) -> Any:
        return with_their_tokenizer(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        self._check_starts()
        if self.optimizer.name == "muon" and self.shapes and self.trainer == "built-in":
            raise InvalidValueError(
                "optimizer.name",
                "muon",
                "cannot train the shapes of a study: trunks are stacked, and the stacked trainer has AdamW only",
                "Set it to adamw, or start from checkpoints alone.",
            )
        self._check_sources()
        self._check_shapes()
        check_trainer(self)
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

    def _check_starts(self) -> None:
        """Trunks need shapes and shapes a trunk; checkpoints need neither."""
        if self.checkpoints is None and self.trunk is None:
            remedy = "Add it to study.yaml, or checkpoints that exist."
            raise InvalidValueError("trunk", None, "is required", remedy)
        if self.trunk is not None and len(self.shapes) < 2 - (self.checkpoints is not None):
            constraint = "must name at least two shapes, of which one is the target's"
            raise InvalidValueError("shapes", list(self.shapes), constraint)
        if self.trunk is not None and not isinstance(self.trunk.scale_lr, str):
            unknown = sorted(set(self.trunk.scale_lr) - set(self.shapes))
            if unknown:
                constraint = f"must be one of the shapes {', '.join(self.shapes)}"
                raise InvalidValueError(f"trunk.scale_lr.{unknown[0]}", unknown[0], constraint)
        if self.checkpoints is None:
            return
        if self.trunk is None and self.shapes:
            constraint = "is required to train the shapes"
            raise InvalidValueError("trunk", None, constraint, "Add it, or leave shapes out.")
        if self.trunk is not None and self.trunk.mixture != self.checkpoints.mixture:
            constraint = f"must be trunk.mixture, {dict(self.trunk.mixture)}: a study has one control"
            raise InvalidValueError("checkpoints.mixture", dict(self.checkpoints.mixture), constraint)
        twice = sorted(set(self.shapes) & set(self.checkpoints.models))
        if twice:
            raise InvalidValueError(f"checkpoints.models.{twice[0]}", twice[0], "is also the name of a shape")
        shortest = min(self.design.decay_tokens)
        if self.checkpoints.warmup_tokens >= shortest:
            constraint = f"must be below the shortest of design.decay_tokens, {shortest}"
            raise InvalidValueError("checkpoints.warmup_tokens", self.checkpoints.warmup_tokens, constraint)

    def _check_shapes(self) -> None:
        for key, name in (("proxy", self.proxy), ("target.shape", self.target.shape)):
            if name not in self.starts:
                kinds = "the shapes" if self.checkpoints is None else "the shapes and checkpoints"
                raise InvalidValueError(key, name, f"must be one of {kinds} {', '.join(self.starts)}")
        for name, shape in self.shapes.items():
            try:
                shape.shape(vocab_size=self.tokenizer.vocab_size, seq_len=self.seq_len)
            except InvalidValueError as error:
                field = f"shapes.{name}.{error.field.removeprefix('shape.')}"
                raise InvalidValueError(field, error.value, error.constraint, error.remedy) from None

    def _check_sources(self) -> None:
        sources, domains = ("source", tuple(self.sources)), ("domain", self.domains)
        named = {
            "trunk.mixture": (self.trunk.mixture if self.trunk else {}, sources),
            "checkpoints.mixture": (self.checkpoints.mixture if self.checkpoints else {}, sources),
            "objective.weights": (self.objective.weights, domains),
            "objective.guard_domains": (self.objective.guard_domains, domains),
            "objective.insist": (self.objective.insist, domains),
            "objective.prior": (self.objective.prior or {}, sources),
        }
        for key, (names, (kind, known)) in named.items():
            unknown = sorted(set(names) - set(known))
            if unknown:
                raise InvalidValueError(
                    key, unknown, f"names an unknown {kind}", f"The {kind}s are {', '.join(known)}."
                )
        stores = [name for name, source in self.sources.items() if is_token_store(source)]
        if stores and self.tokenizer.path is None:
            raise InvalidValueError(
                "tokenizer.path",
                None,
                f"must name the tokenizer.json whose ids 'sources.{stores[0]}' holds",
                "A tokenizer that is trained here would give tokens other ids.",
            )
        check_evaluation(self)
        _ = self.objective_weights  # groups without a source, and domains that count twice
        _ = self.source_groups  # members that are not there, proportions that are fixed twice

    @property
    def starts(self) -> tuple[str, ...]:
        """Names of all from which decays can start: the shapes, each by its trunk, and the checkpoints."""
        return (*self.shapes, *(self.checkpoints.models if self.checkpoints else ()))

    @property
    def control_mixture(self) -> dict[str, float]:
        """What trunks and checkpoints were trained on; decays on it are the controls."""
        if self.trunk is not None:
            return self.trunk.mixture
        assert self.checkpoints is not None
        return self.checkpoints.mixture

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of all that every run is evaluated on: sources, evaluation domains and question sets."""
        return (*self.sources, *self.evaluation.sets)

    @property
    def general_domains(self) -> list[str]:
        """Names of the domains of the general group."""
        return [name for name, each in self._by_domain.items() if each.group == "general"]

    @property
    def _by_domain(self) -> dict[str, SourceSettings | EvaluationDomainSettings | QuestionSetSettings]:
        """What each domain is, in their order."""
        return {**self.sources, **self.evaluation.sets}

    @property
    def objective_weights(self) -> dict[str, float]:
        """Weight of every domain that counts in the objective, from ``objective.weights`` and ``.capabilities``."""
        return objective_weights(self.objective.capabilities, self.capabilities, self.objective.weights)

    @property
    def capabilities(self) -> dict[str, Capability | None]:
        """What each domain shows, as far as study.yaml says it."""
        return {name: each.capability for name, each in self._by_domain.items()}

    @property
    def objective_unit(self) -> Unit:
        """In what the objective weighs: what study.yaml says, or bits per byte where other text or questions count."""
        return self.objective.unit or ("bits_per_byte" if self.evaluation.sets else "nats_per_token")

    @property
    def is_declared(self) -> bool:
        """Whether the text is only declared, and read by an external trainer alone."""
        return all(source.format == DECLARED for source in self.sources.values())

    @property
    def source_groups(self) -> tuple[SourceGroup, ...]:
        """The buckets of each source that is cut by quality, and ``groups``."""
        return source_groups(self.groups, self.sources)


def load_settings(path: Path) -> StudySettings:
    """Read and check ``study.yaml``.

    Raises:
        DataError: the file is missing or is no YAML mapping.
        InvalidValueError: a key is unknown or a value is not what it must be; names the field and the file.
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
    try:
        return parse_settings(content)
    except InvalidValueError as error:
        remedy = f"{error.remedy} The file is {path}.".strip()
        raise InvalidValueError(error.field, error.value, error.constraint, remedy) from None


def parse_settings(content: Mapping[str, Any]) -> StudySettings:
    """Check a mapping of settings; the first problem becomes one ``InvalidValueError``."""
    try:
        return StudySettings.model_validate(content)
    except ValidationError as error:
        raise _first_problem(error) from None


def _first_problem(error: ValidationError) -> InvalidValueError:
    # a misspelt key is also a missing one: the misspelling is the cause
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValueError):
        return cause
    path = (
        ".".join(str(part) for part in problem["loc"] if part not in (BY_DIMENSIONS, BY_PARAMETERS))
        or "study.yaml"
    )
    if problem["type"] == "extra_forbidden":
        return InvalidValueError(
            path, problem["input"], "is not a known key", "Check its spelling and its indent."
        )
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"] if not isinstance(problem["input"], Mapping) else "..."
    if problem["type"] == "missing":
        return InvalidValueError(path, None, "is required", "Add it to study.yaml.")
    return InvalidValueError(path, value, f"is not valid ({message})")
