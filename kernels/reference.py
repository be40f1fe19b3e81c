"""The definition of both operators: slow, exact PyTorch that autograd differentiates by itself.

Everything else in this package is checked against these functions in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.scan_order import ScanOrder


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S6 recurrence `h = exp(dt A) h + dt B u`, `y = C h + D u` (Mamba, arXiv:2312.00752).

    u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]` or `[B, N, L]`; D, delta_bias `[K*D]`.
    Returns `[B, K*D, L]` in u's dtype, times silu(z) where z `[B, K*D, L]` is given, and the states
    after the last step `[B, K*D, N]`; computed in float64 if an input is, else in float32.
    """
    dtype = accumulation_dtype(u, delta, A, B, C)
    n_channels = u.shape[1]
    x, dt, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    # Steps are taken apart once: indexing step t inside the loop would make the backward pass of
    # each step touch the whole tensor.
    Bs = _per_channel(B.to(dtype), n_channels).unbind(3)  # L x [B, K*D, N]
    Cs = _per_channel(C.to(dtype), n_channels).unbind(3)
    gates = dt.unsqueeze(3).unbind(2)  # L x [B, K*D, 1]
    inputs = (dt * x).unsqueeze(3).unbind(2)
    h = x.new_zeros(x.shape[0], n_channels, A.shape[1])
    outputs = []
    for t in range(x.shape[2]):
        h = torch.exp(gates[t] * A) * h + inputs[t] * Bs[t]
        outputs.append((h * Cs[t]).sum(-1))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h


def scan2d_reference(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder,
) -> Tensor:
    """Read `x` `[B, C, H, W]` in `order`, run one S6 per sequence, return the outputs to the map.

    x_proj_weight `[S, R+2N, C]`; dt_projs_weight `[S, C, R]`; dt_projs_bias `[S, C]`; A_logs `[S*C,
    N]`; Ds `[S*C]` for S parameter sets. Pads are scanned as zeros, so the state decays at them.
    Returns `[B, C, H, W]`; a token that no sequence reads gets 0.
    """
    batch, channels = x.shape[:2]
    dtype = accumulation_dtype(x, x_proj_weight, dt_projs_weight, A_logs)
    sets = torch.from_numpy(order.parameter_set.copy()).to(x.device)
    n_sets, rank = x_proj_weight.shape[0], dt_projs_weight.shape[2]
    n_states = A_logs.shape[1]

    xs = gather_tokens(x.to(dtype), order)  # [B, K, C, L]
    projected = torch.einsum("bkcl,kpc->bkpl", xs, x_proj_weight.to(dtype)[sets])
    dt, B, C = projected.split([rank, n_states, n_states], dim=2)
    delta = torch.einsum("bkrl,kcr->bkcl", dt, dt_projs_weight.to(dtype)[sets])
    A = -torch.exp(A_logs.to(dtype)).view(n_sets, channels, n_states)[sets]
    ys, _ = selective_scan_reference(
        xs.flatten(1, 2),
        delta.flatten(1, 2),
        A.flatten(0, 1),
        B,
        C,
        Ds.to(dtype).view(n_sets, channels)[sets].flatten(),
        dt_projs_bias.to(dtype)[sets].flatten(),
        delta_softplus=True,
    )
    y = put_back(ys.view(batch, order.n_sequences, channels, order.length), order)
    return y.to(x.dtype)


def gather_tokens(x: Tensor, order: ScanOrder) -> Tensor:
    """`[B, C, H, W]` to sequences `[B, K, C, L]`, zero at pads."""
    flat = F.pad(x.flatten(2), (0, 1))  # the last column is the zero that pads read
    index = torch.from_numpy(order.index.copy()).to(x.device).long()
    index = torch.where(index < 0, order.n_tokens, index)
    return flat[:, :, index].transpose(1, 2)


def put_back(ys: Tensor, order: ScanOrder) -> Tensor:
    """Sequences `[B, K, C, L]` to `[B, C, H, W]`: all visits of a token added, pads dropped."""
    batch, _, channels, _ = ys.shape
    index = torch.from_numpy(order.index.copy()).to(ys.device).long().flatten()
    index = torch.where(index < 0, order.n_tokens, index)
    flat = ys.new_zeros(batch, channels, order.n_tokens + 1)
    flat = flat.index_add(2, index, ys.transpose(1, 2).flatten(2))
    return flat[:, :, :-1].reshape(batch, channels, order.height, order.width)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32: the state is never kept in 16 bits."""
    is_double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if is_double else torch.float32


def _per_channel(m: Tensor, n_channels: int) -> Tensor:
    """B or C, `[B, K, N, L]` or `[B, N, L]`, for every channel: `[B, K*D, N, L]`."""
    grouped = m.unsqueeze(1) if m.dim() == 3 else m
    return grouped.repeat_interleave(n_channels // grouped.shape[1], dim=1)
