"""Longer sequences in the decay: rotary embeddings, published extensions, recipes that extend."""

from decaylaws.context.extend import extend_tail, with_long_share
from decaylaws.context.published import (
    PUBLISHED_EXTENSIONS,
    ExtensionStage,
    PublishedExtension,
)
from decaylaws.context.rope import RotaryFrequencies, rotary_frequencies

__all__ = [
    "PUBLISHED_EXTENSIONS",
    "ExtensionStage",
    "PublishedExtension",
    "RotaryFrequencies",
    "extend_tail",
    "rotary_frequencies",
    "with_long_share",
]
