"""Logs that trainers' own code writes, read back. Needs the trainers, which 'make test-targets' installs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from decaylaws.runs.logs import Names, read_logs
from tests.exporters.trainers import import_trainer

NAMES = Names.of(["web", "maths"])
RUN = "2572c11620a0f741"


def test_metrics_that_olmo_core_saves(tmp_path: Path) -> None:
    saver = import_trainer("olmo_core.train.callbacks.metric_saver").MetricSaverCallback(save_interval=16)

    def write_file(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    saver.trainer = SimpleNamespace(write_file=write_file)
    saver.log_metrics(8, {"train/CE loss": 3.1, "optim/LR (group 0)": 0.2, "throughput/total tokens": 2048})
    saver.log_metrics(
        16,
        {
            "optim/LR (group 0)": 0.1,
            "throughput/total tokens": 4096,
            "eval/lm/web-validation/CE loss": 2.5,
            "eval/lm/maths-validation/CE loss": 2.0,
        },
    )
    saver.close()
    logs = read_logs(tmp_path, NAMES)
    assert [log.file.name for log in logs] == ["metrics.json", "metrics_step16.json"]
    last = {"lr": 0.1, "tokens": 4096, "loss:web": 2.5, "loss:maths": 2.0}
    assert logs[0].points == (last,)
    assert logs[1].points == ({**last, "step": 16},)


def test_scalars_that_torchtitan_writes(tmp_path: Path) -> None:
    metrics = import_trainer("torchtitan.components.metrics")
    logger = metrics.TensorBoardLogger(str(tmp_path / RUN / "tb"))
    # the names of torchtitan's own MetricsProcessor and LRSchedulersContainer
    logger.log({"loss_metrics/global_avg_loss": 3.0, "lr/AdamW": 0.125, "n_tokens_seen": 4096.0}, step=16)
    logger.log({"validation_metrics/loss": 2.5}, step=16)
    logger.close()
    (log,) = read_logs(tmp_path, Names.of(["web"], columns={"loss:web": "validation_metrics/loss"}))
    assert RUN in log.name
    assert log.points == (
        {"step": 16, "lr": 0.125},
        {"step": 16, "tokens": 4096},
        {"step": 16, "loss:web": 2.5},
    )


def test_trainer_state_that_transformers_saves(tmp_path: Path) -> None:
    callback = import_trainer("transformers.trainer_callback")
    state = callback.TrainerState(global_step=2, max_steps=2)
    # as Trainer.log adds what its evaluation and its scheduler say
    state.log_history = [
        {"loss": 3.0, "learning_rate": 0.5, "epoch": 0.5, "step": 1},
        {"eval_web_loss": 2.5, "eval_web_runtime": 0.1, "epoch": 1.0, "step": 2},
    ]
    path = tmp_path / RUN / "trainer_state.json"
    path.parent.mkdir()
    state.save_to_json(str(path))
    (log,) = read_logs(tmp_path, NAMES)
    assert log.points == ({"step": 1, "lr": 0.5}, {"step": 2, "loss:web": 2.5})


def test_history_of_weights_and_biases_that_hugging_face_writes() -> None:
    # a tracker gets 'eval/web_loss' for what a file calls 'eval_web_loss'
    integrations = import_trainer("transformers.integrations.integration_utils")
    told = integrations.rewrite_logs({"eval_web_loss": 2.5, "learning_rate": 0.5})
    assert {NAMES.ours(name) for name in told} == {"loss:web", "lr"}


@pytest.mark.parametrize("name", ["lr", "decayed_lr"])
def test_the_lr_of_one_group_is_the_lr(name: str) -> None:
    assert NAMES.ours(f"optim/{name}") is None
    assert NAMES.ours("optim/LR (group 0)") == "lr"
    assert NAMES.ours("optim/LR (group 1)") is None
