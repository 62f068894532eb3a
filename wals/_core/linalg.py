"""Dense linear algebra on a few vectors of k numbers: what LAPACK calls too small, in Numba.

To multiply the blocks of a tall matrix, BLAS would copy the other factor for every one of them:
here it is put in panels once, see `set_panels`.

All other matrices are C-contiguous, and their rows fill whole cache lines, if need be with zeros:
see `compile.whole_lines`. Upper triangles hold symmetric matrices and their factors. The rows of a
panel P are read eight at a time: `count` is a multiple of 8, if need be with rows of zeros.
"""

import numpy as np

from .compile import (
    REGISTER,
    empty_lines,
    epsilon,
    fill,
    fill_eight,
    jit,
    jit_inline,
    lanes,
    least,
    load,
    load_as,
    load_eight,
    store,
    total,
    totals,
)

#: Numba lets negative indices wrap around, unless their type rules them out.
_uint = np.uint64
#: Numbers of a panel that a first-level cache holds while all tiles of a Gramian use them.
_NEAR = 2**12


@jit
def padded(count):
    """Return how many rows of a panel are read, given how many matter."""
    return (count + 7) // 8 * 8


@jit_inline
def _add_to_tile(A, i, j, P, first, last, coef):
    """Add sum_t coef_t p_t p_t^T, first <= t < last, to eight rows i, ... of one vector at j.

    This tile of A stays in registers while P passes by.
    """
    i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
    i4, i5, i6, i7 = _uint(i + 4), _uint(i + 5), _uint(i + 6), _uint(i + 7)
    a0, a1, a2, a3 = load(A, (i0, j)), load(A, (i1, j)), load(A, (i2, j)), load(A, (i3, j))
    a4, a5, a6, a7 = load(A, (i4, j)), load(A, (i5, j)), load(A, (i6, j)), load(A, (i7, j))
    for t in range(_uint(first), _uint(last)):
        p = coef[t] * load(P, (t, j))
        a0 = a0 + P[t, i0] * p
        a1 = a1 + P[t, i1] * p
        a2 = a2 + P[t, i2] * p
        a3 = a3 + P[t, i3] * p
        a4 = a4 + P[t, i4] * p
        a5 = a5 + P[t, i5] * p
        a6 = a6 + P[t, i6] * p
        a7 = a7 + P[t, i7] * p
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
    rows = _NEAR // A.shape[1] if _NEAR // A.shape[1] > 16 else 16
    for first in range(0, count, rows):
        last = least(first + rows, count)
        for i in range(0, A.shape[1], 8):
            for j in range(i // lanes(A) * lanes(A), A.shape[1], lanes(A)):
                _add_to_tile(A, i, j, P, first, last, coef)


@jit
def factorise(A, n, coef):
    """Factorise A[:n, :n] = W^T D^-1 W, with W upper triangular and D its diagonal.

    This is Cholesky's method without roots. W replaces the upper triangle of A and coef = -D^-1; n
    numbers fill whole cache lines. Returns False if an entry of D vanishes.
    """
    floor, step = A.dtype.type(0), lanes(A)
    for i in range(n):
        floor = max(floor, A[i, i])
    floor *= A.dtype.type(n) * epsilon(A)
    for top in range(0, n, 8):
        left = top // step * step
        for j in range(left, n, step):
            _add_to_tile(A, top, j, A, 0, top, coef)
        for i in range(_uint(top), _uint(top + 8)):
            for j in range(left, n, step):
                row = load(A, (i, j))
                for t in range(_uint(top), i):
                    row = row + coef[t] * A[t, i] * load(A, (t, j))
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
            rest = rest + b0 * load(W, (i0, j))
            rest = rest + b1 * load(W, (i1, j))
            rest = rest + b2 * load(W, (i2, j))
            rest = rest + b3 * load(W, (i3, j))
            store(rest, b, j)
        b[i0], b[i1], b[i2], b[i3] = -b0, -b1, -b2, -b3
    for i in range(n - 4, -1, -4):
        i0, i1, i2, i3 = _uint(i), _uint(i + 1), _uint(i + 2), _uint(i + 3)
        b0, b1, b2, b3 = b[i0], b[i1], b[i2], b[i3]
        b[i0], b[i1], b[i2], b[i3] = zero, zero, zero, zero
        s0 = s1 = s2 = s3 = fill(zero, W)
        for j in range(i // lanes(W) * lanes(W), n, lanes(W)):
            x = load(b, j)
            s0 = s0 + load(W, (i0, j)) * x
            s1 = s1 + load(W, (i1, j)) * x
            s2 = s2 + load(W, (i2, j)) * x
            s3 = s3 + load(W, (i3, j)) * x
        b3 += coef[i3] * total(s3)
        b2 += coef[i2] * (total(s2) + W[i2, i3] * b3)
        b1 += coef[i1] * (total(s1) + W[i1, i2] * b2 + W[i1, i3] * b3)
        b0 += coef[i0] * (total(s0) + W[i0, i1] * b1 + W[i0, i2] * b2 + W[i0, i3] * b3)
        b[i0], b[i1], b[i2], b[i3] = b0, b1, b2, b3


@jit_inline
def eight_products(P, t, x):
    """Return p_t.x, ..., p_(t + 7).x, in the precision of x."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = fill(x.dtype.type(0), x)
    for c in range(0, x.size, lanes(x)):
        v = load(x, c)
        s0 = s0 + load_as(P, (t, c), x) * v
        s1 = s1 + load_as(P, (t + _uint(1), c), x) * v
        s2 = s2 + load_as(P, (t + _uint(2), c), x) * v
        s3 = s3 + load_as(P, (t + _uint(3), c), x) * v
        s4 = s4 + load_as(P, (t + _uint(4), c), x) * v
        s5 = s5 + load_as(P, (t + _uint(5), c), x) * v
        s6 = s6 + load_as(P, (t + _uint(6), c), x) * v
        s7 = s7 + load_as(P, (t + _uint(7), c), x) * v
    return totals((s0, s1, s2, s3, s4, s5, s6, s7))


@jit_inline
def _add_eight_rows(P, t, coef, out):
    """Add coef_t p_t + ... + coef_(t + 7) p_(t + 7) to out."""
    t1, t2, t3 = t + _uint(1), t + _uint(2), t + _uint(3)
    t4, t5, t6, t7 = t + _uint(4), t + _uint(5), t + _uint(6), t + _uint(7)
    c0, c1, c2, c3 = coef[t], coef[t1], coef[t2], coef[t3]
    c4, c5, c6, c7 = coef[t4], coef[t5], coef[t6], coef[t7]
    for c in range(0, out.size, lanes(out)):
        v = load(out, c) + c0 * load(P, (t, c))
        w = c1 * load(P, (t1, c))
        v = v + c2 * load(P, (t2, c))
        w = w + c3 * load(P, (t3, c))
        v = v + c4 * load(P, (t4, c))
        w = w + c5 * load(P, (t5, c))
        v = v + c6 * load(P, (t6, c))
        w = w + c7 * load(P, (t7, c))
        store(v + w, out, c)


@jit
def set_products(P, count, x, out):
    """Set out_t = p_t.x for t < count, in the precision of x."""
    for t in range(_uint(0), _uint(count), _uint(8)):
        store(eight_products(P, t, x), out, t)


@jit
def add_combination(P, count, coef, out):
    """Add sum_t coef_t p_t, t < count, to out."""
    for t in range(_uint(0), _uint(count), _uint(8)):
        _add_eight_rows(P, t, coef, out)


# The next two use eight rows twice while the nearest cache holds them.


@jit
def add_normal_product(P, count, extra, x, coef, out):
    """Add sum_t e_t (p_t.x) p_t, t < count, to out; coef is scratch."""
    for t in range(_uint(0), _uint(count), _uint(8)):
        store(load_eight(extra, t) * eight_products(P, t, x), coef, t)
        _add_eight_rows(P, t, coef, out)


@jit
def add_residual(P, count, extra, target, w0, x, coef, out):
    """Set coef_t = (w0 + e_t) a_t - e_t p_t.x, and add sum_t coef_t p_t, t < count, to out.

    Returns sum_t (w0 + e_t)(a_t - p_t.x)^2 - w0 (p_t.x)^2.
    """
    w0, objective = x.dtype.type(w0), fill_eight(x.dtype.type(0), x)
    for t in range(_uint(0), _uint(count), _uint(8)):
        # With d = a - p.x, in both: coef = e d + w0 a and d^2 - (p.x)^2 = a (d - p.x).
        px, e, a = eight_products(P, t, x), load_eight(extra, t), load_eight(target, t)
        d, b = a - px, w0 * a
        objective = objective + e * d * d + b * (d - px)
        store(e * d + b, coef, t)
        _add_eight_rows(P, t, coef, out)
    return np.float64(total(objective))


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
            a0, a1 = a0 + s * p0, a1 + s * p1
            a2, a3 = a2 + s * p2, a3 + s * p3
            s = load(S, (1, c))
            b0, b1 = b0 + s * p0, b1 + s * p1
            b2, b3 = b2 + s * p2, b3 + s * p3
            s = load(S, (2, c))
            c0, c1 = c0 + s * p0, c1 + s * p1
            c2, c3 = c2 + s * p2, c3 + s * p3
            s = load(S, (3, c))
            d0, d1 = d0 + s * p0, d1 + s * p1
            d2, d3 = d2 + s * p2, d3 + s * p3
        out[0, t], out[0, t + 1] = total(a0), total(a1)
        out[0, t + 2], out[0, t + 3] = total(a2), total(a3)
        out[1, t], out[1, t + 1] = total(b0), total(b1)
        out[1, t + 2], out[1, t + 3] = total(b2), total(b3)
        out[2, t], out[2, t + 1] = total(c0), total(c1)
        out[2, t + 2], out[2, t + 3] = total(c2), total(c3)
        out[3, t], out[3, t + 1] = total(d0), total(d1)
        out[3, t + 2], out[3, t + 3] = total(d2), total(d3)


def empty_panels(k, n, dtype, *batch):
    """Return room for k x n matrices in panels, as many as the shape of a batch says."""
    step = 2 * REGISTER // np.dtype(dtype).itemsize
    return empty_lines((*batch, -(-n // step), k, step), dtype)


@jit
def set_panels(B, panels):
    """Copy B to panels, each with the columns of two vectors.

    B has at least as many columns as the panels. panels[p, t] is a whole number of cache lines,
    next to panels[p, t + 1].
    """
    n = lanes(panels)
    for p in range(panels.shape[0]):
        for t in range(B.shape[0]):
            store(load(B, (t, 2 * n * p)), panels, (p, t, 0))
            store(load(B, (t, 2 * n * p + n)), panels, (p, t, n))


def in_panels(B):
    """Return a matrix in panels, without compilation; see `set_panels`."""
    panels = empty_panels(*B.shape, B.dtype)
    n, _, step = panels.shape
    wide = np.zeros((len(B), n * step), B.dtype)
    wide[:, : B.shape[1]] = B
    panels[:] = wide.reshape(len(B), n, step).swapaxes(0, 1)
    return panels


@jit_inline
def _set_tile(A, i, panels, p, out):
    """Set six rows i, ... of two vectors of A B, B being in panels, to the sums over t.

    The tile takes twelve registers, and what it is computed from the other four of sixteen.
    """
    i0, i1, i2 = _uint(i), _uint(i + 1), _uint(i + 2)
    i3, i4, i5 = _uint(i + 3), _uint(i + 4), _uint(i + 5)
    n = lanes(panels)
    a0 = a1 = a2 = a3 = a4 = a5 = fill(panels.dtype.type(0), panels)
    b0 = b1 = b2 = b3 = b4 = b5 = fill(panels.dtype.type(0), panels)
    for t in range(_uint(0), _uint(panels.shape[1])):
        a, b = load(panels, (p, t, 0)), load(panels, (p, t, n))
        a0, b0 = a0 + A[i0, t] * a, b0 + A[i0, t] * b
        a1, b1 = a1 + A[i1, t] * a, b1 + A[i1, t] * b
        a2, b2 = a2 + A[i2, t] * a, b2 + A[i2, t] * b
        a3, b3 = a3 + A[i3, t] * a, b3 + A[i3, t] * b
        a4, b4 = a4 + A[i4, t] * a, b4 + A[i4, t] * b
        a5, b5 = a5 + A[i5, t] * a, b5 + A[i5, t] * b
    j = 2 * n * p
    store(a0, out, (i0, j))
    store(a1, out, (i1, j))
    store(a2, out, (i2, j))
    store(a3, out, (i3, j))
    store(a4, out, (i4, j))
    store(a5, out, (i5, j))
    store(b0, out, (i0, j + n))
    store(b1, out, (i1, j + n))
    store(b2, out, (i2, j + n))
    store(b3, out, (i3, j + n))
    store(b4, out, (i4, j + n))
    store(b5, out, (i5, j + n))


@jit
def multiply(A, count, panels, rows, out):
    """Set the first rows of out to those of A B, B being in panels; see `set_panels`.

    A and out have as many rows as `count`, rounded up to a multiple of 6. The first panel takes so
    many rows, and each more as many more: `count` for all of the product, the columns of a panel
    for what is not below the diagonal, which is undefined then.
    """
    for p in range(panels.shape[0]):
        last = least(count, (p + 1) * rows)
        for i in range(0, last, 6):
            _set_tile(A, i, panels, p, out)


@jit
def dot(a, b):
    """Return a.b, in float64."""
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@jit_inline
def copy_rows(source, i, target, j, count):
    """Copy rows i, i + 1, ... of one matrix to rows j, j + 1, ... of another, as far as both go."""
    for t in range(count):
        for c in range(least(source.shape[1], target.shape[1])):
            target[j + t, c] = source[i + t, c]
