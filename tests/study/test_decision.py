"""Recommended shares are readable and still shares."""

from __future__ import annotations

import pytest

from decaylaws.study.decision import rounded_shares


@pytest.mark.parametrize(
    "shares",
    [
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
        {"a": 0.14249, "b": 0.44151, "c": 0.416},
        {"a": 1.0, "b": 0.0},
        {"a": 0.9996, "b": 0.0002, "c": 0.0002},
    ],
)
def test_rounded_shares_sum_to_one_and_move_less_than_a_step(shares: dict[str, float]) -> None:
    rounded = rounded_shares(shares, 1000)
    assert sum(round(share * 1000) for share in rounded.values()) == 1000
    assert all(abs(rounded[name] - share) < 1e-3 for name, share in shares.items())
    assert all(share == round(share, 3) for share in rounded.values())
