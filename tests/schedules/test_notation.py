"""The arrow notation: what reports print, what is left open, what cannot be read."""

from __future__ import annotations

import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.schedules import (
    PUBLISHED,
    Schedule,
    Segment,
    parse_schedule,
    parse_template,
    published_schedule,
    warmup,
)
from decaylaws.schedules.quantities import (
    format_lr,
    format_tokens,
    parse_length,
    parse_rate,
    parse_tokens,
    round_lr,
    round_tokens,
    token_count,
)

# The table of schedules as the literature prints it, arrows, Greek and all.
AS_PRINTED = {
    "dots-llm1": "Warmup(3e-4) → Constant(3e-4, 10T) → Decay(3e-5, 1T) → Decay(1e-5, 200B)"
    " → Constant(1e-5, 128B; 8K->32K)",
    "mimo-7b": "Warmup(1.07e-4) → Constant(1.07e-4, 10.2T) → Cosine(3e-5, 7.5T)"
    " → Constant(3e-5, 5.5T; 8K->32K) → Cosine(1e-5, 0.5T)",
    "pangu-ultra": "Warmup(1e-4) → Cosine(1e-5, 7.4T) → Constant(1e-5, 4.6T)"
    " → Cosine(7.5e-6, 0.8T; 4K->8K) → Constant(7.5e-6, 0.4T; 8K->128K)",
    "minimax-text-01": "Warmup(2e-4) → Constant(2e-4, 7.2T) → Constant(1.3e-4, 3.2T) → Exponential(3e-5, 1T)",
    "olmo-2-32b": "Warmup(6e-4) → Cosine(6e-5, 6.5T) → Linear(0)",
    "deepseek-v3": "Warmup(2.2e-4) → Constant(2.2e-4, 10T) → Cosine(2.2e-5, 4.3T)"
    " → Constant(2.2e-5, 333B; 4K->32K) → Constant(7.3e-6, 167B; 32K->128K)",
    "phi-4": "Warmup(3e-4) → Decay(η_min, 10T)",
    "yi-lightning": "Warmup(η_max) → Decay(η_max/2) → Decay(η_min)",
    "hunyuan-large": "Warmup(η_max) → gradual Decay → Decay(η_max/10, 5 %)",
    "afm-3b": "Warmup(1e-2) → Cosine(5e-5, 6.3T); Warmup(3e-4) → Decay(3e-7, 1T)",
    "llama-3-405b": "Warmup(8e-5) → Cosine(8e-7, 15.6T) → Decay(\N{EN DASH}, 800B; 8K->128K)"
    " → Linear(0, 40M)",
    "deepseek-v2": "Warmup(2.4e-4) → Constant(2.4e-4, 4.86T) → Constant(7.58e-5, 3.79T)"
    " → Decay(2.39e-5, 810B)",
    "minicpm": "Warmup(1e-2) → Constant(1e-2, 1T) → Exponential(η_min, 20B)",
}
VALUES = {"eta_max": 1e-3, "eta_min": 1e-5, "decay_lr": 4e-7, "decay_shape": "cosine"}


@pytest.mark.parametrize("name", AS_PRINTED)
def test_the_library_says_what_the_table_says(name: str) -> None:
    assert parse_template(AS_PRINTED[name]) == PUBLISHED[name].template


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_schedule_round_trips_and_can_be_filled(name: str) -> None:
    entry = published_schedule(name)
    assert entry.source
    assert str(entry.template) == entry.notation
    values = {key: VALUES.get(key, "2B") for key in entry.template.parameters}
    schedule = entry.template.fill(**values)
    assert parse_schedule(str(schedule)) == schedule
    assert schedule.start_lr == 0.0


def test_nothing_is_invented() -> None:
    assert PUBLISHED["hunyuan-large"].template.parameters == (
        "eta_max",
        "warmup_tokens",
        "decay_lr",
        "decay_tokens",
        "decay_shape",
    )
    assert PUBLISHED["afm-3b"].template.parameters == ("warmup_tokens", "warmup_tokens_2", "decay_shape")
    with pytest.raises(SchemaError, match=r"missing warmup_tokens, decay_shape"):
        published_schedule("dots-llm1").template.fill()
    with pytest.raises(SchemaError, match=r"unexpected batch"):
        published_schedule("olmo-2-32b").template.fill(warmup_tokens="8B", linear_tokens="100B", batch=3)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(InvalidValueError, match=r"Known: dots-llm1"):
        published_schedule("gpt-2")


