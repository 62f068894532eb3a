"""How kernels are compiled, and what LLVM can do that Numba has no name for: vectors.

A vector is a value of `lanes(A)` adjacent numbers of an array A, as many as a register of the
processor holds, or of eight. LLVM vectorises plain loops by itself, but it does not keep a tile of
a matrix in registers while other rows pass by, and it checks in front of every loop whether arrays
overlap. Vectors are added, subtracted and multiplied as NumPy arrays are, which they are without
compilation.
"""

import math
import operator

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_jitable,
    register_model,
    type_callable,
)

from .cache import keep

#: Sums may be reordered and contracted, so that they vectorise; NaN and infinity keep their
#: meaning.
_FASTMATH = ("reassoc", "contract", "nsz")
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": set(_FASTMATH),
    "no_cfunc_wrapper": True,
}


class _Linked(JITCodeLibrary):
    """LLVM's code of a building block: it is optimised, and made machine code, with its callers.

    To do so for itself as well, as Numba would, takes a third of all the time of compilation.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _BuildingBlock(Compiler):
    """Compiles what only compiled code calls."""

    def __init__(self, typing, target, library, args, return_type, flags, local):
        flags.no_compile = True
        library = _Linked(target.codegen(), "building block")
        super().__init__(typing, target, library, args, return_type, flags, local)

    def _compile_bytecode(self):
        result = super()._compile_bytecode()
        # What compiled code knows it by, and Python calls. It has to be a built-in function, of its
        # own; this one has the right signature, and raises TypeError.
        name = {}.update
        self.state.targetctx.insert_user_function(name, result.fndesc, [result.library])
        return result._replace(entry_point=name)


#: For what no Python code calls: what Python needs to hand arrays over takes as long to compile as
#: a short function. `callable_from_python` is for tests.
_INTERNAL = {**_OPTIONS, "no_cpython_wrapper": True, "pipeline_class": _BuildingBlock}
#: For building blocks, which are compiled with every kernel that calls them.
jit = njit(**_INTERNAL)
#: Inlined before LLVM sees them: it would keep calls in loops that are worth unrolling. They are
#: compiled once for each call, as a part of the function that calls them.
jit_inline = njit(**_INTERNAL, inline="always")
#: For functions of tuples. Counting references to the arrays in one takes longer than to solve a
#: short item; without, nothing can be allocated.
jit_item = njit(**_INTERNAL, _nrt=False)
#: What `taken` counts: shards that have been taken, and threads that have begun.
SHARD, THREAD = 0, 1


def callable_from_python(function):
    """Return a building block, compiled so that Python can call it."""
    return njit(**_OPTIONS)(function.py_func) if hasattr(function, "py_func") else function


def kernel(function):
    """Compile what Python calls, with all that it calls, and keep the machine code.

    A kernel takes ``team, taken, shards`` and more. It begins with ::

        if team:
            in_threads(team, *this_call())
            return
        s = take(taken, SHARD)
        while s < len(shards):
            ...  # what is done for shards[s, 0] to shards[s, 1]
            s = take(taken, SHARD)

    so that each of its threads takes the next shard when it is done with one. It allocates nothing.
    """
    return keep(njit(**_OPTIONS, _nrt=False)(function))


@intrinsic
def this_call(typingctx):
    """Return addresses of code and data that call the function that this is in once more.

    With the same arguments, but for the first, which is 0. Nothing is compiled twice for that.
    """

    def codegen(context, builder, signature, args):
        function, int32 = builder.function, ir.IntType(32)
        # The first two are where Numba returns a value and an error.
        arguments = [*function.args[:2], function.args[2].type(0), *function.args[3:]]
        frame_type = ir.LiteralStructType([argument.type for argument in arguments])
        frame = cgutils.alloca_once(builder, frame_type)
        for place, argument in enumerate(arguments):
            builder.store(argument, builder.gep(frame, [int32(0), int32(place)]))
        function.attributes.add("noinline")

        again_type = ir.FunctionType(ir.VoidType(), [_ADDRESS])
        again = ir.Function(builder.module, again_type, f"{function.name}.again")
        again.linkage = "internal"
        inner = ir.IRBuilder(again.append_basic_block())
        frame_again = inner.bitcast(again.args[0], frame_type.as_pointer())
        arguments = [
            inner.alloca(argument.type.pointee)
            if place < 2
            else inner.load(inner.gep(frame_again, [int32(0), int32(place)]))
            for place, argument in enumerate(arguments)
        ]
        inner.call(function, arguments)
        inner.ret_void()
        addresses = [builder.ptrtoint(a, ir.IntType(64)) for a in (again, frame)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(), codegen


_ADDRESS = ir.IntType(8).as_pointer()
#: Bytes of a cache line, of which rows have a whole number: every vector fits.
LINE = 64


def _register_bytes():
    """Return `REGISTER`."""
    features = config.CPU_FEATURES
    if features is None:
        try:
            wide = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
        except RuntimeError:  # unknown to LLVM
            wide = False
    else:
        wide = "+avx512f" in features
    return 64 if wide else 32


#: Bytes of a vector register of the processor that code is compiled for.
REGISTER = _register_bytes()


@register_jitable
def whole_lines(n, A):
    """Return n, rounded up so that as many numbers of A fill whole cache lines."""
    numbers = LINE // A.itemsize
    return (n + numbers - 1) // numbers * numbers


def empty_lines(shape, dtype):
    """Return an empty C-contiguous array that starts where a cache line does.

    NumPy's own start anywhere; a vector that is in two lines is read half as fast.
    """
    size = math.prod(shape)
    room = np.empty(size + LINE, dtype)
    first = -room.__array_interface__["data"][0] % LINE // room.itemsize
    return room[first : first + size].reshape(shape)


def constant(array, dtype=None):
    """Return the array as kernels take it: aligned, C-contiguous and read-only."""
    array = np.asarray(array, dtype, order="C").view()
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


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
    return Vector(array.dtype, REGISTER * 8 // array.dtype.bitwidth)


@intrinsic
def lanes(typingctx, A):
    """Return how many numbers of A a vector has: a constant, unlike what A.itemsize is to LLVM."""
    count = _vector_of(A).count

    def codegen(context, builder, signature, args):
        return context.get_constant(types.intp, count)

    return types.intp(A), codegen


@intrinsic
def lanes_of_line(typingctx, A):
    """Return how many numbers of A a cache line has: a constant, as `lanes` is."""
    count = LINE * 8 // A.dtype.bitwidth

    def codegen(context, builder, signature, args):
        return context.get_constant(types.intp, count)

    return types.intp(A), codegen


@intrinsic
def least(typingctx, a, b):
    """Return the smaller of two integers: what `min` takes longer to compile."""

    def codegen(context, builder, signature, args):
        a, b = (
            context.cast(builder, value, typ, types.int64)
            for value, typ in zip(args, signature.args, strict=True)
        )
        return builder.select(builder.icmp_signed("<", a, b), a, b)

    return types.int64(a, b), codegen


@intrinsic
def epsilon(typingctx, A):
    """Return the relative precision of the numbers of A: what np.finfo takes longer to compile."""
    value = np.finfo(np.dtype(str(A.dtype))).eps

    def codegen(context, builder, signature, args):
        return context.get_constant(A.dtype, float(value))

    return A.dtype(A), codegen


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


def _load(context, builder, signature, args):
    """Load the vector that the signature returns, its numbers converted."""
    typ, typ_at, *_ = signature.args
    vector = signature.return_type
    to = context.get_value_type(vector)
    stored = ir.VectorType(context.get_value_type(typ.dtype), vector.count)
    pointer = _pointer(context, builder, typ, args[0], typ_at, args[1])
    pointer = builder.bitcast(pointer, stored.as_pointer())
    value = builder.load(pointer, align=typ.dtype.bitwidth // 8)
    if isinstance(typ.dtype, types.Integer):
        return builder.sitofp(value, to)
    if typ.dtype.bitwidth < vector.dtype.bitwidth:
        return builder.fpext(value, to)
    return value


@intrinsic
def load(typingctx, A, at):
    """Return the vector at A[at]."""
    return _vector_of(A)(A, at), _load


@intrinsic
def load_as(typingctx, A, at, like):
    """Return the vector at A[at], its numbers converted to those of another array."""
    return _vector_of(like)(A, at, like), _load


@intrinsic
def load_eight(typingctx, A, at):
    """Return eight numbers from A[at] on."""
    return Vector(A.dtype, 8)(A, at), _load


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
def prefetch(typingctx, A, at):
    """Ask for the cache line of A[at], which is read soon."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, A, args[0], at, args[1])
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        int32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, int32, int32, int32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        to_read, to_first_level, data = int32(0), int32(3), int32(1)
        builder.call(call, [pointer, to_read, to_first_level, data])
        return context.get_dummy_value()

    return types.void(A, at), codegen


