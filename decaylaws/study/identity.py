"""Which settings decide what comes out of a study, so that a stored result is used for no other question."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from decaylaws import __version__
from decaylaws.designs.planner import Planner
from decaylaws.runs.config import EXACT, Arithmetic
from decaylaws.runs.held import HeldCheckpoint
from decaylaws.settings.external import DECLARED_KEYS, TOKENS_PLACE
from decaylaws.settings.study import StudySettings
from decaylaws.study import held
from decaylaws.study.question import content_hash


def decisive(
    settings: StudySettings, arithmetic: Arithmetic, checkpoints: Mapping[str, HeldCheckpoint]
) -> dict[str, Any]:
    """The settings that decide what comes out, as JSON values: all but where and how fast it runs.

    Of decontamination only what decides the text is among them: the other settings refuse a corpus and change nothing
    in it. A setting that an older version did not have is left out at its default, so that its results stay valid.

    Args:
        settings: the checked ``study.yaml``.
        arithmetic: how the proxies compute, ``auto`` resolved.
        checkpoints: what the folders of the checkpoints that ``study.yaml`` names say of themselves, by name.
    """
    kept = settings.model_dump(mode="json", exclude={"backend", "storage", "external", "tracker"})
    kept["order"] = list(settings.sources)  # the first source keeps what a later one repeats
    for source in kept["sources"].values():
        for name in ("quality", "tokens_from", "token_type", "append_end", *DECLARED_KEYS):
            if source[name] is None or source[name] is False:
                del source[name]
        if TOKENS_PLACE in (source.pop("proxy_path", None) or ""):
            source["proxy_path"] = (
                TOKENS_PLACE  # where text lies decides nothing, whether it can be cut the design
            )
    if settings.trainer == "built-in":
        del kept["trainer"]
    if not kept["groups"]:
        del kept["groups"]
    for name in ("unit", "guard_bits_per_byte", "insist"):
        if not kept["objective"][name] and kept["objective"][name] != 0:
            del kept["objective"][name]
    for kind in ("domains", "questions"):
        sets = {
            name: each.model_dump(mode="json", exclude={"on_the_way"}, exclude_defaults=True)
            for name, each in getattr(settings.evaluation, kind).items()
        }
        del kept["evaluation"][kind]
        if sets:
            kept["evaluation"][kind] = sets
    for name in ("heldout_similarity", "max_heldout_overlap", "on_overlap"):
        del kept["decontamination"][
            name
        ]  # what these set aside or refuse shows in the fingerprint of the corpus
    if not settings.decontamination.evaluation_sets:
        del kept["decontamination"]
    if not settings.design.keep_earlier:
        del kept["design"]["keep_earlier"]
    if settings.design.repetition_runs == type(settings.design).model_fields["repetition_runs"].default:
        del kept["design"]["repetition_runs"]
    if not settings.design.stable_tokens:
        del kept["design"]["stable_tokens"], kept["design"]["stable_mixtures"]
    if settings.design.end_lr_factors == [0.0]:
        del kept["design"]["end_lr_factors"]
    if settings.trunk is not None and settings.trunk.scale_lr == "none":
        del kept["trunk"]["scale_lr"]
    if settings.trunk is not None and not settings.trunk.scale_weight_decay:
        del kept["trunk"]["scale_weight_decay"]
    if settings.checkpoints is None:
        del kept["checkpoints"]
    else:
        kept["checkpoints"] = held.decisive(kept["checkpoints"], checkpoints)
    kept["optimizer"] = settings.optimizer.decisive()
    kept["train"] = asdict(arithmetic)
    if arithmetic == EXACT:
        del kept["train"]
    return kept


def for_sweep(decisive_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the decisive settings that decide the runs of the sweep and their numbers.

    The objective is among them only where a sampler proposes runs by it; else it is a question to finished runs.
    """
    kept = deepcopy(dict(decisive_settings))
    for name in ("name", "search_trials"):
        del kept[name]
    del kept["target"]["max_decay_tokens"]
    kept["design"].pop("keep_earlier", None)
    kept["optimizer"].pop("recipe", None)
    if kept["sampler"]:
        del kept["sampler"]["trials"]  # more proposals go on where fewer ended
        return kept
    del kept["objective"]
    kinds = (kept["evaluation"].get(kind, {}) for kind in ("domains", "questions"))
    for each in (*kept["sources"].values(), *(each for kind in kinds for each in kind.values())):
        each.pop("group", None)
        each.pop("capability", None)
    return kept


def plan_inputs(planner: Planner, evaluation_sets: str) -> str:
    """Hash of what decides the runs of a sweep and their numbers: settings, corpus, version.

    Args:
        planner: of the study.
        evaluation_sets: fingerprint of the evaluation domains and question sets; empty where there are none.
    """
    settings = decisive(planner.settings, planner.arithmetic, planner.held)
    sets = [evaluation_sets] if planner.settings.evaluation.sets else []
    return content_hash(__version__, for_sweep(settings), vars(planner.corpus), *sets)
