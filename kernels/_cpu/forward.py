"""The scan, first step to last.

Time is cut into chunks of `CHUNK` steps. Within a chunk the states are visited in fours: four
states of sixteen channels stay in registers for the whole chunk.
"""

from __future__ import annotations

from kernels._cpu import columns as col
from kernels._cpu.arithmetic import compiled, exp2, inlined
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
)
from kernels._cpu.tiles import (
    TILE,
    VECTOR,
    clear,
    fours,
    pack_parameters,
    read_bc,
    read_inputs,
    write_rows,
    write_tokens,
)

CHUNK = col.CHUNK


@compiled
def scan_quad(steps, gates, dt_u, bc, padded, decay, state, outputs):
    """Four states through a chunk; adds C h to `outputs`. `bc` points at the first of the four."""
    a0, a1, a2, a3 = load(decay, 0), load(decay, 16), load(decay, 32), load(decay, 48)
    h0, h1, h2, h3 = load(state, 0), load(state, 16), load(state, 32), load(state, 48)
    for t in range(steps):
        dt, x, y = load(gates, t * LANES), load(dt_u, t * LANES), load(outputs, t * LANES)
        b = t * 2 * padded
        c = b + padded
        h0 = fma(exp2(dt * a0), h0, x * splat(load_scalar(bc, b)))
        h1 = fma(exp2(dt * a1), h1, x * splat(load_scalar(bc, b + 1)))
        h2 = fma(exp2(dt * a2), h2, x * splat(load_scalar(bc, b + 2)))
        h3 = fma(exp2(dt * a3), h3, x * splat(load_scalar(bc, b + 3)))
        y = fma(h0, splat(load_scalar(bc, c)), y)
        y = fma(h1, splat(load_scalar(bc, c + 1)), y)
        y = fma(h2, splat(load_scalar(bc, c + 2)), y)
        y = fma(h3, splat(load_scalar(bc, c + 3)), y)
        store(outputs, t * LANES, y)
    store(state, 0, h0)
    store(state, 16, h1)
    store(state, 32, h2)
    store(state, 48, h3)


@inlined
def stored_states(p, sequence, t0, v):
    """Address of the states of one block of channels before step `t0` > 0."""
    n_stored = (column(p, col.LENGTH) - 1) // CHUNK
    slot = (sequence * n_stored + t0 // CHUNK - 1) * column(p, col.BLOCKS) + v
    return column(p, col.CHECKPOINTS) + slot * 4 * fours(column(p, col.STATES)) * VECTOR


@inlined
def forward_sequence(p, b, k, group, scratch):
    length, blocks, groups = column(p, col.LENGTH), column(p, col.BLOCKS), column(p, col.GROUPS)
    quads = fours(column(p, col.STATES))
    per_block = VECTOR * (8 * quads + column(p, col.RANK))
    tiles = scratch + per_block * blocks
    inputs, gates, dt_u = tiles, tiles + TILE, tiles + 2 * TILE
    outputs, bc = tiles + 3 * TILE, tiles + 4 * TILE
    for v in range(group, blocks, groups):
        decay = scratch + per_block * v
        state = decay + 4 * quads * VECTOR
        pack_parameters(p, k, v, decay, state + 4 * quads * VECTOR)
        clear(state, 4 * quads)
    for t0 in range(0, length, CHUNK):
        steps = min(CHUNK, length - t0)
        read_bc(p, b, k, t0, steps, bc)
        for v in range(group, blocks, groups):
            decay = scratch + per_block * v
            state = decay + 4 * quads * VECTOR
            if column(p, col.CHECKPOINTS) != 0 and t0 > 0:
                stored = stored_states(p, b * column(p, col.SEQUENCES) + k, t0, v)
                for n in range(4 * quads):
                    store(stored, n * LANES, load(state, n * LANES))
            weight = state + 4 * quads * VECTOR
            read_inputs(p, b, k, v, t0, steps, weight, inputs, gates, 0, dt_u)
            n_valid = min(column(p, col.CHANNELS) - v * LANES, LANES)
            first = load_int(column(p, col.SETS), k) * column(p, col.CHANNELS) + v * LANES
            skip = load_first(column(p, col.SKIP), first, n_valid)
            for t in range(steps):
                store(outputs, t * LANES, skip * load(inputs, t * LANES))
            for q in range(quads):
                at = 4 * q * VECTOR
                scan_quad(
                    steps, gates, dt_u, bc + 16 * q, 4 * quads, decay + at, state + at, outputs
                )
            if column(p, col.IS_MAP):
                write_tokens(p, column(p, col.Y), b, k, v, t0, steps, outputs)
            else:
                write_rows(p, column(p, col.Y), b, k, v, t0, steps, outputs)
    if column(p, col.LAST_STATE) != 0:
        for v in range(group, blocks, groups):
            state = scratch + per_block * v + 4 * quads * VECTOR
            slot = (b * column(p, col.SEQUENCES) + k) * blocks + v
            last = column(p, col.LAST_STATE) + slot * 4 * quads * VECTOR
            for n in range(4 * quads):
                store(last, n * LANES, load(state, n * LANES))
