"""A causal LM out of a Hugging Face folder, with every weight accounted for.

``from_pretrained`` fills what the folder lacks with random numbers and drops what it does not know, and says so in
a warning at most. A launch would train such a model, and an evaluation would score it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from decaylaws.errors import DataError, DecaylawsError

Shard = Callable[[PreTrainedModel], object]
"""Shards the parameters of a model that has no weights yet (device ``meta``)."""
NAMED = 3
"""Weights of a kind that an error names."""


def require_checkpoint(directory: Path) -> None:
    """Refuse what is not a folder with a model.

    Raises:
        DataError: as said.
    """
    if directory.is_file():
        raise DataError(
            f"{directory} is a file; give the folder of a Hugging Face checkpoint. 'decaylaws to-hf' makes one of a "
            "study's own checkpoint."
        )
    if not (directory / "config.json").is_file():
        raise DataError(
            f"There is no config.json in {directory}. Give the folder of a Hugging Face checkpoint."
        )


def load_config(directory: Path) -> Any:
    """The ``transformers`` config of a folder; nothing is downloaded, and no code of the folder is run.

    Raises:
        DataError: there is none, or ``transformers`` does not know the model.
    """
    require_checkpoint(directory)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # what transformers raises for a config that it cannot use is not documented
        raise DataError(f"The config in {directory} cannot be used: {_first_line(error)}") from error


def load_causal_lm(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: Any = None,
    shard: Shard | None = None,
) -> PreTrainedModel:
    """The model in a folder that ``save_pretrained`` wrote.

    Args:
        directory: the folder; nothing is downloaded, and no code of the folder is run.
        dtype: of the weights in memory.
        config: the folder's own one, changed; read from the folder without it.
        shard: called before anything is read, so that this process reads the parts that it keeps and nothing else.

    Raises:
        DataError: there is no causal LM, a file is damaged, or the folder's weights are not those of its config.
    """
    config = load_config(directory) if config is None else config
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of missing weights becomes the error below
    try:
        model, report = _loader(config, shard).from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported like the others
        )
    except DecaylawsError:
        raise
    except Exception as error:
        # what transformers and safetensors raise for a damaged file is not documented
        raise DataError(f"The model in {directory} cannot be read: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(name for name, *_ in report["mismatched_keys"]),
    }
    if any(wrong.values()):
        raise DataError(_what_is_wrong(directory, config.model_type, wrong))
    if shard is not None:
        _leave_the_file(model)
        _forget_the_loader(model)
    return model


def empty_causal_lm(config: Any, *, shard: Shard) -> PreTrainedModel:
    """A sharded float32 model whose weights are zero, to be filled by the caller.

    Args:
        config: of the model.
        shard: called before there are any weights.
    """
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    # transformers gives each rank its part of them, and buffers that no file holds their values
    zeros = {name: _Zeros(tensor) for name, tensor in names.items()}
    loader = _loader(config, shard)
    model: PreTrainedModel = loader.from_pretrained(
        None, config=config, dtype=torch.float32, state_dict=zeros
    )
    _forget_the_loader(model)
    return model


class _Zeros:
    """Zeros that take no memory until a part of them is asked for; like a tensor in a safetensors file."""

    def __init__(self, like: Tensor) -> None:
        self._whole = torch.zeros((), dtype=like.dtype).expand(like.shape)

    def get_shape(self) -> list[int]:
        return list(self._whole.shape)

    def __getitem__(self, part: Any) -> Tensor:
        return self._whole[part].clone(memory_format=torch.contiguous_format)


def _loader(config: Any, shard: Shard | None) -> Any:
    """What ``from_pretrained`` is called on: the model's own class, sharding itself when it is built.

    ``transformers`` builds a model without weights, then reads into every DTensor that it finds the part of this rank.
    """
    if shard is None:
        return AutoModelForCausalLM
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if known is None:
        raise DataError(f"transformers has no causal language model for {config.model_type!r}.")

    def build(self: PreTrainedModel, *values: Any, **options: Any) -> None:
        known.__init__(self, *values, **options)
        # transformers ties weights after it has read them, but a shared one must be sharded as one
        for tied, name in self.all_tied_weights_keys.items():
            module, _, own = tied.rpartition(".")
            setattr(self.get_submodule(module), own, self.get_parameter(name))
        with torch.device("cpu"):  # not on the meta device, where transformers builds
            shard(self)

    return type(known.__name__, (known,), {"__init__": build, "__module__": known.__module__})


@torch.no_grad()
def _leave_the_file(model: PreTrainedModel) -> None:
    """Copy weights that are views of a file in mapped memory, which would stay whole and could change under them."""
    for parameter in model.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if own.untyped_storage().nbytes() > own.nbytes:
            own.set_(own.detach().clone(memory_format=torch.contiguous_format))  # type: ignore[arg-type]


def _forget_the_loader(model: PreTrainedModel) -> None:
    """Make the model one of the class that ``transformers`` has, not of the one that :func:`_loader` made of it."""
    model.__class__ = type(model).__bases__[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _what_is_wrong(directory: Path, model_type: str, wrong: Mapping[str, Sequence[str]]) -> str:
    parts = [
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {how}"
        for how, names in wrong.items()
        if names
    ]
    problem = (
        f"The weights in {directory} are not those of its config.json ({model_type}): {', and '.join(parts)}."
    )
    missing, unexpected = wrong["missing"], wrong["unexpected"]
    wrapper = next((name.split(".")[0] for name in unexpected if name.partition(".")[2] in missing), None)
    if wrapper is not None:
        return f"{problem} The names begin with '{wrapper}.': save the model again without that wrapper."
    if list(missing) == ["lm_head.weight"]:
        return f"{problem} If the head is the embedding, set tie_word_embeddings: true in config.json."
    return f"{problem} Save the model again, or correct config.json."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
