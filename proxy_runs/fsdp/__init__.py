"""Full-scale training of a recipe: torchrun, FSDP2, DCP; any Hugging Face causal LM by local path.

The launcher writes :class:`~proxy_runs.fsdp.settings.TrainSettings` to a file and starts
``torchrun -m proxy_runs.fsdp settings.json``. Each rank then builds the same plan of global steps
(``plan``), shards the model (``model``), and trains (``trainer``); ``checkpoint`` keeps states that any
number of ranks can take up. Batches are the proxies' batches, sequence for sequence: ranks read slices of one
global order, so the world size changes nothing but the speed.
"""
