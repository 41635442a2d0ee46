"""What the decay law says of shapes of the decay that no run has: held-out shapes, wider intervals, sentences."""

from __future__ import annotations

import functools
import json

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.horizon import Trust, measured_trust
from decaylaws.laws.decay.misfit import USUAL_SHAPE_ERROR
from decaylaws.laws.decay.shapes import HeldOutShape, ShapeReach, held_out_masks
from tests.laws.test_decay_law import NOISE, SOURCES, TRUNK, simulated, with_averages

unfitted = functools.partial(DecayLaw, TRUNK, num_draws=0, num_folds=0)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    table = simulated(24, sizes=(100_000,))
    return table.assign(run_id=[f"run-{number}" for number in range(len(table))])


def trust_of(table: pd.DataFrame) -> Trust:
    held_out = pd.DataFrame({"run_id": table["run_id"], "predicted": 3.0, "observed": 3.01})
    return measured_trust(unfitted, table, held_out)


def shifted(runs: pd.DataFrame, shape: str, share: float) -> pd.DataFrame:
    """The runs, with decays of one shape that gain a share less than they do."""
    law = unfitted().fit(runs)
    less = share * law.annealing_gain(law.inputs(runs)) * (runs["decay_shape"] == shape).to_numpy()[:, None]
    return runs.assign(
        **{f"loss:{name}": runs[f"loss:{name}"] + less[:, k] for k, name in enumerate(SOURCES)}
    )


def test_a_held_out_shape_shows_the_share_of_the_gain_that_the_law_misses(runs: pd.DataFrame) -> None:
    found = {share: trust_of(shifted(runs, "1-sqrt", share)) for share in (0.0, 0.3)}
    for share, trust in found.items():
        (held,) = [each for each in trust.shapes.held_out if each.shape == "1-sqrt"]
        assert held.num_runs == 12
        assert held.share == pytest.approx(-share, abs=0.05)
        assert held.share_sd < 0.05
    assert found[0.0].shapes.share < USUAL_SHAPE_ERROR
    assert found[0.3].shapes.share > 0.15
    (line,) = [line for line in found[0.3].sentences() if "of shape 1-sqrt" in line]
    assert line.startswith(
        "Predicted from decays of other shapes, the 12 decays of shape 1-sqrt are off by 0.0"
    )
    assert line.endswith("nats too low.")


def test_a_decay_of_an_unseen_shape_lies_beyond_the_horizon_and_has_a_wider_interval(
    runs: pd.DataFrame,
) -> None:
    trust = trust_of(runs)
    (line,) = trust.beyond({}, 0.0, "cosine")
    assert line.startswith(
        "No run has the shape cosine; the runs have 1-sqrt, linear. Intervals allow for an"
    )
    assert line.endswith("of the annealing gain, as held-out shapes show.")
    assert trust.beyond({}, 0.0, "linear") == trust.beyond({}, 0.0, "constant") == []
    law = DecayLaw(TRUNK, num_draws=0, num_folds=2).fit(runs)
    rows = runs[runs["decay_shape"] == "linear"].head(4)
    cosine = rows.assign(decay_shape="cosine")

    def half(table: pd.DataFrame, error: float) -> np.ndarray:
        law.shape_error_ = error
        found = law.predict(table, interval=0.9)
        return found.upper - found.mean

    np.testing.assert_array_equal(half(rows, 0.0), half(rows, 0.5))
    gain = law.annealing_gain(law.inputs(cosine))
    expected = np.hypot(half(cosine, 0.0), 1.6449 * 0.5 * gain)
    np.testing.assert_allclose(half(cosine, 0.5), expected, rtol=1e-4)
    again = DecayLaw.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_array_equal(
        again.predict(cosine, interval=0.9).upper, law.predict(cosine, interval=0.9).upper
    )


def test_intervals_at_an_unseen_shape_hold_what_they_promise() -> None:
    inside = []
    for seed in range(4):
        runs = simulated(24, seed=seed, sizes=(100_000,))
        seen = runs[runs["decay_shape"] != "1-sqrt"]
        unseen = shifted(runs, "1-sqrt", (-0.08, 0.04, -0.03, 0.06)[seed])
        unseen = unseen[unseen["decay_shape"] == "1-sqrt"]
        found = DecayLaw(TRUNK, num_draws=0, num_folds=5).fit(seen).predict(unseen, interval=0.9)
        observed = unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()
        inside.append((found.lower <= observed) & (observed <= found.upper))
        assert (found.upper - found.lower).mean() < 20 * NOISE
    assert np.mean(inside) >= 0.85


def test_one_shape_says_nothing_of_others_and_which_run_would_tell(runs: pd.DataFrame) -> None:
    table = runs[runs["decay_shape"] != "1-sqrt"].reset_index(drop=True)
    trust = trust_of(table)
    assert trust.shapes == ShapeReach(("linear",), ())
    assert trust.shapes.share == USUAL_SHAPE_ERROR
    (line,) = trust.shapes.sentences()
    assert line in trust.sentences()
    assert line == (
        "All decays have the shape linear, so nothing in these runs tells how far the law errs at another shape. "
        "A decay of the control with the shape 1-sqrt at the longest length would tell."
    )
    (beyond,) = trust.beyond({}, 0.0, "1-sqrt")
    assert beyond.endswith(
        "5.0 % of the annealing gain, as on published records, since no shape could be held out."
    )
    assert Trust.from_dict(json.loads(json.dumps(trust.to_dict()))).shapes == trust.shapes


def test_a_shape_is_held_out_only_where_enough_runs_are_left(runs: pd.DataFrame) -> None:
    few = pd.concat([runs[runs["decay_shape"] == "linear"], runs[runs["decay_shape"] == "1-sqrt"].head(2)])
    assert list(held_out_masks(few, 6)) == ["1-sqrt"]
    assert list(held_out_masks(runs, 6)) == ["1-sqrt", "linear"]
    assert held_out_masks(runs, len(runs)) == {}
    words = ShapeReach(("1-sqrt", "linear")).sentences()
    assert words == [
        "No shape of the decay could be held out (1-sqrt, linear): the runs of other shapes are too few, or a law that "
        "is fitted to them cannot predict it. A decay of the control with the shape linear at the longest length would "
        "tell."
    ]


def test_a_shape_that_the_law_of_the_others_refuses_is_not_held_out(runs: pd.DataFrame) -> None:
    """Averages of the checkpoint's weights beside decays of one shape alone: a law of these asks for them."""
    table = with_averages(runs, 0.1)
    averages = [f"averaged_start_loss:{name}" for name in SOURCES]
    table.loc[table["decay_shape"] == "1-sqrt", averages] = np.nan
    assert not unfitted().fit(table).is_measured_
    assert [each.shape for each in trust_of(table).shapes.held_out] == ["linear"]


def test_a_noisy_held_out_shape_moves_the_usual_error_little() -> None:
    noisy, exact = (HeldOutShape("cosine", 3, 0.01, 0.01, 0.2, sd) for sd in (1.0, 0.001))
    assert ShapeReach(("cosine", "linear"), (noisy,)).share == pytest.approx(USUAL_SHAPE_ERROR, abs=1e-3)
    assert ShapeReach(("cosine", "linear"), (exact,)).share == pytest.approx(
        np.sqrt((0.05**2 + 0.2**2) / 2), abs=1e-3
    )
