import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from decaylaws.errors import DataError, InvalidValueError, NotFittedError, SchemaError
from decaylaws.laws.kit.compare import Fold, compare
from decaylaws.laws.kit.law import Law
from decaylaws.laws.kit.solver import solve
from decaylaws.laws.scaling import Chinchilla, SizeTokenLaw, Skaling


class StraightLine(Law):
    def __init__(self, *, slope_limit: float = 10.0) -> None:
        self.slope_limit = slope_limit

    def fit(self, X, y=None):
        if len(X) < 2:
            raise InvalidValueError("X", len(X), "must hold at least 2 points")
        limit = self.slope_limit
        solution = solve(lambda t: t[0] + t[1] * X - y, [0.0, 0.0], lower=[-99, -limit], upper=[99, limit])
        self.params_ = {"level": solution.theta[0], "slope": solution.theta[1]}
        self.report_ = solution.report
        return self

    def predict(self, X, interval=None):
        self._require_fitted()
        return self.params_["level"] + self.params_["slope"] * X


X = np.linspace(0, 1, 6)


def test_sklearn_clones_a_law_with_its_settings():
    copy = clone(StraightLine(slope_limit=3.0))
    assert copy.get_params() == {"slope_limit": 3.0}
    assert repr(copy) == "StraightLine(slope_limit=3.0)"


def test_predict_before_fit_is_named():
    with pytest.raises(NotFittedError, match="StraightLine"):
        StraightLine().predict(X)


def test_an_unknown_argument_is_named():
    with pytest.raises(InvalidValueError, match="limit"):
        StraightLine().set_params(limit=3)


def test_json_round_trip_predicts_the_same(tmp_path):
    law = StraightLine(slope_limit=3.0).fit(X, 1 + 2 * X)
    law.save(tmp_path / "law.json")
    again = Law.load(tmp_path / "law.json")
    assert isinstance(again, StraightLine)
    assert again.slope_limit == 3.0
    assert again.report_ == law.report_
    np.testing.assert_array_equal(again.predict(X), law.predict(X))


def test_a_damaged_file_is_named_and_a_path_may_be_text(tmp_path):
    path = f"{tmp_path}/laws/line.json"
    law = StraightLine().fit(X, X)
    law.save(path)
    assert isinstance(Law.load(path), StraightLine)
    for text in ("{", "[]", '{"law": 5}'):
        (tmp_path / "damaged.json").write_text(text)
        with pytest.raises((DataError, SchemaError)):
            Law.load(tmp_path / "damaged.json")
    with pytest.raises(DataError, match="cannot be read as a law"):
        Law.load(tmp_path / "absent.json")


def test_damaged_json_is_named():
    values = StraightLine().fit(X, X).to_dict()
    with pytest.raises(SchemaError, match="state"):
        Law.from_dict({key: entry for key, entry in values.items() if key != "state"})
    with pytest.raises(InvalidValueError, match="law"):
        Law.from_dict({**values, "law": "Nothing"})


def test_compare_ranks_by_held_out_error_and_keeps_failures_in_sight():
    y = 1 + 5 * X
    folds = [Fold("end", (X[:4], y[:4]), X[4:], y[4:]), Fold("single", (X[:1], y[:1]), X[1:], y[1:])]
    table = compare({"tight": StraightLine(slope_limit=1.0), "free": StraightLine()}, folds[:1])
    assert list(table["law"]) == ["free", "tight"]
    assert table["mae"][0] < 1e-6
    failed = compare({"free": StraightLine()}, folds)
    assert np.isinf(failed.set_index("fold").loc["single", "mae"])
    assert "at least 2 points" in failed.set_index("fold").loc["single", "status"]


def test_a_class_reads_its_own_laws_only() -> None:
    table = pd.DataFrame({"params": [1e8, 1e9], "tokens": [1e10, 1e10]})
    stored = Skaling.from_params(
        {"E": 1.2, "A": 4e4, "B": 3e5, "alpha": 0.5, "beta": 0.5, "k": 0.45}
    ).to_dict()
    assert SizeTokenLaw.from_dict(stored).predict(table).shape == (2,)
    with pytest.raises(InvalidValueError, match=r"'law' must be one of \['Chinchilla'\]; got 'Skaling'"):
        Chinchilla.from_dict(stored)
    with pytest.raises(InvalidValueError, match="got 'StepLaw'"):
        Law.from_dict({**stored, "law": "StepLaw"})
