"""Dense linear algebra on a few vectors of k numbers: what LAPACK calls too small, in Numba.

All matrices are C-contiguous. Upper triangles hold symmetric matrices and Cholesky factors, so
that every inner loop runs along a row. A panel P is read four rows at a time: its number of rows,
`count`, is a multiple of 4, if need be with rows of zeros.
"""

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

#: Sums may be reordered and contracted, so that they vectorise; NaN and infinity keep their
#: meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}
jit = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH)
#: For functions that allocate nothing. Counting references to the arrays in a tuple takes longer
#: than to solve a short item.
jit_item = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, _nrt=False)
#: Inlined before LLVM sees them: it would keep calls in loops that are worth unrolling.
jit_inline = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, inline="always")
jit_parallel = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, parallel=True)

#: Numba lets negative indices wrap around, unless their type rules them out: loops that do not
#: start at a literal 0 vectorise only with an unsigned index.
_uint = np.uint64


@jit_inline
def _add_to_four_rows(A, i, n, R, t, c0, c1, c2, c3):
    """Add sum_s c_s r_s r_s^T to A[i:i + 4, i:n], r_s = R[t + s] for s < 4.

    Four rows of A at a time, so that the four vectors are loaded once for all of them. Also writes
    below the diagonal, inside the block of 4 x 4.
    """
    i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
    t0, t1, t2, t3 = _uint(t), _uint(t + 1), _uint(t + 2), _uint(t + 3)
    a0, a1, a2, a3 = c0 * R[t0, i0], c0 * R[t0, i1], c0 * R[t0, i2], c0 * R[t0, i3]
    b0, b1, b2, b3 = c1 * R[t1, i0], c1 * R[t1, i1], c1 * R[t1, i2], c1 * R[t1, i3]
    d0, d1, d2, d3 = c2 * R[t2, i0], c2 * R[t2, i1], c2 * R[t2, i2], c2 * R[t2, i3]
    e0, e1, e2, e3 = c3 * R[t3, i0], c3 * R[t3, i1], c3 * R[t3, i2], c3 * R[t3, i3]
    for j in range(i0, _uint(n)):
        v0, v1, v2, v3 = R[t0, j], R[t1, j], R[t2, j], R[t3, j]
        A[i0, j] += a0 * v0 + b0 * v1 + d0 * v2 + e0 * v3
        A[i1, j] += a1 * v0 + b1 * v1 + d1 * v2 + e1 * v3
        A[i2, j] += a2 * v0 + b2 * v1 + d2 * v2 + e2 * v3
        A[i3, j] += a3 * v0 + b3 * v1 + d3 * v2 + e3 * v3


@jit_inline
def _add_to_row(A, i, n, R, t, c0, c1, c2, c3):
    """Add the same to A[i, i:n]."""
    i0, t0, t1, t2, t3 = _uint(i), _uint(t), _uint(t + 1), _uint(t + 2), _uint(t + 3)
    a, b, d, e = c0 * R[t0, i0], c1 * R[t1, i0], c2 * R[t2, i0], c3 * R[t3, i0]
    for j in range(i0, _uint(n)):
        A[i0, j] += a * R[t0, j] + b * R[t1, j] + d * R[t2, j] + e * R[t3, j]


@jit
def add_gram(A, P, count, coef):
    """Add sum_t coef_t p_t p_t^T to the upper triangle of A.

    Four rows of A stay in the first-level cache while all of P passes by.
    """
    n = P.shape[1]
    whole = n // 4 * 4
    for i in range(0, whole, 4):
        for t in range(0, count, 4):
            c0, c1, c2, c3 = coef[t], coef[t + 1], coef[t + 2], coef[t + 3]
            _add_to_four_rows(A, i, n, P, t, c0, c1, c2, c3)
    for i in range(whole, n):
        for t in range(0, count, 4):
            c0, c1, c2, c3 = coef[t], coef[t + 1], coef[t + 2], coef[t + 3]
            _add_to_row(A, i, n, P, t, c0, c1, c2, c3)


@jit
def cholesky(A, n):
    """Factorise A[:n, :n] = U^T U in its upper triangle; False if a pivot vanishes."""
    one = A.dtype.type(1)
    floor = A.dtype.type(0)
    for i in range(n):
        floor = max(floor, A[i, i])
    floor *= A.dtype.type(n) * np.finfo(A.dtype).eps
    for top in range(0, n, 4):
        bottom = min(top + 4, n)
        for i in range(top, bottom):
            for t in range(top, i):
                c = A[t, i]
                for j in range(_uint(i), _uint(n)):
                    A[i, j] -= c * A[t, j]
            if not A[i, i] > floor:
                return False
            inverse = one / np.sqrt(A[i, i])
            for j in range(_uint(i), _uint(n)):
                A[i, j] *= inverse
        if bottom < n:
            whole = bottom + (n - bottom) // 4 * 4
            for i in range(bottom, whole, 4):
                _add_to_four_rows(A, i, n, A, top, -one, -one, -one, -one)
            for i in range(whole, n):
                _add_to_row(A, i, n, A, top, -one, -one, -one, -one)
    return True


