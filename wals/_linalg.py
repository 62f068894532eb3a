"""Dense linear algebra on a few vectors of k numbers: what LAPACK calls too small, in Numba.

All matrices are C-contiguous, and their rows fill whole cache lines, if need be with zeros: see
`_compile.whole_lines`. Upper triangles hold symmetric matrices and their factors. A panel P is read
eight rows at a time, if need be with rows of zeros: `count`, `first` and `last` are multiples of 8.
"""

import numpy as np

from ._compile import fill, jit, jit_inline, lanes, load, load_as, multiply_add, store, total

#: Numba lets negative indices wrap around, unless their type rules them out.
_uint = np.uint64
#: Bytes of a panel that stay in a first-level cache from one use of them to the next.
_NEAR = 2**14


@jit_inline
def _add_to_tile(A, i, j, P, count, coef):
    """Add sum_t coef_t p_t p_t^T, t < count, to eight rows i, ... of one vector at j.

    This tile of A stays in registers while P passes by.
    """
    i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
    i4, i5, i6, i7 = _uint(i + 4), _uint(i + 5), _uint(i + 6), _uint(i + 7)
    a0, a1, a2, a3 = load(A, (i0, j)), load(A, (i1, j)), load(A, (i2, j)), load(A, (i3, j))
    a4, a5, a6, a7 = load(A, (i4, j)), load(A, (i5, j)), load(A, (i6, j)), load(A, (i7, j))
    zero = fill(A.dtype.type(0), A)
    for t in range(_uint(count)):
        p = multiply_add(zero, coef[t], load(P, (t, j)))
        a0 = multiply_add(a0, P[t, i0], p)
        a1 = multiply_add(a1, P[t, i1], p)
        a2 = multiply_add(a2, P[t, i2], p)
        a3 = multiply_add(a3, P[t, i3], p)
        a4 = multiply_add(a4, P[t, i4], p)
        a5 = multiply_add(a5, P[t, i5], p)
        a6 = multiply_add(a6, P[t, i6], p)
        a7 = multiply_add(a7, P[t, i7], p)
    store(a0, A, (i0, j))
    store(a1, A, (i1, j))
    store(a2, A, (i2, j))
    store(a3, A, (i3, j))
    store(a4, A, (i4, j))
    store(a5, A, (i5, j))
    store(a6, A, (i6, j))
    store(a7, A, (i7, j))


