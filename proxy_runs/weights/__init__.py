"""Checkpoints, averages of weights, and Hugging Face folders."""
