"""Rotary embedding of a stage: how positions beyond those of the checkpoint are made known to the model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from decaylaws.recipe.fields import Count, Positive, Value

RopeMethod = Literal["none", "abf", "position_interpolation", "ntk", "yarn"]
FACTOR_METHODS = ("position_interpolation", "ntk", "yarn")


class RopeSettings(Value):
    """Rotary embedding of a stage.

    Methods, with L the ``original_seq_len``, s the ``factor`` and d the dimension of a head:

    - ``none``: the checkpoint's embedding as it is, with base ``theta``.
    - ``abf``: a larger base ``theta`` (adjusted base frequency; Xiong et al. 2023, arXiv:2309.16039).
    - ``position_interpolation``: positions divided by s (Chen et al. 2023, arXiv:2306.15595).
    - ``ntk``: base ``theta * s**(d / (d - 2))``, which leaves fast dimensions alone and interpolates the slowest
      (NTK-aware scaling, in Peng et al. 2023, arXiv:2309.00071, section 3.1).
    - ``yarn``: dimensions that turn more than ``beta_fast`` times within L are left alone, those that turn less
      than ``beta_slow`` times are interpolated, with a ramp between; cos and sin are multiplied by
      ``attention_factor`` (arXiv:2309.00071, sections 3.2 and 3.4).
    """

    method: RopeMethod = "none"
    theta: Positive = Field(default=10_000.0, description="base of the frequencies; for abf the new one")
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        default=1.0, description="how many times the original sequence length the method is made for"
    )
    original_seq_len: Count | None = Field(default=None, description="sequence length before the extension")
    attention_factor: Positive | None = Field(
        default=None,
        description="yarn: factor on cos and sin, sqrt(1/t) for its temperature t; 0.1 ln(factor) + 1 if left out",
    )
    beta_fast: Positive | None = Field(default=None, description="yarn: 32 if left out")
    beta_slow: Positive | None = Field(default=None, description="yarn: 1 if left out")

    @property
    def max_seq_len(self) -> float:
        """Longest sequence that the settings are made for; infinity where they do not say."""
        if self.original_seq_len is None or self.method in ("none", "abf"):
            return math.inf
        return self.factor * self.original_seq_len

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> Self:
        if self.method in FACTOR_METHODS and self.factor == 1.0:
            raise ValueError(f"method {self.method} needs a factor above 1")
        if self.method not in FACTOR_METHODS and self.factor != 1.0:
            raise ValueError(f"method {self.method} takes no factor; got {self.factor!r}")
        if self.method == "yarn" and self.original_seq_len is None:
            raise ValueError("method yarn needs original_seq_len")
        for name in ("attention_factor", "beta_fast", "beta_slow"):
            if self.method != "yarn" and getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to method yarn, not {self.method}")
        return self

    def base(self, head_dim: int) -> float:
        """Base of the frequencies for heads of ``head_dim`` dimensions, NTK-aware scaling included."""
        if self.method != "ntk":
            return self.theta
        return float(self.theta * self.factor ** (head_dim / (head_dim - 2)))

    def transformers_parameters(self, head_dim: int) -> dict[str, Any]:
        """``rope_parameters`` of a Hugging Face config that gives this embedding."""
        values: dict[str, Any] = {"rope_type": "default", "rope_theta": self.base(head_dim)}
        if self.method == "position_interpolation":
            return values | {"rope_type": "linear", "factor": self.factor}
        if self.method != "yarn":
            return values
        optional = {name: getattr(self, name) for name in ("attention_factor", "beta_fast", "beta_slow")}
        return values | {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_seq_len,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def describe(self) -> str:
        """``yarn, base 10,000, 4 times 4,096``."""
        text = f"{self.method.replace('_', ' ')}, base {self.theta:,.10g}"
        if self.method not in FACTOR_METHODS:
            return text
        return f"{text}, {self.factor:g} times {self.original_seq_len or 'the original length'}"
