"""The compiled CPU kernel against the float64 reference, forward and every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import ScanOrder, scan2d, selective_scan
from kernels._cpu.columns import CHUNK, LANES, ROWS


def table(height: int, width: int) -> ScanOrder:
    """Three sequences with pads and repeats, two of them with the same parameters."""
    index = np.random.default_rng(3).integers(-1, height * width, size=(3, CHUNK + 5))
    index[:, 7] = index[:, 3]
    return ScanOrder("mine", index, np.array([2, 0, 2]), "sum", height, width)


def holes(height: int, width: int) -> ScanOrder:
    """Every other token, once: the others are never read and get 0."""
    return ScanOrder("holes", np.arange(0, height * width, 2)[None], [3], "place", height, width)


# batch, channels, height, width, states, rank, order: pairwise, with the edges of every block size.
CASES = [
    (1, LANES, 1, 9, 16, 1, "es2d"),
    (3, LANES + 4, 7, 1, 5, 2, "es2d:step=3"),
    (2, 2 * LANES + 1, 9, 8, 16, 3, "es2d:step=1"),
    (1, 96, 14, 14, 16, 6, "es2d"),
    (1, 8, 6, 5, 3, 1, "es2d:step=4"),
    (2, 5, 2, 3, 16, 2, "es2d:step=9"),
    (1, 3, 1, 1, 1, 1, "es2d"),
    (2, 40, 5, 7, 16, 4, "ss2d"),
    (1, 48, 8, CHUNK // 4 + 1, 17, 18, "ss2d"),
    (3, LANES - 1, ROWS + 1, ROWS, 20, 5, "ss2d"),
    (2, 24, 6, 5, 17, 2, table),
    (1, 70, 9, 11, 8, 3, holes),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: "x".join(map(str, c[:6])) + f"-{getattr(c[6], '__name__', c[6])}"
)
def test_scan2d_agrees_with_the_reference(case, scan2d_inputs, with_gradients, check_all) -> None:
    *sizes, order = case
    inputs = scan2d_inputs(*sizes)
    order = order(*sizes[2:4]) if callable(order) else order
    grad_y = torch.randn_like(inputs[0])
    given = with_gradients(lambda *t: scan2d(*t, order=order, backend="cpu"), inputs, grad_y)
    exact = with_gradients(
        lambda *t: scan2d(*t, order=order, backend="reference"), inputs, grad_y, torch.float64
    )
    check_all(given, exact)


# batch, groups, channels of a group, length, states, softplus, bias, skip, B and C without a group
SCANS = [
    (1, 4, LANES, CHUNK + 1, 16, True, True, True, False),
    (3, 1, 7, 50, 4, False, False, False, True),
    (2, 2, 40, 17, 16, True, False, True, False),
    (1, 1, 96, 1, 16, True, True, False, True),
    (1, 3, 5, 20, 21, False, True, True, False),
    (1, 2, 5, 2 * CHUNK, 3, True, True, False, False),
]


@pytest.mark.parametrize("case", SCANS, ids=lambda c: "x".join(map(str, map(int, c))))
def test_selective_scan_agrees_with_the_reference(case, with_gradients, check_all) -> None:
    batch, groups, channels, length, states, softplus, with_bias, with_skip, is_plain = case
    rows = groups * channels
    u = torch.randn(batch, rows, length)
    delta = torch.randn(batch, rows, length) - 2 if softplus else torch.rand(batch, rows, length)
    shape = (batch, states, length) if is_plain else (batch, groups, states, length)
    inputs = [u, delta, -5 * torch.rand(rows, states), torch.randn(shape), torch.randn(shape)]
    inputs.append(torch.randn(rows) if with_skip else None)
    # Without softplus a negative dt makes the state grow without bound.
    bias = torch.randn(rows) if softplus else torch.rand(rows)
    inputs.append(bias if with_bias else None)
    grad_y = torch.randn_like(u)

    def run(backend: str):
        return lambda *t: selective_scan(*t, delta_softplus=softplus, backend=backend)

    given = with_gradients(run("cpu"), inputs, grad_y)
    check_all(given, with_gradients(run("reference"), inputs, grad_y, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_computed_in_float32(
    dtype, scan2d_inputs, with_gradients, check_all, tolerance
) -> None:
    inputs = [t.to(dtype) for t in scan2d_inputs(2, 32, 6, 7, 16, 2)]
    grad_y = torch.randn(2, 32, 6, 7, dtype=dtype)
    given = with_gradients(lambda *t: scan2d(*t, backend="cpu"), inputs, grad_y)
    assert all(t.dtype == dtype for t in given)
    exact = with_gradients(
        lambda *t: scan2d(*t, backend="reference"), inputs, grad_y, torch.float64
    )
    check_all(given, exact, tolerance[dtype])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_number_of_threads_changes_nothing(n_threads, scan2d_inputs, with_gradients) -> None:
    before = torch.get_num_threads()
    for order in ("es2d", "ss2d"):
        inputs = scan2d_inputs(8, 48, 9, 8, 16, 3)
        grad_y = torch.randn_like(inputs[0])
        results = []
        for threads in (2, n_threads, n_threads):
            torch.set_num_threads(threads)
            try:
                run = with_gradients(
                    lambda *t, order=order: scan2d(*t, order=order, backend="cpu"), inputs, grad_y
                )
            finally:
                torch.set_num_threads(before)
            results.append(run)
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))


def test_unwanted_gradients_are_not_asked_for(scan2d_inputs) -> None:
    x, *parameters = scan2d_inputs(1, 16, 4, 4, 16, 1)
    full = [t.clone().requires_grad_() for t in (x, *parameters)]
    y = scan2d(*full, backend="cpu")
    expected = torch.autograd.grad(y.square().sum(), full)
    only_x = x.clone().requires_grad_()
    scan2d(only_x, *parameters, backend="cpu").square().sum().backward()
    assert torch.equal(only_x.grad, expected[0])
    weight = parameters[0].clone().requires_grad_()
    scan2d(x, weight, *parameters[1:], backend="cpu").square().sum().backward()
    assert torch.equal(weight.grad, expected[1])


def same_where_not_finite(given: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(given.double(), exact, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_come_through(name: str, value: float) -> None:
    inputs = {
        "u": torch.randn(1, 20, 40),
        "delta": torch.randn(1, 20, 40),
        "A": -torch.rand(20, 4) - 0.1,
        "B": torch.randn(1, 4, 40),
        "C": torch.randn(1, 4, 40),
        "D": torch.randn(20),
        "delta_bias": torch.randn(20),
    }
    inputs[name].view(-1)[37 % inputs[name].numel()] = value
    exact = selective_scan(
        **{k: v.double() for k, v in inputs.items()}, delta_softplus=True, backend="reference"
    )
    given = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    same_where_not_finite(given, exact)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "grad_y"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan")])
def test_gradients_are_not_finite_where_the_reference_has_nan(name: str, value: float) -> None:
    tensors = {
        "u": torch.randn(1, 20, 70),
        "delta": torch.randn(1, 20, 70),
        "A": -torch.rand(20, 4) - 0.1,
        "B": torch.randn(1, 4, 70),
        "C": torch.randn(1, 4, 70),
    }
    grad_y = torch.randn(1, 20, 70)
    (grad_y if name == "grad_y" else tensors[name]).view(-1)[45] = value
    given, exact = [], []
    for gradients, backend, dtype in (
        (given, "cpu", torch.float32),
        (exact, "reference", torch.float64),
    ):
        leaves = {k: v.to(dtype).clone().requires_grad_() for k, v in tensors.items()}
        y = selective_scan(**leaves, delta_softplus=True, backend=backend)
        gradients += torch.autograd.grad(y, list(leaves.values()), grad_y.to(dtype))
    assert any(theirs.isnan().any() for theirs in exact)
    for ours, theirs in zip(given, exact, strict=True):
        assert not ours[theirs.isnan()].isfinite().any()
        finite = theirs.isfinite()
        torch.testing.assert_close(ours[finite].double(), theirs[finite], rtol=1e-4, atol=1e-5)


def test_a_growing_state_overflows_to_infinity() -> None:
    u = torch.ones(1, 3, 200)
    A = torch.tensor([[2.0], [-1.0], [0.0]])
    B = C = torch.ones(1, 1, 200)
    y = selective_scan(u, u, A, B, C, backend="cpu")
    assert torch.isinf(y[0, 0, -1]) and y[0, 0, -1] > 0
    exact = selective_scan(*(t.double() for t in (u, u, A, B, C)), backend="reference")
    within = exact.abs() < 3e38
    torch.testing.assert_close(y[within].double(), exact[within], rtol=2e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 30.0, 1e4, 1e30])
def test_any_size_of_dt_gives_the_right_answer(scale: float, with_gradients, check_all) -> None:
    u, B, C = torch.randn(1, 16, 50), torch.randn(1, 16, 50), torch.randn(1, 16, 50)
    A = -torch.arange(1, 17.0).repeat(16, 1)
    delta = torch.rand(1, 16, 50) * scale
    grad_y = torch.randn_like(u)
    given = selective_scan(u, delta, A, B, C, backend="cpu")
    exact = selective_scan(*(t.double() for t in (u, delta, A, B, C)), backend="reference")
    torch.testing.assert_close(given.double(), exact, rtol=1e-5, atol=float(exact.std()) * 1e-5)
    # Outside this range the gradients leave float32's.
    if 1 < scale < 1e5:
        leaves = (u, delta, A, B, C)
        ours = with_gradients(lambda *t: selective_scan(*t, backend="cpu"), leaves, grad_y)
        check_all(
            ours,
            with_gradients(
                lambda *t: selective_scan(*t, backend="reference"), leaves, grad_y, torch.float64
            ),
        )
