"""The one reader of documents: JSON Lines, a JSON array, plain text and Parquet, as a stream.

``prepare``, ``decontaminate``, ``deduplicate``, ``evaluate`` and the readers of question and evaluation sets all read
through it, so that a file means the same to each. Memory stays at one row, one block of text or one Parquet batch,
whatever the size of the file; a JSON array is the exception, since it has to be read whole.

Text comes with line feeds alone at its line ends, and with a question mark for every lone surrogate (JSON can hold
them, UTF-8 cannot).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

from decaylaws.errors import DataError
from decaylaws.io.parquet import parquet_batches, parquet_values
from decaylaws.io.text import COMPRESSED, find_files, plain_suffix, read_lines, with_line_feeds
from decaylaws.io.token_files import STORE_SUFFIXES, find_store_files

READING_VERSION = 2
"""Goes up whenever the same file would give other documents."""

PREPARATION_VERSION = 3
"""Of all steps from text to tokens: goes up whenever the same request would give other text or other tokens."""

Format = Literal["jsonl", "text", "parquet"]

_PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".adoc", ".tex", ".html", ".htm")
_SOURCE_CODE = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cs", ".java", ".kt", ".scala", ".js", ".jsx",
    ".ts", ".tsx", ".css", ".go", ".rs", ".rb", ".php", ".pl", ".lua", ".swift", ".dart", ".sh", ".bash", ".sql", ".r",
    ".jl", ".m", ".f", ".f90", ".hs", ".ml", ".ex", ".clj", ".lean", ".v",
)  # fmt: skip
SUFFIXES: Mapping[Format, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (*_PROSE, *_SOURCE_CODE),
    "parquet": (".parquet",),
}
"""Suffixes of the files of each format in a folder."""

READABLE = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
MAX_BLOCK_CHARS = 32_768
MAX_LINES_CHARS = 1 << 20
MAX_BAD_ROWS = 100
"""Unusable rows after which reading stops: more say nothing new."""


# counts of a prepared source that a reader of it should know of, in words
_PASSED_OVER = {
    "rows_unusable": "rows that are not JSON or have no text",
    "rows_without_text": "rows whose text is null",
    "documents_empty": "empty documents",
    "documents_of_other_lengths": "documents outside min_document_bytes and max_document_bytes",
    "documents_over_max_bytes": "documents that did not fit into max_bytes",
    "documents_repeated": "documents of which nothing new was left",
    "documents_too_short": "documents too short to keep",
    "paragraphs_of_licences": "licence notices",
    "train_documents_contaminated": "train documents with an evaluation item",
    "train_documents_near_heldout": "train documents that resemble held-out documents",
    "heldout_documents_overlapping": "held-out documents that train text repeats",
    "heldout_documents_repeated": "documents that repeat a held-out document word for word",
}
_KEPT = {
    "short_documents_repeated": "short documents that stand earlier",
    "documents_with_lone_surrogates": "documents with lone surrogates, now question marks",
    "documents_without_end": "documents without an end-of-document token, which run into the next one",
}


def passed_over(counts: Mapping[str, int]) -> str:
    """What a source was read without, from the counts of its preparation; empty where that is nothing."""
    return _in_words(_PASSED_OVER, counts)


def kept_doubtful(counts: Mapping[str, int]) -> str:
    """What a source keeps and a reader may not expect, from the counts of its preparation."""
    return _in_words(_KEPT, counts)


def _in_words(names: Mapping[str, str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"{words} ({counts[name]:,})" for name, words in names.items() if counts.get(name))


@dataclass(frozen=True)
class Row:
    """A row that can be used.

    Attributes:
        where: file and row, for messages.
        text: of the document; ``None`` where the row says null.
        values: the JSON object, or the columns that were asked for.
        raw: as it was read, with its line end; empty for Parquet.
        has_surrogates: whether lone surrogates became question marks.
    """

    where: str
    text: str | None
    values: Mapping[str, Any]
    raw: str = ""
    has_surrogates: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        where: file and row.
        reason: a part of a sentence that follows ``where``.
        remedy: a sentence.
        setting: what in study.yaml the remedy is about; empty where the file is at fault.
    """

    where: str
    reason: str
    remedy: str
    setting: str = ""


def format_of(path: Path) -> Format | None:
    """Format of a file by its suffix; ``None`` for one that is not read."""
    suffix = plain_suffix(path)
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def find_documents(path: Path, file_format: str) -> list[Path]:
    """Files of a source in a fixed order.

    Args:
        path: file, folder or glob.
        file_format: of ``SUFFIXES``, of a token store, or ``datasets`` for a folder of Hugging Face datasets, all of
            whose files count.
    """
    if file_format in STORE_SUFFIXES:
        return find_store_files(path, file_format)
    if file_format == "datasets":
        return sorted(file for file in path.rglob("*") if file.is_file())
    return find_files(path, SUFFIXES[cast("Format", file_format)])


def readable_suffixes() -> str:
    """The suffixes that are read, for messages."""
    few = (*SUFFIXES["jsonl"], *SUFFIXES["text"][:3], *SUFFIXES["parquet"])
    return f"{', '.join(few)} or source code, also with {', '.join(COMPRESSED)}"


