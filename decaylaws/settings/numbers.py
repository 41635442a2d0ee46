"""Numbers of ``study.yaml``: what a field may hold, in which words it is refused.

``true`` is no number, although Python would take it for 1, and a count of tokens may carry a unit as everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures.mixture import SUM_TOLERANCE
from decaylaws.schedules.checks import LARGEST_LR, SMALLEST_LR, whole_tokens
from decaylaws.schedules.quantities import parse_tokens


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it must be a number, not true or false")
    if isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            raise ValueError("it is too large") from None
    return value


def _tokens(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)  # 1e9
    return _checked(parse_tokens, value) if isinstance(value, str) else _number(value)


def _not_too_many(value: int) -> int:
    _checked(partial(whole_tokens, "tokens", minimum=0), value)
    return value


def _learning_rate(value: float) -> float:
    if not SMALLEST_LR <= value <= LARGEST_LR:
        raise ValueError(f"it must lie between {SMALLEST_LR:g} and {LARGEST_LR:g}. Check its exponent.")
    return value


def _checked(check: Callable[[Any], Any], value: Any) -> Any:
    """Let a schedule's own check judge; which field it is about is pydantic's to say."""
    try:
        return check(value)
    except InvalidValueError as error:
        raise ValueError(f"{error.constraint}. {error.remedy}".strip()) from None


NUMBER = BeforeValidator(_number)
"""Put into the annotation of any other numeric field."""
Positive = Annotated[float, NUMBER, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, NUMBER, Field(gt=0)]
NotNegative = Annotated[int, NUMBER, Field(ge=0)]
LearningRate = Annotated[float, NUMBER, Field(gt=0), AfterValidator(_learning_rate)]
Tokens = Annotated[int, BeforeValidator(_tokens), AfterValidator(_not_too_many), Field(gt=0)]
"""A count of tokens: ``4096``, ``500M``, ``50B``, ``4T`` or ``1e9``."""
TokensOrNone = Annotated[int, BeforeValidator(_tokens), AfterValidator(_not_too_many), Field(ge=0)]
"""As ``Tokens``, or 0."""
Share = Annotated[float, NUMBER, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, NUMBER, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, NUMBER, Field(allow_inf_nan=False)]


def check_mixture(field: str, mixture: Mapping[str, float]) -> None:
    """Refuse shares that do not sum to one.

    Args:
        field: dotted path of the mixture, for the message.
        mixture: share by source.

    Raises:
        InvalidValueError: as said.
    """
    total = sum(mixture.values())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise InvalidValueError(field, dict(mixture), f"must sum to one; the weights sum to {total:.6g}")
