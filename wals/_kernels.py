"""Numba kernels: arrays and scalars in, arrays out.

One *item* is a row in a row sweep and a column in a column sweep. With the other side V fixed, item i with
stored positions S, base weight w0, extra weights e_j and ridge lam_i minimises

    L_i(u) = sum_S (w0 + e_j)(a_j - u.v_j)^2 + sum_(not S) w0 (u.v_j)^2 + lam_i |u|^2.

In the eigenbasis of the fixed side, w0 V^T V = Q diag(s) Q^T, the part that all items share is diagonal,
D = s + lam_i. Scaled by D^-1/2 as well, with p_j = D^-1/2 Q^T v_j for the rows of P and u = Q D^-1/2 x, it is the
identity, and the normal equations of every item are

    (I + P^T E P) x = P^T g,    E = diag(e_j),    g_j = (w0 + e_j) a_j.

The eigenvalues of I + P^T E P start at 1, so a Cholesky factorisation in the precision of the data does not
break down before max_j e_j / w0 nears the reciprocal of that precision, and conjugate gradients need few steps.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

#: Sums may be reordered and contracted, so that they vectorise; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}
_jit = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH)
#: For functions with one caller: fewer modules for LLVM to optimise one inside the other.
_jit_inline = njit(
    cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, inline="always"
)
_jit_parallel = njit(
    cache=True, nogil=True, error_model="numpy", fastmath=_FASTMATH, parallel=True
)

#: Numba lets negative indices wrap around, unless their type rules them out: loops that do not start at a
#: literal 0 vectorise only with an unsigned index.
_uint = np.uint64

#: Stored entries of one item that are gathered at once: P of a light item is read from memory once.
CHUNK = 512
#: Ways to solve an item: Cholesky in as many dimensions as it has entries, in k dimensions, and CG.
DUAL, PRIMAL, CG = 0, 1, 2
#: Rows that are rotated, or added to a Gramian, at once.
_BLOCK = 256
_EPS = np.finfo(np.float64).eps


class Items(NamedTuple):
    """The side that is solved, as CSR: n items."""

    data: np.ndarray  # (nnz,) a_j, or confidences if implicit
    indices: np.ndarray  # (nnz,)
    indptr: np.ndarray  # (n + 1,)
    entry_weights: np.ndarray  # (nnz,), or empty: all 1
    weights: np.ndarray  # (n,) observed_weight * weight of the item
    ridge: np.ndarray  # (n,) lam_i, float64
    implicit: bool  # a confidence c means target 1 if c > 0 else 0, and weight |c|


class Fixed(NamedTuple):
    """The other side, in its eigenbasis: m items."""

    factors: np.ndarray  # (m, k) V Q
    spectrum: np.ndarray  # (k,) s, the eigenvalues of w0 V^T V, float64
    weights: np.ndarray  # (m,)
    unobserved_weight: float


class Plan(NamedTuple):
    """How to solve each item."""

    paths: np.ndarray  # (n,) DUAL, PRIMAL or CG, uint8
    max_dual: int  # the largest number of entries of an item on the dual path, at most CHUNK
    max_steps: int  # of CG
    tol: float  # CG stops at |r| <= tol |b|


class _Work(NamedTuple):
    """Scratch of one shard; T is the precision of the data."""

    scale: np.ndarray  # (k,) D^-1/2, T
    rows: np.ndarray  # (chunk, k) P, T
    extra: np.ndarray  # (chunk,) e_j, float64
    target: np.ndarray  # (chunk,) a_j, float64
    coef: np.ndarray  # (chunk,) T
    system: np.ndarray  # (k, k) T
    transposed: np.ndarray  # (k, max_dual) T: (F P)^T, for the dual path
    ones: np.ndarray  # (k,) T
    x: np.ndarray  # (k,) float64
    b: np.ndarray  # (k,) float64
    r: np.ndarray  # (k,) float64
    p: np.ndarray  # (k,) T
    q: np.ndarray  # (k,) T
    v: np.ndarray  # (k,) T


# --------------------------------------------------------------------------- dense building blocks


@_jit
def _add_outer(A, first, n, R, top, c0, c1, c2, c3):
    """Add sum_t c_t r_t r_t^T to the upper triangle of A[first:n, first:n]; r_t = R[top + t], t < 4.

    Four rows of A at a time, so that the four vectors are loaded once for all of them. Also writes below the
    diagonal, inside blocks of 4 x 4.
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


