"""The scan with all steps of a chunk at once: for one or a few images, where sequences are few.

A tile holds `STEPS` steps of a block of channels; `tl.associative_scan` combines them, and the
state is carried from tile to tile: 13 tiles instead of 784 steps for a sequence of 784. The carry
enters the first step of a tile; `scan_tile` says which tiles go step by step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton.device import (
    LN_2,
    PARTIAL,
    ROWS,
    combine,
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
def channels_at(BASE, row, batch, t, token, d, n_tokens, length, n_channels,
                ORDER_KIND: tl.constexpr):  # fmt: skip
    """Where the channels `d` of the steps `t` lie in a tensor like X `[T, D]`."""
    if ORDER_KIND == ROWS:
        at = BASE + (row * n_channels + d)[None, :] * length + t[:, None]
    else:
        at = BASE + (batch * n_tokens + token)[:, None] * n_channels + d[None, :]
    return at


@triton.jit
def load_dt(t, DELTA, row, d, r, is_channel, weight, bias, length, n_channels, rank, N_STATES,
            ORDER_KIND: tl.constexpr):  # fmt: skip
    """dt before softplus `[T, D]` and its low-rank factors `[T, R]`; bias alone past the end."""
    is_step = t < length
    if ORDER_KIND == ROWS:
        at = DELTA + (row * n_channels + d)[None, :] * length + t[:, None]
        raw = tl.load(at, mask=is_step[:, None] & is_channel[None, :], other=0.0).to(tl.float32)
        factors = raw
    else:
        at = DELTA + (row * length + t)[:, None] * (rank + 2 * N_STATES) + r[None, :]
        factors = tl.load(at, mask=is_step[:, None] & (r < rank)[None, :], other=0.0)
        factors = factors.to(tl.float32)
        raw = tl.sum(factors[:, None, :] * weight[None, :, :], 2)
    return raw + bias[None, :], factors


@triton.jit
def load_b_and_c(t, DELTA, BM, CM, row, n, is_state, length, rank, N_STATES,
                 ORDER_KIND: tl.constexpr):  # fmt: skip
    """B and C of the steps `t` `[T, N]`, 0 past the end."""
    inside = (t < length)[:, None] & is_state[None, :]
    if ORDER_KIND == ROWS:
        at = (row * N_STATES + n)[None, :] * length + t[:, None]
        b, c = tl.load(BM + at, mask=inside, other=0.0), tl.load(CM + at, mask=inside, other=0.0)
    else:
        at = DELTA + (row * length + t)[:, None] * (rank + 2 * N_STATES) + rank + n[None, :]
        b, c = tl.load(at, mask=inside, other=0.0), tl.load(at + N_STATES, mask=inside, other=0.0)
    return b.to(tl.float32), c.to(tl.float32)


@triton.jit
def one_step(tile, step, STEPS: tl.constexpr):
    """Step `step` of a tile `[T, D, N]`: `[D, N]`."""
    is_it = (tl.arange(0, STEPS) == step)[:, None, None]
    return tl.sum(tl.where(is_it, tile, 0.0), 0)


@triton.jit
def scan_tile(gate, x, STEPS: tl.constexpr, ORDER_KIND: tl.constexpr, REVERSE: tl.constexpr):
    """`y_t = gate_t y_before + x_t` for all steps of a tile `[T, D, N]`, from the end if REVERSE.

    With gates above 1 (A > 0, or dt < 0) their product over some steps overflows where the state
    does not, and infinity times a gate of 0 over some steps is not what it is step by step. So a
    tile with such a number goes step by step. The gates of a map are at most 1.
    """
    if ORDER_KIND == ROWS:
        is_tame = (gate <= 1.0) & (tl.abs(x) < float("inf"))
        if tl.min(is_tame.to(tl.int32)) == 1:
            _, y = tl.associative_scan((gate, x), 0, combine, reverse=REVERSE)
        else:
            y = x
            last = one_step(x, STEPS - 1 if REVERSE else 0, STEPS)
            for i in range(1, STEPS):
                step = STEPS - 1 - i if REVERSE else i
                last = one_step(gate, step, STEPS) * last + one_step(y, step, STEPS)
                y = tl.where((tl.arange(0, STEPS) == step)[:, None, None], last[None], y)
    else:
        _, y = tl.associative_scan((gate, x), 0, combine, reverse=REVERSE)
    return y


@triton.jit
def states_of(gate, x, h, STEPS: tl.constexpr, ORDER_KIND: tl.constexpr):
    """The states after every step of a tile `[T, D, N]`, from the state before it `[D, N]`."""
    is_first = (tl.arange(0, STEPS) == 0)[:, None, None]
    x = tl.where(is_first, x + gate * h[None], x)
    return scan_tile(gate, x, STEPS, ORDER_KIND, False)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def chunks_forward_kernel(
    X, DELTA, BM, CM, A, DT_WEIGHT, BIAS, SKIP, ORDER, SETS, Y, CHECKPOINTS, LAST,
    n_tokens, length, n_sequences, n_channels, rank,
    N_STATES: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr,
    STEPS: tl.constexpr, EVERY: tl.constexpr, ORDER_KIND: tl.constexpr, IS_SUM: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """As `steps_forward_kernel`."""
    block, row, sequence, batch = place_of_program(n_channels, n_sequences, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    is_channel, is_state = d < n_channels, n < N_STATES
    in_state = is_channel[:, None] & is_state[None, :]
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
    n_chunks = tl.cdiv(length, EVERY)
    h = tl.zeros([CHANNELS, STATES], tl.float32)
    for start in range(0, length, STEPS):
        if CHECKPOINTS is not None:
            at = (row * (n_chunks - 1) + start // EVERY - 1) * n_channels + d
            slots = CHECKPOINTS + at[:, None] * N_STATES + n[None, :]
            tl.store(slots, h, mask=in_state & (start > 0) & (start % EVERY == 0))
        t = start + tl.arange(0, STEPS)
        is_step = t < length
        token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
        inside = is_token[:, None] & is_channel[None, :]
        at = channels_at(
            X, row, batch, t, token, d, n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
        u = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        raw, _ = load_dt(
            t, DELTA, row, d, r, is_channel, weight, bias,
            length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
        b, c = load_b_and_c(t, DELTA, BM, CM, row, n, is_state, length, rank, N_STATES, ORDER_KIND)
        dt = softplus(raw) if SOFTPLUS else raw
        # Past the end the state stays as it is.
        gate = tl.where(is_step[:, None, None], tl.exp2(dt[:, :, None] * a2[None]), 1.0)
        h_all = states_of(gate, (dt * u)[:, :, None] * b[:, None, :], h, STEPS, ORDER_KIND)
        h = one_step(h_all, STEPS - 1, STEPS)
        y = (tl.sum(h_all * c[:, None, :], 2) + skip[None, :] * u).to(Y.dtype.element_ty)
        if IS_SUM:
            at = Y + (row * length + t)[:, None] * n_channels + d[None, :]
            tl.store(at, y, mask=is_step[:, None] & is_channel[None, :])
        else:
            at = channels_at(
                Y, row, batch, t, token, d, n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
            tl.store(at, y, mask=inside)
    if LAST is not None:
        at = LAST + (row * n_channels + d)[:, None] * N_STATES + n[None, :]
        tl.store(at, h, mask=in_state)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def chunks_backward_kernel(
    X, DELTA, BM, CM, A, DT_WEIGHT, BIAS, SKIP, ORDER, SETS, CHECKPOINTS, STARTS, GRAD_Y,
    GRAD_X, GRAD_DELTA, GRAD_B, GRAD_C, GRAD_A, GRAD_DT_WEIGHT, GRAD_BIAS, GRAD_SKIP,
    n_tokens, length, n_sequences, n_channels, rank,
    N_STATES: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, CHANNELS: tl.constexpr,
    STEPS: tl.constexpr, EVERY: tl.constexpr, ORDER_KIND: tl.constexpr, IS_SUM: tl.constexpr,
    SOFTPLUS: tl.constexpr, SHARING: tl.constexpr,
):  # fmt: skip
    """As `steps_backward_kernel`. The gradient of the state follows `g_t = dy_t C_t + gate_t+1
    g_t+1`: a scan from the end with the gates of the steps after."""
    block, row, sequence, batch = place_of_program(n_channels, n_sequences, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    is_channel, is_state = d < n_channels, n < N_STATES
    in_state = is_channel[:, None] & is_state[None, :]
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
    width = rank + 2 * N_STATES
    slice_offset = 0
    if SHARING == PARTIAL:
        n_rows = tl.num_programs(0) // tl.cdiv(n_channels, CHANNELS)
        of_slice = N_STATES if ORDER_KIND == ROWS else width
        slice_offset = block.to(tl.int64) * n_rows * length * of_slice
    if STARTS is not None:
        scratch = tl.program_id(0).to(tl.int64) * (EVERY // STEPS) * CHANNELS * STATES
        starts_at = STARTS + scratch + tl.arange(0, CHANNELS)[:, None] * STATES + n[None, :]

    grad_a = tl.zeros([CHANNELS, STATES], tl.float32)
    grad_bias = tl.zeros([CHANNELS], tl.float32)
    grad_skip = tl.zeros([CHANNELS], tl.float32)
    # Gradient of the state times the gate after it: what a tile passes to the one before.
    passed = tl.zeros([CHANNELS, STATES], tl.float32)
    n_chunks = tl.cdiv(length, EVERY)
    for chunks_done in range(n_chunks):
        chunk = n_chunks - 1 - chunks_done
        first = chunk * EVERY
        n_parts = tl.cdiv(tl.minimum(EVERY, length - first), STEPS)
        at = (row * (n_chunks - 1) + chunk - 1) * n_channels + d
        slots = CHECKPOINTS + at[:, None] * N_STATES + n[None, :]
        h = tl.load(slots, mask=in_state & (chunk > 0), other=0.0)
        if STARTS is not None:
            for part in range(n_parts - 1):
                tl.store(starts_at + part * CHANNELS * STATES, h)
                t = first + part * STEPS + tl.arange(0, STEPS)
                token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
                at_x = channels_at(
                    X, row, batch, t, token, d,
                    n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
                u = tl.load(at_x, mask=is_token[:, None] & is_channel[None, :], other=0.0)
                raw, _ = load_dt(
                    t, DELTA, row, d, r, is_channel, weight, bias,
                    length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
                b, _ = load_b_and_c(
                    t, DELTA, BM, CM, row, n, is_state,
                    length, rank, N_STATES, ORDER_KIND)  # fmt: skip
                dt = softplus(raw) if SOFTPLUS else raw
                gate = tl.exp2(dt[:, :, None] * a2[None])
                x = (dt * u.to(tl.float32))[:, :, None] * b[:, None, :]
                h = one_step(states_of(gate, x, h, STEPS, ORDER_KIND), STEPS - 1, STEPS)
            tl.store(starts_at + (n_parts - 1) * CHANNELS * STATES, h)
            # Other threads of this program may have written what a thread reads below.
            tl.debug_barrier()
        for parts_done in range(n_parts):
            part = n_parts - 1 - parts_done
            if STARTS is not None:
                h = tl.load(starts_at + part * CHANNELS * STATES)
            t = first + part * STEPS + tl.arange(0, STEPS)
            is_step = t < length
            in_steps = is_step[:, None] & is_channel[None, :]
            token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
            inside = is_token[:, None] & is_channel[None, :]
            at_x = channels_at(
                X, row, batch, t, token, d, n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
            u = tl.load(at_x, mask=inside, other=0.0).to(tl.float32)
            at_y = channels_at(
                GRAD_Y, row, batch, t, token, d,
                n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
            grad_y = tl.load(at_y, mask=inside, other=0.0).to(tl.float32)
            raw, factors = load_dt(
                t, DELTA, row, d, r, is_channel, weight, bias,
                length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
            b, c = load_b_and_c(
                t, DELTA, BM, CM, row, n, is_state, length, rank, N_STATES, ORDER_KIND)  # fmt: skip
            dt = softplus(raw) if SOFTPLUS else raw
            gate = tl.where(is_step[:, None, None], tl.exp2(dt[:, :, None] * a2[None]), 1.0)
            x = (dt * u)[:, :, None] * b[:, None, :]
            states = states_of(gate, x, h, STEPS, ORDER_KIND)
            # dt once more, one step on: moving the gates between threads would cost more.
            raw_next, _ = load_dt(
                t + 1, DELTA, row, d, r, is_channel, weight, bias,
                length, n_channels, rank, N_STATES, ORDER_KIND)  # fmt: skip
            dt_next = softplus(raw_next) if SOFTPLUS else raw_next
            is_inner = (tl.arange(0, STEPS) < STEPS - 1) & (t + 1 < length)
            gate_next = tl.where(
                is_inner[:, None, None], tl.exp2(dt_next[:, :, None] * a2[None]), 1.0)  # fmt: skip
            grad_h = grad_y[:, :, None] * c[:, None, :]
            is_last = (tl.arange(0, STEPS) == STEPS - 1)[:, None, None]
            grad_h = tl.where(is_last, grad_h + passed[None], grad_h)
            grad_h = scan_tile(gate_next, grad_h, STEPS, ORDER_KIND, True)
            passed = one_step(gate * grad_h, 0, STEPS)
            # gate * h before the step, without moving h between threads.
            of_gate = grad_h * (states - x)
            through_b = tl.sum(grad_h * b[:, None, :], 2)
            grad_dt = u * through_b + LN_2 * tl.sum(of_gate * a2[None], 2)
            if SOFTPLUS:
                grad_dt *= softplus_slope(raw)
            grad_dt = tl.where(is_step[:, None], grad_dt, 0.0)
            grad_a += tl.sum(tl.where(is_step[:, None], dt, 0.0)[:, :, None] * of_gate, 0)
            grad_bias += tl.sum(grad_dt, 0)
            grad_skip += tl.sum(grad_y * u, 0)
            grad_u = (dt * through_b + skip[None, :] * grad_y).to(GRAD_X.dtype.element_ty)
            if IS_SUM:
                of_x = GRAD_X + (row * length + t)[:, None] * n_channels + d[None, :]
                tl.store(of_x, grad_u, mask=in_steps)
            else:
                of_x = channels_at(
                    GRAD_X, row, batch, t, token, d,
                    n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
                tl.store(of_x, grad_u, mask=inside)
            grad_b = tl.sum((dt * u)[:, :, None] * grad_h, 1)
            grad_c = tl.sum(states * grad_y[:, :, None], 1)
            in_states = is_step[:, None] & is_state[None, :]
            if ORDER_KIND == ROWS:
                of_dt = GRAD_DELTA + (row * n_channels + d)[None, :] * length + t[:, None]
                tl.store(of_dt, grad_dt.to(GRAD_DELTA.dtype.element_ty), mask=in_steps)
                of_state = (row * N_STATES + n)[None, :] * length + t[:, None]
                store_shared(GRAD_B + of_state, grad_b, in_states, slice_offset, SHARING)
                store_shared(GRAD_C + of_state, grad_c, in_states, slice_offset, SHARING)
            else:
                grad_weight += tl.sum(grad_dt[:, :, None] * factors[:, None, :], 0)
                grad_factors = tl.sum(grad_dt[:, :, None] * weight[None, :, :], 1)
                in_rank = is_step[:, None] & (r < rank)[None, :]
                of_step = GRAD_DELTA + (row * length + t)[:, None] * width
                store_shared(of_step + r[None, :], grad_factors, in_rank, slice_offset, SHARING)
                of_b = of_step + rank + n[None, :]
                store_shared(of_b, grad_b, in_states, slice_offset, SHARING)
                store_shared(of_b + N_STATES, grad_c, in_states, slice_offset, SHARING)
        if STARTS is not None:
            # The next chunk overwrites STARTS.
            tl.debug_barrier()
    if ORDER_KIND != ROWS:
        # A = -exp(A_logs), so dA/dA_logs = A.
        grad_a = grad_a * a2 * LN_2
    at = row * n_channels + d
    tl.store(GRAD_A + at[:, None] * N_STATES + n[None, :], grad_a, mask=in_state)
    tl.store(GRAD_BIAS + at, grad_bias, mask=is_channel)
    tl.store(GRAD_SKIP + at, grad_skip, mask=is_channel)
    if RANK:
        at_weight = at[:, None] * rank + r[None, :]
        tl.store(GRAD_DT_WEIGHT + at_weight, grad_weight, mask=in_weight)
