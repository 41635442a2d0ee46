"""Which steps are not taken: what is not finite, and losses that jump."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from decaylaws.errors import DecaylawsError

REMEMBERED = 32
NEEDED = 8


class DivergedError(DecaylawsError):
    """Too many steps in a row were not taken; ``loss`` and ``norm`` are those of the last one."""

    def __init__(self, message: str, *, loss: float, norm: float) -> None:
        super().__init__(message)
        self.loss, self.norm = loss, norm


class LossWatch:
    """Skips a step whose loss or gradient is not finite or whose loss jumps; stops when that goes on.

    A skipped step moves no weight and no moment; the run goes on with the next data and the next LR. A jump is
    measured against the median of the last losses of the same stage, since a stage may change the mixture.

    Args:
        max_skipped: steps in a row that may be skipped.
        max_jump: nats per token above the median; ``None`` takes every finite loss.
    """

    def __init__(self, *, max_skipped: int, max_jump: float | None) -> None:
        self._max_skipped = max_skipped
        self._max_jump = max_jump
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._stage = 0
        self.skipped = 0

    def refuses(self, loss: float, stage: int) -> bool:
        """Whether the step that gave ``loss`` must not be taken."""
        if stage != self._stage:
            self._stage = stage
            self._recent.clear()
        return not math.isfinite(loss) or self._jumps(loss)

    def note(self, loss: float, norm: float, *, step: int, taken: bool) -> None:
        """Count a step.

        Args:
            loss: loss of the step, nats per token.
            norm: norm of its gradient.
            step: number of the step.
            taken: whether the optimiser took it.

        Raises:
            DivergedError: more steps in a row than allowed were skipped.
        """
        if taken:
            self.skipped = 0
            self._recent.append(loss)
            return
        self.skipped += 1
        if self.skipped <= self._max_skipped:
            return
        if math.isfinite(loss) and math.isfinite(norm):
            reason = f"{self._max_jump} nats or more above the median {median(self._recent):.4f} before them"
        else:
            reason = "not finite"
        raise DivergedError(
            f"Loss {loss} and gradient norm {norm} at step {step}: {self.skipped} steps in a row were "
            f"{reason}, so training stops. Lower the LR, look at the data of these steps, or start from an "
            "earlier checkpoint.",
            loss=loss,
            norm=norm,
        )

    def state(self) -> dict[str, object]:
        """JSON values for a checkpoint."""
        return {"skipped": self.skipped, "stage": self._stage, "recent_losses": list(self._recent)}

    def restore(self, *, skipped: int, stage: int, recent_losses: Sequence[float]) -> None:
        """The inverse of :meth:`state`."""
        self.skipped, self._stage = skipped, stage
        self._recent = deque(recent_losses, maxlen=REMEMBERED)

    def _jumps(self, loss: float) -> bool:
        known = self._max_jump is not None and len(self._recent) >= NEEDED
        return known and loss >= median(self._recent) + (self._max_jump or 0.0)
