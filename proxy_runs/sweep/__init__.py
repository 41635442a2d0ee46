"""The queue on Optuna's storage, workers and what they measure."""
