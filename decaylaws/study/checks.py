"""Whether the corpus is still the one that study.yaml asks for, and whether there is enough of it to evaluate on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, StudyError
from decaylaws.io.documents import PREPARATION_VERSION, READABLE, find_documents
from decaylaws.io.files import record_content
from decaylaws.io.text import find_files
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.evaluation import NO_NUMBERS
from decaylaws.settings.sources import SourceSettings, is_token_store
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import Study
from decaylaws.study.files import read_json, write_json
from decaylaws.study.held import check_against_corpus
from decaylaws.study.stored_corpus import StoredSettings

SETTINGS_NAME = "settings.json"
# settings of a source that leave its text as it is, and of decontamination; every other one needs a new corpus
NO_TEXT = {"group", "capability", "max_epochs", "lower", "upper"}
NO_DECONTAMINATION = {"max_heldout_overlap", "on_overlap"}
_SIMILARITY = DecontaminationSettings.model_fields["heldout_similarity"].default
_WHOLE_FILE_BYTES = 1 << 26
_SAMPLE_BYTES = 1 << 20
_STORE_SAMPLE_BYTES = 1 << 12
_STORE_SAMPLES = 16


def record_settings(study: Study) -> None:
    """Write beside the shards which settings and which text they answer."""
    record_content(study.settings_file)
    path = study.shard_dir() / SETTINGS_NAME
    stored = read_json(path, StoredSettings) if path.is_file() else {}
    text = {}
    for name, files in _text_files(study.root, study.settings).items():
        known = stored.get("text", {}).get(name, {})
        moment = _moment(study.root, files)
        content = known.get("content") if known.get("moment") == moment else None
        content = content or _content(study.root, study.settings.sources.get(name), files)
        text[name] = {"moment": moment, "content": content}
    record = {"preparation": PREPARATION_VERSION, **text_settings(study.settings), "text": text}
    if record != stored:
        write_json(path, record)


def check_prepared(study: Study) -> None:
    """Refuse a corpus that study.yaml or its text no longer describes, or whose held-out parts are too short to read.

    A corpus of an earlier version does not say what it answers; only its sources are compared.

    Raises:
        StudyError: a setting that decides the text changed since, or the text itself, or how it is read.
        DataError: a held-out part is shorter than one window, or a checkpoint has another tokenizer or fewer ids.
    """
    if study.settings.is_declared:
        return
    path = study.shard_dir() / SETTINGS_NAME
    remedy = f"Run 'decaylaws prepare {study.root}'."
    if path.is_file():
        stored = read_json(path, StoredSettings)
        if stored.get("preparation") != PREPARATION_VERSION:
            raise StudyError(
                f"The corpus of {study.root} was prepared by a version of decaylaws that read text differently. "
                f"{remedy} If the tokens are the same, its runs stay valid."
            )
        settings = {key: value for key, value in stored.items() if key not in ("preparation", "text")}
        settings, wanted = _explicit(settings), _explicit(text_settings(study.settings))
        changed = _first_change("", {**settings, "order": []}, {**wanted, "order": []})
        if not changed and settings["order"] != wanted["order"]:
            changed = "sources (their order)"  # the first source keeps what a later one repeats
    else:
        names = set(study.corpus().available_tokens) ^ set(study.settings.sources)
        changed = f"sources.{min(names)}" if names else ""
    if changed:
        raise StudyError(f"'{changed}' in study.yaml changed since the corpus was prepared. {remedy}")
    if sources := changed_text(study):
        more = f", and so did that of {len(sources) - 1} more" if len(sources) > 1 else ""
        own = study.settings.sources.get(sources[0])
        what = f"{sources[0]}'" if own is None else f"sources.{sources[0]}' ({own.path})"
        raise StudyError(f"The text of '{what} changed since the corpus was prepared{more}. {remedy}")
    _check_heldout(study)
    if study.settings.checkpoints is not None:
        check_against_corpus(
            study.settings.checkpoints, study.root, study.held(), read_corpus(study.corpus_dir)
        )


def changed_text(study: Study) -> list[str]:
    """Sources whose files are others than those that the corpus was prepared from.

    Names, sizes and times decide. Where only times differ, as after a copy, so do samples of the content. Text that is
    no longer there says nothing: the corpus does not need it.
    """
    if study.settings.is_declared:
        return []
    path = study.shard_dir() / SETTINGS_NAME
    stored = read_json(path, StoredSettings).get("text", {}) if path.is_file() else {}
    return [
        name
        for name, files in _text_files(study.root, study.settings).items()
        if name in stored
        and files
        and stored[name].get("moment") != _moment(study.root, files)
        and stored[name].get("content") != _content(study.root, study.settings.sources.get(name), files)
    ]


def _check_heldout(study: Study) -> None:
    needed = study.settings.seq_len + 1
    for name, tokens in study.heldout_tokens().items():
        if tokens < needed:
            raise DataError(
                f"The held-out part of 'sources.{name}' holds {tokens} tokens, and evaluation needs one window of "
                f"seq_len + 1 = {needed}. Give it more text, raise its heldout_fraction, or shorten seq_len."
            )
    counts = study.evaluation_counts()
    for name in study.settings.evaluation.domains:
        if counts[name][1] < needed:
            raise DataError(
                f"'evaluation.domains.{name}' holds {counts[name][1]} tokens, and evaluation needs one window of "
                f"seq_len + 1 = {needed}. Give it more text, or shorten seq_len."
            )


def text_settings(settings: StudySettings) -> dict[str, Any]:
    """The settings that decide what the text of a corpus is, as JSON values."""
    asked: dict[str, Any] = {
        "sources": {
            name: source.model_dump(mode="json", exclude=NO_TEXT) for name, source in settings.sources.items()
        },
        "order": list(settings.sources),
        "tokenizer": settings.tokenizer.model_dump(mode="json"),
        "seed": settings.seed,
        "decontamination": settings.decontamination.model_dump(mode="json", exclude=NO_DECONTAMINATION),
    }
    evaluation = settings.evaluation
    if evaluation.sets:
        sets: dict[str, Any] = {
            kind: {
                name: each.model_dump(mode="json", exclude=NO_NUMBERS, exclude_defaults=True)
                for name, each in named.items()
            }
            for kind, named in (("domains", evaluation.domains), ("questions", evaluation.questions))
        }
        if evaluation.domains:
            sets["tokens_per_domain"] = evaluation.tokens_per_domain
        asked["evaluation"] = sets
    return asked


def _text_files(root: Path, settings: StudySettings) -> dict[str, list[Path]]:
    """Files of every source of the user's own text, and of what runs are evaluated on, by their field."""
    found = {
        name: find_documents(root / str(source.path), source.format)
        for name, source in settings.sources.items()
        if source.format != "embedded"
    }
    evaluation = settings.evaluation
    for name, domain in evaluation.domains.items():
        path = root / domain.path
        found[f"evaluation.domains.{name}"] = (
            find_files(path, READABLE) if domain.format is None else find_documents(path, domain.format)
        )
    for name, questions in evaluation.questions.items():
        path = root / questions.path
        found[f"evaluation.questions.{name}"] = [path] if path.is_file() else []
    return found


