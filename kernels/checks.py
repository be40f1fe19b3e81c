"""Checks of what the public operators are given; every message names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.scan_order import ScanOrder

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None = None,
) -> None:
    """Raise unless the shapes, dtypes and devices are those of `selective_scan`."""
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    given["z"] = z
    for name, matrix in (("A", A), ("B", B), ("C", C)):
        if isinstance(matrix, Tensor) and matrix.is_complex():
            raise TypeError(
                f"{name} is {matrix.dtype}: mamba_ssm's complex form is not supported; "
                "give real A, B and C."
            )
    _check_tensors(given, optional=("D", "delta_bias", "z"))
    if u.dim() != 3 or 0 in u.shape[1:]:
        raise ValueError(
            f"u must be [batch, channels, length], none but the batch 0; given {list(u.shape)}."
        )
    batch, channels, length = u.shape
    _check_shape("delta", delta, (batch, channels, length), "the shape of u")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ValueError(
            f"A must be [{channels}, states], u's channels first; given {list(A.shape)}."
        )
    n_states = A.shape[1]
    for name, matrix in (("B", B), ("C", C)):
        if tuple(matrix.shape) == (channels, n_states):
            raise ValueError(
                f"{name} is {list(matrix.shape)}: mamba_ssm's form without steps is not supported; "
                f"give [batch, {channels}, {n_states}, length], one group per "
                f"channel: {name}[None, :, :, None].expand({batch}, -1, -1, {length}), "
                "and the other of B and C likewise."
            )
    if B.dim() not in (3, 4):
        raise ValueError(
            "B must be [batch, groups, states, length] or [batch, states, length]; "
            f"given {list(B.shape)}."
        )
    if B.dim() == 3:
        _check_shape("B", B, (batch, n_states, length), "batch, states of A, length of u")
    else:
        groups = B.shape[1]
        _check_shape(
            "B", B, (batch, groups, n_states, length), "batch, groups, states of A, length of u"
        )
        if groups < 1 or channels % groups:
            raise ValueError(
                f"B has {groups} groups, which do not divide u's {channels} channels; "
                "give a number of groups that divides them."
            )
    if C.dim() + 1 == B.dim() and B.shape[1] == 1:
        C = C.unsqueeze(1)
    elif B.dim() + 1 == C.dim() and C.shape[1] == 1:
        B = B.unsqueeze(1)
    _check_shape("C", C, tuple(B.shape), "the shape of B")
    if z is not None:
        _check_shape("z", z, (batch, channels, length), "the shape of u")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            _check_shape(name, vector, (channels,), "u's channels")


def check_scan2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> None:
    """Raise unless the shapes, dtypes and devices are those of `scan2d`."""
    _check_tensors(
        {
            "x": x,
            "x_proj_weight": x_proj_weight,
            "dt_projs_weight": dt_projs_weight,
            "dt_projs_bias": dt_projs_bias,
            "A_logs": A_logs,
            "Ds": Ds,
        }
    )
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            "x must be [batch, channels, height, width], none but the batch 0; "
            f"given {list(x.shape)}."
        )
    channels = x.shape[1]
    if (
        dt_projs_weight.dim() != 3
        or dt_projs_weight.shape[1] != channels
        or 0 in dt_projs_weight.shape
    ):
        raise ValueError(
            f"dt_projs_weight must be [parameter sets, {channels}, rank], x's channels in the "
            f"middle; given {list(dt_projs_weight.shape)}."
        )
    n_sets, _, rank = dt_projs_weight.shape
    if A_logs.dim() != 2 or A_logs.shape[0] != n_sets * channels or A_logs.shape[1] < 1:
        raise ValueError(
            f"A_logs must be [{n_sets * channels}, states] for {n_sets} parameter sets of "
            f"{channels} channels; given {list(A_logs.shape)}."
        )
    width = rank + 2 * A_logs.shape[1]
    _check_shape(
        "x_proj_weight",
        x_proj_weight,
        (n_sets, width, channels),
        "parameter sets, rank + 2 * states, channels",
    )
    _check_shape("dt_projs_bias", dt_projs_bias, (n_sets, channels), "parameter sets, channels")
    _check_shape("Ds", Ds, (n_sets * channels,), "parameter sets * channels")


def check_map_size(order: ScanOrder, height: int, width: int) -> None:
    """Raise unless `order` is for a map of this size."""
    if order.height != height or order.width != width:
        raise ValueError(
            f"order is for a map of {order.height} x {order.width} tokens; x has {height} x "
            f"{width}. Build it with scan_order(name, {height}, {width})."
        )


def check_sets(order: ScanOrder, n_sets: int) -> None:
    """Raise unless `order` uses parameter sets that exist."""
    order.check_runnable()
    highest = int(order.parameter_set.max())
    if highest >= n_sets:
        raise ValueError(
            f"order {order.name!r} uses parameter set {highest}; the weights have sets 0 to "
            f"{n_sets - 1}."
        )


def _check_tensors(given: dict[str, Tensor | None], optional: tuple[str, ...] = ()) -> None:
    device: torch.device | None = None
    for name, tensor in given.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; given {type(tensor).__name__}.")
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{name} is {tensor.dtype}; allowed are float16, bfloat16, float32 and float64."
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} is {tensor.layout}; give a dense tensor, {name}.to_dense().")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, {next(iter(given))} on {device}; "
                "move all to one device."
            )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{name} must be {list(expected)} ({meaning}); given {list(tensor.shape)}."
        )
