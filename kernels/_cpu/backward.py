"""The scan's gradients, last step to first, with the states of a chunk computed again.

With g the gradient of the state after a step: of B it is g dt u summed over channels, of C it is h
dy, of dt u it is g B, and g a (a the decay) is handed to the step before, where times h it gives dt
and A.
"""

from __future__ import annotations

from kernels._cpu import columns as col
from kernels._cpu.arithmetic import LN2, ZERO, compiled, exp2, inlined
from kernels._cpu.forward import stored_states
from kernels._cpu.simd import (
    LANES,
    column,
    finish_sums,
    fma,
    load,
    load_first,
    load_int,
    load_scalar,
    splat,
    store,
    store_first,
    sum_quad,
)
from kernels._cpu.tiles import (
    TILE,
    VECTOR,
    clear,
    fours,
    pack_parameters,
    read_bc,
    read_inputs,
    read_rows,
    read_tokens,
    transpose_tile,
    write_rows,
    write_tokens,
)

CHUNK = col.CHUNK


@compiled
def backward_quad(
    steps, gates, dt_u, grad_y, bc, padded, decay, start, states, decays, carry, grad_a, sums,
    n_sums, sums_c, grad_dt_u, grad_dt,
):  # fmt: skip
    """Four states through a chunk: forward again from `start`, then last step to first.

    `carry` is the gradient of the state after the chunk on entry, before it on return. Adds to
    grad_a `[4, 16]`, grad_dt_u, grad_dt `[steps, 16]` and, as quarter sums, to the gradients of B
    and C.
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
        e0, e1, e2, e3 = exp2(dt * a0), exp2(dt * a1), exp2(dt * a2), exp2(dt * a3)
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


@compiled
def rank_gradients(p, sequence, v, t0, steps, grad_raw, weight, sums, n_sums):
    """Gradients of the low-rank dt (as quarter sums) and of its weights from that of the raw dt."""
    rank, width = column(p, col.RANK), column(p, col.WIDTH)
    low = column(p, col.PROJECTED) + 4 * (sequence * column(p, col.LENGTH) + t0) * width
    own = column(p, col.GRAD_DT_WEIGHT) + (sequence * column(p, col.BLOCKS) + v) * rank * VECTOR
    zero = splat(ZERO)
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


@inlined
def sum_layout(p):
    """Vectors of quarter sums of one step: for dt, where B's begin, where C's begin, all."""
    of_dt = 4 * ((column(p, col.RANK) + LANES - 1) // LANES)
    of_state = 4 * ((column(p, col.STATES) + LANES - 1) // LANES)
    return of_dt, of_dt + of_state, of_dt + 2 * of_state


@compiled
def store_sums(p, b, k, group, t0, steps, sums, tile):
    """Add up the quarter sums of a chunk and write the gradients of dt, B and C."""
    n_states, rank, length = column(p, col.STATES), column(p, col.RANK), column(p, col.LENGTH)
    sequence = (group * column(p, col.BATCH) + b) * column(p, col.SEQUENCES) + k
    first_b, first_c, n_sums = sum_layout(p)
    if column(p, col.IS_MAP):
        for t in range(steps):
            at = (sequence * length + t0 + t) * column(p, col.WIDTH)
            row = t * n_sums
            for r in range(0, rank, LANES):
                value = finish_sums(sums, (row + r // 4) * LANES)
                store_first(column(p, col.GRAD_PROJECTED), at + r, min(rank - r, LANES), value)
            for n in range(0, n_states, LANES):
                n_valid = min(n_states - n, LANES)
                value = finish_sums(sums, (row + first_b + n // 4) * LANES)
                store_first(column(p, col.GRAD_PROJECTED), at + rank + n, n_valid, value)
                value = finish_sums(sums, (row + first_c + n // 4) * LANES)
                store_first(column(p, col.GRAD_PROJECTED), at + rank + n_states + n, n_valid, value)
    else:
        for n in range(0, n_states, LANES):
            n_valid = min(n_states - n, LANES)
            for t in range(0, steps, LANES):
                width = min(steps - t, LANES)
                at = 4 * ((sequence * n_states + n) * length + t0 + t)
                for i in range(width):
                    quad = (t + i) * n_sums + first_b + n // 4
                    store(tile, i * LANES, finish_sums(sums, quad * LANES))
                transpose_tile(
                    tile, LANES, width, n_valid, column(p, col.GRAD_B) + at, length, width
                )
                for i in range(width):
                    quad = (t + i) * n_sums + first_c + n // 4
                    store(tile, i * LANES, finish_sums(sums, quad * LANES))
                transpose_tile(
                    tile, LANES, width, n_valid, column(p, col.GRAD_C) + at, length, width
                )


@inlined
def backward_sequence(p, b, k, group, scratch):
    length, blocks, groups = column(p, col.LENGTH), column(p, col.BLOCKS), column(p, col.GROUPS)
    quads, rank = fours(column(p, col.STATES)), column(p, col.RANK)
    padded = 4 * quads
    sequence = b * column(p, col.SEQUENCES) + k
    first_b, first_c, n_sums = sum_layout(p)
    per_block = VECTOR * (2 * padded + rank)
    tiles = scratch + per_block * blocks
    inputs, gates, slopes = tiles, tiles + TILE, tiles + 2 * TILE
    dt_u, grad_y, grad_dt_u = tiles + 3 * TILE, tiles + 4 * TILE, tiles + 5 * TILE
    grad_dt, states, decays = tiles + 6 * TILE, tiles + 7 * TILE, tiles + 11 * TILE
    zeros = tiles + 15 * TILE
    bc = zeros + padded * VECTOR
    sums = bc + CHUNK * 2 * padded * 4
    clear(zeros, padded)
    for v in range(group, blocks, groups):
        decay = scratch + per_block * v
        carry = decay + padded * VECTOR
        pack_parameters(p, k, v, decay, carry + padded * VECTOR)
        clear(carry, padded)
        block = sequence * blocks + v
        clear(column(p, col.GRAD_A) + block * padded * VECTOR, padded)
        clear(column(p, col.GRAD_DT_WEIGHT) + block * rank * VECTOR, rank)
        clear(column(p, col.GRAD_BIAS) + block * VECTOR, 1)
        clear(column(p, col.GRAD_SKIP) + block * VECTOR, 1)

    n_chunks = (length + CHUNK - 1) // CHUNK
    for j in range(n_chunks):
        t0 = (n_chunks - 1 - j) * CHUNK
        steps = min(CHUNK, length - t0)
        clear(sums, steps * n_sums)
        read_bc(p, b, k, t0, steps, bc)
        for v in range(group, blocks, groups):
            decay = scratch + per_block * v
            carry = decay + padded * VECTOR
            weight = carry + padded * VECTOR
            block = sequence * blocks + v
            start = stored_states(p, sequence, t0, v) if t0 > 0 else zeros
            read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, slopes, dt_u)
            if column(p, col.IS_MAP):
                read_tokens(p, column(p, col.GRAD_Y), b, k, v, t0, steps, grad_y)
            else:
                read_rows(p, column(p, col.GRAD_Y), b, k, v, t0, steps, grad_y)
            clear(grad_dt_u, steps)
            clear(grad_dt, steps)
            for q in range(quads):
                at = 4 * q * VECTOR
                backward_quad(
                    steps, gates, dt_u, grad_y, bc + 16 * q, padded, decay + at, start + at, states,
                    decays, carry + at, column(p, col.GRAD_A) + block * padded * VECTOR + at,
                    sums + (first_b + q) * VECTOR, n_sums, sums + (first_c + q) * VECTOR,
                    grad_dt_u, grad_dt,
                )  # fmt: skip
            n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
            first = load_int(column(p, col.SETS), k) * column(p, col.CHANNELS) + v * LANES
            skip = load_first(column(p, col.SKIP), first, n_valid)
            grad_bias = load(column(p, col.GRAD_BIAS), block * LANES)
            grad_skip = load(column(p, col.GRAD_SKIP), block * LANES)
            for t in range(steps):
                u, of_x = load(inputs, t * LANES), load(grad_dt_u, t * LANES)
                gy = load(grad_y, t * LANES)
                # `decay` carries a factor log2(e), divided out here.
                raw = fma(load(grad_dt, t * LANES), splat(LN2), of_x * u)
                raw = raw * load(slopes, t * LANES)
                store(grad_dt, t * LANES, raw)
                store(grad_dt_u, t * LANES, fma(of_x, load(gates, t * LANES), skip * gy))
                grad_bias = grad_bias + raw
                grad_skip = fma(gy, u, grad_skip)
            store(column(p, col.GRAD_BIAS), block * LANES, grad_bias)
            store(column(p, col.GRAD_SKIP), block * LANES, grad_skip)
            if column(p, col.IS_MAP):
                rank_gradients(p, sequence, v, t0, steps, grad_dt, weight, sums, n_sums)
                write_tokens(p, column(p, col.GRAD_X), b, k, v, t0, steps, grad_dt_u)
            else:
                write_rows(p, column(p, col.GRAD_X), b, k, v, t0, steps, grad_dt_u)
                write_rows(p, column(p, col.GRAD_DELTA), b, k, v, t0, steps, grad_dt)
        store_sums(p, b, k, group, t0, steps, sums, states)