def test_factors_shares_and_notes() -> None:
    values = VALUES | {"warmup_tokens": 2e9, "decay_tokens": "0.93T", "decay_lr": 5e-4}
    schedule = parse_schedule(
        AS_PRINTED["hunyuan-large"], **{k: v for k, v in values.items() if k != "eta_min"}
    )
    rise, gradual, last = schedule.segments
    assert (rise.tokens, rise.end_lr) == (2_000_000_000, 1e-3)
    assert (gradual.note, gradual.shape) == ("gradual", "cosine")
    assert last.end_lr == pytest.approx(1e-4)
    assert last.tokens == round(schedule.tokens * 0.05)


def test_the_architecture_example_reads() -> None:
    schedule = parse_schedule(
        "Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Decay(3e-5, 1T)", decay_shape="linear"
    )
    assert schedule.tokens == 11_002_000_000_000
    assert str(schedule) == "Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Linear(3e-5, 1T)"


@pytest.mark.parametrize(
    "text",
    [
        "Warmup(3e-4, 2B, start=1e-6) -> 1-Sqrt(0, 1T)",
        "Linear(3e-5, 1T, start=3e-4) -> Power(1e-5, 500B, exponent=-0.51; 8K->32K)",
        "Polynomial(0, 1T, start=1e-3, exponent=1.5)[1B:500B] -> Inverse-Sqrt(1e-6, 4194304)",
        "Sampled(0: 1e-3, 1B: 5e-4, 1B: 2e-4, 2B: 0) -> Megatron-Exponential(1e-4, 1B, start=1e-3)",
        "Constant(1.234567890123e-5, 40M) -> Constant(0, 1)",
    ],
)
def test_text_round_trip(text: str) -> None:
    schedule = parse_schedule(text)
    assert str(schedule) == text
    assert parse_schedule(str(schedule)) == schedule


