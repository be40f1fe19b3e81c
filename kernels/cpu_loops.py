"""The loops of the CPU kernel, compiled by numba at first use.

A program takes the address of a table of int64 (the names below are its columns) and works on items
until none is left; any number of threads may run it on the same table. One item is one sequence of one
image for some blocks of sixteen channels (where outputs are added up: all sequences of one image), so
items never write to the same place and the answer does not depend on which thread took which.

Time is cut into chunks of `CHUNK` steps. Within a chunk the states are visited in fours: four states of
sixteen channels stay in registers for the whole chunk.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from kernels.simd import (
    LANES,
    at_least,
    at_most,
    clamp_exponent,
    column,
    fetch_and_add,
    finish_sums,
    fma,
    load,
    load_first,
    load_int,
    load_scalar,
    scale_by_power,
    splat,
    store,
    store_first,
    store_scalar,
    sum_quad,
    transpose,
    where_greater,
    where_ordered,
)

# Columns of the table. Addresses are in bytes, strides and sizes in elements.
N_COLUMNS = 44
(
    NEXT_ITEM,
    NEXT_WORKER,
    N_ITEMS,
    SCRATCH,
    SCRATCH_SIZE,
    BATCH,
    SEQUENCES,
    LENGTH,
    TOKENS,
    CHANNELS,
    STATES,
    RANK,
    BLOCKS,
    GROUPS,
    SLICES,
    WIDTH,
    SOFTPLUS,
    IS_MAP,
    IS_SUM,
    INDEX,
    SETS,
    X,
    DELTA,
    B_IN,
    C_IN,
    PROJECTED,
    A_IN,
    X_WEIGHT,
    DT_WEIGHT,
    DT_BIAS,
    SKIP,
    Y,
    CHECKPOINTS,
    GRAD_Y,
    GRAD_X,
    GRAD_DELTA,
    GRAD_B,
    GRAD_C,
    GRAD_PROJECTED,
    GRAD_A,
    GRAD_X_WEIGHT,
    GRAD_DT_WEIGHT,
    GRAD_BIAS,
    GRAD_SKIP,
) = range(N_COLUMNS)

# Steps between stored states; the backward pass recomputes the states in between.
CHUNK = 32
# Steps that the projection takes at a time: that many sums stay in registers.
ROWS = 8
# That many times ROWS steps are one item of the projection.
PARTS = 8
# Bytes of one vector, and of one vector per step of a chunk.
_VECTOR = 4 * LANES
_TILE = CHUNK * _VECTOR

_LOG2E = np.float32(1.4426950408889634)
_LOG2E_TAIL = np.float32(1.4426950408889634 - float(np.float32(1.4426950408889634)))
_LN2 = np.float32(0.6931471805599453)
# 1.5 * 2^23 rounds a small float to a whole number in its low bits.
_ROUND = np.float32(12582912.0)
# Minimax polynomials (relative error 9e-8 and 4e-9) with constant term 1: exp2 on [-1/2, 1/2] and
# artanh(s)/s in s^2 on [0, 1/9].
_EXP2 = tuple(
    np.float32(c)
    for c in (1.0, 0.693146977598494, 0.24022242084614315, 0.05550734, 0.009671512685, 0.0013264727)
)
_ARTANH = tuple(
    np.float32(c) for c in (1.0, 0.33333208142687887, 0.2001076362802921, 0.14000902, 0.14005994)
)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LOWEST, _CUT, _NAN = np.float32(-127.0), np.float32(20.0), np.float32(np.nan)

_inline = numba.njit(error_model="numpy", forceinline=True)
# Inner loops stay functions of their own: inlined into the long function around them, LLVM reloads
# every constant in every step.
_call = numba.njit(error_model="numpy", forceinline=False)


@_inline
def _exp2(x):
    """2**x: exactly inf from 128, 0 (or a subnormal) below -126; of NaN it is inf or 0."""
    x = clamp_exponent(x)
    shifted = x + splat(_ROUND)
    r = x - (shifted - splat(_ROUND))
    return scale_by_power(_exp2_fraction(r), shifted)


@_inline
def _exp2_fraction(r):
    p = fma(r, splat(_EXP2[5]), splat(_EXP2[4]))
    p = fma(p, r, splat(_EXP2[3]))
    p = fma(p, r, splat(_EXP2[2]))
    p = fma(p, r, splat(_EXP2[1]))
    return fma(p, r, splat(_ONE))


@_inline
def _exp(x):
    """e**x with the error of x * log2(e) carried along; NaN stays NaN."""
    scaled = x * splat(_LOG2E)
    clamped = clamp_exponent(scaled)
    shifted = clamped + splat(_ROUND)
    whole = shifted - splat(_ROUND)
    tail = fma(x, splat(_LOG2E), splat(_ZERO) - scaled)
    tail = fma(x, splat(_LOG2E_TAIL), tail)
    # The tail of a clamped (or infinite) argument means nothing.
    bound = splat(_LOWEST)
    tail = where_greater(bound * bound, scaled * scaled, tail, splat(_ZERO))
    value = scale_by_power(_exp2_fraction((clamped - whole) + tail), shifted)
    return where_ordered(x, value, x)


@_inline
def _softplus(x):
    """log(1 + e**x) and its derivative; x itself and 1 above 20, as torch does."""
    zero, one, cut = splat(_ZERO), splat(_ONE), splat(_CUT)
    e = _exp(at_most(x, zero - x))
    # log1p(e) = 2 artanh(e / (2 + e)), accurate however small e is; one division serves both results.
    e1, e2 = one + e, splat(_TWO) + e
    inverse = one / (e1 * e2)
    s = e * e1 * inverse
    z = s * s
    p = fma(z, splat(_ARTANH[4]), splat(_ARTANH[3]))
    p = fma(p, z, splat(_ARTANH[2]))
    p = fma(p, z, splat(_ARTANH[1]))
    p = fma(p, z, one)
    value = fma(s + s, p, at_least(x, zero))
    slope = where_greater(zero, x, e, one) * e2 * inverse
    return where_greater(x, cut, x, value), where_greater(x, cut, one, slope)


@_call
def _softplus_tile(steps, gates, slopes):
    """softplus of `[steps, 16]` in place; its derivative to `slopes` unless that is 0."""
    for t in range(steps):
        dt, slope = _softplus(load(gates, t * LANES))
        store(gates, t * LANES, dt)
        if slopes != 0:
            store(slopes, t * LANES, slope)


@_call
def _transpose(source, source_stride, n_rows, n_columns, target, target_stride, n_stored):
    transpose(source, source_stride, n_rows, n_columns, target, target_stride, n_stored)


@_inline
def _clear(target, n_vectors):
    for i in range(n_vectors):
        store(target, i * LANES, splat(_ZERO))


@_inline
def _quads(n):
    """Fours that hold n rows."""
    return (n + 3) // 4


@_inline
def _token_row(p, b, k, t):
    """Row of the map that step t reads, or -1 at a pad."""
    token = load_int(column(p, INDEX), k * column(p, LENGTH) + t)
    return b * column(p, TOKENS) + token if token >= 0 else np.int64(-1)


@_call
def _pack_parameters(p, k, v, decay, weight):
    """A of 16 channels times log2(e) as `[N padded to 4, 16]` and the dt weights as `[R, 16]`."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    first = load_int(column(p, SETS), k) * column(p, CHANNELS) + v * LANES
    n_states = column(p, STATES)
    _clear(decay, 4 * _quads(n_states))
    for n in range(0, n_states, LANES):
        width = min(n_states - n, LANES)
        source = column(p, A_IN) + 4 * (first * n_states + n)
        _transpose(source, n_states, n_valid, width, decay + _VECTOR * n, LANES, LANES)
    for n in range(n_states):
        a = load(decay, n * LANES)
        if column(p, IS_MAP):
            a = splat(_ZERO) - _exp(a)
        # A NaN of this sign makes exp2 infinite, and infinity times the first state, 0, is NaN again.
        a = where_ordered(a, a * splat(_LOG2E), splat(_NAN))
        store(decay, n * LANES, a)
    for r in range(0, column(p, RANK), LANES):
        width = min(column(p, RANK) - r, LANES)
        source = column(p, DT_WEIGHT) + 4 * (first * column(p, RANK) + r)
        _transpose(source, column(p, RANK), n_valid, width, weight + _VECTOR * r, LANES, LANES)


