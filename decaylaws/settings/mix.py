"""The question that is put to a table of runs: how to read it, what to lower, what to keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import load_yaml
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.settings.groups import GroupSettings
from decaylaws.settings.numbers import NotNegative, Positive, Share, Tokens, Weight
from decaylaws.settings.section import Section

Text = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else str(value))]
UNKNOWN_TOKENS = 10**9
"""Tokens that stand for all sources together where the question does not say how many each holds."""


class SourceQuestion(Section):
    """What is known of a source, and what is wanted of it."""

    available_tokens: Tokens | None = Field(None, description="unique tokens that the source holds")
    max_epochs: Positive | None = Field(
        None, description="how often the run may repeat it; needs its available_tokens and decay_tokens"
    )
    run_epochs: Positive | None = Field(
        None,
        description="how often a run of the table would pass over the source if it read nothing else; its tokens over "
        "available_tokens where the table states one length and this is not set",
    )
    lower: Share = Field(0.0, description="smallest share")
    upper: Share = Field(1.0, description="largest share")


class MixSettings(Section):
    """The question of ``decaylaws mix``, every part of which has a default."""

    columns: dict[str, Text] = Field(
        default_factory=dict,
        description="our name of a column to the table's: run, mix:SOURCE, loss:TARGET, ...",
    )
    shares: str | None = Field(None, description="what the names of share columns begin with")
    targets: str | None = Field(None, description="what the names of measured columns begin or end with")
    direction: Literal["lower", "higher"] | None = Field(
        None, description="whether a lower or a higher value is better; losses and bits per byte are lower"
    )
    best: Positive | None = Field(
        None, description="the best value that a score can have; 1 or 100 where the scores show which"
    )
    rest: str | None = Field(None, description="source that takes what the other shares leave of the whole")
    where: dict[str, Text] = Field(default_factory=dict, description="value by column: only such rows count")
    weights: dict[str, Weight] = Field(
        default_factory=dict, description="weight of each target in the objective; all weigh alike by default"
    )
    guards: dict[str, Weight] = Field(
        default_factory=dict, description="target to how much worse than the control it may become"
    )
    control: Text = Field(
        "mean",
        description="what guards are measured against: mean (of the runs), available, or the name of a run; with the "
        "decay law the trunk's mixture where it is not set",
    )
    prior: Literal["mean", "available"] = Field(
        "mean", description="mixture to stay near: the mean of the runs, or in proportion to available_tokens"
    )
    kl_strength: Weight = Field(
        0.0, description="loss that one nat of KL divergence from the prior has to earn; olmix takes .05"
    )
    sources: dict[str, SourceQuestion] = Field(default_factory=dict, description="limits by source")
    groups: dict[str, GroupSettings] = Field(
        default_factory=dict, description="sources that are bounded together, or keep their proportions"
    )
    decay_tokens: Tokens | None = Field(
        None,
        description="tokens of the run to plan, for caps on epochs; for the decay law the most it may choose",
    )
    trunk: dict[str, Share] = Field(
        default_factory=dict,
        description="decay law: mixture before the decays; else that of the runs of role control",
    )
    constants: dict[str, Text] = Field(
        default_factory=dict,
        description="decay law: what holds for every run and is no column (batch_tokens: 4M)",
    )
    law: str = Field(
        "blend",
        description="regression of the recommendation, or decay; where it is not set, the decay law is taken for runs "
        "that differ in length or LR and state what it needs",
    )
    seed: NotNegative = Field(0, description="seed of everything random")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            DataError: the file is missing or holds no mapping.
            InvalidValueError: a key is unknown or a value is not what it must be.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no file {path}.")
        try:
            content = load_yaml(path.read_text(encoding="utf-8-sig"), path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from None
        if not isinstance(content, Mapping):
            raise DataError(f"{path} must hold a mapping of settings.")
        return cls.checked(content, f" The file is {path}.")

    @classmethod
    def checked(cls, content: Mapping[str, Any], remedy: str = "") -> Self:
        """Settings from plain values; the first problem is one error.

        Raises:
            InvalidValueError: a key is unknown or a value is not what it must be.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            path = ".".join(map(str, problem["loc"])) or "settings"
            if problem["type"] == "extra_forbidden":
                raise InvalidValueError(
                    path, problem["input"], "is not a known key", remedy.strip()
                ) from None
            message = problem["msg"].removeprefix("Value error, ")
            raise InvalidValueError(
                path, problem["input"], f"is not valid ({message})", remedy.strip()
            ) from None

    @property
    def knows_tokens(self) -> bool:
        """Whether available tokens are given."""
        return any(each.available_tokens is not None for each in self.sources.values())

    def space(
        self, shares: Mapping[str, float], blocks: Mapping[str, tuple[tuple[str, ...], float]]
    ) -> MixtureSpace:
        """The mixtures that may be recommended.

        Args:
            shares: mean share of every source in the runs, which stand for their tokens where those are not known.
            blocks: by name, sources whose shares sum to a fixed total, such as those of a phase.

        Raises:
            InvalidValueError: an unknown source, tokens that are given for some sources only, or an epoch cap without
                tokens.
        """
        unknown = [name for name in self.sources if name not in shares]
        if unknown:
            raise InvalidValueError(
                f"sources.{unknown[0]}",
                unknown[0],
                "is not a source of the table",
                f"Sources: {_listed(shares)}.",
            )
        limits = []
        for name, share in shares.items():
            known = self.sources.get(name, SourceQuestion.model_construct())
            if self.knows_tokens and known.available_tokens is None:
                raise InvalidValueError(
                    f"sources.{name}.available_tokens", None, "must be given where that of another source is"
                )
            if known.max_epochs is not None and (known.available_tokens is None or self.decay_tokens is None):
                raise InvalidValueError(
                    f"sources.{name}.max_epochs", known.max_epochs, "needs available_tokens and decay_tokens"
                )
            tokens = known.available_tokens or max(round(UNKNOWN_TOKENS * share), 1)
            limits.append(SourceLimits(name, tokens, known.max_epochs, known.lower, known.upper))
        groups = [settings.group(name) for name, settings in self.groups.items()]
        fixed = [
            GroupSettings(members=list(members), lower=total, upper=total).group(name)
            for name, (members, total) in blocks.items()
        ]
        return MixtureSpace(tuple(limits), (*groups, *fixed))


def _listed(names: Mapping[str, object]) -> str:
    first = list(names)[:20]
    return ", ".join(first) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
