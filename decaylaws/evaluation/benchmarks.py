"""Benchmarks that reports on mid-training use, by ability, with their names in lm-eval.

The abilities are those of the mid-training survey (arXiv 2510.06826). ``lm_eval`` names a task of lm-eval 0.4.13; None
where it has none: the benchmark needs an environment of its own (an agent's tools, a judge, a sandbox), and saying so
is better than leaving it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from decaylaws.errors import InvalidValueError

Ability = Literal["general", "mathematics", "coding", "agent", "long_context"]
ABILITIES: tuple[Ability, ...] = get_args(Ability)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as reports write it.
        ability: what it is there to show.
        lm_eval: its task or group in lm-eval; None where there is none.
        runs_code: whether scoring runs what the model wrote; needs leave.
        note: what to know before running it.
    """

    name: str
    ability: Ability
    lm_eval: str | None
    runs_code: bool = False
    note: str = ""


_OUTSIDE = "not in lm-eval: needs the benchmark's own environment"
_GENERATES = "generates text: slow on a base model, and 0 below some size"

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark("MMLU", "general", "mmlu"),
    Benchmark("MMLU-Pro", "general", "mmlu_pro", note=_GENERATES),
    Benchmark("ARC-Easy", "general", "arc_easy"),
    Benchmark("ARC-Challenge", "general", "arc_challenge"),
    Benchmark("HellaSwag", "general", "hellaswag"),
    Benchmark("WinoGrande", "general", "winogrande"),
    Benchmark("PIQA", "general", "piqa"),
    Benchmark("SocialIQA", "general", "social_iqa"),
    Benchmark("CommonsenseQA", "general", "commonsense_qa"),
    Benchmark("OpenBookQA", "general", "openbookqa"),
    Benchmark("BoolQ", "general", "boolq"),
    Benchmark("TriviaQA", "general", "triviaqa", note=_GENERATES),
    Benchmark("NaturalQuestions", "general", "nq_open", note=_GENERATES),
    Benchmark("DROP", "general", "drop", note=_GENERATES),
    Benchmark("BBH", "general", "bbh", note=_GENERATES),
    Benchmark("AGIEval", "general", "agieval_en"),
    Benchmark("GPQA", "general", "gpqa_main_zeroshot", note="the data set asks for an agreement"),
    Benchmark("MuSR", "general", "leaderboard_musr"),
    Benchmark("C-Eval", "general", "ceval-valid"),
    Benchmark("CMMLU", "general", "cmmlu"),
    Benchmark("IFEval", "general", "ifeval", note="for tuned models"),
    Benchmark("SimpleQA", "general", None, note="not in lm-eval: answers are graded by a judge"),
    Benchmark("GSM8K", "mathematics", "gsm8k", note=_GENERATES),
    Benchmark("GSM-Plus", "mathematics", "gsm_plus", note=_GENERATES),
    Benchmark("MATH", "mathematics", "minerva_math", note=_GENERATES),
    Benchmark("MATH-500", "mathematics", "minerva_math500", note=_GENERATES),
    Benchmark("MathQA", "mathematics", "mathqa"),
    Benchmark("MGSM", "mathematics", "mgsm_direct", note=_GENERATES),
    Benchmark("AIME 2024", "mathematics", "aime24", note=_GENERATES),
    Benchmark("AIME 2025", "mathematics", "aime25", note=_GENERATES),
    Benchmark("OlympiadBench", "mathematics", None, note="not in lm-eval"),
    Benchmark("HumanEval", "coding", "humaneval", runs_code=True),
    Benchmark("HumanEval+", "coding", "humaneval_plus", runs_code=True),
    Benchmark("MBPP", "coding", "mbpp", runs_code=True),
    Benchmark("MBPP+", "coding", "mbpp_plus", runs_code=True),
    Benchmark("CRUXEval input", "coding", "cruxeval_input", runs_code=True),
    Benchmark("CRUXEval output", "coding", "cruxeval_output", runs_code=True),
    Benchmark("HumanEval infilling", "coding", "humaneval_infilling", runs_code=True),
    Benchmark("MultiPL-E", "coding", None, note=_OUTSIDE),
    Benchmark("BigCodeBench", "coding", None, note=_OUTSIDE),
    Benchmark("LiveCodeBench", "coding", None, note=_OUTSIDE),
    Benchmark("ACPBench", "agent", "acp_bench", note="questions about planning; " + _GENERATES),
    Benchmark("JSONSchemaBench", "agent", "jsonschema_bench", note=_GENERATES),
    Benchmark("BFCL", "agent", None, note=_OUTSIDE),
    Benchmark("tau-bench", "agent", None, note=_OUTSIDE),
    Benchmark("AgentBench", "agent", None, note=_OUTSIDE),
    Benchmark("GAIA", "agent", None, note=_OUTSIDE),
    Benchmark("SWE-bench", "agent", None, note=_OUTSIDE),
    Benchmark("RULER", "long_context", "ruler", note="lengths go in as metadata"),
    Benchmark("Needle in a haystack", "long_context", "niah_single_1", note="or --retrieval, offline"),
    Benchmark("LongBench", "long_context", "longbench", note=_GENERATES),
    Benchmark("LongBench v2", "long_context", "longbench2"),
    Benchmark("InfiniteBench", "long_context", "infinitebench", note=_GENERATES),
    Benchmark("BABILong", "long_context", "babilong", note=_GENERATES),
    Benchmark("GraphWalks", "long_context", "graphwalks", note=_GENERATES),
    Benchmark("HELMET", "long_context", None, note=_OUTSIDE),
)


def benchmark(name: str) -> Benchmark | None:
    """The benchmark of a name, however it is cased, or of an lm-eval task name; None if it is not here."""
    wanted = name.lower()
    return next((b for b in BENCHMARKS if wanted in (b.name.lower(), b.lm_eval)), None)


def select(names: Sequence[str], *, outside: bool = False) -> list[Benchmark]:
    """Benchmarks by name or by ability, each once; of an ability those that lm-eval can run.

    Args:
        names: of benchmarks, lm-eval tasks or abilities.
        outside: take a name that is not in the registry for a task of one's own.

    Raises:
        InvalidValueError: a name is unknown, or names a benchmark that lm-eval cannot run.
    """
    chosen: dict[str, Benchmark] = {}
    for name in names:
        found = [b for b in BENCHMARKS if b.ability == name and b.lm_eval]
        if not found:
            own = Benchmark(name, "general", name) if outside else None
            found = [entry for entry in (benchmark(name) or own,) if entry is not None]
        if not found:
            raise InvalidValueError(
                "benchmark", name, "is not in the registry", "See 'decaylaws benchmarks'."
            )
        for entry in found:
            if entry.lm_eval is None:
                raise InvalidValueError(
                    "benchmark", name, "has no task in lm-eval", f"{entry.note}. Run it there."
                )
            chosen[entry.name] = entry
    return list(chosen.values())
