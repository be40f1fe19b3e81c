"""Sixteen float32 lanes as a value inside numba functions.

LLVM's loop vectoriser needs proofs (no aliasing, known trip counts) that a scan over raw buffers
does not give it. Here the vectors are written down instead: each function below is one LLVM
instruction on `<16 x float>`, which the processor's back end splits where its registers are
narrower (AVX2, NEON). Addresses are plain integers in bytes; offsets count floats.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic, lower_builtin, models, register_model
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global

LANES = 16  # channels of one vector

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


def _masked_load(builder, pointer, n_valid):
    fn_type = ir.FunctionType(_VEC, [pointer.type, _I32, _MASK, _VEC])
    fn = builder.module.declare_intrinsic("llvm.masked.load.v16f32.p0", (), fn_type)
    zeros = ir.Constant(_VEC, [0.0] * LANES)
    return builder.call(fn, [pointer, _I32(4), _lane_mask(builder, n_valid), zeros])


def _masked_store(builder, pointer, n_valid, value):
    fn_type = ir.FunctionType(ir.VoidType(), [_VEC, pointer.type, _I32, _MASK])
    fn = builder.module.declare_intrinsic("llvm.masked.store.v16f32.p0", (), fn_type)
    builder.call(fn, [value, pointer, _I32(4), _lane_mask(builder, n_valid)])


def _is_full(builder, n_valid):
    return builder.icmp_signed(">=", n_valid, _I64(LANES))


@intrinsic
def load_first(typingctx, base, offset, n_valid):
    """The first `n_valid` floats, 0 in the other lanes; the rest of memory is not touched."""

    def codegen(context, builder, signature, args):
        pointer = _address(builder, *args[:2], _VEC)
        with builder.if_else(_is_full(builder, args[2]), likely=True) as (full, part):
            with full:
                whole, from_full = builder.load(pointer, align=4), builder.block
            with part:
                first, from_part = _masked_load(builder, pointer, args[2]), builder.block
        value = builder.phi(_VEC)
        value.add_incoming(whole, from_full)
        value.add_incoming(first, from_part)
        return value

    return f32x16(types.int64, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, base, offset, n_valid, value):
    """Write the first `n_valid` lanes; the rest of memory is not touched."""

    def codegen(context, builder, signature, args):
        pointer = _address(builder, *args[:2], _VEC)
        # Masked stores of AVX2 take tens of cycles on some processors; nearly all are full.
        with builder.if_else(_is_full(builder, args[2]), likely=True) as (full, part):
            with full:
                builder.store(args[3], pointer, align=4)
            with part:
                _masked_store(builder, pointer, args[2], args[3])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, f32x16), codegen


@intrinsic
def load_scalar(typingctx, base, offset):
    """One float."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(builder, *args, _F32), align=4)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def column(typingctx, table, number):
    """Entry `number` of a table of int64 at a byte address."""

    def codegen(context, builder, signature, args):
        place = builder.add(args[0], builder.shl(args[1], _I64(3)))
        return builder.load(builder.inttoptr(place, _I64.as_pointer()), align=8)

    return types.int64(types.int64, types.int64), codegen


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
def where_ordered(typingctx, a, yes, no):
    """`yes` in the lanes where a is a number, `no` where it is NaN."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("ord", args[0], args[0]), args[1], args[2])

    return f32x16(f32x16, f32x16, f32x16), codegen


def _as_bits(builder, value):
    return builder.bitcast(value, _IVEC)


def _all_lanes(bits: int) -> ir.Constant:
    return ir.Constant(_IVEC, [bits] * LANES)


@intrinsic
def clamp_exponent(typingctx, value):
    """`value` held to -127 .. 128, by comparing bits: +NaN becomes 128 and -NaN becomes -127.

    Whole-number units do this; the floating-point ones are the bottleneck of the scan.
    """

    def codegen(context, builder, signature, args):
        bits = _as_bits(builder, args[0])
        # The bits of negative floats, read without a sign, grow away from 0 and lie above all
        # others.
        lowest = _all_lanes(0xC2FE0000)
        bits = builder.select(builder.icmp_unsigned("<", bits, lowest), bits, lowest)
        highest = _all_lanes(0x43000000)
        bits = builder.select(builder.icmp_signed("<", bits, highest), bits, highest)
        return builder.bitcast(bits, _VEC)

    return f32x16(f32x16), codegen


@intrinsic
def scale_by_power(typingctx, value, shifted):
    """`value * 2**n`, n in the low bits of `shifted`, by adding to the exponent field."""

    def codegen(context, builder, signature, args):
        power = builder.shl(_as_bits(builder, args[1]), _all_lanes(23))
        return builder.bitcast(builder.add(_as_bits(builder, args[0]), power), _VEC)

    return f32x16(f32x16, f32x16), codegen


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


def _halve(builder, rows, width):
    """Add neighbours: half as many vectors, in which lane bit `width` tells the two apart."""
    low, high = _pair_masks(width)
    return [
        builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]


@intrinsic
def sum_quad(typingctx, a, b, c, d):
    """Quarter sums of four vectors: lane l holds lanes `l//4*4 .. +3` of vector `l % 4`, added."""

    def codegen(context, builder, signature, args):
        # Interleaving within groups of four lanes is what x86 unpacks in one cycle.
        quarters = [i for i in range(LANES) if i % 4 < 2]
        low = ir.Constant(_IVEC, [i + side * LANES for i in quarters for side in (0, 1)])
        high = ir.Constant(_IVEC, [i + 2 + side * LANES for i in quarters for side in (0, 1)])
        pairs = [
            builder.fadd(builder.shuffle_vector(x, y, low), builder.shuffle_vector(x, y, high))
            for x, y in (args[:2], args[2:])
        ]
        return _halve(builder, pairs, 2)[0]

    return f32x16(f32x16, f32x16, f32x16, f32x16), codegen


@intrinsic
def finish_sums(typingctx, base, offset):
    """Sums of sixteen vectors from four results of `sum_quad` that lie together, one per lane."""

    def codegen(context, builder, signature, args):
        first = builder.ptrtoint(_address(builder, *args, _VEC), _I64)
        quads = [
            builder.load(_address(builder, first, _I64(i * LANES), _VEC), align=4) for i in range(4)
        ]
        return _halve(builder, _halve(builder, quads, 4), 8)[0]

    return f32x16(types.int64, types.int64), codegen


@intrinsic
def transpose(typingctx, source, source_stride, n_rows, n_columns, target, target_stride, n_stored):
    """Transpose up to 16 x 16 floats between rows `source_stride` and `target_stride` floats apart.

    Reads `n_rows` rows of `n_columns`, writes `n_columns` rows of `n_stored` lanes; lanes of rows
    that were not read are 0.
    """

    def codegen(context, builder, signature, args):
        source, source_stride, n_rows, n_columns, target, target_stride, n_stored = args

        def row(base, stride, i):
            return _address(builder, base, builder.mul(stride, _I64(i)), _VEC)

        def valid(i, n, width):
            return builder.select(builder.icmp_signed("<", _I64(i), n), width, _I64(0))

        is_full = builder.and_(_is_full(builder, n_rows), _is_full(builder, n_columns))
        is_full = builder.and_(is_full, _is_full(builder, n_stored))
        with builder.if_else(is_full, likely=True) as (full, part):
            with full:
                rows = [builder.load(row(source, source_stride, i), align=4) for i in range(LANES)]
                for i, lanes in enumerate(_transposed(builder, rows)):
                    builder.store(lanes, row(target, target_stride, i), align=4)
            with part:
                rows = [
                    _masked_load(
                        builder, row(source, source_stride, i), valid(i, n_rows, n_columns)
                    )
                    for i in range(LANES)
                ]
                for i, lanes in enumerate(_transposed(builder, rows)):
                    place = row(target, target_stride, i)
                    _masked_store(builder, place, valid(i, n_columns, n_stored), lanes)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _transposed(builder, rows):
    """Columns of a square of lanes."""
    for width in (1, 2, 4, 8):
        low, high = _pair_masks(width)
        mixed = list(rows)
        for i in range(LANES):
            if not i & width:
                a, b = rows[i], rows[i + width]
                mixed[i] = builder.shuffle_vector(a, b, low)
                mixed[i + width] = builder.shuffle_vector(a, b, high)
        rows = mixed
    return rows


def _operator(function, instruction: str) -> None:
    """`a + b` and the like on lanes, typed and lowered directly: an overload compiles slower."""

    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and all(arg is f32x16 for arg in args):
                return signature(f32x16, f32x16, f32x16)
            return None

    @lower_builtin(function, f32x16, f32x16)
    def _lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")
