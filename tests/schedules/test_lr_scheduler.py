"""The torch scheduler: LRs of every step, checkpoints, parameter groups."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import batch_ramp, decay, warmup_stable_decay

torch = pytest.importorskip("torch")
from proxy_runs.engine.lr_scheduler import ScheduleLR  # noqa: E402 (needs torch)

SCHEDULE = warmup_stable_decay(1_000, 1e-3, warmup_tokens=100, decay_tokens=200)
BATCH = 64


def optimizer(**group: float):
    weight = torch.nn.Parameter(torch.ones(3))
    return torch.optim.AdamW([{"params": [weight], **group}], lr=123.0)


def steps(scheduler: ScheduleLR, count: int) -> list[float]:
    """LR used by each of ``count`` steps."""
    used = []
    for _ in range(count):
        used.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return used


def test_every_step_gets_the_mean_over_its_tokens() -> None:
    scheduler = ScheduleLR(optimizer(), SCHEDULE, BATCH)
    assert scheduler.num_steps == 16
    np.testing.assert_allclose(steps(scheduler, 16), SCHEDULE.step_lrs(BATCH), rtol=1e-15)
    assert scheduler.get_last_lr() == [SCHEDULE.end_lr]
    assert scheduler.tokens == SCHEDULE.tokens


def test_batch_schedule() -> None:
    ramp = batch_ramp(1_000, start=50, end=100, increment=50, ramp_tokens=200)
    scheduler = ScheduleLR(optimizer(), SCHEDULE, ramp)
    np.testing.assert_allclose(steps(scheduler, ramp.num_steps), SCHEDULE.step_lrs(ramp), rtol=1e-15)


def test_going_on_beyond_the_end_is_an_error() -> None:
    scheduler = ScheduleLR(optimizer(), SCHEDULE, BATCH)
    steps(scheduler, 16)
    with pytest.raises(InvalidValueError, match="beyond the schedule"):
        steps(scheduler, 1)


@pytest.mark.parametrize("done", [0, 1, 7, 15, 16])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(done: int) -> None:
    first = ScheduleLR(optimizer(), SCHEDULE, BATCH)
    steps(first, done)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert state == json.loads(json.dumps(first.state_dict()))

    second = ScheduleLR(optimizer(), SCHEDULE, BATCH)
    second.load_state_dict(state)
    assert second.tokens == min(done * BATCH, 1_000)
    assert second.get_last_lr() == first.get_last_lr()
    assert steps(second, 16 - done) == steps(first, 16 - done)


def test_state_of_another_schedule_or_batch_is_refused() -> None:
    state = ScheduleLR(optimizer(), SCHEDULE, BATCH).state_dict()
    with pytest.raises(InvalidValueError, match="is not the schedule of this run"):
        ScheduleLR(optimizer(), decay(1_000, 1e-3), BATCH).load_state_dict(state)
    with pytest.raises(InvalidValueError, match="is not the batch size of this run"):
        ScheduleLR(optimizer(), SCHEDULE, 50).load_state_dict(state)


def test_groups_with_a_scale_get_their_multiple() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr_scale": 0.25}]
    scheduler = ScheduleLR(torch.optim.AdamW(groups, lr=1.0), SCHEDULE, BATCH)
    full, quarter = scheduler.get_last_lr()
    assert full == SCHEDULE.step_lrs(BATCH)[0]
    assert quarter == full / 4


def test_tensor_lr_stays_a_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with_tensor = torch.optim.AdamW([weight], lr=torch.tensor(1.0), foreach=False)
    scheduler = ScheduleLR(with_tensor, SCHEDULE, BATCH)
    steps(scheduler, 5)
    state = scheduler.state_dict()
    steps(scheduler, 2)
    scheduler.load_state_dict(state)
    lr = with_tensor.param_groups[0]["lr"]
    assert isinstance(lr, torch.Tensor)
    assert float(lr) == pytest.approx(SCHEDULE.step_lrs(BATCH)[5])


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(InvalidValueError, match="batch_tokens"):
        ScheduleLR(optimizer(), SCHEDULE, 0)
    with pytest.raises(InvalidValueError, match="lr_scale"):
        ScheduleLR(optimizer(lr_scale=-1.0), SCHEDULE, BATCH)
