"""Files of trainers and trackers: what each is read as, and what is refused with the file's name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.runs.logs import Log, Names, read_logs

NAMES = Names.of(["web", "maths"], sources=["web", "maths"])
RUN = "2572c11620a0f741"


def only(path: Path, names: Names = NAMES, **options: str) -> Log:
    (log,) = read_logs(path, names, **options)
    return log


def test_a_table_with_a_row_for_each_step(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "run_id,step,learning_rate,loss:web,eval_maths_loss,mix:web,speed\n"
        "a,1,0.5,,,70%,9\na,2,0.25,3.5,nan,0.7,fast\nb,1,.1,,,,\n",
        encoding="utf-8",
    )
    first, second = read_logs(path, NAMES)
    assert (first.name, second.name) == ("a", "b")
    assert first.points[0] == {"step": 1, "lr": 0.5, "mix:web": pytest.approx(0.7)}
    assert math.isnan(first.points[1]["loss:maths"])  # it was written, and is not the same as an empty cell
    assert second.points == ({"step": 1, "lr": 0.1},)


def test_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [{"run_id": "a", "step": 4, "tokens": 1024, "loss:web": 2.5}]
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(rows[0]) + "\n\n", encoding="utf-8")
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    lines, parquet = only(tmp_path / "a.jsonl"), only(tmp_path / "a.parquet")
    assert lines.points == parquet.points == ({"step": 4, "tokens": 1024, "loss:web": 2.5},)


def test_weights_and_biases_runs_history_and_charts(tmp_path: Path) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text(
        f'"Name","State","ID","_step","eval/web_loss","eval/maths_loss"\n"x-{RUN}","crashed","k3","64","2.5","3"\n'
    )
    assert only(runs) == Log(f"x-{RUN}", runs, ({"step": 64, "loss:web": 2.5, "loss:maths": 3.0},))
    history = tmp_path / f"history-{RUN}.jsonl"
    history.write_text('{"_step": 1, "train/learning_rate": 0.1}\n{"_step": 2, "eval/web_loss": 2.0}\n')
    assert only(history).name == str(history)
    assert only(history).points == ({"step": 1, "lr": 0.1}, {"step": 2, "loss:web": 2.0})
    chart = tmp_path / "chart.csv"
    chart.write_text(
        f'"Step","x-{RUN} - eval/web_loss","x-{RUN} - eval/web_loss__MIN","y - eval/web_loss"\n1,3,3,4\n2,2,2,\n'
    )
    logs = read_logs(chart, NAMES)
    assert [log.name for log in logs] == [f"x-{RUN}", "y"]
    assert logs[0].points == ({"step": 1, "loss:web": 3.0}, {"step": 2, "loss:web": 2.0})


def test_event_files_of_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path / RUN)) as writer:
        writer.add_scalar("lr/AdamW", 0.25, 1)  # torchtitan
        writer.add_scalar("n_tokens_seen", 512, 1)
        writer.add_scalar("lm loss validation-web", 2.5, 2)  # Megatron-LM
        writer.add_scalar("eval/maths_loss", math.nan, 2)  # Hugging Face
        writer.add_text("args", "not a scalar", 0)
    log = only(tmp_path)
    assert RUN in log.name
    assert log.points[:3] == (
        {"step": 1, "lr": 0.25},
        {"step": 1, "tokens": 512},
        {"step": 2, "loss:web": 2.5},
    )
    assert math.isnan(log.points[3]["loss:maths"])


def test_trainer_state_of_hugging_face(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    (folder / "checkpoint-2").mkdir(parents=True)
    history = [
        {"epoch": 0.5, "grad_norm": 1.0, "learning_rate": 0.1, "loss": 3.0, "step": 1},
        {"epoch": 1.0, "eval_web_loss": 2.5, "eval_runtime": 0.1, "step": 2},
    ]
    state = json.dumps({"global_step": 2, "log_history": history})
    for path in (folder / "trainer_state.json", folder / "checkpoint-2" / "trainer_state.json"):
        path.write_text(state)
    # a folder is read once: checkpoints repeat the trainer's state
    assert only(folder).points == ({"step": 1, "lr": 0.1}, {"step": 2, "loss:web": 2.5})


def test_metrics_of_olmo_core(tmp_path: Path) -> None:
    values = {
        "train/CE loss": 3.0,
        "eval/lm/web-validation/CE loss": 2.5,
        "eval/lm/maths/CE loss": 2.0,
        "optim/LR (group 0)": 0.1,
        "optim/LR (group 1)": 0.2,
        "throughput/total tokens": 4096,
    }
    for name in ("metrics.json", "metrics_step16.json"):
        (tmp_path / name).write_text(json.dumps(values))
    last, dated = (only(tmp_path / name).points[0] for name in ("metrics.json", "metrics_step16.json"))
    assert last == {"loss:web": 2.5, "loss:maths": 2.0, "lr": 0.1, "tokens": 4096}
    assert dated == {**last, "step": 16}


def test_results_of_lm_eval(tmp_path: Path) -> None:
    path = tmp_path / "results_2026-11-30T10-00-00.json"
    content = {
        "results": {"web": {"alias": "web", "bits_per_byte,none": 0.75, "bits_per_byte_stderr,none": "N/A"}},
        "model_name": f"outputs/simplex-{RUN}/checkpoint-64",
    }
    path.write_text(json.dumps(content))
    log = only(path, Names.of(["web"]))
    assert RUN in log.name
    assert log.points == ({"loss:web": 0.75, "step": 64},)


def test_the_console_log_of_megatron(tmp_path: Path) -> None:
    path = tmp_path / f"{RUN}.log"
    path.write_text(
        "building model ...\n"
        " [2026-11-30 10:00:00] iteration       10/     100 | consumed samples:         1280 | elapsed time per "
        "iteration (ms): 512.3 | learning rate: 9.000000E-04 | global batch size:   128 | lm loss: 3.2E+00 | loss "
        "scale: 1.0 | grad norm: 0.5 |\n"
        "----------\n"
        " validation loss at iteration 10 | lm loss value: 3.100000E+00 | lm loss PPL: 2.2E+01 | \n"
        " validation loss at iteration 10 [maths] | lm loss value: 2.900000E+00 | lm loss PPL: 2.0E+01 | \n",
        encoding="utf-8",
    )
    names = Names.of(["web", "maths"], columns={"loss:web": "lm loss validation"})
    assert only(path, names).points == (
        {"step": 10, "samples": 1280, "lr": 9e-4},
        {"step": 10, "loss:web": 3.1},
        {"step": 10, "loss:maths": 2.9},
    )


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl", '{"step": 1}\n{"step":\n', DataError, "Line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", "[1, 2]\n", DataError, "Line 1 of .*a.jsonl must be a JSON object; it is list"),
        ("a.csv", "run_id,step\na,1,2\n", DataError, "row 1 has more cells than its header"),
        ("a.csv", "run_id,step,step\na,1,2\n", SchemaError, "unexpected step"),
        (
            "a.csv",
            "run_id,loss:web\na,high\n",
            InvalidValueError,
            "a.csv: loss:web of row 1' must be a number",
        ),
        ("a.csv", "run_id,lr,learning_rate\na,1,2\n", SchemaError, "lr, learning_rate.*Both could be lr"),
        ("a.parquet", "text", DataError, "is not a Parquet file"),
        ("events.out.tfevents.1", "text", DataError, "is not an event file of TensorBoard"),
        ("trainer_state.json", "{}", DataError, "no log_history of Hugging Face's Trainer"),
        ("trainer_state.json", "{", DataError, "trainer_state.json"),
        ("results_1.json", '{"results": [1]}', DataError, "no results of lm-eval"),
        ("metrics.json", '["a"]', DataError, "metrics.json"),
        ("run.log", "nothing of interest\n", DataError, "is not a console log of Megatron-LM"),
        ("notes.md", "", DataError, "does not say its format. Give it with --format"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error_with_its_name(
    tmp_path: Path, name: str, content: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_logs(path, NAMES)


def test_what_is_not_there_and_what_has_no_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_logs(tmp_path / "missing.csv", NAMES)
    with pytest.raises(DataError, match="holds no file whose name is that of a log or a table"):
        read_logs(tmp_path, NAMES)
    path = tmp_path / "numbers"
    path.write_text('{"run_id": "a", "step": 1}\n')
    with pytest.raises(InvalidValueError, match="'format' must be one of table, tensorboard"):
        read_logs(path, NAMES, kind="excel")
