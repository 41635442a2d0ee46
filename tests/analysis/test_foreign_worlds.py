"""Planted worlds of foreign forms, and what is recommended in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_worlds_are_scaled_and_their_optimum_is_one() -> None:
    from _foreign_worlds import KINDS, world

    for kind in KINDS:
        planted = world(kind, 3)
        assert 6 <= len(planted.sources) <= 17
        assert 25 <= len(planted.shares) <= 50
        assert planted.spread == pytest.approx(np.clip(planted.spread, 0.03, 0.1))
        assert (planted.measured > 0.5).all()
        others = planted.space.sample_shares(500, seed=1)
        assert planted.best <= planted.objective(np.vstack([others, planted.shares])).min()
        again = world(kind, 3)
        np.testing.assert_array_equal(again.measured, planted.measured)
        assert not np.array_equal(world(kind, 4).level, planted.level)


def test_the_script_reports_regret_and_bound_by_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import regret_calibration

    def asked(*words: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["regret_calibration", "--json", str(out), *words])
        regret_calibration.run(regret_calibration.main)
        return json.loads(out.read_text())

    found = asked("--worlds", "mixture", "--simulations", "1", "--seed", "4", "--families", "inverse_sum",
                  "--kinds", "interference")  # fmt: skip
    rows = {row["worlds"]: row for row in found["cells"]}
    assert set(rows) >= {"interference", "all"}
    assert rows["all"]["number"] == len(found["worlds"]) == 1
    assert rows["all"]["held_90"] == 1.0
    assert 0 <= rows["all"]["true_mean"] < rows["all"]["best_run_mean"]
    assert rows["all"]["families"]["inverse_sum"] >= 0
    # a world that is known already is not asked again, and others are added to it
    again = asked("--worlds", "mixture", "--simulations", "1", "--seed", "4", "--families", "inverse_sum",
                  "--kinds", "interference")  # fmt: skip
    assert again["worlds"] == found["worlds"]
    with pytest.raises(SystemExit):
        asked("--worlds", "decay", "--simulations", "1", "--seed", "4", "--kinds", "interference")


def test_decays_towards_a_foreign_world_are_fitted_and_their_regret_is_bounded() -> None:
    from _foreign_regret import simulate_decay, summary

    found = [simulate_decay(kind, 1000) for kind in ("transfer_matrix", "repetition")]
    for outcome in found:
        assert 0 <= outcome.true <= outcome.upper
        assert outcome.true < outcome.best_run
        assert outcome.coverage >= 0.7
        assert outcome.inside
    learnt, foreign = found
    assert learnt.plain_inside
    # the law's own interval misses a run of the mixture that it chose
    assert not foreign.plain_inside
    assert foreign.lost_by_choice > 0
    (every,) = [row for row in summary(found) if row["worlds"] == "all"]
    assert every["held_90"] == 1.0
