"""What may not stand in train text, in ``study.yaml``: evaluation items and held-out passages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from decaylaws.settings.numbers import NUMBER, Share
from decaylaws.settings.section import Section


class EvaluationSetSettings(Section):
    """Items that no train text may hold: JSON Lines (``.gz`` and ``.zst`` too) or Parquet."""

    path: str = Field(description="file, relative to study.yaml")
    text_fields: Annotated[list[str], Field(min_length=1)] = Field(
        ["text"], description="keys whose text makes up an item: question, choices, answer"
    )


class DecontaminationSettings(Section):
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
