"""Configurations of other trainers, read back: what each will do in its trainer. Nothing in a file is run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from decaylaws.exporters.readers.huggingface import read_huggingface
from decaylaws.exporters.readers.levanter import read_levanter
from decaylaws.exporters.readers.llm_foundry import read_llm_foundry
from decaylaws.exporters.readers.megatron import read_megatron
from decaylaws.exporters.readers.megatron_bridge import read_megatron_bridge
from decaylaws.exporters.readers.nanotron import read_nanotron
from decaylaws.exporters.readers.olmo_core import read_olmo_core
from decaylaws.exporters.readers.settings import ConfigSchedule, Reader
from decaylaws.exporters.readers.torchtitan import read_torchtitan

__all__ = ["READERS", "ConfigSchedule", "Reader"]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "torchtitan": read_torchtitan,
        "huggingface": read_huggingface,
        "olmo-core": read_olmo_core,
        "megatron": read_megatron,
        "megatron-bridge": read_megatron_bridge,
        "nanotron": read_nanotron,
        "llm-foundry": read_llm_foundry,
        "levanter": read_levanter,
    }
)
