"""How trainers and trackers call what we call ``step``, ``lr`` or ``loss:web``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from decaylaws.errors import InvalidValueError
from decaylaws.runs.columns import LOSS, MIX

FACTS = ("seed", "batch_tokens", "non_embedding_params", "start_lr", "end_lr", "decay_tokens")
"""What a log may also say of a run and a plan says too."""
RUN_NAMES = ("run_id", "Name", "name", "run", "run_name", "ID", "id")
"""Columns that may name the run of a row, the likeliest first."""

_KNOWN = {
    "step": ("step", "_step", "global_step", "train/global_step", "trainer/global_step", "iteration"),
    "tokens": (
        "tokens", "num_input_tokens_seen", "train/num_input_tokens_seen", "n_tokens_seen", "throughput/total tokens",
    ),
    "samples": ("samples", "consumed samples", "consumed-samples", "consumed-train-samples"),
    "lr": ("lr", "learning_rate", "train/learning_rate", "learning-rate", "learning rate"),
}  # fmt: skip
_ONE_OF_SEVERAL_LRS = re.compile(r"optim/LR \(group 0\)|lr/[^/]+(/0)?")
"""The LR of the first group of parameters, as OLMo-core and torchtitan log it."""
BITS_PER_BYTE = "{domain}/bits_per_byte,none"
"""lm-eval's loss, the one that is not in nats per token."""
PATTERNS = (
    "loss:{domain}",
    "eval_{domain}_loss",
    "eval/{domain}_loss",
    "eval/lm/{domain}/CE loss",
    "lm loss validation-{domain}",
    BITS_PER_BYTE,
)
"""Names of held-out losses: ours, Hugging Face's in a file and in a tracker, OLMo-core's, Megatron's, lm-eval's."""
_SUFFIX = r"(?:[-_ ]validation)?"  # OLMo-core calls its labels so


@dataclass(frozen=True)
class Names:
    """Our name of everything that a file may call by another one.

    Args:
        domains: domains whose losses are looked for.
        sources: sources whose shares are.
        columns: our name to the file's (``{"loss:web": "val/web", "step": "iter"}``); it comes before all others.
        pattern: how the file calls the loss of a domain, with ``{domain}`` in it, such as ``val/{domain}/nll``.
    """

    domains: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    pattern: str | None = None
    used: set[str] = field(default_factory=set, compare=False)
    """Names of ``columns`` that a file did hold, so that a misspelt one is found."""
    in_bits: dict[str, bool] = field(default_factory=dict, compare=False)
    """Whether the files state the loss of a domain in bits per byte, of the domains whose losses were found."""

    @classmethod
    def of(
        cls,
        domains: Iterable[str],
        *,
        sources: Iterable[str] = (),
        columns: Mapping[str, str] | None = None,
        pattern: str | None = None,
    ) -> Self:
        """As the class, from any iterables, checked.

        Raises:
            InvalidValueError: a name of ``columns`` is none of ours, or ``pattern`` lacks ``{domain}``.
        """
        names = cls(tuple(domains), tuple(sources), dict(columns or {}), pattern)
        allowed = {"run_id", *_KNOWN, *FACTS}
        allowed |= {LOSS + each for each in names.domains} | {MIX + each for each in names.sources}
        unknown = [each for each in names.columns if each not in allowed]
        if unknown:
            raise InvalidValueError(
                "column",
                unknown[0],
                "is not a name that a log can hold",
                f"The names are run_id, {', '.join(_KNOWN)}, {', '.join(FACTS)}, "
                f"{LOSS}DOMAIN for {', '.join(names.domains)}, and {MIX}SOURCE for {', '.join(names.sources)}.",
            )
        if pattern is not None and pattern.count("{domain}") != 1:
            raise InvalidValueError(
                "loss", pattern, "must hold {domain} once", "Write it as val/{domain}/loss."
            )
        return names

    def ours(self, theirs: str) -> str | None:
        """Our name of what a file calls ``theirs``; None for what is of no interest."""
        for ours, given in self.columns.items():
            if given == theirs:
                self.used.add(ours)
                return ours
        mapped = set(self.columns)
        found = self._known(theirs)
        return (
            None if found in mapped else found
        )  # a name that the user gave elsewhere is not looked for here

    def _known(self, theirs: str) -> str | None:
        lowered = theirs.strip().lower()
        for ours, known in _KNOWN.items():
            if lowered in known:
                return ours
        if lowered in FACTS:
            return lowered
        if theirs.startswith(MIX) and theirs.removeprefix(MIX) in self.sources:
            return theirs
        if domain := self._domain(theirs):
            return LOSS + domain
        return "lr" if _ONE_OF_SEVERAL_LRS.fullmatch(theirs) else None

    def _domain(self, theirs: str) -> str | None:
        for pattern in (self.pattern,) if self.pattern else PATTERNS:
            before, after = map(re.escape, pattern.split("{domain}"))
            for domain in self.domains:
                if re.fullmatch(f"{before}{re.escape(domain)}{_SUFFIX}{after}", theirs, re.IGNORECASE):
                    in_bits = pattern == BITS_PER_BYTE
                    if self.in_bits.setdefault(domain, in_bits) != in_bits:
                        raise InvalidValueError(
                            "loss", theirs, f"states the loss of '{domain}' in another unit than another file does",
                            "Say which of them counts: --loss 'eval_{domain}_loss', or "
                            f"--loss '{BITS_PER_BYTE}' for bits per byte.",
                        )  # fmt: skip
                    return domain
        return None
