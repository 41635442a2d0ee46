"""What trainers and trackers write down about runs: every file becomes logs, one for each run that it speaks of.

==================  ==========================================================================================
``tables``          CSV, JSON Lines and Parquet; Weights & Biases: exported runs, history and charts
``events``          TensorBoard's event files, as torchtitan and Megatron-LM write them
``documents``       OLMo-core's ``metrics.json``, Hugging Face's ``trainer_state.json``, lm-eval's ``results_*.json``
``console``         the console log of Megatron-LM
==================  ==========================================================================================

::

    names = Names.of(["web", "maths"], sources=["web", "maths"])
    for log in read_logs("outputs/control-2572c11620a0f741", names):
        log.name, log.points    # what names the run, and what was logged at which step
"""

from decaylaws.runs.logs.log import Log, Point
from decaylaws.runs.logs.names import Names
from decaylaws.runs.logs.read import FORMATS, read_logs

__all__ = ["FORMATS", "Log", "Names", "Point", "read_logs"]
