"""What ``decaylaws mix`` prints of a mixture and a schedule."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from decaylaws.cli.console import frame_table, say
from decaylaws.search.recommendation import Estimate
from decaylaws.tables import DecayMixed

_PRINTED_ROWS = 24
_PRINTED_EXCLUSIONS = 12
_PRINTED_ERRORS = ["law", "held_out", "num_runs", "mae", "worst", "bias", "spearman"]


def interval(estimate: Estimate) -> str:
    """A number with its interval, as the commands on tables print it."""
    return f"{estimate.mean:.4f} [{estimate.lower:.4f}, {estimate.upper:.4f}]"


def print_excluded(console: Console, excluded: pd.DataFrame) -> None:
    """The rows that were left out, the first of them where they are many."""
    if excluded.empty:
        return
    few = excluded.head(_PRINTED_EXCLUSIONS)
    more = len(excluded) - len(few)
    title = "left out" if not more else f"left out ({more} more: --json, --report)"
    console.print(frame_table(few, title=title))


def print_decay(console: Console, found: DecayMixed) -> None:
    """The mixture and the schedule, their gain, and what they rest on."""
    shown = found.shares[(found.shares["share"] > 0) | (found.shares["mean_of_runs"] >= 0.01)]
    title = f"mixture by '{found.law}' on {found.num_runs} decays"
    console.print(frame_table(shown.head(_PRINTED_ROWS), title=title))
    say(
        console,
        [
            f"Schedule: {found.schedule} in steps of {found.batch_tokens:,} tokens, from the checkpoint at "
            f"{found.start_tokens:,} tokens.",
            f"Predicted objective: {interval(found.objective)} (90 % interval of one run).",
            f"Regret: {found.expected_regret:.4f} expected, {found.regret_upper:.4f} at most with 90 % "
            "confidence.",
        ],
    )
    console.print(frame_table(found.rivals, title="gain over, under the same schedule"))
    console.print(
        frame_table(
            found.schedules_to_show.head(_PRINTED_ROWS), title="other schedules, each at its best mixture"
        )
    )
    console.print(frame_table(found.targets.head(_PRINTED_ROWS), title="predicted losses"))
    if not found.guards.empty:
        console.print(frame_table(found.guards, title="guards: change against the control"))
    console.print(frame_table(found.held_out[_PRINTED_ERRORS], title="error on held-out runs"))
    print_excluded(console, found.excluded)
    say(console, [*found.notes, found.verdict])
