"""Dense linear algebra on a few vectors of k numbers: what LAPACK calls too small, in Numba.

All matrices are C-contiguous. Upper triangles hold symmetric matrices and Cholesky factors, so
that every inner loop runs along a row.
"""

import numpy as np
from numba import njit

#: Sums may be reordered and contracted, so that they vectorise; NaN and infinity keep their
#: meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}
jit = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH)
#: For functions with one caller: fewer modules for LLVM to optimise one inside the other.
jit_inline = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, inline="always")
jit_parallel = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, parallel=True)

#: Numba lets negative indices wrap around, unless their type rules them out: loops that do not
#: start at a literal 0 vectorise only with an unsigned index.
_uint = np.uint64


@jit
def add_outer(A, first, n, R, top, c0, c1, c2, c3):
    """Add sum_t c_t r_t r_t^T to the upper triangle of A[first:n, first:n], r_t = R[top + t].

    Four rows of A at a time, so that the four vectors are loaded once for all of them. Also writes
    below the diagonal, inside blocks of 4 x 4.
    """
    n, one = _uint(n), _uint(1)
    t0, t1, t2, t3 = _uint(top), _uint(top + 1), _uint(top + 2), _uint(top + 3)
    i0 = _uint(first)
    while i0 + _uint(4) <= n:
        i1, i2, i3 = i0 + one, i0 + _uint(2), i0 + _uint(3)
        a0, a1, a2, a3 = c0 * R[t0, i0], c0 * R[t0, i1], c0 * R[t0, i2], c0 * R[t0, i3]
        b0, b1, b2, b3 = c1 * R[t1, i0], c1 * R[t1, i1], c1 * R[t1, i2], c1 * R[t1, i3]
        d0, d1, d2, d3 = c2 * R[t2, i0], c2 * R[t2, i1], c2 * R[t2, i2], c2 * R[t2, i3]
        e0, e1, e2, e3 = c3 * R[t3, i0], c3 * R[t3, i1], c3 * R[t3, i2], c3 * R[t3, i3]
        for j in range(i0, n):
            v0, v1, v2, v3 = R[t0, j], R[t1, j], R[t2, j], R[t3, j]
            A[i0, j] += a0 * v0 + b0 * v1 + d0 * v2 + e0 * v3
            A[i1, j] += a1 * v0 + b1 * v1 + d1 * v2 + e1 * v3
            A[i2, j] += a2 * v0 + b2 * v1 + d2 * v2 + e2 * v3
            A[i3, j] += a3 * v0 + b3 * v1 + d3 * v2 + e3 * v3
        i0 = i0 + _uint(4)
    while i0 < n:
        a0, b0, d0, e0 = c0 * R[t0, i0], c1 * R[t1, i0], c2 * R[t2, i0], c3 * R[t3, i0]
        for j in range(i0, n):
            A[i0, j] += a0 * R[t0, j] + b0 * R[t1, j] + d0 * R[t2, j] + e0 * R[t3, j]
        i0 = i0 + one


@jit
def add_gram(A, n, R, count, coef):
    """Add sum_t coef_t r_t r_t^T to the upper triangle of A[:n, :n], t < count."""
    t = 0
    while t + 4 <= count:
        add_outer(A, 0, n, R, t, coef[t], coef[t + 1], coef[t + 2], coef[t + 3])
        t += 4
    while t < count:
        for i in range(n):
            c = coef[t] * R[t, i]
            for j in range(_uint(i), _uint(n)):
                A[i, j] += c * R[t, j]
        t += 1


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
            add_outer(A, bottom, n, A, top, -one, -one, -one, -one)
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
def add_combination(R, count, coef, out, buffer):
    """Add sum_t coef_t r_t to out (float64), summed in the precision of R within the chunk."""
    k = R.shape[1]
    for c in range(k):
        buffer[c] = 0
    t = 0
    while t + 4 <= count:
        c0, c1, c2, c3 = coef[t], coef[t + 1], coef[t + 2], coef[t + 3]
        for c in range(k):
            buffer[c] += c0 * R[t, c] + c1 * R[t + 1, c] + c2 * R[t + 2, c] + c3 * R[t + 3, c]
        t += 4
    while t < count:
        c0 = coef[t]
        for c in range(k):
            buffer[c] += c0 * R[t, c]
        t += 1
    for c in range(k):
        out[c] += buffer[c]


@jit
def add_normal_product(R, count, extra, p, q):
    """Add P^T E P p to q in one pass over P: t = p_j.p, q += e_j t p_j, four rows at a time."""
    k = R.shape[1]
    T = R.dtype.type
    j = 0
    while j + 4 <= count:
        t0 = t1 = t2 = t3 = T(0)
        for c in range(k):
            t0 += R[j, c] * p[c]
            t1 += R[j + 1, c] * p[c]
            t2 += R[j + 2, c] * p[c]
            t3 += R[j + 3, c] * p[c]
        t0 *= T(extra[j])
        t1 *= T(extra[j + 1])
        t2 *= T(extra[j + 2])
        t3 *= T(extra[j + 3])
        for c in range(k):
            q[c] += t0 * R[j, c] + t1 * R[j + 1, c] + t2 * R[j + 2, c] + t3 * R[j + 3, c]
        j += 4
    while j < count:
        t0 = T(0)
        for c in range(k):
            t0 += R[j, c] * p[c]
        t0 *= T(extra[j])
        for c in range(k):
            q[c] += t0 * R[j, c]
        j += 1


@jit
def dot(a, b):
    """Return a.b, in float64."""
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@jit
def copy_rows(source, i, target, j, count):
    """Copy rows i, i + 1, ... of one matrix to rows j, j + 1, ... of another."""
    for t in range(count):
        for c in range(source.shape[1]):
            target[j + t, c] = source[i + t, c]
