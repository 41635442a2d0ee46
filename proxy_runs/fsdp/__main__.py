"""``python -m proxy_runs.fsdp SETTINGS`` under torchrun: one rank of a full-scale run."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path

import torch.distributed as dist
from transformers.utils import logging

from decaylaws.errors import DecaylawsError
from decaylaws.io.files import write_text
from decaylaws.recipe.files import to_json
from proxy_runs.fsdp.launch import DIVERGED_FILE
from proxy_runs.fsdp.listener import Listener, StoppedError
from proxy_runs.fsdp.parallel import open_world
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.torchrun import STOPPED, USER_ERROR
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.fsdp.watch import DivergedError


def main(arguments: list[str]) -> int:
    """Train; returns the exit code. What went wrong is a line that begins with ``error:`` or ``failed:``."""
    logging.disable_progress_bar()
    try:
        settings = TrainSettings.load(Path(arguments[0]))
        world = open_world(settings.device, settings.replicas)
        listener = Listener()
        signal.signal(signal.SIGTERM, listener.note_stop)
        Trainer(settings, world, listener=listener).train()
    except DivergedError as error:
        if dist.get_rank() == 0:
            last = {"message": str(error), "loss": str(error.loss), "norm": str(error.norm)}
            write_text(settings.output / DIVERGED_FILE, to_json(last))
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except DecaylawsError as error:
        sys.stderr.write(f"error: {error}\n")
        return STOPPED if isinstance(error, StoppedError) else USER_ERROR
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        sys.stderr.write(f"{traceback.format_exc()}failed: {type(error).__name__}: {reason}\n")
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