@intrinsic
def take(typingctx, counts, at):
    """Return counts[at], and add one to it before any other thread can read it."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, counts, args[0], types.intp, args[1])
        one = context.get_constant(counts.dtype, 1)
        return builder.atomic_rmw("add", pointer, one, "monotonic")

    return counts.dtype(counts, types.intp), codegen


def _fill(context, builder, signature, args):
    """Spread a number over the vector that the signature returns."""
    return _spread(builder, args[0], context.get_value_type(signature.return_type))


@intrinsic
def fill(typingctx, number, like):
    """Return a vector of an array's numbers, all of them the same."""
    return _vector_of(like)(like.dtype, like), _fill


@intrinsic
def fill_eight(typingctx, number, like):
    """Return eight of an array's numbers, all of them the same."""
    return Vector(like.dtype, 8)(like.dtype, like), _fill


def _define(operation, instruction):
    """Let kernels use an operation between vectors, or a vector and a number."""

    @type_callable(operation)
    def type_operation(context):
        def typer(a, b):
            return next((operand for operand in (a, b) if isinstance(operand, Vector)), None)

        return typer

    def lower(context, builder, signature, args):
        vector = signature.return_type
        operands = [
            arg
            if isinstance(typ, Vector)
            else _spread(
                builder,
                context.cast(builder, arg, typ, vector.dtype),
                context.get_value_type(vector),
            )
            for arg, typ in zip(args, signature.args, strict=True)
        ]
        return getattr(builder, instruction)(*operands, flags=_FASTMATH)

    for types_of in ((Vector, Vector), (types.Number, Vector), (Vector, types.Number)):
        lower_builtin(operation, *types_of)(lower)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


