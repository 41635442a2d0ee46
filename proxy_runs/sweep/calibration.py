"""How fast this machine trains: measured in a second or two, so that a plan has a price in hours.

What is measured is what a study runs: the engine's own step on one thread of one worker, with batches of random
tokens. Reading and evaluating come on top; both are small beside the steps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import ModelShape
from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.engine import Backend
from proxy_runs.engine.heldout import EVAL_SEQUENCES, EvaluationSet
from proxy_runs.engine.model import init_params
from proxy_runs.engine.stack import Stack
from proxy_runs.machine import CLEAR_GAIN
from proxy_runs.weights.checkpoints import MemberState

MEASURE_SECONDS = 0.4
LONG_STEP_SECONDS = 1.0
"""One step that takes longer is measurement enough: it is thousands of kernels, whose sum varies by some 3 %."""
PEAK_WIDTH = 1024
CANDIDATE_SLOTS = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64)}
MAX_STACK_TOKENS = 2**17
"""Tokens of a stack's step that are tried on a GPU: more fill no gap that half of them leave, and cost memory."""


class SyntheticRun:
    """A run that always has the same batch ready; what a stack asks of a run and no more."""

    lr = 1e-3

    def __init__(self, shape: ModelShape, sequences: int, seed: int) -> None:
        self.config: Any = type("Config", (), {"optimizer": OptimizerConfig()})
        self.history_step = 0
        generator = torch.Generator().manual_seed(seed)
        size = (sequences, shape.seq_len + 1)
        self._windows = torch.randint(shape.vocab_size, size, generator=generator).numpy()
        self._weights = np.full(sequences, 1.0 / sequences, dtype=np.float32)

    def batch(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The windows and the weight of each."""
        return self._windows, self._weights

    def read_ahead(self) -> None:
        """Nothing: the batch is always ready."""

    def advance(self) -> None:
        """Count the step."""
        self.history_step += 1

    def take_back(self, steps: int) -> None:
        """Count the last steps no more."""
        self.history_step -= steps


def synthetic_step(shape: ModelShape, sequences: int, backend: Backend) -> Callable[[], object]:
    """A step of :func:`synthetic_stack`.

    Args:
        shape: shape of the members.
        sequences: sequences of one step of a member.
        backend: how the stack computes.
    """
    return synthetic_stack(shape, sequences, backend).step


def synthetic_stack(shape: ModelShape, sequences: int, backend: Backend) -> Stack:
    """A full stack on random tokens.

    Args:
        shape: model shape of every member.
        sequences: sequences of a member's step.
        backend: how the stack computes, and how many members it has.
    """
    stack = Stack(shape, backend.slots, backend)
    for slot in range(backend.slots):
        params = init_params(shape, slot)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        state = MemberState(
            run_id=str(slot), shape=shape, step=0, run_step=0, tokens=0,
            params=params, exp_avg=zeros, exp_avg_sq=zeros,
        )  # fmt: skip
        run: Any = SyntheticRun(shape, sequences, slot)
        stack.load(slot, run, state)
    return stack


def matmul_step(device: torch.device | str = "cpu") -> Callable[[], object]:
    """A large float32 matmul, ``2 * PEAK_WIDTH**3`` FLOPs: the speed of light of this machine."""
    a, b = (torch.randn(PEAK_WIDTH, PEAK_WIDTH, device=device) for _ in range(2))
    return lambda: torch.mm(a, b)


def seconds_of(step: Callable[[], object], device: torch.device, *, compiled: bool = False) -> float:
    """Median seconds of a call that follows a first one; a first one that is long is all there is.

    What a first call sets up takes hundredths of a second, unless it compiles or has a GPU record. On a CPU they are
    seconds of the processor: what other programs take meanwhile would be kept as this machine's speed, and could decide
    how a study computes (``auto`` in ``train``).

    Args:
        step: what to call.
        device: where it computes.
        compiled: whether its first call compiles.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def timed() -> float:
        before = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - before

    first = timed()
    if first > LONG_STEP_SECONDS and device.type == "cpu" and not compiled:
        return first
    times: list[float] = []
    while not times or sum(times) < MEASURE_SECONDS:
        times.append(timed())
    return float(np.median(times))


def matmul_flops(backend: Backend) -> float:
    """FLOPs per second of a large float32 matmul on one thread, or on the GPU."""
    with _one_thread():
        return 2 * PEAK_WIDTH**3 / seconds_of(matmul_step(backend.torch_device), backend.torch_device)


def tokens_per_second(
    shape: ModelShape, batch_tokens: int, backend: Backend, slots: Sequence[int]
) -> dict[int, float]:
    """Training tokens per second of one worker, all members together, by number of slots; those that fit the memory.

    On a CPU stacks are tried only where they can be clearly faster than single members. Measured again, a speed varies
    by a few percent.

    Args:
        shape: shape of the members.
        batch_tokens: tokens of one step of a member.
        backend: how the stack computes.
        slots: numbers of members to try, from the smallest upwards.

    Raises:
        InvalidValueError: not even the first number fits the memory.
    """
    found: dict[int, float] = {}
    sequences = batch_tokens // shape.seq_len
    with _one_thread():
        for count in slots:
            if list(found) == [1] and not _stack_can_gain(shape, batch_tokens / found[1], backend):
                break
            try:
                seconds = _seconds_of_a_step(shape, sequences, replace(backend, slots=count))
                found[count] = count * batch_tokens / seconds
            except torch.OutOfMemoryError:
                if not found:
                    raise InvalidValueError(
                        "slots",
                        count,
                        f"members of {shape.total_params:,} parameters do not fit the memory of the device",
                        "Give fewer backend.slots, a smaller shape or smaller batch_tokens.",
                    ) from None
                break
            finally:
                _give_memory_back(backend.torch_device)
    return found


def _seconds_of_a_step(shape: ModelShape, sequences: int, backend: Backend) -> float:
    stack = synthetic_stack(shape, sequences, backend)
    seconds = seconds_of(stack.step, backend.torch_device, compiled=backend.compiled)
    if backend.is_stackwise:
        # an evaluation reads many windows at once: it needs more memory than a step, beside what a recorded one keeps
        size = (EVAL_SEQUENCES, shape.seq_len + 1)
        windows = torch.randint(shape.vocab_size, size, device=backend.torch_device)
        stack.measure(range(backend.slots), EvaluationSet({"all": windows}, {"all": 1.0}, "synthetic"))
    return seconds


def _stack_can_gain(shape: ModelShape, step_seconds: float, backend: Backend) -> bool:
    """Whether a stack can be clearly faster than a single member, whose step takes ``step_seconds``.

    On a CPU its members share nothing but the cost of starting the kernels, which a model of the same layers and
    hardly any width shows. It is doubled, since a large vocabulary passes through the head in many small pieces.
    """
    if backend.is_stackwise:
        return True
    narrow = replace(shape, d_model=2 * shape.num_heads, d_ff=2, vocab_size=16, seq_len=4)
    shared = 2 * _seconds_of_a_step(narrow, 1, replace(backend, slots=1))
    return shared >= step_seconds * (1 - 1 / CLEAR_GAIN)


def _give_memory_back(device: torch.device) -> None:
    """Who measured keeps nothing of the GPU: its workers are other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def candidate_slots(batch_tokens: int, backend: Backend) -> list[int]:
    """Numbers of slots that are worth a try, from one upwards.

    Those that a stack never has (see ``Backend.slots_for``) are not, nor are stacks that a GPU has long been full with.
    """
    device = backend.torch_device.type
    counts = [
        count for count in CANDIDATE_SLOTS[device] if replace(backend, slots=count).slots_for(count) == count
    ]
    if device == "cpu":
        return counts
    return [count for count in counts if count == 1 or count * batch_tokens <= MAX_STACK_TOKENS]


class _one_thread:  # noqa: N801 - a context manager that reads as a word
    """One thread inside the block, as workers have; what was set before it after it."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
