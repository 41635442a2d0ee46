"""The runs of a study as configs: starts, the stable stages after them, and decays that fork from either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from decaylaws.designs.design import CorpusFacts, PlannedRun
from decaylaws.designs.space import mixture_space, pool_tokens
from decaylaws.designs.stages import after_stage, stable_mixtures
from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.runs.config import EXACT, Arithmetic, RunConfig, Shape
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.runs.optimizer import OptimizerConfig
from decaylaws.schedules import DecayTerms, Schedule, Segment, decay, warmup_stable_decay
from decaylaws.settings.study import StudySettings


class Forks:
    """The run configs of a study, each by what it is asked for.

    Args:
        settings: the study's settings.
        corpus: what was prepared.
        arithmetic: of every run.
        held: the checkpoints of ``settings.checkpoints`` by name, as their folders are.
    """

    def __init__(
        self,
        settings: StudySettings,
        corpus: CorpusFacts,
        arithmetic: Arithmetic = EXACT,
        held: Mapping[str, HeldCheckpoint] | None = None,
    ) -> None:
        self.settings = settings
        self.corpus = corpus
        self.arithmetic = arithmetic
        self.held = dict(held or {})
        self.space = mixture_space(settings, corpus.available_tokens)
        self.stages = stable_mixtures(settings)

    def shape(self, name: str) -> Shape:
        """The full shape of that name, or that of the checkpoint."""
        if name in self.held:
            return self.held[name].shape
        return self.settings.shapes[name].shape(
            vocab_size=self.corpus.vocab_size, seq_len=self.settings.seq_len
        )

    def start(self, name: str) -> PlannedRun:
        """What decays start from: the stable phase of one model shape, or a checkpoint that exists."""
        if name in self.held:
            return PlannedRun(
                "checkpoint",
                RunConfig.held(
                    self.held[name].start,
                    self.held[name].shape,
                    mixture=self.control_mixture,
                    batch_tokens=self.settings.batch_tokens,
                    data_fingerprint=self.corpus.fingerprint,
                    arithmetic=self.arithmetic,
                    trainer=self.settings.trainer,
                ),
            )
        trunk = self.settings.trunk
        assert trunk is not None  # settings with shapes have one
        schedule = warmup_stable_decay(
            trunk.tokens,
            trunk.peak_lr * self._lr_factor(name),
            warmup_tokens=trunk.warmup_tokens,
            decay_tokens=0,
        )
        return PlannedRun(
            "trunk",
            RunConfig(
                kind="trunk",
                shape=self.shape(name),
                schedule=schedule,
                mixture=self.control_mixture,
                batch_tokens=self.settings.batch_tokens,
                optimizer=self.optimizer(name),
                seed=trunk.seed,
                data_fingerprint=self.corpus.fingerprint,
                arithmetic=self.arithmetic,
                trainer=self.settings.trainer,
            ),
        )

    def _lr_factor(self, name: str) -> float:
        """LR of a shape as a factor of ``trunk.peak_lr``: one LR trains larger models away from their optimum."""
        rule = self.settings.trunk.scale_lr if self.settings.trunk else "none"
        if not isinstance(rule, str):
            return rule.get(name, 1.0)
        return self._width_factor(name, rule) if rule == "width" else 1.0

    def optimizer(self, start_name: str) -> OptimizerConfig:
        """The optimiser of a trunk and its decays, or of the decays of a checkpoint.

        Under muP the hidden matrices of a wider shape have a smaller LR (Yang et al. 2022, arXiv:2203.03466, table 8).

        Args:
            start_name: shape of the trunk or name of the checkpoint.
        """
        optimizer, trunk = self.settings.optimizer.config(), self.settings.trunk
        if trunk is None or start_name not in self.settings.shapes or trunk.scale_lr != "mup":
            return optimizer
        factor = self._width_factor(start_name, trunk.scale_lr)
        decay_factor = 1.0 / factor if trunk.scale_weight_decay else 1.0
        return replace(optimizer, hidden_lr_factor=factor, hidden_weight_decay_factor=decay_factor)

    def _width_factor(self, name: str, rule: str) -> float:
        """Width of the proxy over that of a shape."""
        if name == self.settings.proxy:
            return 1.0
        widths: list[Any] = [
            getattr(self.shape(each), "d_model", None) for each in (self.settings.proxy, name)
        ]
        if None in widths:
            constraint = "needs the d_model of every shape, which a declared one does not say"
            raise InvalidValueError("trunk.scale_lr", rule, constraint, "Give a factor for each shape.")
        return float(widths[0] / widths[1])

    @property
    def control_mixture(self) -> Mixture:
        """The mixture of trunks and checkpoints: what an anneal without new data would see."""
        known = self.settings.control_mixture
        return Mixture({name: known.get(name, 0.0) for name in self.settings.sources})

    @property
    def batch_sizes(self) -> list[int]:
        """Batch sizes of the decays to choose from, in tokens; the trunk's alone unless the design names others."""
        return self.settings.design.batch_tokens or [self.settings.batch_tokens]

    def microanneal(
        self,
        role: str,
        start_name: str,
        schedule: Schedule,
        mixture: Mixture,
        *,
        seed: int,
        batch_tokens: int | None = None,
        pool_tokens: Mapping[str, int] | None = None,
        stage: RunConfig | None = None,
    ) -> PlannedRun:
        """A decay forked from the end of a trunk or from a checkpoint, at the first of ``batch_sizes`` by default.

        Where the study has a stable stage, it stands between the two.

        Args:
            role: the question that the run answers.
            start_name: shape of the trunk or name of the checkpoint, as in ``study.yaml``.
            schedule: LR over the tokens of the decay.
            mixture: shares of the sources.
            seed: seed of the data order.
            batch_tokens: tokens of one step; the first of ``batch_sizes`` if ``None``.
            pool_tokens: tokens of each source that the run may draw from; those of :meth:`pool_tokens` if ``None``.
            stage: the stable stage before it (:meth:`stable`); that on the trunk's own mixture if ``None``.
        """
        start = self.start(start_name).config
        if stage is None and self.stages:
            stage = self.stable(start_name, self.control_mixture).config
        return PlannedRun(
            role,
            RunConfig(
                kind="decay",
                shape=start.shape,
                schedule=schedule,
                mixture=mixture,
                batch_tokens=batch_tokens or self.batch_sizes[0],
                optimizer=self.optimizer(start_name),
                seed=seed,
                data_fingerprint=self.corpus.fingerprint,
                start_run_id=(stage or start).run_id,
                start_tokens=start.tokens + (stage.tokens if stage else 0),
                pool_tokens=dict(pool_tokens or self.pool_tokens()),
                arithmetic=self.arithmetic,
                trainer=self.settings.trainer,
                start=start.start,
                stable=stage,
            ),
        )

    def stable(self, start_name: str, mixture: Mixture, *, seed: int | None = None) -> PlannedRun:
        """The stable stage after a trunk: its last LR goes on over another mixture.

        Args:
            start_name: shape of the trunk.
            mixture: shares of the sources.
            seed: seed of the data order; that of the design if ``None``.
        """
        trunk = self.start(start_name).config
        rate = trunk.schedule.end_lr
        return PlannedRun(
            "stable",
            trunk.with_changes(
                kind="stable",
                schedule=Schedule((Segment(self.settings.design.stable_tokens, rate, rate),)),
                mixture=mixture,
                seed=self.settings.design.seed if seed is None else seed,
                start_run_id=trunk.run_id,
                start_tokens=trunk.tokens,
                pool_tokens=self.pool_tokens(),
            ),
        )

    def space_after(self, stage: Mixture | None) -> MixtureSpace:
        """The mixtures of a decay: with a stable stage, caps on epochs count the tokens of both.

        Args:
            stage: mixture of the stable stage; None where the study has none.

        Raises:
            InfeasibleError: the stage alone breaks a cap.
        """
        if stage is None:
            return self.space
        return after_stage(self.space, self.settings.design.stable_tokens, stage)

    @property
    def control_space(self) -> MixtureSpace:
        """The mixtures of a decay after the stable stage on the trunk's own mixture, where there is one."""
        return self.space_after(self.control_mixture if self.stages else None)

    def pool_tokens(self) -> dict[str, int]:
        """Tokens of each source that a proxy may draw from, so that it repeats them as the target will.

        Without it a short proxy sees fresh text where the target sees its third epoch, and prefers small
        sources that the target would wear out (arXiv 2606.07597).
        """
        return pool_tokens(self.settings, self.corpus.available_tokens)

    def handover_lr(self, start_name: str) -> float:
        """LR of the last step of a trunk or checkpoint."""
        return self.start(start_name).config.schedule.end_lr

    def warmup_tokens(self, start_name: str) -> int:
        """Tokens over which decays from there first raise the LR; 0 from a trunk."""
        checkpoints = self.settings.checkpoints
        return checkpoints.warmup_tokens if checkpoints and start_name in checkpoints.models else 0

    def decay_schedule(
        self,
        start_name: str,
        decay_tokens: int,
        start_lr_factor: float,
        shape: str,
        end_lr_factor: float | None = None,
    ) -> Schedule:
        """A decay from ``start_lr_factor`` times the LR at the hand-over, after the re-warm-up that the start needs.

        Args:
            start_name: shape of the trunk or name of the checkpoint.
            decay_tokens: length of the decay.
            start_lr_factor: start LR as a factor of the LR at the hand-over.
            shape: segment shape; ``constant`` keeps the start LR.
            end_lr_factor: end LR as a factor of the start LR; the first of ``design.end_lr_factors`` if ``None``.
        """
        start_lr = self.handover_lr(start_name) * start_lr_factor
        factor = self.settings.design.end_lr_factors[0] if end_lr_factor is None else end_lr_factor
        end_lr = start_lr if shape == "constant" else factor * start_lr
        return decay(decay_tokens, start_lr, end_lr, shape, warmup_tokens=self.warmup_tokens(start_name))

    def rescaled(self, schedule: Schedule, made_for: str, start_name: str) -> Schedule:
        """A decay from one start as it is run from another: in proportion to the LRs at their hand-overs.

        Args:
            schedule: a decay from ``made_for``.
            made_for: shape of the trunk or name of the checkpoint.
            start_name: the same of the other.
        """
        own, other = self.handover_lr(made_for), self.handover_lr(start_name)
        same = own == other and self.warmup_tokens(made_for) == self.warmup_tokens(start_name)
        if same:
            return schedule
        path, factor = DecayTerms.of(schedule), other / own
        warmup = self.warmup_tokens(start_name)
        return decay(
            path.tokens, path.start_lr * factor, path.end_lr * factor, path.shape, warmup_tokens=warmup
        )
