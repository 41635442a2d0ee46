"""torchtitan: a config module of 0.3 in Python or a TOML file of earlier versions, read and not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.readers.paths_of_lr import table_lrs
from decaylaws.exporters.readers.python_files import Call, PythonFile, Unread
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    normalised_shares,
    whole_steps,
)
from decaylaws.exporters.rules import torchtitan_factors
from decaylaws.exporters.torchtitan import DECAY_TYPES
from decaylaws.recipe import Recipe

_SCHEDULE = ("warmup_steps", "total_steps", "decay_ratio", "decay_type", "min_lr_factor")
_ADAMW = {
    "lr": 8e-4,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
}  # default_adamw and the TOML's defaults


def read_torchtitan(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """``FILE.py``, ``FILE.py:FUNCTION`` where the module has several configs, or ``FILE.toml``.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    name = path.name
    function = ""
    if not path.exists() and ":" in name:
        name, _, function = name.partition(":")
        path = path.with_name(name)
    if path.suffix.lower() == ".toml":
        return _read_toml(path)
    module = PythonFile(path)
    config = _config(module, function)
    values = _nested(config)
    fields = Fields(values, path)
    steps_value = fields.get("training.steps")
    if steps_value is None:
        raise DataError(
            f"{path} sets no training.steps; what {config.name}(...) sets stands in another file."
        )
    steps = whole_steps(path, fields.count("training.steps", at_least=1))
    optimizer = _optimizer(module, config)
    lr = Fields(optimizer, path).number("lr")
    factors = module.constant("LR_FACTORS")
    settings = Settings(path)
    settings.optimizer(_optimizer_name(config), ("adamw",))
    settings.number("weight_decay", optimizer.get("weight_decay"))
    settings.betas(optimizer.get("betas"))
    settings.number("eps", optimizer.get("eps"))
    settings.number("clip_norm", fields.get("training.max_norm"))
    settings.number("seq_len", fields.get("training.seq_len", "training.max_context_length"))
    _batch(settings, fields)
    conflicts = _checkpoint(settings, fields)
    return ConfigSchedule(
        table_lrs(path, factors, lr, steps) if factors is not None else _lrs(module, values, lr, steps),
        normalised_shares(path, _weights(module)),
        settings.stated,
        settings.unread,
        conflicts,
    )


def _config(module: PythonFile, function: str) -> Call:
    """The configuration that a function of the module returns."""
    made = {}
    for name, node in module.functions.items():
        if not function or name == function:
            value = module.result(name) if not (node.args.args or node.args.kwonlyargs) else None
            if isinstance(value, Call) and (function or "training" in value.values):
                made[name] = value
    if function and function not in made:
        raise DataError(f"{module.path} has no function {function!r} that returns a configuration.")
    if not made:
        raise DataError(f"{module.path} has no function whose configuration sets 'training' with steps.")
    if len(made) > 1:
        raise DataError(
            f"{module.path} holds {len(made)} configurations. Name one as {module.path.name}:NAME "
            f"({', '.join(list(made)[:8])}{', ...' if len(made) > 8 else ''})."
        )
    return next(iter(made.values()))


def _nested(value: Any) -> Any:
    """Calls and containers as plain mappings; a call keeps its name under ``__call__``."""
    if isinstance(value, Call):
        return {"__call__": value.name, **{name: _nested(child) for name, child in value.values.items()}}
    if isinstance(value, list | tuple):
        return [_nested(child) for child in value]
    if isinstance(value, dict):
        return {name: _nested(child) for name, child in value.items()}
    return value


def _optimizer(module: PythonFile, config: Call) -> dict[str, Any]:
    """AdamW's arguments for matrices: those of the last group of parameters, which takes what the others leave."""
    optimizer = config.values.get("optimizer")
    if isinstance(optimizer, Call) and optimizer.name.endswith("default_adamw"):
        given = {("lr" if name == "0" else name): value for name, value in optimizer.values.items()}
        return {**_ADAMW, **given}
    groups = optimizer.values.get("param_groups") if isinstance(optimizer, Call) else None
    last = groups[-1] if isinstance(groups, list) and groups else None
    arguments = last.values.get("optimizer_kwargs") if isinstance(last, Call) else None
    if isinstance(arguments, dict) and arguments.get("lr") is not None:
        return arguments
    if isinstance(optimizer, Call) and "lr" in optimizer.values:
        return optimizer.values
    raise module.error("optimizer with an lr", optimizer)


def _optimizer_name(config: Call) -> Any:
    optimizer = config.values.get("optimizer")
    groups = optimizer.values.get("param_groups") if isinstance(optimizer, Call) else None
    last = groups[-1] if isinstance(groups, list) and groups else None
    return last.values.get("optimizer_name") if isinstance(last, Call) else None


def _batch(settings: Settings, fields: Fields) -> None:
    sequences = fields.get("training.global_batch_size")
    tokens = fields.get("training.num_tokens_per_train_step")
    if sequences not in (None, -1):
        settings.number("batch_sequences", sequences)
    elif tokens not in (None, -1):
        settings.number("batch_tokens", tokens)
    else:
        settings.number("batch_part", fields.get("training.local_batch_size", "training.batch_size"))


