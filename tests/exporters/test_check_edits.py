"""One setting of an export is edited at a time: ``--check`` must never say that it agrees."""

from __future__ import annotations

from pathlib import Path

import pytest

from decaylaws.errors import DecaylawsError
from decaylaws.exporters import EXPORTERS, check_config, export
from tests.exporters.conftest import BATCH_TOKENS, MAIN_FILES, build_recipe

# by target: what stands in the export and what replaces it, in the main file unless another is named
EDITS: dict[str, list[tuple[str, ...]]] = {
    "torchtitan": [
        ('"lr": 6.1351e-05', '"lr": 6.3e-05'),
        ('"lr": 6.1351e-05', '"lr": lr()'),
        ('"betas": (0.9, 0.95)', '"betas": (0.9, 0.99)'),
        ('"betas": (0.9, 0.95)', '"betas": (0.95, 0.95)'),
        ('"eps": 1e-08', '"eps": 1e-05'),
        ('_adamw(r".*", 0.1)', '_adamw(r".*", 0.01)'),
        ('_adamw(r".*", 0.1)', '_adamw(r".*", 0)'),
        ("warmup_steps=0", "warmup_steps=100"),
        ("decay_ratio=1.0", "decay_ratio=0.5"),
        ("decay_type='linear'", "decay_type='cosine'"),
        ("min_lr_factor=0.0", "min_lr_factor=0.1"),
        ("training.steps = 1000", "training.steps = 2 * 1000"),
        ("training.seq_len = 64", "training.seq_len = 128"),
        ("training.global_batch_size = 256", "training.global_batch_size = 2**7"),
        ("training.max_norm = 1.0", "training.max_norm = 0.5"),
        ("'math': ('/data/math', 0.3)", "'math': ('/data/math', 0.5)"),
        ("'/ckpt/step928646'", "'/ckpt/step900000'"),
        ("initial_load_path=_absolute('/ckpt/step928646'),", ""),
        ("initial_load_model_only=False", "initial_load_model_only=True"),
        ("enable=True", "enable=False"),
    ],
    "huggingface": [
        ('"max_steps": 1000', '"max_steps": 1100'),
        ('"max_steps": 1000', '"max_steps": 0'),
        ('"learning_rate": 6.1351e-05', '"learning_rate": 5e-5'),
        ('"adam_beta1": 0.9', '"adam_beta1": 0.8'),
        ('"adam_beta2": 0.95,', ""),
        ('"adam_epsilon": 1e-08', '"adam_epsilon": 1e-6'),
        ('"weight_decay": 0.1', '"weight_decay": 0.0'),
        ('"max_grad_norm": 1.0', '"max_grad_norm": 0.3'),
        ('"gradient_accumulation_steps": 256', '"gradient_accumulation_steps": 21'),
        ('"per_device_train_batch_size": 1', '"per_device_train_batch_size": 3'),
        ('"warmup_steps": 0', '"warmup_steps": 0.1'),
        ('"warmup_steps": 0', '"warmup_ratio": 0.1'),
        ('"decay_type": "linear"', '"decay_type": "1-sqrt"'),
        ('"num_decay_steps": 1000', '"num_decay_steps": 900'),
        ('"num_stable_steps": 0', '"num_stable_steps": 100'),
        ('"min_lr_ratio": 0.0', '"min_lr_ratio": 0.2'),
        ("SEQ_LEN = 64", "SEQ_LEN = 32", "train.py"),
        ("MODEL = '/ckpt/step928646'", "MODEL = 'start'", "train.py"),
        ("OPTIMIZER_STATE = '/ckpt/step928646/optimizer.pt'", "OPTIMIZER_STATE = None", "train.py"),
        ("'web': ('/data/web', 0.7)", "'web': ('/data/web', 0.8)", "train.py"),
    ],
    "olmo-core": [
        ("TOKENS = 16384000", "TOKENS = 2 * 16384000"),
        ("BATCH_TOKENS = 16384", "BATCH_TOKENS = 2**15"),
        ("BATCH_TOKENS = 16384", "BATCH_TOKENS = 1e-320"),
        ("BATCH_TOKENS = 16384", "BATCH_TOKENS = tokens()"),
        ("SEQUENCE_LENGTH = 64", "SEQUENCE_LENGTH = 4096"),
        ("units=SchedulerUnits.tokens", "units=SchedulerUnits.steps"),
        ("Duration.tokens(TOKENS)", "Duration.steps(TOKENS)"),
        ("Duration.tokens(TOKENS)", "Duration.epochs(1)"),
        ("duration=16384000", "duration=8192000"),
        ("start_lr=6.138167550000001e-05", "start_lr=5e-05"),
        ("end_lr=3.06755e-08", "end_lr=6e-06"),
        ("betas=(0.9, 0.95)", "betas=(0.9, 0.999)"),
        ("eps=1e-08", "eps=1e-05"),
        ("weight_decay=0.1,", "weight_decay=0.033,"),
        ("weight_decay=0.1,\n", "\n"),
        ('"load_path": \'/ckpt/step928646\'', '"load_path": \'/ckpt/step1\''),
        ('"load_trainer_state": False', '"load_trainer_state": True'),
        ('"load_optim_state": True', '"load_optim_state": False'),
        ("target_ratio: 0.3", "target_ratio: 0.6", "source_mixture.yaml"),
    ],
    "megatron": [
        ("--lr 6.1351e-05", "--lr 6.1351e-04"),
        ("--lr 6.1351e-05", "LR=5e-5\n--lr $LR"),
        ("--min-lr 0.0", "--min-lr 6e-6"),
        ("--lr-warmup-samples 0", "--lr-warmup-samples 200000"),
        ("--lr-decay-samples 384000", "--lr-decay-samples 300000"),
        ("--lr-wsd-decay-style linear", "--lr-wsd-decay-style minus_sqrt"),
        ("--lr-wsd-decay-style linear", ""),
        ("--lr-wsd-decay-samples 256000", "--lr-wsd-decay-samples 128000"),
        ("--train-samples 384000", "--train-iters 384000"),
        ("--train-samples 384000", "--train-samples 360000"),
        ("--global-batch-size 256", "--global-batch-size 512"),
        ("--seq-length 64", "--seq-length 128"),
        ("--adam-beta1 0.9", "--adam-beta1 0.8"),
        ("--adam-beta2 0.95", ""),
        ("--adam-eps 1e-08", "--adam-eps 1e-5"),
        ("--weight-decay 0.1", ""),
        ("--clip-grad 1.0", "--clip-grad 0.0"),
        ("--optimizer adam", "--optimizer sgd"),
        ("--load /ckpt/step928646", "--load /ckpt/step1"),
        ("--load /ckpt/step928646", "--load outputs"),
        ("--load /ckpt/step928646", ""),
        ("--no-load-rng", "--finetune"),
        ("--no-load-rng", "--no-load-optim"),
        ("--override-opt_param-scheduler", ""),
        ("--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"),
        ("--data-path 0.3", "--data-path 0.4"),
        ("--split 99,1,0", "--exit-interval 500"),
        ("--split 99,1,0", "if [ $1 = long ]; then\n--train-samples 800000\nfi"),
    ],
    "megatron-bridge": [
        ("lr: 6.1351e-05", "lr: 6.1351e-04"),
        ("lr: 6.1351e-05", "lr: ${oc.env:LR}"),
        ("min_lr: 0.0", "min_lr: 6.0e-06"),
        ("lr_warmup_samples: 0", "lr_warmup_samples: 200000"),
        ("lr_decay_samples: 384000", "lr_decay_samples: 300000"),
        ("lr_wsd_decay_style: linear", "lr_wsd_decay_style: minus_sqrt"),
        ("lr_wsd_decay_style: linear", "lr_wsd_decay_style: exponential"),
        ("lr_decay_style: WSD", "lr_decay_style: null"),
        ("lr_wsd_decay_samples: 256000", "lr_wsd_decay_samples: 128000"),
        ("train_samples: 384000", "train_samples: 360000"),
        ("global_batch_size: 256", "global_batch_size: 512"),
        ("seq_length: 64", "seq_length: 128"),
        ("adam_beta1: 0.9", "adam_beta1: 0.8"),
        ("adam_beta2: 0.95", "adam_beta2: 0.999"),
        ("adam_eps: 1.0e-08", "adam_eps: 1.0e-05"),
        ("end_weight_decay: 0.1", "end_weight_decay: 0.033"),
        ("start_weight_decay: 0.1", "start_weight_decay: 0.0"),
        ("clip_grad: 1.0", "clip_grad: 0.5"),
        ("optimizer: adam", "optimizer: dist_muon"),
        ("load: /ckpt/step928646", "load: /ckpt/step1"),
        ("load: /ckpt/step928646", "load: outputs"),
        ("load: /ckpt/step928646", "load: null"),
        ("finetune: false", "finetune: true"),
        ("load_optim: true", "load_optim: false"),
        ("override_opt_param_scheduler: true", "override_opt_param_scheduler: false"),
        ('"0.3"', '"0.4"', "blend.json"),
    ],
    "nanotron": [
        ("learning_rate: 6.1351e-05", "learning_rate: 7.0e-05"),
        ("learning_rate: 6.1351e-05", "learning_rate: 6e-05"),
        ("lr_warmup_style: constant", "lr_warmup_style: linear"),
        ("lr_warmup_steps: 0", "lr_warmup_steps: 100\n    lr_warmup_style: linear #"),
        ("lr_decay_style: linear", "lr_decay_style: cosine"),
        ("lr_decay_starting_step: 0", "lr_decay_starting_step: 100"),
        ("lr_decay_steps: 1000", "lr_decay_steps: 800"),
        ("min_decay_lr: 0.0", "min_decay_lr: 6.0e-06"),
        ("adam_beta1: 0.9", "adam_beta1: 0.85"),
        ("adam_beta2: 0.95", "adam_beta2: 0.999"),
        ("adam_eps: 1.0e-08", "adam_eps: 1e-08"),
        ("weight_decay: 0.1", "weight_decay: 0.01"),
        ("clip_grad: 1.0", "clip_grad: 2.0"),
        ("          - 0.3", "          - 0.4"),
        ("resume_checkpoint_path: outputs/start", "resume_checkpoint_path: /ckpt/other"),
        ("resume_checkpoint_path: outputs/start", "resume_checkpoint_path: null"),
        ("load_lr_scheduler: false", "load_lr_scheduler: true"),
        ("load_optimizer: true", "load_optimizer: false"),
        ("train_steps: 1000", "train_steps: 1500"),
        ("sequence_length: 64", "sequence_length: 2048"),
        ("micro_batch_size: 1", "micro_batch_size: 4"),
        ("batch_accumulation_per_replica: 256", "batch_accumulation_per_replica: 128"),
        ("dp: 1", "dp: 8"),
    ],
    "llm-foundry": [
        ("max_duration: 16384000tok", "max_duration: 16384000ba"),
        ("max_duration: 16384000tok", "max_duration: 1ep"),
        ("max_duration: 16384000tok", "max_duration: 17384000tok"),
        ("max_seq_len: 64\nglobal", "max_seq_len: 128\nglobal"),
        ("    max_seq_len: 64\n    shuffle", "    max_seq_len: 128\n    shuffle"),
        ("global_train_batch_size: 256", "global_train_batch_size: 512"),
        ("t_warmup: 0tok", "t_warmup: 100ba"),
        ("t_cooldown: 16384000tok", "t_cooldown: 500ba"),
        ("alpha_f_cooldown: 0.0", "alpha_f_cooldown: 0.1"),
        ("lr: 6.1351e-05", "lr: 1.0e-4"),
        ("    - 0.9\n", "    - 0.8\n"),
        ("    - 0.95", "    - 0.99"),
        ("eps: 1.0e-08", "eps: 1.0e-06"),
        ("weight_decay: 6.135", "weight_decay: 7.135"),
        ("clipping_threshold: 1.0", "clipping_threshold: 0.5"),
        ("shuffle: true", "shuffle: false"),
        ("proportion: 0.3", "proportion: 0.9"),
        ("load_path: /ckpt/step928646", "load_path: /ckpt/x"),
        ("load_path: /ckpt/step928646", "load_path: null"),
        ("load_weights_only: false", "load_weights_only: true"),
        ("  - state/schedulers/*\n", ""),
        ("  - state/timestamp/*\n", ""),
    ],
    "levanter": [
        ("learning_rate: 6.1351e-05", "learning_rate: 6.0e-4"),
        ("beta1: 0.9", "beta1: 0.8"),
        ("beta2: 0.95", "beta2: 0.98"),
        ("epsilon: 1.0e-08", "epsilon: 1.0e-05"),
        ("weight_decay: 0.1", "weight_decay: 0.0"),
        ("max_grad_norm: 1.0", "max_grad_norm: 4.0"),
        ("type: adam", "type: muon"),
        ("lr_schedule: linear", "lr_schedule: cosine"),
        ("decay: 1000", "decay: 300"),
        ("min_lr_ratio: 0.0\n", "\n"),
        ("rewarmup: 0.0", "rewarmup: 0.1"),
        ("    - 500", "    - 400"),
        ("    - 1500", "    - 1400"),
        ("num_train_steps: 1500", "num_train_steps: 1000"),
        ("train_batch_size: 256", "train_batch_size: 1024"),
        ("train_seq_len: 64", "train_seq_len: 4096"),
        ("math: 0.3", "math: 0.2"),
        ("initialize_from: /ckpt/step928646", "initialize_from: /ckpt/other"),
        ("initialize_from: /ckpt/step928646\n", "\n"),
        ("load_checkpoint: false", "load_checkpoint: true"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe():
    sources = {"web": {"path": "/data/web"}, "math": {"path": "/data/math"}, "unused": {}}
    handover = {"lr": 6.1351e-5, "checkpoint": "/ckpt/step928646", "tokens": 500 * BATCH_TOKENS}
    return build_recipe("linear", 1000, sources=sources, handover=handover)


def test_there_are_a_hundred_edits_of_all_targets() -> None:
    assert set(EDITS) == set(EXPORTERS)
    assert sum(map(len, EDITS.values())) >= 100


@pytest.mark.parametrize("target", sorted(EDITS))
def test_no_edit_goes_unnoticed(recipe, tmp_path: Path, target: str) -> None:
    result = export(recipe, target)
    result.write(tmp_path)
    check = check_config(recipe, target, tmp_path / MAIN_FILES[target])
    assert check.agrees, check.describe()
    unnoticed = []
    for old, new, *other in EDITS[target]:
        path = tmp_path / (other[0] if other else MAIN_FILES[target])
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {path.name}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        try:
            edited = check_config(recipe, target, tmp_path / MAIN_FILES[target])
        except DecaylawsError:
            pass  # it cannot be read: nobody is told that it agrees
        else:
            if edited.agrees or "differs: " not in edited.describe():
                unnoticed.append((old, new))
        path.write_text(text, encoding="utf-8")
    assert unnoticed == []
