"""Programs over channels-last maps: what torch would run as several passes over memory in one.

Maps are `[rows, C]` with C a multiple of sixteen, one vector; a row is a token. As the programs of
the scan, each takes the address of a table of int64 (the columns below) and works on items, runs of
rows of one image, until none is left; any number of threads may run it on the same table. Addresses
are in bytes.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from kernels._cpu.arithmetic import LOG2E, ONE, ZERO, compiled, exp2, inlined
from kernels._cpu.simd import (
    LANES,
    at_least,
    column,
    f32x16,
    fetch_and_add,
    fma,
    load,
    load_scalar,
    splat,
    store,
    where_greater,
)

(
    NEXT_ITEM,
    N_ITEMS,
    ROWS,  # of one image: tokens, or lines of the map for `depthwise_conv`
    ROWS_PER_ITEM,
    ITEMS_PER_IMAGE,
    CHANNELS,
    HEIGHT,
    WIDTH,
    ACTIVATION,
    EPS,  # a float32 in the first half
    X,
    X2,
    X3,
    WEIGHT,
    BIAS,
    GATE,
    GATE2,
    Y,
    N_COLUMNS,
) = range(19)
ACTIVATIONS = ("", "relu", "silu", "gelu")
_RELU, _SILU, _GELU = 1, 2, 3
_HALF, _SQRT_HALF = np.float32(0.5), np.float32(0.5**0.5)
# erf(x) = 1 - t (a1 + t (a2 + ...)) exp(-x^2) with t = 1 / (1 + p x), x >= 0: Abramowitz and Stegun
# 7.1.26, absolute error 1.5e-7.
_ERF_P = np.float32(0.3275911)
_ERF = tuple(
    np.float32(a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)


@intrinsic
def sum_lanes(typingctx, value):
    """The sum of the sixteen lanes, added in pairs."""

    def codegen(context, builder, signature, args):
        vector = args[0].type
        scalar = vector.element
        fn = builder.module.declare_intrinsic(
            "llvm.vector.reduce.fadd.v16f32", (), ir.FunctionType(scalar, [scalar, vector])
        )
        return builder.call(fn, [ir.Constant(scalar, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(f32x16), codegen


@inlined
def _sigmoid(x):
    # Rounding x * log2(e) costs accuracy only where e**-x is large, and the sigmoid small with it.
    return splat(ONE) / (splat(ONE) + exp2(x * splat(-LOG2E)))


@inlined
def _gelu(x):
    zero, one = splat(ZERO), splat(ONE)
    size = at_least(x, zero - x) * splat(_SQRT_HALF)
    t = one / fma(size, splat(_ERF_P), one)
    p = fma(t, splat(_ERF[4]), splat(_ERF[3]))
    p = fma(p, t, splat(_ERF[2]))
    p = fma(p, t, splat(_ERF[1]))
    p = fma(p, t, splat(_ERF[0])) * t
    half_tail = splat(_HALF) * p * exp2(size * size * splat(-LOG2E))
    # x * Phi(x); the tail is what Phi lacks to 1, or for negative x Phi itself.
    return x * where_greater(zero, x, half_tail, one - half_tail)


@inlined
def _activate(kind, x):
    if kind == _RELU:
        return at_least(x, splat(ZERO))
    if kind == _SILU:
        return x * _sigmoid(x)
    if kind == _GELU:
        return _gelu(x)
    return x


@inlined
def _next_item(p):
    return fetch_and_add(p + 8 * NEXT_ITEM, 1)


@inlined
def _rows_of(p, item):
    """Image, first row and row after the last of an item; rows counted over all images."""
    rows, per_item = column(p, ROWS), column(p, ROWS_PER_ITEM)
    b, part = item // column(p, ITEMS_PER_IMAGE), item % column(p, ITEMS_PER_IMAGE)
    return b, b * rows + part * per_item, b * rows + min((part + 1) * per_item, rows)


@inlined
def _moments(x, at, channels, eps):
    """Mean and 1 / standard deviation of a row, as vectors."""
    total = load(x, at)
    for c in range(LANES, channels, LANES):
        total = total + load(x, at + c)
    mean = splat(sum_lanes(total) / np.float32(channels))
    d = load(x, at) - mean
    squares = d * d
    for c in range(LANES, channels, LANES):
        d = load(x, at + c) - mean
        squares = fma(d, d, squares)
    variance = sum_lanes(squares) / np.float32(channels)
    return mean, splat(ONE / np.sqrt(variance + eps))


@compiled
def _norm_rows(x, weight, bias, gate, y, eps, channels, first, stop):
    """`y = norm(x)`, times SiLU of `gate` unless that is 0."""
    for row in range(first, stop):
        at = row * channels
        mean, inverse = _moments(x, at, channels, eps)
        for c in range(0, channels, LANES):
            v = (load(x, at + c) - mean) * inverse
            v = fma(v, load(weight, c), load(bias, c))
            if gate != 0:
                z = load(gate, at + c)
                v = v * (z * _sigmoid(z))
            store(y, at + c, v)


@compiled
def _pool_rows(x, y, eps, channels, first, stop):
    """Sum of the normed rows (without weight and bias) to the row `y`."""
    for c in range(0, channels, LANES):
        store(y, c, splat(ZERO))
    for row in range(first, stop):
        at = row * channels
        mean, inverse = _moments(x, at, channels, eps)
        for c in range(0, channels, LANES):
            store(y, c, fma(load(x, at + c) - mean, inverse, load(y, c)))


@compiled
def _gate_rows(x, x2, x3, gate, gate2, y, channels, first, stop):
    """`y = x + x2 * gate + x3 * gate2`; without the last addend where `x3` is 0."""
    for row in range(first, stop):
        for c in range(0, channels, LANES):
            at = row * channels + c
            v = fma(load(x2, at), load(gate, c), load(x, at))
            if x3 != 0:
                v = fma(load(x3, at), load(gate2, c), v)
            store(y, at, v)


@compiled
def _affine_rows(x, weight, bias, y, kind, channels, first, stop):
    """`y = activation(x * weight + bias)`."""
    for row in range(first, stop):
        for c in range(0, channels, LANES):
            at = row * channels + c
            store(y, at, _activate(kind, fma(load(x, at), load(weight, c), load(bias, c))))


@compiled
def _depthwise_line(x, weight, bias, y, kind, channels, image, line, height, width):
    """One line of a 3x3 depthwise convolution with zeros around the map, then the activation.

    weight `[10, C]`: nine taps, and zeros that stand for the lines above and below the map.
    """
    centre = x + 4 * (image * height + line) * width * channels
    out = y + centre - x
    # Lines above and below, and how far to go for the next token.
    up, down = centre - 4 * width * channels, centre + 4 * width * channels
    up_step, down_step = channels, channels
    if line == 0:
        up, up_step = weight + 36 * channels, 0
    if line == height - 1:
        down, down_step = weight + 36 * channels, 0
    for c in range(0, channels, LANES):
        w = weight + 4 * c
        w0, w1, w2 = load(w, 0), load(w, channels), load(w, 2 * channels)
        w3, w4, w5 = load(w, 3 * channels), load(w, 4 * channels), load(w, 5 * channels)
        w6, w7, w8 = load(w, 6 * channels), load(w, 7 * channels), load(w, 8 * channels)
        start = load(bias, c)
        # A token is read once and counted to three sums: of the token before it, of its own and of
        # the one after it.
        a, b, d = load(up, c), load(centre, c), load(down, c)
        own = start + fma(a, w1, fma(b, w4, d * w7))
        after = start + fma(a, w0, fma(b, w3, d * w6))
        for i in range(1, width):
            a, b = load(up, c + i * up_step), load(centre, c + i * channels)
            d = load(down, c + i * down_step)
            before = own + fma(a, w2, fma(b, w5, d * w8))
            store(out, c + (i - 1) * channels, _activate(kind, before))
            own = after + fma(a, w1, fma(b, w4, d * w7))
            after = start + fma(a, w0, fma(b, w3, d * w6))
        store(out, c + (width - 1) * channels, _activate(kind, own))


def build_programs(version):
    """The programs by name.

    numba's cache files know the source of this module only. So `version`, a digest of all sources,
    is a free variable of each program, and with that a part of its key in the cache.
    """

    def layer_norm(p):
        version  # noqa: B018
        item = _next_item(p)
        while item < column(p, N_ITEMS):
            _, first, stop = _rows_of(p, item)
            x, weight, bias, y = column(p, X), column(p, WEIGHT), column(p, BIAS), column(p, Y)
            eps, channels = load_scalar(p, 2 * EPS), column(p, CHANNELS)
            _norm_rows(x, weight, bias, column(p, GATE), y, eps, channels, first, stop)
            item = _next_item(p)

    def normed_mean(p):
        version  # noqa: B018
        item = _next_item(p)
        while item < column(p, N_ITEMS):
            _, first, stop = _rows_of(p, item)
            eps, channels = load_scalar(p, 2 * EPS), column(p, CHANNELS)
            y = column(p, Y) + 4 * item * channels
            _pool_rows(column(p, X), y, eps, channels, first, stop)
            item = _next_item(p)

    def gated_sum(p):
        version  # noqa: B018
        item = _next_item(p)
        while item < column(p, N_ITEMS):
            b, first, stop = _rows_of(p, item)
            channels = column(p, CHANNELS)
            offset = 4 * b * channels
            gate, gate2 = column(p, GATE) + offset, column(p, GATE2) + offset
            x, x2, x3, y = column(p, X), column(p, X2), column(p, X3), column(p, Y)
            _gate_rows(x, x2, x3, gate, gate2, y, channels, first, stop)
            item = _next_item(p)

    def affine(p):
        version  # noqa: B018
        item = _next_item(p)
        while item < column(p, N_ITEMS):
            _, first, stop = _rows_of(p, item)
            x, weight, bias, y = column(p, X), column(p, WEIGHT), column(p, BIAS), column(p, Y)
            kind, channels = column(p, ACTIVATION), column(p, CHANNELS)
            _affine_rows(x, weight, bias, y, kind, channels, first, stop)
            item = _next_item(p)

    def depthwise_conv(p):
        version  # noqa: B018
        item = _next_item(p)
        while item < column(p, N_ITEMS):
            b, first, stop = _rows_of(p, item)
            x, weight, bias, y = column(p, X), column(p, WEIGHT), column(p, BIAS), column(p, Y)
            kind, channels = column(p, ACTIVATION), column(p, CHANNELS)
            height, width = column(p, HEIGHT), column(p, WIDTH)
            for line in range(first - b * height, stop - b * height):
                _depthwise_line(x, weight, bias, y, kind, channels, b, line, height, width)
            item = _next_item(p)

    return {
        "layer_norm": layer_norm,
        "normed_mean": normed_mean,
        "gated_sum": gated_sum,
        "affine": affine,
        "depthwise_conv": depthwise_conv,
    }
