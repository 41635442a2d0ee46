"""Sources of another study's corpus: the train shard, and the held-out one, which stays held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from decaylaws.errors import DataError
from proxy_runs.data.manifest import read_manifest
from proxy_runs.data.stores.files import REPEAT, TokenFile, count_tokens, file_size


class CorpusFile(TokenFile):
    """A shard of ``prepare``; documents end at end tokens."""

    format: ClassVar[str] = "decaylaws"

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``; the train shard comes first, then the held-out one."""
        manifest = read_manifest(path.parent)
        if column not in manifest.sources:
            raise DataError(
                f"{path} has no source {column!r} (it has: {', '.join(manifest.sources)}). Name the source of that "
                "study as "
                "tokens_from."
            )
        source = manifest.sources[column]
        if source.store is not None:
            raise DataError(
                f"The source {column!r} of {path} is itself a token store that is read in place. Name that store as "
                "the "
                "source."
            )
        for split in (source.train, source.heldout):
            file = path.parent / split.file.path
            size = file_size(file)
            if count_tokens(file, size, manifest.dtype) != split.tokens:
                raise DataError(
                    f"{file} ends at byte {size}, and {path.name} says that it has {split.file.bytes}. {REPEAT}"
                )
            yield cls(file, manifest.dtype, split.tokens)
