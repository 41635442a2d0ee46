"""What the corpus says of contamination: evaluation items that were dropped, held-out text that train text repeats."""

from __future__ import annotations

import pandas as pd

from decaylaws.decontamination import Report
from decaylaws.errors import StudyError
from decaylaws.io.json import rebuilding
from decaylaws.study.directory import Study
from decaylaws.study.files import REMEDY, read_json
from decaylaws.study.stored_corpus import StoredOverlap


def evaluation_report(study: Study) -> Report | None:
    """Evaluation items that train text held, before their documents were dropped; ``None`` where no set is named."""
    if study.settings.is_declared or not study.settings.decontamination.evaluation_sets:
        return None
    path = study.shard_dir() / "contamination.json"
    if not path.is_file():
        return None
    content = read_json(path)
    with rebuilding(path, REMEDY):
        return Report.from_dict(content)


def heldout_overlap(study: Study) -> pd.DataFrame:
    """Share of held-out passages that train text repeats, exactly or nearly [source, domain, share].

    Raises:
        StudyError: the corpus is not prepared, or was prepared before this was measured.
    """
    path = study.shard_dir() / "heldout_overlap.json"
    if not path.is_file():
        raise StudyError(
            f"The corpus of {study.root} does not say how much held-out text its sources repeat. "
            f"Run 'decaylaws prepare {study.root}' again. The shards do not change."
        )
    rows = [
        {"source": source, "domain": domain, "share": share}
        for source, shares in read_json(path, StoredOverlap)["overlap"].items()
        for domain, share in shares.items()
    ]
    return pd.DataFrame(rows, columns=["source", "domain", "share"])


def check_overlap(study: Study) -> None:
    """Refuse a sweep whose losses would be read off text that it trains on.

    Raises:
        StudyError: a source repeats more of a domain's held-out text than study.yaml allows.
    """
    settings = study.settings.decontamination
    if settings.on_overlap == "allow" or study.settings.is_declared:
        return
    table = heldout_overlap(study)
    too_much = table[table["share"] > settings.max_heldout_overlap].sort_values("share", ascending=False)
    if too_much.empty:
        return
    worst = too_much.iloc[0]
    others = f" ({len(too_much) - 1} more pairs)" if len(too_much) > 1 else ""
    raise StudyError(
        f"The train text of '{worst['source']}' repeats {worst['share']:.1%} of the held-out passages of "
        f"'{worst['domain']}', more than decontamination.max_heldout_overlap = "
        f"{settings.max_heldout_overlap:.1%}{others}. The loss there would measure memorisation. Remove the near "
        "copies ('decaylaws deduplicate' finds them), or set decontamination.on_overlap: allow."
    )
