"""Sizes of a network's maps and its cost, without weights."""

from __future__ import annotations

from typing import Any

import torch

import models
from models.registry import model_spec


def stage_shape(model: Any, stage: int, height: int, width: int) -> tuple[int, int, int]:
    """(rows, columns, stride) of the output of `stage` (1-based) for an input of `height` x `width`
    px.

    The stem drops an incomplete last patch, patch merging pads an odd side to even.
    """
    strides = [info["reduction"] for info in model.feature_info]
    rows, columns = height // strides[0], width // strides[0]
    for _ in range(stage - 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns, strides[stage - 1]


def cost_of(model: str, size: int) -> models.Complexity:
    """Parameters and multiply-accumulates of a registered model for `size` x `size` px."""
    spec = model_spec(model)
    # Counting needs shapes only: no memory, no initial weights.
    with torch.device("meta"):
        network = models.EfficientVMamba(spec.dims, spec.depths)
    return models.complexity(network, size)
