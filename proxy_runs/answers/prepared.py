"""Evaluation domains and question sets of a study as tokens, beside its prepared corpus.

``corpus/evaluation.json`` names what every run is measured on besides the held-out text of the sources. It is no part
of the corpus: a study may ask other questions of the same tokens, and its runs stay the same runs, measured anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from decaylaws.errors import DataError
from decaylaws.io.files import write_text
from decaylaws.io.json import read_json
from proxy_runs.answers.pieces import Piece
from proxy_runs.data.manifest import FileEntry
from proxy_runs.data.shards import HeldOut, TokenStore

EVALUATION_NAME = "evaluation.json"
SCORING_VERSION = 1
"""Goes up whenever the same model and questions would get other scores. Here, since ``prepare`` loads no torch."""
_REMEDY = "Run 'decaylaws prepare' again."


@dataclass(frozen=True)
class AnswerSet:
    """The answers of a question set as tokens; arrays of all answers, those of one question side by side.

    Attributes:
        tokens: of all answers with their contexts, laid end to end.
        ends: where each answer ends in ``tokens`` ``[a]``.
        first: index of its first scored token, counted from its own beginning ``[a]``.
        num_bytes: UTF-8 bytes of its text ``[a]``.
        question: number of its question ``[a]``.
        is_gold: whether it is the right one ``[a]``.
        seam: which of ``seams`` holds the ids that its first scored token is known to be one of, -1 for none ``[a]``.
        seam_ids: ids of all seams, laid end to end.
        seam_ends: where each ends in ``seam_ids``.
        cluster: number of the cluster of each question ``[q]``.
    """

    tokens: NDArray[np.int64]
    ends: NDArray[np.int64]
    first: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    question: NDArray[np.int64]
    is_gold: NDArray[np.int64]
    seam: NDArray[np.int64]
    seam_ids: NDArray[np.int64]
    seam_ends: NDArray[np.int64]
    cluster: NDArray[np.int64]

    @classmethod
    def build(
        cls,
        questions: Sequence[Sequence[tuple[Piece, int]]],
        gold: Sequence[int],
        clusters: Sequence[str],
    ) -> Self:
        """The set of questions.

        Args:
            questions: piece and bytes of every answer of every question.
            gold: index of the right answer of each.
            clusters: cluster of each.
        """
        answers = [
            (number, k, *answer) for number, each in enumerate(questions) for k, answer in enumerate(each)
        ]
        pieces = [piece for _, _, piece, _ in answers]
        seams: dict[bytes, int] = {}
        ids: list[NDArray[np.int64]] = []
        which = []
        for piece in pieces:
            if piece.seam is None:
                which.append(-1)
                continue
            key = piece.seam.tobytes()
            if key not in seams:
                seams[key] = len(ids)
                ids.append(piece.seam)
            which.append(seams[key])
        empty = np.zeros(0, dtype=np.int64)
        return cls(
            tokens=np.concatenate([empty, *(piece.tokens for piece in pieces)]),
            ends=np.cumsum([len(piece.tokens) for piece in pieces], dtype=np.int64),
            first=np.array([piece.first for piece in pieces], dtype=np.int64),
            num_bytes=np.array([size for *_, size in answers], dtype=np.int64),
            question=np.array([number for number, *_ in answers], dtype=np.int64),
            is_gold=np.array([k == gold[number] for number, k, *_ in answers], dtype=np.int64),
            seam=np.array(which, dtype=np.int64),
            seam_ids=np.concatenate([empty, *ids]),
            seam_ends=np.cumsum([len(each) for each in ids], dtype=np.int64),
            cluster=np.unique(np.array(clusters), return_inverse=True)[1].astype(np.int64),
        )

    @cached_property
    def pieces(self) -> list[Piece]:
        """Every answer after its context."""
        seams = np.split(self.seam_ids, self.seam_ends[:-1]) if len(self.seam_ends) else []
        parts = np.split(self.tokens, self.ends[:-1])
        return [
            Piece(part, int(first), None if seam < 0 else seams[seam])
            for part, first, seam in zip(parts, self.first, self.seam)
        ]

    @property
    def num_questions(self) -> int:
        """Questions."""
        return len(self.cluster)

    @property
    def has_choices(self) -> bool:
        """Whether every question has a wrong answer too."""
        return bool((np.bincount(self.question, minlength=self.num_questions) > 1).all())

    @property
    def gold_tokens(self) -> int:
        """Scored tokens of the gold answers."""
        scored = np.diff(self.ends, prepend=0) - self.first
        return int(scored[self.is_gold == 1].sum())

    @cached_property
    def bits_per_nat_byte(self) -> float:
        """What turns nats per token of the gold answers into bits per byte: their tokens by their bytes and ln 2."""
        return self.gold_tokens / int(self.num_bytes[self.is_gold == 1].sum()) / math.log(2.0)

    def fingerprint(self) -> str:
        """SHA-256 of all arrays, whatever file they lie in."""
        digest = hashlib.sha256()
        for each in fields(self):
            values: NDArray[np.int64] = getattr(self, each.name)
            digest.update(f"{each.name} {len(values)}\n".encode() + values.astype("<i8").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """As a NumPy archive; ``from_bytes`` is its inverse."""
        buffer = io.BytesIO()
        np.savez(buffer, **{each.name: getattr(self, each.name).astype("<i8") for each in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Rebuild from ``to_bytes``.

        Raises:
            ValueError: it is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(**{each.name: arrays[each.name].astype(np.int64) for each in fields(cls)})
        except (OSError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(str(error)) from None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetEntry(_Entry):
    """One evaluation domain or question set.

    Attributes:
        kind: ``domain`` or ``questions``.
        file: its tokens, or its answers as an archive.
        digest: of what is scored.
        documents: documents, or questions.
        tokens: tokens, or scored tokens of the gold answers.
        questions: the questions as ``decaylaws evaluate`` reads them; None for a domain.
        has_choices: whether accuracy is measured.
    """

    kind: Literal["domain", "questions"]
    file: FileEntry
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    documents: int = Field(gt=0)
    tokens: int = Field(gt=0)
    questions: FileEntry | None = None
    has_choices: bool = False


class EvaluationManifest(_Entry):
    """``evaluation.json``.

    Attributes:
        version: of this format.
        request: hash of what was asked: equal requests need no second preparation.
        fingerprint: of what is scored; results of equal fingerprints may be compared.
        tokenizer_sha256: of the tokenizer that made the tokens.
        sets: by name.
    """

    version: Literal[1] = 1
    request: str
    fingerprint: str
    tokenizer_sha256: str
    sets: dict[str, SetEntry] = Field(min_length=1)


def sets_fingerprint(sets: Mapping[str, SetEntry]) -> str:
    """First 16 hex digits of the SHA-256 over names, kinds and contents of what is scored, and the way it is scored."""
    content = [SCORING_VERSION, {name: [entry.kind, entry.digest] for name, entry in sets.items()}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_evaluation_manifest(manifest: EvaluationManifest, directory: Path) -> None:
    """Make ``manifest`` that of the corpus in ``directory`` in one step."""
    write_text(directory / EVALUATION_NAME, manifest.model_dump_json(indent=1) + "\n", recorded=True)


def read_evaluation_manifest(directory: Path) -> EvaluationManifest | None:
    """The manifest beside the corpus in ``directory``; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = directory / EVALUATION_NAME
    if not path.is_file():
        return None
    manifest: EvaluationManifest = read_json(path, EvaluationManifest, _REMEDY)
    if manifest.fingerprint != sets_fingerprint(manifest.sets):
        raise DataError(f"{path} is damaged (its fingerprint is not that of the listed sets). {_REMEDY}")
    return manifest