@jit
def cholesky_solve(U, n, b):
    """Overwrite b with the solution of U^T U x = b."""
    for i in range(n):
        b[i] /= U[i, i]
        c = b[i]
        for j in range(_uint(i + 1), _uint(n)):
            b[j] -= c * U[i, j]
    for i in range(n - 1, -1, -1):
        c = b[i]
        for j in range(_uint(i + 1), _uint(n)):
            c -= U[i, j] * b[j]
        b[i] = c / U[i, i]


@jit
def add_combination(P, count, coef, out):
    """Add sum_t coef_t p_t to out."""
    for t in range(0, count, 4):
        c0, c1, c2, c3 = coef[t], coef[t + 1], coef[t + 2], coef[t + 3]
        for c in range(P.shape[1]):
            out[c] += c0 * P[t, c] + c1 * P[t + 1, c] + c2 * P[t + 2, c] + c3 * P[t + 3, c]


@jit
def set_products(P, count, x, out):
    """Set out_t = p_t.x, in the precision of x."""
    zero = x.dtype.type(0)
    for t in range(0, count, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(P.shape[1]):
            t0 += P[t, c] * x[c]
            t1 += P[t + 1, c] * x[c]
            t2 += P[t + 2, c] * x[c]
            t3 += P[t + 3, c] * x[c]
        out[t], out[t + 1], out[t + 2], out[t + 3] = t0, t1, t2, t3


@jit
def add_normal_product(P, count, extra, x, out):
    """Add P^T E P x to out in one pass over P."""
    zero = P.dtype.type(0)
    for t in range(0, count, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(P.shape[1]):
            t0 += P[t, c] * x[c]
            t1 += P[t + 1, c] * x[c]
            t2 += P[t + 2, c] * x[c]
            t3 += P[t + 3, c] * x[c]
        t0 *= extra[t]
        t1 *= extra[t + 1]
        t2 *= extra[t + 2]
        t3 *= extra[t + 3]
        for c in range(P.shape[1]):
            out[c] += t0 * P[t, c] + t1 * P[t + 1, c] + t2 * P[t + 2, c] + t3 * P[t + 3, c]


@jit
def add_residual(P, count, extra, target, w0, x, out):
    """Add P^T (g - E P x) to out in one pass over P, with g_t = (w0 + e_t) a_t.

    Returns sum_t (w0 + e_t)(a_t - p_t.x)^2 - w0 (p_t.x)^2, in float64.
    """
    zero, w0, objective = P.dtype.type(0), P.dtype.type(w0), 0.0
    for t in range(0, count, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(P.shape[1]):
            t0 += P[t, c] * x[c]
            t1 += P[t + 1, c] * x[c]
            t2 += P[t + 2, c] * x[c]
            t3 += P[t + 3, c] * x[c]
        # With d = a - p.x, in both sums: g - e p.x = e d + w0 a and d^2 - (p.x)^2 = a (d - p.x).
        b0, b1, b2, b3 = w0 * target[t], w0 * target[t + 1], w0 * target[t + 2], w0 * target[t + 3]
        d0, d1, d2, d3 = target[t] - t0, target[t + 1] - t1, target[t + 2] - t2, target[t + 3] - t3
        c0, c1, c2, c3 = extra[t] * d0, extra[t + 1] * d1, extra[t + 2] * d2, extra[t + 3] * d3
        objective += np.float64(c0 * d0 + b0 * (d0 - t0)) + np.float64(c1 * d1 + b1 * (d1 - t1))
        objective += np.float64(c2 * d2 + b2 * (d2 - t2)) + np.float64(c3 * d3 + b3 * (d3 - t3))
        c0 += b0
        c1 += b1
        c2 += b2
        c3 += b3
        for c in range(P.shape[1]):
            out[c] += c0 * P[t, c] + c1 * P[t + 1, c] + c2 * P[t + 2, c] + c3 * P[t + 3, c]
    return objective


@jit
def dot(a, b):
    """Return a.b, in float64."""
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


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


if config.DISABLE_JIT:  # a hint: there is nothing to do

    def prefetch(array, i, j):
        pass


@jit
def copy_rows(source, i, target, j, count):
    """Copy rows i, i + 1, ... of one matrix to rows j, j + 1, ... of another."""
    for t in range(count):
        for c in range(source.shape[1]):
            target[j + t, c] = source[i + t, c]
