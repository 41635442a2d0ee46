"""Tables that a team has already: finished runs to a mixture or decay, loss curves to the loss of another schedule.

::

    from decaylaws.tables import mix, predict_curve, read_loss_curves, read_run_table

    found = mix(read_run_table("runs.csv"))
    found.mixture, found.verdict, found.held_out

    found = mix_decay(read_run_table("decays.csv"))        # runs that differ in length and LR
    found.mixture, found.schedule, found.held_out

    curves = read_loss_curves("curves.csv", schedules="runs.csv", where={"use": "fit"})
    predict_curve(curves, schedule=parse_schedule("Constant(3e-4, 20K) -> Linear(0, 4K)")).final

Rows that cannot be used are left out by name, with the reason; a table that cannot be understood as a whole is one
error. ``decaylaws mix`` and ``decaylaws predict-curve`` print what these functions return.
"""

from decaylaws.tables.curve_reading import LossCurves, read_loss_curves
from decaylaws.tables.curves import BestDecay, CurvePrediction, predict_curve
from decaylaws.tables.decays import DecayMixed, mix_decay, mix_or_decay
from decaylaws.tables.mixture import Mixed, mix
from decaylaws.tables.recipes import decay_table_recipe, table_recipe
from decaylaws.tables.run_reading import RunTable, read_run_table

__all__ = [
    "BestDecay",
    "CurvePrediction",
    "DecayMixed",
    "LossCurves",
    "Mixed",
    "RunTable",
    "decay_table_recipe",
    "mix",
    "mix_decay",
    "mix_or_decay",
    "predict_curve",
    "read_loss_curves",
    "read_run_table",
    "table_recipe",
]
