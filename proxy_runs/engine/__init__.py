"""Training of proxies: many runs as one stack, each as if it were alone."""

from proxy_runs.engine.backend import Backend, has_bfloat16
from proxy_runs.engine.run import RunResult
from proxy_runs.engine.train import train

__all__ = ["Backend", "RunResult", "has_bfloat16", "train"]
