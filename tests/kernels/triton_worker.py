"""What the Triton tests run in a process of their own, with the kernels interpreted on the CPU.

Triton reads TRITON_INTERPRET when a kernel's module is imported, once per process. Every function
here is called through the fixture `interpreted` of `test_triton.py`; they assert for themselves.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from tests.kernels import conftest
from tests.kernels.conftest import TOLERANCE
from tests.kernels.conftest import _check_all as check_all
from tests.kernels.conftest import _relative_l2 as relative_l2

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def start() -> None:
    """First thing in the process: interpreter on, memory poisoned as in all kernel tests."""
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.conftest import _poisoned

    # numpy's warnings of the interpreter: exp overflows where softplus does not use it.
    warnings.filterwarnings("ignore", module="triton")
    torch.set_num_threads(1)
    from triton.runtime import interpreter

    interpreter.ScanOps.generic_scan = _scan_in_pairs
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _poisoned(getattr(owner, name)))


def _scan_in_pairs(self, tensors):
    """A scan that combines neighbours, then pairs of pairs, as a GPU does: products of gates over
    many steps arise. The interpreter's own goes from step to step, where they do not."""
    values = [t.handle.data for t in tensors]
    length = values[0].shape[self.axis]
    shape = [length if axis == self.axis else 1 for axis in range(values[0].ndim)]
    position = np.arange(length).reshape(shape)
    distance = 1
    while distance < length:
        before = [np.roll(v, distance, self.axis) for v in values]
        given = [self.to_tensor(v, t.dtype)
                 for vs in (before, values) for v, t in zip(vs, tensors, strict=True)]  # fmt: skip
        combined = self.combine_fn.fn(*given)
        values = [np.where(position >= distance, c.handle.data, v)
                  for c, v in zip(combined, values, strict=True)]  # fmt: skip
        distance *= 2
    return [self.to_tensor(v, t.dtype) for v, t in zip(values, tensors, strict=True)]


def scan2d_inputs(*sizes: int) -> list[Tensor]:
    """As in `conftest.py`, the same each time."""
    torch.manual_seed(42)
    return conftest._scan2d_inputs(*sizes)


def row_inputs(batch: int, groups: int, channels: int, length: int, states: int) -> list[Tensor]:
    torch.manual_seed(42)
    rows = groups * channels
    return [
        torch.randn(batch, rows, length),
        torch.randn(batch, rows, length) - 2,
        -5 * torch.rand(rows, states),
        torch.randn(batch, groups, states, length),
        torch.randn(batch, groups, states, length),
        torch.randn(rows),
        torch.randn(rows),
    ]


def order_of(name: str, height: int, width: int):
    """A scheme, or "table": three sequences with pads and repeats, two with the same parameters;
    "holes": every other token, the others are never read."""
    from kernels import ScanOrder, scan_order

    if name == "table":
        index = np.random.default_rng(3).integers(-1, height * width, size=(3, 11))
        index[:, 7] = index[:, 3]
        return ScanOrder("mine", index, np.array([2, 0, 2]), "sum", height, width)
    if name == "holes":
        index = np.arange(0, height * width, 2)[None]
        return ScanOrder("holes", index, np.array([3]), "place", height, width)
    return scan_order(name, height, width)


def with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dtype: torch.dtype | None
) -> list[Tensor]:
    """Output and the gradient of every tensor, computed in `dtype` or in the inputs' own."""
    leaves = [
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_()
        for t in inputs
    ]
    y = function(*leaves)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    used = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, used, grad_y)]


@contextmanager
def narrow_tiles(channels: int):
    """Several channel blocks where a test has few channels."""
    from kernels._triton import launch, tiles

    def tile_for(*arguments):
        tile = tiles.tile_for(*arguments)
        return replace(tile, channels=min(channels, tile.channels))

    with patch.object(launch, "tile_for", tile_for):
        yield


