"""Losses of unfinished runs in the mixture regressions: they count by their standard errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.expected import finished_rows, loss_errors, row_weights
from decaylaws.laws.kit.law import Law
from decaylaws.laws.mixing import MixtureRegression, regression
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.search.regression import recommend_mixture, regression_with_intervals
from tests.laws.test_mixing import draw_shares, frame

SMOOTH = ("inverse_sum", "gaussian_process", "log_linear", "linear", "blend")


def truth(shares: np.ndarray) -> np.ndarray:
    """A loss with an optimum inside, nats per token."""
    return 2.4 - 0.6 * np.sqrt(shares[:, 0]) - 0.4 * np.sqrt(shares[:, 1]) + 0.2 * shares[:, 2]


def planted(seed: int, finished: int = 14, expected: int = 16, sd: float = 0.03) -> tuple[pd.DataFrame, ...]:
    """Shares, losses and standard errors of finished runs and of others whose loss is known to ``sd``."""
    rng = np.random.default_rng(seed)
    shares = draw_shares(finished + expected, seed)
    errors = np.repeat([0.0, sd], [finished, expected])
    losses = truth(shares) + np.hypot(0.005, errors) * rng.normal(size=len(errors))
    return frame(shares), pd.DataFrame({"loss": losses}), pd.DataFrame({"loss": errors})


def errors_of(name: str, **sizes: float) -> dict[str, float]:
    """Mean error on fresh mixtures with expected losses weighed, dropped and taken for measured ones."""
    asked, wrong = draw_shares(200, 99), {"weighed": 0.0, "dropped": 0.0, "as measured": 0.0}
    for seed in range(3):
        shares, losses, errors = planted(seed, **sizes)  # type: ignore[arg-type]
        kept = (errors["loss"] == 0).to_numpy()
        fits = {
            "weighed": regression(name).fit(shares, losses, loss_error=errors),
            "dropped": regression(name).fit(shares[kept], losses[kept]),
            "as measured": regression(name).fit(shares, losses),
        }
        for which, law in fits.items():
            error = np.asarray(law.predict(frame(asked))).ravel() - truth(asked)
            wrong[which] += float(np.sqrt(np.mean(error**2))) / 3
    return wrong


@pytest.mark.parametrize("name", [*SMOOTH, "lightgbm"])
def test_expected_losses_help_where_few_runs_have_ended(name: str) -> None:
    found = errors_of(name)
    assert found["weighed"] < 0.95 * found["dropped"]


def test_uncertain_losses_do_no_harm_where_many_runs_have_ended() -> None:
    found = errors_of("blend", finished=30, expected=10)
    assert found["weighed"] < 1.05 * found["dropped"]
    assert found["weighed"] < 0.6 * found["as measured"]


@pytest.mark.parametrize("name", [*SMOOTH, "lightgbm"])
def test_errors_of_zero_change_nothing_and_a_huge_one_is_no_run(name: str) -> None:
    shares, losses, errors = planted(3, finished=16, expected=4)
    asked = frame(draw_shares(20, 7))

    def told(law: MixtureRegression) -> np.ndarray:
        found = law.predict(asked, interval=0.9)
        return np.array([found.mean, found.lower, found.upper])

    plain = regression_with_intervals(name).fit(shares, losses)
    zero = regression_with_intervals(name).fit(shares, losses, loss_error=errors * 0)
    np.testing.assert_array_equal(told(zero), told(plain))
    huge = regression_with_intervals(name).fit(shares, losses, loss_error=errors * 1e6)
    kept = (errors["loss"] == 0).to_numpy()
    without = regression_with_intervals(name).fit(shares[kept], losses[kept])
    np.testing.assert_allclose(told(huge)[0], told(without)[0], atol=2e-3)
    assert np.isnan(huge.left_out_errors({"loss": 1.0})[~kept]).all()
    np.testing.assert_array_equal(
        huge.left_out_errors({"loss": 1.0})[kept], without.left_out_errors({"loss": 1.0})
    )


def test_intervals_get_no_narrower_than_measured_runs_allow_and_survive_json() -> None:
    shares, losses, errors = planted(5)
    law = regression("blend").fit(shares, losses, loss_error=errors)
    asked = draw_shares(100, 6)
    found = law.predict(frame(asked), interval=0.9)
    assert ((found.lower[:, 0] <= truth(asked)) & (truth(asked) <= found.upper[:, 0])).mean() >= 0.85
    again = Law.from_dict(law.to_dict())
    np.testing.assert_allclose(again.predict(frame(asked), interval=0.9).upper, found.upper, rtol=1e-9)
    np.testing.assert_allclose(
        again.draws(3, 0)["loss"].all(asked),
        law.draws(3, 0)["loss"].all(asked),
        rtol=1e-9,  # type: ignore[attr-defined]
    )


def test_the_best_observed_run_is_one_that_was_measured() -> None:
    shares, losses, errors = planted(2)
    lucky = int(np.flatnonzero(errors["loss"] > 0)[0])
    losses.loc[lucky, "loss"], errors.loc[lucky, "loss"] = 1.2, 0.5
    space = MixtureSpace(tuple(SourceLimits(name, 10**9) for name in shares.columns))
    found = recommend_mixture(shares, losses, space, {"loss": 1.0}, loss_error=errors, num_draws=4)
    best = next(rival for rival in found.rivals if rival.name == "best_observed")
    measured = losses["loss"].where(errors["loss"] == 0)
    assert best.mixture.to_dict() == pytest.approx(shares.loc[measured.idxmin()].to_dict(), abs=1e-9)


def test_a_runs_table_brings_its_errors_and_bad_ones_are_refused() -> None:
    shares, losses, errors = planted(1)
    table = pd.concat(
        [shares.add_prefix("mix:"), losses.add_prefix("loss:"), errors.add_prefix("loss_error:")], axis=1
    )
    by_table = regression("inverse_sum").fit(table)
    given = regression("inverse_sum").fit(shares, losses, loss_error=errors["loss"].where(errors["loss"] > 0))
    np.testing.assert_array_equal(by_table.predict(shares), given.predict(shares))
    assert len(finished_rows(table)) == 14
    assert loss_errors(table, ["loss"]).max() == 0.03
    assert row_weights(0.03, [0.0, 0.03]) == pytest.approx([1.0, 0.5])
    for wrong, words in (
        (-errors, "0 or larger"),
        (errors * np.inf, "0 or larger"),
        (errors[:3], "one error"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            regression("linear").fit(shares, losses, loss_error=wrong)
    with pytest.raises(SchemaError, match="code"):
        regression("linear").fit(shares, losses, loss_error=errors.rename(columns={"loss": "code"}))
    with pytest.raises(InvalidValueError, match="at least 8 runs"):
        regression("linear").fit(shares, losses, loss_error=errors.assign(loss=0.1))
