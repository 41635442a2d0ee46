"""What the corpus says of train documents that resemble held-out ones, and how many of them a long run reads."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from decaylaws.designs.planner import Planner
from decaylaws.study.directory import Study
from decaylaws.study.files import read_json
from decaylaws.study.stored_corpus import StoredCopies

_AT = 0  # of the levels: Jaccard .5


def read_copies(study: Study) -> StoredCopies | None:
    """What ``prepare`` found before it set near copies aside; None where study.yaml sets nothing aside."""
    if study.settings.is_declared or study.settings.decontamination.heldout_similarity is None:
        return None
    path = study.shard_dir() / "near_copies.json"
    if not path.is_file():
        return None
    found: StoredCopies = read_json(path, StoredCopies)
    return found


def near_copies(stored: StoredCopies | None) -> pd.DataFrame:
    """Near copies by source and domain, as ``prepare`` found them before it set them aside.

    Args:
        stored: of :func:`read_copies`.

    Returns:
        one row per pair that has any: ``source``, ``domain``, ``set_aside`` (train documents), and for each level of
        Jaccard similarity ``train>=LEVEL`` (documents) and ``heldout>=LEVEL`` (share of the domain's held-out documents
        that have one). Empty where study.yaml sets nothing aside.
    """
    if stored is None:
        return pd.DataFrame()
    rows = []
    for pair in stored["pairs"]:
        row = {"source": pair["source"], "domain": pair["domain"], "set_aside": pair["set_aside"]}
        for number, level in enumerate(stored["levels"]):
            row[f"train>={level:g}"] = pair["train_documents"][number]
            whole = max(1, stored["heldout_documents"][pair["domain"]])
            row[f"heldout>={level:g}"] = pair["heldout_documents"][number] / whole
        rows.append(row)
    return pd.DataFrame(rows)


def searched_in_part(stored: StoredCopies | None) -> list[str]:
    """A sentence for every store that was too large to look through for near copies as a whole.

    Args:
        stored: of :func:`read_copies`.
    """
    return [
        f"{name}: near copies of held-out documents were looked for in {share:.2g} of its train documents "
        f"({stored['compared'][name]:,}), spread over it evenly. Those in the rest stay in the train text."
        for name, share in (stored["share"] if stored else {}).items()
        if stored and share < 1
    ]


def copies_read(
    stored: StoredCopies | None, available: Mapping[str, int], shares: Mapping[str, float], tokens: float
) -> pd.DataFrame:
    """Near copies of held-out documents that a run reads which trains on the sources as they are.

    The runs of a study leave out what ``prepare`` set aside; a run elsewhere, on the files, does not. A source that was
    looked through in part is taken to be like that part.

    Args:
        stored: of :func:`read_copies`.
        available: train tokens by source.
        shares: of the sources in the run.
        tokens: that the run reads.

    Returns:
        one row per domain with copies: ``domain``, ``copies`` (documents of Jaccard .5 and more that are read, each
        time counted) and ``left`` (of them, those that the study's own runs would read as well: estimated of what was
        not looked through).
    """
    if stored is None:
        return pd.DataFrame(columns=["domain", "copies", "left"])
    found: dict[str, list[float]] = {}
    for pair in stored["pairs"]:
        name = pair["source"]
        epochs = shares.get(name, 0.0) * tokens / max(1, available[name])
        seen = pair["train_documents"][_AT] / max(stored["share"][name], 1e-9)
        read = found.setdefault(pair["domain"], [0.0, 0.0])
        read[0] += epochs * seen
        read[1] += epochs * seen * (1 - stored["share"][name])
    rows = [
        {"domain": domain, "copies": read[0], "left": read[1]} for domain, read in found.items() if read[0]
    ]
    return pd.DataFrame(rows, columns=["domain", "copies", "left"])


def copies_words(
    stored: StoredCopies | None, planner: Planner, shares: Mapping[str, float], mixture: str
) -> str:
    """How many near copies the target's decay reads, in sentences; empty where none were found.

    Args:
        stored: of :func:`read_copies`.
        planner: of the study.
        shares: of the sources in the decay.
        mixture: what to call them, such as "the recommended mixture".
    """
    target = planner.settings.target
    tokens = target.max_decay_tokens * target.repetition_scale
    table = copies_read(stored, planner.corpus.available_tokens, shares, tokens)
    if table.empty:
        return ""
    counts = ", ".join(f"{row.copies:,.3g} of '{row.domain}'" for row in table.itertuples())
    left = table[table["left"] >= 0.5]
    own = (
        "The runs of this study read none of them, since 'prepare' set them aside."
        if left.empty
        else "The runs of this study still read an estimated "
        + ", ".join(f"{row.left:,.3g} of '{row.domain}'" for row in left.itertuples())
        + ", since the stores were looked through in part."
    )
    return (
        f"A decay of {tokens:,.4g} tokens on {mixture} that reads the sources as they are reads near copies of "
        "held-out "
        f"documents (Jaccard similarity .5 and more, each reading counted): {counts}. Their number grows with the "
        "tokens, "
        f"and such a run looks better on these domains than it is. {own}"
    )
