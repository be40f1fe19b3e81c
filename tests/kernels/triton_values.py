"""A kernel that evaluates the functions of `kernels/_triton/device.py` on 1024 values."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton.device import softplus, softplus_slope


@triton.jit
def values_kernel(X, Y, SLOPE):
    i = tl.arange(0, 1024)
    x = tl.load(X + i)
    tl.store(Y + i, softplus(x))
    tl.store(SLOPE + i, softplus_slope(x))
