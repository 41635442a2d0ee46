"""The contract of every law: scikit-learn's estimator shape, predictions with intervals, JSON without pickle.

A law's constructor stores its arguments under their own names and does nothing else; ``fit`` validates,
learns and returns ``self``; what is learned ends in an underscore. The class does not inherit scikit-learn's
``BaseEstimator`` (its import costs more than most fits) but keeps its contract, so that
``sklearn.base.clone`` works.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError, NotFittedError, SchemaError
from decaylaws.io.files import write_text
from decaylaws.laws.kit.report import FitReport

Array = NDArray[np.float64]

FORMAT_VERSION = 1
UNITS = ("nats per token", "accuracy")
"""Units of what laws predict."""


@dataclass(frozen=True)
class Prediction:
    """A prediction with its interval.

    Attributes:
        mean: point predictions, shape ``[n]`` (nats per token for losses).
        lower: lower ends of the interval, shape ``[n]``.
        upper: upper ends, shape ``[n]``.
        level: probability that the interval claims to hold, such as 0.9.
    """

    mean: Array
    lower: Array
    upper: Array
    level: float

    def __len__(self) -> int:
        return len(self.mean)


class Estimator(ABC):
    """What is fitted and stored: base of every law, and of what gives an optimum (a size, an LR) instead of a loss.

    Attributes:
        params_: fitted parameters by name.
        report_: diagnosis of the fit.
    """

    params_: dict[str, Any]
    report_: FitReport
    _registry: ClassVar[dict[str, type[Estimator]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            Estimator._registry[cls.__name__] = cls

    @abstractmethod
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from data and return ``self``."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is there for scikit-learn, laws do not nest."""
        return {name: getattr(self, name) for name in self._argument_names()}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; a fitted law should be fitted again."""
        known = self._argument_names()
        for name, value in params.items():
            if name not in known:
                raise InvalidValueError(
                    name, value, f"is not an argument of {type(self).__name__}", f"Known: {known}."
                )
            setattr(self, name, value)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Settings and fitted state as plain JSON values."""
        self._require_fitted()
        return {
            "law": type(self).__name__,
            "format": FORMAT_VERSION,
            "settings": _plain(self.get_params()),
            "state": _plain(self._state()),
            "report": self.report_.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A fitted law of this class or of one below it, from :meth:`to_dict`'s values.

        The module of the law's own class must have been imported.

        Raises:
            SchemaError: an entry is missing.
            InvalidValueError: another format, or a law of another class.
        """
        missing = {"law", "format", "settings", "state", "report"} - set(values)
        if missing:
            raise SchemaError("law", missing=sorted(missing))
        if values["format"] != FORMAT_VERSION:
            raise InvalidValueError(
                "format", values["format"], f"must be {FORMAT_VERSION}", "Fit the law again."
            )
        kind = Estimator._registry.get(values["law"])
        if kind is None or not issubclass(kind, cls):
            known = sorted(name for name, each in Estimator._registry.items() if issubclass(each, cls))
            raise InvalidValueError("law", values["law"], f"must be one of {known}")
        law = kind(**values["settings"])
        law._restore(dict(values["state"]))
        law.report_ = FitReport.from_dict(values["report"])
        return law

    def save(self, path: str | Path) -> None:
        """Write the fitted law as JSON; the file appears whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a law of this class or of one below it that :meth:`save` wrote.

        Raises:
            DataError: the file cannot be read, or is damaged.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, DecaylawsError):
                raise
            raise DataError(
                f"{path} cannot be read as a law ({error!r}). Fit it and save it again."
            ) from error

    def _state(self) -> dict[str, Any]:
        """Fitted state beyond the report; a law with more than ``params_`` adds to it."""
        return {"params": self.params_}

    def _restore(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`_state`; lists may have to become arrays again."""
        self.params_ = state["params"]

    def _require_fitted(self) -> None:
        if not hasattr(self, "params_"):
            raise NotFittedError(self)

    @classmethod
    def _argument_names(cls) -> list[str]:
        if cls.__init__ is object.__init__:  # a law without settings
            return []
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if defaults[name].default is inspect.Parameter.empty or defaults[name].default != value
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


class Law(Estimator):
    """Base of every law that predicts a loss or an accuracy.

    Attributes:
        unit: of predictions, one of ``UNITS``.
        target: column that ``fit`` takes where ``y`` is not given; empty where ``y`` is required, or where the columns
            have prefixes (``loss:<domain>``).
    """

    unit: ClassVar[str] = "nats per token"
    target: ClassVar[str] = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need; none where all have prefixes, or where curves are read."""
        return ()

    @abstractmethod
    def predict(self, X: Any, interval: float | None = None) -> Any:
        """Predict; with ``interval`` (such as 0.9) return a :class:`Prediction` instead of an array."""


def _plain(value: Any) -> Any:
    """Arrays, tuples and numpy scalars as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
