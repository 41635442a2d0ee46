"""What a full-scale run needs beyond its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from decaylaws.errors import InvalidValueError
from decaylaws.io.files import write_text
from decaylaws.recipe.files import read_mapping, to_json

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]


LAYOUT = frozenset(
    {
        "recipe", "corpus", "start", "output", "device", "micro_batch_sequences", "replicas",
        "activation_checkpointing", "checkpoint_interval", "checkpoint_seconds", "save_model", "keep_last",
        "async_checkpoints", "eval_points", "eval_at_ends", "log_interval", "tensorboard", "wandb_project",
        "trackio_project",
    }
)  # fmt: skip
"""Settings that may change between a run and its resumption: where things are, how the work is laid out and what is
written on the way. They move numbers by the rounding of sums at most."""


class TrainSettings(BaseModel):
    """Settings of the trainer; paths as the ranks see them.

    Attributes:
        recipe: the recipe file.
        corpus: folder of the prepared corpus.
        start: checkpoint to start from: a member checkpoint (``.safetensors``) or a Hugging Face folder.
        output: folder for metrics, checkpoints and the result.
        device: device to train on; ``auto`` takes CUDA if it is available.
        dtype: number format of the matmuls; parameters and moments stay float32. ``auto`` is bfloat16 on a GPU, where
            its peak rate is several times as high, and float32 on a CPU.
        micro_batch_sequences: sequences of a rank in one forward pass, in the recipe's first stage; more are
            accumulated. A stage of longer sequences takes fewer, so that the tokens of a pass stay.
        replicas: groups that hold a whole copy of the model (HSDP); 1 shards over all ranks.
        activation_checkpointing: recompute activations in the backward pass.
        compile: compile each decoder layer and the loss of the output head; ``auto`` does so on a GPU.
        z_loss: weight of the squared log of the softmax's normaliser; 0 leaves it out.
        router_aux_loss_coef: weight of the experts' balance loss; ``None`` takes the checkpoint's own.
        checkpoint_interval: steps between checkpoints; 0 saves at the end only.
        checkpoint_seconds: also save after so much time; ``None`` does not look at the clock.
        save_model: whether the last checkpoint and the Hugging Face folder are written; a microanneal of a sweep is
            wanted for its losses alone.
        keep_last: checkpoints to keep.
        async_checkpoints: write checkpoints in the background.
        eval_points: evaluations after the start, evenly spaced; the last one is at the end.
        eval_tokens_per_domain: held-out tokens of each domain, in windows of the last stage's length.
        eval_at_ends: question sets that are asked before the first step and after the last one only.
        max_skipped_steps: steps in a row that may be skipped because loss or gradient are not finite or
            because the loss jumps.
        max_loss_jump: nats per token above the median of the stage's last losses from which on a step is
            skipped; ``None`` takes every finite loss.
        average_last_steps: number of last steps whose mean weights are exported as well; 0 for none.
        log_interval: steps between lines of the metrics file.
        tensorboard: write TensorBoard events beside the metrics.
        wandb_project: project of Weights & Biases to which the metrics are also sent.
        trackio_project: project of Trackio to which the metrics are also sent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Path
    corpus: Path
    start: Path
    output: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch_sequences: Count = 8
    replicas: Count = 1
    activation_checkpointing: bool = False
    compile: Literal["auto"] | bool = "auto"
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    router_aux_loss_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    checkpoint_interval: Natural = 100
    checkpoint_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    save_model: bool = True
    keep_last: Count = 2
    async_checkpoints: bool = False
    eval_points: Count = 1
    eval_tokens_per_domain: Count = 16_384
    eval_at_ends: list[str] = []
    max_skipped_steps: Natural = 3
    max_loss_jump: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 2.0
    average_last_steps: Natural = 0
    log_interval: Count = 1
    tensorboard: bool = False
    wandb_project: str | None = None
    trackio_project: str | None = None

    @property
    def trackers(self) -> tuple[str, ...]:
        """Packages of the trackers that are asked for, see :data:`proxy_runs.trackers.TITLES`."""
        wanted = {
            "tensorboard": self.tensorboard,
            "wandb": self.wandb_project is not None,
            "trackio": self.trackio_project is not None,
        }
        return tuple(package for package, is_wanted in wanted.items() if is_wanted)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the settings that :meth:`save` wrote.

        Raises:
            InvalidValueError: a setting is unknown or holds what it must not.
        """
        return cls.checked(**read_mapping(path))

    @classmethod
    def checked(cls, **values: object) -> Self:
        """Settings, with errors that name field, value and remedy."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            # a misspelt key is also a missing one: the misspelling is the cause
            first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
            field = "launch." + ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                remedy = f"The settings are {', '.join(cls.model_fields)}."
                raise InvalidValueError(
                    field, first["input"], "is not a setting of the trainer", remedy
                ) from error
            raise InvalidValueError(field, first["input"], f"is not valid: {first['msg']}") from error

    def resolved(self, *, on_gpu: bool) -> Self:
        """The settings with what ``auto`` comes to in ``dtype`` and ``compile``."""
        chosen = {"dtype": "bfloat16" if on_gpu else "float32", "compile": on_gpu}
        update = {name: value for name, value in chosen.items() if getattr(self, name) == "auto"}
        return self.model_copy(update=update)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run, as JSON values."""
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name not in LAYOUT}

    def save(self, path: Path) -> Path:
        """Write the settings as JSON."""
        write_text(path, to_json(self.model_dump(mode="json")))
        return path
