"""Sources cut into quality buckets: ``web`` with scores becomes ``web.high`` and ``web.low``, sources like any other.

So the quality threshold is one more dimension of the mixture: the design draws buckets up and down, the laws learn
what each is worth, and the search decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from decaylaws.settings.numbers import NUMBER, Finite
from decaylaws.settings.section import Section

_NAMES = {2: ["low", "high"], 3: ["low", "medium", "high"]}


class ClassifierSettings(Section):
    """A linear classifier on hashed words, trained on two files of examples; its score is the chance of ``good``."""

    good: str = Field(description="JSON Lines, text or Parquet, relative to study.yaml")
    bad: str = Field(description="examples of text to avoid, in the same formats")
    text_field: str = Field("text", description="column or key that holds the text of the examples")


class PerplexitySettings(Section):
    """A language model as judge: the score is minus its bits per byte."""

    checkpoint: str = Field(description="Hugging Face folder with tokenizer, relative to study.yaml")
    device: str = Field("cpu", description="where the language model runs")


class QualitySettings(Section):
    """How the documents of a source are scored, and where they are cut.

    Attributes:
        field: key or column that holds the score, higher for better.
        classifier: alternatively, a classifier that scores the text.
        perplexity: alternatively, a language model that scores the text.
        thresholds: scores at which buckets are cut, rising; a document on a threshold is in the bucket above.
        quantiles: alternatively, shares of the train text (in bytes) below each cut, rising.
        names: of the buckets, worst first; ``low``, (``medium``,) ``high`` or ``q1`` to ``qn`` without it.
        source: the source as ``study.yaml`` names it, once it is cut.
        bucket: which of its buckets this is, once it is cut.
    """

    field: str | None = None
    classifier: ClassifierSettings | None = None
    perplexity: PerplexitySettings | None = None
    thresholds: list[Finite] | None = None
    quantiles: list[Annotated[float, NUMBER, Field(gt=0, lt=1)]] | None = None
    names: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]] = Field(default_factory=list)
    source: str = ""
    bucket: str = ""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        scorers = [name for name in ("field", "classifier", "perplexity") if getattr(self, name) is not None]
        if len(scorers) != 1:
            raise ValueError(f"needs one of field, classifier and perplexity; it has {scorers or 'none'}")
        if (self.thresholds is None) == (self.quantiles is None):
            raise ValueError("needs either thresholds or quantiles")
        if not self.cuts or any(low >= high for low, high in zip(self.cuts, self.cuts[1:])):
            raise ValueError(f"thresholds or quantiles must rise, at least one; they are {self.cuts}")
        count = len(self.cuts) + 1
        if self.names and (len(self.names) != count or len(set(self.names)) != count):
            raise ValueError(f"{len(self.cuts)} cuts make {count} buckets: give {count} different names")
        return self

    @property
    def cuts(self) -> list[float]:
        """Thresholds or quantiles."""
        return self.thresholds or self.quantiles or []

    @property
    def buckets(self) -> list[str]:
        """Names of the buckets, worst first."""
        count = len(self.cuts) + 1
        return self.names or _NAMES.get(count) or [f"q{number}" for number in range(1, count + 1)]


def cut_sources(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Source settings in which every source with ``quality`` is replaced by its buckets, best first.

    A paragraph that stands in two buckets stays in the one that comes first, hence in the better one.

    Args:
        sources: plain mappings by name, as ``study.yaml`` holds them.

    Raises:
        ValueError: a bucket has the name of another source.
    """
    cut: dict[str, Any] = {}
    for name, source in sources.items():
        quality = source.get("quality") if isinstance(source, Mapping) else None
        if quality is None or (isinstance(quality, Mapping) and quality.get("bucket")):
            cut[name] = source
            continue
        try:
            checked = QualitySettings.model_validate(quality)
        except ValidationError:
            cut[name] = source  # its own check reports it, with the path of the field
            continue
        for bucket in reversed(checked.buckets):
            own = f"{name}.{bucket}"
            if own in sources:
                raise ValueError(f"bucket {own!r} has the name of another source; rename one of them")
            cut[own] = {**source, "quality": {**quality, "source": name, "bucket": bucket}}
    return cut
