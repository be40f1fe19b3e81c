"""The comparison before any timing: one image against the float64 reference.

For small shapes the output and every gradient are compared in full. For the others the float64
answer would take gigabytes, so a sample of channels is compared: their output, and every gradient
of a loss that looks at these channels only. The scan still has its full length, the projections all
channels, and gradients that must be zero are compared too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels._bench.cases import Case
from kernels.reference import gather_tokens, put_back
from kernels.scan_order import ScanOrder
from kernels.selective_scan import selective_scan

TOLERANCE = 1e-5  # relative L2, output and every gradient
FULL_STATES = 3_500_000  # state updates whose float64 answer is still computed in full
SAMPLED_CHANNELS = 6


class Exact:
    """The float64 answer for the first image of a case: output and gradients of the compared
    rows."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        """`dtype`: what x (or u) is rounded to before the float64 computation."""
        channels = _compared_channels(case)
        self.per_image_inputs = (0,) if case.operator == "scan2d" else (0, 1, 3, 4)
        inputs = case.inputs(batch=1)
        inputs[0] = inputs[0].to(dtype)
        leaves = [t.double().requires_grad_() for t in inputs]
        if case.operator == "scan2d":
            self.rows = channels  # along dimension 1 of the output
            y = _scan2d_rows(leaves, channels, case.table)
        else:
            groups = torch.arange(case.shape[1])[:, None]
            self.rows = (groups * case.channels + channels).flatten()
            u, delta, A, B, C, D, bias = leaves
            r = self.rows
            chosen = (u[:, r], delta[:, r], A[r], B, C, D[r], bias[r])
            y = selective_scan(*chosen, delta_softplus=True, backend="reference")
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        self.grad_y = weights.to(dtype).float()
        # Rounding to float32 is far below the tolerance and halves what is kept.
        gradients = torch.autograd.grad(y, leaves, self.grad_y.double())
        self.gradients = [g.float() for g in gradients]
        self.y = y.detach().float()

    def full_grad_y(self, y: Tensor) -> Tensor:
        """Weights of the whole output `y`; the first image's see only the compared rows."""
        grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        grad_y[0] = 0
        grad_y[:1, self.rows] = self.grad_y
        return grad_y.to(y.device, y.dtype)

    def error(self, y: Tensor, gradients: Sequence[Tensor] = ()) -> float:
        """Largest relative L2 error; NaN if anything is not finite.

        Of a batch, the first image's output and its own gradients are compared; those of the
        parameters sum over images, so they are compared for one image alone.
        """
        pairs = [(y[:1, self.rows.to(y.device)], self.y)]
        if len(y) == 1:
            pairs += list(zip(gradients, self.gradients, strict=bool(gradients)))
        elif gradients:
            pairs += [(gradients[i][:1], self.gradients[i]) for i in self.per_image_inputs]
        if not all(bool(t.isfinite().all()) for t in (y, *gradients)):
            return float("nan")
        return max(relative_l2(given, exact) for given, exact in pairs)


def relative_l2(given: Tensor, exact: Tensor) -> float:
    exact = exact.double()
    return float((given.detach().cpu().double() - exact).norm() / exact.norm())


def is_right(error: float) -> bool:
    """False for NaN too."""
    return error <= TOLERANCE


def _compared_channels(case: Case) -> Tensor:
    one_image = case.n_states // case.batch
    if one_image <= FULL_STATES:
        return torch.arange(case.channels)
    return torch.linspace(0, case.channels - 1, SAMPLED_CHANNELS).long()


def _scan2d_rows(leaves: Sequence[Tensor], channels: Tensor, order: ScanOrder) -> Tensor:
    """`scan2d_reference` for these channels of the output; each sequence has its own parameters."""
    x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds = leaves
    sequences, n_channels, rank = dt_projs_weight.shape
    states = A_logs.shape[1]
    xs = gather_tokens(x, order)  # [1, K, C, L]
    projected = torch.einsum("bkcl,kpc->bkpl", xs, x_proj_weight)
    dt, B, C = projected.split([rank, states, states], dim=2)
    delta = torch.einsum("bkrl,kcr->bkcl", dt, dt_projs_weight[:, channels])
    A = -torch.exp(A_logs.view(sequences, n_channels, states)[:, channels])
    ys = selective_scan(
        xs[:, :, channels].flatten(1, 2),
        delta.flatten(1, 2),
        A.flatten(0, 1),
        B,
        C,
        Ds.view(sequences, n_channels)[:, channels].flatten(),
        dt_projs_bias[:, channels].flatten(),
        delta_softplus=True,
        backend="reference",
    )
    return put_back(ys.view(1, sequences, len(channels), order.length), order)
