"""Which microanneals to run, at what cost, and the question that each of them answers.

A sweep consists of starts (one *trunk* per model shape, or checkpoints that exist) and of decays forked from them.
Every decay stands in the design for a reason, its ``role``:

================  ==================================================================================
``simplex``       mixtures spread over the feasible simplex, crossed with decay tokens, LRs and shape
``control``       the start's own mixture, decayed the same way: scores are candidate minus control
``replicate``     one design point under several seeds: the noise floor
``drop_and_hold`` the LR drops at once and stays: the one curve that separates the kernel's memory
                  from the tokens that pass meanwhile (LAWS: fast decays alone do not identify it)
``shape``         the control at a shape of decay that no mixture got, without which the search could not choose it
``repetition``    one mixture with ever less text of a scarce source, which it repeats the more often: from how
                  many passes on that raises losses
``size``          a part of the simplex design at another shape or checkpoint
``order``         pairs with the same tokens of every source, which a stable stage reads early or the decay late
``read_out``      constant LR on the control and the first mixtures; merged checkpoints emulate their decays
================  ==================================================================================

Where ``design.stable_tokens`` asks for it, a *stable stage* stands between each trunk and its decays (``stable``): the
trunk's LR goes on over a mixture of the stage's own. The few mixtures of stages are shared by many decays, since each
costs a run (module ``stages``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TypeVar

import numpy as np

from decaylaws.designs.design import Design, PlannedRun, unique
from decaylaws.designs.forks import Forks
from decaylaws.designs.stages import order_pairs
from decaylaws.errors import InfeasibleError
from decaylaws.mixtures import Mixture
from decaylaws.runs.table import READ_OUT
from decaylaws.schedules import DecayTerms, Schedule, decay, drop_and_hold
from decaylaws.settings.stages import CONTROL

HOLD_LR_FACTOR = 0.1
SCARCE_EPOCHS = 4.0
"""Passes over a source that a decay of the design must be able to exceed for the source to be scarce."""
_MOST_SCARCE = 2  # sources with runs of their own
_FIRST_EPOCHS = 2.0  # of the least repeated of them, where the shares allow it
_REPEATED_SHARES = (0.1, 0.3)
"""A smaller share shows little in the losses, and a larger one leaves the others little."""
_BEYOND_REACH = 1.5  # an onset is seen only from beyond it
_MOST_EPOCHS = 64.0


class Planner(Forks):
    """Decides which runs a study's sweep has; every run of a study is made here or in :class:`Forks`."""

    def sweep(self) -> Design:
        """The whole sweep: starts (costliest first), then decays of the proxy, then of the others.

        Raises:
            InfeasibleError: no mixture meets caps and bounds, or that of a stable stage does not.
        """
        for name, mixture in self.stages.items():
            if name != CONTROL:  # the trunk was trained on what it was trained on
                self._check_bounds(name, mixture)
        starts = sorted(
            (self.start(name) for name in self.settings.starts),
            key=lambda run: (run.config.train_flops, run.config.shape.total_params),
            reverse=True,
        )
        decays = [
            *self._controls(),
            *self._replicates(),
            self._drop_and_hold(),
            *self._other_shapes(),
            *self._repetitions(),
            *self._orders(),
            *self._simplex(),
            *self._other_sizes(),
            *self._read_outs(),
        ]
        stages = [PlannedRun("stable", run.config.stable) for run in decays if run.config.stable is not None]
        return Design(tuple(unique([*starts, *self._averages(), *stages, *decays])))

    def _check_bounds(self, name: str, mixture: Mixture) -> None:
        try:
            self.space.check(mixture)
        except InfeasibleError as error:
            raise InfeasibleError(f"design.stable_mixtures.{name}: {error}") from None

    def _averages(self) -> list[PlannedRun]:
        """Means of the weights of checkpoints and of earlier ones of their runs, which are only measured."""
        return [
            PlannedRun("average", self.start(name).config.average(held.average))
            for name, held in self.held.items()
            if held.average is not None and name in self.settings.starts
        ]

    def _levels(self) -> list[Level]:
        """The factor levels of the decay of every mixture."""
        design = self.settings.design
        levels = product(
            design.decay_tokens,
            design.start_lr_factors,
            design.shapes,
            self.batch_sizes,
            design.end_lr_factors,
        )
        return balanced_levels(list(levels), design.num_mixtures, seed=design.seed)

    def _controls(self) -> list[PlannedRun]:
        design, proxy = self.settings.design, self.settings.proxy
        levels = product(
            design.decay_tokens, design.start_lr_factors, self.batch_sizes, design.end_lr_factors
        )
        return [
            self.microanneal(
                "control",
                proxy,
                self.decay_schedule(proxy, tokens, factor, design.shapes[0], end),
                self.control_mixture,
                seed=design.seed,
                batch_tokens=batch,
            )
            for tokens, factor, batch, end in levels
        ]

    def _replicates(self) -> list[PlannedRun]:
        design = self.settings.design
        tokens = sorted(design.decay_tokens)[len(design.decay_tokens) // 2]
        proxy = self.settings.proxy
        schedule = self.decay_schedule(proxy, tokens, design.start_lr_factors[0], design.shapes[0])
        mixture = self.control_space.centroid(tokens)
        return [
            self.microanneal("replicate", proxy, schedule, mixture, seed=design.seed + number)
            for number in range(design.num_replicates)
        ]

    def _drop_and_hold(self) -> PlannedRun:
        design, lr = self.settings.design, self.handover_lr(self.settings.proxy)
        schedule = drop_and_hold(max(design.decay_tokens), lr, HOLD_LR_FACTOR * lr)
        return self.microanneal(
            "drop_and_hold", self.settings.proxy, schedule, self.control_mixture, seed=design.seed
        )

    def _other_shapes(self) -> list[PlannedRun]:
        """The control at every falling shape that chance gave to no mixture, as it can where mixtures are few."""
        settings, design = self.settings, self.settings.design
        tokens, factor = max(design.decay_tokens), design.start_lr_factors[0]
        # all controls have the first
        planned = {design.shapes[0], *(shape for _, _, shape, *_ in self._levels())}
        return [
            self.microanneal(
                "shape", settings.proxy, self.decay_schedule(settings.proxy, tokens, factor, shape),
                self.control_mixture, seed=design.seed,
            )
            for shape in dict.fromkeys(design.shapes) if shape not in planned and shape != "constant"
        ]  # fmt: skip

    def _repetitions(self) -> list[PlannedRun]:
        """Decays that differ only in how much text of a scarce source they may read, hence in how often they repeat it.

        Mixture and length stay: with both fixed, nothing but the repetition can move the losses. The length is the
        second longest, so that hold-outs of the longest leave these runs in the fit.
        """
        settings, design, length = self.settings, self.settings.design, self.settings.seq_len
        tokens = sorted(set(design.decay_tokens))[-2:][0]
        schedule = self.decay_schedule(settings.proxy, tokens, design.start_lr_factors[0], design.shapes[0])
        pools, runs = self.pool_tokens(), []
        for name, reach in self.scarce_sources().items() if design.repetition_runs else ():
            mixture = self._holding(name, tokens)
            seen = mixture.share(name) * tokens
            first = seen / pools[name]
            for epochs in np.geomspace(first, max(reach, 2.0 * first), design.repetition_runs):
                kept = max(int(seen / epochs) // length, 1) * length
                runs.append(
                    self.microanneal(
                        "repetition", settings.proxy, schedule, mixture, seed=design.seed,
                        pool_tokens={**pools, name: kept},
                    )
                )  # fmt: skip
        return runs

    def _orders(self) -> list[PlannedRun]:
        """Pairs of two stages that differ in nothing but when the tokens of every source are read."""
        settings, design = self.settings, self.settings.design
        tokens = max(design.decay_tokens)
        schedule = self.decay_schedule(settings.proxy, tokens, design.start_lr_factors[0], design.shapes[0])
        others = [mixture for name, mixture in self.stages.items() if name != CONTROL]
        return [
            self.microanneal(
                "order", settings.proxy, schedule, mixture, seed=design.seed,
                stage=self.stable(settings.proxy, stage).config,
            )
            for stage, mixture in order_pairs(
                self.space, design.stable_tokens, tokens, self.control_mixture, others
            )
        ]  # fmt: skip

    def scarce_sources(self) -> dict[str, float]:
        """Passes worth testing over the scarcest sources: those that a decay of the design can repeat too often.

        A declared source of whose parts nobody says where they lie cannot be cut for a run and is not tested.
        """
        longest, pools = max(self.settings.design.decay_tokens), self.pool_tokens()
        most = {
            name: float(cap) * longest / pools[name]
            for name, cap in zip(self.space.names, self.space.caps(longest))
            if self.settings.sources[name].can_be_cut
        }
        scarce = sorted((name for name in most if most[name] > SCARCE_EPOCHS), key=lambda name: -most[name])
        return {name: min(_BEYOND_REACH * most[name], _MOST_EPOCHS) for name in scarce[:_MOST_SCARCE]}

    def _holding(self, name: str, decay_tokens: int) -> Mixture:
        """The centroid with so much of one source that it is passed over twice, as far as sensible shares go."""
        names = self.space.names
        shares, place = self.control_space.centroid(decay_tokens).array(names), names.index(name)
        wanted = np.clip(_FIRST_EPOCHS * self.pool_tokens()[name] / decay_tokens, *_REPEATED_SHARES)
        rest = max(float(shares.sum() - shares[place]), 1e-9)
        shares = shares * (1.0 - wanted) / rest
        shares[place] = wanted
        return self.control_space.project(shares, decay_tokens)

    def _read_outs(self) -> list[PlannedRun]:
        """Constant-LR twins of the first control and the first mixtures, which have real decays beside them."""
        twins = [*self._controls()[:1], *self._simplex()]
        return [
            PlannedRun(
                READ_OUT,
                twin.config.with_changes(schedule=self._at_constant_lr(DecayTerms.of(twin.config.schedule))),
            )
            for twin in twins[: self.settings.design.read_outs]
        ]

    @staticmethod
    def _at_constant_lr(terms: DecayTerms) -> Schedule:
        return decay(
            terms.tokens, terms.start_lr, terms.start_lr, "constant", warmup_tokens=terms.warmup_tokens
        )

    def _simplex(self) -> list[PlannedRun]:
        return self._spread("simplex", self.settings.proxy, self.settings.design.num_mixtures)

    def _other_sizes(self) -> list[PlannedRun]:
        """The same first mixtures at the other starts, so that sizes are compared on equal mixtures.

        The target is left out: it is what the laws have to predict.
        """
        others = [
            name
            for name in self.settings.starts
            if name not in (self.settings.proxy, self.settings.target.shape)
        ]
        design = self.settings.design
        runs = []
        for name in others:
            schedule = self.decay_schedule(
                name, max(design.decay_tokens), design.start_lr_factors[0], design.shapes[0]
            )
            runs.append(self.microanneal("control", name, schedule, self.control_mixture, seed=design.seed))
            runs += self._spread("size", name, design.runs_at_other_sizes)
        return runs

    def _spread(self, role: str, start_name: str, count: int) -> list[PlannedRun]:
        design = self.settings.design
        levels = self._levels()
        # in an order of its own, so that stages and levels do not go together
        stages = balanced_levels([*self.stages.values()] or [None], len(levels), seed=design.seed + 1)
        runs = []
        mixtures = self._mixtures([tokens for tokens, *_ in levels], stages)
        for (tokens, factor, shape, batch, end), stage, mixture in list(zip(levels, stages, mixtures))[
            :count
        ]:
            schedule = self.decay_schedule(start_name, tokens, factor, shape, end)
            runs.append(
                self.microanneal(
                    role, start_name, schedule, mixture, seed=design.seed, batch_tokens=batch,
                    stage=None if stage is None else self.stable(start_name, stage).config,
                )
            )  # fmt: skip
        return runs

    def _mixtures(self, decay_tokens: Sequence[int], stages: Sequence[Mixture | None]) -> list[Mixture]:
        """One space-filling point per run; each is projected into the caps of its own decay length and stable stage.

        Points that fill a simplex of many sources lie near its faces, while good mixtures use every source a
        little and guards keep them near the trunk's own: of three points one stays, one is drawn half-way to
        the centroid and one half-way to the control.
        """
        shortest = min(decay_tokens)
        points = self.space.space_filling(
            len(decay_tokens), seed=self.settings.design.seed, decay_tokens=shortest
        )
        names = self.space.names
        centre, control = self.space.centroid(shortest).array(names), self.control_mixture.array(names)
        shares = [point.array(names) for point in points]
        spread = [
            (own, (own + centre) / 2, (own + control) / 2)[index % 3] for index, own in enumerate(shares)
        ]
        return [
            self.space_after(stage).project(drawn, tokens)
            for drawn, tokens, stage in zip(spread, decay_tokens, stages)
        ]


Each = TypeVar("Each")
Level = tuple[int, float, str, int, float]
"""Of a decay: tokens, factor on the LR at the hand-over, shape, batch tokens, and factor of the end LR on the start."""


def balanced_levels(levels: Sequence[Each], count: int, *, seed: int) -> list[Each]:
    """``count`` factor levels, each as often as any other (give or take one), in seeded random order.

    Args:
        levels: levels of the factor.
        count: number of levels to return.
        seed: seed of the order.
    """
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(len(levels)) for _ in range(-(-count // len(levels)))]
    return [levels[index] for index in np.concatenate(rounds)[:count]]
