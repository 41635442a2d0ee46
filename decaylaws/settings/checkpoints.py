"""``checkpoints`` in ``study.yaml``: models that exist, from which microanneals start in place of trained trunks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from decaylaws.errors import InvalidValueError
from decaylaws.settings.external import BY_DIMENSIONS, BY_PARAMETERS, DeclaredCheckpoint, shape_type
from decaylaws.settings.numbers import LearningRate, Share, Tokens, TokensOrNone, check_mixture
from decaylaws.settings.section import Section


class EarlierCheckpoint(Section):
    """An earlier checkpoint of the same run."""

    path: str = Field(description="Hugging Face folder, relative to study.yaml")
    tokens: Tokens = Field(description="tokens that it has seen")


class CheckpointSettings(Section):
    """One checkpoint: a Hugging Face folder, and where in its run it stands."""

    path: str = Field(
        description="Hugging Face folder of a causal LM, relative to study.yaml; no code of it is run"
    )
    tokens: Tokens = Field(description="tokens that the checkpoint has seen")
    lr: LearningRate | None = Field(
        None,
        description="LR of its last step, from which decays take over; None reads it from the trainer state beside it",
    )
    earlier: tuple[EarlierCheckpoint, ...] = Field(
        (),
        description=(
            "its last checkpoints before it, at the same LR: the loss of the mean of their weights tells the decay law "
            "what a decay gains here; the law uses it where every checkpoint has some"
        ),
    )

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        tokens = [each.tokens for each in self.earlier]
        if any(later <= before for before, later in pairwise([*tokens, self.tokens])):
            raise InvalidValueError(
                "earlier", tokens, f"must ascend in tokens and end before the checkpoint's {self.tokens:,}"
            )
        return self


AnyCheckpoint = Annotated[
    Annotated[CheckpointSettings, Tag(BY_DIMENSIONS)] | Annotated[DeclaredCheckpoint, Tag(BY_PARAMETERS)],
    Discriminator(shape_type),
]


class CheckpointsSettings(Section):
    """Checkpoints of one family, and how decays start from them."""

    models: Annotated[dict[str, AnyCheckpoint], Field(min_length=1)] = Field(
        description="checkpoints by name: several sizes, several checkpoints of one run, or one"
    )
    mixture: dict[str, Share] = Field(
        description="share of each source in what they were trained on; decays on this mixture are the controls"
    )
    optimizer_state: Literal["load", "fresh"] = Field(
        "fresh",
        description=(
            "load takes the moments out of each folder: optimizer.safetensors, the Trainer's optimizer.pt, or a "
            "trainer's own checkpoint linked there as 'optimizer'; fresh starts them from zero"
        ),
    )
    warmup_tokens: TokensOrNone = Field(
        0, description="tokens over which each decay first raises the LR from 0; they are part of its length"
    )

    @model_validator(mode="after")
    def _sums(self) -> Self:
        check_mixture("checkpoints.mixture", self.mixture)
        return self


def with_their_tokenizer(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of ``study.yaml`` with the tokenizer of its checkpoints, unless it names a file itself.

    The text must be in the ids that the models know, so that no tokenizer is trained beside a checkpoint.

    Args:
        content: not checked yet.

    Raises:
        InvalidValueError: the tokenizer is to be trained.
    """
    checkpoints, tokenizer = content.get("checkpoints"), content.get("tokenizer") or {}
    models = checkpoints.get("models") if isinstance(checkpoints, Mapping) else None
    if not isinstance(models, Mapping) or not isinstance(tokenizer, Mapping) or tokenizer.get("path"):
        return content
    if any(shape_type(model) == BY_PARAMETERS for model in models.values() if isinstance(model, Mapping)):
        return content  # declared ones are folders of another trainer, with no tokenizer.json to read
    for name in ("vocab_size", "train_bytes_per_source"):
        if name in tokenizer:
            constraint = "cannot be chosen beside checkpoints, which have a tokenizer"
            raise InvalidValueError(f"tokenizer.{name}", tokenizer[name], constraint, "Leave it out.")
    paths = [model.get("path") for model in models.values() if isinstance(model, Mapping)]
    if not paths or not isinstance(paths[0], str):
        return content  # what is wrong with the models is said where they are checked
    return {**content, "tokenizer": {**tokenizer, "path": f"{paths[0]}/tokenizer.json"}}
