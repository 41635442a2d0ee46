"""Forms in which people write configurations: what is read of each, and what is not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.exporters import check_config
from tests.exporters.conftest import BATCH_TOKENS, PEAK, build_recipe

SOURCES = {"web": {"path": "/data/web"}, "math": {"path": "/data/math"}, "unused": {}}
LINEAR = PEAK * (1 - np.arange(1000) / 1000)


@pytest.fixture(scope="module")
def recipe():
    return build_recipe("linear", 1000, sources=SOURCES)


@pytest.fixture
def read(recipe, tmp_path: Path):
    """Reads the text of a file of a target."""

    def check(target: str, name: str, text: str, **others: str):
        for other, content in others.items():
            (tmp_path / f"{other}.yaml").write_text(content)
        path = tmp_path / name.partition(":")[0]
        path.write_text(textwrap.dedent(text))
        return check_config(recipe, target, path.with_name(name))

    return check


TITAN = """
    STEPS = 2 * 500
    def adamw(rate, **more):
        return default_adamw(lr=rate, weight_decay=0.1)
    def small():
        return Trainer.Config(
            optimizer=adamw(6.1351e-5),
            lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0, decay_type="linear"),
            training=TrainingConfig(steps=STEPS, seq_len=2**6, global_batch_size=int(2.56e2), max_norm=1.0),
            checkpoint=CheckpointManager.Config(
                enable=True, initial_load_path="/ckpt/step928646", initial_load_model_only=False
            ),
        )
    def longer():
        config = small()
        config.training.steps = 2 * STEPS
        return config
    def branching():
        config = small()
        if torch.cuda.is_available():
            config.training.steps = 10
        return config
    def elsewhere():
        config = base_config()
        config.training.seq_len = 64
        return config
