"""The two public operators, their input checks and the choice of the backend."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_order, check_scan2d, check_selective_scan
from kernels.scan_order import ScanOrder, ScanSpec, scan_order

# Modules with `unavailable_reason() -> str | None`, `selective_scan` and `scan2d`.
_COMPILED = {"cpu": "kernels.cpu", "triton": "kernels.triton_scan"}
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
    backend: str = "auto",
) -> Tensor:
    """Selective scan (S6) in Mamba's layout: `h = exp(dt A) h + dt B u`, `y = C h + D u`.

    u, delta `[B, K*D, L]`; A `[K*D, N]`; B, C `[B, K, N, L]` or `[B, N, L]`; D, delta_bias `[K*D]`;
    dt is delta plus bias, through softplus if `delta_softplus`. Returns `[B, K*D, L]` in u's dtype;
    the state is kept in float32, or in float64 if an input is float64.
    """
    check_selective_scan(u, delta, A, B, C, D, delta_bias)
    dtype = reference.accumulation_dtype(u, delta, A, B, C)
    name, _ = resolve_backend(backend, u.device, dtype)
    if name == "reference":
        run = reference.selective_scan_reference
    else:
        run = _module(name).selective_scan
    with torch.autocast(u.device.type, enabled=False):
        return run(u, delta, A, B, C, D, delta_bias, delta_softplus)


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
    if isinstance(order, ScanOrder):
        if order_params:
            raise TypeError(f"{', '.join(order_params)} given beside a finished ScanOrder.")
        table = order
    else:
        table = scan_order(order, x.shape[2], x.shape[3], **order_params)
    check_order(table, x, x_proj_weight.shape[0])
    dtype = reference.accumulation_dtype(x, x_proj_weight, dt_projs_weight, A_logs)
    name, _ = resolve_backend(backend, x.device, dtype)
    run = reference.scan2d_reference if name == "reference" else _module(name).scan2d
    with torch.autocast(x.device.type, enabled=False):
        y = run(x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds, table)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return y.contiguous(memory_format=torch.channels_last)
    return y


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
    return _module(backend).unsuitable_reason(device, dtype)


def _unavailable_reason(backend: str) -> str | None:
    if backend == "reference":
        return None
    if importlib.util.find_spec(_COMPILED[backend]) is None:
        return f"this version has no {_WORDS[backend]} kernel yet"
    return _module(backend).unavailable_reason()


def _module(backend: str) -> ModuleType:
    return importlib.import_module(_COMPILED[backend])
