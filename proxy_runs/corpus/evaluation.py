"""Evaluation domains and question sets of a study as tokens, beside the shards that it trains on."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from tokenizers import Tokenizer

from decaylaws.errors import DataError
from decaylaws.evaluation.questions import read_questions
from decaylaws.evaluation.rows import LAYOUTS, Layout
from decaylaws.io.documents import PREPARATION_VERSION, document_text, find_documents
from decaylaws.io.files import atomic_write
from decaylaws.progress import Progress, silent
from decaylaws.settings.evaluation import (
    NO_NUMBERS,
    EvaluationDomainSettings,
    EvaluationSettings,
    QuestionSetSettings,
)
from decaylaws.settings.sources import SourceSettings
from proxy_runs.answers.pieces import fit
from proxy_runs.answers.prepared import (
    EVALUATION_NAME,
    AnswerSet,
    EvaluationManifest,
    SetEntry,
    describe,
    read_evaluation_manifest,
    sets_fingerprint,
    write_evaluation_manifest,
)
from proxy_runs.corpus.readers import source_files
from proxy_runs.corpus.store_scan import check_ids
from proxy_runs.data.manifest import FileEntry
from proxy_runs.data.shards import TokenStore
from proxy_runs.data.stores import open_files
from proxy_runs.data.tokenizer import load_tokenizer
from proxy_runs.evaluation.sources import TextFiles
from proxy_runs.evaluation.task import files_digest, unique_names
from proxy_runs.evaluation.text import TextEncoder


def prepare_evaluation(
    settings: EvaluationSettings,
    directory: Path,
    *,
    seq_len: int,
    end_token: str | None = None,
    base: Path | None = None,
    progress: Progress = silent,
) -> EvaluationManifest | None:
    """Prepare what runs on the corpus in ``directory`` are measured on besides the held-out text of its sources.

    Args:
        settings: evaluation domains and question sets.
        directory: of the prepared corpus, whose tokenizer is used.
        seq_len: longest input of the models, for questions that do not fit.
        end_token: the token that ends a document, as study.yaml names it.
        base: folder that relative paths start from; the current one if ``None``.
        progress: told of every set.

    Returns:
        The manifest, also in ``directory/evaluation.json``; None where the settings name nothing.

    Raises:
        DataError: a file is missing, empty or unreadable, a row is not a question, or an answer does not fit a model.
    """
    base = base or Path()
    store = TokenStore.open(directory, verify=False)
    if not settings.sets:
        (directory / EVALUATION_NAME).unlink(missing_ok=True)
        _remove_others(directory, keep=None)
        return None
    request = _request(settings, store, base)
    folder = directory / f"evaluation-{request}"
    known = _finished(store, request)
    if known is None:
        tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
        encoder = TextEncoder(tokenizer, store.eos_id)
        entries = {}
        for number, (name, each) in enumerate(settings.sets.items()):
            progress("evaluation", number, len(settings.sets), name)
            if isinstance(each, EvaluationDomainSettings):
                entries[name] = _domain(
                    name, each, settings.tokens_per_domain, store, end_token, folder, base
                )
            else:
                entries[name] = _questions(name, each, encoder, store, seq_len, folder, base)
        known = EvaluationManifest(
            request=request,
            fingerprint=sets_fingerprint(entries),
            tokenizer_sha256=store.manifest.tokenizer.sha256,
            sets=entries,
        )
        write_evaluation_manifest(known, directory)
    progress("evaluation", len(settings.sets), len(settings.sets))
    _remove_others(directory, keep=folder)
    return known


def _request(settings: EvaluationSettings, store: TokenStore, base: Path) -> str:
    """Hash of all that decides the outcome: first 16 hex digits of a SHA-256."""
    content: dict[str, object] = {
        "pipeline": PREPARATION_VERSION,
        "tokenizer": [store.manifest.tokenizer.sha256, store.eos_id],
        "sets": {name: each.model_dump(exclude=NO_NUMBERS) for name, each in settings.sets.items()},
    }
    if settings.domains:
        content["tokens_per_domain"] = settings.tokens_per_domain
    # a missing file has its own error, where it is read
    content["files"] = {name: _files(name, each, base) for name, each in settings.sets.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _files(name: str, settings: EvaluationDomainSettings | QuestionSetSettings, base: Path) -> object:
    """What tells the files of a set apart: their content, of a token store, which may be large, sizes and times."""
    path = base / settings.path
    if isinstance(settings, QuestionSetSettings):
        return files_digest([path] if path.is_file() else [])
    if settings.format is None:
        return TextFiles(name, path, settings.text_field).digest()
    states = [(file.name, file.stat()) for file in find_documents(path, settings.format)]
    return [[each, state.st_size, state.st_mtime_ns] for each, state in states]


def _finished(store: TokenStore, request: str) -> EvaluationManifest | None:
    """The manifest, if it answers this request and every file is as it should be."""
    try:
        manifest = read_evaluation_manifest(store.directory)
        if manifest is None or manifest.request != request:
            return None
        for entry in manifest.sets.values():
            store.verified(entry.file)
            if entry.questions is not None:
                store.verified(entry.questions)
    except DataError:
        return None
    return manifest


def _remove_others(directory: Path, keep: Path | None) -> None:
    for path in directory.glob("evaluation-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _domain(
    name: str,
    settings: EvaluationDomainSettings,
    limit: int,
    store: TokenStore,
    end_token: str | None,
    folder: Path,
    base: Path,
) -> SetEntry:
    """The first documents of a domain, until an evaluation has the tokens that it reads."""
    # one more than an evaluation predicts: the first token is only given
    read = _text_tokens if settings.format is None else _stored_tokens
    tokens = read(name, settings, limit + 1, store, end_token, base)[: limit + 1]
    if not len(tokens):
        raise DataError(f"'evaluation.domains.{name}': {base / settings.path} holds no tokens.")
    documents = int((tokens[:-1] == store.eos_id).sum()) + 1  # the last one may go on
    entry = _write(folder / f"{name}.bin", tokens.tobytes(), store)
    return SetEntry(kind="domain", file=entry, digest=entry.sha256, documents=documents, tokens=len(tokens))


def _text_tokens(
    name: str,
    settings: EvaluationDomainSettings,
    limit: int,
    store: TokenStore,
    end_token: str | None,
    base: Path,
) -> np.ndarray:
    """Tokens of a domain's text, at least ``limit`` where there are so many."""
    tokenizer = load_tokenizer(store.tokenizer_path, end_token=end_token)
    buffer, tokens = io.BytesIO(), 0
    for text in TextFiles(name, base / settings.path, settings.text_field).texts():
        if text.strip():
            tokens += sum(count for *_, count in tokenizer.write([document_text(text)[0]], buffer))
        if tokens >= limit:
            break
    return np.frombuffer(buffer.getvalue(), store.dtype)


