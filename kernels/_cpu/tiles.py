"""Getting chunks of both layouts into tiles `[steps, 16 channels]` and back.

`p` is the address of the table; b, k, v are the image, the sequence and the block of sixteen
channels.
"""

from __future__ import annotations

import numpy as np

from kernels._cpu import columns as col
from kernels._cpu.arithmetic import LOG2E, NAN, ONE, ZERO, compiled, exp, inlined, softplus
from kernels._cpu.simd import (
    LANES,
    column,
    fma,
    load,
    load_first,
    load_int,
    load_scalar,
    splat,
    store,
    store_first,
    transpose,
    where_ordered,
)

# Bytes of one vector, and of one vector per step of a chunk.
VECTOR = 4 * LANES
TILE = col.CHUNK * VECTOR


@inlined
def clear(target, n_vectors):
    for i in range(n_vectors):
        store(target, i * LANES, splat(ZERO))


@inlined
def fours(n):
    """Fours that hold n rows."""
    return (n + 3) // 4


@inlined
def token_row(p, b, k, t):
    """Row of the map that step t reads, or -1 at a pad."""
    token = load_int(column(p, col.INDEX), k * column(p, col.LENGTH) + t)
    return b * column(p, col.TOKENS) + token if token >= 0 else np.int64(-1)


@compiled
def transpose_tile(source, source_stride, n_rows, n_columns, target, target_stride, n_stored):
    transpose(source, source_stride, n_rows, n_columns, target, target_stride, n_stored)


@compiled
def pack_parameters(p, k, v, decay, weight):
    """A of 16 channels times log2(e) as `[N padded to 4, 16]` and the dt weights as `[R, 16]`."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    first = load_int(column(p, col.SETS), k) * column(p, col.CHANNELS) + v * LANES
    n_states = column(p, col.STATES)
    clear(decay, 4 * fours(n_states))
    for n in range(0, n_states, LANES):
        width = min(n_states - n, LANES)
        source = column(p, col.A_IN) + 4 * (first * n_states + n)
        transpose_tile(source, n_states, n_valid, width, decay + VECTOR * n, LANES, LANES)
    for n in range(n_states):
        a = load(decay, n * LANES)
        if column(p, col.IS_MAP):
            a = splat(ZERO) - exp(a)
        # A NaN of this sign makes exp2 infinite, and infinity times the first state, 0, is NaN
        # again.
        a = where_ordered(a, a * splat(LOG2E), splat(NAN))
        store(decay, n * LANES, a)
    for r in range(0, column(p, col.RANK), LANES):
        width = min(column(p, col.RANK) - r, LANES)
        source = column(p, col.DT_WEIGHT) + 4 * (first * column(p, col.RANK) + r)
        transpose_tile(
            source, column(p, col.RANK), n_valid, width, weight + VECTOR * r, LANES, LANES
        )


@compiled
def read_bc(p, b, k, t0, steps, bc):
    """B and C of a chunk as `[steps, 2 * (N padded to 4)]`, 0 in the padding."""
    n_states = column(p, col.STATES)
    padded = 4 * fours(n_states)
    sequence = b * column(p, col.SEQUENCES) + k
    if column(p, col.IS_MAP):
        for n in range(0, padded, LANES):
            n_valid, n_stored = min(n_states - n, LANES), min(padded - n, LANES)
            for t in range(steps):
                at = (
                    (sequence * column(p, col.LENGTH) + t0 + t) * column(p, col.WIDTH)
                    + column(p, col.RANK)
                    + n
                )
                to = t * 2 * padded + n
                store_first(bc, to, n_stored, load_first(column(p, col.PROJECTED), at, n_valid))
                c = load_first(column(p, col.PROJECTED), at + n_states, n_valid)
                store_first(bc, to + padded, n_stored, c)
    else:
        for t in range(0, steps, LANES):
            width = min(steps - t, LANES)
            for n in range(0, padded, LANES):
                n_valid, n_stored = min(n_states - n, LANES), min(padded - n, LANES)
                at = 4 * ((sequence * n_states + n) * column(p, col.LENGTH) + t0 + t)
                to = bc + 4 * (t * 2 * padded + n)
                length = column(p, col.LENGTH)
                transpose_tile(
                    column(p, col.B_IN) + at, length, n_valid, width, to, 2 * padded, n_stored
                )
                to += 4 * padded
                transpose_tile(
                    column(p, col.C_IN) + at, length, n_valid, width, to, 2 * padded, n_stored
                )


@compiled
def read_rows(p, source, b, k, v, t0, steps, tile):
    """A chunk of 16 channels from `[B, K*D, L]` as `[steps, 16]`."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    row = (b * column(p, col.SEQUENCES) + k) * column(p, col.CHANNELS) + v * LANES
    for t in range(0, steps, LANES):
        at = source + 4 * (row * column(p, col.LENGTH) + t0 + t)
        width = min(steps - t, LANES)
        transpose_tile(at, column(p, col.LENGTH), n_valid, width, tile + VECTOR * t, LANES, LANES)


