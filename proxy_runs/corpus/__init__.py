"""From text to token shards: extraction, clean-up, split, tokenizer, manifest.

::

    from proxy_runs.corpus.prepare import prepare_corpus
"""