@_jit
def _add_gram(A, n, R, count, coef):
    """Add sum_t coef_t r_t r_t^T to the upper triangle of A[:n, :n], t < count."""
    t = 0
    while t + 4 <= count:
        _add_outer(A, 0, n, R, t, coef[t], coef[t + 1], coef[t + 2], coef[t + 3])
        t += 4
    while t < count:
        for i in range(n):
            c = coef[t] * R[t, i]
            for j in range(_uint(i), _uint(n)):
                A[i, j] += c * R[t, j]
        t += 1


@_jit
def _cholesky(A, n):
    """Factorise A[:n, :n] = U^T U in its upper triangle, four rows at a time; False if a pivot vanishes."""
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
            _add_outer(A, bottom, n, A, top, -one, -one, -one, -one)
    return True


@_jit
def _cholesky_solve(U, n, b):
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


@_jit
def _add_combination(R, count, coef, out, buffer):
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


@_jit
def _add_normal_product(R, count, extra, p, q):
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


@_jit
def _dot(a, b):
    """Return a.b, in float64."""
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@_jit
def _copy_rows(source, i, target, j, count):
    """Copy `count` rows from row i of one matrix to row j of another, of maybe another precision."""
    for t in range(count):
        for c in range(source.shape[1]):
            target[j + t, c] = source[i + t, c]


# ------------------------------------------------------------------------------------- one item


@_jit
def _gather(items, fixed, i, start, stop, work):
    """Gather p_j, e_j and a_j of the stored entries start:stop of item i."""
    scale, rows = work.scale, work.rows
    for t in range(start, stop):
        j, a = items.indices[t], np.float64(items.data[t])
        e = items.weights[i] * fixed.weights[j]
        if items.entry_weights.size:
            e *= items.entry_weights[t]
        if items.implicit:
            e *= abs(a)
            a = 1.0 if a > 0 else 0.0
        work.extra[t - start] = e
        work.target[t - start] = a
        for c in range(scale.size):
            rows[t - start, c] = scale[c] * fixed.factors[j, c]


@_jit_inline
def _residual(items, fixed, i, start, stop, base, work):
    """Set r = P^T (g - E P x) - base x and return the objective at x.

    P x is summed in float64: g - E P x nearly cancels where e_j is large. In these terms

        L_i(x) = sum_S [(w0 + e_j)(a_j - p_j.x)^2 - w0 (p_j.x)^2] + base x.x.
    """
    w0, rows, x, r = fixed.unobserved_weight, work.rows, work.x, work.r
    objective = base * _dot(x, x)
    for c in range(r.size):
        r[c] = -base * x[c]
    for top in range(start, stop, CHUNK):
        count = min(CHUNK, stop - top)
        if stop - start > CHUNK:
            _gather(items, fixed, i, top, top + count, work)
        for t in range(count):
            px = _dot(rows[t], x)
            e, a = work.extra[t], work.target[t]
            objective += (w0 + e) * (a - px) ** 2 - w0 * px**2
            work.coef[t] = (w0 + e) * a - e * px
        _add_combination(rows, count, work.coef, r, work.q)
    return objective


