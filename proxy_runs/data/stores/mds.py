"""MosaicML's streaming shards (MDS): a folder with ``index.json`` and ``shard.00000.mds`` and so on.

Layout of a shard (mosaicml-streaming, streaming/base/format/mds), little-endian: number of samples n (uint32), n + 1
byte offsets of the samples (uint32), a JSON object with ``column_names``, ``column_encodings`` and ``column_sizes``,
then the samples. A sample is the size of each column that has no fixed one (uint32 each), then the columns. Tokens are
a column of ``ndarray`` (its values behind their type and shape, as far as the encoding does not fix them) or ``bytes``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError
from proxy_runs.data.stores.files import REPEAT, TYPES, Places, TokenFile, Tokens, file_size, read_bytes

_VALUE_TYPES = {16: "uint16", 32: "uint32", 33: "int32", 65: "int64"}
_TABLES = 64


class MdsFile(TokenFile):
    """One shard; every sample is a row."""

    format: ClassVar[str] = "mds"
    has_rows: ClassVar[bool] = True

    @classmethod
    def chosen(cls, paths: Sequence[Path]) -> list[Path]:
        """See ``TokenFile.chosen``."""
        return [path for path in paths if path.name == "index.json"]

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``."""
        for shard in _shards(path):
            name = shard["raw_data"]["basename"]
            file = path.parent / name
            if not file.is_file():
                packed = (shard.get("zip_data") or {}).get("basename")
                if packed and (path.parent / packed).is_file():
                    raise DataError(
                        f"{path.parent / packed} is compressed, so its tokens cannot be read in place. Unpack it to "
                        f"{name}."
                    )
                raise DataError(f"{path} lists {name}, and there is no such file. {REPEAT}")
            size = file_size(file)
            if size != shard["raw_data"]["bytes"]:
                raise DataError(
                    f"{file} ends at byte {size}, and index.json says that it has {shard['raw_data']['bytes']}. "
                    f"{REPEAT}"
                )
            layout = _Layout.read(file, column, token_type)
            if layout.samples != shard["samples"]:
                raise DataError(
                    f"{file} says at byte 0 that it holds {layout.samples:,} samples, and index.json says "
                    f"{shard['samples']:,}. {REPEAT}"
                )
            rows = _rows(file, column, layout.token_type, size)
            yield cls(file, layout.token_type, int(rows.ends[-1]), column=column)

    @property
    def _rows(self) -> _Rows:
        return _rows(self.path, self.column, self.token_type, self.path.stat().st_size)

    def read(self, start: int, count: int) -> Tokens:
        """See ``TokenFile.read``."""
        rows, width = self._rows, self.type.itemsize
        first, last = np.searchsorted(rows.ends, [start, start + count - 1], side="right").tolist()
        begin = int(rows.starts[first]) + (start - int(rows.ends[first - 1] if first else 0)) * width
        if first == last or not count:
            return read_bytes(self.path, begin, count * width).view(self.type)
        # the rows from the first to the last in one piece, out of which the tokens are picked
        inner = np.append(start, rows.ends[first:last])
        counts = np.append(rows.ends[first:last], start + count) - inner
        at = np.append(begin, rows.starts[first + 1 : last + 1]) - begin
        piece = read_bytes(self.path, begin, int(at[-1] + counts[-1] * width))
        places = np.repeat(at - (inner - start) * width, counts) + np.arange(count) * width
        return piece[places[:, None] + np.arange(width)].view(self.type)[:, 0]

    def offset(self, token: int) -> int:
        """See ``TokenFile.offset``."""
        rows = self._rows
        row = int(np.searchsorted(rows.ends, token, side="right"))
        return int(rows.starts[row]) + (token - int(rows.ends[row - 1] if row else 0)) * self.type.itemsize

    def document_ends(self) -> Places:
        """See ``TokenFile.document_ends``."""
        return self._rows.ends


@dataclass(frozen=True)
class _Rows:
    """Byte of the first token of each sample, and tokens up to the end of each [num_samples]."""

    starts: Places
    ends: Places


