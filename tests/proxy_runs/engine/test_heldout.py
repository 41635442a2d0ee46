"""Held-out losses: which tokens, and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from decaylaws.errors import DataError
from decaylaws.runs.config import ModelShape
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.tiny_runs import SEQ_LEN, tiny_shape


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_tiny_store(tmp_path_factory.mktemp("corpus"), heldout_tokens=500)


@pytest.fixture(scope="module")
def shape(store: TokenStore) -> ModelShape:
    return tiny_shape(store)


@pytest.mark.parametrize(("asked", "count"), [(16, 1), (40, 2), (480, 30), (10**6, 31)])
def test_windows_are_the_first_whole_ones(store: TokenStore, asked: int, count: int) -> None:
    evaluation = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=asked)
    for domain, windows in evaluation.windows.items():
        tokens = store.heldout(domain).tokens
        assert windows.shape == (count, SEQ_LEN + 1)
        assert np.array_equal(windows[:, :-1].flatten(), tokens[: count * SEQ_LEN])
        assert np.array_equal(windows[:, 1:].flatten(), tokens[1 : count * SEQ_LEN + 1])


def test_losses_are_means_over_tokens_by_member_and_domain(store: TokenStore, shape: ModelShape) -> None:
    evaluation = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=400)
    params = stack_params([init_params(shape, seed) for seed in range(3)])
    model = StackedLlama(shape)
    found = evaluation.losses(model, params)
    for domain, windows in evaluation.windows.items():
        logits = model.logits(params, windows[:, :-1].expand(3, -1, -1))
        for k in range(3):
            expected = F.cross_entropy(logits[k].flatten(0, 1).double(), windows[:, 1:].flatten())
            assert found[k][domain] == pytest.approx(float(expected), abs=1e-6)


def test_a_member_is_measured_alike_alone_and_in_a_stack(store: TokenStore, shape: ModelShape) -> None:
    evaluation = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=400)
    members = [init_params(shape, seed) for seed in range(3)]
    model = StackedLlama(shape)
    alone = [evaluation.losses(model, stack_params([params]))[0] for params in members]
    assert evaluation.losses(model, stack_params(members)) == alone


def test_bits_per_byte_counts_the_bytes_of_the_predicted_tokens(store: TokenStore) -> None:
    evaluation = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64)
    token_bytes = store.heldout("code").token_bytes[1:65]
    nats = 2.5
    expected = nats * 64 / token_bytes.sum() / math.log(2.0)
    assert evaluation.bits_per_byte({"code": nats})["code"] == pytest.approx(expected)


def test_the_key_tells_measurements_apart(store: TokenStore) -> None:
    settings = [(16, 64), (16, 64), (16, 80), (8, 64)]
    keys = [EvaluationSet.build(store, seq_len=s, tokens_per_domain=t).key for s, t in settings]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_domain_without_a_whole_window_is_a_clear_error(tmp_path: Path) -> None:
    small = make_tiny_store(tmp_path, heldout_tokens=12)
    with pytest.raises(DataError, match=r"'general' has 12 tokens.*one window of 16"):
        EvaluationSet.build(small, seq_len=SEQ_LEN, tokens_per_domain=64)