@_call
def _read_bc(p, b, k, t0, steps, bc):
    """B and C of a chunk as `[steps, 2 * (N padded to 4)]`, 0 in the padding."""
    n_states = column(p, STATES)
    padded = 4 * _quads(n_states)
    sequence = b * column(p, SEQUENCES) + k
    if column(p, IS_MAP):
        for n in range(0, padded, LANES):
            n_valid, n_stored = min(n_states - n, LANES), min(padded - n, LANES)
            for t in range(steps):
                at = (
                    (sequence * column(p, LENGTH) + t0 + t) * column(p, WIDTH) + column(p, RANK) + n
                )
                to = t * 2 * padded + n
                store_first(bc, to, n_stored, load_first(column(p, PROJECTED), at, n_valid))
                c = load_first(column(p, PROJECTED), at + n_states, n_valid)
                store_first(bc, to + padded, n_stored, c)
    else:
        for t in range(0, steps, LANES):
            width = min(steps - t, LANES)
            for n in range(0, padded, LANES):
                n_valid, n_stored = min(n_states - n, LANES), min(padded - n, LANES)
                at = 4 * ((sequence * n_states + n) * column(p, LENGTH) + t0 + t)
                to = bc + 4 * (t * 2 * padded + n)
                length = column(p, LENGTH)
                _transpose(column(p, B_IN) + at, length, n_valid, width, to, 2 * padded, n_stored)
                to += 4 * padded
                _transpose(column(p, C_IN) + at, length, n_valid, width, to, 2 * padded, n_stored)


@_call
def _read_rows(p, source, b, k, v, t0, steps, tile):
    """A chunk of 16 channels from `[B, K*D, L]` as `[steps, 16]`."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    row = (b * column(p, SEQUENCES) + k) * column(p, CHANNELS) + v * LANES
    for t in range(0, steps, LANES):
        at = source + 4 * (row * column(p, LENGTH) + t0 + t)
        width = min(steps - t, LANES)
        _transpose(at, column(p, LENGTH), n_valid, width, tile + _VECTOR * t, LANES, LANES)


@_call
def _write_rows(p, target, b, k, v, t0, steps, tile):
    """The opposite of `_read_rows`."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    row = (b * column(p, SEQUENCES) + k) * column(p, CHANNELS) + v * LANES
    for t in range(0, steps, LANES):
        at = target + 4 * (row * column(p, LENGTH) + t0 + t)
        width = min(steps - t, LANES)
        _transpose(tile + _VECTOR * t, LANES, width, n_valid, at, column(p, LENGTH), width)