@_jit_inline
def _factorise_primal(items, fixed, i, start, stop, base, work):
    """Factorise base I + P^T E P and set x = (base I + P^T E P)^-1 P^T g; False if it is singular."""
    system, coef, x, p = work.system, work.coef, work.x, work.p
    k, w0 = x.size, fixed.unobserved_weight
    for c in range(k):
        x[c] = 0
        for d in range(k):
            system[c, d] = 0
        system[c, c] = base
    for top in range(start, stop, CHUNK):
        count = min(CHUNK, stop - top)
        if stop - start > CHUNK:
            _gather(items, fixed, i, top, top + count, work)
        for t in range(count):
            coef[t] = (w0 + work.extra[t]) * work.target[t]
        _add_combination(work.rows, count, coef, x, work.q)
        for t in range(count):
            coef[t] = work.extra[t]
        _add_gram(system, k, work.rows, count, coef)
    if not _cholesky(system, k):
        return False
    for c in range(k):
        p[c] = x[c]
    _cholesky_solve(system, k, p)
    for c in range(k):
        x[c] = p[c]
    return True


@_jit_inline
def _factorise_dual(fixed, count, work):
    """Factorise I + F P P^T F, F = E^1/2, and set x = P^T F y with (I + F P P^T F) y = F^-1 g.

    An e_j of 0 is moved to 1e-20 w0, which changes nothing at working precision and keeps F^-1 finite.
    """
    system, transposed, coef = work.system, work.transposed, work.coef
    k, w0 = work.x.size, fixed.unobserved_weight
    for t in range(count):
        root = np.sqrt(max(work.extra[t], 1e-20 * w0))
        for c in range(k):
            transposed[c, t] = root * work.rows[t, c]
        coef[t] = (w0 + work.extra[t]) * work.target[t] / root if root > 0 else 0.0
        for u in range(count):
            system[t, u] = 0
        system[t, t] = 1
    _add_gram(system, count, transposed, k, work.ones)
    if not _cholesky(system, count):
        return False
    _cholesky_solve(system, count, coef)
    for c in range(k):
        total = 0.0
        for t in range(count):
            total += transposed[c, t] * coef[t]
        work.x[c] = total
    return True


@_jit_inline
def _solve_dual(count, work):
    """Set p = (I + P^T E P)^-1 r = r - P^T F (I + F P P^T F)^-1 F P r (Woodbury)."""
    transposed, coef, p = work.transposed, work.coef, work.p
    for t in range(count):
        coef[t] = 0
    for c in range(p.size):
        p[c] = work.r[c]
        for t in range(count):
            coef[t] += transposed[c, t] * p[c]
    _cholesky_solve(work.system, count, coef)
    for c in range(p.size):
        total = p[c]
        for t in range(count):
            total -= transposed[c, t] * coef[t]
        p[c] = total


@_jit
def _solve_exact(items, fixed, i, start, stop, base, dual, work):
    """Solve by Cholesky and iterative refinement, the residual in higher precision than the factor.

    Returns the objective, or NaN if the system is singular to working precision.
    """
    x, r, p = work.x, work.r, work.p
    if dual:
        if not _factorise_dual(fixed, stop - start, work):
            return np.nan
    elif not _factorise_primal(items, fixed, i, start, stop, base, work):
        return np.nan
    enough = (8 * np.finfo(p.dtype).eps) ** 2
    for _ in range(4):
        objective = _residual(items, fixed, i, start, stop, base, work)
        if dual:
            _solve_dual(stop - start, work)
        else:
            for c in range(x.size):
                p[c] = r[c]
            _cholesky_solve(work.system, x.size, p)
        size, step = _dot(x, x), _dot(p, p)
        if not step <= size / 4:
            return objective if step == 0 else np.nan
        for c in range(x.size):
            objective -= r[c] * p[c]
            x[c] += p[c]
        # What is left is smaller than this step as the step is smaller than x.
        if step * step <= enough * size * size:
            return objective
    return np.nan


