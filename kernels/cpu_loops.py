"""The loops of the CPU kernel, compiled by numba at first use.

One work item is one sequence of one image for a block of channels (sixteen, one vector), so items never
write to the same place and the answer does not depend on the number of threads. A program takes the
address of a table of int64 (the names below are its columns) and works on items until none is left; any
number of threads may run the same program on the same table.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from kernels.simd import (
    LANES,
    at_least,
    at_most,
    fetch_and_add,
    fma,
    load,
    load_first,
    load_int,
    load_scalar,
    row_sums,
    shift_bits_left_23,
    splat,
    store,
    store_first,
    store_scalar,
    where_greater,
)

# Columns of the table. Addresses are in bytes, strides and sizes in elements.
(
    NEXT_ITEM,
    NEXT_WORKER,
    N_ITEMS,
    SCRATCH,
    SCRATCH_SIZE,
    BATCH,
    SEQUENCES,
    LENGTH,
    CHANNELS,
    STATES,
    RANK,
    ROWS,
    BLOCKS,
    GROUPS,
    SOFTPLUS,
    A_IS_LOG,
    MERGE_SUM,
    INDEX,
    SETS,
    X,
    DELTA,
    DELTA_STRIDE,
    B_IN,
    C_IN,
    BC_STRIDE,
    A_IN,
    DT_WEIGHT,
    DT_BIAS,
    SKIP,
    Y,
    CHECKPOINTS,
    GRAD_Y,
    GRAD_X,
    GRAD_DELTA,
    GRAD_BC,
    GRAD_BC_STRIDE,
    GRAD_A,
    GRAD_BIAS,
    GRAD_SKIP,
    VISITS,
    VISIT_STARTS,
    N_COLUMNS,
) = range(42)

# Steps between stored states: the backward pass recomputes the states in between.
CHECKPOINT = 16
# Tokens of one work item when gradients return to the map.
PUT_BACK_ROWS = 64

_LOG2E = np.float32(1.4426950408889634)
_LOG2E_TAIL = np.float32(1.4426950408889634 - float(np.float32(1.4426950408889634)))
_LN2 = np.float32(0.6931471805599453)
# 1.5 * 2^23 rounds a small float to a whole number in its low bits; 127 is the exponent's bias.
_ROUND = np.float32(12582912.0 + 127.0)
# Minimax polynomials (relative error 9e-8 and 4e-9) with constant term 1: exp2 on [-1/2, 1/2] and
# artanh(s)/s in s^2 on [0, 1/9].
_EXP2 = tuple(
    np.float32(c)
    for c in (1.0, 0.693146977598494, 0.24022242084614315, 0.05550734, 0.009671512685, 0.0013264727)
)
_ARTANH = tuple(
    np.float32(c) for c in (1.0, 0.33333208142687887, 0.2001076362802921, 0.14000902, 0.14005994)
)

_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def _exp2(x):
    """2**x; exactly inf from 128, 0 (or a subnormal) below -126, NaN stays NaN."""
    x = at_most(at_least(x, splat(np.float32(-127.0))), splat(np.float32(128.0)))
    shifted = x + splat(_ROUND)
    r = x - (shifted - splat(_ROUND))
    return _exp2_fraction(r) * shift_bits_left_23(shifted)


@_inline
def _exp2_fraction(r):
    p = fma(r, splat(_EXP2[5]), splat(_EXP2[4]))
    p = fma(p, r, splat(_EXP2[3]))
    p = fma(p, r, splat(_EXP2[2]))
    p = fma(p, r, splat(_EXP2[1]))
    return fma(p, r, splat(np.float32(1.0)))


@_inline
def _exp(x):
    """e**x with the error of x * log2(e) carried along."""
    scaled = x * splat(_LOG2E)
    clamped = at_most(at_least(scaled, splat(np.float32(-127.0))), splat(np.float32(128.0)))
    shifted = clamped + splat(_ROUND)
    whole = shifted - splat(_ROUND)
    tail = fma(x, splat(_LOG2E), splat(np.float32(0.0)) - scaled)
    tail = fma(x, splat(_LOG2E_TAIL), tail)
    # The tail of a clamped (or infinite) argument means nothing.
    bound = splat(np.float32(127.0))
    tail = where_greater(bound * bound, scaled * scaled, tail, splat(np.float32(0.0)))
    return _exp2_fraction((clamped - whole) + tail) * shift_bits_left_23(shifted)


@_inline
def _softplus(x):
    """log(1 + e**x) and its derivative; x itself and 1 above 20, as torch does."""
    zero, one, cut = splat(np.float32(0.0)), splat(np.float32(1.0)), splat(np.float32(20.0))
    e = _exp(at_most(x, zero - x))
    # log1p(e) = 2 artanh(e / (2 + e)), accurate however small e is.
    s = e / (splat(np.float32(2.0)) + e)
    z = s * s
    p = fma(z, splat(_ARTANH[4]), splat(_ARTANH[3]))
    p = fma(p, z, splat(_ARTANH[2]))
    p = fma(p, z, splat(_ARTANH[1]))
    p = fma(p, z, one)
    value = fma(s + s, p, at_least(x, zero))
    slope = where_greater(zero, x, e, one) / (one + e)
    return where_greater(x, cut, x, value), where_greater(x, cut, one, slope)


@_inline
def _pack(source, n_rows, n_columns, target):
    """Transpose `[n_rows <= 16, n_columns]` into `[n_columns, 16]`, zero-padded."""
    for column in range(n_columns):
        for row in range(LANES):
            value = np.float32(0.0)
            if row < n_rows:
                value = load_scalar(source, row * n_columns + column)
            store_scalar(target, column * LANES + row, value)


@_inline
def _pack_parameters(p, k, v, decay, weight):
    """A of 16 channels times log2(e) as `[N, 16]` and the dt weights as `[R, 16]`."""
    n_valid = min(p[CHANNELS] - v * LANES, LANES)
    first = load_int(p[SETS], k) * p[CHANNELS] + v * LANES
    _pack(p[A_IN] + 4 * first * p[STATES], n_valid, p[STATES], decay)
    for n in range(p[STATES]):
        a = load(decay, n * LANES)
        if p[A_IS_LOG]:
            a = splat(np.float32(0.0)) - _exp(a)
        store(decay, n * LANES, a * splat(_LOG2E))
    if p[RANK] > 0:
        _pack(p[DT_WEIGHT] + 4 * first * p[RANK], n_valid, p[RANK], weight)
    return first, n_valid


@_inline
def _token_row(p, b, k, t):
    """Row of `x` that step t reads, or -1 at a pad."""
    if p[INDEX] == 0:
        return b * p[ROWS] + k * p[LENGTH] + t
    token = load_int(p[INDEX], k * p[LENGTH] + t)
    return b * p[ROWS] + token if token >= 0 else np.int64(-1)


@_inline
def _read_step(p, sequence, t, row, v, n_valid, weight, bias):
    """Input, raw dt (before softplus) of 16 channels at one step."""
    u = splat(np.float32(0.0))
    if row >= 0:
        u = load_first(p[X], row * p[CHANNELS] + v * LANES, n_valid)
    step = sequence * p[LENGTH] + t
    if p[RANK] > 0:
        raw = bias
        for r in range(p[RANK]):
            dt_r = splat(load_scalar(p[DELTA], step * p[DELTA_STRIDE] + r))
            raw = fma(dt_r, load(weight, r * LANES), raw)
    else:
        raw = bias + load_first(p[DELTA], step * p[DELTA_STRIDE] + v * LANES, n_valid)
    return u, raw


@_inline
def _forward_sequence(p, b, k, v, scratch):
    n_states, length = p[STATES], p[LENGTH]
    decay = scratch
    state = decay + 4 * LANES * n_states
    weight = state + 4 * LANES * n_states
    first, n_valid = _pack_parameters(p, k, v, decay, weight)
    bias = load_first(p[DT_BIAS], first, n_valid)
    skip = load_first(p[SKIP], first, n_valid)
    sequence = b * p[SEQUENCES] + k
    n_checkpoints = (length - 1) // CHECKPOINT
    for n in range(n_states):
        store(state, n * LANES, splat(np.float32(0.0)))
    for t in range(length):
        if p[CHECKPOINTS] != 0 and t > 0 and t % CHECKPOINT == 0:
            slot = (sequence * n_checkpoints + t // CHECKPOINT - 1) * p[BLOCKS] + v
            for n in range(n_states):
                at = (slot * n_states + n) * LANES
                store(p[CHECKPOINTS], at, load(state, n * LANES))
        row = _token_row(p, b, k, t)
        u, dt = _read_step(p, sequence, t, row, v, n_valid, weight, bias)
        if p[SOFTPLUS]:
            dt, _ = _softplus(dt)
        dt_u = dt * u
        y = skip * u
        bc = (sequence * length + t) * p[BC_STRIDE]
        for n in range(n_states):
            a = _exp2(dt * load(decay, n * LANES))
            h = fma(a, load(state, n * LANES), dt_u * splat(load_scalar(p[B_IN], bc + n)))
            store(state, n * LANES, h)
            y = fma(h, splat(load_scalar(p[C_IN], bc + n)), y)
        if row >= 0:
            at = row * p[CHANNELS] + v * LANES
            if p[MERGE_SUM]:
                y = y + load_first(p[Y], at, n_valid)
            store_first(p[Y], at, n_valid, y)


@_inline
def _forward_item(p, item, scratch):
    v = item % p[BLOCKS]
    if p[MERGE_SUM]:
        # One item adds up all sequences: no two items write to the same outputs.
        for k in range(p[SEQUENCES]):
            _forward_sequence(p, item // p[BLOCKS], k, v, scratch)
    else:
        sequence = item // p[BLOCKS]
        _forward_sequence(p, sequence // p[SEQUENCES], sequence % p[SEQUENCES], v, scratch)


@_inline
def _backward_chunk(p, b, k, v, t0, steps, decay, weight, carry, tiles, sums):
    """Steps `t0 .. t0 + steps` of one block of channels, last to first.

    `sums` collects the gradients of B and C over the channel blocks, `[CHECKPOINT, 2N padded to 16]`.
    """
    n_states = p[STATES]
    tile = 4 * LANES
    sequence = b * p[SEQUENCES] + k
    first = load_int(p[SETS], k) * p[CHANNELS] + v * LANES
    n_valid = min(p[CHANNELS] - v * LANES, LANES)
    bias = load_first(p[DT_BIAS], first, n_valid)
    skip = load_first(p[SKIP], first, n_valid)
    states = tiles
    decays = states + tile * n_states * (CHECKPOINT + 1)
    inputs = decays + tile * n_states * CHECKPOINT
    gates = inputs + tile * CHECKPOINT
    slopes = gates + tile * CHECKPOINT
    products = slopes + tile * CHECKPOINT
    n_padded = (n_states + LANES - 1) // LANES * LANES
    products_c = products + tile * n_padded

    if t0 == 0:
        for n in range(n_states):
            store(states, n * LANES, splat(np.float32(0.0)))
    else:
        n_checkpoints = (p[LENGTH] - 1) // CHECKPOINT
        slot = (sequence * n_checkpoints + t0 // CHECKPOINT - 1) * p[BLOCKS] + v
        for n in range(n_states):
            store(states, n * LANES, load(p[CHECKPOINTS], (slot * n_states + n) * LANES))

    for i in range(steps):
        row = _token_row(p, b, k, t0 + i)
        u, dt = _read_step(p, sequence, t0 + i, row, v, n_valid, weight, bias)
        slope = splat(np.float32(1.0))
        if p[SOFTPLUS]:
            dt, slope = _softplus(dt)
        store(inputs, i * LANES, u)
        store(gates, i * LANES, dt)
        store(slopes, i * LANES, slope)
        dt_u = dt * u
        bc = (sequence * p[LENGTH] + t0 + i) * p[BC_STRIDE]
        for n in range(n_states):
            at = (i * n_states + n) * LANES
            a = _exp2(dt * load(decay, n * LANES))
            store(decays, at, a)
            b_n = splat(load_scalar(p[B_IN], bc + n))
            store(states, at + n_states * LANES, fma(a, load(states, at), dt_u * b_n))

    block = (sequence * p[BLOCKS] + v) * LANES
    grad_a = p[GRAD_A] + 4 * block * n_states
    grad_bias = load(p[GRAD_BIAS], block)
    grad_skip = load(p[GRAD_SKIP], block)
    for j in range(steps):
        i = steps - 1 - j
        row = _token_row(p, b, k, t0 + i)
        grad_y = splat(np.float32(0.0))
        if row >= 0:
            grad_y = load_first(p[GRAD_Y], row * p[CHANNELS] + v * LANES, n_valid)
        u = load(inputs, i * LANES)
        dt = load(gates, i * LANES)
        dt_u = dt * u
        grad_dt_u = splat(np.float32(0.0))
        grad_dt = splat(np.float32(0.0))
        bc = (sequence * p[LENGTH] + t0 + i) * p[BC_STRIDE]
        for n in range(n_states):
            at = (i * n_states + n) * LANES
            h_before = load(states, at)
            h = load(states, at + n_states * LANES)
            b_n = splat(load_scalar(p[B_IN], bc + n))
            c_n = splat(load_scalar(p[C_IN], bc + n))
            g = fma(grad_y, c_n, load(carry, n * LANES))
            store(products, n * LANES, g * dt_u)
            store(products_c, n * LANES, h * grad_y)
            grad_dt_u = fma(g, b_n, grad_dt_u)
            g_before = g * load(decays, at)
            store(carry, n * LANES, g_before)
            q = g_before * h_before
            # `decay` carries a factor log2(e), which is divided out once at the end.
            grad_dt = fma(q, load(decay, n * LANES), grad_dt)
            store(grad_a, n * LANES, fma(q, dt, load(grad_a, n * LANES)))
        for n in range(0, n_padded, LANES):
            at = i * 2 * n_padded + n
            store(sums, at, load(sums, at) + row_sums(products + tile * n))
            at += n_padded
            store(sums, at, load(sums, at) + row_sums(products_c + tile * n))
        grad_raw = fma(grad_dt, splat(_LN2), grad_dt_u * u) * load(slopes, i * LANES)
        grad_u = fma(grad_dt_u, dt, skip * grad_y)
        grad_bias = grad_bias + grad_raw
        grad_skip = fma(grad_y, u, grad_skip)
        at = (sequence * p[LENGTH] + t0 + i) * p[CHANNELS] + v * LANES
        store_first(p[GRAD_X], at, n_valid, grad_u)
        store_first(p[GRAD_DELTA], at, n_valid, grad_raw)
    store(p[GRAD_BIAS], block, grad_bias)
    store(p[GRAD_SKIP], block, grad_skip)


@_inline
def _backward_item(p, item, scratch):
    """One sequence of one image, channel blocks `group, group + GROUPS, ...`."""
    group = item % p[GROUPS]
    sequence = item // p[GROUPS]
    b, k = sequence // p[SEQUENCES], sequence % p[SEQUENCES]
    n_states, length, blocks = p[STATES], p[LENGTH], p[BLOCKS]
    tile = 4 * LANES
    n_padded = (n_states + LANES - 1) // LANES * LANES
    # Per channel block: A `[N, 16]`, dt weights `[R, 16]`, the gradient of the state `[N, 16]`.
    per_block = tile * (2 * n_states + p[RANK])
    sums = scratch + per_block * blocks
    tiles = sums + 4 * CHECKPOINT * 2 * n_padded
    products = tiles + tile * (n_states * (2 * CHECKPOINT + 1) + 3 * CHECKPOINT)
    for n in range(2 * n_padded):
        store(products, n * LANES, splat(np.float32(0.0)))
    for v in range(group, blocks, p[GROUPS]):
        own = scratch + per_block * v
        _pack_parameters(p, k, v, own, own + tile * n_states)
        for n in range(n_states):
            store(own + tile * (n_states + p[RANK]), n * LANES, splat(np.float32(0.0)))
            at = ((sequence * blocks + v) * n_states + n) * LANES
            store(p[GRAD_A], at, splat(np.float32(0.0)))
        store(p[GRAD_BIAS], (sequence * blocks + v) * LANES, splat(np.float32(0.0)))
        store(p[GRAD_SKIP], (sequence * blocks + v) * LANES, splat(np.float32(0.0)))

    n_chunks = (length + CHECKPOINT - 1) // CHECKPOINT
    for j in range(n_chunks):
        t0 = (n_chunks - 1 - j) * CHECKPOINT
        steps = min(CHECKPOINT, length - t0)
        for n in range(0, CHECKPOINT * 2 * n_padded, LANES):
            store(sums, n, splat(np.float32(0.0)))
        for v in range(group, blocks, p[GROUPS]):
            own = scratch + per_block * v
            weight = own + tile * n_states
            carry = weight + tile * p[RANK]
            _backward_chunk(p, b, k, v, t0, steps, own, weight, carry, tiles, sums)
        for i in range(steps):
            row = (group * p[BATCH] * p[SEQUENCES] + sequence) * length + t0 + i
            at = row * p[GRAD_BC_STRIDE]
            for n in range(n_states):
                store_scalar(p[GRAD_BC], at + n, load_scalar(sums, i * 2 * n_padded + n))
                c_sum = load_scalar(sums, i * 2 * n_padded + n_padded + n)
                store_scalar(p[GRAD_BC], at + n_states + n, c_sum)


@_inline
def _next_item(p):
    return fetch_and_add(p.ctypes.data + 8 * NEXT_ITEM, 1)


@_inline
def _scratch(p):
    worker = fetch_and_add(p.ctypes.data + 8 * NEXT_WORKER, 1)
    return p[SCRATCH] + worker * p[SCRATCH_SIZE]


@_inline
def _put_back_item(p, item):
    """Rows of the map as the sum of their visits: `Y[b, token] = sum of GRAD_X[b, visit]`."""
    channels = p[CHANNELS]
    n_parts = (p[ROWS] + PUT_BACK_ROWS - 1) // PUT_BACK_ROWS
    b, part = item // n_parts, item % n_parts
    visits = p[SEQUENCES] * p[LENGTH]
    for token in range(part * PUT_BACK_ROWS, min((part + 1) * PUT_BACK_ROWS, p[ROWS])):
        start, stop = load_int(p[VISIT_STARTS], token), load_int(p[VISIT_STARTS], token + 1)
        for c in range(0, channels, LANES):
            n_valid = min(channels - c, LANES)
            total = splat(np.float32(0.0))
            for i in range(start, stop):
                visit = b * visits + load_int(p[VISITS], i)
                total = total + load_first(p[GRAD_X], visit * channels + c, n_valid)
            store_first(p[Y], (b * p[ROWS] + token) * channels + c, n_valid, total)


# Written out three times: numba does not cache a function made by another function.
def _forward(table):
    p = numba.carray(table, N_COLUMNS)
    scratch = _scratch(p)
    item = _next_item(p)
    while item < p[N_ITEMS]:
        _forward_item(p, item, scratch)
        item = _next_item(p)


def _backward(table):
    p = numba.carray(table, N_COLUMNS)
    scratch = _scratch(p)
    item = _next_item(p)
    while item < p[N_ITEMS]:
        _backward_item(p, item, scratch)
        item = _next_item(p)


def _put_back(table):
    p = numba.carray(table, N_COLUMNS)
    item = _next_item(p)
    while item < p[N_ITEMS]:
        _put_back_item(p, item)
        item = _next_item(p)


PROGRAMS = {"forward": _forward, "backward": _backward, "put_back": _put_back}
SIGNATURE = types.void(types.CPointer(types.int64))
OPTIONS = {"nopython": True, "error_model": "numpy", "boundscheck": False}
