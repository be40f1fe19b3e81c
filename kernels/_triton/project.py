"""Host side of `kernels/_triton/projection.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._triton.configs import (
    PROJECTION_CHANNELS,
    PROJECTION_STAGES,
    PROJECTION_STEPS,
    PROJECTION_WARPS,
    merge_constants,
    projection_constants,
)
from kernels._triton.launch import is_interpreted, on_device
from kernels._triton.orders import Plan

# Into how many parts the sum over a batch is cut for the gradient of the weights: a fixed number,
# so that the result does not depend on the device.
PARTS = 32

COMPILED = {"num_warps": PROJECTION_WARPS, "num_stages": PROJECTION_STAGES}


def project(tokens: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """Tokens `[B, T, C]` along the order times `weight` `[S, P, C]`: `[B, K, L, P]`, float32.

    For C channels these R+2N numbers are few, and 16 bits of dt would be the largest error of all.
    """
    from kernels._triton.projection import project_kernel

    batch, _, channels = tokens.shape
    width = weight.shape[1]
    out = tokens.new_empty(batch, plan.n_sequences, plan.length, width, dtype=torch.float32)
    programs = batch * plan.n_sequences * -(-plan.length // PROJECTION_STEPS)
    with on_device(tokens):
        project_kernel[(programs,)](
            *(tokens, weight, plan.order, plan.sets, out),
            *_sizes(plan, channels, width),
            **projection_constants(width, plan.kind, tokens.dtype, is_interpreted()),
            **COMPILED,
        )
    return out


def add_projection_gradient(
    grad_x: Tensor, grad_projected: Tensor, weight: Tensor, plan: Plan, dtype: torch.dtype
) -> None:
    """Add what reaches the tokens through the projection to grad_x, `[B, T, C]` or per step `[B,
    K, L, C]`; `dtype` is that of the tokens."""
    from kernels._triton.projection import project_back_kernel

    batch, channels, width = grad_x.shape[0], grad_x.shape[-1], weight.shape[1]
    slabs = -(-channels // PROJECTION_CHANNELS)
    programs = batch * plan.n_sequences * -(-plan.length // PROJECTION_STEPS) * slabs
    with on_device(grad_x):
        project_back_kernel[(programs,)](
            *(grad_projected, weight, plan.order, plan.sets, grad_x),
            *_sizes(plan, channels, width),
            **projection_constants(width, plan.kind, _gradient_dtype(dtype), is_interpreted()),
            **COMPILED,
            IS_SUM=plan.is_sum,
        )


def projection_weight_gradient(tokens: Tensor, grad_projected: Tensor, plan: Plan) -> Tensor:
    """Gradient of the projection's weights per part and sequence: `[parts, K, P, C]`, float32."""
    from kernels._triton.projection import project_weight_kernel

    batch, _, channels = tokens.shape
    width = grad_projected.shape[3]
    parts = max(1, min(PARTS, batch * -(-plan.length // PROJECTION_STEPS)))
    out = tokens.new_empty(parts, plan.n_sequences, width, channels, dtype=torch.float32)
    programs = parts * plan.n_sequences * -(-channels // PROJECTION_CHANNELS)
    with on_device(tokens):
        project_weight_kernel[(programs,)](
            *(tokens, grad_projected, plan.order, out),
            *_sizes(plan, channels, width),
            *(batch, parts),
            **projection_constants(
                width, plan.kind, _gradient_dtype(tokens.dtype), is_interpreted()
            ),
            **COMPILED,
        )
    return out


def merge(per_step: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """Per step `[B, K, L, C]` to tokens `[B, T, C]`, all visits of a token added."""
    from kernels._triton.projection import merge_kernel

    batch, n_sequences, length, channels = per_step.shape
    assert plan.visits is not None
    out = per_step.new_empty(batch, plan.n_tokens, channels, dtype=dtype)
    blocks = -(-plan.n_tokens // PROJECTION_STEPS) * -(-channels // PROJECTION_CHANNELS)
    with on_device(per_step):
        merge_kernel[(batch * blocks,)](
            *(per_step, plan.visits, out, plan.n_tokens, n_sequences * length, channels),
            plan.visits.shape[0],
            **merge_constants(),
            **COMPILED,
        )
    return out


def _sizes(plan: Plan, channels: int, width: int) -> list[int]:
    return [plan.n_tokens, plan.length, plan.n_sequences, channels, width]


def _gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Gradients of (dt, B, C) leave the range of float16 long before those of tokens do."""
    return torch.float32 if dtype == torch.float16 else dtype
