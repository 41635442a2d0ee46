"""The verb ``prepare``: read, deduplicate, split and tokenise the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decaylaws.errors import StudyError
from decaylaws.io.documents import kept_doubtful, passed_over
from decaylaws.progress import Progress, silent
from decaylaws.settings.study import StudySettings
from decaylaws.study.checks import check_prepared, record_settings
from decaylaws.study.directory import Study
from decaylaws.study.near_copies import near_copies, read_copies, searched_in_part
from decaylaws.study.overlap import check_overlap, evaluation_report, heldout_overlap
from decaylaws.study.stored_corpus import StoredCopies


@dataclass(frozen=True)
class Preparation:
    """What a prepared corpus holds.

    Attributes:
        fingerprint: of the corpus.
        sources: one row per source: ``source``, ``train_tokens``, ``heldout_tokens``, ``repeated_paragraphs``
            (dropped).
        evaluation_items: items of evaluation sets whose documents were dropped, one row per set; None where
            study.yaml names no sets.
        stores: one row per token store: ``source``, ``files``, ``tokens``, ``documents``, ``largest_id``, ``end_id``
            (the end-of-document token), ``end_share`` (its share of the tokens) and ``beginning`` (of a held-out
            document, decoded).
        evaluation: what runs are measured on besides the sources, one row per domain or question set: ``name``,
            ``documents`` (or questions), ``tokens`` (of gold answers); empty where study.yaml names none.
        near_copies: train documents that resemble held-out ones and were set aside, by source and domain
            (:func:`decaylaws.study.near_copies.near_copies`).
        repeated_heldout: share of held-out passages that train text repeats, the three largest.
        notes: sentences on what was passed over, kept though doubtful, or is short.
    """

    fingerprint: str
    sources: pd.DataFrame
    evaluation_items: pd.DataFrame | None
    stores: pd.DataFrame
    evaluation: pd.DataFrame
    near_copies: pd.DataFrame
    repeated_heldout: pd.DataFrame
    notes: tuple[str, ...]


def prepare(study: Study, *, progress: Progress = silent) -> Preparation:
    """Prepare the corpus of a study; what is there already is kept.

    Raises:
        StudyError: the sources are declared, so that there is no text to read.
        DataError: text, a tokenizer, a file of examples or a checkpoint cannot be read.
        InvalidValueError: what a checkpoint says of itself contradicts study.yaml.
    """
    if study.settings.is_declared:
        raise StudyError(
            f"The sources of {study.root} are declared: their text is read by your own trainer, and there is nothing "
            f"to prepare. Run 'decaylaws plan {study.root}'."
        )
    from proxy_runs.corpus.evaluation import prepare_evaluation
    from proxy_runs.corpus.prepare import prepare_corpus

    settings = study.settings
    study.held()  # what is wrong with a checkpoint is said before text is read
    prepare_corpus(
        settings.sources,
        study.corpus_dir,
        tokenizer=settings.tokenizer,
        seed=settings.seed,
        base=study.root,
        decontamination=settings.decontamination,
        progress=progress,
    )
    prepare_evaluation(
        settings.evaluation,
        study.corpus_dir,
        seq_len=settings.seq_len,
        end_token=settings.tokenizer.end_token,
        base=study.root,
        progress=progress,
    )
    record_settings(study)
    heldout, counts = study.heldout_tokens(), study.source_counts()
    facts = study.corpus()
    sources = pd.DataFrame(
        {
            "source": name,
            "train_tokens": tokens,
            "heldout_tokens": heldout[name],
            "repeated_paragraphs": counts[name].get("paragraphs_repeated", 0),
        }
        for name, tokens in facts.available_tokens.items()
    )
    report, copies = evaluation_report(study), read_copies(study)
    repeated = heldout_overlap(study).query("share > 0").nlargest(3, "share")
    return Preparation(
        facts.fingerprint,
        sources,
        None if report is None else report.task_table(),
        _stores(study.stores(), counts),
        pd.DataFrame(
            [(name, *counts) for name, counts in study.evaluation_counts().items()],
            columns=["name", "documents", "tokens"],
        ),
        near_copies(copies),
        repeated,
        tuple(_notes(settings, facts.vocab_size, counts, heldout, copies)),
    )


def check_corpus(study: Study) -> None:
    """Refuse what ``plan`` would refuse, while the text can still be mended.

    Raises:
        StudyError: study.yaml asks for another corpus, or a source repeats too much of the held-out text.
        DataError: a held-out part is shorter than one window.
    """
    check_prepared(study)
    check_overlap(study)


def _stores(stores: Mapping[str, Any], by_source: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    rows = []
    for name, store in stores.items():
        counts = by_source[name]
        rows.append(
            {
                "source": name,
                "files": len(store["files"]),
                "tokens": counts["stored_tokens"],
                "documents": counts["stored_documents"],
                "largest_id": counts["largest_id"],
                "end_id": counts["end_id"],
                "end_share": counts["end_tokens"] / counts["stored_tokens"],
                "beginning": store["beginning"],
            }
        )
    return pd.DataFrame(rows)


def _notes(
    settings: StudySettings,
    entries: int,
    by_source: Mapping[str, Mapping[str, int]],
    heldout: Mapping[str, int],
    copies: StoredCopies | None,
) -> list[str]:
    """What was passed over, kept though doubtful, or is short, in sentences.

    Args:
        settings: of the study.
        entries: of the tokenizer.
        by_source: documents and bytes by split, and what was dropped or passed over, by source.
        heldout: held-out tokens by source.
        copies: what was found of near copies of held-out text.
    """
    notes = []
    asked = settings.evaluation.tokens_per_domain
    short = [name for name, tokens in heldout.items() if tokens < asked]
    if short:
        notes.append(
            f"These sources have fewer held-out tokens than evaluation.tokens_per_domain = "
            f"{asked:,}: {', '.join(short)}. Every evaluation reads all of their "
            "held-out tokens. A larger heldout_fraction makes their losses more certain."
        )
    wanted = settings.tokenizer.vocab_size
    if settings.tokenizer.path is None and settings.checkpoints is None and entries < wanted:
        notes.append(
            f"The trained tokenizer has {entries:,} entries, fewer than tokenizer.vocab_size = {wanted:,}: the text "
            "holds no more pairs to merge."
        )
    searched = {each.path for each in settings.decontamination.evaluation_sets.values()}
    unsearched = [name for name, each in settings.evaluation.questions.items() if each.path not in searched]
    if unsearched:
        notes.append(
            f"Train text was not searched for the questions of {', '.join(unsearched)}. Name their files in "
            "decontamination.evaluation_sets to drop documents that hold one."
        )
    for name, counts in by_source.items():
        source = settings.sources[name]
        if source.format == "embedded":
            continue  # scraps of installed packages, which nobody will mend
        if source.max_bytes and counts.get("documents_over_max_bytes"):
            taken = counts["train_bytes"] + counts["heldout_bytes"]
            notes.append(f"{name}: {taken:,} bytes of text taken of max_bytes = {source.max_bytes:,}.")
        if counts.get("compared_documents"):
            notes.append(
                f"{name}: of the {counts['train_documents']:,} train documents a sample of "
                f"{counts['compared_documents']:,} was compared with held-out text and evaluation items."
            )
        if said := passed_over(counts):
            notes.append(f"{name}: passed over: {said}.")
        if said := kept_doubtful(counts):
            notes.append(f"{name}: kept: {said}.")
    return [*notes, *searched_in_part(copies)]
