"""The queue of runs on Optuna's storage: who planned a run, who holds it, and what came of it; without torch."""