@intrinsic
def widen(typingctx, vector):
    """Return the vector in float64."""
    wide = Vector(types.float64, vector.count)

    def codegen(context, builder, signature, args):
        if vector == wide:
            return args[0]
        return builder.fpext(args[0], context.get_value_type(wide))

    return wide(vector), codegen


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
def totals(typingctx, vectors):
    """Return the sums of eight vectors in one: of halves of two, quarters of four, and so on."""

    def codegen(context, builder, signature, args):
        values, int32 = cgutils.unpack_tuple(builder, args[0]), ir.IntType(32)

        def pick(a, b, lanes):
            mask = ir.Constant(ir.VectorType(int32, len(lanes)), lanes)
            return builder.shuffle_vector(a, b, mask)

        def pairs():
            return zip(values[::2], values[1::2], strict=True)

        part = values[0].type.count  # numbers of a sum that are still to be added
        while part > 1:
            part //= 2
            if len(values) == 1:
                values *= 2
                lanes = range(values[0].type.count)
            else:
                lanes = range(2 * values[0].type.count)
            low = [lane for lane in lanes if lane // part % 2 == 0]
            high = [lane + part for lane in low]
            values = [
                builder.fadd(pick(a, b, low), pick(a, b, high), flags=_FASTMATH) for a, b in pairs()
            ]
        while len(values) > 1:
            lanes = list(range(2 * values[0].type.count))
            values = [pick(a, b, lanes) for a, b in pairs()]
        return values[0]

    return Vector(vectors.dtype.dtype, 8)(vectors), codegen


if config.DISABLE_JIT:

    def lanes(A):
        return REGISTER // A.itemsize

    def _load_numbers(A, at, count, dtype):
        *row, first = at if isinstance(at, tuple) else (at,)
        return A[(*row, slice(first, first + count))].astype(dtype)

    def lanes_of_line(A):
        return LINE // A.itemsize

    least = min

    def epsilon(A):
        return np.finfo(A.dtype).eps

    def load(A, at):
        return _load_numbers(A, at, lanes(A), A.dtype)

    def load_as(A, at, like):
        return _load_numbers(A, at, lanes(like), like.dtype)

    def load_eight(A, at):
        return _load_numbers(A, at, 8, A.dtype)

    def store(vector, A, at):
        *row, first = at if isinstance(at, tuple) else (at,)
        A[(*row, slice(first, first + vector.size))] = vector

    def prefetch(A, at):
        pass

    def take(counts, at):
        counts[at] += 1
        return counts[at] - 1

    def fill(number, like):
        return np.full(lanes(like), number, like.dtype)

    def fill_eight(number, like):
        return np.full(8, number, like.dtype)

    def widen(vector):
        return vector.astype(np.float64)

    def total(vector):
        return vector.sum()

    def totals(vectors):
        return np.stack(vectors).sum(axis=1)
