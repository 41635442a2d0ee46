"""How the experts of a mixture-of-experts model are kept evenly used while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from decaylaws.errors import DataError
from decaylaws.recipe.families import num_experts

BALANCING_BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class Balance:
    """What balances the experts.

    Attributes:
        weight: of the balance loss in the objective; 0 for none.
        note: the same in words; empty for a model without experts.
    """

    weight: float
    note: str


def balance_of(lm: PreTrainedModel, wanted: float | None) -> Balance:
    """The balance loss of ``lm``.

    Args:
        lm: any causal LM.
        wanted: weight of the balance loss; ``None`` takes the checkpoint's own.

    Raises:
        DataError: the model has experts, and nothing that is known here would balance them.
    """
    config = lm.config.get_text_config()
    if num_experts(config.to_dict()) < 2:
        return Balance(0.0, "")
    own = getattr(config, "router_aux_loss_coef", None)
    weight = own if wanted is None else wanted
    if weight == 0:
        return Balance(0.0, "The experts are trained without a balance loss, as its weight of 0 asks.")
    if own is not None and weight is not None:
        return Balance(weight, f"The experts' balance loss has the weight {weight:g}.")
    if wanted is None and any(BALANCING_BIAS in name for name in lm.state_dict()):
        # DeepSeek-V3 (section 4.2) trained its last 500B tokens with an update speed of 0, too
        return Balance(
            0.0, f"The experts are balanced by {BALANCING_BIAS}, which stays as the checkpoint has it."
        )
    raise DataError(
        f"The {config.model_type!r} model routes tokens to experts, and transformers has no balance loss for it. "
        "Train it with its own trainer ('decaylaws export'), or without a balance loss: --set router_aux_loss_coef=0."
    )
