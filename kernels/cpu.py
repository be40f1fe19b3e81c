"""The CPU backend: compiled forward and backward of both operators, on torch's own threads.

float32 arithmetic; float16 and bfloat16 inputs are converted first. `kernels/_cpu/` has the loops.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._cpu import launch, run
from kernels.scan_order import ScanOrder


def unavailable_reason() -> str | None:
    """Why the kernel cannot run on this machine; None if it can."""
    return run.unavailable_reason()


def unsuitable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot take tensors of this device and type; None if it can."""
    if device.type != "cpu":
        return f"the CPU kernel takes tensors on the CPU, these are on {device}"
    if dtype == torch.float64:
        return "the CPU kernel computes in float32 and the inputs are float64"
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `kernels.selective_scan`."""
    zeros = A.new_zeros(A.shape[0], dtype=torch.float32)
    inputs = (
        u,
        delta,
        A,
        B.unsqueeze(1) if B.dim() == 3 else B,
        C.unsqueeze(1) if C.dim() == 3 else C,
        zeros if D is None else D,
        zeros if delta_bias is None else delta_bias,
    )
    ready = [t.float().contiguous() for t in inputs]
    y = _Scan.apply(*ready, delta_softplus, _will_differentiate(ready))
    return y.to(u.dtype)


def scan2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder,
) -> Tensor:
    """See `kernels.scan2d`."""
    batch, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    inputs = (tokens, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    ready = [t.float().contiguous() for t in inputs]
    y = _Scan2d.apply(*ready, order, _will_differentiate(ready))
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)


def _will_differentiate(tensors: list[Tensor]) -> bool:
    """Whether states must be stored; inside `forward` autograd no longer says it."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class _Scan2d(torch.autograd.Function):
    """Tokens `[B, H*W, C]` in, `[B, H*W, C]` out."""

    @staticmethod
    def forward(ctx, tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, order, keep):
        plan = launch.plan_of(order)
        projected = launch.project(tokens, x_proj, plan)
        inputs = launch.ScanInputs(
            plan, tokens, A_logs, Ds, dt_bias, projected=projected, dt_weight=dt_weight
        )
        y, checkpoints = launch.scan_forward(inputs, with_checkpoints=keep)
        if keep:
            ctx.plan = plan
            ctx.save_for_backward(
                tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, projected, checkpoints
            )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, projected, checkpoints = ctx.saved_tensors
        plan, n_sets = ctx.plan, dt_weight.shape[0]
        inputs = launch.ScanInputs(
            plan, tokens, A_logs, Ds, dt_bias, projected=projected, dt_weight=dt_weight
        )
        grads = launch.scan_backward(inputs, checkpoints, grad_y.contiguous())
        grad_x_proj = None
        if ctx.needs_input_grad[1]:
            per_sequence = launch.projection_weight_gradient(inputs, grads.projected)
            grad_x_proj = plan.sum_over_sets(per_sequence, n_sets)
        if ctx.needs_input_grad[0]:
            launch.add_projection_gradient(inputs, x_proj, grads.projected, grads.x)
        grad_a = plan.sum_over_sets(grads.a, n_sets).reshape(A_logs.shape)
        return (
            grads.x,
            grad_x_proj,
            plan.sum_over_sets(grads.dt_weight, n_sets),
            plan.sum_over_sets(grads.bias, n_sets),
            # A = -exp(A_logs)
            grad_a * -torch.exp(A_logs),
            plan.sum_over_sets(grads.skip, n_sets).reshape(Ds.shape),
            None,
            None,
        )


class _Scan(torch.autograd.Function):
    """Mamba's layout: u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]`; bias `[K*D]`."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus, keep):
        plan = launch.plain_plan(B.shape[1], u.shape[2])
        inputs = launch.ScanInputs(plan, u, A, D, bias, delta=delta, B=B, C=C, softplus=softplus)
        y, checkpoints = launch.scan_forward(inputs, with_checkpoints=keep)
        if keep:
            ctx.plan, ctx.softplus = plan, softplus
            ctx.save_for_backward(u, delta, A, B, C, D, bias, checkpoints)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, D, bias, checkpoints = ctx.saved_tensors
        inputs = launch.ScanInputs(
            ctx.plan, u, A, D, bias, delta=delta, B=B, C=C, softplus=ctx.softplus
        )
        grads = launch.scan_backward(inputs, checkpoints, grad_y.contiguous())
        return (
            grads.x,
            grads.delta,
            grads.a.reshape(A.shape),
            grads.B,
            grads.C,
            grads.skip.reshape(D.shape),
            grads.bias.reshape(bias.shape),
            None,
            None,
        )