def check_scan2d(
    sizes: Sequence[int], scan: str, type_name: str, regime: str, block: int = 64
) -> None:
    """Forward and all gradients against the reference in float64; parameters stay float32."""
    from kernels import scan2d
    from kernels._triton.launch import use_regime

    dtype = TYPES[type_name]
    inputs = scan2d_inputs(*sizes)
    inputs[0] = inputs[0].to(dtype)
    order = order_of(scan, *sizes[2:4])
    with use_regime(regime), narrow_tiles(block):
        given = with_gradients(lambda *t: scan2d(*t, order=order, backend="triton"), inputs, None)
    assert [t.dtype for t in given] == [dtype, dtype, *[torch.float32] * 5]
    exact = with_gradients(
        lambda *t: scan2d(*t, order=order, backend="reference"), inputs, torch.float64
    )
    check_all(given, exact, TOLERANCE[dtype])


def check_selective_scan(
    sizes: Sequence[int], options: str, type_name: str, regime: str, block: int = 64
) -> None:
    """`options`: softplus, bias, skip, plain (B and C without a group), in any number."""
    from kernels import selective_scan
    from kernels._triton.launch import use_regime

    dtype = TYPES[type_name]
    inputs: list[Tensor | None] = [*row_inputs(*sizes)]
    if "softplus" not in options:
        inputs[1] = torch.rand(inputs[1].shape)
    if "plain" in options:
        inputs[3], inputs[4] = inputs[3][:, 0], inputs[4][:, 0]
    if "skip" not in options:
        inputs[5] = None
    if "bias" not in options:
        inputs[6] = None
    for i in (0, 1, 3, 4):
        inputs[i] = inputs[i].to(dtype)

    def run(backend: str):
        def both(*tensors: Tensor | None) -> Tensor:
            y, last = selective_scan(
                *tensors,
                delta_softplus="softplus" in options,
                return_last_state=True,
                backend=backend,
            )
            lasts.append(last.detach())
            return y

        return both

    lasts: list[Tensor] = []
    with use_regime(regime), narrow_tiles(block):
        given = with_gradients(run("triton"), inputs, None)
    exact = with_gradients(run("reference"), inputs, torch.float64)
    assert lasts[0].dtype == torch.float32
    check_all([*given, lasts[0]], [*exact, lasts[1]], TOLERANCE[dtype])


def check_deterministic(regime: str) -> None:
    """Two runs are equal to the last bit, and right, where two channel blocks share B and C."""
    from kernels import scan2d
    from kernels._triton import configs, launch

    inputs = scan2d_inputs(1, 3, 2, 2, 2, 1)
    run = lambda *t: scan2d(*t, order="ss2d", backend="triton")  # noqa: E731
    shared = []
    original = launch.constants

    def constants(*arguments):
        shared.append(arguments[7] if len(arguments) > 7 else None)
        return original(*arguments)

    torch.use_deterministic_algorithms(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(launch, "constants", constants))
            stack.enter_context(launch.use_regime(regime))
            stack.enter_context(narrow_tiles(2))
            first, second = (with_gradients(run, inputs, None) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert configs.PARTIAL in shared and configs.ATOMIC not in shared
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    exact = with_gradients(
        lambda *t: scan2d(*t, order="ss2d", backend="reference"), inputs, torch.float64
    )
    check_all(first, exact, TOLERANCE[torch.float32])


def check_strides() -> None:
    """Inputs that are not contiguous give what their copies give; only the wanted gradients are
    computed."""
    from kernels import scan2d, selective_scan

    x, *parameters = scan2d_inputs(2, 4, 2, 3, 2, 1)
    y = scan2d(x, *parameters, backend="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    wide = torch.randn(2, 4, 2, 6)[..., ::2]
    wide.copy_(x)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t
              for t in parameters]  # fmt: skip
    assert torch.equal(scan2d(wide, *turned, backend="triton"), y)
    rows = row_inputs(1, 2, 3, 5, 2)
    rows_y = selective_scan(*rows, delta_softplus=True, backend="triton")
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t
              for t in rows]  # fmt: skip
    assert torch.equal(selective_scan(*turned, delta_softplus=True, backend="triton"), rows_y)
    leaf = x.clone().requires_grad_()
    scan2d(leaf, *parameters, backend="triton").square().sum().backward()
    exact = x.double().requires_grad_()
    doubles = [t.double() for t in parameters]
    scan2d(exact, *doubles, backend="reference").square().sum().backward()
    assert relative_l2(leaf.grad, exact.grad) < 1e-5


