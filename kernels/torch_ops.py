"""Both scans as operators of torch, for autograd, `torch.compile`, `torch.export`, FLOP counters.

`torch.ops.efficientvmamba.{scan2d, selective_scan}` and their backward passes hand their tensors to
a compiled backend's pure functions. A backend is a module with

- `scan2d_forward`, `scan2d_backward`, `selective_scan_forward`, `selective_scan_backward`,
- `saved_shapes_scan2d`, `saved_shapes_selective_scan`: shapes of what a forward pass saves, and
  types (None: that of the tokens),

as `kernels/cpu.py` has them. An order passes through an operator as text and map size, so that a
graph holds no table and an exported program needs none; `Operands` has the form.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.checks import check_sets
from kernels.cost import convention_flops
from kernels.scan_order import Merge, ScanOrder, ScanSpec, scan_order

_Callable = TypeVar("_Callable", bound=Callable[..., object])

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


class Operands(NamedTuple):
    """An order in an operator's arguments: a named scheme, or `table` for a user's own.

    `order` is a scheme's text, or "place" or "sum" beside a `table` int32 `[K, 1 + L]`: the
    parameter set of each sequence, then its tokens. height, width are the map's.
    """

    order: str
    height: int
    width: int
    table: Tensor | None


class TableSize(NamedTuple):
    """What `saved_shapes_scan2d` may ask of an order where a table has no data yet."""

    n_sequences: int
    length: int
    merge: str
    height: int
    width: int

    @property
    def n_tokens(self) -> int:
        return self.height * self.width


def traced_once(function: _Callable) -> _Callable:
    """Make `torch.compile` run `function` while it traces and keep the result.

    What `torch.compiler.assume_constant_result` does; that imports the whole compiler, two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_own_tables: WeakKeyDictionary[ScanOrder, Tensor] = WeakKeyDictionary()
_own_orders: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@traced_once
def order_text(order: str | ScanSpec | ScanOrder, **params: int) -> str:
    """The order as an operator takes it: its scheme's text, or how a user's table is merged."""
    if not isinstance(order, ScanOrder):
        spec = ScanSpec.of(order, **params)
        spec.check_runnable()
        return str(spec)
    if params:
        raise TypeError(f"{', '.join(params)} given beside a finished ScanOrder.")
    order.check_runnable()
    if _is_own(order):
        return order.merge
    return str(order.spec)


@traced_once
def order_table(order: str | ScanSpec | ScanOrder) -> Tensor | None:
    """The table of a user's own order, the same tensor each time; None for a named scheme."""
    if not isinstance(order, ScanOrder) or not _is_own(order):
        return None
    table = _own_tables.get(order)
    if table is None:
        sets = torch.tensor(order.parameter_set, dtype=torch.int32)[:, None]
        table = torch.cat([sets, torch.tensor(order.index)], dim=1)
        _own_tables[order] = table
    return table


def _is_own(order: ScanOrder) -> bool:
    # A table of the user's own may carry a scheme's name.
    spec = order.spec
    return spec is None or scan_order(spec, order.height, order.width) is not order


def order_of(order: str, height: int, width: int, table: Tensor | None) -> ScanOrder:
    """The order that `Operands` name."""
    if table is None:
        return _named_order(order, int(height), int(width))
    known: ScanOrder | None = _own_orders.get(table)
    if known is None:
        rows = table.cpu().numpy()
        merge: Merge = "sum" if order == "sum" else "place"
        known = ScanOrder("table", rows[:, 1:], rows[:, 0], merge, int(height), int(width))
        _own_orders[table] = known
    return known


@lru_cache(maxsize=256)
def _named_order(text: str, height: int, width: int) -> ScanOrder:
    return scan_order(text, height, width)


def _size_of(order: str, height: int, width: int, table: Any) -> ScanOrder | TableSize:
    """`table` is a tensor, perhaps without data, or its shape."""
    if table is None:
        return _named_order(order, int(height), int(width))
    n_sequences, columns = getattr(table, "shape", table)
    return TableSize(n_sequences, columns - 1, order, height, width)


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
    found = order_of(order, height, width, table)
    check_sets(found, x_proj.shape[0])
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
        size = _size_of(order, height, width, table)
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
        tensors = (t for t in inputs if isinstance(t, Tensor))
        return function.apply(*inputs) if needs_gradients(*tensors) else run(*inputs)
    if _is_transformed():
        # A transform of torch.func takes the autograd function instead, as it must.
        return function.apply(*inputs)
    return operator(*inputs)


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


def _register(name, run, fake, function, flops):
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def autograd(*inputs):
        tensors = (t for t in inputs if isinstance(t, Tensor))
        if forward_ad._current_level >= 0 or needs_gradients(*tensors):
            return function.apply(*inputs)
        return _below_autograd(overload, run, inputs)

    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    register_flop_formula(overload.overloadpacket)(flops)
    return overload


# One multiply-accumulate counts two operations, and the recurrence as in `models.complexity`, so
# that torch's counter gives twice a model's multiply-accumulates. A backward pass counts twice its
# forward pass, as torch counts that of a product.
def _flops_2d(tokens, x_proj, dt_weight, dt_bias, A_logs, Ds, *settings, **_):
    batch, _n_tokens, channels = tokens
    order, height, width, table = settings[:4]
    size = _size_of(order, height, width, table)
    steps = batch * size.n_sequences * size.length
    products = steps * channels * (x_proj[1] + dt_weight[2])
    return 2 * (products + convention_flops(1, 1, steps, channels, A_logs[1]))


def _backward_flops_2d(grad_y, *rest, **_):
    return 2 * _flops_2d(*rest[:6], *rest[8:12])


def _flops_1d(u, delta, A, B, *_, **__):
    batch, rows, length = u
    return 2 * convention_flops(batch, B[1], length, rows // B[1], A[1])


def _backward_flops_1d(grad_y, *rest, **_):
    return 2 * _flops_1d(*rest)


_forward_2d = _register("scan2d", _run_forward_2d, _fake_forward_2d, _Scan2d, _flops_2d)
_backward_2d = _register(
    "scan2d_backward", _run_backward_2d, _fake_backward_2d, _Scan2dBackward, _backward_flops_2d
)
_forward_1d = _register(
    "selective_scan", _run_forward_1d, _fake_forward_1d, _SelectiveScan, _flops_1d
)
_backward_1d = _register(
    "selective_scan_backward",
    _run_backward_1d,
    _fake_backward_1d,
    _SelectiveScanBackward,
    _backward_flops_1d,
)
