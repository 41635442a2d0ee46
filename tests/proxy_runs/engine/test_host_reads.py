"""Neither a step nor an evaluation waits for a value: a GPU would stand still, and a recording would fail.

Fake tensors have shapes and no values, so whatever looks at a value raises.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from decaylaws.runs.config import ModelShape
from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.answers.pieces import Piece
from proxy_runs.answers.prepared import AnswerSet
from proxy_runs.engine import model as model_module
from proxy_runs.engine.heldout import Documents, EvaluationSet
from proxy_runs.engine.model import LONG_SEQUENCE, StackedLlama
from proxy_runs.engine.optim import MemberStep
from proxy_runs.engine.questions import QuestionWindows
from proxy_runs.engine.step import StackwiseStep
from proxy_runs.weights.params import Params, param_shapes

MEMBERS, VOCAB = 3, 40


def fake_mode() -> FakeTensorMode:
    """Batches and windows are real on their way in."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def shape_of(seq_len: int) -> ModelShape:
    return ModelShape(
        d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=32, vocab_size=VOCAB, seq_len=seq_len
    )


def fake_params(shape: ModelShape) -> Params:
    return {
        name: torch.zeros((MEMBERS, *size), requires_grad=True) for name, size in param_shapes(shape).items()
    }


@pytest.mark.parametrize("seq_len", [16, LONG_SEQUENCE])
@pytest.mark.parametrize("plain", [False, True], ids=["eager", "as_compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_reads_nothing_back(
    dtype: torch.dtype, plain: bool, seq_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "compiled_by_shape", lambda function: function)
    shape = shape_of(seq_len)
    batch = np.zeros((2, seq_len + 1), dtype=np.int64), np.full(2, 0.5, dtype=np.float32)
    due = [MemberStep(slot, 1e-3, 1, OptimizerConfig()) for slot in (0, 2)]
    with fake_mode():
        step = StackwiseStep(StackedLlama(shape, dtype=dtype, compiled=plain), fake_params(shape))
        for _ in range(2):
            step.launch([batch, batch], due)
        with pytest.raises(DataDependentOutputException):
            step.results()


def test_an_evaluation_reads_nothing_back_before_its_end() -> None:
    shape = shape_of(16)
    seam = np.array([4, 5, 6])
    answers = AnswerSet.build(
        [
            [(Piece(np.array([1, 2, 3, number]), 2, seam), 5), (Piece(np.array([1, 2, 7]), 2, None), 4)]
            for number in (4, 5)
        ],
        gold=[0, 1],
        clusters=["a", "b"],
    )
    questions = QuestionWindows.build("quiz", answers, seq_len=16, pad_id=0, device="cpu")
    windows = {name: torch.zeros(20, 17, dtype=torch.int64) for name in ("web", "code")}
    documents = Documents(np.arange(320) // 40, np.ones(320, dtype=np.int64))
    evaluation = EvaluationSet(
        windows, {"web": 1.0, "code": 1.0, "quiz": 1.0}, "key", {"code": documents}, {"quiz": questions}
    )
    with fake_mode():
        scores = evaluation.score(StackedLlama(shape), fake_params(shape))
        assert scores.means["web"].shape == (MEMBERS,)
        assert scores.documents["code"].shape == (MEMBERS, 320)
        assert len(scores.questions["quiz"]) == MEMBERS
        with pytest.raises(DataDependentOutputException):
            evaluation.read(scores)
