"""Inputs and comparisons that the kernel tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

# Relative L2 against the float64 reference, forward and every gradient.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def _relative_l2(given: Tensor, exact: Tensor) -> float:
    difference = (given.double() - exact.double()).norm()
    return float(difference / exact.double().norm().clamp_min(1e-300))


def _scan2d_inputs(
    batch: int, channels: int, height: int, width: int, states: int, rank: int, n_sets: int = 4
) -> list[Tensor]:
    """x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds of the size training gives."""
    rows = n_sets * channels
    return [
        torch.randn(batch, height, width, channels).permute(0, 3, 1, 2),
        torch.randn(n_sets, rank + 2 * states, channels) / channels**0.5,
        torch.randn(n_sets, channels, rank) / rank**0.5,
        torch.randn(n_sets, channels) * 0.5 - 3,
        torch.log(torch.arange(1, states + 1.0)).repeat(rows, 1) + 0.1 * torch.randn(rows, states),
        1 + 0.1 * torch.randn(rows),
    ]


def _with_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    grad_y: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Output and the gradient of every input that is a tensor, computed in `dtype`."""
    leaves = [
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_()
        for t in inputs
    ]
    y = function(*leaves)
    used = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, used, grad_y.to(y.dtype))]


def _check_all(given: list[Tensor], exact: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(given) == len(exact)
    for i, (ours, theirs) in enumerate(zip(given, exact, strict=True)):
        assert ours.shape == theirs.shape
        assert torch.isfinite(ours).all(), f"result {i} is not finite"
        error = _relative_l2(ours, theirs)
        assert error <= tolerance, f"result {i} (0 is the output): relative L2 {error:.1e}"


@pytest.fixture
def tolerance() -> dict[torch.dtype, float]:
    return TOLERANCE


@pytest.fixture
def relative_l2() -> Callable[[Tensor, Tensor], float]:
    return _relative_l2


@pytest.fixture
def scan2d_inputs() -> Callable[..., list[Tensor]]:
    return _scan2d_inputs


@pytest.fixture
def with_gradients() -> Callable[..., list[Tensor]]:
    return _with_gradients


@pytest.fixture
def check_all() -> Callable[..., None]:
    return _check_all
