"""A run's content is its identity; parameter counts are those of transformers."""

from __future__ import annotations

import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import Arithmetic, ModelShape, RunConfig
from decaylaws.runs.optimizer import OptimizerConfig
from decaylaws.runs.table import config_row
from decaylaws.schedules import decay, warmup_stable_decay

SHAPE = ModelShape(
    d_model=48, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=128, vocab_size=300, seq_len=32
)


def config(**changes: object) -> RunConfig:
    made = RunConfig(
        kind="trunk",
        shape=SHAPE,
        schedule=warmup_stable_decay(1024, 1e-3, warmup_tokens=128, decay_tokens=0),
        mixture=Mixture({"web": 0.75, "code": 0.25}),
        batch_tokens=64,
        seed=1,
        data_fingerprint="f",
    )
    return made.with_changes(**changes)


def test_a_config_survives_json() -> None:
    assert RunConfig.from_dict(config().to_dict()) == config()
    assert RunConfig.from_dict(config().to_dict()).run_id == config().run_id
    rough = config(arithmetic=Arithmetic(precision="bfloat16"))
    assert RunConfig.from_dict(rough.to_dict()) == rough
    assert "arithmetic" not in config().to_dict()  # runs of earlier versions keep their identity


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"batch_tokens": 128},
        {"mixture": Mixture({"web": 0.5, "code": 0.5})},
        {"data_fingerprint": "g"},
        {"optimizer": OptimizerConfig(weight_decay=0.0)},
        {"pool_tokens": {"web": 640}},
        {"arithmetic": Arithmetic(compiled=True)},
        {"arithmetic": Arithmetic(precision="bfloat16")},
        {"schedule": warmup_stable_decay(1024, 2e-3, warmup_tokens=128, decay_tokens=0)},
    ],
)
def test_whatever_changes_the_result_changes_the_identity(change: dict[str, object]) -> None:
    assert config(**change).run_id != config().run_id


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "anneal"}, "kind"),
        ({"batch_tokens": 100}, "batch_tokens"),
        ({"seed": -1}, "seed"),
        ({"kind": "decay"}, "start_run_id"),
        ({"start_run_id": "abc"}, "start_run_id"),
        ({"start_tokens": -5}, "start_tokens"),
        ({"pool_tokens": {"web": 0}}, "pool_tokens"),
    ],
)
def test_an_impossible_run_cannot_exist(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValueError, match=field):
        config(**change)


@pytest.mark.parametrize("change", [{"num_heads": 5}, {"num_kv_heads": 3}, {"d_ff": 0}, {"rope_theta": -1.0}])
def test_an_impossible_shape_cannot_exist(change: dict[str, float]) -> None:
    values = {name: getattr(SHAPE, name) for name in SHAPE.__dataclass_fields__}
    with pytest.raises(InvalidValueError):
        ModelShape(**(values | change))


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_are_those_of_transformers(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ModelShape(**{**SHAPE.__dict__, "tie_embeddings": tied})
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.d_model,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            intermediate_size=shape.d_ff,
            vocab_size=shape.vocab_size,
            tie_word_embeddings=tied,
        )
    )
    assert shape.total_params == sum(p.numel() for p in model.parameters())
    embeddings = shape.vocab_size * shape.d_model * (1 if tied else 2)
    assert shape.non_embedding_params == shape.total_params - embeddings


def test_a_row_describes_a_planned_run() -> None:
    planned = config(
        kind="decay",
        schedule=decay(640, 1e-3),
        start_run_id="trunk",
        start_tokens=1024,
        pool_tokens={"code": 320},
    )
    row = config_row(planned, {"web": 6400, "code": 6400})
    assert row["run_id"] == planned.run_id
    assert (row["start_lr"], row["end_lr"], row["decay_shape"]) == (1e-3, 0.0, "linear")
    assert row["epochs:web"] == pytest.approx(0.75 * 640 / 6400)
    assert row["epochs:code"] == pytest.approx(0.25 * 640 / 320)
