"""The matrix products around the scan: x to (dt, B, C) along the order, and their gradients.

A matrix library would need x gathered into a copy first; here rows are read where they lie. Six
sums of sixteen lanes stay in registers at a time: as many as AVX2 has room for.
"""

from __future__ import annotations

from kernels._cpu import columns as col
from kernels._cpu.arithmetic import ZERO, compiled, inlined
from kernels._cpu.simd import (
    LANES,
    column,
    fma,
    load,
    load_first,
    load_int,
    load_scalar,
    splat,
    store_first,
)
from kernels._cpu.tiles import token_row

ROWS = col.ROWS


@compiled
def project_part(p, b, k, part):
    """`ROWS` steps of x times the weights of the sequence's set: dt, B and C of these steps."""
    channels, width, length = column(p, col.CHANNELS), column(p, col.WIDTH), column(p, col.LENGTH)
    padded = (width + LANES - 1) // LANES * LANES
    weight = column(p, col.X_WEIGHT) + 4 * load_int(column(p, col.SETS), k) * channels * padded
    t0 = part * ROWS
    steps = min(ROWS, length - t0)
    last = t0 + steps - 1
    zero = splat(ZERO)
    # A pad reads row 0; 0 is stored in place of its sum. Steps past the end repeat the last one.
    r0, r1 = token_row(p, b, k, t0), token_row(p, b, k, min(t0 + 1, last))
    r2, r3 = token_row(p, b, k, min(t0 + 2, last)), token_row(p, b, k, min(t0 + 3, last))
    r4, r5 = token_row(p, b, k, min(t0 + 4, last)), token_row(p, b, k, min(t0 + 5, last))
    x0, x1, x2 = row_address(p, r0), row_address(p, r1), row_address(p, r2)
    x3, x4, x5 = row_address(p, r3), row_address(p, r4), row_address(p, r5)
    for j in range(0, width, LANES):
        s0 = s1 = s2 = s3 = s4 = s5 = zero
        for c in range(channels):
            w = load(weight, c * padded + j)
            s0 = fma(w, splat(load_scalar(x0, c)), s0)
            s1 = fma(w, splat(load_scalar(x1, c)), s1)
            s2 = fma(w, splat(load_scalar(x2, c)), s2)
            s3 = fma(w, splat(load_scalar(x3, c)), s3)
            s4 = fma(w, splat(load_scalar(x4, c)), s4)
            s5 = fma(w, splat(load_scalar(x5, c)), s5)
        n_valid = min(width - j, LANES)
        at = ((b * column(p, col.SEQUENCES) + k) * length + t0) * width + j
        store_projected(p, at, n_valid, 0, steps, r0, s0)
        store_projected(p, at, n_valid, 1, steps, r1, s1)
        store_projected(p, at, n_valid, 2, steps, r2, s2)
        store_projected(p, at, n_valid, 3, steps, r3, s3)
        store_projected(p, at, n_valid, 4, steps, r4, s4)
        store_projected(p, at, n_valid, 5, steps, r5, s5)


@inlined
def row_address(p, row):
    return column(p, col.X) + 4 * max(row, 0) * column(p, col.CHANNELS)


@inlined
def store_projected(p, at, n_valid, i, steps, row, value):
    if i < steps:
        if row < 0:
            value = splat(ZERO)
        store_first(column(p, col.PROJECTED), at + i * column(p, col.WIDTH), n_valid, value)