def check_empty_batch() -> None:
    from kernels import scan2d, selective_scan

    x, weight, *rest = scan2d_inputs(2, 4, 2, 3, 2, 1)
    weight.requires_grad_()
    y = scan2d(x[:0], weight, *rest, backend="triton")
    assert y.shape == (0, 4, 2, 3)
    y.sum().backward()
    assert not weight.grad.any()
    rows = [t[:0] if t.dim() > 2 else t for t in row_inputs(1, 2, 3, 5, 2)]
    assert selective_scan(*rows, backend="triton").shape == (0, 6, 5)


def check_not_finite(regime: str) -> None:
    """NaN and infinity come out where they come out of the reference, and A > 0 overflows to
    infinity."""
    from kernels import selective_scan
    from kernels._triton.launch import use_regime

    for name, value in (("u", np.nan), ("u", np.inf), ("delta", np.nan), ("B", -np.inf),
                        ("C", np.nan), ("A", np.nan), ("delta", np.inf)):  # fmt: skip
        inputs = dict(zip(("u", "delta", "A", "B", "C", "D", "delta_bias"),
                          row_inputs(1, 1, 2, 9, 2), strict=True))  # fmt: skip
        inputs[name].view(-1)[4 % inputs[name].numel()] = value
        exact = selective_scan(
            **{k: v.double() for k, v in inputs.items()}, delta_softplus=True, backend="reference"
        )
        with use_regime(regime):
            given = selective_scan(**inputs, delta_softplus=True, backend="triton")
        assert torch.equal(given.isfinite(), exact.isfinite()), (name, value)
        finite = exact.isfinite()
        torch.testing.assert_close(given[finite].double(), exact[finite], rtol=1e-4, atol=1e-6)
        assert torch.equal(given.isnan(), exact.isnan()), (name, value)
    u = torch.ones(1, 2, 60)
    A, B = torch.tensor([[2.0], [-1.0]]), torch.ones(1, 1, 60)
    with use_regime(regime):
        y = selective_scan(u, u, A, B, B, backend="triton")
    exact = selective_scan(*(t.double() for t in (u, u, A, B, B)), backend="reference")
    within = exact.abs() < 3e38
    assert torch.isinf(y[~within]).all() and (y[~within] > 0).all() and (~within).any()
    torch.testing.assert_close(y[within].double(), exact[within], rtol=2e-4, atol=0)


