"""How the arrow notation writes numbers: ``3e-4``, ``4.86T``, ``eta_max/10``, ``5%``, ``?``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.checks import valid_lr, whole_tokens

_UNITS = {"T": 12, "B": 9, "M": 6, "K": 3, "": 0}
# A separator stands before groups of exactly three digits: 4,5B has a decimal comma and is not 45B.
_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+|[0-9]+"
_NUMBER = rf"(?:(?:{_WHOLE})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,9}})?"
_TOKENS = re.compile(rf"({_NUMBER})\s*([KMBT]?)", re.IGNORECASE)
_PLAIN = re.compile(rf"-?{_NUMBER}")
_SHARE = re.compile(rf"({_NUMBER})\s*%")
_NAME = re.compile(r"(?:([0-9]{1,9})\s*\*\s*)?([A-Za-z_]\w*)(?:\s*/\s*([0-9]{1,9}))?")
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+.*")
_NO_NAMES = {"nan", "inf", "infinity"}  # numbers to Python, none to a schedule
UNSTATED = "?"


@dataclass(frozen=True)
class Named:
    """A value that a report does not state: a name that the user fills in, times a known factor."""

    name: str
    factor: Fraction = Fraction(1)

    def __str__(self) -> str:
        above = f"{self.factor.numerator}*" if self.factor.numerator != 1 else ""
        below = f"/{self.factor.denominator}" if self.factor.denominator != 1 else ""
        return f"{above}{self.name}{below}"


@dataclass(frozen=True)
class Share:
    """A length given as a share of the whole schedule."""

    of_total: Fraction

    def __str__(self) -> str:
        return f"{_plain(Decimal(self.of_total.numerator * 100) / Decimal(self.of_total.denominator))}%"


Rate = float | Named
Length = int | Named | Share


def format_tokens(tokens: int) -> str:
    """Exact: 4860000000000 is ``4.86T``; 4194304, which no unit makes shorter, stays as it is."""
    for unit, power in _UNITS.items():
        number = Decimal(tokens).scaleb(-power)
        if number >= 1 and (number < 1000 or unit == "T") and number == round(number, 3):
            return f"{_plain(number)}{unit}"
    return str(tokens)


def round_tokens(tokens: int) -> str:
    """For the eye: four digits and a unit, 4194304 is ``4.194M``."""
    for unit, power in _UNITS.items():
        if tokens >= 10**power:
            return f"{_plain(Decimal(f'{tokens / 10**power:.4g}'))}{unit}"
    return str(tokens)


def format_lr(lr: float) -> str:
    """Shortest way to write an LR that reads back to the very same number: ``3e-4``."""
    if lr == 0.0:
        return "0"
    scientific = np.format_float_scientific(lr, trim="-", exp_digits=1)
    return min(scientific, np.format_float_positional(lr, trim="-"), key=len)


def round_lr(lr: float) -> str:
    """For the eye: four digits, 6.1351e-5 is ``6.135e-5``."""
    return format_lr(float(f"{lr:.4g}"))


def parse_tokens(text: str, field: str = "tokens") -> int:
    """A count such as ``2B``, ``4.86T``, ``1e9``, ``40,000`` or ``40_000``; units are decimal (K = 1000).

    A comma or underscore separates groups of exactly three digits. Anything else, such as the decimal comma of
    ``4,5B``, is refused: read as a separator it would make 45B of it.

    Raises:
        InvalidValueError: no count, or no whole one.
    """
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        remedy = "Write 2B, 4.86T, 500M or 40000."
        if _DECIMAL_COMMA.fullmatch(text.strip()):
            point = text.strip().replace(",", ".", 1)
            remedy = f"Write a decimal point ({point}), or commas between groups of three digits."
        raise InvalidValueError(field, text, "must be a count of tokens", remedy)
    number, power = _decimal(match[1]), _UNITS[match[2].upper()]
    if number.adjusted() + power > 18:
        raise InvalidValueError(
            field, text, "is larger than any training run", "Check its exponent and unit."
        )
    tokens = number.scaleb(power)
    if tokens != tokens.to_integral_value():
        raise InvalidValueError(field, text, "must be a whole number of tokens")
    return whole_tokens(field, int(tokens))


def token_count(value: Any, field: str = "tokens") -> int:
    """A count of tokens as a person or a file gives it: text for :func:`parse_tokens`, or a whole number.

    Raises:
        InvalidValueError: neither, or a count that cannot be.
    """
    return parse_tokens(value, field) if isinstance(value, str) else whole_tokens(field, value)


def parse_number(text: str, field: str) -> float:
    """A finite number such as ``0.5`` or ``3e-4``, with separators as :func:`parse_tokens` allows them.

    Raises:
        InvalidValueError: none.
    """
    number = float(_decimal(text.strip())) if _PLAIN.fullmatch(text.strip()) else np.inf
    if not np.isfinite(number):
        raise InvalidValueError(field, text, "must be a number", "Write it as 0.5 or 3e-4.")
    return number


def parse_rate(text: str, field: str = "lr") -> Rate:
    """An LR such as ``3e-4``, or a name such as ``eta_max/10`` for one that is not stated.

    Raises:
        InvalidValueError: neither.
    """
    named = _parse_named(text)
    if named is not None:
        return named
    if not _PLAIN.fullmatch(text.strip()):
        raise InvalidValueError(
            field, text, "must be a learning rate", "Write 3e-4, a name such as eta_min, or ?."
        )
    return valid_lr(field, parse_number(text, field))


def parse_length(text: str, field: str = "tokens") -> Length:
    """A count of tokens, a share of the schedule (``5%``), or a name for a length that is not stated.

    Raises:
        InvalidValueError: none of these.
    """
    named = _parse_named(text)
    if named is not None:
        return named
    share = _SHARE.fullmatch(text.strip())
    if share is None:
        return parse_tokens(text, field)
    percent = _decimal(share[1])
    if not 0 < percent < 100 or percent.adjusted() < -18:
        raise InvalidValueError(field, text, "must be a share between 0% and 100%")
    return Share(Fraction(percent) / 100)


def _parse_named(text: str) -> Named | None:
    # Papers write a Greek eta; identifiers here are ASCII.
    match = _NAME.fullmatch(text.strip().replace("\N{GREEK SMALL LETTER ETA}", "eta"))
    if match is None or match[2].lower() in _NO_NAMES:
        return None
    above, below = int(match[1] or 1), int(match[3] or 1)
    if above == 0 or below == 0:
        raise InvalidValueError(match[2], text, "must be multiplied and divided by numbers above zero")
    return Named(match[2], Fraction(above, below))


def _decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", "").replace("_", ""))


def _plain(number: Decimal) -> str:
    """Without an exponent and without trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
