"""What a checkpoint says of itself: step, tokens, LR, optimiser state, vocabulary. Nothing in it is executed.

======================================= ==============================================================
a Hugging Face folder                   with ``trainer_state.json`` if the Trainer wrote it
a sharded folder of ``proxy_runs.fsdp`` ``state.json`` and safetensors
a DCP folder                            ``.metadata``: torchtitan; OLMo-core with ``model_and_optim``
a Megatron folder                       ``common.pt``, or the folder above with Megatron's tracker file
``.safetensors``                        a proxy's member checkpoint, with a header
``.pt``, ``.pth``, ``.bin``             a torch file, loaded with ``weights_only``
======================================= ==============================================================
"""

from decaylaws.recipe.checkpoints.facts import CheckpointFacts
from decaylaws.recipe.checkpoints.formats import read_facts, safetensors_shapes, tensor_shapes

__all__ = ["CheckpointFacts", "read_facts", "safetensors_shapes", "tensor_shapes"]
