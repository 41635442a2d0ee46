"""Whether the corpus is still the one that study.yaml asks for, and whether there is enough of it to evaluate on."""

from __future__ import annotations

from typing import Any

from decaylaws.errors import DataError, StudyError
from decaylaws.study.directory import Study, read_json, write_json

SETTINGS_NAME = "settings.json"
# the settings of a source that decide its text; the others (group, max_epochs, bounds) need no new corpus
TEXT_SETTINGS = {
    "format", "path", "text_field", "heldout_fraction", "max_bytes", "min_document_bytes", "max_document_bytes",
    "quality",
}  # fmt: skip


def record_settings(study: Study) -> None:
    """Write beside the shards which settings they answer."""
    path = study.shard_dir() / SETTINGS_NAME
    if not path.is_file() or read_json(path) != _text_settings(study):
        write_json(path, _text_settings(study))


def check_prepared(study: Study) -> None:
    """Refuse a corpus that study.yaml no longer describes, or whose held-out parts are too short to read.

    A corpus of an earlier version does not say what it answers; only its sources are compared.

    Raises:
        StudyError: a setting that decides the text changed since.
        DataError: a held-out part is shorter than one window.
    """
    path = study.shard_dir() / SETTINGS_NAME
    wanted = _text_settings(study)
    if path.is_file():
        changed = _first_change("", read_json(path), wanted)
    else:
        names = set(study.corpus().available_tokens) ^ set(study.settings.sources)
        changed = f"sources.{min(names)}" if names else ""
    if changed:
        raise StudyError(
            f"'{changed}' in study.yaml changed since the corpus was prepared. "
            f"Run 'decaylaws prepare {study.root}'."
        )
    _check_heldout(study)


def short_heldout(study: Study) -> dict[str, int]:
    """Held-out tokens of the domains that hold fewer than an evaluation asks for."""
    wanted = study.settings.evaluation.tokens_per_domain
    return {name: tokens for name, tokens in study.heldout_tokens().items() if tokens < wanted}


def _check_heldout(study: Study) -> None:
    needed = study.settings.seq_len + 1
    for name, tokens in study.heldout_tokens().items():
        if tokens < needed:
            raise DataError(
                f"The held-out part of 'sources.{name}' holds {tokens} tokens, and evaluation needs one window of "
                f"seq_len + 1 = {needed}. Give it more text, raise its heldout_fraction, or shorten seq_len."
            )


def _text_settings(study: Study) -> dict[str, Any]:
    settings = study.settings
    return {
        "sources": {
            name: source.model_dump(mode="json", include=TEXT_SETTINGS)
            for name, source in settings.sources.items()
        },
        "tokenizer": settings.tokenizer.model_dump(mode="json"),
        "seed": settings.seed,
    }


def _first_change(path: str, stored: Any, wanted: Any) -> str:
    """Dotted path of the first difference; empty where there is none."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return "" if stored == wanted else path
    for key in sorted(set(stored) | set(wanted)):
        below = f"{path}.{key}" if path else key
        if key not in stored or key not in wanted:
            return below
        if change := _first_change(below, stored[key], wanted[key]):
            return change
    return ""
