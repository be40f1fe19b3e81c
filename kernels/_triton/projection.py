"""The projection of tokens to (dt, B, C) along an order, its gradients, and the sum over visits.

Tokens are read through the order, so no gathered copy of the map is ever made. Products run on
tensor cores in 16 bits with float32 sums; float32 stays float32 ("ieee"), never TF32. Values are
rounded to ROUNDED and multiplied as FACTOR, the same dtype on a GPU: the interpreter knows no
products of bfloat16 and takes float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton.device import load_walk, token_of

NOT_SPECIALIZED = ["n_tokens", "length", "n_sequences", "width", "n_parts", "batch_size"]


@triton.jit
def load_tokens(X, row_batch, t, c, walk, ORDER, sequence, n_tokens, length, n_channels,
                ORDER_KIND: tl.constexpr):  # fmt: skip
    """Tokens of steps `t` `[T, C]`, 0 at pads; where they lie, and which are tokens."""
    token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
    at = (row_batch * n_tokens + token)[:, None] * n_channels + c[None, :]
    inside = is_token[:, None] & (c < n_channels)[None, :]
    return tl.load(X + at, mask=inside, other=0.0), at, inside


@triton.jit
def as_type(value, TYPE: tl.constexpr):
    """`value` in the type that is named as in `KernelConfig`."""
    if TYPE == "bf16":
        result = value.to(tl.bfloat16)
    elif TYPE == "fp16":
        result = value.to(tl.float16)
    else:
        result = value.to(tl.float32)
    return result


@triton.jit
def two_factors(value, ROUNDED: tl.constexpr, FACTOR: tl.constexpr):
    """A float32 value as two of ROUNDED, the second what the first leaves out: 16 bits of a product
    would be the largest error of all, and tensor cores have time to spare."""
    rounded = as_type(value, ROUNDED)
    left = as_type(value.to(tl.float32) - rounded.to(tl.float32), ROUNDED)
    return as_type(rounded, FACTOR), as_type(left, FACTOR)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def project_kernel(
    X, WEIGHT, ORDER, SETS, PROJECTED,
    n_tokens, length, n_sequences, n_channels, width,
    WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, ORDER_KIND: tl.constexpr,
    IS_SPLIT: tl.constexpr, ROUNDED: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """PROJECTED `[B, K, L, P]` = X `[B, T, C]` along the order times WEIGHT `[S, P, C]`."""
    n_blocks = tl.cdiv(length, STEPS)
    program = tl.program_id(0)
    row = (program // n_blocks).to(tl.int64)
    sequence, batch = row % n_sequences, row // n_sequences
    t = (program % n_blocks) * STEPS + tl.arange(0, STEPS)
    p = tl.arange(0, WIDTH)
    walk = load_walk(ORDER, sequence, ORDER_KIND)
    set_ = tl.load(SETS + sequence).to(tl.int64)
    total = tl.zeros([STEPS, WIDTH], tl.float32)
    for start in range(0, n_channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        x, _, _ = load_tokens(
            X, batch, t, c, walk, ORDER, sequence,
            n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
        at = (set_ * width + p)[None, :] * n_channels + c[:, None]
        inside = (p < width)[None, :] & (c < n_channels)[:, None]
        x = as_type(x, FACTOR)
        weight = tl.load(WEIGHT + at, mask=inside, other=0.0)
        weight, left = two_factors(weight, ROUNDED, FACTOR)
        total = tl.dot(x, weight, total, input_precision="ieee")
        if IS_SPLIT:
            total = tl.dot(x, left, total, input_precision="ieee")
    at = (row * length + t)[:, None] * width + p[None, :]
    inside = (t < length)[:, None] & (p < width)[None, :]
    tl.store(PROJECTED + at, total.to(PROJECTED.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def project_back_kernel(
    GRAD_PROJECTED, WEIGHT, ORDER, SETS, GRAD_X,
    n_tokens, length, n_sequences, n_channels, width,
    WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, ORDER_KIND: tl.constexpr,
    IS_SPLIT: tl.constexpr, ROUNDED: tl.constexpr, FACTOR: tl.constexpr, IS_SUM: tl.constexpr,
):  # fmt: skip
    """Add GRAD_PROJECTED `[B, K, L, P]` times WEIGHT to GRAD_X, `[B, T, C]` or (IS_SUM) `[B, K,
    L, C]`; a token is read at most once in the first case, so no two programs meet."""
    n_blocks, n_slabs = tl.cdiv(length, STEPS), tl.cdiv(n_channels, CHANNELS)
    program = tl.program_id(0)
    row = (program // (n_blocks * n_slabs)).to(tl.int64)
    sequence, batch = row % n_sequences, row // n_sequences
    t = (program // n_slabs % n_blocks) * STEPS + tl.arange(0, STEPS)
    c = (program % n_slabs) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, WIDTH)
    walk = load_walk(ORDER, sequence, ORDER_KIND)
    set_ = tl.load(SETS + sequence).to(tl.int64)
    at = (row * length + t)[:, None] * width + p[None, :]
    inside = (t < length)[:, None] & (p < width)[None, :]
    grad = tl.load(GRAD_PROJECTED + at, mask=inside, other=0.0)
    at = (set_ * width + p)[:, None] * n_channels + c[None, :]
    inside = (p < width)[:, None] & (c < n_channels)[None, :]
    weight = tl.load(WEIGHT + at, mask=inside, other=0.0)
    grad, grad_left = two_factors(grad, ROUNDED, FACTOR)
    weight, weight_left = two_factors(weight, ROUNDED, FACTOR)
    through = tl.dot(grad, weight, input_precision="ieee")
    if IS_SPLIT:
        through = tl.dot(grad_left, weight, through, input_precision="ieee")
        through = tl.dot(grad, weight_left, through, input_precision="ieee")
    if IS_SUM:
        at = (row * length + t)[:, None] * n_channels + c[None, :]
        inside = (t < length)[:, None] & (c < n_channels)[None, :]
    else:
        token, is_token = token_of(t, walk, ORDER, sequence, length, ORDER_KIND)
        at = (batch * n_tokens + token)[:, None] * n_channels + c[None, :]
        inside = is_token[:, None] & (c < n_channels)[None, :]
    through += tl.load(GRAD_X + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(GRAD_X + at, through.to(GRAD_X.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def project_weight_kernel(
    X, GRAD_PROJECTED, ORDER, GRAD_WEIGHT,
    n_tokens, length, n_sequences, n_channels, width, batch_size, n_parts,
    WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, ORDER_KIND: tl.constexpr,
    IS_SPLIT: tl.constexpr, ROUNDED: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """GRAD_WEIGHT `[parts, K, P, C]`: every part sums its share of the (batch, steps) blocks."""
    n_slabs = tl.cdiv(n_channels, CHANNELS)
    program = tl.program_id(0)
    part = program // (n_slabs * n_sequences)
    sequence = (program // n_slabs % n_sequences).to(tl.int64)
    c = (program % n_slabs) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, WIDTH)
    walk = load_walk(ORDER, sequence, ORDER_KIND)
    n_blocks = tl.cdiv(length, STEPS)
    total = tl.zeros([WIDTH, CHANNELS], tl.float32)
    for block in range(part, batch_size * n_blocks, n_parts):
        batch = (block // n_blocks).to(tl.int64)
        t = (block % n_blocks) * STEPS + tl.arange(0, STEPS)
        x, _, _ = load_tokens(
            X, batch, t, c, walk, ORDER, sequence,
            n_tokens, length, n_channels, ORDER_KIND)  # fmt: skip
        row = batch * n_sequences + sequence
        at = (row * length + t)[None, :] * width + p[:, None]
        inside = (t < length)[None, :] & (p < width)[:, None]
        grad = tl.load(GRAD_PROJECTED + at, mask=inside, other=0.0)
        grad, left = two_factors(grad, ROUNDED, FACTOR)
        x = as_type(x, FACTOR)
        total = tl.dot(grad, x, total, input_precision="ieee")
        if IS_SPLIT:
            total = tl.dot(left, x, total, input_precision="ieee")
    at = ((part * n_sequences + sequence) * width + p)[:, None] * n_channels + c[None, :]
    tl.store(GRAD_WEIGHT + at, total, mask=(p < width)[:, None] & (c < n_channels)[None, :])


@triton.jit(do_not_specialize=["n_tokens", "n_steps", "n_visits"])
def merge_kernel(
    PER_STEP, VISITS, OUT, n_tokens, n_steps, n_channels, n_visits,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """OUT `[B, T, C]`: for every token the sum of its visits in PER_STEP `[B, K*L, C]`, in the
    order of VISITS `[V, T]`: the same in every run."""
    n_blocks, n_slabs = tl.cdiv(n_tokens, TOKENS), tl.cdiv(n_channels, CHANNELS)
    program = tl.program_id(0)
    batch = (program // (n_blocks * n_slabs)).to(tl.int64)
    token = (program // n_slabs % n_blocks) * TOKENS + tl.arange(0, TOKENS)
    c = (program % n_slabs) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (token < n_tokens)[:, None] & (c < n_channels)[None, :]
    total = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for visit in range(n_visits):
        at_visit = VISITS + visit * n_tokens + token
        step = tl.load(at_visit, mask=token < n_tokens, other=-1)
        at = (batch * n_steps + step)[:, None] * n_channels + c[None, :]
        total += tl.load(PER_STEP + at, mask=inside & (step >= 0)[:, None], other=0.0)
    at = (batch * n_tokens + token)[:, None] * n_channels + c[None, :]
    tl.store(OUT + at, total.to(OUT.dtype.element_ty), mask=inside)