@_call
def _read_tokens(p, source, b, k, v, t0, steps, tile):
    """A chunk of 16 channels from the map `[B, tokens, C]` as `[steps, 16]`, 0 at pads."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    for t in range(steps):
        row = _token_row(p, b, k, t0 + t)
        value = splat(_ZERO)
        if row >= 0:
            value = load_first(source, row * column(p, CHANNELS) + v * LANES, n_valid)
        store(tile, t * LANES, value)


@_call
def _write_tokens(p, target, b, k, v, t0, steps, tile):
    """Put a chunk `[steps, 16]` on the map, or add it there if tokens are read more than once."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    for t in range(steps):
        row = _token_row(p, b, k, t0 + t)
        if row >= 0:
            at = row * column(p, CHANNELS) + v * LANES
            value = load(tile, t * LANES)
            if column(p, IS_SUM):
                value = value + load_first(target, at, n_valid)
            store_first(target, at, n_valid, value)


@_inline
def _read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, slopes, dt_u):
    """u, dt, the slope of softplus (unless `slopes` is 0) and dt * u of a chunk, each `[steps, 16]`."""
    n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
    first = load_int(column(p, SETS), k) * column(p, CHANNELS) + v * LANES
    bias = load_first(column(p, DT_BIAS), first, n_valid)
    if column(p, IS_MAP):
        _read_tokens(p, column(p, X), b, k, v, t0, steps, inputs)
        rank, width = column(p, RANK), column(p, WIDTH)
        low = (
            column(p, PROJECTED)
            + 4 * ((b * column(p, SEQUENCES) + k) * column(p, LENGTH) + t0) * width
        )
        for t in range(steps):
            raw = bias
            for r in range(rank):
                raw = fma(splat(load_scalar(low, t * width + r)), load(weight, r * LANES), raw)
            store(gates, t * LANES, raw)
    else:
        _read_rows(p, column(p, X), b, k, v, t0, steps, inputs)
        _read_rows(p, column(p, DELTA), b, k, v, t0, steps, gates)
        for t in range(steps):
            store(gates, t * LANES, load(gates, t * LANES) + bias)
    if column(p, SOFTPLUS):
        _softplus_tile(steps, gates, slopes)
    elif slopes != 0:
        for t in range(steps):
            store(slopes, t * LANES, splat(_ONE))
    for t in range(steps):
        store(dt_u, t * LANES, load(gates, t * LANES) * load(inputs, t * LANES))


@_call
def _scan_quad(steps, gates, dt_u, bc, padded, decay, state, outputs):
    """Four states through a chunk; adds C h to `outputs`. `bc` points at the first of the four."""
    a0, a1, a2, a3 = load(decay, 0), load(decay, 16), load(decay, 32), load(decay, 48)
    h0, h1, h2, h3 = load(state, 0), load(state, 16), load(state, 32), load(state, 48)
    for t in range(steps):
        dt, x, y = load(gates, t * LANES), load(dt_u, t * LANES), load(outputs, t * LANES)
        b = t * 2 * padded
        c = b + padded
        h0 = fma(_exp2(dt * a0), h0, x * splat(load_scalar(bc, b)))
        h1 = fma(_exp2(dt * a1), h1, x * splat(load_scalar(bc, b + 1)))
        h2 = fma(_exp2(dt * a2), h2, x * splat(load_scalar(bc, b + 2)))
        h3 = fma(_exp2(dt * a3), h3, x * splat(load_scalar(bc, b + 3)))
        y = fma(h0, splat(load_scalar(bc, c)), y)
        y = fma(h1, splat(load_scalar(bc, c + 1)), y)
        y = fma(h2, splat(load_scalar(bc, c + 2)), y)
        y = fma(h3, splat(load_scalar(bc, c + 3)), y)
        store(outputs, t * LANES, y)
    store(state, 0, h0)
    store(state, 16, h1)
    store(state, 32, h2)
    store(state, 48, h3)


