"""Read a Llama in GGUF (versions 2 and 3) into Hugging Face's names and layouts, with numpy alone.

The container and its block formats: ggml's ``docs/gguf.md`` and ``ggml-common.h``. Only what a Llama in Q4_1, Q8_0, F16
or F32 needs is read; anything else is refused by name. Nothing in the file is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError

MAGIC = b"GGUF"
BLOCK = 32
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LIMIT = 2**24  # no list or text of a model's header is longer

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``shape`` as numpy has it (rows first), the block format, the offset in the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """The header of a GGUF file and, on request, its tensors.

    Args:
        content: the whole file.

    Raises:
        DataError: it is no GGUF file, is cut short, or uses what is not read here.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 4
        if content[:4] != MAGIC:
            raise DataError("The file is no GGUF file: it does not start with 'GGUF'.")
        version, tensors, values = self._read("I"), self._read("Q"), self._read("Q")
        if version not in (2, 3):
            raise DataError(f"The GGUF file has version {version}; 2 and 3 are read.")
        self.metadata = {self._text(): self._value(self._read("I")) for _ in range(values)}
        self.tensors = dict(self._tensor_info() for _ in range(tensors))
        alignment = int(self.metadata.get("general.alignment", 32))
        self._data = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> Array:
        """A tensor in float32.

        Raises:
            DataError: there is none of that name, it is cut short, or its format is not read here.
        """
        info = self.tensors.get(name)
        if info is None:
            raise DataError(f"The GGUF file holds no tensor {name!r}.")
        if info.kind not in FORMATS:
            raise DataError(f"{name} has the block format {info.kind}; {sorted(FORMATS)} are read.")
        block_values, block_bytes, decode = FORMATS[info.kind]
        size = int(np.prod(info.shape)) // block_values * block_bytes
        raw = self._content[self._data + info.offset : self._data + info.offset + size]
        if len(raw) != size:
            raise DataError(f"The GGUF file ends within {name}.")
        return decode(np.frombuffer(raw, dtype=np.uint8)).reshape(info.shape)

    def _read(self, code: str) -> Any:
        try:
            (value,) = struct.unpack_from("<" + code, self._content, self._at)
        except struct.error as error:
            raise DataError("The GGUF file ends within its header.") from error
        self._at += struct.calcsize("<" + code)
        return value

    def _text(self) -> str:
        length = self._length()
        text = self._content[self._at : self._at + length].decode("utf-8", errors="replace")
        self._at += length
        return text

    def _length(self) -> int:
        length = int(self._read("Q"))
        if length > LIMIT:
            raise DataError(f"The GGUF file's header claims a text or list of {length} entries.")
        return length

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            entry = int(self._read("I"))
            if entry == ARRAY:
                raise DataError("The GGUF file's header nests lists, which is not read here.")
            return [self._value(entry) for _ in range(self._length())]
        if kind not in SCALARS:
            raise DataError(f"The GGUF file's header holds a value of unknown kind {kind}.")
        return self._read(SCALARS[kind])

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name, rank = self._text(), self._read("I")
        if rank > 4:
            raise DataError(f"{name} claims {rank} dimensions.")
        # ggml names the fastest dimension first
        shape = tuple(int(self._read("Q")) for _ in range(rank))[::-1]
        return name, TensorInfo(shape, int(self._read("I")), int(self._read("Q")))


def _q4_1(raw: NDArray[np.uint8]) -> Array:
    """32 values in 20 bytes: scale and minimum in half precision, then low nibbles 0-15, high nibbles 16-31."""
    blocks = raw.reshape(-1, 20)
    scale, low = _halves(blocks[:, :2]), _halves(blocks[:, 2:4])
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return nibbles.astype(np.float32) * scale + low


def _q8_0(raw: NDArray[np.uint8]) -> Array:
    """32 values in 34 bytes: a scale in half precision, then signed bytes."""
    blocks = raw.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks[:, :2])


def _halves(columns: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


# ggml's number of a format: values and bytes of a block, and how to decode it
FORMATS: dict[int, tuple[int, int, Callable[[NDArray[np.uint8]], Array]]] = {
    0: (1, 4, lambda raw: raw.view("<f4").astype(np.float32)),
    1: (1, 2, lambda raw: raw.view("<f2").astype(np.float32)),
    3: (BLOCK, 20, _q4_1),
    8: (BLOCK, 34, _q8_0),
}

# Llama ------------------------------------------------------------------------------------------------------

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def llama_settings(file: GgufFile) -> dict[str, Any]:
    """Keyword arguments of ``transformers.LlamaConfig``."""
    values = file.metadata
    if values.get("general.architecture") != "llama":
        raise DataError(f"The GGUF file holds a {values.get('general.architecture')!r}, not a 'llama'.")
    return {
        "vocab_size": values["llama.vocab_size"],
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": values["llama.rope.freq_base"]},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
    }


def llama_weights(file: GgufFile) -> dict[str, Array]:
    """All weights under Hugging Face's names; a tied head is left out."""
    heads = {
        "attn_q": int(file.metadata["llama.attention.head_count"]),
        "attn_k": int(file.metadata["llama.attention.head_count_kv"]),
    }
    weights = {
        "model.embed_tokens.weight": file.tensor("token_embd.weight"),
        "model.norm.weight": file.tensor("output_norm.weight"),
    }
    if "output.weight" in file.tensors:
        weights["lm_head.weight"] = file.tensor("output.weight")
    for layer in range(int(file.metadata["llama.block_count"])):
        for theirs, ours in LAYER_NAMES.items():
            tensor = file.tensor(f"blk.{layer}.{theirs}.weight")
            tensor = half_rotation(tensor, heads[theirs]) if theirs in heads else tensor
            weights[f"model.layers.{layer}.{ours}.weight"] = tensor
    return weights


def half_rotation(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection from ggml's order, in which the two rows of a rotated pair are
    neighbours, back to Hugging Face's, in which they stand half a head apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
