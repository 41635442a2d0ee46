"""Decays that were never run: averages of constant-LR checkpoints that emulate one.

During a constant LR each interval between two checkpoints adds an update to the weights. A decay would have
made the later updates smaller, by the factor of its LR over the constant one. So the decayed weights are
about ``theta_0 + sum_i f_i (theta_i - theta_{i-1})``, with ``f_i`` the mean of that factor over interval
``i``: a weighted average of the checkpoints, for any shape of decay (WSM, Tian et al. 2025,
arXiv:2507.17634; Nemotron 3 Super reads its stable phase out this way). It ignores that a smaller step would
have changed the gradients after it: good for ranking candidates cheaply, no substitute for a decay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import Schedule
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import StackedLlama, stack_params
from proxy_runs.weights.checkpoints import MemberState
from proxy_runs.weights.params import Params


def merge_weights(decay: Schedule, edges: Sequence[int]) -> npt.NDArray[np.float64]:
    """Weights of checkpoints whose average emulates ``decay``.

    Args:
        decay: the decay, from the constant LR on.
        edges: tokens of the checkpoints, counted from the start of the decay: 0 first, its end last.

    Returns:
        One weight for each checkpoint, summing to one; negative where the LR of ``decay`` rises.

    Raises:
        InvalidValueError: the edges do not run from 0 to the end of the decay, or it starts at LR 0.
    """
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != decay.tokens:
        raise InvalidValueError("edges", list(edges), f"must run from 0 to the decay's end at {decay.tokens}")
    if not decay.start_lr > 0.0:
        raise InvalidValueError("decay.start_lr", decay.start_lr, "must be positive")
    factors = decay.mean_lrs(edges) / decay.start_lr
    return np.append(1.0, factors) - np.append(factors, 0.0)


def merge(states: Sequence[MemberState], weights: npt.ArrayLike) -> Params:
    """Weighted average of the parameters of checkpoints of one history.

    Raises:
        InvalidValueError: the numbers of states and weights differ, or the states differ in shape.
    """
    values = np.asarray(weights, dtype=np.float64)
    if len(values) != len(states) or not len(states):
        raise InvalidValueError("weights", values.tolist(), f"must be one for each of {len(states)} states")
    if any(state.shape != states[0].shape for state in states):
        raise InvalidValueError("states", [state.run_id for state in states], "must share one model shape")
    merged = {}
    for name in states[0].params:
        stacked = torch.stack([state.params[name].double() for state in states], dim=-1)
        merged[name] = (stacked @ torch.from_numpy(values)).float()
    return merged


def emulated_losses(
    states: Sequence[MemberState],
    decay: Schedule,
    evaluation: EvaluationSet,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Held-out loss by domain that ``decay`` would have reached, read out of constant-LR checkpoints.

    Args:
        states: checkpoints of one constant-LR run in order, the first at the start of the decay and the last
            as many tokens later as the decay is long.
        decay: what is emulated.
        evaluation: held-out windows, on ``device``.
        device: where the average is measured.

    Returns:
        Nats per token.
    """
    edges = [state.tokens - states[0].tokens for state in states]
    params = stack_params([merge(states, merge_weights(decay, edges))])
    params = {name: tensor.to(device) for name, tensor in params.items()}
    (losses,) = evaluation.losses(StackedLlama(states[0].shape, device=device), params)
    return losses
