"""The scan one step after the other: for batches that fill the GPU with (sequence, channel block)s.

The state of a block of channels stays in registers. Forward reads one step ahead, so that memory
and arithmetic overlap. Backward goes through the stored states from the last to the first: between
two of them it computes the states once more, `STEPS` at a time, and walks back over those.
"""

# Tuples grow while Triton unrolls a loop; to mypy each has one length.
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton.device import (
    LN_2,
    PARTIAL,
    ROWS,
    load_a,
    load_walk,
    place_of_program,
    softplus,
    softplus_slope,
    store_shared,
    token_of,
)

NOT_SPECIALIZED = ["n_tokens", "length", "n_sequences", "rank"]


@triton.jit
def load_vectors(t, DELTA, BM, CM, row, d, n, r, is_channel, is_state, weight, bias,
                 length, n_channels, rank, N_STATES, ORDER_KIND: tl.constexpr):  # fmt: skip
    """Step `t`: dt before softplus `[D]`, its low-rank factors `[R]`, B and C `[N]`; 0 past the
    end."""
    is_step = t < length
    if ORDER_KIND == ROWS:
        at = (row * n_channels + d) * length + t
        raw = tl.load(DELTA + at, mask=is_channel & is_step, other=0.0).to(tl.float32) + bias
        factors = bias
        at_state = (row * N_STATES + n) * length + t
        b = tl.load(BM + at_state, mask=is_state & is_step, other=0.0).to(tl.float32)
        c = tl.load(CM + at_state, mask=is_state & is_step, other=0.0).to(tl.float32)
    else:
        at_step = DELTA + (row * length + t) * (rank + 2 * N_STATES)
        factors = tl.load(at_step + r, mask=(r < rank) & is_step, other=0.0).to(tl.float32)
        raw = tl.sum(weight * factors[None, :], 1) + bias
        b = tl.load(at_step + rank + n, mask=is_state & is_step, other=0.0).to(tl.float32)
        at_c = at_step + rank + N_STATES
        c = tl.load(at_c + n, mask=is_state & is_step, other=0.0).to(tl.float32)
    return raw, factors, b, c