@dataclass(frozen=True)
class _Layout:
    """Where a shard keeps its samples, and in them the tokens.

    Attributes:
        samples: how many.
        begins: byte offsets of the samples and of the end [samples + 1].
        token_type: numpy's name of the type of a token.
        column: number of the column of tokens.
        encoding: ``bytes``, or what follows ``ndarray``: type and shape as far as they are fixed.
        sizes: fixed sizes of the columns, 0 where each sample has its own.
    """

    samples: int
    begins: Places
    token_type: str
    column: int
    encoding: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def read(cls, path: Path, column: str, token_type: str | None) -> _Layout:
        size = file_size(path)
        if size < 8:
            raise DataError(f"{path} is cut short: it ends at byte {size}, within its header. {REPEAT}")
        header = read_bytes(path, 0, 4)
        samples = int(header.view("<u4")[0])
        swapped = int(header.view(">u4")[0])
        table = 4 * (samples + 1)
        if samples == 0 or 4 + table > size:
            big = swapped > 0 and 4 + 4 * (swapped + 1) <= size
            what = (
                "was written in big-endian order. Write it again"
                if big
                else f"is damaged: by byte 0 it holds {samples:,} samples, and it ends at byte {size}. {REPEAT}"
            )
            raise DataError(f"{path} {what}".rstrip(".") + ".")
        begins = read_bytes(path, 4, table).view("<u4").astype(np.int64)
        if begins[0] < 4 + table or begins[-1] != size or (np.diff(begins) < 0).any():
            wrong = int(np.flatnonzero(np.diff(begins, append=size) < 0)[:1].sum())
            raise DataError(
                f"{path} has a shifted table of samples: entry {wrong} (byte {4 + 4 * wrong}) points to byte "
                f"{begins[wrong]}, and the samples lie between byte {4 + table} and the end, byte {size}. {REPEAT}"
            )
        try:
            config = json.loads(read_bytes(path, 4 + table, int(begins[0]) - 4 - table).tobytes())
            names, encodings = (
                list(config["column_names"]),
                [str(name) for name in config["column_encodings"]],
            )
            sizes = tuple(int(each or 0) for each in config["column_sizes"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} has no description of its columns at byte {4 + table} ({error}). {REPEAT}"
            ) from None
        if column not in names:
            raise DataError(
                f"{path} has no column {column!r} (it has: {', '.join(names)}). Name the column of tokens as "
                "tokens_from."
            )
        number = names.index(column)
        kind, *fixed = encodings[number].split(":")
        if kind not in ("bytes", "ndarray"):
            raise DataError(
                f"{path} holds {encodings[number]} in its column {column!r}, not token ids (bytes or ndarray). Name "
                "the "
                "column of tokens as tokens_from."
            )
        layout = cls(samples, begins, "", number, (kind, *fixed), sizes)
        return cls(samples, begins, layout._token_type(path, token_type), number, (kind, *fixed), sizes)

    def _token_type(self, path: Path, asked: str | None) -> str:
        if self.encoding[0] == "bytes":
            if asked is None:
                raise DataError(
                    f"{path} holds its tokens as bytes, and does not say of which type. Add token_type to the source "
                    "(LLM Foundry writes int64)."
                )
            return TYPES[asked]
        if len(self.encoding) > 1:
            stored = self.encoding[1]
        else:
            codes = np.unique(_gather(path, self._columns(path)[0], 1)[:, 0])
            stored = (
                _VALUE_TYPES.get(int(codes[0]), f"type {codes[0]}") if len(codes) == 1 else "several types"
            )
        if stored not in TYPES:
            raise DataError(
                f"{path} holds {stored} in its column of tokens (sample 0, byte {self.begins[0]}). Tokens are "
                f"{', '.join(TYPES)}."
            )
        if asked is not None and asked != stored:
            raise DataError(
                f"{path} says that its tokens are {stored}, and token_type says {asked}. Leave it out."
            )
        return TYPES[stored]

    def _columns(self, path: Path) -> tuple[Places, Places]:
        """First byte and size of the column of tokens in every sample [samples each]."""
        own = [number for number, size in enumerate(self.sizes) if not size]
        starts = self.begins[:-1] + 4 * len(own)
        size = np.full(self.samples, self.sizes[self.column], np.int64)
        for number, fixed in enumerate(self.sizes[: self.column + 1]):
            width = np.full(self.samples, fixed, np.int64)
            if not fixed:
                at = self.begins[:-1] + 4 * own.index(number)
                width = _gather(path, at, 4).view("<u4")[:, 0].astype(np.int64)
            if number == self.column:
                size = width
            else:
                starts = starts + width
        return starts, size

    def rows(self, path: Path) -> _Rows:
        """Where the tokens of every sample lie."""
        starts, sizes = self._columns(path)
        head = np.zeros(self.samples, np.int64)
        if (
            self.encoding[0] == "ndarray" and len(self.encoding) < 3
        ):  # type and shape stand in front of the values
            head += len(self.encoding) == 1
            shape = _gather(path, starts + head, 1)[:, 0].astype(np.int64)
            head += 1 + (shape >> 2) * (1 << (shape & 3))
        counts, rest = np.divmod(sizes - head, np.dtype(self.token_type).itemsize)
        wrong = np.flatnonzero((rest != 0) | (counts < 0) | (starts + sizes > self.begins[1:]))
        if len(wrong):
            number = int(wrong[0])
            raise DataError(
                f"{path} is damaged: the tokens of sample {number} (byte {self.begins[number]}) do not fill whole "
                "tokens "
                f"of type {np.dtype(self.token_type).name}, or run into the next sample. {REPEAT}"
            )
        return _Rows(starts + head, np.cumsum(counts))


def _gather(path: Path, places: Places, count: int) -> NDArray[np.uint8]:
    """``count`` bytes from each of the places [num_places, count]."""
    whole = np.memmap(path, np.uint8, "r")
    if len(places) and int(places.max()) + count > len(whole):
        raise DataError(f"{path} is cut short: it ends at byte {len(whole)}, within a sample. {REPEAT}")
    return np.ascontiguousarray(whole[places[:, None] + np.arange(count)])


@lru_cache(maxsize=_TABLES)
def _rows(path: Path, column: str, token_type: str, size: int) -> _Rows:
    """The table of a shard; of the last 64 that were read, since a store may have thousands."""
    name = next(name for name, stored in TYPES.items() if stored == token_type)
    asked = _Layout.read(path, column, name)
    return asked.rows(path)


def _shards(path: Path) -> list[dict[str, Any]]:
    """Entries of an ``index.json``."""
    try:
        content = json.loads(path.read_bytes())
        shards = [dict(shard) for shard in content["shards"]]
        for shard in shards:
            if shard["format"] != "mds" or not isinstance(shard["raw_data"]["basename"], str):
                raise ValueError(f"a shard is of the format {shard['format']!r}")
            int(shard["samples"]), int(shard["raw_data"]["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the index of MDS shards ({error!r}). {REPEAT}") from None
    if not shards:
        raise DataError(f"{path} lists no shard, so the store is empty. {REPEAT}")
    return shards
