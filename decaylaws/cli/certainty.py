"""What ``recommend`` prints below the recipe: trade-off, what to confirm, and what each share rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from decaylaws.cli.console import LONG_TABLE, SHOWN_ROWS, plain_table
from decaylaws.study.recommend import STAGE, objective_words

_NAMED = 8  # sources of a mixture that a line names


def print_certainty(console: Console, found: Mapping[str, Any]) -> None:
    """Tables of a stored recommendation, and its verdict."""
    if found["front"]:
        console.print(_front(found))
    console.print(_evidence(found))
    console.print(_candidates(found))
    if STAGE in found:
        console.print(_stages(found[STAGE]))
        console.print(f"  {found[STAGE]['verdict']}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {objective_words(found)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {found['verdict']}", highlight=False, markup=False, soft_wrap=True)


def _front(found: Mapping[str, Any]) -> Table:
    table = plain_table(
        "", "general", "specialised", "guards", title="trade-off: change against the control, nats per token"
    )
    for row in found["front"]:
        table.add_row(
            "" if row["label"] == "front" else row["label"],
            f"{row['general_change']:+.4f}",
            f"{row['specialised_change']:+.4f}",
            row["guards"],
        )
    return table


def _evidence(found: Mapping[str, Any]) -> Table:
    table = plain_table("source", "share", "90 % of draws", "runs near", "runs with it", "leverage",
                   title="what each share rests on")  # fmt: skip
    entries = found["evidence"]
    if len(entries) > LONG_TABLE:
        entries = sorted(entries, key=lambda entry: -entry["share"])[:SHOWN_ROWS]
        table.caption = f"the {len(entries)} largest of {len(found['evidence'])} shares; --json prints all"
    for entry in entries:
        table.add_row(
            entry["source"],
            f"{100 * entry['share']:.1f} %",
            f"{100 * entry['lower']:.0f} to {100 * entry['upper']:.0f} %",
            str(entry["runs_near"]),
            str(entry["runs_with"]),
            f"{entry['leverage']:.2f}",
        )
    return table


def _stages(choice: Mapping[str, Any]) -> Table:
    title = f"mixtures of the stable stage ({choice['tokens']:,} tokens), each with its best decay"
    table = plain_table(
        "stage", "its mixture", "decay", "objective", "behind the best", "guards", title=title
    )
    for option in choice["options"]:
        behind = option["behind"]
        table.add_row(
            option["name"], _named(option["stable"]), _named(option["decay"]), f"{option['objective']:.4f}",
            f"{behind['mean']:+.4f} ({behind['lower']:+.4f} to {behind['upper']:+.4f})",
            "hold" if option["feasible"] else "not sure",
        )  # fmt: skip
    return table


def _named(mixture: Mapping[str, float]) -> str:
    """The largest shares of a mixture, as a line has room for them."""
    shares = sorted(mixture.items(), key=lambda item: -item[1])
    named = [f"{name} {100 * share:.0f} %" for name, share in shares if share >= 0.005]
    more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED + 1 else []
    return ", ".join([*named[:_NAMED], *more] if more else named)


def _candidates(found: Mapping[str, Any]) -> Table:
    table = plain_table(
        "k", "objective", "expected regret@k", "90 % quantile", "mixture", title="worth confirming"
    )
    for k, entry in enumerate(found["candidates"], start=1):
        table.add_row(
            str(k), f"{entry['objective']:.4f}", f"{entry['expected_regret']:.4f}",
            f"{entry['regret_upper']:.4f}", _named(entry["mixture"]),
        )  # fmt: skip
    return table
