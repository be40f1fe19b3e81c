"""Why a number is not finite, in one sentence for the user."""

from __future__ import annotations

import torch
from torch import nn


def explain_non_finite(model: nn.Module, what: str) -> str:
    """Message for a NaN or infinity in `what`; names the first tensor of weights that holds one."""
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            n_bad = int((~torch.isfinite(tensor)).sum())
            return (
                f"NaN or infinity in {what}: the weights hold {n_bad} such value(s) in {name!r}. "
                "Load other weights."
            )
    return (
        f"NaN or infinity in {what}, although every weight is finite: the numbers overflow for "
        "this photo. Try another photo or other weights."
    )
