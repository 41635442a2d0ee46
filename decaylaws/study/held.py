"""The checkpoints of a study: what their folders say, checked against study.yaml and the corpus before any compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.files import write_text
from decaylaws.io.json import read_json, rebuilding
from decaylaws.recipe.checkpoints import CheckpointFacts, read_facts
from decaylaws.recipe.checkpoints.moments import moment_files
from decaylaws.recipe.corpus_facts import PreparedCorpus, tokenizer_fingerprint
from decaylaws.recipe.doctor import same_lr, same_tokens
from decaylaws.runs.declared import DeclaredModel
from decaylaws.runs.folders import WEIGHTS, folder_fingerprint, folder_shape, require_moments
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.runs.start import CheckpointStart
from decaylaws.settings.checkpoints import CheckpointSettings, CheckpointsSettings
from decaylaws.settings.external import DeclaredCheckpoint
from decaylaws.study.stored import StoredHeld

REMEDY = "Delete it; it is read from the checkpoints again."


def held_checkpoints(
    settings: CheckpointsSettings, root: Path, *, seq_len: int, store: Path
) -> dict[str, HeldCheckpoint]:
    """The checkpoints of a study by name; what was read of a folder is kept as long as its files stay as they are.

    Args:
        settings: of study.yaml.
        root: folder that their paths start from.
        seq_len: tokens of a training sequence.
        store: JSON file that keeps what was read, so that weights are hashed once.

    Raises:
        DataError: a folder holds no model that can be trained here without code of its own, or not the moments.
        InvalidValueError: tokens or LR contradict what the checkpoint says of itself, or it does not say its LR.
    """
    stored = read_json(store, StoredHeld, REMEDY) if store.is_file() else {}
    found, entries = {}, {}
    for name, model in settings.models.items():
        if isinstance(model, DeclaredCheckpoint):
            start = model.start(optimizer_state=settings.optimizer_state)
            shape = model.shape(vocab_size=0, seq_len=seq_len)
            found[name] = HeldCheckpoint(start, shape, "study.yaml")
            continue
        folder = root / model.path
        told = {
            **model.model_dump(mode="json", exclude=None if model.earlier else {"earlier"}),
            "optimizer_state": settings.optimizer_state,
            "seq_len": seq_len,
        }
        earlier = [root / each.path for each in model.earlier]
        known, moment = stored.get(name), _moments(folder, *earlier)
        # a folder that is gone says nothing: who reads the results of finished runs does not need it
        if known is not None and known["told"] == told and moment in ("", known["moment"]):
            with rebuilding(store, REMEDY):
                found[name] = HeldCheckpoint.from_dict(known)
            entries[name] = known
            continue
        found[name] = _read(name, model, folder, settings.optimizer_state, seq_len)
        if model.earlier:
            found[name] = replace(found[name], average=_average(name, model, root, found[name], seq_len))
        entries[name] = {"moment": moment, "told": told, **found[name].to_dict()}
    if entries != stored:
        write_text(store, json.dumps(entries, indent=1, allow_nan=False) + "\n", recorded=True)
    return found


def _moment(folder: Path) -> str:
    """Hash of names, sizes and times of a folder's files; empty where there is none."""
    patterns = (*WEIGHTS, "trainer_state.json", "training_state.json")
    files = sorted(
        {file for pattern in patterns for file in folder.glob(pattern)} | set(moment_files(folder))
    )
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16] if files else ""


def _moments(*folders: Path) -> str:
    """The moment of the first folder, and of the others; empty where one of them is gone."""
    moments = [_moment(folder) for folder in folders]
    return " ".join(moments) if all(moments) else ""


def _average(
    name: str, model: CheckpointSettings, root: Path, held: HeldCheckpoint, seq_len: int
) -> CheckpointStart:
    """The checkpoint with the earlier ones that are averaged with it, each of which must be of the same model."""
    for number, each in enumerate(model.earlier):
        field, folder = f"checkpoints.models.{name}.earlier.{number}", root / each.path
        shape = folder_shape(folder, seq_len=seq_len)
        if shape != held.shape:
            raise InvalidValueError(
                f"{field}.path", each.path, f"must be the model of {model.path}, and it has another shape"
            )
        tokens = read_facts(folder).tokens
        if tokens is not None and not same_tokens(tokens, each.tokens):
            raise InvalidValueError(
                f"{field}.tokens",
                each.tokens,
                f"must be the {tokens:,} tokens that {folder} says it has seen",
            )
    fingerprints = [folder_fingerprint(root / each.path, optimizer_state="fresh") for each in model.earlier]
    return replace(
        held.start,
        fingerprint=folder_fingerprint(root / model.path, optimizer_state="fresh"),
        optimizer_state="fresh",  # nothing is trained from a mean
        averaged=tuple(fingerprints),
        averaged_tokens=model.tokens - model.earlier[0].tokens,
    )


