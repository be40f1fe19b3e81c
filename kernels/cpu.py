"""The CPU backend: compiled forward and backward of both operators, on torch's own threads.

float32 arithmetic; float16 and bfloat16 inputs are converted first. `cpu_loops.py` has the loops.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import cpu_runtime
from kernels.scan_order import ScanOrder


def unavailable_reason() -> str | None:
    """Why the kernel cannot run on this machine; None if it can."""
    return cpu_runtime.unavailable_reason()


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
    batch, n_channels, length = u.shape
    groups = B.shape[1] if B.dim() == 4 else 1
    states = A.shape[1]

    def rows(m: Tensor, width: int) -> Tensor:
        m = (
            m.float().view(batch, groups, width, length)
            if m.is_contiguous()
            else m.float().reshape(batch, groups, width, length)
        )
        return m.transpose(2, 3).contiguous()

    zeros = A.new_zeros(n_channels, dtype=torch.float32)
    y = _Scan.apply(
        rows(u, n_channels // groups),
        rows(delta, n_channels // groups),
        rows(B, states),
        rows(C, states),
        A.float(),
        zeros if D is None else D.float(),
        zeros if delta_bias is None else delta_bias.float(),
        delta_softplus,
    )
    return y.transpose(2, 3).reshape(batch, n_channels, length).to(u.dtype)


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
    tokens = x.permute(0, 2, 3, 1).float().contiguous().view(batch, height * width, channels)
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    y = _Scan2d.apply(tokens, *(p.float().contiguous() for p in parameters), order)
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)


class _Scan2d(torch.autograd.Function):
    """Tokens `[B, H*W, C]` in, `[B, H*W, C]` out."""

    @staticmethod
    def forward(ctx, tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, order):
        plan = cpu_runtime.plan_of(order)
        sets = plan.sets
        xs = plan.gather(tokens)  # [B, K, L, C]
        projected = torch.matmul(xs, x_proj[sets].transpose(1, 2))  # [B, K, L, R+2N]
        del xs
        needs_grad = any(ctx.needs_input_grad)
        y, checkpoints = cpu_runtime.scan_forward(
            tokens, projected, dt_weight, dt_bias, A_logs, Ds, plan, needs_grad
        )
        if needs_grad:
            ctx.save_for_backward(
                tokens, projected, x_proj, dt_weight, dt_bias, A_logs, Ds, checkpoints
            )
            ctx.plan = plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        tokens, projected, x_proj, dt_weight, dt_bias, A_logs, Ds, checkpoints = ctx.saved_tensors
        plan = ctx.plan
        n_sets, _, rank = dt_weight.shape
        g = cpu_runtime.scan_backward(
            grad_y.contiguous(),
            tokens,
            projected,
            dt_weight,
            dt_bias,
            A_logs,
            Ds,
            plan,
            checkpoints,
        )
        batch, n_sequences, length, channels = g.x.shape
        weight = dt_weight[plan.sets]  # [K, C, R]
        grad_projected = torch.cat([torch.matmul(g.delta, weight), g.bc], dim=3)
        grad_x_proj = grad_dt_weight = None
        by_sequence = (1, 0, 2, 3)
        if ctx.needs_input_grad[2]:
            left = g.delta.permute(by_sequence).reshape(n_sequences, -1, channels)
            right = projected[..., :rank].permute(by_sequence).reshape(n_sequences, -1, rank)
            grad_dt_weight = plan.sum_over_sets(torch.bmm(left.transpose(1, 2), right), n_sets)
        g.delta = None
        rows = grad_projected.permute(by_sequence).reshape(n_sequences, batch * length, -1)
        if ctx.needs_input_grad[1]:
            xs = plan.gather(tokens).permute(by_sequence).reshape(n_sequences, -1, channels)
            grad_x_proj = plan.sum_over_sets(torch.bmm(rows.transpose(1, 2), xs), n_sets)
            del xs
        grad_tokens = None
        if ctx.needs_input_grad[0]:
            g.x += torch.matmul(grad_projected, x_proj[plan.sets])
            grad_tokens = cpu_runtime.put_back(g.x, plan)
        grad_a = plan.sum_over_sets(g.a, n_sets).reshape(A_logs.shape) * -torch.exp(A_logs)
        grad_bias = plan.sum_over_sets(g.bias, n_sets)
        grad_skip = plan.sum_over_sets(g.skip, n_sets).reshape(n_sets * channels)
        return grad_tokens, grad_x_proj, grad_dt_weight, grad_bias, grad_a, grad_skip, None


class _Scan(torch.autograd.Function):
    """u, delta `[B, K, L, D]`; B, C `[B, K, L, N]`; A `[K*D, N]`; D, bias `[K*D]`."""

    @staticmethod
    def forward(ctx, u, delta, B, C, A, D, bias, softplus):
        needs_grad = any(ctx.needs_input_grad)
        groups, length = u.shape[1:3]
        plan = cpu_runtime.plain_plan(groups, length)
        bc = torch.cat([B, C], dim=3)
        A, D, bias = A.contiguous(), D.contiguous(), bias.contiguous()
        y, checkpoints = cpu_runtime.scan_forward(
            u, bc, None, bias, A, D, plan, needs_grad, delta=delta, softplus=softplus
        )
        if needs_grad:
            ctx.save_for_backward(u, delta, bc, A, D, bias, checkpoints)
            ctx.plan, ctx.softplus = plan, softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, bc, A, D, bias, checkpoints = ctx.saved_tensors
        g = cpu_runtime.scan_backward(
            grad_y.contiguous(),
            u,
            bc,
            None,
            bias,
            A,
            D,
            ctx.plan,
            checkpoints,
            delta=delta,
            softplus=ctx.softplus,
        )
        states = A.shape[1]
        return (
            g.x,
            g.delta,
            g.bc[..., :states],
            g.bc[..., states:],
            g.a.reshape(A.shape),
            g.skip.reshape(D.shape),
            g.bias.reshape(bias.shape),
            None,
        )
