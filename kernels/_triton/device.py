"""What the scan kernels share: softplus, the combination of two steps, where a step's token lies.

Functions for Triton programs. Lower-case names are values, CAPITALS are pointers and compile-time
constants. Shapes are written with D channels and N states of the tile, R lanes of dt's rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# The kinds of `kernels/_triton/configs.py`; Triton reads a global only if it is a constexpr.
ROWS = tl.constexpr(0)
STRIDES = tl.constexpr(1)
ATOMIC = tl.constexpr(1)
PARTIAL = tl.constexpr(2)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), exact to a few units in the last place also where exp(x) is tiny.

    `log(1+e) * e / ((1+e)-1)` is Kahan's log1p: the rounding of 1+e cancels. Above 20 the answer
    is x, as in PyTorch; NaN fails the comparison and stays NaN.
    """
    e = tl.exp(x)
    v = 1.0 + e
    log1p = tl.where(v == 1.0, e, tl.log(v) * e / (v - 1.0))
    return tl.where(x <= 20.0, log1p, x)


@triton.jit
def softplus_slope(x):
    """Derivative of `softplus`."""
    return tl.where(x <= 20.0, 1.0 / (1.0 + tl.exp(-x)), 1.0)


@triton.jit
def combine(gate_1, value_1, gate_2, value_2):
    """Two steps `h -> gate h + value`, the first one first, as one step. Associative."""
    return gate_1 * gate_2, value_1 * gate_2 + value_2


@triton.jit
def place_of_program(n_channels, n_sequences, CHANNELS: tl.constexpr):
    """Channel block, row (batch * sequences + sequence, 64 bits), sequence and batch element.

    Blocks of one sequence are neighbours, so that they find its B and C in the cache.
    """
    n_blocks = tl.cdiv(n_channels, CHANNELS)
    program = tl.program_id(0)
    block = program % n_blocks
    row = (program // n_blocks).to(tl.int64)
    return block, row, row % n_sequences, row // n_sequences


@triton.jit
def load_walk(ORDER, sequence, ORDER_KIND: tl.constexpr):
    """The six numbers of a sequence with constant strides; zeros for the other kinds.

    Step `t` reads token `first + outer*outer_stride + inner*inner_stride` with `outer, inner =
    divmod(t, inner_size)`, and a pad where `inner >= inner_end` or `outer >= outer_end`.
    """
    if ORDER_KIND == STRIDES:
        at = ORDER + sequence * 6
        first, size = tl.load(at), tl.load(at + 1)
        inner_stride, outer_stride = tl.load(at + 2), tl.load(at + 3)
        inner_end, outer_end = tl.load(at + 4), tl.load(at + 5)
    else:
        first, size, inner_stride, outer_stride, inner_end, outer_end = 0, 1, 0, 0, 0, 0
    return first, size, inner_stride, outer_stride, inner_end, outer_end


@triton.jit
def token_of(t, walk, ORDER, sequence, length, ORDER_KIND: tl.constexpr):
    """Token that step(s) `t` read (64 bits in a map) and whether there is one."""
    if ORDER_KIND == ROWS:
        token = t
        is_token = t < length
    elif ORDER_KIND == STRIDES:
        first, size, inner_stride, outer_stride, inner_end, outer_end = walk
        outer = t // size
        inner = t - outer * size
        token = first.to(tl.int64) + outer * outer_stride + inner * inner_stride
        is_token = (inner < inner_end) & (outer < outer_end) & (t < length)
    else:
        token = tl.load(ORDER + sequence * length + t, mask=t < length, other=-1).to(tl.int64)
        is_token = token >= 0
    return token, is_token


@triton.jit
def load_a(A, set_, d, n, is_channel, is_state, n_channels, N_STATES, ORDER_KIND: tl.constexpr):
    """A times log2(e) `[D, N]`, so that a gate is one exp2. Maps come with log(-A)."""
    at = (set_ * n_channels + d)[:, None] * N_STATES + n[None, :]
    a = tl.load(A + at, mask=is_channel[:, None] & is_state[None, :], other=0.0).to(tl.float32)
    if ORDER_KIND != ROWS:
        a = -tl.exp(a)
    return a * LOG2_E


@triton.jit
def store_shared(AT, value, mask, slice_offset, SHARING: tl.constexpr):
    """Write what several channel blocks contribute to: atomically, or each into its own slice.

    `slice_offset` is 0 where one program holds all channels.
    """
    if SHARING == ATOMIC:
        tl.atomic_add(AT, value, mask=mask, sem="relaxed")
    else:
        tl.store(AT + slice_offset, value, mask=mask)