@dataclass(frozen=True)
class PreparedSets:
    """Evaluation domains and question sets that lie beside a corpus.

    Attributes:
        domains: held-out text by name.
        questions: answers by name.
        fingerprint: of both; empty where there is neither.
    """

    domains: Mapping[str, HeldOut]
    questions: Mapping[str, AnswerSet]
    fingerprint: str = ""

    @classmethod
    def open(cls, store: TokenStore) -> Self:
        """What lies beside the corpus of ``store``.

        Raises:
            DataError: a file is missing or damaged, or was made with another tokenizer.
        """
        manifest = read_evaluation_manifest(store.directory)
        if manifest is None:
            return cls({}, {})
        if manifest.tokenizer_sha256 != store.manifest.tokenizer.sha256:
            raise DataError(
                f"{store.directory / EVALUATION_NAME} was made with another tokenizer than the corpus. {_REMEDY}"
            )
        domains: dict[str, HeldOut] = {}
        questions: dict[str, AnswerSet] = {}
        for name, entry in manifest.sets.items():
            content = store.verified(entry.file)
            if entry.kind == "domain":
                domains[name] = store.with_bytes(np.frombuffer(content, store.dtype).astype(np.int64))
                continue
            try:
                questions[name] = AnswerSet.from_bytes(content)
            except ValueError as error:
                raise DataError(
                    f"{store.directory / entry.file.path} is damaged ({error}). {_REMEDY}"
                ) from None
        return cls(domains, questions, manifest.fingerprint)


def describe(content: bytes, path: Path, root: Path) -> FileEntry:
    """Entry of a file below ``root`` that holds ``content``."""
    values: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return FileEntry(path=path.relative_to(root).as_posix(), **values)
