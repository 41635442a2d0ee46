"""What a sweep leaves in the runs table."""

from __future__ import annotations

import pandas as pd

from decaylaws.study.results import with_starts


def test_a_trunk_that_was_measured_on_two_amounts_of_text_gives_each_decay_its_own_start() -> None:
    rows = [
        ("t", "trunk", None, 0, 100, 512, 3.0), ("t", "trunk", None, 0, 100, 4096, 2.9),
        ("a", "decay", "t", 100, 10, 512, None), ("b", "decay", "t", 100, 10, 4096, None),
        ("c", "decay", "t", 50, 10, 512, None),
    ]  # fmt: skip
    columns = [
        "run_id",
        "kind",
        "start_run_id",
        "start_tokens",
        "decay_tokens",
        "evaluation_tokens",
        "averaged_loss:web",
    ]
    runs = pd.DataFrame(rows, columns=columns).assign(reached_target=True)
    found = with_starts(runs).set_index(["run_id", "evaluation_tokens"])["averaged_start_loss:web"]
    assert found[("a", 512)] == 3.0
    assert found[("b", 4096)] == 2.9
    assert pd.isna(found[("c", 512)])  # not from the end of the trunk