@jit
def add_gram(A, P, count, coef):
    """Add sum_t coef_t p_t p_t^T to the upper triangle of A; what is below is undefined."""
    for i in range(0, P.shape[1], 8):
        for j in range(i // lanes(A) * lanes(A), P.shape[1], lanes(A)):
            _add_to_tile(A, i, j, P, count, coef)


@jit
def factorise(A, n, coef):
    """Factorise A[:n, :n] = W^T D^-1 W, with W upper triangular and D its diagonal.

    This is Cholesky's method without roots. W replaces the upper triangle of A and coef = -D^-1; n
    numbers fill whole cache lines. Returns False if an entry of D vanishes.
    """
    floor, step = A.dtype.type(0), lanes(A)
    for i in range(n):
        floor = max(floor, A[i, i])
    floor *= A.dtype.type(n) * np.finfo(A.dtype).eps
    for top in range(0, n, 8):
        left = top // step * step
        for j in range(left, n, step):
            _add_to_tile(A, top, j, A, top, coef)
        for i in range(_uint(top), _uint(top + 8)):
            for j in range(left, n, step):
                row = load(A, (i, j))
                for t in range(_uint(top), i):
                    row = multiply_add(row, coef[t] * A[t, i], load(A, (t, j)))
                store(row, A, (i, j))
            if not A[i, i] > floor:
                return False
            coef[i] = -1 / A[i, i]
        # Vectors that start left of the diagonal are read by `solve`.
        for i in range(_uint(top), _uint(top + 8)):
            for j in range(_uint(left), i):
                A[i, j] = 0
    return True


@jit
def solve_factorised(W, n, coef, b):
    """Overwrite b with the solution of W^T D^-1 W x = b, given coef = -D^-1, n as above."""
    zero = b.dtype.type(0)
    for i in range(0, n, 4):
        i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
        b0 = coef[i0] * b[i0]
        b1 = coef[i1] * (b[i1] + W[i0, i1] * b0)
        b2 = coef[i2] * (b[i2] + W[i0, i2] * b0 + W[i1, i2] * b1)
        b3 = coef[i3] * (b[i3] + W[i0, i3] * b0 + W[i1, i3] * b1 + W[i2, i3] * b2)
        for j in range(i // lanes(W) * lanes(W), n, lanes(W)):
            rest = load(b, j)
            rest = multiply_add(rest, b0, load(W, (i0, j)))
            rest = multiply_add(rest, b1, load(W, (i1, j)))
            rest = multiply_add(rest, b2, load(W, (i2, j)))
            rest = multiply_add(rest, b3, load(W, (i3, j)))
            store(rest, b, j)
        b[i0], b[i1], b[i2], b[i3] = -b0, -b1, -b2, -b3
    for i in range(n - 4, -1, -4):
        i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
        b0, b1, b2, b3 = b[i0], b[i1], b[i2], b[i3]
        b[i0], b[i1], b[i2], b[i3] = zero, zero, zero, zero
        s0 = s1 = s2 = s3 = fill(zero, W)
        for j in range(i // lanes(W) * lanes(W), n, lanes(W)):
            x = load(b, j)
            s0 = multiply_add(s0, load(W, (i0, j)), x)
            s1 = multiply_add(s1, load(W, (i1, j)), x)
            s2 = multiply_add(s2, load(W, (i2, j)), x)
            s3 = multiply_add(s3, load(W, (i3, j)), x)
        b3 += coef[i3] * total(s3)
        b2 += coef[i2] * (total(s2) + W[i2, i3] * b3)
        b1 += coef[i1] * (total(s1) + W[i1, i2] * b2 + W[i1, i3] * b3)
        b0 += coef[i0] * (total(s0) + W[i0, i1] * b1 + W[i0, i2] * b2 + W[i0, i3] * b3)
        b[i0], b[i1], b[i2], b[i3] = b0, b1, b2, b3


@jit
def set_products(P, first, last, x, out):
    """Set out_t = p_t.x, in the precision of x, for first <= t < last."""
    zero = fill(x.dtype.type(0), x)
    for t in range(first, last, 8):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for c in range(0, P.shape[1], lanes(x)):
            v = load(x, c)
            s0 = multiply_add(s0, load_as(P, (t, c), x), v)
            s1 = multiply_add(s1, load_as(P, (t + 1, c), x), v)
            s2 = multiply_add(s2, load_as(P, (t + 2, c), x), v)
            s3 = multiply_add(s3, load_as(P, (t + 3, c), x), v)
            s4 = multiply_add(s4, load_as(P, (t + 4, c), x), v)
            s5 = multiply_add(s5, load_as(P, (t + 5, c), x), v)
            s6 = multiply_add(s6, load_as(P, (t + 6, c), x), v)
            s7 = multiply_add(s7, load_as(P, (t + 7, c), x), v)
        out[t], out[t + 1], out[t + 2], out[t + 3] = total(s0), total(s1), total(s2), total(s3)
        out[t + 4], out[t + 5], out[t + 6], out[t + 7] = total(s4), total(s5), total(s6), total(s7)


@jit
def add_combination(P, first, last, coef, out):
    """Add sum_t coef_t p_t, first <= t < last, to out."""
    for t in range(first, last, 8):
        c0, c1, c2, c3 = coef[t], coef[t + 1], coef[t + 2], coef[t + 3]
        c4, c5, c6, c7 = coef[t + 4], coef[t + 5], coef[t + 6], coef[t + 7]
        for c in range(0, P.shape[1], lanes(P)):
            v = load(out, c)
            v = multiply_add(v, c0, load(P, (t, c)))
            v = multiply_add(v, c1, load(P, (t + 1, c)))
            v = multiply_add(v, c2, load(P, (t + 2, c)))
            v = multiply_add(v, c3, load(P, (t + 3, c)))
            v = multiply_add(v, c4, load(P, (t + 4, c)))
            v = multiply_add(v, c5, load(P, (t + 5, c)))
            v = multiply_add(v, c6, load(P, (t + 6, c)))
            v = multiply_add(v, c7, load(P, (t + 7, c)))
            store(v, out, c)


@jit_inline
def _near_rows(P):
    """Return how many rows of P to use twice before the next: they are in the cache then."""
    return max(_NEAR // (P.shape[1] * P.itemsize) // 8, 1) * 8


@jit
def add_normal_product(P, count, extra, x, coef, out):
    """Add P^T E P x to out in one pass over P; coef is scratch."""
    rows = _near_rows(P)
    for first in range(0, count, rows):
        last = min(first + rows, count)
        set_products(P, first, last, x, coef)
        for t in range(_uint(first), _uint(last)):
            coef[t] *= extra[t]
        add_combination(P, first, last, coef, out)


@jit
def add_residual(P, count, extra, target, w0, x, coef, out):
    """Add P^T (g - E P x) to out in one pass over P, with g_t = (w0 + e_t) a_t; coef is scratch.

    Returns sum_t (w0 + e_t)(a_t - p_t.x)^2 - w0 (p_t.x)^2, in float64.
    """
    w0, objective, rows = P.dtype.type(w0), 0.0, _near_rows(P)
    for first in range(0, count, rows):
        last = min(first + rows, count)
        set_products(P, first, last, x, coef)
        for t in range(_uint(first), _uint(last)):
            # With d = a - p.x, in both: g - e p.x = e d + w0 a and d^2 - (p.x)^2 = a (d - p.x).
            b, d = w0 * target[t], target[t] - coef[t]
            objective += np.float64(extra[t] * d * d + b * (d - coef[t]))
            coef[t] = extra[t] * d + b
        add_combination(P, first, last, coef, out)
    return objective


@jit
def set_products_of_four(S, P, first, count, out):
    """Set out[r, t] = s_r.p_t for r < 4 and first <= t < count, multiples of 4."""
    for t in range(first, count, 4):
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = fill(S.dtype.type(0), S)
        c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = fill(S.dtype.type(0), S)
        for c in range(0, P.shape[1], lanes(P)):
            p0, p1 = load(P, (t, c)), load(P, (t + 1, c))
            p2, p3 = load(P, (t + 2, c)), load(P, (t + 3, c))
            s = load(S, (0, c))
            a0, a1 = multiply_add(a0, s, p0), multiply_add(a1, s, p1)
            a2, a3 = multiply_add(a2, s, p2), multiply_add(a3, s, p3)
            s = load(S, (1, c))
            b0, b1 = multiply_add(b0, s, p0), multiply_add(b1, s, p1)
            b2, b3 = multiply_add(b2, s, p2), multiply_add(b3, s, p3)
            s = load(S, (2, c))
            c0, c1 = multiply_add(c0, s, p0), multiply_add(c1, s, p1)
            c2, c3 = multiply_add(c2, s, p2), multiply_add(c3, s, p3)
            s = load(S, (3, c))
            d0, d1 = multiply_add(d0, s, p0), multiply_add(d1, s, p1)
            d2, d3 = multiply_add(d2, s, p2), multiply_add(d3, s, p3)
        out[0, t], out[0, t + 1] = total(a0), total(a1)
        out[0, t + 2], out[0, t + 3] = total(a2), total(a3)
        out[1, t], out[1, t + 1] = total(b0), total(b1)
        out[1, t + 2], out[1, t + 3] = total(b2), total(b3)
        out[2, t], out[2, t + 1] = total(c0), total(c1)
        out[2, t + 2], out[2, t + 3] = total(c2), total(c3)
        out[3, t], out[3, t + 1] = total(d0), total(d1)
        out[3, t + 2], out[3, t + 3] = total(d2), total(d3)


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
