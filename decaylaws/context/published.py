"""How published models were taken to longer sequences, with what their reports state.

``None`` means that the report does not state it or that it could not be verified; nothing is filled in by guess.
Token counts marked as derived in a remark are steps times batch of the report. Lines named "survey" follow the table
of Mo et al. 2025 (arXiv:2510.06826), as ``decaylaws.schedules.published`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

K = 1024


@dataclass(frozen=True)
class ExtensionStage:
    """One stretch of training at a longer sequence length.

    Attributes:
        from_seq_len: sequence length before it, in tokens.
        to_seq_len: sequence length within it.
        tokens: how long it lasts.
        method: ``abf``, ``ntk`` or ``yarn``; ``none`` where the report keeps the rotary embedding as it is.
        theta: base of the rotary embedding within it.
        factor: YaRN's scale.
        long_share: share of long text.
    """

    from_seq_len: int | None
    to_seq_len: int
    tokens: float | None = None
    method: str | None = None
    theta: float | None = None
    factor: float | None = None
    long_share: float | None = None


@dataclass(frozen=True)
class PublishedExtension:
    """One model's way to longer sequences.

    Attributes:
        name: key, lower case; the same as in the library of schedules where the model is in both.
        model: as the report calls it.
        stages: in order.
        source: report, and section where known.
        remark: what the columns cannot hold.
    """

    name: str
    model: str
    stages: tuple[ExtensionStage, ...]
    source: str
    remark: str = ""


_ENTRIES = (
    PublishedExtension(
        "llama-3-405b",
        "Llama 3 405B",
        (ExtensionStage(8 * K, 128 * K, 800e9, "none", 5e5),),
        "The Llama 3 Herd of Models, arXiv:2407.21783, sections 3.2 and 3.4.2",
        "six lengths, which the report does not list; the base is that of pre-training",
    ),
    PublishedExtension(
        "qwen3",
        "Qwen3",
        (ExtensionStage(4 * K, 32 * K, None, "abf", 1e6, None, 0.75),),
        "Qwen3 Technical Report, arXiv:2505.09388, section 3.2",
        "hundreds of billions of tokens; long is 16K to 32K, the rest 4K to 16K; base 10,000 before; "
        "YaRN and dual chunk attention reach 128K at inference",
    ),
    PublishedExtension(
        "deepseek-v3",
        "DeepSeek-V3",
        (
            ExtensionStage(4 * K, 32 * K, 1000 * 1920 * 32 * K, "yarn", 1e4, 40),
            ExtensionStage(32 * K, 128 * K, 1000 * 480 * 128 * K, "yarn", 1e4, 40),
        ),
        "DeepSeek-V3 Technical Report, arXiv:2412.19437, section 4.3",
        "tokens derived: 1,000 steps of 1,920 and of 480 sequences, behind pre-training (the survey's line of the "
        "schedule puts the lengths at its last 500B); LR 7.3e-6; on the decoupled key only; beta_fast 32, beta_slow 1",
    ),
    PublishedExtension(
        "phi-4",
        "Phi-4 14B",
        (ExtensionStage(4 * K, 16 * K, 250e9, "abf", 2.5e5, None, 0.3),),
        "Phi-4 Technical Report, arXiv:2412.08905",
        "30 % new long text (over 8K) beside 70 % recall tokens; peak LR a tenth of pre-training's",
    ),
    PublishedExtension(
        "minicpm",
        "MiniCPM-2.4B-128K",
        (
            ExtensionStage(4 * K, 32 * K, None, "abf", None, None, 0.44),
            ExtensionStage(32 * K, 128 * K, None, "ntk", None, None, 0.44),
        ),
        "MiniCPM, arXiv:2404.06395, section 7.2",
        "from the checkpoint before the decay; 44 % long and 56 % short data, with synthetic long questions",
    ),
    PublishedExtension(
        "afm-3b",
        "AFM (server and on-device)",
        (ExtensionStage(8 * K, 32 * K, 100e9, "abf"),),
        "Apple Intelligence Foundation Language Models, arXiv:2407.21075",
        "base 500,000 before; the larger base could not be verified; synthetic long question answering added",
    ),
    PublishedExtension(
        "pangu-ultra",
        "Pangu Ultra 135B",
        (
            ExtensionStage(4 * K, 8 * K, 800e9),
            ExtensionStage(8 * K, 128 * K, 400e9),
        ),
        "Pangu Ultra, arXiv:2504.07866 (survey)",
        "the way of extending could not be verified",
    ),
    PublishedExtension(
        "longcat-flash",
        "LongCat-Flash",
        (ExtensionStage(None, 128 * K, None, "abf", 1e7),),
        "LongCat-Flash Technical Report, arXiv:2509.01322",
        "base and length of the released model, as transformers' LongcatFlashConfig has them; stages and tokens "
        "could not be verified",
    ),
    PublishedExtension(
        "glm-4.5",
        "GLM-4.5",
        (
            ExtensionStage(4 * K, 32 * K, 1e12, "abf", 1e6),
            ExtensionStage(32 * K, 128 * K, 100e9),
        ),
        "GLM-4.5, arXiv:2508.06471, sections 2.3 and 2.4",
        "32K: 500B of repository code and 500B of synthetic reasoning; base 10,000 before",
    ),
    PublishedExtension(
        "hunyuan-large",
        "Hunyuan-Large",
        (
            ExtensionStage(None, 32 * K, 10e9, None, None, None, 0.25),
            ExtensionStage(32 * K, 256 * K, 10e9, None, None, None, 0.25),
        ),
        "Hunyuan-Large, arXiv:2411.02265",
        "about 10B tokens a stage, 25 % long and 75 % normal text; the base could not be verified",
    ),
    PublishedExtension(
        "dots-llm1",
        "dots.llm1",
        (ExtensionStage(8 * K, 32 * K, 128e9),),
        "dots.llm1 Technical Report, arXiv:2506.05767 (survey)",
        "at the constant LR 1e-5 behind two decays; the method could not be verified",
    ),
    PublishedExtension(
        "yi-lightning",
        "Yi-Lightning",
        (),
        "Yi-Lightning Technical Report, arXiv:2412.01253",
        "lengths, tokens and base could not be verified",
    ),
    PublishedExtension(
        "ernie-4.5",
        "ERNIE 4.5",
        (ExtensionStage(None, 128 * K, None, "abf", 5e5),),
        "ERNIE 4.5 Technical Report (Baidu, 2025)",
        "base and final length of the released models, as transformers' Ernie4_5Config has them; stages and "
        "tokens could not be verified",
    ),
    PublishedExtension(
        "olmo-3-7b",
        "Olmo 3 7B",
        (ExtensionStage(8 * K, 64 * K, 50e9, "yarn", 5e5, 8, 0.34),),
        "Olmo 3, arXiv:2512.13961, section 3.6",
        "on layers with full attention only; 200 warm-up steps; 66 % long text cost 2.5 points, 34 % 0.8",
    ),
    PublishedExtension(
        "smollm3-3b",
        "SmolLM3 3B",
        (
            ExtensionStage(4 * K, 32 * K, 50e9, "abf", 2e6),
            ExtensionStage(32 * K, 64 * K, 50e9, "abf", 5e6),
        ),
        "SmolLM3 blog and training configurations, huggingface.co/blog/smollm3",
        "base of the first stage: 1.5M in the blog, 2M in the configuration; YaRN reaches 128K at inference",
    ),
)
PUBLISHED_EXTENSIONS: dict[str, PublishedExtension] = {entry.name: entry for entry in _ENTRIES}
