"""The two public operators, their input checks and the choice of the backend."""

from __future__ import annotations

import importlib.util
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference, torch_ops
from kernels.checks import check_map_size, check_scan2d, check_selective_scan, check_sets
from kernels.operands import Operands, order_of, order_table, order_text, traced_once
from kernels.scan_order import ScanOrder, ScanSpec

_WORDS = {"cpu": "compiled CPU", "triton": "Triton"}
BACKENDS = ("reference", "cpu", "triton")


def backends() -> dict[str, str | None]:
    """Each backend's name and why it cannot be used here; None means that it can."""
    return {name: _unavailable_reason(name) for name in BACKENDS}


def resolve_backend(
    backend: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[str, str]:
    """The backend that runs tensors of `dtype` on `device`, and why, in words.

    "auto" takes Triton on a CUDA device, the compiled kernel on a CPU, and the reference where
    neither can run. A backend that is named explicitly is returned or refused, never replaced.
    """
    device = torch.device(device)
    if backend == "auto":
        return _choose(device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known are auto, {', '.join(BACKENDS)}.")
    problem = _unsuitable_reason(backend, device, dtype)
    if problem is not None:
        raise RuntimeError(f"backend {backend!r} cannot run: {problem}. Use backend='auto'.")
    return backend, "asked for by name"


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    return_last_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    return_last_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    return_last_state: bool,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (S6) in Mamba's layout: `h = exp(dt A) h + dt B u`, `y = C h + D u`.

    u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]` or `[B, N, L]`; D, delta_bias `[K*D]`;
    z `[B, K*D, L]`. dt is delta plus bias, through softplus if `delta_softplus`; with z the output
    is `y * silu(z)`. Returns `[B, K*D, L]` in u's dtype; the state is kept in float32, or in
    float64 if an input is float64. With `return_last_state` also the state after the last step,
    `[B, K*D, N]` float32, through which no gradient flows (as in mamba_ssm).
    """
    check_selective_scan(u, delta, A, B, C, D, delta_bias, z)
    dtype = reference.accumulation_dtype(u, delta, A, B, C)
    name = _backend_name(backend, u.device, dtype)
    if name == "reference":
        with torch_ops.no_autocast(u.device):
            y, last_state = reference.selective_scan_reference(
                u, delta, A, B, C, D, delta_bias, delta_softplus, z
            )
    else:
        zeros = A.new_zeros(A.shape[0], dtype=torch.float32)
        y, last_state = torch_ops.selective_scan(
            # The gate is applied before y is rounded to 16 bits.
            u if z is None else u.float(),
            delta,
            A,
            B.unsqueeze(1) if B.dim() == 3 else B,
            C.unsqueeze(1) if C.dim() == 3 else C,
            zeros if D is None else D,
            zeros if delta_bias is None else delta_bias,
            delta_softplus,
            name,
        )
        if z is not None:
            y = (y * F.silu(z.float())).to(u.dtype)
    return (y, last_state.detach().float()) if return_last_state else y


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan` with mamba_ssm's name and order of arguments, to put in its place."""
    return selective_scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        delta_bias,
        delta_softplus,
        z=z,
        return_last_state=return_last_state,
    )


def scan2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    *,
    order: str | ScanSpec | ScanOrder = "es2d",
    backend: str = "auto",
    **order_params: int,
) -> Tensor:
    """Scan a map of tokens along `order`: gather, project to (dt, B, C), S6, put back.

    x `[B, C, H, W]`; with S parameter sets: x_proj_weight `[S, R+2N, C]`, dt_projs_weight `[S, C,
    R]`, dt_projs_bias `[S, C]`, A_logs `[S*C, N]`, Ds `[S*C]`. Returns `[B, C, H, W]` in x's dtype,
    in channels-last memory if x is (the fast path). `order` is a name, a `ScanSpec` or a table of
    your own; `order_params` are a named scheme's parameters (`step=3`).
    """
    check_scan2d(x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    batch, channels, height, width = x.shape
    if isinstance(order, ScanOrder):
        check_map_size(order, height, width)
    operands = Operands(order_text(order, **order_params), height, width, order_table(order))
    dtype = reference.accumulation_dtype(x, x_proj_weight, dt_projs_weight, A_logs)
    name = _backend_name(backend, x.device, dtype)
    if name == "reference":
        table = order_of(*operands)
        check_sets(table, x_proj_weight.shape[0])
        with torch_ops.no_autocast(x.device):
            y = reference.scan2d_reference(
                x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds, table
            )
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return y.contiguous(memory_format=torch.channels_last)
        return y
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    y = torch_ops.scan2d(
        tokens,
        x_proj_weight,
        dt_projs_weight,
        dt_projs_bias,
        A_logs,
        Ds,
        operands,
        name,
    )
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


@traced_once
def _backend_name(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    return resolve_backend(backend, device, dtype)[0]


def _choose(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    if device.type == "cuda":
        name, words = "triton", "fused kernel for this GPU"
    elif device.type == "cpu":
        name, words = "cpu", "compiled kernel for this processor"
    else:
        return "reference", f"no compiled kernel for {device.type}; plain PyTorch, slow"
    problem = _unsuitable_reason(name, device, dtype)
    if problem is None:
        return name, words
    return "reference", f"{problem}; plain PyTorch, slow"


def _unsuitable_reason(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    problem = _unavailable_reason(backend)
    if problem is not None or backend == "reference":
        return problem
    return torch_ops.backend_module(backend).unsuitable_reason(device, dtype)


def _unavailable_reason(backend: str) -> str | None:
    if backend == "reference":
        return None
    if importlib.util.find_spec(torch_ops.COMPILED[backend]) is None:
        return f"this version has no {_WORDS[backend]} kernel yet"
    return torch_ops.backend_module(backend).unavailable_reason()