def _moment(root: Path, files: Iterable[Path]) -> str:
    """Hash of names, sizes and times of files."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(
            f"{_name(root, file)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()[:16]


def _content(root: Path, source: SourceSettings | None, files: Iterable[Path]) -> str:
    """Hash of names, sizes and content of the files of a source.

    Of large files a megabyte in 64 places counts; of a token store, which may be terabytes, 4 KiB in 16.
    """
    whole_bytes, sample_bytes, places = _WHOLE_FILE_BYTES, _SAMPLE_BYTES, _WHOLE_FILE_BYTES // _SAMPLE_BYTES
    if source is not None and is_token_store(source):
        whole_bytes, sample_bytes, places = 0, _STORE_SAMPLE_BYTES, _STORE_SAMPLES
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{_name(root, file)}\0{size}\n".encode("utf-8", "surrogateescape"))
        with open(file, "rb") as handle:
            if size <= whole_bytes:
                digest.update(handle.read())
                continue
            for place in range(places):
                handle.seek(max(0, size - sample_bytes) * place // (places - 1))
                digest.update(handle.read(sample_bytes))
    return digest.hexdigest()[:16]


def _name(root: Path, file: Path) -> str:
    """A file's name below the study, which may be moved with its text, or its whole name."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _explicit(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings without those that have their default: an earlier version did not know all of them.

    Without evaluation sets nothing in ``decontamination`` touches the text.
    """
    defaults = {name: field.default for name, field in SourceSettings.model_fields.items()}
    sources = {
        name: {key: value for key, value in source.items() if key not in defaults or value != defaults[key]}
        for name, source in settings["sources"].items()
    }
    decontamination = dict(settings.get("decontamination", {}))
    similarity = decontamination.pop("heldout_similarity", _SIMILARITY)
    if not decontamination.get("evaluation_sets"):
        decontamination = {}
    if similarity != _SIMILARITY:
        decontamination["heldout_similarity"] = similarity
    order = settings.get("order", list(sources))
    return {**settings, "sources": sources, "order": order, "decontamination": decontamination}


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
