"""``evaluation`` in ``study.yaml``: what every run is measured on besides the held-out text of its sources."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from decaylaws.errors import InvalidValueError
from decaylaws.settings.capabilities import Capability
from decaylaws.settings.numbers import NUMBER, Count, Tokens
from decaylaws.settings.section import Section
from decaylaws.settings.sources import TokenType

StoreFormat = Literal["array", "megatron", "nanotron", "mds", "decaylaws", "datasets"]
Group = Literal["general", "specialised"]
RowField = Literal["question", "context", "choices", "labels", "gold", "answer", "id", "group", "cluster"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # also a task of 'decaylaws evaluate'
NO_NUMBERS = {"group", "capability", "on_the_way"}
"""Settings of a domain or a question set that change no score: an objective may be asked of finished runs."""


class EvaluationDomainSettings(Section):
    """Held-out text of one's own that no run trains on. Its first ``evaluation.tokens_per_domain`` tokens are read."""

    path: str = Field(
        description="file, folder or glob of JSON Lines, text or Parquet, or of a token store, relative to study.yaml"
    )
    text_field: str = Field("text", description="column or key that holds the text (JSON Lines, Parquet)")
    format: StoreFormat | None = Field(
        None, description="how token ids are stored; None reads text, whose format its suffix says"
    )
    tokens_from: str | None = Field(
        None, description="what holds the token ids, as of a source (datasets, mds, decaylaws)"
    )
    token_type: TokenType | None = Field(
        None, description="type of a stored token id, where the store does not say (array, nanotron, mds)"
    )
    append_end: bool = Field(
        False,
        description="put the end-of-document token after each document of a store that was written without it",
    )
    group: Group = Field("specialised", description="side of the front on which the domain counts")
    capability: Capability | None = Field(
        None, description="what the domain shows, for objectives by group of domains"
    )

    @model_validator(mode="after")
    def _keys_of_stores(self) -> Self:
        if self.format is None:
            for key in ("tokens_from", "token_type", "append_end"):
                if getattr(self, key):
                    raise ValueError(f"{key} is about token ids; say their format")
        elif self.text_field != "text":
            raise ValueError(
                f"text_field is about text, and format {self.format!r} holds token ids; leave it out"
            )
        return self


class QuestionSetSettings(Section):
    """A question set, scored at the end of every run: bits per byte of the gold answers, and accuracy."""

    path: str = Field(description="JSON Lines, a JSON array or Parquet, relative to study.yaml")
    rows: Literal["questions", "gsm8k", "mmlu", "arc", "hellaswag"] = Field(
        "questions",
        description="how a row is laid out: as 'decaylaws evaluate' reads it, or as a published benchmark is",
    )
    fields: dict[RowField, str] = Field(
        default_factory=dict,
        description="for rows of another layout: where a row holds each part, such as gold: answerKey; a dot goes one "
        "level down, such as choices: choices.text",
    )
    max_questions: Count | None = Field(None, description="take only the first so many questions")
    accuracy: bool = Field(
        True, description="also score the wrong choices, for accuracy; each costs as much as the gold answer"
    )
    on_the_way: bool = Field(
        False, description="also score the set at the evaluation.points on the way, not only at start and end"
    )
    group: Group = Field("specialised", description="side of the front on which the set counts")
    capability: Capability | None = Field(
        None, description="what the set shows, for objectives by group of domains"
    )

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        if self.fields and self.rows != "questions":
            raise ValueError(f"takes rows: {self.rows} or fields, not both")
        return self


class EvaluationSettings(Section):
    """Held-out evaluation, the same tokens and questions for every run."""

    tokens_per_domain: Tokens = Field(
        16_384, description="held-out tokens of each domain that an evaluation reads"
    )
    points: Annotated[int, NUMBER, Field(ge=1)] = Field(
        2, description="evaluations of a microanneal after its start"
    )
    domains: dict[str, EvaluationDomainSettings] = Field(
        default_factory=dict, description="held-out text by name that belongs to no source"
    )
    questions: dict[str, QuestionSetSettings] = Field(
        default_factory=dict, description="question sets by name"
    )

    @model_validator(mode="after")
    def _plain_names(self) -> Self:
        for name in (*self.domains, *self.questions):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} must be a plain name of letters, digits and _ . + -")
        twice = sorted(set(self.domains) & set(self.questions))
        if twice:
            raise ValueError(f"{twice[0]!r} is the name of a domain and of a question set")
        return self

    @property
    def asked_at_ends(self) -> list[str]:
        """Question sets that are asked at the start and at the end of a run only."""
        return [name for name, each in self.questions.items() if not each.on_the_way]

    @property
    def sets(self) -> dict[str, EvaluationDomainSettings | QuestionSetSettings]:
        """Domains and question sets by name, in the order in which tables list them."""
        return {**self.domains, **self.questions}


def check_evaluation(settings: Any) -> None:
    """Refuse sets that a study cannot measure, or not where it needs them.

    Args:
        settings: of the study.

    Raises:
        InvalidValueError: naming the key.
    """
    evaluation: EvaluationSettings = settings.evaluation
    for name in evaluation.sets:
        field = f"evaluation.{'domains' if name in evaluation.domains else 'questions'}.{name}"
        if name in settings.sources:
            raise InvalidValueError(field, name, "has the name of a source", "Give it another name.")
        if settings.is_declared:
            raise InvalidValueError(
                field, name, "cannot be measured where all sources are declared",
                "The trainer that reads them would have to score it, and decaylaws could not tell how.",
            )  # fmt: skip
    if settings.sampler is None or settings.sampler.prune is None:
        return
    weighed = settings.objective_weights
    for name in evaluation.asked_at_ends:
        if weighed.get(name, 0.0) > 0:
            raise InvalidValueError(
                f"evaluation.questions.{name}.on_the_way", False,
                "must be true, since sampler.prune judges runs by the objective on their way",
                "Set it to true, or leave sampler.prune out.",
            )  # fmt: skip