def _read(
    name: str, model: CheckpointSettings, folder: Path, optimizer_state: str, seq_len: int
) -> HeldCheckpoint:
    shape = folder_shape(folder, seq_len=seq_len)
    facts, field = read_facts(folder), f"checkpoints.models.{name}"
    if facts.tokens is not None and not same_tokens(facts.tokens, model.tokens):
        raise InvalidValueError(
            f"{field}.tokens",
            model.tokens,
            f"must be the {facts.tokens:,} tokens that {folder} says it has seen",
        )
    lr, lr_source = _handover_lr(field, model, folder, facts)
    if optimizer_state == "load":
        require_moments(folder)
    start = CheckpointStart(
        fingerprint=folder_fingerprint(folder, optimizer_state=optimizer_state),
        family=str((facts.config or {}).get("model_type")),
        tokens=model.tokens,
        lr=lr,
        optimizer_state=optimizer_state,
    )
    return HeldCheckpoint(start, shape, lr_source)


def _handover_lr(
    field: str, model: CheckpointSettings, folder: Path, facts: CheckpointFacts
) -> tuple[float, str]:
    """The LR of the checkpoint's last step, and where that figure comes from."""
    told = facts.lrs if facts.lr_step is None else ()  # a log that ends at another step knows another LR
    if model.lr is not None:
        if told and not any(same_lr(model.lr, lr) for lr in told):
            said = " and ".join(f"{lr:.6g}" for lr in told)
            raise InvalidValueError(
                f"{field}.lr",
                model.lr,
                f"must be the LR at which the checkpoint ends by its own trainer state, {said}",
                "Leave lr out to take that, and choose other start LRs with design.start_lr_factors.",
            )
        return model.lr, "study.yaml" + (", as the checkpoint's trainer state" if told else "")
    if not told:
        raise InvalidValueError(
            f"{field}.lr", None, f"is required: {folder} does not say the LR of its last step", "Add it."
        )
    if not told[0] > 0:
        raise InvalidValueError(
            f"{field}.path",
            model.path,
            "must be a checkpoint before its decay; its trainer state ends at LR 0",
            "Take an earlier one.",
        )
    return told[0], f"trainer state of {model.path}"


def check_against_corpus(
    settings: CheckpointsSettings,
    root: Path,
    held: Mapping[str, HeldCheckpoint],
    corpus: PreparedCorpus,
) -> None:
    """Refuse checkpoints to which the ids of the corpus mean something else, or nothing.

    Args:
        settings: of study.yaml.
        root: folder that their paths start from.
        held: the checkpoints by name.
        corpus: as prepared.

    Raises:
        DataError: a tokenizer differs, or an embedding has fewer rows than the corpus has ids.
    """
    for name, model in settings.models.items():
        shape = held[name].shape
        if isinstance(shape, DeclaredModel):
            continue  # its trainer knows which ids it takes
        tokenizer = root / model.path / "tokenizer.json"
        if tokenizer.is_file() and tokenizer_fingerprint(tokenizer) != corpus.tokenizer_fingerprint:
            raise DataError(
                f"The tokenizer in {tokenizer.parent} (checkpoints.models.{name}) gives tokens other ids than that of "
                "the corpus. Leave tokenizer out of study.yaml, or name that file in tokenizer.path, and prepare again."
            )
        rows = shape.vocab_size
        if corpus.vocab_size > rows:
            raise DataError(
                f"The corpus has ids up to {corpus.vocab_size - 1:,}, but the embedding of checkpoints.models.{name} "
                f"({root / model.path}) has {rows:,} rows. Prepare the corpus with the checkpoint's own tokenizer."
            )


def paths(
    settings: CheckpointsSettings | None, root: Path, held: Mapping[str, HeldCheckpoint]
) -> dict[str, str]:
    """By fingerprint, where each checkpoint lies; a declared one where its own trainer finds it.

    Args:
        settings: ``checkpoints`` of study.yaml; None where it names none.
        root: folder that their paths start from.
        held: the checkpoints by name.
    """
    found = {}
    for name, model in settings.models.items() if settings else ():
        start, average = held[name].start, held[name].average
        if isinstance(model, DeclaredCheckpoint):
            found[start.fingerprint] = model.path
            continue
        found[start.fingerprint] = str((root / model.path).resolve())
        if average is not None:
            found[average.fingerprint] = found[start.fingerprint]
            places = [str((root / each.path).resolve()) for each in model.earlier]
            found |= dict(zip(average.averaged, places, strict=True))
    return found


def folders(
    settings: CheckpointsSettings | None, root: Path, held: Mapping[str, HeldCheckpoint]
) -> dict[str, Path]:
    """The same as :func:`paths`, as folders."""
    return {fingerprint: Path(path) for fingerprint, path in paths(settings, root, held).items()}


def decisive(settings: Mapping[str, Any], held: Mapping[str, HeldCheckpoint]) -> dict[str, Any]:
    """The part of study.yaml about checkpoints that decides results: the content of the folders, not their places.

    Args:
        settings: ``checkpoints`` of study.yaml as JSON values.
        held: the checkpoints by name.
    """
    models = {
        name: {"start": each.start.to_dict(), "shape": asdict(each.shape)}
        | ({} if each.average is None else {"average": each.average.to_dict()})
        for name, each in held.items()
    }
    return {**settings, "models": models}