def check_growth(regime: str) -> None:
    """Gates above 1 whose product over a few steps overflows where states and gradients do not."""
    from kernels import selective_scan
    from kernels._triton.launch import use_regime

    length = 12
    u, grad_y = torch.zeros(1, 1, length), torch.zeros(1, 1, length)
    u[..., -1], grad_y[..., 0] = 2.0, 3.0
    delta, A, one = torch.ones(1, 1, length), torch.tensor([[60.0]]), torch.ones(1, 1, length)
    small = torch.zeros(1, 1, length)
    small[..., 0] = 1e-30

    def run(*tensors: Tensor, backend: str) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = selective_scan(*leaves, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]

    with use_regime(regime):
        given = run(u, delta, A, one, one, backend="triton")
        # As much growth by negative steps.
        mirrored = run(u, -delta, -A, one, -one, backend="triton")
        late = selective_scan(small, delta, A / 2, one, one, backend="triton")
    exact = run(*(t.double() for t in (u, delta, A, one, one)), backend="reference")
    for ours, theirs in zip(given, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    assert torch.equal(mirrored[0], given[0]) and torch.equal(mirrored[1], given[1])
    grown = selective_scan(*(t.double() for t in (small, delta, A / 2, one, one)))
    within = grown < 3e38
    assert 3 < within.sum() < length and (late[~within] == float("inf")).all()
    torch.testing.assert_close(late[within].double(), grown[within], rtol=1e-4, atol=0)
    # Nor does infinity meet a product of gates that vanishes where no gate does.
    small[..., 0] = float("inf")
    with use_regime(regime):
        y = selective_scan(one, delta, -A, small, one, backend="triton")
    assert (y == float("inf")).all()


def check_any_dt(scale: float, regime: str) -> None:
    from kernels import selective_scan
    from kernels._triton.launch import use_regime

    u, delta, _, B, C, *_ = row_inputs(1, 1, 3, 9, 4)
    inputs = [u, delta.abs() * scale, -torch.arange(1, 5.0).repeat(3, 1), B, C]
    with use_regime(regime):
        given = with_gradients(lambda *t: selective_scan(*t, backend="triton"), inputs, None)
    exact = with_gradients(
        lambda *t: selective_scan(*t, backend="reference"), inputs, torch.float64
    )
    assert relative_l2(given[0], exact[0]) < 1e-5
    if scale < 1e5:
        check_all(given, exact, TOLERANCE[torch.float32])


def check_device_functions() -> None:
    """softplus and its slope to the last digits, and the combination of steps is associative."""
    from kernels._triton.device import combine
    from tests.kernels.triton_values import values_kernel

    x = torch.cat([torch.linspace(-80, 80, 1022), torch.tensor([20.0, float("nan")])])
    y, slope = torch.zeros(1024), torch.zeros(1024)
    values_kernel[(1,)](x, y, slope)
    exact = torch.nn.functional.softplus(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=0, equal_nan=True)
    right = torch.sigmoid(x[:-1].double())
    torch.testing.assert_close(slope[:-1].double(), right, rtol=1e-6, atol=0)

    pairs = [tuple(torch.rand(2, 7, dtype=torch.float64)) for _ in range(3)]
    one, two, three = pairs
    left = combine.fn(*combine.fn(*one, *two), *three)
    for a, b in zip(left, combine.fn(*one, *combine.fn(*two, *three)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    # And it is what two steps do to a state.
    h = torch.rand(7, dtype=torch.float64)
    gate, value = combine.fn(*one, *two)
    torch.testing.assert_close(gate * h + value, two[0] * (one[0] * h + one[1]) + two[1])


def check_self_check() -> None:
    """It passes, and a kernel broken on purpose is found, once with a warning, and refused."""
    import kernels
    from kernels import triton_scan
    from kernels._triton import selfcheck, steps

    cpu = torch.device("cpu")
    small = (3, 3, 2, 2)
    original = selfcheck.find_problem
    with patch.object(selfcheck, "find_problem", lambda device: original(device, small)):
        assert triton_scan.self_check(cpu) is None
        selfcheck._checked.cache_clear()
        broken = steps.softplus
        try:
            steps.steps_forward_kernel.fn.__globals__["softplus"] = lambda x: x * 0 + 1
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                first, second = triton_scan.self_check(cpu), triton_scan.self_check(cpu)
        finally:
            steps.steps_forward_kernel.fn.__globals__["softplus"] = broken
    assert first is not None and first == second and "scan2d (steps) wrong: the output" in first
    ours = [w for w in caught if "Triton scan kernels are not used" in str(w.message)]
    assert len(ours) == 1
    selfcheck._checked.cache_clear()
    # What a GPU would see: "auto" falls back with the reason, the name alone is refused.
    cuda = torch.device("cuda", 0)
    with patch.object(triton_scan, "self_check", lambda device: first):
        name, words = kernels.resolve_backend("auto", cuda)
        assert name == "reference" and first in words
        try:
            kernels.resolve_backend("triton", cuda)
        except RuntimeError as error:
            assert first in str(error)
        else:
            raise AssertionError("a wrong kernel was not refused")


def check_availability() -> None:
    import kernels
    from kernels import triton_scan

    assert kernels.backends()["triton"] is None
    assert kernels.resolve_backend("triton", "cpu") == ("triton", "asked for by name")
    assert kernels.resolve_backend("auto", "cpu")[0] == "cpu"
    reason = triton_scan.unsuitable_reason(torch.device("cpu"), torch.float64)
    assert reason is not None and "float64" in reason
