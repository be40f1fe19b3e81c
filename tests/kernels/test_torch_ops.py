"""What torch's compiler, exporter, counters and transforms see of the scans."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import models
from kernels import ScanOrder, ScanSpec, reference, scan2d, scan_order, selective_scan
from kernels.cost import convention_flops
from kernels.operands import order_of, order_table, order_text

OPS = torch.ops.efficientvmamba

# At the first use of a default device torch notes which functions make tensors, once per process.
# Here, before a test replaces `torch.empty` by one that poisons memory.
with torch.device("meta"):
    torch.empty(1)


def own_order(height: int = 5, width: int = 4) -> ScanOrder:
    index = np.random.default_rng(0).integers(-1, height * width, size=(3, 20))
    return ScanOrder("mine", index, np.array([2, 0, 2]), "sum", height, width)


def rows(batch: int = 2, groups: int = 2, channels: int = 5, length: int = 9, states: int = 4):
    n = groups * channels
    return [
        torch.randn(batch, n, length),
        torch.randn(batch, n, length),
        -torch.rand(n, states),
        torch.randn(batch, groups, states, length),
        torch.randn(batch, groups, states, length),
        torch.randn(n),
        torch.randn(n),
    ]


def gated(u, delta, A, B, C, D, bias, z) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, bias, True, z=z, backend="cpu")


@pytest.fixture
def compiled():
    """`torch.compile` without code generation; no graph of another test is met again."""
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()


def assert_same(given: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("order", "dtype"),
    [("es2d:step=3", torch.float32), ("ss2d", torch.bfloat16), ("table", torch.float32)],
    ids=str,
)
def test_scan2d_is_a_proper_operator(order, dtype, scan2d_inputs) -> None:
    x, *parameters = (t.to(dtype) for t in scan2d_inputs(2, 5, 5, 4, 3, 2))
    tokens = x.permute(0, 2, 3, 1).reshape(2, 20, 5)
    named = own_order() if order == "table" else order
    settings = (order_text(named), 5, 4, order_table(named), "cpu")
    tensors = [t.clone().requires_grad_() for t in (tokens, *parameters)]
    opcheck(OPS.scan2d.default, (*tensors, *settings, True))
    opcheck(OPS.scan2d.default, (tokens, *parameters, *settings, False))
    y, *saved = OPS.scan2d(tokens, *parameters, *settings, True)
    for wanted in ((True, True), (False, False)):
        arguments = (torch.randn_like(y), tokens, *parameters, *saved, *settings, *wanted)
        opcheck(OPS.scan2d_backward.default, arguments)


def test_selective_scan_is_a_proper_operator() -> None:
    tensors = rows()
    leaves = [t.clone().requires_grad_() for t in tensors]
    opcheck(OPS.selective_scan.default, (*leaves, True, "cpu", True))
    y, last_state, checkpoints = OPS.selective_scan(*tensors, True, "cpu", True)
    assert last_state.dtype == torch.float32
    arguments = (torch.randn_like(y), *tensors, True, checkpoints, "cpu")
    opcheck(OPS.selective_scan_backward.default, arguments)


@pytest.mark.parametrize("order", ["es2d", ScanSpec("es2d", {"step": 3}), "ss2d"], ids=str)
def test_compiled_scan2d_gives_the_same(order, compiled, scan2d_inputs, with_gradients) -> None:
    def run(*tensors: Tensor) -> Tensor:
        return scan2d(*tensors, order=order, backend="cpu")

    program = compiled(run)
    for batch, height, width in ((2, 5, 4), (2, 6, 4), (3, 6, 7)):
        inputs = scan2d_inputs(batch, 20, height, width, 16, 2)
        grad_y = torch.randn_like(inputs[0])
        given = with_gradients(program, inputs, grad_y)
        assert_same(given, with_gradients(run, inputs, grad_y))
        with torch.no_grad():
            assert torch.equal(program(*inputs), given[0])


def test_compiled_scan_along_a_table_of_ones_own(compiled, scan2d_inputs, with_gradients) -> None:
    order, inputs = own_order(), scan2d_inputs(2, 20, 5, 4, 16, 2)
    grad_y = torch.randn_like(inputs[0])

    def run(*tensors: Tensor) -> Tensor:
        return scan2d(*tensors, order=order, backend="cpu")

    program = compiled(run)
    assert_same(with_gradients(program, inputs, grad_y), with_gradients(run, inputs, grad_y))
    with pytest.raises(Exception, match="order is for a map of 5 x 4 tokens; x has 4 x 5"):
        program(inputs[0].transpose(2, 3), *inputs[1:])


def test_compiled_selective_scan_gives_the_same(compiled, with_gradients) -> None:
    program = compiled(gated)
    for sizes in ({}, {"length": 20}, {"batch": 3, "states": 5}):
        inputs = rows(**sizes)
        inputs.append(torch.randn_like(inputs[0]))
        grad_y = torch.randn_like(inputs[0])
        given = with_gradients(program, inputs, grad_y)
        assert_same(given, with_gradients(gated, inputs, grad_y))


def build(name: str) -> torch.nn.Module:
    return models.create_model(name, backend="cpu").eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 64, 96)


def _gradients(function: Callable[[Tensor], Tensor], model: torch.nn.Module, x: Tensor):
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), list(model.parameters()))]


@pytest.mark.parametrize(
    "name",
    ["efficientvmamba_test", pytest.param("efficientvmamba_tiny", marks=pytest.mark.slow)],
)
def test_compiled_model_gives_the_same(name, compiled, image) -> None:
    model, x = build(name), image
    program = compiled(model)
    assert_same(_gradients(program, model, x), _gradients(model, model, x))
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "is_strict",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["strict", "not strict"],
)
def test_exported_model_gives_the_same(is_strict, image) -> None:
    torch._dynamo.reset()
    model, x = build("efficientvmamba_test"), image
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=is_strict)
        scans = [n for n in program.graph.nodes if n.target == OPS.scan2d.default]
        assert len(scans) == sum(info.has_scan for info in model.blocks())
        stored = io.BytesIO()
        torch.export.save(program, stored)
        stored.seek(0)
        again = torch.export.load(stored).module()
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)


def test_torch_counts_twice_the_models_multiply_accumulates(image) -> None:
    model, x = build("efficientvmamba_test"), image
    cost = models.complexity(model, (64, 96))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * cost.macs


def test_flops_of_both_passes(scan2d_inputs) -> None:
    leaves = [t.requires_grad_() for t in scan2d_inputs(2, 5, 5, 4, 3, 2)]
    order = scan_order("es2d", 5, 4)
    steps = 2 * order.n_sequences * order.length
    products = steps * 5 * ((2 + 2 * 3) + 2)
    once = 2 * (products + convention_flops(2, order.n_sequences, order.length, 5, 3))
    with FlopCounterMode(display=False) as counter:
        scan2d(*leaves, backend="cpu").sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[OPS.scan2d] == once and counts[OPS.scan2d_backward] == 2 * once
    leaves = [t.requires_grad_() for t in rows()]
    with FlopCounterMode(display=False) as counter:
        selective_scan(*leaves, True, backend="cpu").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * convention_flops(2, 2, 9, 5, 4)


def test_transforms_of_torch_func(scan2d_inputs) -> None:
    inputs = scan2d_inputs(2, 5, 5, 4, 3, 2)

    def loss(x: Tensor) -> Tensor:
        return scan2d(x, *inputs[1:], backend="cpu").square().sum()

    x = inputs[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(inputs[0]), expected)
    with pytest.raises(NotImplementedError, match="no second derivatives; use backend='refer"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(inputs[0])
    with pytest.raises(NotImplementedError, match="cannot be mapped by torch.vmap; put"):
        torch.vmap(lambda x: scan2d(x[None], *inputs[1:], backend="cpu"))(inputs[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0], inputs[0])
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            loss(dual)


def test_with_and_without_the_operator_are_the_same(scan2d_inputs, with_gradients) -> None:
    """Where nobody but autograd looks, the way through torch's dispatcher is left out."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "efficientvmamba":
                seen.append(func._opname)
            return func(*args, **(kwargs or {}))

    for name, run, inputs in (
        ("scan2d", lambda *t: scan2d(*t, backend="cpu"), scan2d_inputs(2, 5, 5, 4, 3, 2)),
        ("selective_scan", lambda *t: selective_scan(*t, True, backend="cpu"), rows()),
    ):
        grad_y = torch.randn_like(inputs[0])
        direct = with_gradients(run, inputs, grad_y)
        assert not seen
        with Watch():
            watched = with_gradients(run, inputs, grad_y)
        assert seen == [name, f"{name}_backward"]
        seen.clear()
        assert all(map(torch.equal, direct, watched))
        with torch.profiler.profile() as profile:
            assert torch.equal(run(*inputs), direct[0])
        assert f"efficientvmamba::{name}" in {event.key for event in profile.key_averages()}