"""


def test_torchtitan_by_dataclasses_and_functions(read) -> None:
    check = read("torchtitan", "registry.py:small", TITAN)
    assert check.agrees, check.describe()
    assert check.schedule.step_lrs == pytest.approx(LINEAR)
    assert len(read("torchtitan", "registry.py:longer", TITAN).schedule.step_lrs) == 2000
    for name, reason in {
        "branching": "training.steps as 'config.training.steps'",
        "elsewhere": r"sets no training.steps; what base_config\(...\) sets stands in another file",
        "nothing": "no function 'nothing'",
    }.items():
        with pytest.raises(DataError, match=reason):
            read("torchtitan", f"registry.py:{name}", TITAN)
    with pytest.raises(
        DataError, match=r"holds \d configurations. Name one as registry.py:NAME \(small, longer"
    ):
        read("torchtitan", "registry.py", TITAN)


def test_torchtitans_toml(read) -> None:
    text = """
        [optimizer]
        name = "AdamW"
        lr = 6.1351e-5
        [lr_scheduler]
        warmup_steps = 0
        [training]
        steps = 1_000
        seq_len = 64
        local_batch_size = 8
        [checkpoint]
        enable = true
        initial_load_path = "/ckpt/step928646"
        initial_load_model_only = false
    """
    check = read("torchtitan", "t.toml", text)
    assert check.agrees, check.describe()
    assert "not compared: batch, since it depends on the ranks: 32 ranks of 8 sequences" in check.describe()
    assert "torchtitan before 0.3.0" in check.describe()
    assert not read("torchtitan", "t.toml", text.replace('"AdamW"', '"Muon"')).agrees
    assert not read(
        "torchtitan", "t.toml", text.replace("local_batch_size = 8", "local_batch_size = 7")
    ).agrees


OLMO = f"""
    DEFAULT_SEQUENCE_LENGTH = 64
    GLOBAL_BATCH_SIZE = {BATCH_TOKENS // 2**10} * 2**10
    MAX_TOKENS = int(1.6384e7)
    LR = 6.1351e-05
    def build_config(opts, overrides):
        sequence_length = opts.sequence_length or DEFAULT_SEQUENCE_LENGTH
        return ExperimentConfig(
            dataset=Data.Config(sequence_length=sequence_length),
            data_loader=NumpyDataLoaderConfig(global_batch_size=GLOBAL_BATCH_SIZE),
            train_module=TransformerTrainModuleConfig(
                max_grad_norm=1.0,
                optim=SkipStepAdamWConfig(lr=LR, weight_decay=0.1, betas=(0.9, 0.95)),
                scheduler=LinearWithWarmup(warmup=0, alpha_f=0.0),
            ),
            trainer=TrainerConfig(
                load_path="/ckpt/step928646/", load_trainer_state=False, load_optim_state=True,
                max_duration=Duration.tokens(MAX_TOKENS),
            ).with_callback("wandb", WandB()),
        ).merge(overrides)
"""


def test_a_script_of_olmo_core(read) -> None:
    check = read("olmo-core", "anneal.py", OLMO)
    assert check.agrees, check.describe()
    assert check.schedule.stated["batch_tokens"] == BATCH_TOKENS
    assert check.schedule.step_lrs == pytest.approx(PEAK * (1 - np.arange(1, 1001) / 1000))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("GLOBAL_BATCH_SIZE = 16 * 2**10", "GLOBAL_BATCH_SIZE = 2**21", "its batch has 2,097,152 tokens"),
        ("Duration.tokens(MAX_TOKENS)", "Duration.steps(500)", "it trains 500 steps"),
        ("load_trainer_state=False", "load_trainer_state=None", "load_trainer_state is not false"),
        ("load_optim_state=True", "load_optim_state=False", "it starts the optimiser afresh"),
        (
            "load_optim_state=True,",
            "load_optim_state=True, hard_stop=Duration.steps(5),",
            "hard_stop ends the run",
        ),
        ("SkipStepAdamWConfig(lr=LR", "LionConfig(lr=LR", "its optimiser is LionConfig"),
        ("opts.sequence_length or DEFAULT_SEQUENCE_LENGTH", "4096", "its sequence length is 4,096 tokens"),
    ],
)
def test_what_differs_in_a_script_of_olmo_core(read, old: str, new: str, told: str) -> None:
    assert old in OLMO
    assert told in read("olmo-core", "anneal.py", OLMO.replace(old, new)).describe()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("GLOBAL_BATCH_SIZE = 16 * 2**10", "GLOBAL_BATCH_SIZE = opts.batch", "global_batch_size, by which"),
        ("GLOBAL_BATCH_SIZE = 16 * 2**10", "GLOBAL_BATCH_SIZE = 9**9**9**9", "global_batch_size, by which"),
        ("GLOBAL_BATCH_SIZE = 16 * 2**10", "GLOBAL_BATCH_SIZE = 1e-320", "at least one token"),
        ("int(1.6384e7)", "int(1e300)", "1 to 5,000,000 can be compared"),
        (
            "LR = 6.1351e-05",
            "LR = lr_of(checkpoint)",
            r"lr as 'lr_of\(...\)'. A configuration is parsed and never run",
        ),
        ("LR = 6.1351e-05", "LR = 1e-4\n    LR = 2e-4", "lr as 'LR'"),
        ("Duration.tokens(MAX_TOKENS)", "Duration.epochs(1)", "its length follows from the size of the data"),
        ("max_duration=Duration.tokens(MAX_TOKENS),", "", "sets no max_duration"),
        ("warmup=0, alpha_f", "warmup=0, **more, alpha_f", "its keywords of LinearWithWarmup"),
        (
            "scheduler=LinearWithWarmup(",
            "other=WSD(warmup=0), scheduler=LinearWithWarmup(",
            "makes several schedulers",
        ),
        (
            "max_duration=Duration",
            "more=B(max_duration=Duration.steps(3)), max_duration=Duration",
            "several values",
        ),
        ("LinearWithWarmup(warmup=0, alpha_f=0.0)", "WSDS(period_lengths=[1])", "uses WSDS, a scheduler"),
    ],
)
def test_what_decides_the_lr_must_be_readable(read, old: str, new: str, reason: str) -> None:
    assert old in OLMO
    with pytest.raises(DataError, match=reason):
        read("olmo-core", "anneal.py", OLMO.replace(old, new))


COOKBOOK = """
    max_tokens: 16_384_000
    global_batch_size: 16384
    sequence_length: 64
    scheduler_type: linear
    warmup_steps: 0
    annealing: {enabled: true, initial_lr: 6.1351e-5}
    load_path: /ckpt/step928646
    load_state: false
    dataset:
      sources:
        - {name: web, target_ratio: 0.7, paths: [/data/web]}
        - {name: math, target_ratio: 0.3, paths: [/data/math]}
"""


def test_olmo_cookbook(read) -> None:
    check = read("olmo-core", "anneal.yaml", COOKBOOK)
    assert check.differences == ("its weight decay is 0.033, the recipe's 0.1.",)
    assert check.schedule.shares == pytest.approx({"web": 0.7, "math": 0.3})
    with pytest.raises(
        DataError, match=r"states no annealing.initial_lr; its LR would follow from the checkpoint"
    ):
        read("olmo-core", "anneal.yaml", COOKBOOK.replace(", initial_lr: 6.1351e-5", ""))


FLAGS = (
    "--lr 6.1351e-5 --min-lr 0 --lr-decay-style linear --train-iters 1000 --global-batch-size 256 --seq-length 64 "
    "--weight-decay 0.1 --adam-beta2 0.95 --finetune --load /ckpt/step928646 --override-opt_param-scheduler"
)
SHELL = r"""
    #!/bin/bash
    NODES=${NODES:-4}
    GPUS=8
    SEQ_LENGTH=64  # it's short
    GLOBAL_BATCH_SIZE=$(( $NODES * GPUS * 8 ))
    export LR="6.1351e-5"
    DATA="0.7 /data/web \
          0.3 /data/math"
    TRAINING_ARGS=(
        --lr $LR
        --min-lr 0
        --lr-decay-style linear
        --train-iters 1000
        --global-batch-size ${GLOBAL_BATCH_SIZE}
        --seq-length $SEQ_LENGTH
        --weight-decay 0.1
        --adam-beta2 0.95)
    LOAD="--finetune --load /ckpt/step928646 --override-opt_param-scheduler"
    if [ "$FP8" == "1" ]; then
        TRAINING_ARGS+=("--fp8-format hybrid")
    fi
    torchrun pretrain_gpt.py ${TRAINING_ARGS[@]} $LOAD --data-path $DATA
"""


def test_variables_of_a_shell_script(read) -> None:
    check = read("megatron", "run.sh", SHELL)
    assert len(check.differences) == 1, check.describe()
    assert "it starts the optimiser afresh" in check.differences[0]  # --finetune
    assert check.schedule.shares == pytest.approx({"web": 0.7, "math": 0.3})
    assert check.schedule.stated["batch_sequences"] == 256


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('export LR="6.1351e-5"', "LR=$1", r"lr as '\$1'"),
        ('export LR="6.1351e-5"', "LR=$(cat lr.txt)", r"lr as '\$LR'"),
        ('export LR="6.1351e-5"', "for LR in 1e-4 2e-4; do :; done", r"lr as '\$LR'"),
        ('export LR="6.1351e-5"', "LR=1e-4\n    if [ $1 ]; then\n    LR=2e-4\n    fi", r"lr as '\$LR'"),
        ("--fp8-format hybrid", "--lr 1e-3", r"lr as '6.1351e-5 or 1e-3'"),
        ("    --train-iters 1000\n", "", "states no train-iters"),
        ("NODES=${NODES:-4}", "NODES=0", "from 1 to"),
        ("# it's short", "it's short", "cannot be split into flags"),
    ],
)
def test_what_only_the_shell_knows_is_not_read(read, old: str, new: str, reason: str) -> None:
    assert old in SHELL
    text = SHELL.replace(old, new).replace(
        "--train-iters 1000", "--train-samples 256000" if "NODES=0" in new else "--train-iters 1000"
    )
    with pytest.raises(DecaylawsError, match=reason):
        read("megatron", "run.sh", text)


def test_megatrons_yaml(read) -> None:
    pairs = [part.split(" ", 1) for part in FLAGS.removeprefix("--").split(" --")]
    lines = [f"  --{name}: {value[0] if value else 'true'}" for name, *value in pairs]
    as_flags = read("megatron", "run.args", FLAGS)
    text = "MODEL_ARGS:\n" + "\n".join(lines) + "\n  --data-path: ${DATA_BLEND}\n"
    as_yaml = read("megatron", "model_config.yaml", text)
    assert as_yaml.schedule.stated == as_flags.schedule.stated
    assert as_yaml.schedule.step_lrs == pytest.approx(as_flags.schedule.step_lrs)
    assert "not compared: shares of sources, since it stands as '${DATA_BLEND}'" in as_yaml.describe()


LEVANTER = """
    data: !include sources.yaml
    trainer: {num_train_steps: 1000, train_batch_size: 256, initialize_from: /ckpt/step928646}
    train_seq_len: 64
    optimizer: {learning_rate: 6.1351e-5, lr_schedule: linear, warmup: 0, min_lr_ratio: 0}
"""


def test_levanters_include(read, tmp_path: Path) -> None:
    check = read("levanter", "l.yaml", LEVANTER, sources="train_weights: {web: 7, math: 3}")
    assert check.agrees, check.describe()
    assert check.schedule.shares == pytest.approx({"web": 0.7, "math": 0.3})
    with pytest.raises(DataError, match="which is not a YAML file in or below"):
        read("levanter", "l.yaml", LEVANTER.replace("sources.yaml", "../sources.yaml"))
    with pytest.raises(DataError, match="Cannot read"):
        read("levanter", "l.yaml", LEVANTER.replace("sources.yaml", "missing.yaml"))
    with pytest.raises(DataError, match="include each other without end"):
        read("levanter", "l.yaml", LEVANTER, sources="x: !include sources.yaml")
    with pytest.raises(DataError, match="not valid YAML"):
        read("levanter", "l.yaml", "x: !!python/object/apply:os.system [ls]")


FOUNDRY = """
    variables: {max_seq_len: 64, batch: 256, lr: 6.1351e-5, folder: /ckpt}
    max_seq_len: ${variables.max_seq_len}
    global_train_batch_size: ${variables.batch}
    max_duration: 1000ba
    scheduler: {name: linear_decay_with_warmup, t_warmup: 0ba}
    optimizer: {name: adamw, lr: "${variables.lr}", betas: [0.9, 0.95], weight_decay: 0.1}
    load_path: ${variables.folder}/step928646
    load_ignore_keys: [state/schedulers/*, state/timestamp/*]
    save_folder: ${oc.env:HOME}
"""


def test_interpolation_of_llm_foundry(read) -> None:
    check = read("llm-foundry", "f.yaml", FOUNDRY)
    assert check.agrees, check.describe()
    assert check.schedule.step_lrs == pytest.approx(LINEAR)
    missing = read("llm-foundry", "f.yaml", FOUNDRY.replace("folder: /ckpt", "other: 1"))
    assert "start checkpoint, since it stands as '${variables.folder}/step928646'" in missing.describe()
    with pytest.raises(InvalidValueError, match=r"'f.yaml: optimizer.lr'"):
        read("llm-foundry", "f.yaml", FOUNDRY.replace("lr: 6.1351e-5, folder", "folder"))
    with pytest.raises(DataError, match="refers to itself"):
        read("llm-foundry", "f.yaml", FOUNDRY.replace("batch: 256", "batch: '${variables.batch}'"))
    doubled = "\n".join(f"a{n}: '${{a{n + 1}}}${{a{n + 1}}}'" for n in range(60)) + "\na60: x\n"
    with pytest.raises(DataError, match="until there are too many"):
        read("llm-foundry", "f.yaml", doubled)


def test_scheduler_settings_as_json_text(read) -> None:
    """transformers takes them so: a power of 2 bends the path by 15.8 % of the peak at most."""
    text = (
        '{"learning_rate": 6.1351e-5, "max_steps": 1000, "lr_scheduler_type": "polynomial", '
        '"lr_scheduler_kwargs": "{\\"power\\": 2.0, \\"lr_end\\": 0.0}", "adam_beta2": 0.95, "weight_decay": 0.1}'
    )
    check = read("huggingface", "a.json", text)
    expected = PEAK * (1 - np.arange(1000) / 1000) ** 2
    assert check.schedule.step_lrs == pytest.approx(expected)
    assert check.max_abs_lr_error == pytest.approx(0.25 * PEAK, rel=1e-2)
    assert not check.agrees
    for bad in ('"{\\"power\\": "', '"[1]"', "3"):
        with pytest.raises(DecaylawsError, match="lr_scheduler_kwargs"):
            read("huggingface", "a.json", text.replace('"{\\"power\\": 2.0, \\"lr_end\\": 0.0}"', bad))


def test_lengths_that_only_the_data_know(read) -> None:
    for more in ('"num_train_epochs": 3', '"max_steps": -1', '"max_steps": 0', '"max_steps": 1e-320'):
        with pytest.raises(DecaylawsError, match="max_steps"):
            read("huggingface", "a.json", '{"learning_rate": 1e-4, ' + more + "}")


def test_a_batch_that_no_number_of_ranks_makes_the_recipes(read) -> None:
    text = '{"learning_rate": 6e-5, "max_steps": 9, "per_device_train_batch_size": 7, "gradient_accumulation_steps": 3}'
    assert (
        "a rank adds 21 sequences to its batch: no number of ranks makes the recipe's 256"
        in read("huggingface", "a.json", text).describe()
    )


def test_data_stages_of_nanotron(read) -> None:
    """Each stage counts for its own steps, and a mixture that changes is said."""
    stage = (
        "{{name: {0}, start_training_step: {1}, data: {{dataset: {{dataset_folder: [/data/web, /data/math], "
        + ("dataset_weights: [{2}, {3}]}}}}}}")
    )
    stages = [
        stage.format("a", 1, 0.9, 0.1),
        stage.format("b", 501, 0.5, 0.5),
        stage.format("c", 2001, 0.0, 1.0),
    ]
    text = (
        "optimizer: {learning_rate_scheduler: {learning_rate: 6.1351e-05, lr_warmup_style: constant, "
        "lr_decay_style: linear, lr_decay_steps: 1000, min_decay_lr: 0.0}}\n"
        f"tokens: {{train_steps: 1000}}\ndata_stages: [{', '.join(stages)}]\n"
    )
    check = read("nanotron", "n.yaml", text)
    assert check.schedule.shares == pytest.approx({"web": 0.7, "math": 0.3})
    assert "its mixture changes over 2 data stages" in check.describe()
    assert not check.agrees


def test_no_python_is_run(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "import os\nos.mkdir('exploded')\nLR = [os.mkdir('too') for _ in range(2)][0]\n" + textwrap.dedent(
        OLMO
    )
    with pytest.raises(DataError, match="lr"):
        read("olmo-core", "anneal.py", text)
    assert [path.name for path in tmp_path.iterdir()] == ["anneal.py"]
    calls = (
        "\n".join(f"def f{n}(): return max(f{n + 1}(), f{n + 1}())" for n in range(38))
        + "\ndef f38(): return 1\n"
    )
    text = calls + textwrap.dedent(TITAN).replace("steps=STEPS", "steps=f0()")
    with pytest.raises(DecaylawsError, match=r"training.steps"):
        read("torchtitan", "registry.py:small", text)  # 2**38 calls are not followed
