"""A decaylaws schedule behind torch's scheduler interface, for any training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import BatchSchedule, Schedule

# An optional key of a parameter group: its LR is the schedule's times this.
LR_SCALE = "lr_scale"


class ScheduleLR(LRScheduler):
    """Sets the LR of every step to the mean of the schedule over the tokens that the step consumes.

    The LR is absolute: the ``lr`` that the optimiser was made with has no influence. A parameter group with a
    key ``lr_scale`` gets the schedule's LR times that (muP, layer-wise LR); the others get it as it is.

    Call ``step()`` after each ``optimizer.step()``. After the last step of the schedule the LR rests at the
    schedule's end; going on beyond that is an error, not a silent constant.

    ``state_dict()`` holds plain numbers, lists and dicts. Loading it sets the optimiser's LR to that of the
    position, whatever the optimiser's own state says, and refuses the state of another schedule: a fork is a
    new run and gets a new scheduler.

    Args:
        optimizer: whose parameter groups are set.
        schedule: LR over tokens.
        batch_tokens: tokens of one step, or a batch-size schedule as long as ``schedule``.
        last_epoch: steps already done minus one, as in torch; -1 for a fresh start.

    Raises:
        InvalidValueError: a batch size that does not fit, or an ``lr_scale`` that is no positive number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        batch_tokens: int | BatchSchedule,
        last_epoch: int = -1,
    ) -> None:
        self.schedule = schedule
        self.batch_tokens = batch_tokens
        self._edges = schedule.step_edges(batch_tokens)
        for index, group in enumerate(optimizer.param_groups):
            if not group.get(LR_SCALE, 1.0) > 0.0:
                raise InvalidValueError(
                    f"param_groups[{index}].{LR_SCALE}", group[LR_SCALE], "must be above zero"
                )
        super().__init__(optimizer, last_epoch)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the schedule."""
        return len(self._edges) - 1

    @property
    def tokens(self) -> int:
        """Tokens consumed by the steps already done."""
        return int(self._edges[self.last_epoch])

    def get_lr(self) -> list[float | Tensor]:
        """LR of the step to come, for each parameter group."""
        step = self.last_epoch
        if step > self.num_steps:
            raise InvalidValueError(
                "step", step, f"is beyond the schedule ({self.num_steps} steps)", "Extend the schedule."
            )
        lr = self.schedule.end_lr
        if step < self.num_steps:
            lr = float(self.schedule.mean_lrs(self._edges[step : step + 2])[0])
        return [lr * group.get(LR_SCALE, 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Position, schedule and batch sizes: JSON-ready."""
        return {
            "last_epoch": self.last_epoch,
            "schedule": self.schedule.to_dict(),
            "batch_tokens": _batch_state(self.batch_tokens),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a recorded position and set the optimiser's LR to what it is there.

        Raises:
            InvalidValueError: the state is that of another schedule or batch size.
        """
        if Schedule.from_dict(state_dict["schedule"]) != self.schedule:
            raise InvalidValueError(
                "schedule", state_dict["schedule"], "is not the schedule of this run", "Resume with its own."
            )
        if state_dict["batch_tokens"] != _batch_state(self.batch_tokens):
            raise InvalidValueError(
                "batch_tokens", state_dict["batch_tokens"], "is not the batch size of this run"
            )
        self.last_epoch = int(state_dict["last_epoch"])
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def _batch_state(batch_tokens: int | BatchSchedule) -> int | dict[str, Any]:
    return batch_tokens.to_dict() if isinstance(batch_tokens, BatchSchedule) else batch_tokens