@inlined
def project_back_sequence(p, b, k, v):
    """Add the gradient of dt, B and C times the weights to that of x, for a block of channels."""
    channels, width, length = column(p, col.CHANNELS), column(p, col.WIDTH), column(p, col.LENGTH)
    n_valid = min(channels - v * LANES, LANES)
    weight = column(p, col.X_WEIGHT) + 4 * (
        load_int(column(p, col.SETS), k) * width * channels + v * LANES
    )
    zero = splat(ZERO)
    for t0 in range(0, length, ROWS):
        g = (
            column(p, col.GRAD_PROJECTED)
            + 4 * ((b * column(p, col.SEQUENCES) + k) * length + t0) * width
        )
        steps = min(ROWS, length - t0)
        s0 = s1 = s2 = s3 = s4 = s5 = zero
        # Steps past the end read the last step again; their sums are not stored.
        o1, o2, o3 = width * min(1, steps - 1), width * min(2, steps - 1), width * min(3, steps - 1)
        o4, o5 = width * min(4, steps - 1), width * min(5, steps - 1)
        for j in range(width):
            w = load_first(weight, j * channels, n_valid)
            s0 = fma(w, splat(load_scalar(g, j)), s0)
            s1 = fma(w, splat(load_scalar(g, o1 + j)), s1)
            s2 = fma(w, splat(load_scalar(g, o2 + j)), s2)
            s3 = fma(w, splat(load_scalar(g, o3 + j)), s3)
            s4 = fma(w, splat(load_scalar(g, o4 + j)), s4)
            s5 = fma(w, splat(load_scalar(g, o5 + j)), s5)
        add_to_token(p, b, k, v, t0, 0, steps, n_valid, s0)
        add_to_token(p, b, k, v, t0, 1, steps, n_valid, s1)
        add_to_token(p, b, k, v, t0, 2, steps, n_valid, s2)
        add_to_token(p, b, k, v, t0, 3, steps, n_valid, s3)
        add_to_token(p, b, k, v, t0, 4, steps, n_valid, s4)
        add_to_token(p, b, k, v, t0, 5, steps, n_valid, s5)


@inlined
def add_to_token(p, b, k, v, t0, i, steps, n_valid, value):
    if i < steps:
        row = token_row(p, b, k, t0 + i)
        if row >= 0:
            at = row * column(p, col.CHANNELS) + v * LANES
            store_first(
                column(p, col.GRAD_X),
                at,
                n_valid,
                value + load_first(column(p, col.GRAD_X), at, n_valid),
            )


@inlined
def project_weight_item(p, item):
    """Gradient of the projection's weights from one slice of the batch, one sequence, one block."""
    channels, width, length = column(p, col.CHANNELS), column(p, col.WIDTH), column(p, col.LENGTH)
    v = item % column(p, col.BLOCKS)
    k = item // column(p, col.BLOCKS) % column(p, col.SEQUENCES)
    part = item // (column(p, col.BLOCKS) * column(p, col.SEQUENCES))
    n_valid = min(channels - v * LANES, LANES)
    size = (column(p, col.BATCH) + column(p, col.SLICES) - 1) // column(p, col.SLICES)
    zero = splat(ZERO)
    out = column(p, col.GRAD_X_WEIGHT) + 4 * (
        (part * column(p, col.SEQUENCES) + k) * width * channels + v * LANES
    )
    for j in range(0, width, ROWS):
        rows = min(ROWS, width - j)
        s0 = s1 = s2 = s3 = s4 = s5 = zero
        o1, o2, o3 = min(1, rows - 1), min(2, rows - 1), min(3, rows - 1)
        o4, o5 = min(4, rows - 1), min(5, rows - 1)
        for b in range(part * size, min((part + 1) * size, column(p, col.BATCH))):
            g = column(p, col.GRAD_PROJECTED) + 4 * (
                (b * column(p, col.SEQUENCES) + k) * length * width + j
            )
            for t in range(length):
                row = token_row(p, b, k, t)
                if row >= 0:
                    x = load_first(column(p, col.X), row * channels + v * LANES, n_valid)
                    at = t * width
                    s0 = fma(x, splat(load_scalar(g, at)), s0)
                    s1 = fma(x, splat(load_scalar(g, at + o1)), s1)
                    s2 = fma(x, splat(load_scalar(g, at + o2)), s2)
                    s3 = fma(x, splat(load_scalar(g, at + o3)), s3)
                    s4 = fma(x, splat(load_scalar(g, at + o4)), s4)
                    s5 = fma(x, splat(load_scalar(g, at + o5)), s5)
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
