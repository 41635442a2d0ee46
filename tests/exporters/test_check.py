"""Configurations read back: our own give their stated LR again, others' their trainers' golden numbers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.exporters import EXPORTERS, ExportOptions, check_config, export
from decaylaws.exporters.readers import READERS
from tests.exporters.conftest import BATCH_TOKENS, CLEAN_SOURCES, MAIN_FILES


def test_every_target_can_be_read() -> None:
    assert set(READERS) == set(EXPORTERS) == set(MAIN_FILES)


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt", "wsd-linear", "three-stage"])
@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_what_was_written_reads_back(make_recipe, tmp_path: Path, target: str, form: str, steps: int) -> None:
    recipe = make_recipe(form, steps, sources=CLEAN_SOURCES)
    handover = recipe.handover.model_dump(exclude_none=True) | {"tokens": 500 * BATCH_TOKENS}
    fresh = {"optimizer_state": "fresh"} if form in ("wsd-linear", "three-stage") else {}
    recipe = make_recipe(form, steps, sources=CLEAN_SOURCES, handover=handover | fresh)
    result = export(recipe, target, ExportOptions(tolerance=0.35, on_inexpressible="approximate"))
    result.write(tmp_path)
    check = check_config(recipe, target, tmp_path / MAIN_FILES[target])
    assert len(check.schedule.step_lrs) == steps
    assert np.abs(check.schedule.step_lrs - result.step_lrs).max() < 1e-9 * recipe.step_lrs().max()
    assert check.schedule.shares == pytest.approx({"web": 0.7, "math": 0.3})
    assert check.max_abs_lr_error == pytest.approx(
        result.max_abs_lr_error, abs=1e-9 * recipe.step_lrs().max()
    )
    assert all("LR" in line for line in check.differences)


LR = 6.1351e-5
GOLDEN = {
    # EXPORTS: golden numbers of each trainer's own scheduler, as factors of the peak
    "torchtitan": (
        "t.py",
        "def f():\n    c = base()\n    c.optimizer = default_adamw(lr=1.0)\n    c.training.steps = STEPS\n"
        "    c.lr_scheduler = LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.5, decay_type='sqrt')\n"
        "    return c\nSTEPS = 10\n",
        [0.5, 1, 1, 1, 1, 1, 0.5528, 0.3675, 0.2254, 0.1056],
    ),
    "huggingface": (
        "a.json",
        '{"learning_rate": 1.0, "max_steps": 10, "warmup_steps": 2, "lr_scheduler_type": "warmup_stable_decay", '
        '"lr_scheduler_kwargs": {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.1}}',
        [0.1, 0.55, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28],
    ),
    "megatron": (
        "run.sh",
        "torchrun pretrain_gpt.py \\\n  --lr 1.0 --min-lr 0.1 --global-batch-size 8 --lr-decay-style WSD \\\n"
        "  --train-iters=10 --lr-wsd-decay-style minus_sqrt --lr-wsd-decay-iters 4\n",
        [1, 1, 1, 1, 1, 1, 1, 0.55, 0.3636, 0.2206],
    ),
    # iterations, as its own recipes count; whatever it does not state is the recipe's that it overrides
    "megatron-bridge": (
        "b.yaml",
        "optimizer: {lr: 1.0, min_lr: 0.1}\ntrain: {train_iters: 10, global_batch_size: 8}\n"
        "scheduler: {lr_decay_style: WSD, lr_wsd_decay_style: minus_sqrt, lr_wsd_decay_iters: 4}\n",
        [1, 1, 1, 1, 1, 1, 1, 0.55, 0.3636, 0.2206],
    ),
    # lr_decay_steps left out: the decay runs over train_steps - warmup and ends at 56 % of the peak
    "nanotron": (
        "n.yaml",
        "optimizer: {learning_rate_scheduler: {learning_rate: 1.0, lr_warmup_steps: 4, lr_warmup_style: linear, "
        "lr_decay_style: linear, lr_decay_starting_step: 12, min_decay_lr: 0.0}}\ntokens: {train_steps: 20}\n",
        [0, 0.25, 0.5, 0.75, *[1] * 9, *(1 - k / 16 for k in range(1, 8))],
    ),
    "llm-foundry": (
        "f.yaml",
        "max_duration: 100ba\nglobal_train_batch_size: 256\noptimizer: {lr: 1.0}\n"
        "scheduler: {name: inv_sqrt_with_warmup, t_warmup: 10ba, t_scale: 1ba, t_cooldown: 20ba, "
        "alpha_f_decay: 1.0, alpha_f_cooldown: 0.0}\n",
        [k / 10 for k in range(10)] + [1] * 71 + [1 - k / 20 for k in range(1, 20)],
    ),
    # its counter is a step ahead: WSD(warmup 0, decay 10) of 20
    "olmo-core": (
        "o.py",
        "s = WSD(units=SchedulerUnits.steps, warmup=0, decay=10, decay_fraction=None)\no = AdamWConfig(lr=1.0)\n"
        f"d = Duration.tokens({20 * BATCH_TOKENS})\nx = Data(global_batch_size={BATCH_TOKENS})\n",
        [*[1] * 10, *(1 - k / 10 for k in range(1, 11))],
    ),
    # min_lr_ratio left out is a tenth, not zero
    "levanter": (
        "l.yaml",
        "optimizer: {learning_rate: 1.0, lr_schedule: linear, warmup: 0.0, decay: 5}\n"
        "trainer: {num_train_steps: 10, train_batch_size: 256}\n",
        [1, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28],
    ),
}


@pytest.mark.parametrize("target", sorted(GOLDEN))
def test_configurations_of_others(make_recipe, tmp_path: Path, target: str) -> None:
    name, text, expected = GOLDEN[target]
    (tmp_path / name).write_text(text)
    recipe = make_recipe("linear", len(expected), handover={"lr": LR})
    check = check_config(recipe, target, tmp_path / name)
    assert check.schedule.step_lrs == pytest.approx(expected, abs=5e-5)
    assert not check.agrees


NANOTRON = (
    "optimizer: {learning_rate_scheduler: {learning_rate: 1.0, lr_warmup_style: constant, lr_decay_style: linear, "
    "lr_decay_starting_step: 12, lr_decay_steps: 8, min_decay_lr: 0.0EXTRA}}\n"
    "tokens: {train_steps: 20, sequence_length: 64, micro_batch_size: 256, batch_accumulation_per_replica: 1}\n"
    "checkpoints: {resume_checkpoint_path: /ckptLOAD}\n"
)
ANEW = NANOTRON.replace("LOAD", ", load_lr_scheduler: false")
MEGATRON = "pretrain_gpt.py --lr 1.0 --global-batch-size 8 --lr-decay-style linear --train-iters 10"
FOUNDRY = "max_duration: 10ba\nglobal_train_batch_size: 256\noptimizer: {lr: 1.0}\nscheduler: {name: KIND}\n"
OLMO = GOLDEN["olmo-core"][1].replace(
    "WSD(units=SchedulerUnits.steps, warmup=0, decay=10, decay_fraction=None", "LinearWithWarmup("
)
BENT = {
    # the checkpoint's count of the schedule is taken over unless the file says otherwise
    "on": ("nanotron", NANOTRON.replace("EXTRA", "").replace("LOAD", ""), [1, 1, 1, *(1 - k / 8 for k in range(1, 8))]),
    # without the checkpoint's schedule, nanotron counts its steps from zero too
    "anew": ("nanotron", ANEW.replace("EXTRA", ""), [1] * 13 + [1 - k / 8 for k in range(1, 8)]),
    "share": ("megatron", f"{MEGATRON} --lr-warmup-fraction 0.5", [0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2]),
    "t_max": (
        "llm-foundry",
        FOUNDRY.replace("KIND", "linear_decay_with_warmup, t_warmup: 0ba, alpha_i: 0.5, t_max: 20ba"),
        [0.5 - k / 40 for k in range(10)],
    ),
    "alpha": ("llm-foundry", FOUNDRY.replace("KIND", "constant_with_warmup, t_warmup: 0ba, alpha: 0.5"), [0.5] * 10),
    "longer": (
        "olmo-core",
        OLMO.replace("Warmup(", "Warmup(alpha_f=0.0, warmup=0, t_max=40"),
        [1 - k / 40 for k in range(1, 21)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BENT))
def test_settings_that_bend_a_schedule_are_read(make_recipe, tmp_path: Path, case: str) -> None:
    target, text, expected = BENT[case]
    path = tmp_path / GOLDEN[target][0]
    path.write_text(text)
    behind = {"lr": LR, "checkpoint": "/ckpt", "tokens": 10 * BATCH_TOKENS}
    recipe = make_recipe("linear", len(expected), handover=behind)
    assert check_config(recipe, target, path).schedule.step_lrs == pytest.approx(expected)


WSD_JSON, LEVANTER, TITAN = (GOLDEN[target][1] for target in ("huggingface", "levanter", "torchtitan"))
UNREAD = [
    (
        "huggingface",
        '{"learning_rate": 1, "max_steps": 9, "lr_scheduler_kwargs": {"num_cycles": 2}}',
        "num_cycles",
    ),
    ("huggingface", WSD_JSON.replace('"decay_type"', '"warmup_type": "cosine", "decay_type"'), "warmup_type"),
    ("nanotron", ANEW.replace("EXTRA", ", lr_restarts: 3"), "lr_restarts"),
    ("megatron", f"{MEGATRON} --rampup-batch-size 8 8 1000", "rampup-batch-size"),
    (
        "llm-foundry",
        FOUNDRY.replace("KIND", "cosine_with_warmup, t_warmup: 0ba, scale_warmup: true"),
        "scale_warmup",
    ),
    ("levanter", LEVANTER.replace("decay: 5", "decay: 5, cycle_length: 5"), "cycle_length"),
    ("levanter", LEVANTER.replace("decay: 5", "decay: 5, cycles: 3"), "cycles"),
    ("torchtitan", TITAN.replace("decay_ratio=0.5", "decay_ratio=share()"), "decay_ratio"),
    ("torchtitan", TITAN.replace("decay_ratio=0.5", "**more"), "keywords"),
    ("olmo-core", OLMO.replace("Warmup(", "Warmup(warmup=HALF"), "warmup"),
]


@pytest.mark.parametrize(("target", "text", "setting"), UNREAD)
def test_settings_of_the_lr_that_are_not_read_are_refused(
    make_recipe, tmp_path: Path, target: str, text: str, setting: str
) -> None:
    path = tmp_path / GOLDEN[target][0]
    path.write_text(text)
    with pytest.raises((InvalidValueError, DataError), match=setting):
        check_config(make_recipe("linear", 10), target, path)


SOURCE_CALLS = "x = [HFDataSource(dataset='web', weight=WEB), HFDataSource('math', weight=1)]\n"
UNREAD_SHARES = [
    ("torchtitan", TITAN + SOURCE_CALLS.replace("WEB", "share()"), "weight of HFDataSource"),
    (
        "torchtitan",
        TITAN + SOURCE_CALLS.replace("'math'", "name").replace("WEB", "1"),
        "argument 1 of HFDataSource",
    ),
    ("torchtitan", TITAN + "SOURCES = {'web': ('/data/web', 'much')}\n", "weight of web"),
    ("levanter", LEVANTER + "data: {train_weights: {web: much, math: 1}}\n", "weight of web"),
    ("levanter", LEVANTER + "data: {train_weights: [[0, {web: 1}], {math: 1}]}\n", "train_weights"),
    ("megatron", f"{MEGATRON} --data-path 0.5 /data/web 0.5", "2 weights for 1 paths"),
    ("megatron", f"{MEGATRON} --data-path 0.5 /data/web /data/math 0.5", "weight of 0.5"),
]


@pytest.mark.parametrize(("target", "text", "named"), UNREAD_SHARES)
def test_shares_that_cannot_be_read_are_refused(
    make_recipe, tmp_path, target: str, text: str, named: str
) -> None:
    path = tmp_path / GOLDEN[target][0]
    path.write_text(text)
    with pytest.raises((InvalidValueError, DataError), match=named):
        check_config(make_recipe("linear", 10), target, path)


def test_literal_sources_of_torchtitan_are_read(make_recipe, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(TITAN + SOURCE_CALLS.replace("WEB", "3.0"))
    check = check_config(make_recipe("linear", 10), "torchtitan", tmp_path / "t.py")
    assert check.schedule.shares == {"web": 0.75, "math": 0.25}
    assert "shares of sources, since" not in check.describe()


def test_a_check_says_that_it_compared_no_shares(make_recipe, tmp_path: Path) -> None:
    for blend in ("", "--data-path /data/web /data/math"):  # prefixes alone are weighed by their size
        (tmp_path / "run.sh").write_text(f"{MEGATRON} {blend}")
        check = check_config(make_recipe("linear", 10), "megatron", tmp_path / "run.sh")
        assert "not compared: shares of sources, since the file does not state it" in check.describe()


def test_transformers_agrees_with_what_is_read(make_recipe, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for kind, kwargs in (
        ("linear", {}),
        ("cosine", {}),
        ("constant_with_warmup", {}),
        ("polynomial", {"lr_end": 0.1}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ):
        text = {"learning_rate": 1.0, "max_steps": 20, "warmup_steps": 5, "lr_scheduler_type": kind}
        text["lr_scheduler_kwargs"] = kwargs
        (tmp_path / "a.json").write_text(str(text).replace("'", '"'))
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = transformers.get_scheduler(kind, optimizer, 5, 20, scheduler_specific_kwargs=kwargs)
        theirs = []
        for _ in range(20):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        ours = check_config(make_recipe("linear", 20), "huggingface", tmp_path / "a.json").schedule.step_lrs
        assert ours == pytest.approx(theirs, abs=1e-9), kind


def test_olmo_core_counts_in_its_units(make_recipe, tmp_path: Path) -> None:
    """An enumeration in a Python file is read by the name of its member; a shape that is not read is refused."""
    text = GOLDEN["olmo-core"][1].replace("SchedulerUnits.steps", "SchedulerUnits.tokens")
    text = text.replace("decay=10", f"decay={10 * BATCH_TOKENS}")
    (tmp_path / "o.py").write_text(text)
    read = check_config(make_recipe("linear", 20), "olmo-core", tmp_path / "o.py").schedule
    assert read.step_lrs == pytest.approx(GOLDEN["olmo-core"][2])
    stage = "s = ComposableSchedulerStage(duration=5, start_lr=1.0, end_lr=0.0, shape=Shape.cosine)\n"
    (tmp_path / "o.py").write_text(stage + text)
    with pytest.raises(InvalidValueError, match=r"shape' must be one of linear to be read; got 'cosine'"):
        check_config(make_recipe("linear", 20), "olmo-core", tmp_path / "o.py")


def test_differences_are_named(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe("linear", 1000, sources=CLEAN_SOURCES)
    text = export(recipe, "levanter").files["midtrain_levanter.yaml"]
    assert "num_train_steps: 1000" in text
    changed = (
        text.replace("num_train_steps: 1000", "num_train_steps: 1200")
        .replace("train_batch_size: 256", "train_batch_size: 128")
        .replace("web: 0.7", "web: 0.9")
    )
    (tmp_path / "l.yaml").write_text(changed)
    check = check_config(recipe, "levanter", tmp_path / "l.yaml")
    page = check.describe()
    for part in (
        "it trains 1,200 steps, the recipe 1,000",
        "its batch has 128 sequences, the recipe's 256",
        "its share of 'web' is 75.00%, the recipe's 70.00%",
    ):
        assert part in page
    assert page.count("|") == 16  # two drawings of eight rows


def test_command_line(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe("linear", 1000, sources=CLEAN_SOURCES)
    path = str(recipe.save(tmp_path / "recipe.yaml"))
    runner = CliRunner()
    written = runner.invoke(app, ["export", path, "--target", "levanter", "--out", str(tmp_path / "out")])
    assert written.exit_code == 0
    assert "largest LR error" in written.output
    assert "checkpoint of run" not in written.output  # the recipe names it: nothing is to be done
    assert "takes the LR at the start of each step" not in written.output
    notes = (tmp_path / "out" / "levanter" / "NOTES.md").read_text(encoding="utf-8")
    assert "takes the LR at the start of each step" in notes
    config = tmp_path / "out" / "levanter" / "midtrain_levanter.yaml"
    command = ["export", path, "--target", "levanter", "--check", str(config)]
    assert runner.invoke(app, command).exit_code == 0
    config.write_text(config.read_text().replace("lr_schedule: linear", "lr_schedule: cosine"))
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert "differs: at step" in result.output
    both = runner.invoke(app, ["export", path, "--check", str(config)])
    assert isinstance(both.exception, InvalidValueError)
    # everything that can express the recipe, approximations included
    rest = runner.invoke(app, ["export", path, "--out", str(tmp_path / "all"), "--approximate"])
    assert rest.exit_code == 0
    assert sorted(folder.name for folder in (tmp_path / "all").iterdir()) == sorted(EXPORTERS)


@pytest.mark.parametrize("target", sorted(READERS))
@pytest.mark.parametrize(
    "content", ["", "[]", "{", "a: [", "x = (", "\x00", "import os; os.mkdir('exploded')\n"]
)
def test_files_that_say_nothing(make_recipe, tmp_path: Path, monkeypatch, target: str, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / MAIN_FILES[target]
    path.write_text(content)
    with pytest.raises((DataError, InvalidValueError)):
        check_config(make_recipe(), target, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("target", sorted(READERS))
@settings(max_examples=40)
@given(
    place=st.integers(0, 10**6),
    junk=st.text(max_size=6) | st.sampled_from(["1e999", "-1", "nan", "9" * 400, "[]"]),
)
def test_damaged_configurations(target: str, place: int, junk: str, tmp_path_factory, request) -> None:
    recipe, text = _sound(target)
    at = place % len(text)
    # a value is hit as a whole: digits to the right of the place make room
    end = at
    while end < len(text) and (text[end].isalnum() or text[end] in ".-"):
        end += 1
    path = tmp_path_factory.mktemp("damaged") / MAIN_FILES[target]
    path.write_text(text[:at] + junk + text[end:], encoding="utf-8", errors="replace")
    with contextlib.suppress(DecaylawsError):
        check = check_config(recipe, target, path)
        assert np.isfinite(check.schedule.step_lrs).all()
        check.describe()


_KEPT: dict = {}


def _sound(target: str):
    from tests.exporters.conftest import build_recipe

    if target not in _KEPT:
        recipe = build_recipe("linear", 200, sources=CLEAN_SOURCES)
        _KEPT[target] = recipe, export(recipe, target).files[MAIN_FILES[target]]
    return _KEPT[target]
