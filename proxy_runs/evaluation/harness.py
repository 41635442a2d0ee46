"""lm-eval's benchmarks on a checkpoint, per document like every other task.

lm-eval is the extra of that name. It loads the model itself and fetches data sets from the Hugging Face hub; where
there is no network, data sets that the machine has seen before still work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, MissingExtraError
from decaylaws.evaluation.benchmarks import Benchmark
from decaylaws.evaluation.records import Metric
from decaylaws.progress import Progress
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.task import Kind, ScoringSettings, TaskResult

_NO_FILTER = "none"


@dataclass(frozen=True)
class BenchmarkTask:
    """One lm-eval task or group.

    Attributes:
        benchmark: what to run.
        directory: the checkpoint, which lm-eval loads itself.
        max_documents: take the first so many of every subtask; all without it.
        include: folder of further lm-eval task files, such as one's own.
        batch_size: sequences of one forward pass.
        allow_code: leave to run what the model wrote.
    """

    benchmark: Benchmark
    directory: Path
    max_documents: int | None = None
    include: Path | None = None
    batch_size: int = 8
    allow_code: bool = False

    @property
    def name(self) -> str:
        """lm-eval's own name."""
        return str(self.benchmark.lm_eval)

    @property
    def kind(self) -> Kind:
        """A benchmark."""
        return "benchmark"

    @property
    def ability(self) -> str:
        """From the registry."""
        return self.benchmark.ability

    def content(self) -> dict[str, object]:
        """The task's name, the version of lm-eval and the number of documents.

        Raises:
            DataError: lm-eval is not installed.
            InvalidValueError: it knows no such task, or the task runs code and may not.
        """
        lm_eval = _lm_eval()
        if self.benchmark.runs_code and not self.allow_code:
            raise InvalidValueError(
                "benchmark", self.name, "runs code that the model wrote",
                "Allow it with --allow-code, on a machine without valuable data.",
            )  # fmt: skip
        if self.name not in set(_manager(self.include).all_tasks):
            raise InvalidValueError(
                "benchmark", self.name, f"must be a task of lm-eval {lm_eval.__version__}"
            )
        return {
            "task": self.name,
            "lm_eval": lm_eval.__version__,
            "max_documents": self.max_documents,
            "include": None if self.include is None else str(self.include),
        }

    def run(
        self, checkpoint: Callable[[], Checkpoint], settings: ScoringSettings, progress: Progress
    ) -> TaskResult:
        """Let lm-eval score the checkpoint.

        Raises:
            DataError: its data set cannot be had, or it reports nothing per document.
        """
        model = {"pretrained": str(self.directory), "dtype": settings.dtype}
        if settings.context_tokens is not None:
            model["max_length"] = settings.context_tokens  # type: ignore[assignment]
        try:
            found = _lm_eval().simple_evaluate(
                model="hf",
                model_args=model,
                tasks=[self.name],
                task_manager=_manager(self.include),
                batch_size=self.batch_size,
                device=settings.device,
                limit=self.max_documents,
                log_samples=True,
                bootstrap_iters=0,
                confirm_run_unsafe_code=self.allow_code,
            )
        except (OSError, ConnectionError) as error:
            raise self._unreachable(error) from error
        except Exception as error:
            if "Hub" in str(error) or "offline" in str(error).lower() or "onnect" in str(error):
                raise self._unreachable(error) from error
            raise
        progress(self.name, 1, 1, "finished")
        return self._result(found)

    def _unreachable(self, error: Exception) -> DataError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DataError(
            f"Benchmark '{self.name}' needs its data set from the Hugging Face hub, which cannot be had here "
            f"({reason}). Run it once on a machine with network and copy its cache (HF_HOME), or use --tasks with a "
            "question set of your own."
        )

    def _result(self, found: Mapping[str, Any]) -> TaskResult:
        rows = [row for task, samples in found["samples"].items() for row in document_rows(task, samples)]
        table = pd.DataFrame(rows)
        names = [name for name in table.columns if name not in ("document", "group", "cluster")]
        complete = [name for name in names if table[name].notna().all()]
        if not complete:
            raise DataError(f"Benchmark '{self.name}' reports no figure per document that its parts share.")
        better = {
            metric: bool(higher)
            for metrics in found["higher_is_better"].values()
            for metric, higher in metrics.items()
            if higher is not None
        }
        metrics = [
            Metric(name=name, numerator=name, higher_is_better=better.get(name.split(".")[0], True))
            for name in complete
        ]
        return TaskResult(table[["document", "group", "cluster", *complete]], metrics)


def document_rows(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per document of lm-eval's samples; what a filter reports is ``<metric>.<filter>``."""
    rows: dict[object, dict[str, object]] = {}
    for sample in samples:
        document = f"{task}/{sample['doc_id']}"
        row = rows.setdefault(document, {"document": document, "group": task, "cluster": document})
        suffix = "" if sample.get("filter", _NO_FILTER) == _NO_FILTER else f".{sample['filter']}"
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, int | float):  # corpus-level metrics hand out tuples
                row[f"{metric}{suffix}"] = float(value)
    return list(rows.values())


def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError:
        raise MissingExtraError("Running benchmarks by name", "lm-eval") from None
    return lm_eval


@cache
def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))
