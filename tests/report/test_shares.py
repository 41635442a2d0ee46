"""The table of shares: what a source has in the decay, before it and in all tokens together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from decaylaws.mixtures import Mixture
from decaylaws.report.sections.decision import _share_rows


def test_shares_of_the_decay_of_the_trunk_and_of_both_together() -> None:
    trunk = SimpleNamespace(mixture=Mixture({"web": 0.9, "code": 0.1}), tokens=3_000)
    start = SimpleNamespace(config=trunk)
    settings = SimpleNamespace(target=SimpleNamespace(shape="target"))
    sources = {
        name: SimpleNamespace(available_tokens=1_000, epochs=None) for name in ("web", "code", "maths")
    }
    inputs: Any = SimpleNamespace(
        found={"unconstrained": dict.fromkeys(sources, 0.2), "support": {}},
        recipe=SimpleNamespace(
            tokens=1_000, sources=sources, source_tokens=lambda: {"web": 500, "code": 100, "maths": 400}
        ),
        planner=SimpleNamespace(start=lambda shape: start, settings=settings),
    )
    ranges = pd.DataFrame({"source": list(sources), "share": [0.5, 0.1, 0.4]})
    ranges = ranges.assign(near_low=0.0, near_high=1.0, seen_low=0.0, seen_high=1.0, cap=1.0)
    cells = [(row["before the decay"], row["of all tokens"]) for row in _share_rows(inputs, ranges)]
    assert cells == [("90 %", "80 %"), ("10 %", "10 %"), ("0 %", "10 %")]
