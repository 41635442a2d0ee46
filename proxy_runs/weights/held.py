"""Checkpoints that exist, as starts of runs: found by content, checked before their first use, read as members."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from decaylaws.errors import DataError
from decaylaws.runs.config import Arithmetic, RunConfig
from decaylaws.runs.folders import folder_fingerprint
from decaylaws.runs.start import CheckpointStart
from proxy_runs.weights.checkpoints import MemberState
from proxy_runs.weights.moments import MOMENTS, of_kind, read_moments


class HeldCheckpoints:
    """The checkpoints that runs may start from.

    Args:
        folders: by fingerprint, the Hugging Face folder that holds the checkpoint.
    """

    def __init__(self, folders: Mapping[str, Path] | None = None) -> None:
        self._folders = dict(folders or {})
        self._checked: set[str] = set()
        self._losses: dict[tuple[CheckpointStart, Arithmetic, str], dict[str, float]] = {}

    def folder(self, start: CheckpointStart) -> Path:
        """Where a start lies, with the content that it was planned with.

        Raises:
            DataError: nobody said where it is, or the folder holds something else by now.
        """
        return self._folder(start, start.fingerprint)

    def folders(self, start: CheckpointStart) -> list[Path]:
        """Where the checkpoints lie whose weights are averaged, as :meth:`folder` finds them, the start itself last.

        Raises:
            DataError: as :meth:`folder`.
        """
        return [self._folder(start, fingerprint) for fingerprint in (*start.averaged, start.fingerprint)]

    def _folder(self, start: CheckpointStart, fingerprint: str) -> Path:
        folder = self._folders.get(fingerprint)
        if folder is None:
            raise DataError(
                f"The folder of the {start.family} checkpoint {fingerprint} is not known. Plan again."
            )
        if fingerprint not in self._checked:
            found = folder_fingerprint(folder, optimizer_state=start.optimizer_state)
            if found != fingerprint:
                raise DataError(
                    f"The checkpoint in {folder} is not the one that was planned with: its content is {found}, that "
                    f"of the plan {fingerprint}. Restore it, or plan again."
                )
            self._checked.add(fingerprint)
        return folder

    def mean_folder(self, start: CheckpointStart, into: Path) -> Path:
        """A Hugging Face folder with the mean of the weights of the checkpoints of an averaged start.

        Args:
            start: the start.
            into: the folder to write.

        Raises:
            DataError: as :meth:`folder`, or a folder cannot be read.
        """
        from proxy_runs.weights.causal_lm import load_causal_lm  # transformers takes seconds to load

        *earlier, last = self.folders(start)
        model = load_causal_lm(last)
        state = model.state_dict()
        for number, folder in enumerate(earlier, start=2):
            for name, tensor in load_causal_lm(folder).state_dict().items():
                if tensor.is_floating_point():
                    state[name].lerp_(tensor, 1.0 / number)
        model.save_pretrained(into)
        return into

    def note_losses(self, config: RunConfig, evaluation: str, losses: Mapping[str, float]) -> None:
        """Remember what a start was measured at: all of its decays begin there.

        Args:
            config: a run from it, or its own.
            evaluation: key of the held-out tokens.
            losses: by domain, nats per token.
        """
        if config.start is not None:
            self._losses[config.start, config.arithmetic, evaluation] = dict(losses)

    def losses(self, config: RunConfig, evaluation: str) -> dict[str, float]:
        """Losses at the start of a run, by domain; empty where they were not measured in this process."""
        assert config.start is not None
        return self._losses.get((config.start, config.arithmetic, evaluation), {})

    def member(self, config: RunConfig) -> MemberState:
        """The start of a run as a member of the stacked trainer, with its moments if the run loads them.

        The weights of an averaged start are the mean of its checkpoints.

        Raises:
            DataError: the folder is not the one that was planned with, or cannot be read.
        """
        from proxy_runs.weights.hf import from_hf_weights, load_hf  # transformers takes seconds to load

        assert config.start is not None
        shape, params = config.llama, None
        for number, folder in enumerate(self.folders(config.start), start=1):
            found, own = load_hf(folder)
            # the study's sequences may be shorter than the model's positions reach
            if _without_length(found) != _without_length(shape):
                raise DataError(f"The checkpoint in {folder} is {found}, but the run needs {shape}.")
            params = (
                own if params is None else {name: params[name].lerp(own[name], 1.0 / number) for name in own}
            )
        assert params is not None
        # zeros that take no memory: the trainer copies them into moments of its own
        none = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in params.items()}
        step, moments = 0, dict.fromkeys(MOMENTS, none)
        if config.start.optimizer_state == "load":
            step, full = read_moments(folder)
            moments = {kind: from_hf_weights(of_kind(full, kind), shape) for kind in MOMENTS}
        return MemberState(
            run_id=str(config.start_run_id or config.run_id),
            shape=shape,
            step=step,
            run_step=0,
            tokens=config.start.tokens,
            params=params,
            **moments,
        )


def _without_length(shape: object) -> dict[str, object]:
    return {name: value for name, value in vars(shape).items() if name != "seq_len"}
