"""Both scans as operators of torch, for autograd, `torch.compile`, `torch.export`, FLOP counters.

`torch.ops.efficientvmamba.{scan2d, selective_scan}` and their backward passes hand their tensors to
a compiled backend's pure functions. A backend is a module with

- `scan2d_forward`, `scan2d_backward`, `selective_scan_forward`, `selective_scan_backward`,
- `saved_shapes_scan2d`, `saved_shapes_selective_scan`: shapes of what a forward pass saves, and
  types (None: that of the tokens),

as `kernels/cpu.py` has them. `kernels/operands.py` says how an order passes through an operator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from kernels import flops
from kernels.operands import Operands, checked_order, order_of, size_of, traced_once

NAMESPACE = "efficientvmamba"
COMPILED = {"cpu": "kernels.cpu", "triton": "kernels.triton_scan"}

_MAP = "Tensor tokens, Tensor x_proj, Tensor dt_weight, Tensor dt_bias, Tensor A_logs, Tensor Ds"
_ORDER = "str order, SymInt height, SymInt width, Tensor? table, str backend"
_ROWS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor bias, bool softplus"

_library = torch.library.Library(NAMESPACE, "DEF")
for _schema in (
    f"scan2d({_MAP}, {_ORDER}, bool keep) -> (Tensor y, Tensor projected, Tensor checkpoints)",
    f"scan2d_backward(Tensor grad_y, {_MAP}, Tensor projected, Tensor checkpoints, {_ORDER}, "
    "bool x_wanted, bool x_proj_wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"selective_scan({_ROWS}, str backend, bool keep) "
    "-> (Tensor y, Tensor last_state, Tensor checkpoints)",
    f"selective_scan_backward(Tensor grad_y, {_ROWS}, Tensor checkpoints, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


@lru_cache(maxsize=8)
def backend_module(name: str) -> ModuleType:
    return importlib.import_module(COMPILED[name])


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether autograd will differentiate a function of these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def scan2d(
    tokens: Tensor,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    operands: Operands,
    backend: str,
) -> Tensor:
    """The operator on tokens `[B, T, C]`; parameters as in `kernels.scan2d`."""
    tensors = (tokens, x_proj, dt_weight, dt_bias, A_logs, Ds)
    y: Tensor = _call(
        _Scan2d,
        _forward_2d,
        _run_forward_2d,
        *tensors,
        *operands,
        backend,
        needs_gradients(*tensors),
    )[0]
    return y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator in Mamba's layout, B and C `[B, K, N, L]`: outputs and last states."""
    tensors = (u, delta, A, B, C, D, bias)
    keep = needs_gradients(*tensors)
    y, last_state, _ = _call(
        _SelectiveScan, _forward_1d, _run_forward_1d, *tensors, softplus, backend, keep
    )
    return y, last_state


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The types of a scan are its own: autocast does not reach into a backend."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _run_forward_2d(tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, *settings):
    order, height, width, table, backend, keep = settings
    found = checked_order(order, height, width, table, x_proj.shape[0])
    run = backend_module(backend).scan2d_forward
    with no_autocast(tokens.device):
        return run(tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, found, keep)


def _run_backward_2d(grad_y, tokens, *rest):
    *tensors, order, height, width, table, backend, x_wanted, x_proj_wanted = rest
    run = backend_module(backend).scan2d_backward
    found = order_of(order, height, width, table)
    with no_autocast(tokens.device):
        return _contiguous(run(grad_y, tokens, *tensors, found, x_wanted, x_proj_wanted))


def _run_forward_1d(u, *rest):
    *tensors, softplus, backend, keep = rest
    with no_autocast(u.device):
        return backend_module(backend).selective_scan_forward(u, *tensors, softplus, keep)


def _run_backward_1d(grad_y, *rest):
    *tensors, softplus, checkpoints, backend = rest
    run = backend_module(backend).selective_scan_backward
    with no_autocast(grad_y.device):
        return _contiguous(run(grad_y, *tensors, softplus, checkpoints))


def _contiguous(tensors):
    """As the fake passes say; a backend may give slices of its padded blocks."""
    return tuple(t.contiguous() for t in tensors)


def _fake_forward_2d(tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, *settings):
    order, height, width, table, backend, keep = settings
    saved = [((0,), torch.float32)] * 2
    if keep:
        shapes = backend_module(backend).saved_shapes_scan2d
        batch, _, channels = tokens.shape
        size = size_of(order, height, width, table)
        saved = shapes(batch, size, channels, dt_weight.shape[2], A_logs.shape[1])
    made = [tokens.new_empty(shape, dtype=dtype or tokens.dtype) for shape, dtype in saved]
    return tokens.new_empty(tokens.shape), *made


def _fake_backward_2d(grad_y, *rest):
    *tensors, _projected, _checkpoints = rest[:8]
    grads = [t.new_empty(t.shape) for t in tensors]
    for i, is_wanted in enumerate(rest[-2:]):
        if not is_wanted:
            grads[i] = tensors[i].new_empty(0)
    return tuple(grads)