def _stored_tokens(
    name: str,
    settings: EvaluationDomainSettings,
    limit: int,
    store: TokenStore,
    end_token: str | None,
    base: Path,
) -> np.ndarray:
    """The first ``limit`` tokens of a domain's token store, read and checked as a source's are."""
    parts = [np.zeros(0, store.dtype)]
    try:
        source = _as_source(settings)
        for file in open_files(name, source, source_files(name, source, base), end_id=store.eos_id):
            ids = file.read(0, min(file.tokens, limit - sum(map(len, parts))))
            if len(ids):
                check_ids(file, 0, ids, store.vocab_size)
                parts.append(ids.astype(store.dtype))
    except DataError as error:
        raise DataError(str(error).replace(f"'sources.{name}", f"'evaluation.domains.{name}")) from None
    return np.concatenate(parts)


def _as_source(settings: EvaluationDomainSettings) -> SourceSettings:
    """A source that is stored as the domain is."""
    keys = settings.model_dump(include={"format", "path", "tokens_from", "token_type", "append_end"})
    try:
        return SourceSettings(**keys)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"evaluation.domains: {message}.") from None


def _questions(
    name: str,
    settings: QuestionSetSettings,
    encoder: TextEncoder,
    store: TokenStore,
    seq_len: int,
    folder: Path,
    base: Path,
) -> SetEntry:
    """The questions of a set in our own layout, and their answers as tokens."""
    try:
        read = read_questions(base / settings.path, layout_of(settings))
        questions = list(islice(read, settings.max_questions))
        encoded = []
        for question in questions:
            scored = question.answers if settings.accuracy else [question.answers[question.gold_index]]
            answers = encoder.answers(question.prompt, scored)
            for answer in answers:
                fit(answer.piece, seq_len, question.document)
            encoded.append([(answer.piece, answer.num_bytes) for answer in answers])
    except DataError as error:
        raise DataError(f"'evaluation.questions.{name}': {error}") from None
    gold = [question.gold_index if settings.accuracy else 0 for question in questions]
    documents = unique_names([question.document for question in questions])
    clusters = [question.cluster or document for question, document in zip(questions, documents)]
    answer_set = AnswerSet.build(encoded, gold, clusters)
    lines = "".join(question.model_dump_json(exclude_none=True) + "\n" for question in questions)
    return SetEntry(
        kind="questions",
        file=_write(folder / f"{name}.npz", answer_set.to_bytes(), store),
        digest=answer_set.fingerprint(),
        documents=len(questions),
        tokens=answer_set.gold_tokens,
        questions=_write(folder / f"{name}.jsonl", lines.encode(), store),
        has_choices=answer_set.has_choices,
    )


def layout_of(settings: QuestionSetSettings) -> Layout | None:
    """Where the rows of a set hold what; None for rows as ``decaylaws evaluate`` reads them."""
    if settings.fields:
        return Layout(dict(settings.fields.items()))
    return LAYOUTS.get(settings.rows)


def _write(path: Path, content: bytes, store: TokenStore) -> FileEntry:
    with atomic_write(path) as handle:
        handle.write(content)
    return describe(content, path, store.directory)
