"""What decides the content of a corpus, as one hash: a corpus of another request is prepared anew."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decaylaws.io.documents import PREPARATION_VERSION
from decaylaws.settings.decontamination import DecontaminationSettings
from decaylaws.settings.sources import TokenizerSettings, is_token_store
from proxy_runs.corpus import contamination
from proxy_runs.corpus.demo import GENERATOR_VERSION
from proxy_runs.corpus.demo.embedded import package_versions
from proxy_runs.corpus.demo.texts import Source
from proxy_runs.corpus.quality import quality_request
from proxy_runs.corpus.readers import source_files
from proxy_runs.corpus.store_scan import SCAN_VERSION
from proxy_runs.data.tokenizer import load_tokenizer


def corpus_request(
    sources: Sequence[Source],
    tokenizer: TokenizerSettings,
    base: Path,
    decontamination: DecontaminationSettings,
) -> str:
    """Hash of everything that decides the outcome: first 16 hex digits of a SHA-256."""
    content: dict[str, Any] = {
        "pipeline": [PREPARATION_VERSION, GENERATOR_VERSION],
        "libraries": libraries(),
        "tokenizer": tokenizer.model_dump(),
        "sources": [_source_request(source) for source in sources],
    }
    if tokenizer.path:
        ready = load_tokenizer(base / tokenizer.path, end_token=tokenizer.end_token)
        content["tokenizer_json"] = [ready.to_json().decode(), ready.end_id]
    content["heldout_similarity"] = decontamination.heldout_similarity
    if decontamination.evaluation_sets:
        content["decontamination"] = contamination.evaluation_request(decontamination, base)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _source_request(source: Source) -> dict[str, Any]:
    settings = source.settings
    what: dict[str, Any] = settings.model_dump(
        include={"format", "path", "text_field", "heldout_fraction", "on_bad"}
    )
    what |= {"name": source.name, "max_bytes": source.max_bytes, "seed": source.seed}
    # only where it is set: a corpus without length classes keeps its name
    what |= settings.model_dump(include={"min_document_bytes", "max_document_bytes"}, exclude_none=True)
    if settings.format != "embedded":
        files = source_files(source.origin, settings, source.base)
        what["files"] = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    elif not source.is_generated:
        what["packages"] = package_versions(source.name)
    if settings.quality:
        what["quality"] = quality_request(source)
    if is_token_store(settings):
        what |= settings.model_dump(include={"tokens_from", "token_type", "append_end"})
        what["scan"] = SCAN_VERSION
    return what


def libraries() -> dict[str, str]:
    """Versions of what turns text into tokens."""
    return {"tokenizers": importlib.metadata.version("tokenizers"), "python": platform.python_version()}
