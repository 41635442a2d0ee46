"""What a study runs and for what, in ``study.yaml``: the design, the sampler's proposals and the target."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from decaylaws.settings.numbers import (
    NUMBER,
    Count,
    LearningRate,
    NotNegative,
    Positive,
    Share,
    Tokens,
    TokensOrNone,
)
from decaylaws.settings.section import Section

DecayShape = Literal["linear", "cosine", "1-sqrt", "constant"]


class DesignSettings(Section):
    """Which microanneals the sweep runs."""

    num_mixtures: Annotated[int, NUMBER, Field(ge=4)] = Field(
        24, description="candidate mixtures that the proxy runs"
    )
    decay_tokens: Annotated[list[Tokens], Field(min_length=1)] = Field(
        description="lengths of the decays in tokens; multiples of seq_len with the built-in trainer"
    )
    start_lr_factors: Annotated[list[LearningRate], Field(min_length=1)] = Field(
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
        default_factory=list,
        description="batch sizes of the decays to choose from, at most the shortest decay; empty keeps the trunk's",
    )
    num_replicates: Annotated[int, NUMBER, Field(ge=2)] = Field(
        3, description="runs of one plan that differ only in their seed"
    )
    runs_at_other_sizes: Annotated[int, NUMBER, Field(ge=2)] = Field(
        8, description="runs of the design that are repeated at each further size"
    )
    repetition_runs: Annotated[int, NUMBER, Field(ge=0)] = Field(
        4,
        description="runs of one mixture, for each of the two scarcest sources that a decay can pass over more than 4 "
        "times, which repeat the source ever more often; they show from how many passes on that raises losses",
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
    stable_tokens: TokensOrNone = Field(
        0,
        description="tokens of a stable stage between the trunk and every decay, at the trunk's last LR and with a "
        "mixture of its own; 0 lets decays start at the trunk's end",
    )
    stable_mixtures: dict[str, dict[str, Share]] = Field(
        default_factory=dict,
        description="mixtures of the stable stage to choose from, by name; that of the trunk, 'control', is always one",
    )


class TargetSettings(Section):
    """The run that all this is for."""

    shape: str = Field(
        description="the shape or checkpoint that the recommendation is for; it runs no microanneal unless it is the "
        "proxy"
    )
    max_decay_tokens: Tokens = Field(
        description="budget of the decay at target scale; with design.stable_tokens, of both stages"
    )
    repetition_scale: Positive = Field(
        1.0,
        description="how many times longer the target's decay is than a proxy's of the same design point; "
        "proxies see 1/scale of each source, so that both repeat it equally often",
    )


class SamplerSettings(Section):
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
        description="stop a proposal early, at one of the evaluation.points, when the 90 % interval of its expected "
        "final objective lies above what the best prune percent of the finished runs of its length, batch size and "
        "shape reached; None stops no proposal early",
    )

    @model_validator(mode="after")
    def _one_goal_to_stop_by(self) -> Self:
        for name in ("promote", "prune"):
            if self.kind == "nsga2" and getattr(self, name):
                raise ValueError(f"{name} needs one goal; nsga2 has two")
        return self
