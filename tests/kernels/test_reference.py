"""The reference against the authors' numbers and against a recurrence written with scalars."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import scan2d, scan_order, selective_scan
from kernels.reference import gather_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "es2d.npz"
NAMES = ("x", "x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


def golden(shape: str, name: str, dtype: torch.dtype) -> Tensor:
    with np.load(GOLDEN) as arrays:
        return torch.from_numpy(arrays[f"{shape}/{name}"]).to(dtype)


@pytest.mark.parametrize("shape", ["1x6x8x8", "2x4x7x10"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_es2d_gives_the_authors_numbers(shape, backend, with_gradients, check_all) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [golden(shape, name, dtype) for name in NAMES]
    order = scan_order("es2d", *inputs[0].shape[2:])
    assert torch.equal(gather_tokens(inputs[0], order), golden(shape, "gathered", dtype))
    grad_y = golden(shape, "grad_out", dtype).permute(0, 3, 1, 2)
    given = with_gradients(lambda *t: scan2d(*t, backend=backend), inputs, grad_y)
    y = golden(shape, "y", torch.float64).permute(0, 3, 1, 2)
    gradients = [golden(shape, f"grad_{name}", torch.float64) for name in NAMES]
    check_all(given, [y, *gradients])


def test_the_recurrence_with_scalars() -> None:
    generator = np.random.default_rng(1)
    u, delta = generator.standard_normal((2, 1, 4, 5))
    A = -generator.random((4, 3))
    B, C = generator.standard_normal((2, 1, 2, 3, 5))
    D, bias = generator.standard_normal((2, 4))
    expected = np.zeros((1, 4, 5))
    for d in range(4):
        h = [0.0] * 3
        for t in range(5):
            dt = math.log1p(math.exp(delta[0, d, t] + bias[d]))
            for n in range(3):
                h[n] = math.exp(dt * A[d, n]) * h[n] + dt * B[0, d // 2, n, t] * u[0, d, t]
            y = sum(h[n] * C[0, d // 2, n, t] for n in range(3))
            expected[0, d, t] = y + D[d] * u[0, d, t]
    tensors = [torch.from_numpy(a) for a in (u, delta, A, B, C, D, bias)]
    y = selective_scan(*tensors, delta_softplus=True, backend="reference")
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_autograd_of_the_reference_is_right() -> None:
    u, delta = (torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    A = (-torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    B, C = (torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    D, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(*t, delta_softplus=True, backend="reference"),
        (u, delta, A, B, C, D, bias),
    )
