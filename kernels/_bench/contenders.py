"""Who takes part: our backends and what is publicly available, behind one call.

A contender runs `Case.operator` on the case's inputs. Those that only know Mamba's selective scan
get the rest of `scan2d` (gather, projections, put back) from the plain PyTorch definition.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import backends, scan2d, selective_scan
from kernels._bench.cases import Case
from kernels._bench.chunked import chunked_selective_scan
from kernels.reference import gather_tokens, put_back
from kernels.scan_order import ScanOrder

SelectiveScan = Callable[..., Tensor]


@dataclass(frozen=True)
class Contender:
    """`states_kept`: float32 numbers held at the same time for each state update, (forward, with
    backward): the growth of resident memory on Tiny stage 1 at 224 px, rounded up. `io_kept`: the
    same for each number that goes in or out."""

    name: str
    states_kept: tuple[float, float] = (0.0, 0.0)
    io_kept: tuple[float, float] = (3.0, 5.0)
    is_padded: bool = False  # sequences grow to the next power of two
    needs_gpu: bool = False
    on_cpu_only: bool = False
    is_ours: bool = False

    def bytes_needed(self, case: Case, which: str) -> float:
        """Estimated peak memory of one call, inputs and outputs included."""
        column = 0 if which == "forward" else 1
        length = case.shape[2]
        padded = 2.0 ** (length - 1).bit_length() / length if self.is_padded else 1.0
        states = 4 * self.states_kept[column] * case.n_states * padded
        return states + self.io_kept[column] * case.io_bytes

    def operate(self, case: Case, inputs: Sequence[Tensor]) -> Tensor:
        if self.is_ours:
            if case.operator == "scan2d":
                return scan2d(*inputs, order=case.table, backend=self.name)
            u, delta, A, B, C, D, bias = inputs
            return selective_scan(u, delta, A, B, C, D, bias, True, backend=self.name)
        scan = _SCANS[self.name]
        if case.operator == "scan2d":
            return scan2d_with(scan, case.table, *inputs)
        return scan(*inputs, True)

    def device(self, default: torch.device) -> torch.device:
        return torch.device("cpu") if self.on_cpu_only else default


CONTENDERS = {
    c.name: c
    for c in (
        Contender("cpu", io_kept=(1.5, 3.5), on_cpu_only=True, is_ours=True),
        Contender("triton", io_kept=(1.5, 3.5), needs_gpu=True, is_ours=True),
        Contender("mamba_ssm", needs_gpu=True),
        Contender("selective_scan_cuda_oflex", needs_gpu=True),
        Contender("chunked", states_kept=(3.0, 6.0)),
        Contender("mambapy", states_kept=(4.7, 8.0), is_padded=True),
        Contender("reference", states_kept=(3.5, 7.0), is_ours=True),
    )
}


def why_unavailable(name: str, device: torch.device) -> str | None:
    """None if the contender can run in this process, else words for its rows."""
    contender = CONTENDERS[name]
    if contender.needs_gpu and device.type != "cuda":
        return "not run: no CUDA device"
    if contender.is_ours:
        reason = backends()[name]
        return None if reason is None else f"not run: {reason}"
    if name == "mambapy":
        return None if _module("mambapy.pscan") else "not run: pip install mambapy"
    if name == "mamba_ssm":
        # Since 2026-07 mamba-ssm installs without this extension unless it is asked for.
        found = _module("selective_scan_cuda") and _module(_MAMBA_SSM)
        return None if found else "not installed"
    if name == "selective_scan_cuda_oflex":
        return None if _module(name) else "not installed"
    return None


def scan2d_with(
    scan: SelectiveScan,
    order: ScanOrder,
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> Tensor:
    """`kernels.scan2d` around any selective scan with Mamba's signature; each sequence has its own
    parameter set."""
    batch = len(x)
    rank, states = dt_projs_weight.shape[2], A_logs.shape[1]
    xs = gather_tokens(x, order)  # [B, K, C, L]
    projected = torch.einsum("bkcl,kpc->bkpl", xs, x_proj_weight)
    dt, B, C = projected.split([rank, states, states], dim=2)
    delta = torch.einsum("bkrl,kcr->bkcl", dt, dt_projs_weight)
    ys = scan(
        xs.flatten(1, 2).contiguous(),
        delta.flatten(1, 2).contiguous(),
        -torch.exp(A_logs),
        B.contiguous(),
        C.contiguous(),
        Ds,
        dt_projs_bias.flatten(),
        True,
    )
    return put_back(ys.view(batch, *xs.shape[1:]), order)


def mambapy_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """mamba.py's parallel scan of all states, with its discretisation around it.

    `mambapy.pscan.pscan` takes decays and inputs `[B, L, D, N]` and returns the states.
    """
    pscan = importlib.import_module("mambapy.pscan").pscan
    dt = (delta + delta_bias[:, None]).transpose(1, 2)  # [B, L, K*D]
    if delta_softplus:
        dt = torch.nn.functional.softplus(dt)
    per_group = u.shape[1] // B.shape[1]
    Bs, Cs = (m.permute(0, 3, 1, 2).unsqueeze(3) for m in (B, C))  # [B, L, K, 1, N]
    x = (dt * u.transpose(1, 2)).unflatten(2, (-1, per_group)).unsqueeze(4)  # [B, L, K, d, 1]
    states = pscan(torch.exp(dt.unsqueeze(3) * A), (x * Bs).flatten(2, 3))
    y = (states.unflatten(2, (-1, per_group)) * Cs).sum(4).flatten(2)  # [B, L, K*D]
    return y.transpose(1, 2) + D[:, None] * u


def _mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    scan = importlib.import_module(_MAMBA_SSM).selective_scan_fn
    return scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


class _Oflex(torch.autograd.Function):
    """VMamba's extension has the two passes and leaves autograd to its callers."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        extension = importlib.import_module("selective_scan_cuda_oflex")
        *tensors, softplus = inputs
        n_rows, is_output_float32 = 1, True
        y, states, *_ = extension.fwd(*tensors, softplus, n_rows, is_output_float32)
        ctx.softplus = softplus
        ctx.save_for_backward(*tensors, states)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        extension = importlib.import_module("selective_scan_cuda_oflex")
        *tensors, states = ctx.saved_tensors
        n_rows = 1
        results = extension.bwd(*tensors, grads[0].contiguous(), states, ctx.softplus, n_rows)
        return (*results[:7], None)


_MAMBA_SSM = "mamba_ssm.ops.selective_scan_interface"
_SCANS: dict[str, SelectiveScan] = {
    "chunked": chunked_selective_scan,
    "mambapy": mambapy_selective_scan,
    "mamba_ssm": _mamba_ssm,
    "selective_scan_cuda_oflex": _Oflex.apply,
}


def _module(name: str) -> bool:
    """Whether it imports. An extension built for another torch fails with any error it likes."""
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True