def document_text(text: str) -> tuple[str, bool]:
    """Text as all verbs see it: line feeds alone, lone surrogates as question marks; and whether there were any."""
    text = with_line_feeds(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode(), True
    return text, False


def read_rows(path: Path, file_format: Format, text_field: str) -> Iterator[Row | BadRow]:
    """Rows of a file of JSON, or blocks of a text file; see ``parquet_batches`` for Parquet.

    Args:
        path: the file.
        file_format: ``jsonl`` or ``text``.
        text_field: key that holds the text of a JSON object.

    Raises:
        DataError: the file is unreadable, damaged or not UTF-8.
    """
    if file_format == "text":
        for number, block in enumerate(text_blocks(read_lines(path)), start=1):
            yield Row(f"{path}:{number}", with_line_feeds(block), {}, block)
        return
    for number, line in json_lines(path):
        yield _json_row(f"{path}:{number}", line, text_field)


def usable_rows(
    rows: Iterator[Row | BadRow],
    error: Callable[[BadRow], str] | None,
    bad: Callable[[BadRow], None] | None = None,
) -> Iterator[Row]:
    """The rows that can be used; those that cannot are told of all together, so that mending them takes one pass.

    Args:
        rows: of one or several files.
        error: the message of an unusable row; without it such rows are passed over.
        bad: told of every unusable row.

    Raises:
        DataError: there are unusable rows. It comes at the end, or after ``MAX_BAD_ROWS``; no row follows the first.
    """
    found: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            if bad is not None:
                bad(row)
            if error is not None:
                found.append(row)
            if len(found) == MAX_BAD_ROWS:
                break
        elif not found:
            yield row
    if not found or error is None:
        return
    others = [row.where for row in found[1:]]
    least = "at least " if len(found) == MAX_BAD_ROWS else ""
    names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    more = f" Besides, {least}{len(others)} more cannot be used: {names}." if others else ""
    raise DataError(f"{error(found[0])}{more}")


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each row of JSON Lines, or of a ``.json`` file that is one array; blank lines are passed over.

    Raises:
        DataError: the file is unreadable, or the array is damaged.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if plain_suffix(path) == ".json" and line.lstrip().startswith("["):
            yield from _array(path, line + "".join(lines))
            return
        yield number, line


def _array(path: Path, content: str) -> Iterator[tuple[int, str]]:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} begins as a JSON array and is damaged ({_reason(error)}). If the download was interrupted, "
            "repeat it."
        ) from None
    return ((number, json.dumps(row) + "\n") for number, row in enumerate(rows, start=1))


def json_object(where: str, line: str) -> Mapping[str, Any] | BadRow:
    """A line of JSON Lines as an object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        remedy = "Give it one JSON object per line."
        if not line.endswith(("\n", "\r")):
            remedy = "If the download was interrupted, repeat it."
        return BadRow(where, f"is not valid JSON ({_reason(error)})", remedy)
    if not isinstance(row, dict):
        return BadRow(where, f"holds {_kind(row)}, not an object", "Give it one JSON object per line.")
    return row


def objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and content of every row of JSON Lines, of a JSON array or of Parquet, from 1.

    Raises:
        DataError: the file is unreadable, or a row is not an object.
    """
    if format_of(path) == "parquet":
        batches = (parquet_values(path, batch) for batch in parquet_batches(path))
        yield from enumerate(chain.from_iterable(batches), start=1)
        return
    for number, line in json_lines(path):
        row = json_object(f"{path}:{number}", line)
        if isinstance(row, BadRow):
            raise DataError(f"{row.where} {row.reason}. {row.remedy}")
        yield number, row


def _json_row(where: str, line: str, text_field: str) -> Row | BadRow:
    row = json_object(where, line)
    if isinstance(row, BadRow):
        return row
    if text_field not in row:
        return BadRow(
            where,
            f"has no text under {text_field!r} (it holds: {', '.join(row)})",
            "Name the key that holds the text.",
            "text_field",
        )
    value = row[text_field]
    if value is None:
        return Row(where, None, row, line)
    if not isinstance(value, str):
        return BadRow(
            where,
            f"holds {_kind(value)} under {text_field!r}, not text",
            "Name the key that holds the text.",
            "text_field",
        )
    text, has_surrogates = document_text(value)
    return Row(where, text, row, line, has_surrogates)


def _kind(value: object) -> str:
    """A JSON value in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def text_blocks(lines: Iterator[str]) -> Iterator[str]:
    """Text in blocks, so that a part of a long file can be held out or dropped.

    It is cut at the first blank line after every ``MAX_BLOCK_CHARS`` characters; where there is none, at the end of a
    line after ``MAX_LINES_CHARS``, and a longer line at every ``MAX_LINES_CHARS``.
    """
    block: list[str] = []
    size = 0
    for line in lines:
        if (size >= MAX_BLOCK_CHARS and not line.strip()) or size >= MAX_LINES_CHARS:
            yield "".join(block)
            block, size = [], 0
        while len(line) > 2 * MAX_LINES_CHARS:
            yield "".join([*block, line[:MAX_LINES_CHARS]])
            block, size, line = [], 0, line[MAX_LINES_CHARS:]
        block.append(line)
        size += len(line) - line.endswith("\r\n")  # cut where the same text with line feeds would be
    if size:
        yield "".join(block)