@compiled
def write_rows(p, target, b, k, v, t0, steps, tile):
    """The opposite of `read_rows`."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    row = (b * column(p, col.SEQUENCES) + k) * column(p, col.CHANNELS) + v * LANES
    for t in range(0, steps, LANES):
        at = target + 4 * (row * column(p, col.LENGTH) + t0 + t)
        width = min(steps - t, LANES)
        transpose_tile(tile + VECTOR * t, LANES, width, n_valid, at, column(p, col.LENGTH), width)


@compiled
def read_tokens(p, source, b, k, v, t0, steps, tile):
    """A chunk of 16 channels from the map `[B, tokens, C]` as `[steps, 16]`, 0 at pads."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    for t in range(steps):
        row = token_row(p, b, k, t0 + t)
        value = splat(ZERO)
        if row >= 0:
            value = load_first(source, row * column(p, col.CHANNELS) + v * LANES, n_valid)
        store(tile, t * LANES, value)


@compiled
def write_tokens(p, target, b, k, v, t0, steps, tile):
    """Put a chunk `[steps, 16]` on the map, or add it there if tokens are read more than once."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    for t in range(steps):
        row = token_row(p, b, k, t0 + t)
        if row >= 0:
            at = row * column(p, col.CHANNELS) + v * LANES
            value = load(tile, t * LANES)
            if column(p, col.IS_SUM):
                value = value + load_first(target, at, n_valid)
            store_first(target, at, n_valid, value)


@compiled
def finish_inputs(steps, is_softplus, inputs, gates, slopes, dt_u):
    """dt, its slope (unless `slopes` is 0) and dt * u from u and from the raw dt in `dt_u`.

    The raw dt does not lie where dt goes: LLVM would make masked stores of softplus' selects then,
    and those of AVX2 are slow.
    """
    for t in range(steps):
        raw = load(dt_u, t * LANES)
        dt, slope = softplus(raw) if is_softplus else (raw, splat(ONE))
        # exp2 of a NaN of this sign is infinite, so it reaches the states and all gradients.
        dt = where_ordered(dt, dt, splat(NAN))
        store(gates, t * LANES, dt)
        store(dt_u, t * LANES, dt * load(inputs, t * LANES))
        if slopes != 0:
            store(slopes, t * LANES, slope)


@inlined
def read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, slopes, dt_u):
    """u, dt, the slope of softplus (unless `slopes` is 0) and dt * u of a chunk, each `[steps,
    16]`."""
    n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
    first = load_int(column(p, col.SETS), k) * column(p, col.CHANNELS) + v * LANES
    bias = load_first(column(p, col.DT_BIAS), first, n_valid)
    if column(p, col.IS_MAP):
        read_tokens(p, column(p, col.X), b, k, v, t0, steps, inputs)
        rank, width = column(p, col.RANK), column(p, col.WIDTH)
        low = (
            column(p, col.PROJECTED)
            + 4 * ((b * column(p, col.SEQUENCES) + k) * column(p, col.LENGTH) + t0) * width
        )
        for t in range(steps):
            raw = bias
            for r in range(rank):
                raw = fma(splat(load_scalar(low, t * width + r)), load(weight, r * LANES), raw)
            store(dt_u, t * LANES, raw)
    else:
        read_rows(p, column(p, col.X), b, k, v, t0, steps, inputs)
        read_rows(p, column(p, col.DELTA), b, k, v, t0, steps, dt_u)
        for t in range(steps):
            store(dt_u, t * LANES, load(dt_u, t * LANES) + bias)
    finish_inputs(steps, column(p, col.SOFTPLUS), inputs, gates, slopes, dt_u)
