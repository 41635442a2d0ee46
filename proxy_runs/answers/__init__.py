"""Questions as tokens, and what a model's logits say of their answers: the same for a sweep and for a checkpoint."""
