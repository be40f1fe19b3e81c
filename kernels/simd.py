"""Sixteen float32 lanes as a value inside numba functions.

LLVM's loop vectoriser needs proofs (no aliasing, known trip counts) that a scan over raw buffers does
not give it. Here the vectors are written down instead: each function below is one LLVM instruction on
`<16 x float>`, which the processor's back end splits where its registers are narrower (AVX2, NEON).
Addresses are plain integers in bytes; offsets count floats.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic, models, overload, register_model

LANES = 16

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VEC = ir.VectorType(_F32, LANES)
_IVEC = ir.VectorType(_I32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16 = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VEC)


def _splat(builder, scalar, vector_type):
    lane0 = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(_IVEC, [0] * LANES)
    return builder.shuffle_vector(lane0, ir.Constant(vector_type, ir.Undefined), zeros)


def _address(builder, base, offset, pointee):
    """Pointer to float number `offset` after the byte address `base`."""
    place = builder.add(base, builder.shl(offset, _I64(2)))
    return builder.inttoptr(place, pointee.as_pointer())


@intrinsic
def splat(typingctx, value):
    """The scalar in all lanes."""

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0], _VEC)

    return f32x16(types.float32), codegen


@intrinsic
def load(typingctx, base, offset):
    """Sixteen floats that lie together."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(builder, *args, _VEC), align=4)

    return f32x16(types.int64, types.int64), codegen


@intrinsic
def store(typingctx, base, offset, value):
    """Write sixteen floats that lie together."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(builder, *args[:2], _VEC), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, f32x16), codegen


def _lane_mask(builder, n_valid):
    lanes = ir.Constant(_IVEC, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(n_valid, _I32), _IVEC))


@intrinsic
def load_first(typingctx, base, offset, n_valid):
    """The first `n_valid` floats, 0 in the other lanes; the rest of memory is not touched."""

    def codegen(context, builder, signature, args):
        pointer = _address(builder, *args[:2], _VEC)
        fn_type = ir.FunctionType(_VEC, [pointer.type, _I32, _MASK, _VEC])
        fn = builder.module.declare_intrinsic("llvm.masked.load.v16f32.p0", (), fn_type)
        zeros = ir.Constant(_VEC, [0.0] * LANES)
        return builder.call(fn, [pointer, _I32(4), _lane_mask(builder, args[2]), zeros])

    return f32x16(types.int64, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, base, offset, n_valid, value):
    """Write the first `n_valid` lanes; the rest of memory is not touched."""

    def codegen(context, builder, signature, args):
        pointer = _address(builder, *args[:2], _VEC)
        fn_type = ir.FunctionType(ir.VoidType(), [_VEC, pointer.type, _I32, _MASK])
        fn = builder.module.declare_intrinsic("llvm.masked.store.v16f32.p0", (), fn_type)
        builder.call(fn, [args[3], pointer, _I32(4), _lane_mask(builder, args[2])])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, f32x16), codegen


@intrinsic
def load_scalar(typingctx, base, offset):
    """One float."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(builder, *args, _F32), align=4)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def store_scalar(typingctx, base, offset, value):
    """Write one float."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(builder, *args[:2], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def load_int(typingctx, base, offset):
    """One int32, as int64; `offset` counts int32."""

    def codegen(context, builder, signature, args):
        return builder.sext(builder.load(_address(builder, *args, _I32), align=4), _I64)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """`a * b + c` with one rounding."""

    def codegen(context, builder, signature, args):
        fn = builder.module.declare_intrinsic(
            "llvm.fma.v16f32", (), ir.FunctionType(_VEC, [_VEC, _VEC, _VEC])
        )
        return builder.call(fn, args)

    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def at_least(typingctx, value, bound):
    """Larger of the two per lane; NaN in `value` stays NaN."""

    def codegen(context, builder, signature, args):
        value, bound = args
        return builder.select(builder.fcmp_ordered("<", value, bound), bound, value)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def at_most(typingctx, value, bound):
    """Smaller of the two per lane; NaN in `value` stays NaN."""

    def codegen(context, builder, signature, args):
        value, bound = args
        return builder.select(builder.fcmp_ordered(">", value, bound), bound, value)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def where_greater(typingctx, a, b, yes, no):
    """`yes` in the lanes where a > b, else `no` (also where a or b is NaN)."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return f32x16(f32x16, f32x16, f32x16, f32x16), codegen


@intrinsic
def shift_bits_left_23(typingctx, value):
    """The lanes' bits moved from the low end into a float's exponent field."""

    def codegen(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], _IVEC), ir.Constant(_IVEC, [23] * LANES))
        return builder.bitcast(bits, _VEC)

    return f32x16(f32x16), codegen


@intrinsic
def fetch_and_add(typingctx, address, amount):
    """Add to the int64 at a byte address atomically; returns what was there before."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


def _pair_masks(width: int) -> tuple[ir.Constant, ir.Constant]:
    """Masks that put lanes with bit `width` clear, then set, of two vectors side by side."""
    low = [i if not i & width else i - width + LANES for i in range(LANES)]
    high = [i + width if not i & width else i + LANES for i in range(LANES)]
    return ir.Constant(_IVEC, low), ir.Constant(_IVEC, high)


def _rows(builder, base, count):
    return [
        builder.load(_address(builder, base, _I64(i * LANES), _VEC), align=4) for i in range(count)
    ]


@intrinsic
def row_sums(typingctx, base):
    """Sums of the sixteen rows of a 16 x 16 tile of floats at a byte address, one per lane."""

    def codegen(context, builder, signature, args):
        rows = _rows(builder, args[0], LANES)
        width = 1
        while len(rows) > 1:
            low, high = _pair_masks(width)
            rows = [
                builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
            width *= 2
        return rows[0]

    return f32x16(types.int64), codegen


@intrinsic
def transpose_tile(typingctx, source, source_stride, target, target_stride):
    """Transpose 16 x 16 floats; strides count floats between rows."""

    def codegen(context, builder, signature, args):
        source, source_stride, target, target_stride = args
        rows = [
            builder.load(
                _address(builder, source, builder.mul(source_stride, _I64(i)), _VEC), align=4
            )
            for i in range(LANES)
        ]
        for width in (1, 2, 4, 8):
            low, high = _pair_masks(width)
            mixed = list(rows)
            for i in range(LANES):
                if not i & width:
                    a, b = rows[i], rows[i + width]
                    mixed[i] = builder.shuffle_vector(a, b, low)
                    mixed[i + width] = builder.shuffle_vector(a, b, high)
            rows = mixed
        for i in range(LANES):
            place = _address(builder, target, builder.mul(target_stride, _I64(i)), _VEC)
            builder.store(rows[i], place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


def _binary(name: str):
    @intrinsic
    def apply(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args)

        return f32x16(f32x16, f32x16), codegen

    return apply


_add, _sub, _mul, _div = (_binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


def _operator(function, apply):
    @overload(function)
    def implementation(a, b):
        if a is f32x16 and b is f32x16:
            return lambda a, b: apply(a, b)
        return None


_operator(operator.add, _add)
_operator(operator.sub, _sub)
_operator(operator.mul, _mul)
_operator(operator.truediv, _div)