@_jit
def _solve_cg(items, fixed, i, start, stop, max_steps, tol, warm, work):
    """Take conjugate gradient steps on (I + P^T E P) x = b from the given x, until |r| <= tol |b|."""
    w0, x, b, r, p, q, v = fixed.unobserved_weight, work.x, work.b, work.r, work.p, work.q, work.v
    k = x.size
    constant = 0.0
    for c in range(k):
        b[c], v[c], p[c] = 0, 0, x[c]
    for top in range(start, stop, CHUNK):
        count = min(CHUNK, stop - top)
        if stop - start > CHUNK:
            _gather(items, fixed, i, top, top + count, work)
        for t in range(count):
            g = (w0 + work.extra[t]) * work.target[t]
            work.coef[t] = g
            constant += g * work.target[t]
        _add_combination(work.rows, count, work.coef, b, q)
        if warm:
            _add_normal_product(work.rows, count, work.extra, p, v)
    for c in range(k):
        r[c] = b[c] - x[c] - v[c]
        p[c] = r[c]
    rr = _dot(r, r)
    enough = tol**2 * _dot(b, b)
    for _ in range(max_steps):
        if rr <= enough:
            break
        for c in range(k):
            q[c] = p[c]
        for top in range(start, stop, CHUNK):
            count = min(CHUNK, stop - top)
            if stop - start > CHUNK:
                _gather(items, fixed, i, top, top + count, work)
            _add_normal_product(work.rows, count, work.extra, p, q)
        alpha = rr / _dot(p, q)
        for c in range(k):
            x[c] += alpha * p[c]
            r[c] -= alpha * q[c]
        previous, rr = rr, _dot(r, r)
        for c in range(k):
            p[c] = r[c] + rr / previous * p[c]
    # L_i(x) = sum_S (w0 + e_j) a_j^2 - x.(b + r)
    return constant - _dot(x, b) - _dot(x, r)


@_jit_inline
def _solve_item(items, fixed, i, plan, warm, x, work):
    """Solve item i; x is its factor in the eigenbasis, before (if warm) and after.

    Returns its objective, NaN if it could not be solved, and whether the system is singular.
    """
    start, stop = np.int64(items.indptr[i]), np.int64(items.indptr[i + 1])
    k, scale = x.size, work.scale
    # Where D vanishes relative to its largest value, P does too: the minimum norm is 0 there.
    cutoff = k * _EPS * fixed.spectrum[k - 1]
    singular, base = False, 0.0
    for c in range(k):
        d = fixed.spectrum[c] + items.ridge[i]
        if d > cutoff:
            scale[c] = 1 / np.sqrt(d)
            base = 1.0
        else:
            scale[c] = 0
            singular = True
    if base == 0.0:  # nothing is shared; the system may be regular all the same
        singular = items.weights[i] == 0
        for c in range(k):
            scale[c] = 1
    if stop - start <= CHUNK:
        _gather(items, fixed, i, start, stop, work)
    steps, warm = plan.max_steps, warm and base > 0
    if items.weights[i] == 0:  # the system is the identity, for which one step from 0 is exact
        steps, warm = 1, False
    elif plan.paths[i] != CG or base == 0.0:
        steps, warm = 0, False
    for c in range(k):
        work.x[c] = x[c] / scale[c] if warm and scale[c] > 0 else 0.0
    if steps > 0:
        objective = _solve_cg(items, fixed, i, start, stop, steps, plan.tol, warm, work)
    else:
        dual = plan.paths[i] == DUAL and base > 0
        objective = _solve_exact(items, fixed, i, start, stop, base, dual, work)
    for c in range(k):
        x[c] = scale[c] * work.x[c]
    return objective, singular


# -------------------------------------------------------------------------------------- shards
#
# Each function with a `first` and a `last` handles one shard. The driver below it runs all shards in parallel;
# no result depends on which thread took which shard.


@_jit
def solve_shard(first, last, items, fixed, plan, warm, x, objectives, squares, singular):
    """Solve the items first:last in place; set their objectives (NaN: not solved) and squared norms."""
    k, T = x.shape[1], x.dtype
    work = _Work(
        scale=np.empty(k, T),
        rows=np.empty((CHUNK, k), T),
        extra=np.empty(CHUNK),
        target=np.empty(CHUNK),
        coef=np.empty(CHUNK, T),
        system=np.empty((k, k), T),
        transposed=np.empty((k, plan.max_dual), T),
        ones=np.ones(k, T),
        x=np.empty(k),
        b=np.empty(k),
        r=np.empty(k),
        p=np.empty(k, T),
        q=np.empty(k, T),
        v=np.empty(k, T),
    )
    for i in range(first, last):
        if items.indptr[i] < items.indptr[i + 1]:
            objectives[i], singular[i] = _solve_item(items, fixed, i, plan, warm, x[i], work)
            squares[i] = _dot(x[i], x[i])
        else:
            objectives[i], singular[i], squares[i] = 0, False, 0
            for c in range(k):
                x[i, c] = 0


