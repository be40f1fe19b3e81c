"""The CPU backend: compiled forward and backward of both operators, on torch's own threads.

Pure functions of tensors; `kernels/torch_ops.py` makes operators of them that autograd and the
compiler know. float32 arithmetic; float16 and bfloat16 inputs are converted first. `kernels/_cpu/`
has the loops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._cpu import launch, run
from kernels._cpu.columns import LANES
from kernels._cpu.launch import Plan, ScanInputs
from kernels.scan_order import ScanOrder

# Shape and type of what the forward pass saves for the backward pass.
Saved = tuple[tuple[int, ...], torch.dtype]
# (dt, B, C) of all steps are kept, and made at once, if they take no more than half of what the
# tokens take, or are small; else sequence after sequence, and made again for the gradients.
_SMALL_BYTES = 1 << 20


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


def saved_shapes_scan2d(
    batch: int, order: ScanOrder, channels: int, rank: int, states: int
) -> tuple[Saved, Saved]:
    """What `scan2d_forward` saves: (dt, B, C) of all steps, and states between the chunks."""
    n, length, width = order.n_sequences, order.length, rank + 2 * states
    projected: tuple[int, ...] = (batch, n, length, width)
    if _is_sliced(batch, order, channels, width):
        projected = (0,)
    checkpoints = launch.checkpoint_shape(batch, n, length, channels, states)
    return (projected, torch.float32), (checkpoints, torch.float32)


def saved_shapes_selective_scan(
    batch: int, groups: int, channels: int, length: int, states: int
) -> Saved:
    """What `selective_scan_forward` saves; `channels` are those of one group."""
    return launch.checkpoint_shape(batch, groups, length, channels, states), torch.float32


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
    """Outputs `[B, T, C]` in tokens' type, and what is saved (empty unless `keep`).

    tokens `[B, T, C]` of a map of T tokens; parameters as in `kernels.scan2d`.
    """
    x, bias, A, skip, low = (_ready(t) for t in (tokens, dt_bias, A_logs, Ds, dt_weight))
    batch, _, channels = x.shape
    width, states = x_proj.shape[1], A.shape[1]
    plan = launch.plan_of(order)
    weight = launch.in_vectors(x_proj.float())
    y = plan.outputs(x)
    is_sliced = _is_sliced(batch, order, channels, width)
    projected, checkpoints = x.new_empty(0), x.new_empty(0)
    if keep:
        shape = launch.checkpoint_shape(batch, order.n_sequences, order.length, channels, states)
        checkpoints = x.new_empty(shape)
    made = None
    for part, stored in _parts(plan, checkpoints, is_sliced):
        made = launch.project(x, weight, width, part, made)
        inputs = ScanInputs(part, x, A, skip, bias, projected=made, dt_weight=low)
        launch.scan_forward(inputs, y, stored if keep else None)
        if keep and not is_sliced:
            projected = made
    return y.to(tokens.dtype), projected, checkpoints


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
    """Gradients of tokens and the parameters, each in its type; empty where not wanted."""
    x, bias, A, skip, low = (_ready(t) for t in (tokens, dt_bias, A_logs, Ds, dt_weight))
    grad_y, weight = _ready(grad_y), _ready(x_proj)
    plan, n_sets, width = launch.plan_of(order), dt_weight.shape[0], x_proj.shape[1]
    is_sliced = _is_sliced(x.shape[0], order, x.shape[2], width)
    grad_x = plan.outputs(x)
    columns = launch.in_vectors(weight) if is_sliced else None
    of_parameters: list[list[Tensor]] = []
    made = None if is_sliced else projected
    room = None
    for part, stored in _parts(plan, checkpoints, is_sliced):
        if columns is not None:
            made = launch.project(x, columns, width, part, made)
        inputs = ScanInputs(part, x, A, skip, bias, projected=made, dt_weight=low)
        grads = launch.scan_backward(inputs, stored, grad_y, grad_x, room)
        room = grads.room
        assert grads.projected is not None and grads.dt_weight is not None
        if x_wanted:
            launch.add_projection_gradient(inputs, weight, grads.projected, grad_x)
        of_parameters.append([grads.dt_weight, grads.bias, grads.a, grads.skip])
        if x_proj_wanted:
            of_weight = launch.projection_weight_gradient(inputs, grads.projected)
            of_parameters[-1].append(of_weight)
    of_low, of_bias, of_a, of_skip, *of_weights = (
        plan.sum_over_sets(parts[0] if len(parts) == 1 else torch.cat(parts), n_sets)
        for parts in map(list, zip(*of_parameters, strict=True))
    )
    return (
        grad_x.to(tokens.dtype) if x_wanted else tokens.new_empty(0),
        of_weights[0].to(x_proj.dtype) if x_proj_wanted else x_proj.new_empty(0),
        of_low.to(dt_weight.dtype),
        of_bias.to(dt_bias.dtype),
        # A = -exp(A_logs)
        (of_a.reshape(A.shape) * -torch.exp(A)).to(A_logs.dtype),
        of_skip.reshape(Ds.shape).to(Ds.dtype),
    )


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
    """Outputs `[B, K*D, L]` in u's type, last states `[B, K*D, N]` float32, what is saved.

    Mamba's layout: u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]`; D, bias `[K*D]`.
    """
    inputs = _rows(u, delta, A, B, C, D, bias, softplus)
    y = torch.empty_like(inputs.x)
    n = inputs.plan.n_sequences
    saved, checkpoints = None, inputs.x.new_empty(0)
    if keep:
        shape = launch.checkpoint_shape(
            inputs.batch, n, inputs.plan.length, inputs.channels, inputs.states
        )
        saved = checkpoints = inputs.x.new_empty(shape)
    sizes = (inputs.batch, n, inputs.blocks, inputs.padded_states, LANES)
    last_state = inputs.x.new_empty(sizes)
    launch.scan_forward(inputs, y, saved, last_state)
    states = launch.per_channel_states(last_state, inputs.channels, inputs.states)
    return y.to(u.dtype), states, checkpoints


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
    """Gradients of all seven tensors, each in its type."""
    inputs = _rows(u, delta, A, B, C, D, bias, softplus)
    grad_u = torch.empty_like(inputs.x)
    grads = launch.scan_backward(inputs, checkpoints, _ready(grad_y), grad_u)
    assert grads.delta is not None and grads.B is not None and grads.C is not None
    return (
        grad_u.to(u.dtype),
        grads.delta.to(delta.dtype),
        grads.a.reshape(A.shape).to(A.dtype),
        grads.B.to(B.dtype),
        grads.C.to(C.dtype),
        grads.skip.reshape(D.shape).to(D.dtype),
        grads.bias.reshape(bias.shape).to(bias.dtype),
    )


def _ready(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


def _rows(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
) -> ScanInputs:
    u, delta, A, B, C, D, bias = (_ready(t) for t in (u, delta, A, B, C, D, bias))
    plan = launch.plain_plan(B.shape[1], u.shape[2])
    return ScanInputs(plan, u, A, D, bias, delta=delta, B=B, C=C, softplus=softplus)


def _is_sliced(batch: int, order: ScanOrder, channels: int, width: int) -> bool:
    values = order.n_sequences * order.length * width
    is_small = 4 * batch * values <= _SMALL_BYTES
    return not is_small and order.n_sequences > 1 and 2 * values > order.n_tokens * channels


def _parts(plan: Plan, checkpoints: Tensor, is_sliced: bool) -> list[tuple[Plan, Tensor]]:
    """What is scanned at a time, and its checkpoints: everything, or each sequence alone."""
    if not is_sliced:
        return [(plan, checkpoints)]
    return list(zip(plan.single_sequences(), checkpoints.chunk(plan.n_sequences), strict=True))
