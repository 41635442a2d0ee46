"""``study.yaml``: what the user wants, checked key by key before anything runs.

Every model forbids unknown keys, so a typo is an error that names the key; every error carries the dotted
path of the field, the value and what it must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.mixtures import SourceGroup
from decaylaws.runs.columns import Unit
from decaylaws.settings.backend import BackendSettings
from decaylaws.settings.capabilities import Capability, objective_weights
from decaylaws.settings.checkpoints import CheckpointsSettings, with_their_tokenizer
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.design import DesignSettings, SamplerSettings, TargetSettings
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
    ExternalSettings,
    Trainer,
    check_trainer,
)
from decaylaws.settings.groups import GroupSettings, source_groups
from decaylaws.settings.numbers import Count, NotNegative, Tokens
from decaylaws.settings.objective import ObjectiveSettings
from decaylaws.settings.optimizer import OptimizerSettings
from decaylaws.settings.quality import cut_sources
from decaylaws.settings.section import Section
from decaylaws.settings.sources import SourceSettings, TokenizerSettings, is_token_store
from decaylaws.settings.stages import check_stages
from decaylaws.settings.tracker import TrackerSettings
from decaylaws.settings.training import AnyShape, TrainSettings, TrunkSettings


class StudySettings(Section):
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
        check_stages(self)
        self._check_lengths()
        return self

    def _check_lengths(self) -> None:
        """Runs are whole sequences, at least one step long, and one of the lengths fits the budget."""
        batches = [("batch_tokens", self.batch_tokens)]
        batches += [("design.batch_tokens", size) for size in self.design.batch_tokens]
        runs = [("design.decay_tokens", tokens) for tokens in self.design.decay_tokens]
        runs += [("trunk.tokens", self.trunk.tokens)] if self.trunk else []
        for key, tokens in [*batches, *(runs if self.trainer == "built-in" else [])]:
            if tokens % self.seq_len:
                below = tokens // self.seq_len * self.seq_len
                nearest = [each for each in (below, below + self.seq_len) if each]
                remedy = f"Write {' or '.join(f'{each:_}' for each in nearest)}."
                raise InvalidValueError(key, tokens, f"must be a multiple of seq_len={self.seq_len}", remedy)
        shortest = min(self.design.decay_tokens)
        for key, size in batches[1:] or batches:
            if size > shortest:
                constraint = f"must not exceed the shortest of design.decay_tokens, {shortest}"
                raise InvalidValueError(key, size, constraint, "A decay has at least one whole step.")
        if self.trunk and self.batch_tokens > self.trunk.tokens:
            constraint = f"must not exceed trunk.tokens, {self.trunk.tokens}"
            raise InvalidValueError("batch_tokens", self.batch_tokens, constraint)
        if shortest > self.target.max_decay_tokens:
            constraint = f"must reach the shortest of design.decay_tokens, {shortest}"
            raise InvalidValueError("target.max_decay_tokens", self.target.max_decay_tokens, constraint)

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
    if path.parent.is_file():
        raise DataError(f"{path.parent} is a file. Give the study's folder, {path.parent.parent}.")
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
        ".".join(str(part) for part in problem["loc"] if part not in (BY_DIMENSIONS, BY_PARAMETERS, "[key]"))
        or "study.yaml"
    )
    if problem["type"] == "extra_forbidden":
        return InvalidValueError(
            path, problem["input"], "is not a known key", "Check its spelling and its indent."
        )
    if problem["type"] == "missing":
        return InvalidValueError(path, None, "is required", "Add it to study.yaml.")
    value = problem["input"]
    if problem["type"] == "too_short" and isinstance(value, Mapping):
        return InvalidValueError(path, list(value), f"needs at least {problem['ctx']['min_length']} entries")
    message = problem["msg"].removeprefix("Value error, ")
    return InvalidValueError(path, value, f"is not valid ({message})")
