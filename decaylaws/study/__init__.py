"""A study: a directory, and the verbs of the command line as functions.

::

    from decaylaws import study

    mine = study.Study.create("my-study")
    study.prepare(mine)
    study.plan(mine)
    study.run(mine, workers=2)
    result, _ = study.fit(mine)
    recipe, _ = study.recommend(mine)
    print(study.confirm(mine).table)

Every verb does what is missing, keeps what is finished, and takes ``progress``, which hears of every stage.
"""

from decaylaws.study.ask import ask, tell
from decaylaws.study.confirm import confirm
from decaylaws.study.directory import Study
from decaylaws.study.export import export
from decaylaws.study.export_runs import export_runs
from decaylaws.study.fit import fit
from decaylaws.study.hardware import Hardware
from decaylaws.study.launch import launch
from decaylaws.study.plan import plan
from decaylaws.study.prepare import prepare
from decaylaws.study.recommend import recommend
from decaylaws.study.record import record
from decaylaws.study.run import run
from decaylaws.study.status import status

__all__ = [
    "Hardware",
    "Study",
    "ask",
    "confirm",
    "export",
    "export_runs",
    "fit",
    "launch",
    "plan",
    "prepare",
    "recommend",
    "record",
    "run",
    "status",
    "tell",
]
