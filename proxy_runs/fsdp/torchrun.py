"""``python -m proxy_runs.fsdp.torchrun ...``: torchrun, except that an error of the user's ends the run at once.

torchrun starts dead ranks again whatever they died of. That brings a run back after a lost node, but a missing
checkpoint is missing at every attempt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

USER_ERROR = 2
"""Exit code of a rank, and of the whole run, for what the user can mend."""
STOPPED = 75
"""Exit code of a rank that was asked to stop and has saved."""


class Agent(LocalElasticAgent):
    """Watches the ranks of one machine."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode == USER_ERROR for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns its exit code, that of the ranks for an error of the user's."""
    api.LocalElasticAgent = Agent  # type: ignore[misc]
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        if any(failure.exitcode == USER_ERROR for failure in error.failures.values()):
            return USER_ERROR
        sys.stderr.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
