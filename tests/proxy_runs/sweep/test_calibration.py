"""A machine's speed is measured with as few steps as decide something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import ModelShape
from proxy_runs.engine import Backend
from proxy_runs.sweep import calibration
from proxy_runs.sweep.calibration import seconds_of, tokens_per_second

CPU = torch.device("cpu")
SHAPE = ModelShape(d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=32, vocab_size=64, seq_len=16)


class Clock:
    """A processor's clock that only moves by what each step takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: Iterator[float]) -> None:
        self.now, self.calls, self._steps = 0.0, 0, steps
        monkeypatch.setattr(calibration.time, "process_time", lambda: self.now)

    def step(self) -> None:
        self.calls += 1
        self.now += next(self._steps)


@pytest.mark.parametrize(
    ("steps", "compiled", "seconds", "calls"),
    [
        ([5.0, 4.0], False, 5.0, 1),  # long, and eager: one is enough
        ([40.0, 4.0], True, 4.0, 2),  # the first one compiled
        ([0.9, 0.6], False, 0.6, 2),
        ([0.3, 0.1, 0.3, 0.2, 0.1], False, 0.2, 4),  # the median of those after the first
    ],
)
def test_a_step_is_timed_no_longer_than_it_takes_to_know_it(
    monkeypatch: pytest.MonkeyPatch, steps: list[float], compiled: bool, seconds: float, calls: int
) -> None:
    clock = Clock(monkeypatch, iter(steps))
    assert seconds_of(clock.step, CPU, compiled=compiled) == pytest.approx(seconds)
    assert clock.calls == calls


def _with_steps_of(monkeypatch: pytest.MonkeyPatch, start: float, tokens: float) -> list[tuple[int, int]]:
    """Let a step take ``start`` seconds and ``tokens`` more for each of its tokens; what is measured, by width."""
    measured: list[tuple[int, int]] = []

    def seconds(shape: ModelShape, sequences: int, backend: Backend) -> float:
        measured.append((shape.d_model, backend.slots))
        arithmetic = tokens * shape.d_model / SHAPE.d_model * sequences * shape.seq_len
        return start + arithmetic * backend.slots

    monkeypatch.setattr(calibration, "_seconds_of_a_step", seconds)
    return measured


def test_stacks_are_tried_only_where_starting_kernels_is_a_notable_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = _with_steps_of(monkeypatch, 0.002, 1e-3)
    assert list(tokens_per_second(SHAPE, 256, Backend(device="cpu"), [1, 2, 4])) == [1]
    assert slow == [(16, 1), (4, 1)]
    small = _with_steps_of(monkeypatch, 0.002, 1e-5)
    found = tokens_per_second(SHAPE, 256, Backend(device="cpu"), [1, 2, 4])
    assert found[4] > 1.1 * found[1]
    assert [slots for width, slots in small if width == 16] == [1, 2, 4]


def test_a_given_number_of_slots_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calibration, "_seconds_of_a_step", out_of_memory)
    with pytest.raises(InvalidValueError, match=r"backend\.slots"):
        tokens_per_second(SHAPE, 32, Backend(device="cpu"), [8])