@_jit_parallel
def solve(shards, items, fixed, plan, warm, x, objectives, squares, singular):
    """Solve all items; see `solve_shard`."""
    for s in prange(shards.shape[0]):
        solve_shard(
            shards[s, 0],
            shards[s, 1],
            items,
            fixed,
            plan,
            warm,
            x,
            objectives,
            squares,
            singular,
        )


@_jit
def gram_shard(first, last, part_size, V, parts):
    """Set parts[p] = V_p^T V_p for the rows of the parts first:last, in float64."""
    k = V.shape[1]
    block, product = np.empty((_BLOCK, k)), np.empty((k, k))
    for p in range(first, last):
        for c in range(k):
            for d in range(k):
                parts[p, c, d] = 0
        stop = min((p + 1) * part_size, V.shape[0])
        for top in range(p * part_size, stop, _BLOCK):
            count = min(_BLOCK, stop - top)
            _copy_rows(V, top, block, 0, count)
            np.dot(block[:count].T, block[:count], product)
            for c in range(k):
                for d in range(k):
                    parts[p, c, d] += product[c, d]


@_jit_parallel
def gram(shards, part_size, V, parts):
    """Compute the partial Gramians of all parts; see `gram_shard`."""
    for s in prange(shards.shape[0]):
        gram_shard(shards[s, 0], shards[s, 1], part_size, V, parts)


@_jit
def rotate_shard(first, last, X, Q, out):
    """Set out[i] = X[i] Q for first <= i < last, in float64; out may be X."""
    k = X.shape[1]
    block, product = np.empty((_BLOCK, k)), np.empty((_BLOCK, k))
    for top in range(first, last, _BLOCK):
        count = min(_BLOCK, last - top)
        _copy_rows(X, top, block, 0, count)
        np.dot(block[:count], Q, product[:count])
        _copy_rows(product, 0, out, top, count)


@_jit_parallel
def rotate(shards, X, Q, out):
    """Rotate all rows; see `rotate_shard`."""
    for s in prange(shards.shape[0]):
        rotate_shard(shards[s, 0], shards[s, 1], X, Q, out)


@_jit
def sampled_product_shard(first, last, indices, indptr, U, V, out):
    """Set out[t] = u_i.v_j for the stored positions (i, j) of the rows first:last."""
    for i in range(first, last):
        for t in range(indptr[i], indptr[i + 1]):
            out[t] = _dot(U[i], V[indices[t]])


@_jit_parallel
def sampled_product(shards, indices, indptr, U, V, out):
    """Compute (U V^T) at all stored positions; see `sampled_product_shard`."""
    for s in prange(shards.shape[0]):
        sampled_product_shard(shards[s, 0], shards[s, 1], indices, indptr, U, V, out)


@_jit
def extra_weights_shard(first, last, items, other_weights, out):
    """Set out[i] = sum_S e_j for the items first:last."""
    for i in range(first, last):
        total = 0.0
        for t in range(items.indptr[i], items.indptr[i + 1]):
            e = np.float64(other_weights[items.indices[t]])
            if items.entry_weights.size:
                e *= items.entry_weights[t]
            if items.implicit:
                e *= abs(items.data[t])
            total += e
        out[i] = items.weights[i] * total


@_jit_parallel
def extra_weights(shards, items, other_weights, out):
    """Sum the extra weights of all items; see `extra_weights_shard`."""
    for s in prange(shards.shape[0]):
        extra_weights_shard(shards[s, 0], shards[s, 1], items, other_weights, out)
