"""``prepare_corpus``: sources in, shards and manifest out, in stages that survive being killed.

    text           extract, deduplicate paragraphs, split by document        one file pair per source
                   look through a token store and split it by document       one note per file of the store
    contamination  drop train documents that hold an evaluation item          one file, where sets are named
    near copies    set train documents aside that resemble held-out ones      one file
    overlap        drop held-out documents that the train split gives away    one file
    heldout        measure what the train split still repeats of the others   one file
    tokenizer      train the BPE on the train split                           one file
    shards         encode both splits                                         one file pair per source

The train tokens of a token store are not encoded or copied: in the place of the shard stands which stretches of the
store are train text.

Each stage writes whole files or none and is skipped when its files are there, in a folder named by the
request. The manifest changes last and in one step: until then a reader sees the corpus as it was before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.io.files import atomic_write
from decaylaws.progress import Progress, silent
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings, is_token_store
from proxy_runs.corpus import contamination
from proxy_runs.corpus.cleaning import SeenParagraphs
from proxy_runs.corpus.demo.embedded import package_versions
from proxy_runs.corpus.demo.texts import Source, Texts, collect, load_texts, remember
from proxy_runs.corpus.near_copies import find_near_copies, stretches_of
from proxy_runs.corpus.overlap import Leaks, find_leaks
from proxy_runs.corpus.quality import bucket_members
from proxy_runs.corpus.request import corpus_request, libraries
from proxy_runs.corpus.store_scan import scan_store
from proxy_runs.corpus.stores import StoreTexts
from proxy_runs.data.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    SourceEntry,
    SplitEntry,
    corpus_fingerprint,
    describe_file,
    write_manifest,
)
from proxy_runs.data.shards import TokenStore
from proxy_runs.data.stores.stored import StoredSplit, describe_files
from proxy_runs.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer

AnyTexts = Texts | StoreTexts
HELDOUT_OVERLAP_NAME = "heldout_overlap.json"
NEAR_COPIES_NAME = "near_copies.json"
CONTAMINATION_NAME = "contamination.json"


def prepare_corpus(
    sources: Mapping[str, SourceSettings],
    directory: Path,
    *,
    tokenizer: TokenizerSettings,
    seed: int = 0,
    base: Path | None = None,
    decontamination: DecontaminationSettings | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Prepare the corpus of ``sources`` in ``directory``; at once when it is there already.

    Args:
        sources: by name; each is also a held-out domain.
        directory: of the corpus. Until the new manifest is written it keeps what it held.
        tokenizer: BPE settings, or the path of a ready one.
        seed: of the split and of generated text.
        base: folder that relative paths start from; the current one if ``None``.
        decontamination: evaluation sets whose items no train document may hold.
        progress: told of every stage.

    Returns:
        The manifest, also in ``directory/manifest.json``.

    Raises:
        InvalidValueError: an embedded source that does not exist.
        DataError: a source that is missing, unreadable or empty; a folder that cannot be written.
    """
    base = base or Path()
    parts = [Source(name, source, base, seed) for name, source in sources.items()]
    decontamination = decontamination or DecontaminationSettings()
    request = corpus_request(parts, tokenizer, base, decontamination)
    job = _Job(parts, directory, request, tokenizer, base, decontamination, progress)
    manifest = job.finished()
    if manifest is None:
        try:
            manifest = job.run()
        except DecaylawsError:
            # mended input is another request: these stages would never be read again
            job.abandon()
            raise
    job.remove_leftovers()
    return manifest


