"""What a sweep leaves in the runs table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from decaylaws.laws.decay import DecayLaw
from decaylaws.study.results import with_starts
from tests.laws.test_decay_law import SOURCES, TRUNK, jumping


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


def of_checkpoints(decays: pd.DataFrame, *, averages: bool) -> pd.DataFrame:
    """The rows of a study on checkpoints, each of them measured with the means of weights or without."""
    sources = [name.removeprefix("loss:") for name in decays if name.startswith("loss:")]
    starts = decays.groupby("non_embedding_params", as_index=False).first()
    plain = decays.drop(columns=[name for name in decays if name.startswith("averaged")])
    names = [f"c{params}" for params in starts["non_embedding_params"]]
    held = starts.assign(
        run_id=names, kind="checkpoint", decay_tokens=starts["start_tokens"], start_tokens=0, start_run_id=None,
        **{f"loss:{name}": starts[f"start_loss:{name}"] for name in sources},
    )  # fmt: skip
    means = held.assign(
        run_id=[f"m{name}" for name in names], kind="average", start_run_id=names, start_tokens=starts["start_tokens"],
        averaged_tokens=0.1 * starts["start_tokens"],
        **{f"loss:{name}": starts[f"averaged_start_loss:{name}"] for name in sources},
    )  # fmt: skip
    forks = plain.assign(
        run_id=[f"d{number}" for number in range(len(plain))],
        kind="decay",
        start_run_id=[f"c{params}" for params in plain["non_embedding_params"]],
    )
    kept = [held, means, forks] if averages else [held, forks]
    plain_columns = [*forks.columns, *(["averaged_tokens"] if averages else [])]
    rows = pd.concat(kept, ignore_index=True)[plain_columns]
    return with_starts(rows.assign(reached_target=True, evaluation_tokens=512))


def test_earlier_checkpoints_anchor_the_law_as_the_last_weights_of_a_trunk_do() -> None:
    decays = jumping((100_000, 200_000), seed=1)
    found = of_checkpoints(decays, averages=True)
    held = found[found["kind"] == "checkpoint"]
    means = found[found["kind"] == "average"].set_index("start_run_id").loc[held["run_id"]]
    for name in SOURCES:
        assert held[f"averaged_loss:{name}"].tolist() == means[f"loss:{name}"].tolist()

    def fitted(runs: pd.DataFrame) -> DecayLaw:
        return DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)

    of_trunks, measured = fitted(decays), fitted(found[found["kind"] == "decay"])
    without = of_checkpoints(decays, averages=False)
    guessed = fitted(without[without["kind"] == "decay"])
    assert (measured.is_measured_, guessed.is_measured_) == (True, False)
    unseen = jumping((800_000,), seed=10)
    as_checkpoints = of_checkpoints(unseen, averages=True)
    as_checkpoints = as_checkpoints[as_checkpoints["kind"] == "decay"]
    np.testing.assert_allclose(measured.predict(as_checkpoints), of_trunks.predict(unseen), rtol=1e-6)
    observed = unseen[[f"loss:{name}" for name in SOURCES]].to_numpy()
    error, before = (np.abs(each.predict(as_checkpoints) - observed).mean() for each in (measured, guessed))
    assert error < 0.5 * before
    # a shorter stretch of averages shows less of what a decay gains, so that more is expected of it
    shorter = as_checkpoints.assign(averaged_start_tokens=as_checkpoints["averaged_start_tokens"] / 50)
    assert (measured.predict(shorter) < measured.predict(as_checkpoints)).all()
