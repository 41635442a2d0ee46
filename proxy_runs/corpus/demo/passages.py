"""Reading comprehension: a short made-up passage, a question, and an answer that says where it comes from."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import (
    COLOURS,
    GOODS,
    NAMES,
    PLACES,
    WEEKDAYS,
    listing,
    number_words,
    of_lines,
    ordinal,
    pick,
    plural,
)


def _read(key: object, passage: str, question: str, answer: str) -> Document:
    return of_lines(key, f"Passage: {passage}", f"Question: {question}", f"Answer: {answer}")


def inventory(rng: Random) -> Document:
    """Who owns how many of what."""
    people, goods = pick(rng, 4, NAMES), pick(rng, 2, GOODS)
    held = {person: {item: rng.randint(2, 40) for item in goods} for person in people}
    sentences = [
        f"{person} has {h[goods[0]]} {goods[0]} and {h[goods[1]]} {goods[1]}." for person, h in held.items()
    ]
    key = ("inventory", *people, *goods, *(n for h in held.values() for n in h.values()))
    item = rng.choice(goods)
    if rng.random() < 0.5:
        a, b = pick(rng, 2, people)
        total = held[a][item] + held[b][item]
        return _read(
            key,
            " ".join(sentences),
            f"How many {item} do {a} and {b} have together?",
            f"{held[a][item]} + {held[b][item]} = {total} {item}.",
        )
    most = max(people, key=lambda person: held[person][item])
    counts = listing([str(held[person][item]) for person in people])
    return _read(
        key, " ".join(sentences), f"Who has the most {item}?", f"The numbers are {counts}, so it is {most}."
    )


def timetable(rng: Random) -> Document:
    """Departures and arrivals."""
    stops = pick(rng, rng.randint(4, 6), PLACES)
    minute, times = rng.randint(300, 900), []
    for _ in stops:
        times.append(minute)
        minute += rng.randint(7, 75)
    clock = [f"{m // 60:02d}:{m % 60:02d}" for m in times]
    passage = f"The bus leaves {stops[0]} at {clock[0]}. It calls at " + listing(
        [f"{stop} at {time}" for stop, time in zip(stops[1:], clock[1:])]
    )
    i, j = sorted(rng.sample(range(len(stops)), 2))
    took = times[j] - times[i]
    hours = f", that is {plural(took // 60, 'hour')} and {plural(took % 60, 'minute')}" if took >= 60 else ""
    return _read(
        ("timetable", *stops, *times),
        passage + ".",
        f"How long does the bus take from {stops[i]} to {stops[j]}?",
        f"It leaves {stops[i]} at {clock[i]} and reaches {stops[j]} at {clock[j]}: {took} minutes{hours}.",
    )


def whereabouts(rng: Random) -> Document:
    """Things that are carried from room to room."""
    rooms = pick(
        rng, 4, ("kitchen", "garden", "hall", "attic", "cellar", "office", "studio", "yard", "library")
    )
    person, other = pick(rng, 2, NAMES)
    thing = rng.choice(("key", "book", "lamp", "cup", "map", "letter", "hat", "ball"))
    path = [rng.choice(rooms) for _ in range(rng.randint(3, 5))]
    steps = [f"{person} takes the {thing} in the {rooms[0]}."]
    place, dropped = rooms[0], False
    for room in path:
        steps.append(f"{other} walks to the {rng.choice(rooms)}.")
        if not dropped and rng.random() < 0.25:
            steps.append(f"{person} puts the {thing} down.")
            dropped = True
        steps.append(f"{person} goes to the {room}.")
        place = place if dropped else room
    reason = f"{person} put it down there" if dropped else f"{person} still carries it and is there"
    passage = " ".join(steps)
    return _read(("where", passage), passage, f"Where is the {thing}?", f"In the {place}: {reason}.")


def ordering(rng: Random) -> Document:
    """Comparisons that must be chained."""
    people = pick(rng, rng.randint(4, 6), NAMES)
    more, most = rng.choice(
        (("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"), ("richer", "richest"))
    )
    facts = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    rng.shuffle(facts)
    rank = rng.randint(1, len(people))
    which = f"the {most}" if rank == 1 else f"the {ordinal(rank)} {most}"
    return _read(
        ("order", *people, more, rank),
        " ".join(facts),
        f"Who is {which}?",
        f"From the top: {listing(people)}. So it is {people[rank - 1]}.",
    )


def opening_hours(rng: Random) -> Document:
    """Is the shop open at that time?"""
    shop = (
        f"{rng.choice(('bakery', 'museum', 'library', 'pool', 'market', 'clinic'))} in {rng.choice(PLACES)}"
    )
    start, end, closed = rng.randint(6, 11), rng.randint(15, 22), rng.choice(WEEKDAYS)
    day, hour = rng.choice(WEEKDAYS), rng.randint(5, 23)
    passage = f"The {shop} is open from {start}:00 to {end}:00 every day but {closed}."
    if day == closed:
        answer = f"No, on {closed} it is closed all day."
    elif start <= hour < end:
        answer = f"Yes, {hour}:30 lies between {start}:00 and {end}:00."
    else:
        answer = f"No, {hour}:30 is {'before it opens' if hour < start else 'after it closes'}."
    return _read(
        ("open", shop, start, end, closed, day, hour), passage, f"Is it open on {day} at {hour}:30?", answer
    )


def family(rng: Random) -> Document:
    """Relations across generations."""
    old, parent, sibling, child, cousin = pick(rng, 5, NAMES)
    facts = [
        f"{parent} is a child of {old}.",
        f"{sibling} is a child of {old}.",
        f"{child} is a child of {parent}.",
        f"{cousin} is a child of {sibling}.",
    ]
    rng.shuffle(facts)
    question, answer = rng.choice(
        (
            (f"What is {old} to {child}?", f"{child}'s parent {parent} is a child of {old}: a grandparent."),
            (
                f"What is {cousin} to {child}?",
                f"Their parents {sibling} and {parent} are siblings: a cousin.",
            ),
            (f"What is {sibling} to {child}?", f"{sibling} is a sibling of {parent}: an aunt or uncle."),
            (f"What is {parent} to {sibling}?", f"Both are children of {old}: a sibling."),
            (f"How many grandchildren of {old} are named?", f"Two: {child} and {cousin}."),
        )
    )
    return _read(("family", old, parent, sibling, child, cousin, question), " ".join(facts), question, answer)


def boxes(rng: Random) -> Document:
    """Counting through nested descriptions."""
    colours, item = pick(rng, 3, COLOURS), rng.choice(GOODS)
    counts = [(rng.randint(2, 9), rng.randint(2, 12)) for _ in colours]
    sentences = [
        f"Each of the {number_words(n)} {colour} boxes holds {number_words(m)} {item}."
        for colour, (n, m) in zip(colours, counts)
    ]
    factors, products = [f"{n} * {m}" for n, m in counts], [n * m for n, m in counts]
    return _read(
        ("boxes", *colours, item, *counts),
        " ".join(sentences),
        f"How many {item} are there?",
        f"{' + '.join(factors)} = {' + '.join(map(str, products))} = {sum(products)}.",
    )


PASSAGES = (inventory, timetable, whereabouts, ordering, opening_hours, family, boxes)