@_inline
def _checkpoint(p, sequence, t0, v):
    """Address of the states of one block of channels before step `t0` > 0."""
    n_stored = (column(p, LENGTH) - 1) // CHUNK
    slot = (sequence * n_stored + t0 // CHUNK - 1) * column(p, BLOCKS) + v
    return column(p, CHECKPOINTS) + slot * 4 * _quads(column(p, STATES)) * _VECTOR


@_inline
def _forward_sequence(p, b, k, group, scratch):
    length, blocks, groups = column(p, LENGTH), column(p, BLOCKS), column(p, GROUPS)
    quads = _quads(column(p, STATES))
    per_block = _VECTOR * (8 * quads + column(p, RANK))
    tiles = scratch + per_block * blocks
    inputs, gates, dt_u = tiles, tiles + _TILE, tiles + 2 * _TILE
    outputs, bc = tiles + 3 * _TILE, tiles + 4 * _TILE
    for v in range(group, blocks, groups):
        decay = scratch + per_block * v
        state = decay + 4 * quads * _VECTOR
        _pack_parameters(p, k, v, decay, state + 4 * quads * _VECTOR)
        _clear(state, 4 * quads)
    for t0 in range(0, length, CHUNK):
        steps = min(CHUNK, length - t0)
        _read_bc(p, b, k, t0, steps, bc)
        for v in range(group, blocks, groups):
            decay = scratch + per_block * v
            state = decay + 4 * quads * _VECTOR
            if column(p, CHECKPOINTS) != 0 and t0 > 0:
                stored = _checkpoint(p, b * column(p, SEQUENCES) + k, t0, v)
                for n in range(4 * quads):
                    store(stored, n * LANES, load(state, n * LANES))
            weight = state + 4 * quads * _VECTOR
            _read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, 0, dt_u)
            n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
            first = load_int(column(p, SETS), k) * column(p, CHANNELS) + v * LANES
            skip = load_first(column(p, SKIP), first, n_valid)
            for t in range(steps):
                store(outputs, t * LANES, skip * load(inputs, t * LANES))
            for q in range(quads):
                at = 4 * q * _VECTOR
                _scan_quad(
                    steps, gates, dt_u, bc + 16 * q, 4 * quads, decay + at, state + at, outputs
                )
            if column(p, IS_MAP):
                _write_tokens(p, column(p, Y), b, k, v, t0, steps, outputs)
            else:
                _write_rows(p, column(p, Y), b, k, v, t0, steps, outputs)


@_call
def _backward_quad(
    steps, gates, dt_u, grad_y, bc, padded, decay, start, states, decays, carry, grad_a, sums,
    n_sums, sums_c, grad_dt_u, grad_dt,
):  # fmt: skip
    """Four states through a chunk: forward again from `start`, then last step to first.

    `carry` is the gradient of the state after the chunk on entry, before it on return. Adds to grad_a
    `[4, 16]`, grad_dt_u, grad_dt `[steps, 16]` and, as quarter sums, to the gradients of B and C.
    """
    a0, a1, a2, a3 = load(decay, 0), load(decay, 16), load(decay, 32), load(decay, 48)
    h0, h1, h2, h3 = load(start, 0), load(start, 16), load(start, 32), load(start, 48)
    for t in range(steps):
        dt, x = load(gates, t * LANES), load(dt_u, t * LANES)
        b = t * 2 * padded
        at = t * 4 * LANES
        store(states, at, h0)
        store(states, at + 16, h1)
        store(states, at + 32, h2)
        store(states, at + 48, h3)
        e0, e1, e2, e3 = _exp2(dt * a0), _exp2(dt * a1), _exp2(dt * a2), _exp2(dt * a3)
        store(decays, at, e0)
        store(decays, at + 16, e1)
        store(decays, at + 32, e2)
        store(decays, at + 48, e3)
        h0 = fma(e0, h0, x * splat(load_scalar(bc, b)))
        h1 = fma(e1, h1, x * splat(load_scalar(bc, b + 1)))
        h2 = fma(e2, h2, x * splat(load_scalar(bc, b + 2)))
        h3 = fma(e3, h3, x * splat(load_scalar(bc, b + 3)))
    g0, g1, g2, g3 = load(carry, 0), load(carry, 16), load(carry, 32), load(carry, 48)
    d0, d1, d2, d3 = load(grad_a, 0), load(grad_a, 16), load(grad_a, 32), load(grad_a, 48)
    for i in range(steps):
        t = steps - 1 - i
        b = t * 2 * padded
        c = b + padded
        at = t * 4 * LANES
        dt, x, gy = load(gates, t * LANES), load(dt_u, t * LANES), load(grad_y, t * LANES)
        g0 = fma(gy, splat(load_scalar(bc, c)), g0)
        g1 = fma(gy, splat(load_scalar(bc, c + 1)), g1)
        g2 = fma(gy, splat(load_scalar(bc, c + 2)), g2)
        g3 = fma(gy, splat(load_scalar(bc, c + 3)), g3)
        row = t * n_sums * LANES
        of_b = sum_quad(g0 * x, g1 * x, g2 * x, g3 * x)
        store(sums, row, load(sums, row) + of_b)
        of_c = sum_quad(h0 * gy, h1 * gy, h2 * gy, h3 * gy)
        store(sums_c, row, load(sums_c, row) + of_c)
        of_x = load(grad_dt_u, t * LANES)
        of_x = fma(g0, splat(load_scalar(bc, b)), of_x)
        of_x = fma(g1, splat(load_scalar(bc, b + 1)), of_x)
        of_x = fma(g2, splat(load_scalar(bc, b + 2)), of_x)
        of_x = fma(g3, splat(load_scalar(bc, b + 3)), of_x)
        store(grad_dt_u, t * LANES, of_x)
        h0, h1, h2, h3 = (
            load(states, at),
            load(states, at + 16),
            load(states, at + 32),
            load(states, at + 48),
        )
        g0 = g0 * load(decays, at)
        g1 = g1 * load(decays, at + 16)
        g2 = g2 * load(decays, at + 32)
        g3 = g3 * load(decays, at + 48)
        of_dt = load(grad_dt, t * LANES)
        q0, q1, q2, q3 = g0 * h0, g1 * h1, g2 * h2, g3 * h3
        of_dt = fma(q0, a0, of_dt)
        of_dt = fma(q1, a1, of_dt)
        of_dt = fma(q2, a2, of_dt)
        of_dt = fma(q3, a3, of_dt)
        store(grad_dt, t * LANES, of_dt)
        d0, d1, d2, d3 = fma(q0, dt, d0), fma(q1, dt, d1), fma(q2, dt, d2), fma(q3, dt, d3)
    store(carry, 0, g0)
    store(carry, 16, g1)
    store(carry, 32, g2)
    store(carry, 48, g3)
    store(grad_a, 0, d0)
    store(grad_a, 16, d1)
    store(grad_a, 32, d2)
    store(grad_a, 48, d3)


