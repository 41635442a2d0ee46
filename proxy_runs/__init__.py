"""The only place that spends compute: proxies, microanneals and the full-scale launch, on torch."""

from importlib.util import find_spec

from decaylaws.errors import MissingExtraError

if not all(find_spec(name) for name in ("torch", "tokenizers", "transformers")):
    raise MissingExtraError("The trainer (prepare, run, confirm, launch, evaluate)", "train")
