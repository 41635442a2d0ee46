"""What ``decaylaws mix`` prints."""

from __future__ import annotations

from rich.console import Console

from decaylaws.cli.console import frame_table, say
from decaylaws.search.recommendation import Estimate
from decaylaws.tables import DecayMixed, Mixed

_PRINTED_ROWS = 24
_PRINTED_EXCLUSIONS = 12
_PRINTED_ERRORS = ["law", "held_out", "num_runs", "mae", "worst", "bias", "spearman"]


def interval(estimate: Estimate) -> str:
    """A number with its interval, as the commands on tables print it."""
    return f"{estimate.mean:.4f} [{estimate.lower:.4f}, {estimate.upper:.4f}]"


def print_mixed(console: Console, found: Mixed | DecayMixed) -> None:
    """The mixture, with its schedule where the decay law gave one, its gain, and what they rest on."""
    decays = isinstance(found, DecayMixed)
    shares = found.shares[(found.shares["share"] > 0) | (found.shares["mean_of_runs"] >= 0.01)]
    shares = shares.head(_PRINTED_ROWS)
    title = f"mixture by '{found.law}' on {found.num_runs} {'decays' if decays else 'runs'}"
    if left := len(found.shares) - len(shares):
        title += f" ({left} more sources: --json, --report)"
    console.print(frame_table(shares, title=title))
    if isinstance(found, DecayMixed):
        schedule = (
            f"Schedule: {found.schedule} in steps of {found.batch_tokens:,} tokens, from the checkpoint at "
            f"{found.start_tokens:,} tokens."
        )
        say(console, [schedule])
    say(
        console,
        [
            f"Predicted objective: {interval(found.objective)} (90 % interval of one run).",
            f"Regret: {found.expected_regret:.4f} expected, {found.regret_upper:.4f} at most with 90 % "
            "confidence.",
        ],
    )
    gain = "gain over, under the same schedule" if decays else "gain over"
    console.print(frame_table(found.rivals, title=gain))
    if isinstance(found, DecayMixed):
        schedules = found.schedules_to_show.head(_PRINTED_ROWS)
        console.print(frame_table(schedules, title="other schedules, each at its best mixture"))
    predicted = "predicted losses" if decays else "predicted values"
    console.print(frame_table(found.targets.head(_PRINTED_ROWS), title=predicted))
    if not found.guards.empty:
        console.print(frame_table(found.guards, title="guards: change against the control"))
    if isinstance(found, DecayMixed):
        console.print(frame_table(found.held_out[_PRINTED_ERRORS], title="error on held-out runs"))
    elif not found.held_out.empty:
        console.print(frame_table(found.held_out, title="error of the objective on left-out runs"))
    if not found.excluded.empty:
        more = len(found.excluded) - _PRINTED_EXCLUSIONS
        title = f"left out ({more} more: --json, --report)" if more > 0 else "left out"
        console.print(frame_table(found.excluded.head(_PRINTED_EXCLUSIONS), title=title))
    say(console, [*found.notes, found.verdict])