@_call
def _rank_gradients(p, sequence, v, t0, steps, grad_raw, weight, sums, n_sums):
    """Gradients of the low-rank dt (as quarter sums) and of its weights from that of the raw dt."""
    rank, width = column(p, RANK), column(p, WIDTH)
    low = column(p, PROJECTED) + 4 * (sequence * column(p, LENGTH) + t0) * width
    own = column(p, GRAD_DT_WEIGHT) + (sequence * column(p, BLOCKS) + v) * rank * _VECTOR
    zero = splat(_ZERO)
    for r in range(0, rank, 4):
        w0 = load(weight, r * LANES)
        w1 = load(weight, (r + 1) * LANES) if r + 1 < rank else zero
        w2 = load(weight, (r + 2) * LANES) if r + 2 < rank else zero
        w3 = load(weight, (r + 3) * LANES) if r + 3 < rank else zero
        for t in range(steps):
            g = load(grad_raw, t * LANES)
            at = (t * n_sums + r // 4) * LANES
            store(sums, at, load(sums, at) + sum_quad(g * w0, g * w1, g * w2, g * w3))
    for r in range(rank):
        total = load(own, r * LANES)
        for t in range(steps):
            dt_r = splat(load_scalar(low, t * width + r))
            total = fma(load(grad_raw, t * LANES), dt_r, total)
        store(own, r * LANES, total)


@_inline
def _sum_layout(p):
    """Vectors of quarter sums of one step: for dt, where B's begin, where C's begin, all."""
    of_dt = 4 * ((column(p, RANK) + LANES - 1) // LANES)
    of_state = 4 * ((column(p, STATES) + LANES - 1) // LANES)
    return of_dt, of_dt + of_state, of_dt + 2 * of_state


@_call
def _store_sums(p, b, k, group, t0, steps, sums, tile):
    """Add up the quarter sums of a chunk and write the gradients of dt, B and C."""
    n_states, rank, length = column(p, STATES), column(p, RANK), column(p, LENGTH)
    sequence = (group * column(p, BATCH) + b) * column(p, SEQUENCES) + k
    first_b, first_c, n_sums = _sum_layout(p)
    if column(p, IS_MAP):
        for t in range(steps):
            at = (sequence * length + t0 + t) * column(p, WIDTH)
            row = t * n_sums
            for r in range(0, rank, LANES):
                value = finish_sums(sums, (row + r // 4) * LANES)
                store_first(column(p, GRAD_PROJECTED), at + r, min(rank - r, LANES), value)
            for n in range(0, n_states, LANES):
                n_valid = min(n_states - n, LANES)
                value = finish_sums(sums, (row + first_b + n // 4) * LANES)
                store_first(column(p, GRAD_PROJECTED), at + rank + n, n_valid, value)
                value = finish_sums(sums, (row + first_c + n // 4) * LANES)
                store_first(column(p, GRAD_PROJECTED), at + rank + n_states + n, n_valid, value)
    else:
        for n in range(0, n_states, LANES):
            n_valid = min(n_states - n, LANES)
            for t in range(0, steps, LANES):
                width = min(steps - t, LANES)
                at = 4 * ((sequence * n_states + n) * length + t0 + t)
                for i in range(width):
                    quad = (t + i) * n_sums + first_b + n // 4
                    store(tile, i * LANES, finish_sums(sums, quad * LANES))
                _transpose(tile, LANES, width, n_valid, column(p, GRAD_B) + at, length, width)
                for i in range(width):
                    quad = (t + i) * n_sums + first_c + n // 4
                    store(tile, i * LANES, finish_sums(sums, quad * LANES))
                _transpose(tile, LANES, width, n_valid, column(p, GRAD_C) + at, length, width)


@_inline
def _backward_sequence(p, b, k, group, scratch):
    length, blocks, groups = column(p, LENGTH), column(p, BLOCKS), column(p, GROUPS)
    quads, rank = _quads(column(p, STATES)), column(p, RANK)
    padded = 4 * quads
    sequence = b * column(p, SEQUENCES) + k
    first_b, first_c, n_sums = _sum_layout(p)
    per_block = _VECTOR * (2 * padded + rank)
    tiles = scratch + per_block * blocks
    inputs, gates, slopes = tiles, tiles + _TILE, tiles + 2 * _TILE
    dt_u, grad_y, grad_dt_u = tiles + 3 * _TILE, tiles + 4 * _TILE, tiles + 5 * _TILE
    grad_dt, states, decays = tiles + 6 * _TILE, tiles + 7 * _TILE, tiles + 11 * _TILE
    zeros = tiles + 15 * _TILE
    bc = zeros + padded * _VECTOR
    sums = bc + CHUNK * 2 * padded * 4
    _clear(zeros, padded)
    for v in range(group, blocks, groups):
        decay = scratch + per_block * v
        carry = decay + padded * _VECTOR
        _pack_parameters(p, k, v, decay, carry + padded * _VECTOR)
        _clear(carry, padded)
        block = sequence * blocks + v
        _clear(column(p, GRAD_A) + block * padded * _VECTOR, padded)
        _clear(column(p, GRAD_DT_WEIGHT) + block * rank * _VECTOR, rank)
        _clear(column(p, GRAD_BIAS) + block * _VECTOR, 1)
        _clear(column(p, GRAD_SKIP) + block * _VECTOR, 1)

    n_chunks = (length + CHUNK - 1) // CHUNK
    for j in range(n_chunks):
        t0 = (n_chunks - 1 - j) * CHUNK
        steps = min(CHUNK, length - t0)
        _clear(sums, steps * n_sums)
        _read_bc(p, b, k, t0, steps, bc)
        for v in range(group, blocks, groups):
            decay = scratch + per_block * v
            carry = decay + padded * _VECTOR
            weight = carry + padded * _VECTOR
            block = sequence * blocks + v
            start = _checkpoint(p, sequence, t0, v) if t0 > 0 else zeros
            _read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, slopes, dt_u)
            if column(p, IS_MAP):
                _read_tokens(p, column(p, GRAD_Y), b, k, v, t0, steps, grad_y)
            else:
                _read_rows(p, column(p, GRAD_Y), b, k, v, t0, steps, grad_y)
            _clear(grad_dt_u, steps)
            _clear(grad_dt, steps)
            for q in range(quads):
                at = 4 * q * _VECTOR
                _backward_quad(
                    steps, gates, dt_u, grad_y, bc + 16 * q, padded, decay + at, start + at, states,
                    decays, carry + at, column(p, GRAD_A) + block * padded * _VECTOR + at,
                    sums + (first_b + q) * _VECTOR, n_sums, sums + (first_c + q) * _VECTOR,
                    grad_dt_u, grad_dt,
                )  # fmt: skip
            n_valid = min(column(p, CHANNELS) - v * LANES, LANES)
            first = load_int(column(p, SETS), k) * column(p, CHANNELS) + v * LANES
            skip = load_first(column(p, SKIP), first, n_valid)
            grad_bias = load(column(p, GRAD_BIAS), block * LANES)
            grad_skip = load(column(p, GRAD_SKIP), block * LANES)
            for t in range(steps):
                u, of_x = load(inputs, t * LANES), load(grad_dt_u, t * LANES)
                gy = load(grad_y, t * LANES)
                # `decay` carries a factor log2(e), divided out here.
                raw = fma(load(grad_dt, t * LANES), splat(_LN2), of_x * u)
                raw = raw * load(slopes, t * LANES)
                store(grad_dt, t * LANES, raw)
                store(grad_dt_u, t * LANES, fma(of_x, load(gates, t * LANES), skip * gy))
                grad_bias = grad_bias + raw
                grad_skip = fma(gy, u, grad_skip)
            store(column(p, GRAD_BIAS), block * LANES, grad_bias)
            store(column(p, GRAD_SKIP), block * LANES, grad_skip)
            if column(p, IS_MAP):
                _rank_gradients(p, sequence, v, t0, steps, grad_dt, weight, sums, n_sums)
                _write_tokens(p, column(p, GRAD_X), b, k, v, t0, steps, grad_dt_u)
            else:
                _write_rows(p, column(p, GRAD_X), b, k, v, t0, steps, grad_dt_u)
                _write_rows(p, column(p, GRAD_DELTA), b, k, v, t0, steps, grad_dt)
        _store_sums(p, b, k, group, t0, steps, sums, states)


@_call
def _project_part(p, b, k, part):
    """`ROWS` steps of x times the weights of the sequence's set: dt, B and C of these steps."""
    channels, width, length = column(p, CHANNELS), column(p, WIDTH), column(p, LENGTH)
    padded = (width + LANES - 1) // LANES * LANES
    weight = column(p, X_WEIGHT) + 4 * load_int(column(p, SETS), k) * channels * padded
    t0 = part * ROWS
    steps = min(ROWS, length - t0)
    last = t0 + steps - 1
    zero = splat(_ZERO)
    # A pad's row is 0: it is read as row 0 and multiplied by 0 when stored.
    r0, r1 = _token_row(p, b, k, t0), _token_row(p, b, k, min(t0 + 1, last))
    r2, r3 = _token_row(p, b, k, min(t0 + 2, last)), _token_row(p, b, k, min(t0 + 3, last))
    r4, r5 = _token_row(p, b, k, min(t0 + 4, last)), _token_row(p, b, k, min(t0 + 5, last))
    r6, r7 = _token_row(p, b, k, min(t0 + 6, last)), _token_row(p, b, k, min(t0 + 7, last))
    x0, x1, x2, x3 = (
        _row_address(p, r0),
        _row_address(p, r1),
        _row_address(p, r2),
        _row_address(p, r3),
    )
    x4, x5, x6, x7 = (
        _row_address(p, r4),
        _row_address(p, r5),
        _row_address(p, r6),
        _row_address(p, r7),
    )
    for j in range(0, width, LANES):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for c in range(channels):
            w = load(weight, c * padded + j)
            s0 = fma(w, splat(load_scalar(x0, c)), s0)
            s1 = fma(w, splat(load_scalar(x1, c)), s1)
            s2 = fma(w, splat(load_scalar(x2, c)), s2)
            s3 = fma(w, splat(load_scalar(x3, c)), s3)
            s4 = fma(w, splat(load_scalar(x4, c)), s4)
            s5 = fma(w, splat(load_scalar(x5, c)), s5)
            s6 = fma(w, splat(load_scalar(x6, c)), s6)
            s7 = fma(w, splat(load_scalar(x7, c)), s7)
        n_valid = min(width - j, LANES)
        at = ((b * column(p, SEQUENCES) + k) * length + t0) * width + j
        _store_projected(p, at, n_valid, 0, steps, r0, s0)
        _store_projected(p, at, n_valid, 1, steps, r1, s1)
        _store_projected(p, at, n_valid, 2, steps, r2, s2)
        _store_projected(p, at, n_valid, 3, steps, r3, s3)
        _store_projected(p, at, n_valid, 4, steps, r4, s4)
        _store_projected(p, at, n_valid, 5, steps, r5, s5)
        _store_projected(p, at, n_valid, 6, steps, r6, s6)
        _store_projected(p, at, n_valid, 7, steps, r7, s7)


@_inline
def _row_address(p, row):
    return column(p, X) + 4 * max(row, 0) * column(p, CHANNELS)


@_inline
def _store_projected(p, at, n_valid, i, steps, row, value):
    if i < steps:
        if row < 0:
            value = splat(_ZERO)
        store_first(column(p, PROJECTED), at + i * column(p, WIDTH), n_valid, value)


@_inline
def _project_back_sequence(p, b, k, v):
    """Add the gradient of dt, B and C times the weights to that of x, for a block of channels."""
    channels, width, length = column(p, CHANNELS), column(p, WIDTH), column(p, LENGTH)
    n_valid = min(channels - v * LANES, LANES)
    weight = column(p, X_WEIGHT) + 4 * (load_int(column(p, SETS), k) * width * channels + v * LANES)
    zero = splat(_ZERO)
    for t0 in range(0, length, ROWS):
        g = column(p, GRAD_PROJECTED) + 4 * ((b * column(p, SEQUENCES) + k) * length + t0) * width
        steps = min(ROWS, length - t0)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        # Steps past the end read the last step again; their sums are not stored.
        o1, o2, o3 = width * min(1, steps - 1), width * min(2, steps - 1), width * min(3, steps - 1)
        o4, o5, o6 = width * min(4, steps - 1), width * min(5, steps - 1), width * min(6, steps - 1)
        o7 = width * min(7, steps - 1)
        for j in range(width):
            w = load_first(weight, j * channels, n_valid)
            s0 = fma(w, splat(load_scalar(g, j)), s0)
            s1 = fma(w, splat(load_scalar(g, o1 + j)), s1)
            s2 = fma(w, splat(load_scalar(g, o2 + j)), s2)
            s3 = fma(w, splat(load_scalar(g, o3 + j)), s3)
            s4 = fma(w, splat(load_scalar(g, o4 + j)), s4)
            s5 = fma(w, splat(load_scalar(g, o5 + j)), s5)
            s6 = fma(w, splat(load_scalar(g, o6 + j)), s6)
            s7 = fma(w, splat(load_scalar(g, o7 + j)), s7)
        _add_to_token(p, b, k, v, t0, 0, steps, n_valid, s0)
        _add_to_token(p, b, k, v, t0, 1, steps, n_valid, s1)
        _add_to_token(p, b, k, v, t0, 2, steps, n_valid, s2)
        _add_to_token(p, b, k, v, t0, 3, steps, n_valid, s3)
        _add_to_token(p, b, k, v, t0, 4, steps, n_valid, s4)
        _add_to_token(p, b, k, v, t0, 5, steps, n_valid, s5)
        _add_to_token(p, b, k, v, t0, 6, steps, n_valid, s6)
        _add_to_token(p, b, k, v, t0, 7, steps, n_valid, s7)


@_inline
def _add_to_token(p, b, k, v, t0, i, steps, n_valid, value):
    if i < steps:
        row = _token_row(p, b, k, t0 + i)
        if row >= 0:
            at = row * column(p, CHANNELS) + v * LANES
            store_first(
                column(p, GRAD_X), at, n_valid, value + load_first(column(p, GRAD_X), at, n_valid)
            )


@_inline
def _project_weight_item(p, item):
    """Gradient of the projection's weights from one slice of the batch, one sequence, one block."""
    channels, width, length = column(p, CHANNELS), column(p, WIDTH), column(p, LENGTH)
    v = item % column(p, BLOCKS)
    k = item // column(p, BLOCKS) % column(p, SEQUENCES)
    part = item // (column(p, BLOCKS) * column(p, SEQUENCES))
    n_valid = min(channels - v * LANES, LANES)
    size = (column(p, BATCH) + column(p, SLICES) - 1) // column(p, SLICES)
    zero = splat(_ZERO)
    out = column(p, GRAD_X_WEIGHT) + 4 * (
        (part * column(p, SEQUENCES) + k) * width * channels + v * LANES
    )
    for j in range(0, width, ROWS):
        rows = min(ROWS, width - j)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        o1, o2, o3 = min(1, rows - 1), min(2, rows - 1), min(3, rows - 1)
        o4, o5, o6, o7 = min(4, rows - 1), min(5, rows - 1), min(6, rows - 1), min(7, rows - 1)
        for b in range(part * size, min((part + 1) * size, column(p, BATCH))):
            g = column(p, GRAD_PROJECTED) + 4 * (
                (b * column(p, SEQUENCES) + k) * length * width + j
            )
            for t in range(length):
                row = _token_row(p, b, k, t)
                if row >= 0:
                    x = load_first(column(p, X), row * channels + v * LANES, n_valid)
                    at = t * width
                    s0 = fma(x, splat(load_scalar(g, at)), s0)
                    s1 = fma(x, splat(load_scalar(g, at + o1)), s1)
                    s2 = fma(x, splat(load_scalar(g, at + o2)), s2)
                    s3 = fma(x, splat(load_scalar(g, at + o3)), s3)
                    s4 = fma(x, splat(load_scalar(g, at + o4)), s4)
                    s5 = fma(x, splat(load_scalar(g, at + o5)), s5)
                    s6 = fma(x, splat(load_scalar(g, at + o6)), s6)
                    s7 = fma(x, splat(load_scalar(g, at + o7)), s7)
        at = j * channels
        store_first(out, at, n_valid, s0)
        if rows > 1:
            store_first(out, at + channels, n_valid, s1)
        if rows > 2:
            store_first(out, at + 2 * channels, n_valid, s2)
        if rows > 3:
            store_first(out, at + 3 * channels, n_valid, s3)
        if rows > 4:
            store_first(out, at + 4 * channels, n_valid, s4)
        if rows > 5:
            store_first(out, at + 5 * channels, n_valid, s5)
        if rows > 6:
            store_first(out, at + 6 * channels, n_valid, s6)
        if rows > 7:
            store_first(out, at + 7 * channels, n_valid, s7)


@_inline
def _next_item(p):
    return fetch_and_add(p + 8 * NEXT_ITEM, 1)


@_inline
def _scratch(p):
    worker = fetch_and_add(p + 8 * NEXT_WORKER, 1)
    return column(p, SCRATCH) + worker * column(p, SCRATCH_SIZE)


@_inline
def _sequences_of(p, item):
    """Image, first sequence, number of sequences and channel group of an item."""
    group, rest = item % column(p, GROUPS), item // column(p, GROUPS)
    if column(p, IS_SUM):
        # One item adds up all sequences of an image: no two items write to the same token.
        return rest, 0, column(p, SEQUENCES), group
    return rest // column(p, SEQUENCES), rest % column(p, SEQUENCES), 1, group


# Written out, not made by a function: numba does not cache what another function made.
def _project(p):
    parts = (column(p, LENGTH) + ROWS - 1) // ROWS
    item = _next_item(p)
    while item < column(p, N_ITEMS):
        sequence, first = item // column(p, GROUPS), item % column(p, GROUPS) * PARTS
        b, k = sequence // column(p, SEQUENCES), sequence % column(p, SEQUENCES)
        for part in range(first, min(first + PARTS, parts)):
            _project_part(p, b, k, part)
        item = _next_item(p)


def _forward(p):
    scratch = _scratch(p)
    item = _next_item(p)
    while item < column(p, N_ITEMS):
        b, first, count, group = _sequences_of(p, item)
        for k in range(first, first + count):
            _forward_sequence(p, b, k, group, scratch)
        item = _next_item(p)


def _backward(p):
    scratch = _scratch(p)
    item = _next_item(p)
    while item < column(p, N_ITEMS):
        b, first, count, group = _sequences_of(p, item)
        for k in range(first, first + count):
            _backward_sequence(p, b, k, group, scratch)
        item = _next_item(p)


def _project_back(p):
    item = _next_item(p)
    while item < column(p, N_ITEMS):
        b, first, count, v = _sequences_of(p, item)
        for k in range(first, first + count):
            _project_back_sequence(p, b, k, v)
        item = _next_item(p)


def _project_weight(p):
    item = _next_item(p)
    while item < column(p, N_ITEMS):
        _project_weight_item(p, item)
        item = _next_item(p)


PROGRAMS = {
    "project": _project,
    "forward": _forward,
    "backward": _backward,
    "project_back": _project_back,
    "project_weight": _project_weight,
}
SIGNATURE = types.void(types.int64)
OPTIONS = {"nopython": True, "error_model": "numpy", "boundscheck": False}


def forward_scratch(states: int, rank: int, blocks: int) -> int:
    """Floats that one thread needs for the forward program."""
    padded = -(-states // 4) * 4
    return LANES * ((2 * padded + rank) * blocks + 4 * CHUNK) + CHUNK * 2 * padded


def backward_scratch(states: int, rank: int, blocks: int) -> int:
    """Floats that one thread needs for the backward program."""
    padded = -(-states // 4) * 4
    n_sums = 4 * (-(-rank // LANES) + 2 * -(-states // LANES))
    vectors = (2 * padded + rank) * blocks + 15 * CHUNK + padded + CHUNK * n_sums
    return LANES * vectors + CHUNK * 2 * padded
