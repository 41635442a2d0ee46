"""Scoring of any Hugging Face causal LM folder: domains, question sets, a retrieval probe, lm-eval benchmarks."""