@dataclass(frozen=True)
class _Job:
    """One request, and where its stages lie."""

    sources: list[Source]
    directory: Path
    request: str
    tokenizer: TokenizerSettings
    base: Path
    decontamination: DecontaminationSettings
    progress: Progress

    @property
    def work(self) -> Path:
        return self.directory / f"work-{self.request}"

    @property
    def data(self) -> Path:
        return self.directory / f"data-{self.request}"

    def finished(self) -> Manifest | None:
        """The manifest, if it answers this request and every file is as it should be."""
        try:
            manifest = TokenStore.open(self.directory).manifest
        except DataError:
            return None
        # a corpus of an earlier version says nothing of its overlap: it is prepared again, to the same shards
        complete = manifest.request == self.request and (self.data / HELDOUT_OVERLAP_NAME).is_file()
        return manifest if complete else None

    def run(self) -> Manifest:
        texts = self._collect()
        self._drop_contaminated(texts)
        self._set_near_copies_aside(texts)
        leaks = self._find_leaks(texts)
        self._measure_heldout_overlap(texts, leaks)
        self._train_tokenizer(texts)
        entries = {
            source.name: self._encode(number, source, texts[source.name], leaks[source.name])
            for number, source in enumerate(self.sources)
        }
        self.progress("shards", len(self.sources), len(self.sources))
        manifest = self._manifest(entries)
        write_manifest(manifest, self.directory)
        return manifest

    def remove_leftovers(self) -> None:
        """Delete stages and shards that no manifest needs any more."""
        for path in (*self.directory.glob("work-*"), *self.directory.glob("data-*")):
            if path != self.data:
                shutil.rmtree(path, ignore_errors=True)

    def abandon(self) -> None:
        """Delete what this request has written and no manifest names, and the folder if it is then empty."""
        shutil.rmtree(self.work, ignore_errors=True)
        if not (self.directory / MANIFEST_NAME).is_file():
            shutil.rmtree(self.data, ignore_errors=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _collect(self) -> dict[str, AnyTexts]:
        seen = SeenParagraphs()
        texts: dict[str, AnyTexts] = {}
        for number, source in enumerate(self.sources):
            if is_token_store(source.settings):

                def tell(share: float, number: int = number, name: str = source.name) -> None:
                    self.progress("text", number + share, len(self.sources), name)

                texts[source.name] = scan_store(source, self.work, self._ready_tokenizer, tell)
                continue
            found = load_texts(self.work, source.name)
            if found is None:
                if source.settings.quality:
                    self.progress("text", number, len(self.sources), f"scores of {source.origin}")
                    source = replace(source, members=bucket_members(source, self.work, self.data))
                for share in collect(source, self.work, seen):
                    self.progress("text", number + share, len(self.sources), source.name)
                found = load_texts(self.work, source.name)
            elif not source.is_generated:
                remember(found, seen)
            assert found is not None
            texts[source.name] = found
        self.progress("text", len(self.sources), len(self.sources))
        return texts

    def _drop_contaminated(self, texts: Mapping[str, AnyTexts]) -> None:
        """Make every later stage pass over train documents that hold an evaluation item."""
        if not self.decontamination.evaluation_sets:
            return
        path = self.work / "contaminated.json"
        if not path.is_file():
            index = contamination.evaluation_index(self.decontamination, self.base)
            report, rows = contamination.find_items(list(texts), self._reader("contamination", texts), index)
            for name, dropped in rows.items():
                if len(dropped) == texts[name].counts["train_documents"]:
                    raise DataError(
                        f"'sources.{name}': every train document holds an item of the evaluation sets. "
                        "Remove the source, or the set from decontamination.evaluation_sets."
                    )
            with atomic_write(self.data / CONTAMINATION_NAME, recorded=True) as handle:
                handle.write(report.to_json().encode())
            with atomic_write(path) as handle:
                handle.write(json.dumps(rows).encode())
        for name, dropped in json.loads(path.read_text()).items():
            texts[name].drop_train(dropped)
        self.progress("contamination", len(texts), len(texts))

    def _set_near_copies_aside(self, texts: Mapping[str, AnyTexts]) -> None:
        """Make every later stage pass over train documents that belong to the cluster of a held-out one.

        Generated text has no clusters: its templates repeat by design, and its instances are split.
        """
        similarity = self.decontamination.heldout_similarity
        if similarity is None:
            return
        path = self.work / "near_copies.json"
        if not path.is_file():
            numbers = {name: number for number, name in enumerate(texts)}

            def tell(name: str, share: float) -> None:
                self.progress("near copies", numbers[name] + share, len(texts), name)

            domains = [source.name for source in self.sources if not source.is_generated]
            found = find_near_copies(texts, domains, similarity, tell)
            with atomic_write(self.data / NEAR_COPIES_NAME, recorded=True) as handle:
                handle.write((json.dumps(found.report, indent=1) + "\n").encode())
            with atomic_write(path) as handle:
                handle.write(json.dumps([found.rows, found.stretches]).encode())
        rows, stretches = json.loads(path.read_text())
        for name, text in texts.items():
            if isinstance(text, StoreTexts):
                text.set_aside(stretches_of(stretches[name]))
            else:
                text.drop_train(rows[name], "train_documents_near_heldout")
        self.progress("near copies", len(texts), len(texts))

    def _reader(self, stage: str, texts: Mapping[str, AnyTexts]) -> contamination.ReadTrain:
        """Reads the train documents of a source by name, reporting to ``stage``."""
        numbers = {name: number for number, name in enumerate(texts)}
        return lambda name: self._read(stage, numbers[name], texts[name], "train")

    def _measure_heldout_overlap(self, texts: Mapping[str, AnyTexts], leaks: Mapping[str, Leaks]) -> None:
        """Text that is ours is left out: its templates repeat by design, its instances are split."""
        path = self.data / HELDOUT_OVERLAP_NAME
        if not path.is_file():
            heldout = {
                source.name: leaks[source.name].kept(texts[source.name].read("heldout"))
                for source in self.sources
                if not source.is_generated
            }
            overlap = contamination.heldout_overlap(heldout, list(texts), self._reader("heldout", texts))
            with atomic_write(path, recorded=True) as handle:
                handle.write(contamination.to_json(overlap))
        self.progress("heldout", len(texts), len(texts))

    def _find_leaks(self, texts: Mapping[str, AnyTexts]) -> dict[str, Leaks]:
        path = self.work / "leaks.json"
        if not path.is_file():
            heldout = {name: list(text.read("heldout")) for name, text in texts.items()}
            train = (
                self._read("overlap", number, text, "train") for number, text in enumerate(texts.values())
            )
            generated = {source.name for source in self.sources if source.is_generated}
            found = find_leaks(heldout, train, keep_all=generated)
            self.progress("overlap", len(texts), len(texts))
            with atomic_write(path) as handle:
                handle.write(json.dumps({name: asdict(leaks) for name, leaks in found.items()}).encode())
        return {name: Leaks(**leaks) for name, leaks in json.loads(path.read_text()).items()}

    def _read(self, stage: str, number: int, texts: AnyTexts, split: str) -> Iterator[str]:
        """Documents of a split, reporting how far source ``number`` of ``stage`` has come."""
        done, total = 0, max(1, texts.size(split))
        for text in texts.read(split):
            self.progress(stage, number + min(1.0, done / total), len(self.sources), texts.name)
            yield text
            done += len(text)

    def _train_tokenizer(self, texts: Mapping[str, AnyTexts]) -> None:
        trained = self.work / "tokenizer.json"
        self.progress("tokenizer", 0, 1)
        if not self.tokenizer.path and not trained.is_file():
            limit = self.tokenizer.train_bytes_per_source
            sample = (
                text for part in texts.values() if isinstance(part, Texts) for text in _sample(part, limit)
            )
            train_tokenizer(sample, vocab_size=self.tokenizer.vocab_size, path=trained)
        with atomic_write(self.data / "tokenizer.json") as handle:
            handle.write(self._ready_tokenizer.to_json())
        with atomic_write(self.data / "token_bytes.bin") as handle:
            handle.write(self._ready_tokenizer.token_bytes.tobytes())
        self.progress("tokenizer", 1, 1)

    @cached_property
    def _ready_tokenizer(self) -> TextTokenizer:
        """The user's tokenizer, or the one that was trained."""
        if self.tokenizer.path:
            return load_tokenizer(self.base / self.tokenizer.path, end_token=self.tokenizer.end_token)
        return load_tokenizer(self.work / "tokenizer.json")

    def _encode(self, number: int, source: Source, texts: AnyTexts, leaks: Leaks) -> SourceEntry:
        if isinstance(texts, StoreTexts):
            return self._describe_store(source, texts, leaks)
        marker = self.work / f"{source.name}.shards.json"
        if not marker.is_file():
            entry = SourceEntry(
                kind=source.kind,
                train=self._shard(f"{source.name}.train.bin", self._read("shards", number, texts, "train")),
                heldout=self._shard(f"{source.name}.heldout.bin", leaks.kept(texts.read("heldout"))),
                counts={**texts.counts, "heldout_documents_overlapping": len(leaks.dropped)},
                overlap=leaks.seen_share,
            )
            with atomic_write(marker) as handle:
                handle.write(entry.model_dump_json().encode())
        return SourceEntry.model_validate_json(marker.read_bytes())

    def _describe_store(self, source: Source, texts: StoreTexts, leaks: Leaks) -> SourceEntry:
        """A token store in the manifest: its held-out documents as a shard, and where its train tokens lie."""
        tokenizer, heldout = self._ready_tokenizer, [0, 0, 0]
        with atomic_write(self.data / f"{source.name}.heldout.bin") as handle:
            for tokens in texts.heldout_documents(leaks.dropped):
                handle.write(tokens.astype(tokenizer.dtype).tobytes())
                text_bytes = int(tokenizer.token_bytes[tokens].sum(dtype=np.int64))
                heldout = [total + new for total, new in zip(heldout, (1, text_bytes, len(tokens)))]
        left_out = texts.left_out()
        train_tokens = texts.found.tokens - int((left_out[:, 1] - left_out[:, 0]).sum())
        split = StoredSplit(train_tokens, texts.found.content, left_out)
        with atomic_write(self.data / f"{source.name}.train.json") as handle:
            handle.write(split.to_json())
        with atomic_write(self.data / f"{source.name}.store.json") as handle:
            handle.write(describe_files(texts.files, self.directory, self.base, texts.beginning()))
        return SourceEntry(
            kind=source.kind,
            train=SplitEntry(
                file=self._describe(f"{source.name}.train.json"),
                documents=texts.counts["train_documents"],
                text_bytes=texts.counts["train_bytes"],
                tokens=train_tokens,
            ),
            heldout=SplitEntry(
                file=self._describe(f"{source.name}.heldout.bin"),
                documents=heldout[0],
                text_bytes=heldout[1],
                tokens=heldout[2],
            ),
            counts={**texts.counts, "heldout_documents_overlapping": len(leaks.dropped)},
            overlap=leaks.seen_share,
            store=self._describe(f"{source.name}.store.json"),
        )

    def _shard(self, name: str, documents: Iterator[str]) -> SplitEntry:
        totals = [0, 0, 0]
        with atomic_write(self.data / name) as handle:
            for batch in self._ready_tokenizer.write(documents, handle):
                totals = [total + new for total, new in zip(totals, batch)]
        file = describe_file(self.data / name, self.directory)
        return SplitEntry(file=file, documents=totals[0], text_bytes=totals[1], tokens=totals[2])

    def _manifest(self, entries: dict[str, SourceEntry]) -> Manifest:
        tokenizer = self._ready_tokenizer
        entry = self._describe("tokenizer.json")
        versions = libraries()
        for source in self.sources:
            if source.kind == "embedded":
                versions |= package_versions(source.name)
        return Manifest(
            request=self.request,
            fingerprint=corpus_fingerprint(entry, entries),
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            dtype=tokenizer.dtype,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.end_id,
            tokenizer=entry,
            token_bytes=self._describe("token_bytes.bin"),
            sources=entries,
            libraries=dict(sorted(versions.items())),
        )

    def _describe(self, name: str) -> FileEntry:
        return describe_file(self.data / name, self.directory)


def _sample(texts: Texts, max_bytes: int) -> Iterator[str]:
    """About ``max_bytes`` of the train split, evenly spread over it; the beginning of one of few long documents."""
    fraction = min(1.0, max_bytes / texts.counts["train_bytes"])
    taken = False
    for number, text in enumerate(texts.read("train")):
        if int((number + 1) * fraction) > int(number * fraction):
            taken = True
            yield text
    if not taken:
        yield next(texts.read("train"))[:max_bytes]