@triton.jit
def channel_pointers(BASE, row, batch, d, n_tokens, length, n_channels, ORDER_KIND: tl.constexpr):
    """Where channel `d` of token 0 lies `[D]`; a token further is `token_stride` further."""
    if ORDER_KIND == ROWS:
        at = BASE + (row * n_channels + d) * length
    else:
        at = BASE + batch * n_tokens * n_channels + d
    return at


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def steps_forward_kernel(
    X, DELTA, BM, CM, A, DT_WEIGHT, BIAS, SKIP, ORDER, SETS, Y, CHECKPOINTS, LAST,
    n_tokens, length, n_sequences, n_channels, rank,
    N_STATES: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr,
    STEPS: tl.constexpr, EVERY: tl.constexpr, ORDER_KIND: tl.constexpr, IS_SUM: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Outputs of one block of channels of one sequence.

    Map: X `[B, T, C]`, DELTA = projected `[B, K, L, R+2N]`, A = A_logs; Y `[B, T, C]`, or `[B, K,
    L, C]` if IS_SUM. Rows: X, DELTA, Y `[B, K*C, L]`, BM, CM `[B, K, N, L]`, LAST `[B, K*C, N]`.
    CHECKPOINTS `[B, K, chunks - 1, C, N]`: the states before every chunk but the first.
    """
    block, row, sequence, batch = place_of_program(n_channels, n_sequences, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    is_channel, is_state = d < n_channels, n < N_STATES
    in_tile = is_channel[:, None] & is_state[None, :]
    r = tl.arange(0, RANK if RANK else 1)
    set_ = sequence if ORDER_KIND == ROWS else tl.load(SETS + sequence).to(tl.int64)
    at_channel = set_ * n_channels + d
    a2 = load_a(A, set_, d, n, is_channel, is_state, n_channels, N_STATES, ORDER_KIND)
    bias = tl.load(BIAS + at_channel, mask=is_channel, other=0.0).to(tl.float32)
    skip = tl.load(SKIP + at_channel, mask=is_channel, other=0.0).to(tl.float32)
    weight = bias
    if RANK:
        at_weight = at_channel[:, None] * rank + r[None, :]
        in_weight = is_channel[:, None] & (r < rank)[None, :]
        weight = tl.load(DT_WEIGHT + at_weight, mask=in_weight, other=0.0).to(tl.float32)
    walk = load_walk(ORDER, sequence, ORDER_KIND)
    token_stride = 1 if ORDER_KIND == ROWS else n_channels
    x_at = channel_pointers(X, row, batch, d, n_tokens, length, n_channels, ORDER_KIND)
    if IS_SUM:
        y_at = Y + d
    else:
        y_at = channel_pointers(Y, row, batch, d, n_tokens, length, n_channels, ORDER_KIND)

    n_chunks = tl.cdiv(length, EVERY)
    h = tl.zeros([CHANNELS, STATES], tl.float32)
    token, is_token = token_of(0, walk, ORDER, sequence, length, ORDER_KIND)
    u = tl.load(x_at + token * token_stride, mask=is_channel & is_token, other=0.0)
    raw, _, b, c = load_vectors(
        0, DELTA, BM, CM, row, d, n, r, is_channel, is_state, weight, bias,
        length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
    for chunk in range(n_chunks):
        if CHECKPOINTS is not None:
            at = (row * (n_chunks - 1) + chunk - 1) * n_channels + d
            slots = CHECKPOINTS + at[:, None] * N_STATES + n[None, :]
            tl.store(slots, h, mask=in_tile & (chunk > 0))
        for t in range(chunk * EVERY, tl.minimum(chunk * EVERY + EVERY, length)):
            # The next step is on its way while this one is computed.
            next_token, next_is_token = token_of(
                t + 1, walk, ORDER, sequence, length, ORDER_KIND)  # fmt: skip
            at_next = x_at + next_token * token_stride
            next_u = tl.load(at_next, mask=is_channel & next_is_token, other=0.0)
            next_raw, _, next_b, next_c = load_vectors(
                t + 1, DELTA, BM, CM, row, d, n, r, is_channel, is_state, weight, bias,
                length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
            dt = softplus(raw) if SOFTPLUS else raw
            x = u.to(tl.float32)
            h = tl.exp2(dt[:, None] * a2) * h + (dt * x)[:, None] * b[None, :]
            y = (tl.sum(h * c[None, :], 1) + skip * x).to(Y.dtype.element_ty)
            if IS_SUM:
                tl.store(y_at + (row * length + t) * n_channels, y, mask=is_channel)
            else:
                tl.store(y_at + token * token_stride, y, mask=is_channel & is_token)
            token, is_token, u = next_token, next_is_token, next_u
            raw, b, c = next_raw, next_b, next_c
    if LAST is not None:
        tl.store(LAST + (row * n_channels + d)[:, None] * N_STATES + n[None, :], h, mask=in_tile)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def steps_backward_kernel(
    X, DELTA, BM, CM, A, DT_WEIGHT, BIAS, SKIP, ORDER, SETS, CHECKPOINTS, STARTS, GRAD_Y,
    GRAD_X, GRAD_DELTA, GRAD_B, GRAD_C, GRAD_A, GRAD_DT_WEIGHT, GRAD_BIAS, GRAD_SKIP,
    n_tokens, length, n_sequences, n_channels, rank,
    N_STATES: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr,
    STEPS: tl.constexpr, EVERY: tl.constexpr, ORDER_KIND: tl.constexpr, IS_SUM: tl.constexpr,
    SOFTPLUS: tl.constexpr, SHARING: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of channels of one sequence; layouts as in the forward kernel.

    GRAD_DELTA is that of `projected` (map) or of delta (rows). What channel blocks share, GRAD_B,
    GRAD_C and GRAD_DELTA of a map, has one leading slice, or one per block if SHARING is PARTIAL.
    Of parameters: per batch element and sequence, `[B, K, C, ...]`. STARTS `[programs, EVERY /
    STEPS, CHANNELS, STATES]` is scratch memory.
    """
    block, row, sequence, batch = place_of_program(n_channels, n_sequences, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    is_channel, is_state = d < n_channels, n < N_STATES
    in_tile = is_channel[:, None] & is_state[None, :]
    r = tl.arange(0, RANK if RANK else 1)
    set_ = sequence if ORDER_KIND == ROWS else tl.load(SETS + sequence).to(tl.int64)
    at_channel = set_ * n_channels + d
    a2 = load_a(A, set_, d, n, is_channel, is_state, n_channels, N_STATES, ORDER_KIND)
    bias = tl.load(BIAS + at_channel, mask=is_channel, other=0.0).to(tl.float32)
    skip = tl.load(SKIP + at_channel, mask=is_channel, other=0.0).to(tl.float32)
    weight = bias
    if RANK:
        at_weight = at_channel[:, None] * rank + r[None, :]
        in_weight = is_channel[:, None] & (r < rank)[None, :]
        weight = tl.load(DT_WEIGHT + at_weight, mask=in_weight, other=0.0).to(tl.float32)
        grad_weight = tl.zeros([CHANNELS, RANK], tl.float32)
    walk = load_walk(ORDER, sequence, ORDER_KIND)
    token_stride = 1 if ORDER_KIND == ROWS else n_channels
    x_at = channel_pointers(X, row, batch, d, n_tokens, length, n_channels, ORDER_KIND)
    grad_y_at = channel_pointers(GRAD_Y, row, batch, d, n_tokens, length, n_channels, ORDER_KIND)
    if IS_SUM:
        grad_x_at = GRAD_X + d
    else:
        grad_x_at = channel_pointers(
            GRAD_X, row, batch, d, n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
    width = rank + 2 * N_STATES
    slice_offset = 0
    if SHARING == PARTIAL:
        n_rows = tl.num_programs(0) // tl.cdiv(n_channels, CHANNELS)
        of_slice = N_STATES if ORDER_KIND == ROWS else width
        slice_offset = block.to(tl.int64) * n_rows * length * of_slice
    scratch = tl.program_id(0).to(tl.int64) * (EVERY // STEPS) * CHANNELS * STATES
    starts_at = STARTS + scratch + tl.arange(0, CHANNELS)[:, None] * STATES + n[None, :]

    grad_a = tl.zeros([CHANNELS, STATES], tl.float32)
    grad_bias = tl.zeros([CHANNELS], tl.float32)
    grad_skip = tl.zeros([CHANNELS], tl.float32)
    # Gradient of the state times the gate after it: what a step passes to the one before.
    passed = tl.zeros([CHANNELS, STATES], tl.float32)
    n_chunks = tl.cdiv(length, EVERY)
    for chunks_done in range(n_chunks):
        chunk = n_chunks - 1 - chunks_done
        first = chunk * EVERY
        n_parts = tl.cdiv(tl.minimum(EVERY, length - first), STEPS)
        at = (row * (n_chunks - 1) + chunk - 1) * n_channels + d
        slots = CHECKPOINTS + at[:, None] * N_STATES + n[None, :]
        h = tl.load(slots, mask=in_tile & (chunk > 0), other=0.0)
        for part in range(n_parts):
            tl.store(starts_at + part * CHANNELS * STATES, h)
            # The states of the last part are computed below.
            end = tl.where(part + 1 < n_parts, first + part * STEPS + STEPS, 0)
            for t in range(first + part * STEPS, end):
                token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
                u = tl.load(x_at + token * token_stride, mask=is_channel & is_token, other=0.0)
                raw, _, b, _ = load_vectors(
                    t, DELTA, BM, CM, row, d, n, r, is_channel, is_state, weight, bias,
                    length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
                dt = softplus(raw) if SOFTPLUS else raw
                h = tl.exp2(dt[:, None] * a2) * h + (dt * u.to(tl.float32))[:, None] * b[None, :]
        # Other threads of this program may have written what a thread reads below.
        tl.debug_barrier()
        for parts_done in range(n_parts):
            part = n_parts - 1 - parts_done
            start = first + part * STEPS
            h = tl.load(starts_at + part * CHANNELS * STATES)
            # Values of every step of the part, in registers: tuples, as their loops are unrolled.
            states, gates, inputs = (h,), (), ()
            for i in tl.static_range(STEPS):
                t = start + i
                token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
                at_token = token * token_stride
                u = tl.load(x_at + at_token, mask=is_channel & is_token, other=0.0).to(tl.float32)
                raw, factors, b, c = load_vectors(
                    t, DELTA, BM, CM, row, d, n, r, is_channel, is_state, weight, bias,
                    length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
                dt = softplus(raw) if SOFTPLUS else raw
                # Past the end the state stays as it is.
                gate = tl.where(t < length, tl.exp2(dt[:, None] * a2), 1.0)
                h = gate * h + (dt * u)[:, None] * b[None, :]
                states = states + (h,)
                gates = gates + (gate,)
                inputs = inputs + ((at_token, is_token, u, raw, dt, factors, b, c),)
            for i in tl.static_range(STEPS - 1, -1, -1):
                t = start + i
                is_step = t < length
                at_token, is_token, u, raw, dt, factors, b, c = inputs[i]
                grad_y = tl.load(grad_y_at + at_token, mask=is_channel & is_token, other=0.0)
                grad_y = grad_y.to(tl.float32)
                grad_h = grad_y[:, None] * c[None, :] + passed
                through_b = tl.sum(grad_h * b[None, :], 1)
                passed = gates[i] * grad_h
                of_gate = passed * states[i]  # gradient of the gate times the gate
                grad_dt = u * through_b + LN_2 * tl.sum(of_gate * a2, 1)
                if SOFTPLUS:
                    grad_dt *= softplus_slope(raw)
                grad_dt = tl.where(is_step, grad_dt, 0.0)
                grad_a += tl.where(is_step, dt, 0.0)[:, None] * of_gate
                grad_bias += grad_dt
                grad_skip += grad_y * u
                grad_u = (dt * through_b + skip * grad_y).to(GRAD_X.dtype.element_ty)
                if IS_SUM:
                    at_step = (row * length + t) * n_channels
                    tl.store(grad_x_at + at_step, grad_u, mask=is_channel & is_step)
                else:
                    tl.store(grad_x_at + at_token, grad_u, mask=is_channel & is_token)
                grad_b = tl.sum((dt * u)[:, None] * grad_h, 0)
                grad_c = tl.sum(states[i + 1] * grad_y[:, None], 0)
                if ORDER_KIND == ROWS:
                    of_dt = GRAD_DELTA + (row * n_channels + d) * length + t
                    grad_dt = grad_dt.to(GRAD_DELTA.dtype.element_ty)
                    tl.store(of_dt, grad_dt, mask=is_channel & is_step)
                    of_state = (row * N_STATES + n) * length + t
                    of_b, of_c = GRAD_B + of_state, GRAD_C + of_state
                    store_shared(of_b, grad_b, is_state & is_step, slice_offset, SHARING)
                    store_shared(of_c, grad_c, is_state & is_step, slice_offset, SHARING)
                else:
                    grad_weight += grad_dt[:, None] * factors[None, :]
                    grad_factors = tl.sum(grad_dt[:, None] * weight, 0)
                    of_step = GRAD_DELTA + (row * length + t) * width
                    in_rank = (r < rank) & is_step
                    store_shared(of_step + r, grad_factors, in_rank, slice_offset, SHARING)
                    of_b, of_c = of_step + rank + n, of_step + rank + N_STATES + n
                    store_shared(of_b, grad_b, is_state & is_step, slice_offset, SHARING)
                    store_shared(of_c, grad_c, is_state & is_step, slice_offset, SHARING)
        # The next chunk overwrites STARTS.
        tl.debug_barrier()
    if ORDER_KIND != ROWS:
        # A = -exp(A_logs), so dA/dA_logs = A.
        grad_a = grad_a * a2 * LN_2
    at = row * n_channels + d
    tl.store(GRAD_A + at[:, None] * N_STATES + n[None, :], grad_a, mask=in_tile)
    tl.store(GRAD_BIAS + at, grad_bias, mask=is_channel)
    tl.store(GRAD_SKIP + at, grad_skip, mask=is_channel)
    if RANK:
        at_weight = at[:, None] * rank + r[None, :]
        tl.store(GRAD_DT_WEIGHT + at_weight, grad_weight, mask=in_weight)