def _checkpoint(settings: Settings, fields: Fields) -> tuple[str, ...]:
    start = fields.get("checkpoint.initial_load_path")
    if isinstance(start, dict) and start.get("__call__") == "os.path.abspath":
        start = start.get("0")
    if isinstance(start, dict):
        start = Unread(f"{start.get('__call__')}(...)")
    settings.text("start", start or "")
    if start is None:
        return ()
    conflicts = []
    if fields.get("checkpoint.enable", "checkpoint.enable_checkpoint") is False:
        conflicts.append("checkpoint.enable is false, so that it loads no checkpoint.")
    model_only = fields.get("checkpoint.initial_load_model_only")
    excluded = fields.get("checkpoint.exclude_from_loading")
    excluded = excluded if isinstance(excluded, list) else []
    settings.optimizer_state(model_only is False and "optimizer" not in excluded)
    if isinstance(model_only, Unread):
        settings.optimizer_state(model_only)
    return tuple(conflicts)


def _weights(module: PythonFile) -> list[tuple[object, object]]:
    """Sources and their weights: those of our own table, or of literal ``HFDataSource`` calls."""
    sources = module.constant("SOURCES")
    if isinstance(sources, dict):
        return [
            (name, value[1])
            for name, value in sources.items()
            if isinstance(value, tuple) and len(value) == 2
        ]
    for call in module.calls("HFDataSource"):
        for name, value in call.unread():
            place = f"argument {int(name) + 1}" if name.isdigit() else name
            raise module.error(f"{place} of HFDataSource", value, line=call.line)
    calls = module.calls("HFDataSource")
    for call in calls:
        if isinstance(call.values.get("weight"), Call):
            raise module.error(
                "weight of HFDataSource", Unread(f"{call.values['weight'].name}()"), line=call.line
            )
    return [
        (call.values.get("dataset", call.values.get("0")), call.values.get("weight", 1.0)) for call in calls
    ]


def _lrs(module: PythonFile, values: Any, lr: float, steps: int) -> Floats:
    schedule = values.get("lr_scheduler")
    if schedule is None and str(values.get("__call__")).endswith("Trainer.Config"):
        schedule = {}  # torchtitan's own default: 200 steps of warm-up, then a linear decay
    if not isinstance(schedule, dict):
        raise module.error("lr_scheduler as LRSchedulersContainer.Config", schedule)
    for name, value in schedule.items():
        if isinstance(value, Unread | dict):
            text = value.text if isinstance(value, Unread) else f"{value.get('__call__')}()"
            raise module.error(f"{name} of lr_scheduler", Unread(text))
    fields = Fields({name: value for name, value in schedule.items() if name != "__call__"}, module.path)
    return _native(fields, "", lr, steps)


def _native(fields: Fields, prefix: str, lr: float, steps: int) -> Floats:
    fields.only(prefix.rstrip("."), _SCHEDULE)
    our_shapes = {theirs: ours for ours, theirs in DECAY_TYPES.items()}
    total, ratio = fields.get(f"{prefix}total_steps"), fields.get(f"{prefix}decay_ratio")
    return lr * torchtitan_factors(
        steps,
        warmup_steps=fields.count(f"{prefix}warmup_steps", 200),
        decay_ratio=None if ratio is None else fields.number(f"{prefix}decay_ratio"),
        decay_shape=our_shapes[fields.choice(f"{prefix}decay_type", tuple(our_shapes), "linear")],
        min_lr_factor=fields.number(f"{prefix}min_lr_factor", 0.0),
        total_steps=None if total is None else fields.count(f"{prefix}total_steps", at_least=1),
    )


def _read_toml(path: Path) -> ConfigSchedule:
    fields = Fields.read(path)
    settings = Settings(path)
    steps = whole_steps(path, fields.count("training.steps", 10_000, at_least=1))
    lr = fields.number("optimizer.lr", float(_ADAMW["lr"]))  # type: ignore[arg-type]
    if settings.optimizer(fields.get("optimizer.name"), ("adamw",)):
        settings.number("weight_decay", fields.number("optimizer.weight_decay", 0.1))
        settings.number("beta1", fields.number("optimizer.beta1", 0.9))
        settings.number("beta2", fields.number("optimizer.beta2", 0.95))
        settings.number("eps", fields.number("optimizer.eps", 1e-8))
    settings.number("clip_norm", fields.number("training.max_norm", 1.0))
    settings.number("seq_len", fields.number("training.seq_len", 2048))
    _batch(settings, fields)
    conflicts = _checkpoint(settings, fields)
    schedule = fields.get("lr_scheduler")
    schedule = dict(schedule) if isinstance(schedule, dict) else {}
    if "lr_min" in schedule:
        schedule["min_lr_factor"] = schedule.pop("lr_min")  # its name in 2025
    if fields.get("training.warmup_steps") is not None:
        schedule["warmup_steps"] = fields.get("training.warmup_steps")  # where it stood until 2024
    return ConfigSchedule(
        _native(Fields(schedule, path), "", lr, steps),
        {},
        settings.stated,
        settings.unread,
        conflicts,
        (
            "A TOML file is for torchtitan before 0.3.0, which reads none; its LR is taken by the rule of 0.3.0.",
        ),
    )
