"""The mixture explorer."""

from __future__ import annotations

from decaylaws.report.explorer import explorer_data
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import Section, fill, json_block


def explorer(inputs: ReportInputs) -> Section | None:
    """Sliders over shares with the law's predictions, inside the file.

    None where a stable stage stands before the decay: the page's own copy of the law knows one stage.
    """
    if inputs.stable is not None:
        return None
    data = explorer_data(inputs)
    expected = inputs.found["objective"]
    half = (expected["upper"] - expected["lower"]) / 2
    return Section(
        "Mixture explorer",
        "The explorer shows what the law predicts for any other mixture under the same schedule at the target. These "
        f"are point predictions. At the recommendation, the 90 % interval of the objective is ± {half:.3f} nats. Away "
        "from the runs it is wider.",
        body=fill("explorer.html.j2", data=data, block=json_block(data)),
    )
