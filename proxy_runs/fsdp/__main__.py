"""``torchrun -m proxy_runs.fsdp SETTINGS``: one rank of a full-scale run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging

from decaylaws.errors import DecaylawsError
from proxy_runs.fsdp.parallel import open_world
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.trainer import Trainer

USER_ERROR = 2


def main(arguments: list[str]) -> int:
    """Train; returns the exit code: 2 for what the user can mend."""
    logging.disable_progress_bar()
    try:
        settings = TrainSettings.load(Path(arguments[0]))
        world = open_world(settings.device, settings.replicas)
        Trainer(settings, world).train()
    except DecaylawsError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