def test_second_derivatives_are_refused_in_words(scan2d_inputs) -> None:
    for run, inputs in (
        (lambda *t: scan2d(*t, backend="cpu"), scan2d_inputs(1, 5, 3, 2, 3, 2)),
        (lambda *t: selective_scan(*t, backend="cpu"), rows(batch=1)),
    ):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = run(*leaves)
        gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives; use backend='ref"):
            gradients[0].sum().backward()


def test_gradients_need_what_forward_saves() -> None:
    leaves = [t.requires_grad_() for t in rows()]
    y, _, checkpoints = OPS.selective_scan(*leaves, True, "cpu", False)
    assert checkpoints.numel() == 0
    with pytest.raises(RuntimeError, match="keep=False; gradients need True"):
        y.sum().backward()


def test_unused_outputs_and_graphs_that_run_twice() -> None:
    leaves = [t.requires_grad_() for t in rows()]
    y, last_state = selective_scan(*leaves, backend="cpu", return_last_state=True)
    assert y.requires_grad and not last_state.requires_grad
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.sum(), leaves)
    assert all(map(torch.equal, first, again))


def test_an_order_is_the_same_after_an_operators_arguments() -> None:
    for order in (scan_order("es2d:step=3", 5, 4), own_order()):
        operands = order_text(order), 5, 4, order_table(order)
        found = order_of(*operands)
        assert np.array_equal(found.index, order.index) and found.merge == order.merge
        assert np.array_equal(found.parameter_set, order.parameter_set)
        assert order_of(*operands) is found
    # A table of one's own may bear a scheme's name.
    mine = ScanOrder("es2d", own_order().index, [0, 0, 1], "sum", 5, 4, {"step": 2})
    assert order_text(mine) == "sum" and order_table(mine) is not None
    assert torch.equal(
        reference.gather_tokens(torch.arange(20.0).view(1, 1, 5, 4), mine),
        reference.gather_tokens(torch.arange(20.0).view(1, 1, 5, 4), own_order()),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="triton's wheel exists for Linux only")
