"""MARINER's law as a rival, and tables in olmix's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.laws.kit.law import Law

SOURCES = tuple("abcd")


def turning(shares: pd.DataFrame) -> np.ndarray:
    """A loss that falls with every source and rises again where the first is repeated."""
    epochs = shares.to_numpy() * [12.0, 2.0, 1.0, 1.0]
    harm = np.logaddexp(0.0, np.log1p(epochs[:, 0]) - 1.5) ** 2
    return 2.0 - (1 - np.exp(-epochs)) @ [0.5, 0.3, 0.2, 0.1] + 0.4 * harm


def drawn(count: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).dirichlet(np.ones(4), count), columns=list(SOURCES))


def test_its_own_truth_is_found_from_the_epochs() -> None:
    from _mariner import Mariner

    shares, unseen = drawn(60, 0), drawn(100, 1)
    law = Mariner({"a": 12.0, "b": 2.0, "c": 1.0, "d": 1.0}).fit(
        shares, pd.Series(turning(shares), name="loss")
    )
    assert np.abs(law.predict(unseen) - turning(unseen)).max() < 0.02
    (found,) = law.params_.values()
    assert found["harm:a"] > 5 * max(found[f"harm:{name}"] for name in "bcd")
    assert min(value for name, value in found.items() if ":" in name) >= 0.0
    copy = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_allclose(copy.predict(unseen), law.predict(unseen))


def test_a_table_of_tasks_without_sizes_is_one_size(run_script: Any, tmp_path: Path) -> None:
    import mixture_regression

    shares = drawn(60, 2)
    table = shares.add_prefix("w_").assign(w_rare=0.0)
    table.loc[0] = [*(0.9 * table.loc[0, ["w_a", "w_b", "w_c", "w_d"]]), 0.1]
    table["use"] = ["fit"] * 40 + ["predict"] * 20
    for task, sign in (("x", 1.0), ("y", 0.5)):
        table[f"bpb_{task}"] = turning(shares) * sign + 0.1
    table.to_csv(tmp_path / "runs.csv", index=False)
    few = {name: mixture_regression.REGRESSIONS[name] for name in ("blend", "mariner", "linear")}
    found = run_script("mixture_regression", tmp_path, REGRESSIONS=few, CURVE_REGRESSIONS=("mariner",))
    assert found["excluded_sources"] == {"rare": 1}
    assert set(found["regressions"]["blend"]["sizes"]) == {"all"}
    scores = {name: each["sizes"]["all"]["mean_of_targets"] for name, each in found["regressions"].items()}
    assert scores["blend"]["rmse"] < scores["linear"]["rmse"]
    assert scores["blend"]["spearman"] > 0.95
    assert scores["blend"]["regret"] >= 0.0
    assert set(found["learning_curve_mean_of_targets"]["mariner"]) == {"32", "40"}
