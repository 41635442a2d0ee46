"""The order of the data: exact counts, one pass per epoch, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from proxy_runs.data.allocation import UNITS, BatchAllocation, share_units
from proxy_runs.data.permutation import permute
from proxy_runs.data.sampler import BatchReader, MixtureSampler, available_sequences, rank_slice
from proxy_runs.testing import make_tiny_store

MIXTURE = Mixture({"a": 0.62, "b": 0.25, "c": 0.1, "d": 0.03})
PLENTY = {"a": 1000, "b": 50, "c": 20, "d": 7, "e": 5}


def sampler(**changes):
    return MixtureSampler(MIXTURE, PLENTY, **{"seed": 3, "batch_sequences": 16, **changes})


weights = st.lists(
    st.one_of(st.floats(1e-4, 1.0), st.sampled_from([1.0, 0.5, 1e-6])), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(weights, st.integers(1, 40), st.integers(1, 120))
def test_every_batch_and_every_prefix_of_batches_is_within_one_sequence(weights, batch, num_batches):
    units = share_units([weight / sum(weights) for weight in weights])
    allocation = BatchAllocation(units, batch)
    counts = np.array([allocation.counts(b) for b in range(num_batches)])
    assert sum(units) == UNITS
    assert (counts.sum(axis=1) == batch).all()
    assert (counts >= 0).all()
    total = np.zeros(len(units), dtype=object)
    for b, row in enumerate(counts):
        assert allocation.before(b).dtype == np.int64
        assert (allocation.before(b) == total).all()
        total = total + row
        for given_, asked in ((row, batch), (total, batch * (b + 1))):
            errors = [abs(int(n) * UNITS - unit * asked) for n, unit in zip(given_, units)]
            assert max(errors) < UNITS


def test_share_units_stay_within_one_unit_of_the_share():
    shares = [1 / 3, 1 / 3, 1 / 3 - 1e-9, 1e-9]
    assert all(abs(u - s * UNITS) <= 1 for u, s in zip(share_units(shares), shares))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_global_batch_is_the_same_for_any_number_of_ranks(world_size):
    source, sequence = sampler().assign(160, 16)
    parts = [rank_slice(160, 16, rank=rank, world_size=world_size) for rank in range(world_size)]
    by_rank = [sampler().assign(first, count) for first, count in parts]
    assert np.array_equal(np.concatenate([part[0] for part in by_rank]), source)
    assert np.array_equal(np.concatenate([part[1] for part in by_rank]), sequence)
    for k, name in enumerate(sampler().names):
        assert abs((source == k).sum() - 16 * MIXTURE.share(name)) < 1


def test_slices_of_ranks_resemble_the_batch():
    source, _ = MixtureSampler(MIXTURE, PLENTY, seed=0, batch_sequences=400).assign(0, 400)
    for rank in range(8):
        first, count = rank_slice(0, 400, rank=rank, world_size=8)
        shares = np.bincount(source[first : first + count], minlength=4) / count
        assert np.abs(shares - [0.62, 0.25, 0.1, 0.03]).max() <= 2 / count


def test_with_batches_of_one_every_prefix_is_within_one_sequence():
    source, _ = sampler(batch_sequences=1).assign(0, 2000)
    drawn = np.cumsum(source[:, None] == np.arange(4), axis=0)
    asked = np.arange(1, 2001)[:, None] * MIXTURE.array("abcd")
    assert np.abs(drawn - asked).max() < 1


def test_an_assignment_is_a_pure_function_of_seed_and_index():
    whole = np.stack(sampler().assign(0, 500))
    fresh = sampler()
    for first, count in ((490, 10), (3, 40), (0, 1), (250, 0), (17, 300)):
        assert np.array_equal(np.stack(fresh.assign(first, count)), whole[:, first : first + count])
    assert not np.array_equal(np.stack(sampler(seed=4).assign(0, 500))[1], whole[1])


def test_names_and_shares_of_other_sources_do_not_move_a_source_s_order():
    def order(mixture):
        drawn = MixtureSampler(mixture, PLENTY, seed=3, batch_sequences=16)
        source, sequence = drawn.assign(0, 320)
        return sequence[source == drawn.names.index("b")][:40]

    other = Mixture({"e": 0.4, "b": 0.3, "a": 0.3})
    assert np.array_equal(order(MIXTURE), order(other))


def test_order_and_zeros_of_the_mixture_do_not_matter():
    same = Mixture({"d": 0.03, "c": 0.1, "e": 0.0, "a": 0.62, "b": 0.25})
    other = MixtureSampler(same, {name: PLENTY[name] for name in "abcd"}, seed=3, batch_sequences=16)
    assert np.array_equal(np.stack(other.assign(0, 64)), np.stack(sampler().assign(0, 64)))


def test_an_epoch_reads_every_sequence_once_and_the_next_one_in_another_order():
    source, sequence = sampler().assign(0, 800)
    drawn = sequence[source == 1]
    first, second = drawn[:50], drawn[50:100]
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    assert sampler().epochs(800) == pytest.approx({"a": 0.496, "b": 4.0, "c": 4.0, "d": 24 / 7})


def test_counts_equal_what_is_assigned():
    drawn = sampler()
    for number in (0, 5, 16, 77, 500):
        source, _ = drawn.assign(0, number)
        assert list(drawn.counts(number).values()) == np.bincount(source, minlength=4).tolist()


def test_a_later_stage_goes_on_in_the_epoch_where_the_earlier_one_stopped():
    whole_source, whole = sampler(batch_sequences=1).assign(0, 400)
    read = sampler(batch_sequences=1).counts(160)
    later = sampler(batch_sequences=1, consumed_sequences=read)
    source, sequence = later.assign(0, 240)
    for k in range(4):
        expected = whole[whole_source == k][read[later.names[k]] :]
        got = sequence[source == k]
        shared = min(len(expected), len(got))
        assert shared > 0
        assert np.array_equal(got[:shared], expected[:shared])
    assert later.epochs(0)["b"] == read["b"] / 50


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_scatters_neighbours_and_keys_differ():
    size = 5000
    image = permute(np.arange(size), size, 1)
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.05
    steps = Counter(np.diff(image).tolist())
    assert steps.most_common(1)[0][1] < 20
    assert (permute(np.arange(size), size, 2) == image).mean() < 0.01


def test_permute_reaches_every_order_of_a_small_range():
    orders = {tuple(permute(np.arange(4), 4, key).tolist()) for key in range(2000)}
    assert len(orders) == 24


@pytest.mark.parametrize("size", [2**20, 2**40, 2**52 + 1])
def test_permute_stays_in_range_next_to_powers_of_two(size):
    image = permute(np.array([0, 1, size - 1]), size, 5)
    assert len(set(image.tolist())) == 3
    assert ((image >= 0) & (image < size)).all()


def test_refusals_name_the_field():
    with pytest.raises(InfeasibleError, match="'d', which has less text than one training sequence"):
        MixtureSampler(MIXTURE, {**PLENTY, "d": 0}, seed=0)
    with pytest.raises(InvalidValueError, match="batch_sequences"):
        sampler(batch_sequences=0)
    with pytest.raises(InvalidValueError, match="first_index"):
        sampler().assign(-1, 4)
    with pytest.raises(InvalidValueError, match="rank"):
        rank_slice(0, 8, rank=2, world_size=2)


def test_batches_hold_windows_of_the_shards(tmp_path):
    store = make_tiny_store(tmp_path)
    mixture = Mixture({"general": 0.5, "code": 0.3, "maths": 0.2})
    drawn = MixtureSampler(mixture, available_sequences(store, 32), seed=0, batch_sequences=8)
    reader = BatchReader(store, drawn, 32)
    batch = reader.batch(2000, 8)
    assert batch.shape == (8, 33)
    assert batch.dtype == np.int64
    for row, source, sequence in zip(batch, *drawn.assign(2000, 8)):
        start = sequence * 32
        assert np.array_equal(row, store.train(drawn.names[source])[start : start + 33])
    assert np.array_equal(reader.batch(2004, 8)[:4], batch[4:])


def test_available_sequences_respect_the_pool(tmp_path):
    store = make_tiny_store(tmp_path, train_tokens=1000)
    assert available_sequences(store, 100) == {"general": 9, "code": 9, "maths": 9}
    assert available_sequences(store, 100, {"code": 501})["code"] == 5
    assert available_sequences(store, 100, {"code": 10**9})["code"] == 9
    with pytest.raises(InvalidValueError, match="must name a source"):
        available_sequences(store, 100, {"cod": 501})
