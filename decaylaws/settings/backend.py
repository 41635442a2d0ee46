"""``backend`` of ``study.yaml``: where and how fast runs train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from decaylaws.settings.numbers import Count, Tokens
from decaylaws.settings.section import Section


class BackendSettings(Section):
    """Where and how proxies run; never changes what is computed, only how fast."""

    workers: Count | None = Field(
        None, description="worker processes; None takes one per core, or one per GPU"
    )
    slots: Count | None = Field(
        None,
        description="members that train as one stack in a worker; None measures and takes the fastest number",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where proxies run; auto takes a GPU if there is one"
    )
    keep_checkpoints: bool = Field(False, description="keep the last checkpoint of every decay")
    engine: Literal["auto", "stacked", "fsdp"] = Field(
        "auto",
        description="trainer of runs that start from a checkpoint: stacked trains several plain Llamas at once, "
        "fsdp any causal LM one at a time; auto stacks what can be stacked and fits the memory. Losses agree to "
        "1e-4 nats per token",
    )
    processes: Count = Field(
        1, description="processes of one run in the fsdp trainer; more than one are started by torchrun"
    )
    micro_batch_tokens: Tokens = Field(
        1024,
        description="tokens of a process in one forward pass of the fsdp trainer, at least one sequence; the gradients "
        "of the passes of a step are added up",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the fsdp trainer: less memory, a third more compute"
    )
