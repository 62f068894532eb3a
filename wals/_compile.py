"""How kernels are compiled, and what LLVM can do that Numba has no name for: vectors and prefetch.

A vector is a value of `lanes(A)` adjacent numbers of an array A, as many as a register of the
processor holds. LLVM vectorises plain loops by itself, but it does not keep a tile of a matrix in
registers while other rows pass by. Without compilation a vector is a NumPy array.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_jitable, register_model

#: Sums may be reordered and contracted, so that they vectorise; NaN and infinity keep their
#: meaning.
_FASTMATH = ("reassoc", "contract", "nsz")
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": set(_FASTMATH)}
jit = njit(**_OPTIONS)
#: For functions that allocate nothing. Counting references to the arrays in a tuple takes longer
#: than to solve a short item.
jit_item = njit(**_OPTIONS, _nrt=False)
#: Inlined before LLVM sees them: it would keep calls in loops that are worth unrolling.
jit_inline = njit(**_OPTIONS, inline="always")
jit_parallel = njit(**_OPTIONS, parallel=True)

#: Bytes of a cache line, of which rows have a whole number: every vector fits.
LINE = 64


def _register_bytes():
    """Return the bytes of a vector register of the processor that code is compiled for."""
    features = config.CPU_FEATURES
    if features is None:
        try:
            wide = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
        except RuntimeError:  # unknown to LLVM
            wide = False
    else:
        wide = "+avx512f" in features
    return 64 if wide else 32


_REGISTER = _register_bytes()


@register_jitable
def whole_lines(n, A):
    """Return n, rounded up so that as many numbers of A fill whole cache lines."""
    numbers = LINE // A.itemsize
    return (n + numbers - 1) // numbers * numbers


class Vector(types.Type):
    """The type of a vector of numbers."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(f"Vector({dtype}, {count})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.count))


def _vector_of(array):
    return Vector(array.dtype, _REGISTER * 8 // array.dtype.bitwidth)


@intrinsic
def lanes(typingctx, A):
    """Return how many numbers of A a vector has: a constant, unlike what A.itemsize is to LLVM."""
    count = _vector_of(A).count

    def codegen(context, builder, signature, args):
        return context.get_constant(types.intp, count)

    return types.intp(A), codegen


def _spread(builder, number, vector):
    """Return a vector of this LLVM type, all of its numbers the same."""
    int32, undefined = ir.IntType(32), ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, int32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(int32, vector.count), None)
    )


def _pointer(context, builder, typ, array, typ_at, at):
    """Return the address of an element of an array, given one index or a tuple of them."""
    indices = cgutils.unpack_tuple(builder, at) if isinstance(typ_at, types.BaseTuple) else [at]
    types_at = list(typ_at) if isinstance(typ_at, types.BaseTuple) else [typ_at]
    indices = [
        context.cast(builder, index, typ, types.intp)
        for index, typ in zip(indices, types_at, strict=True)
    ]
    array = context.make_array(typ)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, typ, array, indices, wraparound=False)


@intrinsic
def load_as(typingctx, A, at, like):
    """Return the vector at A[at], its numbers converted to those of another array."""
    vector = _vector_of(like)

    def codegen(context, builder, signature, args):
        typ, typ_at, _ = signature.args
        stored = ir.VectorType(context.get_value_type(typ.dtype), vector.count)
        to = context.get_value_type(vector)
        pointer = _pointer(context, builder, typ, args[0], typ_at, args[1])
        pointer = builder.bitcast(pointer, stored.as_pointer())
        value = builder.load(pointer, align=typ.dtype.bitwidth // 8)
        if isinstance(typ.dtype, types.Integer):
            return builder.sitofp(value, to)
        if typ.dtype.bitwidth < vector.dtype.bitwidth:
            return builder.fpext(value, to)
        return value

    return vector(A, at, like), codegen


@intrinsic
def store(typingctx, vector, A, at):
    """Set A[at] and what follows to a vector."""

    def codegen(context, builder, signature, args):
        _, typ, typ_at = signature.args
        pointer = _pointer(context, builder, typ, args[1], typ_at, args[2])
        pointer = builder.bitcast(pointer, args[0].type.as_pointer())
        builder.store(args[0], pointer, align=typ.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(vector, A, at), codegen


@intrinsic
def fill(typingctx, number, like):
    """Return a vector of an array's numbers, all of them the same."""
    vector = _vector_of(like)

    def codegen(context, builder, signature, args):
        return _spread(builder, args[0], context.get_value_type(vector))

    return vector(like.dtype, like), codegen


@intrinsic
def multiply_add(typingctx, vector, factor, other):
    """Return vector + factor * other; the factor is a number or a vector."""
    is_vector = isinstance(factor, Vector)

    def codegen(context, builder, signature, args):
        vector, factor, other = args
        if not is_vector:
            factor = _spread(builder, factor, other.type)
        return builder.fadd(vector, builder.fmul(factor, other, flags=_FASTMATH), flags=_FASTMATH)

    return vector(vector, factor if is_vector else vector.dtype, other), codegen


@intrinsic
def total(typingctx, vector):
    """Return the sum of the numbers of a vector."""

    def codegen(context, builder, signature, args):
        (value,) = args
        while value.type.count > 1:
            half, undefined = value.type.count // 2, ir.Constant(value.type, ir.Undefined)
            mask = ir.VectorType(ir.IntType(32), half)
            low, high = (
                builder.shuffle_vector(
                    value, undefined, ir.Constant(mask, list(range(first, first + half)))
                )
                for first in (0, half)
            )
            value = builder.fadd(low, high, flags=_FASTMATH)
        return builder.extract_element(value, ir.IntType(32)(0))

    return vector.dtype(vector), codegen


@intrinsic
def prefetch(typingctx, array, i, j):
    """Ask for the cache line of array[i, j], which is read soon."""

    def codegen(context, builder, signature, args):
        typ, int32 = signature.args[0], ir.IntType(32)
        array = context.make_array(typ)(context, builder, args[0])
        at = cgutils.get_item_pointer(context, builder, typ, array, args[1:], wraparound=False)
        at = builder.bitcast(at, ir.IntType(8).as_pointer())
        signature = ir.FunctionType(ir.VoidType(), [at.type, int32, int32, int32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [at.type], signature)
        to_read, to_second_level, data = int32(0), int32(2), int32(1)
        builder.call(function, [at, to_read, to_second_level, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


if config.DISABLE_JIT:

    def lanes(A):
        return _REGISTER // A.itemsize

    def load_as(A, at, like):
        *row, first = at if isinstance(at, tuple) else (at,)
        return A[(*row, slice(first, first + lanes(like)))].astype(like.dtype)

    def store(vector, A, at):
        *row, first = at if isinstance(at, tuple) else (at,)
        A[(*row, slice(first, first + vector.size))] = vector

    def fill(number, like):
        return np.full(lanes(like), number, like.dtype)

    def multiply_add(vector, factor, other):
        return vector + factor * other

    def total(vector):
        return vector.sum()

    def prefetch(array, i, j):
        pass


@jit_inline
def load(A, at):
    """Return the vector at A[at]."""
    return load_as(A, at, A)