def test_case_spacing_and_arrows_do_not_matter() -> None:
    expected = parse_schedule("Warmup(3e-4, 2B) -> Cosine(0, 1T)")
    for text in ("warmup( 3e-4,2b )->COSINE(0,1t)", "Warmup(0.0003, 2e9) → Cosine(0, 1_000_000_000_000)"):
        assert parse_schedule(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'schedule' is empty"),
        (5, "'schedule' must be text; got 5"),
        (" -> ", "'schedule' is empty"),
        ("Fade(3e-4, 2B)", "cannot be read; got 'Fade"),
        ("Warmup(3e-4, 2B", "cannot be read; got 'Warmup"),
        ("Warmup 3e-4", "cannot be read"),
        ("Warmup(-3e-4, 2B)", "'lr' must not be negative; got -0.0003"),
        ("Warmup(nan, 2B) -> Linear(0, 1B)", "'lr' must be a learning rate; got 'nan'"),
        ("Warmup(3e-4, 2.5)", "'tokens' must be a whole number of tokens; got '2.5'"),
        ("Warmup(3e-4, 0)", "'tokens' must be at least 1 token"),
        ("Warmup(3e-4, 2X)", "'tokens' must be a count of tokens; got '2X'"),
        ("Warmup(3e-4, 120%)", "'tokens' must be a share between 0% and 100%"),
        ("Warmup(3e-4, 60%) -> Linear(0, 60%)", "'tokens' must leave room"),
        ("Warmup(3 e-4, 2B)", "'lr' must be a learning rate"),
        ("Warmup(3e-4, 2B, 5)", "takes \\(LR, tokens\\)"),
        ("Warmup(3e-4, 2B, floor=5)", "takes \\(LR, tokens\\)"),
        ("Cosine(0, 1T)", "'start' is unknown in the first stage"),
        ("Warmup(3e-4, 2B) -> Exponential(0, 1T)", "'end_lr' must be above zero"),
        ("Polynomial(0, 1T, start=1, exponent=two)", "'exponent' must be a number"),
        ("Sampled(0 1e-3)", "takes points"),
        ("Sampled(0: 1e-3, 5: 0)[3:9]", "'first, last' must be in order"),
        ("Warmup(3e-4, 1e99T)", "'tokens' is larger than any training run"),
        ("Warmup(3e-4, 1e999999)", "'tokens' is larger than any training run"),
        ("Warmup(eta_max/0, 2B)", "'eta_max' must be multiplied and divided by numbers above zero"),
        ("Linear(0, 5B, start=1e-3, start=1e-2)", "each once"),
        ("Warmup(eta_max, 2B)", "missing eta_max"),
        ("Warmup(3e-4)", "missing warmup_tokens"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises((InvalidValueError, SchemaError), match=message):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"eta_max": -1.0, "warmup_tokens": 5}, "eta_max"),
        ({"eta_max": "high", "warmup_tokens": 5}, "eta_max"),
        ({"eta_max": None, "warmup_tokens": 5}, "eta_max"),
        ({"eta_max": 1e-3, "warmup_tokens": 2.5}, "warmup_tokens"),
        ({"eta_max": 1e-3, "warmup_tokens": "soon"}, "warmup_tokens"),
    ],
)
def test_values_that_cannot_be_name_their_parameter(values: dict[str, float | str], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_schedule("Warmup(eta_max)", **values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (1, "1"),
        (999, "999"),
        (1_500, "1.5K"),
        (4_194_304, "4194304"),
        (40_000_000, "40M"),
        (200_000_000_000, "200B"),
        (4_860_000_000_000, "4.86T"),
        (14_808_000_000_000, "14.808T"),
        (1_500_000_000_000_000, "1500T"),
    ],
)
def test_counts_are_written_exactly(tokens: int, text: str) -> None:
    assert format_tokens(tokens) == text
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("lr", "text"),
    [(3e-4, "3e-4"), (1.07e-4, "1.07e-4"), (0.0, "0"), (0.1, "0.1"), (2.0, "2"), (1 / 3, None)],
)
def test_lrs_are_written_exactly(lr: float, text: str | None) -> None:
    assert float(format_lr(lr)) == lr
    assert text is None or format_lr(lr) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("40,000", 40_000),
        ("40_000", 40_000),
        ("1,500B", 1_500 * 10**9),
        ("1,234,567", 1_234_567),
        ("2.5b", 25 * 10**8),
    ],
)
def test_separators_stand_before_three_digits(text: str, tokens: int) -> None:
    assert parse_tokens(text) == token_count(text) == token_count(tokens) == tokens


@pytest.mark.parametrize(
    "text", ["4,5B", "3,5B", "1,5M", "40,00", "1,2345", "4_5B", "1,000_000", ",500", "1,", "4,5,6B"]
)
def test_a_decimal_comma_is_refused_and_not_read_as_a_separator(text: str) -> None:
    with pytest.raises(InvalidValueError, match="must be a count of tokens"):
        parse_tokens(text)


def test_the_remedy_for_a_decimal_comma_is_the_decimal_point() -> None:
    with pytest.raises(InvalidValueError, match=r"Write a decimal point \(4\.5B\)"):
        parse_tokens("4,5B")


@pytest.mark.parametrize("text", ["3,0e-4", "3_0e-4", "1e400", "\N{ARABIC-INDIC DIGIT THREE}e-4", "infinity"])
def test_a_learning_rate_is_plain_digits(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_rate(text)
    with pytest.raises(InvalidValueError):
        parse_template("Warmup(eta_max, 2B)").fill(eta_max=text)


@pytest.mark.parametrize("text", ["5,5%", "1e999999999%", "1e-999999999%", "nan%"])
def test_a_share_is_no_decimal_comma_and_ends_in_time(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_length(text)


def test_rounding_for_the_eye() -> None:
    assert (round_tokens(4_194_304), round_tokens(0), round_lr(6.13511e-5)) == ("4.194M", "0", "6.135e-5")


def test_a_warmup_that_stands_later_still_rises_from_zero() -> None:
    schedule = parse_schedule("Warmup(1e-2, 1B) -> Cosine(5e-5, 6T) -> Warmup(3e-4, 1B)")
    assert schedule.segments[2] == Segment(10**9, 0.0, 3e-4)
    assert isinstance(warmup(5, 1e-3), Schedule)
