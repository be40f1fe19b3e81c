"""The Triton backend: fused forward and backward of both operators for NVIDIA and AMD GPUs.

Activations in float32, bfloat16 or float16; states, gates and sums in float32. Triton is imported
when a kernel first runs, so this module can be imported without it. `kernels/_triton/` has the
kernels. With TRITON_INTERPRET=1 they run on the CPU, slowly and exactly: how they are tested.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from kernels._triton import launch, project
from kernels._triton.orders import Plan, plan_of, rows_plan
from kernels.scan_order import ScanOrder

# Shape and dtype of what the forward pass saves for the backward pass.
Saved = tuple[tuple[int, ...], torch.dtype]


def unavailable_reason() -> str | None:
    """Why the kernel cannot run on this machine; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not launch.is_interpreted() and not torch.cuda.is_available():
        return "no CUDA device"
    return None


def unsuitable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot take tensors of this device and type; None if it can.

    The first question about a GPU runs the kernels on it and compares them with the reference.
    """
    if dtype == torch.float64:
        return "the Triton kernel computes in float32 and the inputs are float64"
    if device.type == "cpu" and not launch.is_interpreted():
        return "the Triton kernel takes tensors on a GPU; on the CPU only with TRITON_INTERPRET=1"
    if device.type not in ("cpu", "cuda"):
        return f"the Triton kernel takes tensors on a GPU, these are on {device}"
    # The interpreter is what tests use to check the kernels themselves.
    return self_check(device) if device.type == "cuda" else None


def self_check(device: torch.device) -> str | None:
    """What is wrong with the kernels on `device`, found by running them once; None if nothing."""
    from kernels._triton import selfcheck

    return selfcheck.self_check(device)


def scan2d_forward(
    tokens: Tensor,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[B, T, C]` of tokens `[B, T, C]`, and what the backward pass needs if `keep`.

    That is projected `[B, K, L, R+2N]` and the stored states, both float32, see
    `saved_shapes_scan2d`; else two empty tensors. Parameters as in `kernels.scan2d`, in
    any floating dtype.
    """
    plan = plan_of(order, tokens.device)
    tokens = tokens.contiguous()
    projected = project.project(tokens, x_proj.contiguous(), plan)
    inputs = _map_inputs(plan, tokens, projected, A_logs, dt_bias, Ds, dt_weight)
    y, checkpoints, _ = launch.scan_forward(inputs, keep)
    if plan.is_sum:
        y = project.merge(y, plan, tokens.dtype)
    return y, projected if keep else projected.new_empty(0), checkpoints


def scan2d_backward(
    grad_y: Tensor,
    tokens: Tensor,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    projected: Tensor,
    checkpoints: Tensor,
    order: ScanOrder,
    x_wanted: bool = True,
    x_proj_wanted: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of tokens and the parameters, each in its dtype; empty where not wanted."""
    plan = plan_of(order, tokens.device)
    tokens, x_proj = tokens.contiguous(), x_proj.contiguous()
    inputs = _map_inputs(plan, tokens, projected, A_logs, dt_bias, Ds, dt_weight)
    grads = launch.scan_backward(inputs, checkpoints, grad_y.contiguous())
    n_sets = dt_weight.shape[0]

    def of(per_row: Tensor, like: Tensor) -> Tensor:
        return launch.sum_over_sets(per_row, plan, n_sets).reshape(like.shape).to(like.dtype)

    grad_tokens, grad_x_proj = tokens.new_empty(0), x_proj.new_empty(0)
    if x_wanted:
        project.add_projection_gradient(grads.x, grads.delta, x_proj, plan, tokens.dtype)
        grad_tokens = project.merge(grads.x, plan, tokens.dtype) if plan.is_sum else grads.x
    if x_proj_wanted:
        parts = project.projection_weight_gradient(tokens, grads.delta, plan)
        grad_x_proj = of(parts, x_proj)
    assert grads.dt_weight is not None
    return (
        grad_tokens,
        grad_x_proj,
        of(grads.dt_weight, dt_weight),
        of(grads.bias, dt_bias),
        of(grads.a, A_logs),
        of(grads.skip, Ds),
    )


def saved_shapes_scan2d(
    batch: int, order: ScanOrder, channels: int, rank: int, states: int
) -> tuple[Saved, Saved]:
    """What `scan2d_forward` saves: (dt, B, C) of all steps, and states between the chunks."""
    per_row = (batch, order.n_sequences)
    projected = (*per_row, order.length, rank + 2 * states)
    checkpoints = launch.checkpoints_shape(*per_row, order.length, channels, states)
    return (projected, torch.float32), (checkpoints, torch.float32)


def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[B, K*D, L]`, last state `[B, K*D, N]` and, if `keep`, the stored states.

    u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]`; D, bias `[K*D]`.
    """
    inputs = _rows_inputs(u, delta, A, B, C, D, bias, softplus)
    y, checkpoints, last = launch.scan_forward(inputs, keep, with_last=True)
    assert last is not None
    return y, last, checkpoints


def selective_scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, bias, each in its input's dtype."""
    inputs = _rows_inputs(u, delta, A, B, C, D, bias, softplus)
    grads = launch.scan_backward(inputs, checkpoints, grad_y.contiguous())

    def of(per_row: Tensor, like: Tensor) -> Tensor:
        return per_row.sum(0).reshape(like.shape).to(like.dtype)

    assert grads.B is not None and grads.C is not None
    return (
        grads.x,
        grads.delta,
        of(grads.a, A),
        grads.B.to(B.dtype),
        grads.C.to(C.dtype),
        of(grads.skip, D),
        of(grads.bias, bias),
    )


def saved_shapes_selective_scan(
    batch: int, groups: int, channels: int, length: int, states: int
) -> Saved:
    """What `selective_scan_forward` saves; `channels` are those of one group."""
    return launch.checkpoints_shape(batch, groups, length, channels, states), torch.float32


def _map_inputs(
    plan: Plan,
    tokens: Tensor,
    projected: Tensor,
    A_logs: Tensor,
    bias: Tensor,
    skip: Tensor,
    dt_weight: Tensor,
) -> launch.ScanInputs:
    a, bias, skip, weight = (t.contiguous() for t in (A_logs, bias, skip, dt_weight))
    return launch.ScanInputs(plan, tokens, projected, a, bias, skip, dt_weight=weight)


def _rows_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
) -> launch.ScanInputs:
    plan = rows_plan(B.shape[1], u.shape[2])
    u, delta, A, B, C, D, bias = (t.contiguous() for t in (u, delta, A, B, C, D, bias))
    return launch.ScanInputs(plan, u, delta, A, bias, D, B=B, C=C, softplus=softplus)