def _fake_forward_1d(u, delta, A, B, C, D, bias, softplus, backend, keep):
    batch, rows, length = u.shape
    shape, dtype = (0,), torch.float32
    if keep:
        groups, states = B.shape[1], A.shape[1]
        shapes = backend_module(backend).saved_shapes_selective_scan
        shape, dtype = shapes(batch, groups, rows // groups, length, states)
    last_state = u.new_empty((batch, rows, A.shape[1]), dtype=torch.float32)
    return u.new_empty(u.shape), last_state, u.new_empty(shape, dtype=dtype)


def _fake_backward_1d(grad_y, *rest):
    return tuple(t.new_empty(t.shape) for t in rest[:7])


class _Function(torch.autograd.Function):
    """What autograd runs in an operator's place; `forward` is the operator below autograd."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, *_):
        raise NotImplementedError(
            "the compiled backends of a scan have no forward-mode derivatives; use "
            "backend='reference'."
        )

    @staticmethod
    def vmap(info, in_dims, *_):
        raise NotImplementedError(
            "the compiled backends of a scan cannot be mapped by torch.vmap; put what it would map "
            "into the batch dimension, or use backend='reference'."
        )


class _Scan2d(_Function):
    @staticmethod
    def forward(*inputs):
        return _below_autograd(_forward_2d, _run_forward_2d, inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, order, height, width, table, backend, keep = inputs
        _save(ctx, keep, (*tensors, *output[1:], table), output)
        ctx.order, ctx.backend = (order, height, width), backend

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 12
        *tensors, table = _saved(ctx)
        wanted = ctx.needs_input_grad[:2]
        grads = _call(
            _Scan2dBackward,
            _backward_2d,
            _run_backward_2d,
            grad_y,
            *tensors,
            *ctx.order,
            table,
            ctx.backend,
            *wanted,
        )
        return *_only_wanted(ctx, grads), *(None,) * 6


class _SelectiveScan(_Function):
    @staticmethod
    def forward(*inputs):
        return _below_autograd(_forward_1d, _run_forward_1d, inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, softplus, backend, keep = inputs
        _save(ctx, keep, (*tensors, output[2]), output)
        ctx.softplus, ctx.backend = softplus, backend

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 10
        *tensors, checkpoints = _saved(ctx)
        grads = _call(
            _SelectiveScanBackward,
            _backward_1d,
            _run_backward_1d,
            grad_y,
            *tensors,
            ctx.softplus,
            checkpoints,
            ctx.backend,
        )
        return *_only_wanted(ctx, grads), None, None, None


class _Scan2dBackward(_Function):
    @staticmethod
    def forward(*inputs):
        return _below_autograd(_backward_2d, _run_backward_2d, inputs)

    @staticmethod
    def backward(ctx, *_):
        raise _no_second_derivative()


class _SelectiveScanBackward(_Function):
    @staticmethod
    def forward(*inputs):
        return _below_autograd(_backward_1d, _run_backward_1d, inputs)

    @staticmethod
    def backward(ctx, *_):
        raise _no_second_derivative()


def _below_autograd(operator: Any, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    if _is_plain(inputs):
        return run(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def _call(
    function: type[_Function], operator: Any, run: Callable[..., Any], *inputs: Any
) -> tuple[Tensor, ...]:
    """The operator, or what it does without it where nobody but autograd looks.

    The way through the dispatcher and back costs as much as a tenth of a small scan.
    """
    if not torch.compiler.is_compiling() and _is_plain(inputs):
        if not needs_gradients(*(t for t in inputs if isinstance(t, Tensor))):
            return run(*inputs)
        return function.apply(*map(_not_a_parameter, inputs))
    if _is_transformed():
        # A transform of torch.func takes the autograd function instead, as it must.
        return function.apply(*inputs)
    return operator(*inputs)


def _not_a_parameter(value: Any) -> Any:
    """A copy of a tensor that collects gradients itself, else the value.

    torch takes a lock of such a tensor inside `Function.apply` while it holds the interpreter's,
    and elsewhere the interpreter's while it holds the tensor's (torch 2.14: `grad_accumulator`
    makes a reference to the Python object). Two threads with one model then wait for each other
    for ever. A copy has a lock of its own, a view has not.
    """
    if isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
        return value.clone()
    return value


def _is_plain(inputs: tuple[Any, ...]) -> bool:
    """Whether no mode, transform, tracer, profiler or kind of tensor wants to see the operator."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and not torch.autograd._profiler_enabled()
        and all(type(t) in (Tensor, Parameter) for t in inputs if isinstance(t, Tensor))
    )


@traced_once
def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def _save(ctx, keep, tensors, output):
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.keep = keep
    ctx.save_for_backward(*(tensors if keep else ()))


def _saved(ctx):
    if not ctx.keep:
        raise RuntimeError(f"an {NAMESPACE} operator ran with keep=False; gradients need True.")
    return ctx.saved_tensors


def _only_wanted(ctx, grads):
    return [g if w else None for g, w in zip(grads, ctx.needs_input_grad, strict=False)]


def _no_second_derivative() -> NotImplementedError:
    return NotImplementedError(
        "the compiled backends of a scan have no second derivatives; use backend='reference', "
        "which autograd differentiates any number of times."
    )


def _register(name, run, fake, function):
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def autograd(*inputs):
        tensors = (t for t in inputs if isinstance(t, Tensor))
        if forward_ad._current_level >= 0 or needs_gradients(*tensors):
            return function.apply(*inputs)
        return _below_autograd(overload, run, inputs)

    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return overload


_forward_2d = _register("scan2d", _run_forward_2d, _fake_forward_2d, _Scan2d)
_backward_2d = _register("scan2d_backward", _run_backward_2d, _fake_backward_2d, _Scan2dBackward)
_forward_1d = _register("selective_scan", _run_forward_1d, _fake_forward_1d, _SelectiveScan)
_backward_1d = _register(
    "selective_scan_backward", _run_backward_1d, _fake_backward_1d, _SelectiveScanBackward
)
flops.register_when_imported(
    {
        _forward_2d: flops.scan2d,
        _backward_2d: flops.scan2d_backward,
        _forward_1d: flops.selective_scan,
        _backward_1d: flops.selective_scan_backward,
    }
)
