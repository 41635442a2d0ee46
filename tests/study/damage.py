"""Files of a study made wrong: single flipped bits, and structure that no verb would have written."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

DEEP = 200_000
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**400, 1.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", " ", "0",
    "nan", "no", "2023", "[/]", "\x00", "\ud800", "x" * 10_000, [], {}, [None], [[]], [{}], {"": None}, {"a": {}},
    [1, "a"],
)  # fmt: skip


def flipped(content: bytes, bit: int) -> bytes:
    """``content`` with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flips(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """``count`` copies with one bit flipped each."""
    for _ in range(count):
        yield flipped(content, rng.randrange(8 * len(content)))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything below ``value``; long lists by their first and last items, which are all alike."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = sorted({0, 1, len(value) - 1} & set(range(len(value))))
    else:
        keys = []
    for key in keys:
        yield (*path, key)
        yield from _places(value[key], (*path, key))


def _mutated_tree(content: Any, rng: random.Random) -> Any:
    """A copy with something taken away, put in, renamed, repeated or replaced by another type."""
    changed = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(changed))
        if not places or rng.random() < 0.01:
            return rng.choice(ODD_VALUES)
        # shallow places are few and read first: half of the time one of them
        depth = rng.choice(sorted({len(place) for place in places}))
        *parents, last = rng.choice([place for place in places if len(place) == depth])
        here = changed
        for part in parents:
            here = here[part]
        _change(here, last, rng)
    return changed


def _change(here: Any, last: Any, rng: random.Random) -> None:
    how = rng.choice(("replace", "replace", "remove", "add", "rename", "repeat", "swap"))
    if how == "replace":
        here[last] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif how == "remove":
        del here[last]
    elif how == "add" and isinstance(here, dict):
        here[rng.choice(("extra", "", "0", "status"))] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif how == "rename" and isinstance(here, dict):
        here[f"{last}x"] = here.pop(last)
    elif how == "repeat" and isinstance(here, list):
        here.append(copy.deepcopy(here[last]))
    else:
        other = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here[last], here[other] = here[other], here[last]


def _cut(text: str, rng: random.Random) -> str:
    """``text`` as an interrupted copy, an editor or an attacker leaves it."""
    place = rng.randrange(len(text) + 1)
    return rng.choice((
        lambda: text[:place],
        lambda: text[place:],
        lambda: text[:place] + rng.choice('{}[],:"\n\t\x00\\&*!%@`-') + text[place:],
        lambda: text + text,
        lambda: "\ufeff" + text,
        lambda: "",
        lambda: text[:place] + text[place + 1 :],
    ))()  # fmt: skip


def mutated_json(text: str, rng: random.Random) -> bytes:
    """JSON of another structure, or text that is JSON no more."""
    chance = rng.random()
    if chance < 0.002:
        return ("[" * DEEP + "]" * DEEP).encode()
    if chance < 0.004:
        return ('{"a":' * DEEP).encode()
    if chance < 0.2:
        return _cut(text, rng).encode("utf-8", "surrogatepass")
    return json.dumps(_mutated_tree(json.loads(text), rng)).encode()


def mutated_yaml(text: str, rng: random.Random) -> bytes:
    """YAML of another structure, or text that is YAML no more."""
    if rng.random() < 0.3:
        return _cut(text, rng).encode("utf-8", "surrogatepass")
    tree = _mutated_tree(yaml.safe_load(text), rng)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def mutated_csv(text: str, rng: random.Random) -> bytes:
    """A table with other cells, columns or rows, or text that is no table any more."""
    if rng.random() < 0.2:
        return _cut(text, rng).encode("utf-8", "surrogatepass")
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_table(rows, rng)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _change_table(rows: list[list[str]], rng: random.Random) -> None:
    if not rows or not rows[0]:
        return
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    odd = str(rng.choice(ODD_VALUES))
    how = rng.choice(
        ("cell", "cell", "cell", "column", "drop column", "double column", "drop row", "double row", "header")
    )
    if how == "cell" and column < len(rows[row]):
        rows[row][column] = odd
    elif how == "column":
        for each in rows[1:]:
            if column < len(each):
                each[column] = odd
    elif how == "drop column":
        for each in rows:
            del each[column : column + 1]
    elif how == "double column":
        for each in rows:
            each.append(each[column] if column < len(each) else "")
    elif how == "drop row":
        del rows[row]
    elif how == "double row":
        rows.append(list(rows[row]))
    elif how == "header":
        rows[0][column] = odd


MUTATORS: dict[str, Callable[[str, random.Random], bytes]] = {
    ".json": mutated_json,
    ".yaml": mutated_yaml,
    ".csv": mutated_csv,
}
