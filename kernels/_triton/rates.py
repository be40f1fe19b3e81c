"""A kernel that does nothing but exponentials: the rate of a GPU's special-function units."""

from __future__ import annotations

import triton
import triton.language as tl

# exp2 of each number in one turn of the loop: its counter and its jump cost next to nothing.
UNROLLED = tl.constexpr(32)


@triton.jit
def exponentials_kernel(X, Y, n_turns, BLOCK: tl.constexpr):
    """`x -> 2^-x`, `UNROLLED * n_turns` times in registers; X, Y `[programs * BLOCK]` float32.

    Numbers between 0 and 1 stay there and go to the fixed point 0.641, so that nothing overflows
    and each exponential needs the one before: none can be left out.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + at)
    for _ in range(n_turns):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)
    tl.store(Y + at, x)
