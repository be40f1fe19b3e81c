"""Passes over channels-last maps fused into one, for inference on the CPU.

A small map costs more in memory traffic and operator calls than in arithmetic, so LayerNorm and its
gate, a depthwise convolution with its norm and activation, and so on are one pass each. Every
function says what it computes in plain torch; a caller asks `is_usable` first and runs that plain
form where the answer is no:

    y = map_ops.layer_norm(x, w, b, eps) if map_ops.is_usable(x, w, b) else F.layer_norm(...)

Maps are contiguous `[B, H, W, C]`, everything is float32. Results are within rounding of plain
torch and do not depend on the number of threads. The loops are in `kernels/_cpu/map_programs.py`,
compiled at first use and cached as the scan's; a profiler shows them as `map_ops::<function>`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.profiler import record_function

from kernels._cpu import run

LANES = 16  # channels of one vector; a map's channels must be a multiple
# How the work is cut: at least so many items together, none with more rows than this. Not by the
# number of threads, so that sums do not depend on it.
_N_ITEMS = 32
_MAX_ROWS = 128
# Numbers that are worth a thread; torch's own measure.
_GRAIN = 32768


def is_usable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the functions below can take the map `x` `[B, H, W, C]` (and `others`) here and now.

    No where gradients are wanted, and where something else than plain torch would see the operators
    of the plain form: compiling, tracing, exporting, dispatch and function modes (counters of
    FLOPs), autocast, function transforms. A weight that is None, or of another type, device or
    layout, also means no.
    """
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not _is_observed()
        and _is_plain(x)
        and x.dim() == 4
        and x.shape[3] % LANES == 0
        and x.numel() > 0
        and x.is_contiguous()
        and all(_is_plain(t) for t in others)
        and run.unavailable_reason() is None
    )


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, gate: Tensor | None = None
) -> Tensor:
    """`F.layer_norm(x, [C], weight, bias, eps)`, with a gate times `F.silu(gate)`.

    x `[B, H, W, C]`; weight, bias `[C]`; gate like x: its memory then holds the result.
    """
    y = torch.empty_like(x) if gate is None else gate
    columns = {"X": x, "WEIGHT": weight, "BIAS": bias, "GATE": gate, "Y": y}
    _run("layer_norm", x, columns, eps=eps)
    return y


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "") -> Tensor:
    """3x3 depthwise convolution of `[B, H, W, C]` with zeros around the map, then the activation.

    weight `[C, 1, 3, 3]`, bias `[C]`; `F.conv2d(x, weight, bias, padding=1, groups=C)` on NCHW.
    activation: "", "relu", "silu" or "gelu".
    """
    y = torch.empty_like(x)
    taps = x.new_zeros(10, x.shape[3])  # the last row stays zeros
    taps[:9] = weight.view(-1, 9).t()
    _run("depthwise_conv", x, {"X": x, "WEIGHT": taps, "BIAS": bias, "Y": y}, activation)
    return y


def affine_(x: Tensor, scale: Tensor, shift: Tensor, activation: str = "") -> Tensor:
    """`activation(x * scale + shift)` in place of x; scale, shift `[C]`."""
    _run("affine", x, {"X": x, "WEIGHT": scale, "BIAS": shift, "Y": x}, activation)
    return x


def normed_mean(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.layer_norm(x, [C], weight, bias, eps).mean((1, 2))`: `[B, H, W, C]` -> `[B, C]`."""
    batch, height, width, channels = x.shape
    _, per_image = _items(batch, height * width)
    sums = x.new_empty(batch, per_image, channels)
    _run("normed_mean", x, {"X": x, "Y": sums}, eps=eps)
    return torch.addcmul(bias, sums.sum(1), weight, value=1 / (height * width))


def gated_sum(x: Tensor, paths: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """`x + sum(path * gate)` over one or two paths: `[B, H, W, C]`, gates `[B, 1, 1, C]`."""
    y = torch.empty_like(x)
    columns = {"X": x, "X2": paths[0], "GATE": gates[0], "Y": y}
    if len(paths) == 2:
        columns |= {"X3": paths[1], "GATE2": gates[1]}
    _run("gated_sum", x, columns)
    return y


def _is_observed() -> bool:
    """Whether something would change or see the operators of the plain form."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether the memory of `tensor` is float32 on the CPU, and nothing but that."""
    return (
        tensor is not None
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


def _items(batch: int, rows: int) -> tuple[int, int]:
    """Rows of one item, and items of one image."""
    per_item = min(-(-rows // -(-_N_ITEMS // batch)), _MAX_ROWS)
    return per_item, -(-rows // per_item)


def _run(
    name: str,
    x: Tensor,
    tensors: Mapping[str, Tensor | None],
    activation: str = "",
    eps: float = 0.0,
) -> None:
    """Fill the table of a program for maps like `x` and run it on torch's threads."""
    from kernels._cpu import map_programs as col

    batch, height, width, channels = x.shape
    rows = height if name == "depthwise_conv" else height * width
    per_item, per_image = _items(batch, rows)
    table = (ctypes.c_int64 * col.N_COLUMNS)()
    table[col.N_ITEMS] = n_items = batch * per_image
    table[col.ROWS] = rows
    table[col.ROWS_PER_ITEM] = per_item
    table[col.ITEMS_PER_IMAGE] = per_image
    table[col.CHANNELS] = channels
    table[col.HEIGHT], table[col.WIDTH] = height, width
    table[col.ACTIVATION] = col.ACTIVATIONS.index(activation)
    struct.pack_into("f", table, 8 * col.EPS, eps)
    for column, tensor in tensors.items():
        if tensor is not None:
            assert tensor.is_contiguous() and tensor.dtype == torch.float32, (name, column)
            table[getattr(col, column)] = tensor.data_ptr()
    # With a profiler on, a program shows beside torch's operators.
    is_watched = torch.autograd._profiler_enabled()
    with record_function(f"map_ops::{name}") if is_watched else nullcontext():
        n_threads = min(torch.get_num_threads(), n_items, -(-x.numel() // _GRAIN))
        program = run.compiled_program(name, run.MAPS)
        run.run_on_threads(program, ctypes.addressof(table), n_threads)
