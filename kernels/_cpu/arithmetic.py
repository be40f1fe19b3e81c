"""exp2, exp and softplus of sixteen lanes, and how functions of this package are compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from kernels._cpu.simd import (
    at_least,
    at_most,
    clamp_exponent,
    fma,
    scale_by_power,
    splat,
    where_greater,
    where_ordered,
)

LOG2E = np.float32(1.4426950408889634)
LOG2E_TAIL = np.float32(1.4426950408889634 - float(np.float32(1.4426950408889634)))
LN2 = np.float32(0.6931471805599453)
# 1.5 * 2^23 rounds a small float to a whole number in its low bits.
_ROUND = np.float32(12582912.0)
# Minimax polynomials (relative error 9e-8 and 4e-9) with constant term 1: exp2 on [-1/2, 1/2] and
# artanh(s)/s in s^2 on [0, 1/9].
_EXP2 = tuple(
    np.float32(c)
    for c in (1.0, 0.693146977598494, 0.24022242084614315, 0.05550734, 0.009671512685, 0.0013264727)
)
_ARTANH = tuple(
    np.float32(c) for c in (1.0, 0.33333208142687887, 0.2001076362802921, 0.14000902, 0.14005994)
)
ZERO, ONE, TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LOWEST, _CUT, NAN = np.float32(-127.0), np.float32(20.0), np.float32(np.nan)


# Nothing calls these from Python, so they need none of the wrappers that would let it.
_FOR_PROGRAMS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
inlined = numba.njit(forceinline=True, **_FOR_PROGRAMS)
# Inner loops are not forced into the long function around them, where LLVM reloads every constant
# in every step; it may still inline those that are called from one place.
compiled = numba.njit(forceinline=False, **_FOR_PROGRAMS)


@inlined
def exp2(x):
    """2**x: exactly inf from 128, 0 (or a subnormal) below -126; of NaN inf, of -NaN 0."""
    x = clamp_exponent(x)
    shifted = x + splat(_ROUND)
    r = x - (shifted - splat(_ROUND))
    return scale_by_power(exp2_fraction(r), shifted)


@inlined
def exp2_fraction(r):
    p = fma(r, splat(_EXP2[5]), splat(_EXP2[4]))
    p = fma(p, r, splat(_EXP2[3]))
    p = fma(p, r, splat(_EXP2[2]))
    p = fma(p, r, splat(_EXP2[1]))
    return fma(p, r, splat(ONE))


@inlined
def exp(x):
    """e**x with the error of x * log2(e) carried along; NaN stays NaN."""
    scaled = x * splat(LOG2E)
    clamped = clamp_exponent(scaled)
    shifted = clamped + splat(_ROUND)
    whole = shifted - splat(_ROUND)
    tail = fma(x, splat(LOG2E), splat(ZERO) - scaled)
    tail = fma(x, splat(LOG2E_TAIL), tail)
    # The tail of a clamped (or infinite) argument means nothing.
    bound = splat(_LOWEST)
    tail = where_greater(bound * bound, scaled * scaled, tail, splat(ZERO))
    value = scale_by_power(exp2_fraction((clamped - whole) + tail), shifted)
    return where_ordered(x, value, x)


@inlined
def softplus(x):
    """log(1 + e**x) and its derivative; x itself and 1 above 20, as torch does."""
    zero, one, cut = splat(ZERO), splat(ONE), splat(_CUT)
    e = exp(at_most(x, zero - x))
    # log1p(e) = 2 artanh(e / (2 + e)), accurate however small e is; one division serves both
    # results.
    e1, e2 = one + e, splat(TWO) + e
    inverse = one / (e1 * e2)
    s = e * e1 * inverse
    z = s * s
    p = fma(z, splat(_ARTANH[4]), splat(_ARTANH[3]))
    p = fma(p, z, splat(_ARTANH[2]))
    p = fma(p, z, splat(_ARTANH[1]))
    p = fma(p, z, one)
    value = fma(s + s, p, at_least(x, zero))
    slope = where_greater(zero, x, e, one) * e2 * inverse
    return where_greater(x, cut, x, value), where_greater(x, cut, one, slope)
