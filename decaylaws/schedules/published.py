"""Schedules of published models, in the arrow notation, each with its source.

The lines are those of the mid-training literature's table of schedules (Mo et al. 2025, arXiv:2510.06826) and
of the reports named. What a report does not state (mostly the length of the warm-up, and the shape behind
``Decay``) stays a name: ``published_schedule("phi-4").template.fill(warmup_tokens="2B", eta_min=3e-5, ...)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.notation import parse_template
from decaylaws.schedules.template import ScheduleTemplate


@dataclass(frozen=True)
class PublishedSchedule:
    """One model's schedule.

    Args:
        name: key, lower case.
        model: as the report calls it.
        notation: arrow notation.
        source: report.
        remark: what the line leaves out, or where it is computed from.
    """

    name: str
    model: str
    notation: str
    source: str
    remark: str = ""

    @cached_property
    def template(self) -> ScheduleTemplate:
        """The parsed notation; :meth:`ScheduleTemplate.fill` makes it a schedule."""
        return parse_template(self.notation)


_ENTRIES = (
    PublishedSchedule(
        "dots-llm1",
        "dots.llm1",
        "Warmup(3e-4) -> Constant(3e-4, 10T) -> Decay(3e-5, 1T) -> Decay(1e-5, 200B)"
        " -> Constant(1e-5, 128B; 8K->32K)",
        "dots.llm1 Technical Report, arXiv:2506.05767",
    ),
    PublishedSchedule(
        "mimo-7b",
        "MiMo-7B",
        "Warmup(1.07e-4) -> Constant(1.07e-4, 10.2T) -> Cosine(3e-5, 7.5T) -> Constant(3e-5, 5.5T; 8K->32K)"
        " -> Cosine(1e-5, 500B)",
        "MiMo: Unlocking the Reasoning Potential of Language Model, arXiv:2505.07608",
    ),
    PublishedSchedule(
        "pangu-ultra",
        "Pangu Ultra",
        "Warmup(1e-4) -> Cosine(1e-5, 7.4T) -> Constant(1e-5, 4.6T) -> Cosine(7.5e-6, 800B; 4K->8K)"
        " -> Constant(7.5e-6, 400B; 8K->128K)",
        "Pangu Ultra, arXiv:2504.07866",
    ),
    PublishedSchedule(
        "minimax-text-01",
        "MiniMax-Text-01",
        "Warmup(2e-4) -> Constant(2e-4, 7.2T) -> Constant(1.3e-4, 3.2T) -> Exponential(3e-5, 1T)",
        "MiniMax-01, arXiv:2501.08313",
    ),
    PublishedSchedule(
        "olmo-2-32b",
        "OLMo 2 32B",
        "Warmup(6e-4) -> Cosine(6e-5, 6.5T) -> Linear(0)",
        "2 OLMo 2 Furious, arXiv:2501.00656",
        "the released anneal script uses 100B tokens",
    ),
    PublishedSchedule(
        "olmo-2-7b",
        "OLMo 2 7B",
        "Warmup(3e-4, 8388608000) -> Cosine(3e-5, 4991611392000)[0:3886635024384] -> Linear(0, 50B)",
        "2 OLMo 2 Furious, arXiv:2501.00656, section 4",
        "2,000 warm-up steps of 4,194,304 tokens; cosine set for 5T, left at step 928,646 (LR 6.135e-5)",
    ),
    PublishedSchedule(
        "deepseek-v3",
        "DeepSeek-V3",
        "Warmup(2.2e-4) -> Constant(2.2e-4, 10T) -> Cosine(2.2e-5, 4.3T) -> Constant(2.2e-5, 333B; 4K->32K)"
        " -> Constant(7.3e-6, 167B; 32K->128K)",
        "DeepSeek-V3 Technical Report, arXiv:2412.19437",
    ),
    PublishedSchedule(
        "phi-4",
        "Phi-4 14B",
        "Warmup(3e-4) -> Decay(eta_min, 10T)",
        "Phi-4 Technical Report, arXiv:2412.08905",
    ),
    PublishedSchedule(
        "yi-lightning",
        "Yi-Lightning",
        "Warmup(eta_max) -> Decay(eta_max/2) -> Decay(eta_min)",
        "Yi-Lightning Technical Report, arXiv:2412.01253",
    ),
    PublishedSchedule(
        "hunyuan-large",
        "Hunyuan-Large",
        "Warmup(eta_max) -> Decay(; gradual) -> Decay(eta_max/10, 5%)",
        "Hunyuan-Large, arXiv:2411.02265",
    ),
    PublishedSchedule(
        "afm-3b",
        "AFM 3B",
        "Warmup(1e-2) -> Cosine(5e-5, 6.3T) -> Warmup(3e-4) -> Decay(3e-7, 1T)",
        "Apple Intelligence Foundation Language Models, arXiv:2407.21075",
        "two runs: the second warm-up begins continued pre-training",
    ),
    PublishedSchedule(
        "llama-3-405b",
        "Llama 3 405B",
        "Warmup(8e-5) -> Cosine(8e-7, 15.6T) -> Decay(?, 800B; 8K->128K) -> Linear(0, 40M)",
        "The Llama 3 Herd of Models, arXiv:2407.21783",
    ),
    PublishedSchedule(
        "deepseek-v2",
        "DeepSeek-V2",
        "Warmup(2.4e-4) -> Constant(2.4e-4, 4.86T) -> Constant(7.58e-5, 3.79T) -> Decay(2.39e-5, 810B)",
        "DeepSeek-V2, arXiv:2405.04434",
    ),
    PublishedSchedule(
        "minicpm",
        "MiniCPM",
        "Warmup(1e-2) -> Constant(1e-2, 1T) -> Exponential(eta_min, 20B)",
        "MiniCPM, arXiv:2404.06395, sections 4 to 6",
        "0.5^(t/T) with T = 5,000 steps; see half_life()",
    ),
    PublishedSchedule(
        "nemotron-3-super",
        "Nemotron 3 Super",
        "Warmup(4.5e-4, 200000004096) -> Constant(4.5e-4, 19774999994368) -> 1-Sqrt(4.5e-6, 5000000004096)",
        "Megatron-LM, tests/functional_tests/test_cases/nemotron/nemotron3_super_release_gb200",
        "WSD with minus_sqrt; the configuration counts samples of 8,192 tokens",
    ),
)
PUBLISHED: dict[str, PublishedSchedule] = {entry.name: entry for entry in _ENTRIES}


def published_schedule(name: str) -> PublishedSchedule:
    """The entry of that name.

    Raises:
        InvalidValueError: no entry has it; the message lists those that exist.
    """
    entry = PUBLISHED.get(name.strip().lower())
    if entry is None:
        raise InvalidValueError(
            "name", name, "must be a published schedule", f"Known: {', '.join(PUBLISHED)}."
        )
    return entry
