"""Small kernels that the tests of `kernels.compiled` compile by this module's name."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decay_kernel(X, A, Y, length, N: tl.constexpr, CHANNELS: tl.constexpr):
    """A scan with one exponential per state and step; X, Y `[length, CHANNELS]`."""
    channel = tl.arange(0, CHANNELS)
    a = tl.load(A + channel[:, None] * N + tl.arange(0, N)[None, :])
    h = tl.zeros([CHANNELS, N], tl.float32)
    for t in range(length):
        x = tl.load(X + t * CHANNELS + channel).to(tl.float32)
        h = tl.exp2(x[:, None] * a) * h + x[:, None]
        tl.store(Y + t * CHANNELS + channel, tl.sum(h, 1).to(Y.dtype.element_ty))


@triton.jit
def decay_once_kernel(X, A, Y, length, N: tl.constexpr, CHANNELS: tl.constexpr):
    """The exponential stands before the loop."""
    channel = tl.arange(0, CHANNELS)
    a = tl.exp2(tl.load(A + channel[:, None] * N + tl.arange(0, N)[None, :]))
    h = tl.zeros([CHANNELS, N], tl.float32)
    for t in range(length):
        x = tl.load(X + t * CHANNELS + channel).to(tl.float32)
        h = a * h + x[:, None]
        tl.store(Y + t * CHANNELS + channel, tl.sum(h, 1).to(Y.dtype.element_ty))


@triton.jit
def wrong_kernel(X, A, Y, length, N: tl.constexpr, CHANNELS: tl.constexpr):
    """Does not compile: the two shapes do not fit each other."""
    x = tl.load(X + tl.arange(0, CHANNELS))
    tl.store(Y + tl.arange(0, N), x + tl.arange(0, N) + length + tl.load(A))