def test_triton_behind_the_operators() -> None:
    """Interpreted, which Triton decides once per process."""
    code = """
        import torch
        from torch.library import opcheck
        from kernels import selective_scan
        from tests.kernels import triton_worker as worker
        worker.start()
        ops = torch.ops.efficientvmamba
        # What depends on the backend; `test_aot_dispatch_dynamic` would run everything ten times.
        checks = {"test_utils": ("test_schema", "test_autograd_registration", "test_faketensor")}
        x, *parameters = worker.scan2d_inputs(1, 3, 3, 2, 2, 1)
        tokens = x.permute(0, 2, 3, 1).reshape(1, 6, 3)
        settings = ("es2d:step=2", 3, 2, None, "triton")
        leaves = [t.clone().requires_grad_() for t in (tokens, *parameters)]
        opcheck(ops.scan2d.default, (*leaves, *settings, True), **checks)
        y, *saved = ops.scan2d(tokens, *parameters, *settings, True)
        opcheck(ops.scan2d_backward.default,
                (torch.randn_like(y), tokens, *parameters, *saved, *settings, True, True), **checks)
        rows = worker.row_inputs(1, 2, 2, 5, 3)
        leaves = [t.clone().requires_grad_() for t in rows]
        opcheck(ops.selective_scan.default, (*leaves, True, "triton", True), **checks)
        y, _, checkpoints = ops.selective_scan(*rows, True, "triton", True)
        opcheck(ops.selective_scan_backward.default,
                (torch.randn_like(y), *rows, True, checkpoints, "triton"), **checks)
        def results(backend, dtype):
            leaves = [t.to(dtype).requires_grad_() for t in (*rows, torch.ones_like(rows[0]))]
            *given, z = leaves
            y, state = selective_scan(*given, True, z=z, return_last_state=True, backend=backend)
            return [y, state, *torch.autograd.grad(y.square().sum(), leaves)]
        exact = results("reference", torch.float64)
        for ours, theirs in zip(results("triton", torch.float32), exact):
            assert worker.relative_l2(ours, theirs) <= 1e-5
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
