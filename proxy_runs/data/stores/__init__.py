"""Token stores that other projects write, read where they lie.

::

    from proxy_runs.data.stores import open_files
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from decaylaws.errors import DataError
from decaylaws.settings.sources import SourceSettings, tokens_from
from proxy_runs.data.stores.arrays import ArrayFile
from proxy_runs.data.stores.arrow import ArrowFile
from proxy_runs.data.stores.files import TokenFile, WithEnds
from proxy_runs.data.stores.mds import MdsFile
from proxy_runs.data.stores.megatron import MegatronFile
from proxy_runs.data.stores.nanotron import NanotronFile
from proxy_runs.data.stores.ours import CorpusFile

__all__ = ["FORMATS", "TokenFile", "open_files", "reopen_files"]

FORMATS: Mapping[str, type[TokenFile]] = {
    kind.format: kind for kind in (ArrayFile, MegatronFile, NanotronFile, MdsFile, ArrowFile, CorpusFile)
}


def open_files(
    name: str, source: SourceSettings, paths: Sequence[Path], *, end_id: int | None = None
) -> list[TokenFile]:
    """The files of a token store, checked against what they say of themselves.

    Args:
        name: of the source, for messages.
        source: its settings.
        paths: what ``source_files`` found.
        end_id: token that ends a document; needed where ``source.append_end`` is set.

    Raises:
        DataError: a file is empty, cut short or of another format, or the files differ in the width of a token.
    """
    kind = FORMATS[source.format]
    try:
        files = [
            file
            for path in kind.chosen(paths)
            for file in kind.open(path, source.token_type, tokens_from(name, source))
        ]
    except DataError as error:
        raise DataError(f"'sources.{name}': {error}") from None
    if not files:
        raise DataError(f"'sources.{name}.path' ({source.path}) holds no file of tokens. Correct the path.")
    for file in files:
        if file.type.itemsize != files[0].type.itemsize:
            raise DataError(
                f"'sources.{name}': {files[0].path} holds {files[0].type.name} and {file.path} {file.type.name}. "
                "The tokens of one source have one width. Make them two sources."
            )
    if source.append_end:
        assert end_id is not None
        return [WithEnds.over(file, end_id) for file in files]
    return files


def reopen_files(entries: Sequence[Mapping[str, object]], base: Path, *, end_id: int) -> list[TokenFile]:
    """The files that ``TokenFile.to_dict`` described, without reading them.

    Args:
        entries: what was described.
        base: folder that relative paths start from.
        end_id: token that ends a document.
    """
    files: list[TokenFile] = []
    for entry in entries:
        file = FORMATS[str(entry["format"])].from_dict(entry, base)
        files.append(WithEnds.over(file, end_id, int(str(entry["ends"]))) if entry.get("ends") else file)
    return files
