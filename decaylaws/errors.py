"""Every error that decaylaws raises on purpose.

::

    DecaylawsError
    |-- InvalidValueError (ValueError)   a value that cannot be: names the field, the value and the remedy
    |-- SchemaError (ValueError)         a table or file whose columns or keys are not those expected
    |-- InfeasibleError                  each value is fine, together they ask for the impossible
    |-- NotFittedError                   predict before fit
    |-- NotRepresentableError            an exporter's target cannot express the recipe
    |-- MissingExtraError                an optional part whose packages are not installed
    |-- DataError                        text, shards or checkpoints that are missing or damaged
    `-- StudyError                       a study directory that is not in the state that a verb needs

The command line prints the message of a ``DecaylawsError`` on one line and exits with code 2; any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_SHOWN = 200
"""Letters of a value that a message shows; a value may be a file's whole content."""


def shortened(text: str) -> str:
    """``text``, cut where a message would be lost in it."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class DecaylawsError(Exception):
    """Base of every error that a user can mend."""


class InvalidValueError(DecaylawsError, ValueError):
    """A field holds a value that it must not.

    Args:
        field: dotted path of the field, in the user's own words (``sources.code.max_epochs``).
        value: what was given.
        constraint: what the value must be (``must be positive``).
        remedy: what to do about it, where that is not plain from the constraint.
    """

    def __init__(self, field: str, value: object, constraint: str, remedy: str = "") -> None:
        self.field = field
        self.value = value
        self.constraint = constraint
        self.remedy = remedy
        message = f"'{field}' {constraint}; got {shortened(repr(_as_written(value)))}."
        super().__init__(f"{message} {remedy}".strip())

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, self.value, self.constraint, self.remedy)


def _as_written(value: object) -> object:
    """A numpy number as the plain one that a user would write; numpy itself is not imported for it."""
    if type(value) is tuple:
        return tuple(map(_as_written, value))
    if type(value) is list:
        return list(map(_as_written, value))
    is_scalar = type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value  # type: ignore[attr-defined]


class SchemaError(DecaylawsError, ValueError):
    """A table or file whose columns or keys are not those expected.

    Args:
        what: the table or file.
        missing: names that it must have and has not.
        unexpected: names that it has and must not have.
        remedy: what to do about it.
    """

    def __init__(
        self, what: str, *, missing: Iterable[str] = (), unexpected: Iterable[str] = (), remedy: str = ""
    ) -> None:
        self.what = what
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        parts = []
        if self.missing:
            parts.append(f"missing {', '.join(self.missing)}")
        if self.unexpected:
            parts.append(f"unexpected {', '.join(self.unexpected)}")
        super().__init__(f"{what}: {'; '.join(parts)}. {remedy}".strip())


class InfeasibleError(DecaylawsError):
    """Caps, bounds or budgets that cannot hold together; the message names those that bind."""


class NotFittedError(DecaylawsError):
    """A law was asked for a prediction before it was fitted."""

    def __init__(self, law: object) -> None:
        super().__init__(f"{type(law).__name__} is not fitted yet. Call fit(...) first.")


class NotRepresentableError(DecaylawsError):
    """A target trainer cannot express the recipe.

    Args:
        target: name of the exporter.
        gaps: what cannot be expressed, one sentence each.
    """

    def __init__(self, target: str, gaps: Iterable[str]) -> None:
        self.target = target
        self.gaps = tuple(gaps)
        super().__init__(f"{target} cannot express this recipe: {'; '.join(self.gaps)}.")


class MissingExtraError(DecaylawsError):
    """An optional part of decaylaws was asked for whose packages are not installed.

    Args:
        what: the part, as the subject of a sentence (``"Near-duplicate search"``).
        extra: the extra of the distribution that installs them.
    """

    def __init__(self, what: str, extra: str) -> None:
        self.what = what
        self.extra = extra
        super().__init__(
            f"{what} needs packages that are not installed. Run: pip install 'decaylaws[{extra}]'"
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.extra)


class DataError(DecaylawsError):
    """Text, shards or checkpoints that are missing, damaged or changed since they were recorded."""


class StudyError(DecaylawsError):
    """A study directory is not in the state that the verb needs; the message names the verb to run first."""
