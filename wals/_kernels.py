"""Numba kernels: arrays and scalars in, arrays out.

One *item* is a row in a row sweep and a column in a column sweep. With the other side V fixed,
item i with stored positions S, base weight w0, extra weights e_j and ridge lam_i minimises

    L_i(u) = sum_S (w0 + e_j)(a_j - u.v_j)^2 + sum_(not S) w0 (u.v_j)^2 + lam_i |u|^2.

In the eigenbasis of the fixed side, w0 V^T V = Q diag(s) Q^T, the part that all items share is
diagonal, D = s + lam_i. Scaled by D^-1/2 as well, with p_j = D^-1/2 Q^T v_j for the rows of P and
u = Q D^-1/2 x, it is the identity, and the normal equations of every item are

    (I + P^T E P) x = P^T g,    E = diag(e_j),    g_j = (w0 + e_j) a_j.

The eigenvalues of I + P^T E P start at 1, so a Cholesky factorisation in the precision of the data
does not break down before max_j e_j / w0 nears the reciprocal of that precision, and conjugate
gradients need few steps.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from ._linalg import (
    add_combination,
    add_gram,
    add_normal_product,
    cholesky,
    cholesky_solve,
    copy_rows,
    dot,
    jit,
    jit_inline,
    jit_parallel,
)

#: Stored entries of one item that are gathered at once: P of a light item is read from memory
#: once.
CHUNK = 512
#: Ways to solve an item: Cholesky in as many dimensions as it has entries, in k dimensions, and
#: CG.
DUAL, PRIMAL, CG = 0, 1, 2
#: Rows that are rotated, or added to a Gramian, at once.
_BLOCK = 256
#: An extra weight, relative to the unobserved one, that is 0 to working precision.
LEAST_EXTRA = 1e-20
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
    tol: float  # CG stops after a step that lowers the objective by no more than this part
    complete: bool  # whether to solve exactly what takes more steps than that


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


# ------------------------------------------------------------------------------------- one item


@jit
def _entry(items, other_weights, i, t):
    """Return e_j and a_j of entry t, which is of item i."""
    a = np.float64(items.data[t])
    e = items.weights[i] * other_weights[items.indices[t]]
    if items.entry_weights.size:
        e *= items.entry_weights[t]
    if items.implicit:
        e *= abs(a)
        a = 1.0 if a > 0 else 0.0
    return e, a


@jit
def entries(items, other_weights, i):
    """Return e_j and a_j of all entries of item i, in float64."""
    start, stop = items.indptr[i], items.indptr[i + 1]
    e, a = np.empty(stop - start), np.empty(stop - start)
    for t in range(start, stop):
        e[t - start], a[t - start] = _entry(items, other_weights, i, t)
    return e, a


@jit
def _gather(items, fixed, i, start, stop, work):
    """Gather p_j, e_j and a_j of the stored entries start:stop of item i."""
    scale, rows = work.scale, work.rows
    for t in range(start, stop):
        j = items.indices[t]
        work.extra[t - start], work.target[t - start] = _entry(items, fixed.weights, i, t)
        for c in range(scale.size):
            rows[t - start, c] = scale[c] * fixed.factors[j, c]


@jit_inline
def _residual(items, fixed, i, start, stop, base, work):
    """Set r = P^T (g - E P x) - base x and return the objective at x.

    P x is summed in float64: g - E P x nearly cancels where e_j is large. In these terms

        L_i(x) = sum_S [(w0 + e_j)(a_j - p_j.x)^2 - w0 (p_j.x)^2] + base x.x.
    """
    w0, rows, x, r = fixed.unobserved_weight, work.rows, work.x, work.r
    objective = base * dot(x, x)
    for c in range(r.size):
        r[c] = -base * x[c]
    for top in range(start, stop, CHUNK):
        count = min(CHUNK, stop - top)
        if stop - start > CHUNK:
            _gather(items, fixed, i, top, top + count, work)
        for t in range(count):
            px = dot(rows[t], x)
            e, a = work.extra[t], work.target[t]
            objective += (w0 + e) * (a - px) ** 2 - w0 * px**2
            work.coef[t] = (w0 + e) * a - e * px
        add_combination(rows, count, work.coef, r, work.q)
    return objective


@jit_inline
def _solve_primal(items, fixed, i, start, stop, base, work):
    """Factorise A = base I + P^T E P and set x = A^-1 P^T g; False if A is singular."""
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
        add_combination(work.rows, count, coef, x, work.q)
        for t in range(count):
            coef[t] = work.extra[t]
        add_gram(system, k, work.rows, count, coef)
    if not cholesky(system, k):
        return False
    for c in range(k):
        p[c] = x[c]
    cholesky_solve(system, k, p)
    for c in range(k):
        x[c] = p[c]
    return True


@jit_inline
def _solve_dual(fixed, count, work):
    """Factorise I + F P P^T F, F = E^1/2, and set x = P^T F y with (I + F P P^T F) y = F^-1 g.

    An e_j of 0 is moved to LEAST_EXTRA w0, which keeps F^-1 finite.
    """
    system, transposed, coef = work.system, work.transposed, work.coef
    k, w0 = work.x.size, fixed.unobserved_weight
    for t in range(count):
        root = np.sqrt(max(work.extra[t], LEAST_EXTRA * w0))
        for c in range(k):
            transposed[c, t] = root * work.rows[t, c]
        coef[t] = (w0 + work.extra[t]) * work.target[t] / root if root > 0 else 0.0
        for u in range(count):
            system[t, u] = 0
        system[t, t] = 1
    add_gram(system, count, transposed, k, work.ones)
    if not cholesky(system, count):
        return False
    cholesky_solve(system, count, coef)
    for c in range(k):
        total = 0.0
        for t in range(count):
            total += transposed[c, t] * coef[t]
        work.x[c] = total
    return True


@jit_inline
def _correct_dual(count, work):
    """Set p = (I + P^T E P)^-1 r = r - P^T F (I + F P P^T F)^-1 F P r (Woodbury)."""
    transposed, coef, p = work.transposed, work.coef, work.p
    for t in range(count):
        coef[t] = 0
    for c in range(p.size):
        p[c] = work.r[c]
        for t in range(count):
            coef[t] += transposed[c, t] * p[c]
    cholesky_solve(work.system, count, coef)
    for c in range(p.size):
        total = p[c]
        for t in range(count):
            total -= transposed[c, t] * coef[t]
        p[c] = total


@jit
def _solve_exact(items, fixed, i, start, stop, base, dual, work):
    """Solve by Cholesky and iterative refinement, with residuals in more precision.

    Returns the objective, or NaN if the system is singular to working precision.
    """
    x, r, p = work.x, work.r, work.p
    if dual:
        if not _solve_dual(fixed, stop - start, work):
            return np.nan
    elif not _solve_primal(items, fixed, i, start, stop, base, work):
        return np.nan
    enough = (np.finfo(p.dtype).eps / 4) ** 2
    for _ in range(4):
        objective = _residual(items, fixed, i, start, stop, base, work)
        if dual:
            _correct_dual(stop - start, work)
        else:
            for c in range(x.size):
                p[c] = r[c]
            cholesky_solve(work.system, x.size, p)
        size, step = dot(x, x), dot(p, p)
        if not step <= size / 4:
            return objective if step == 0 else np.nan
        for c in range(x.size):
            objective -= r[c] * p[c]
            x[c] += p[c]
        # The error that is left is smaller than this step as the step is smaller than x.
        if step * step <= enough * size * size:
            return objective
    return np.nan


@jit
def _solve_cg(items, fixed, i, start, stop, max_steps, tol, complete, warm, work):
    """Take conjugate gradient steps on (I + P^T E P) x = b from x; return the objective.

    A step of length alpha along p lowers the objective by alpha |r|^2. The last step is the first
    that lowers it by no more than tol of it. If there was none, and `complete`, returns NaN.
    """
    w0, x, b, r, p, q, v = fixed.unobserved_weight, work.x, work.b, work.r, work.p, work.q, work.v
    k = x.size
    constant = 0.0
    for c in range(k):
        b[c], p[c], v[c] = 0, x[c], 0
    for top in range(start, stop, CHUNK):
        count = min(CHUNK, stop - top)
        if stop - start > CHUNK:
            _gather(items, fixed, i, top, top + count, work)
        for t in range(count):
            g = (w0 + work.extra[t]) * work.target[t]
            work.coef[t] = g
            constant += g * work.target[t]
        add_combination(work.rows, count, work.coef, b, q)
        if warm:
            add_normal_product(work.rows, count, work.extra, p, v)
    for c in range(k):
        r[c] = b[c] - x[c] - v[c]
        p[c] = r[c]
    rr = dot(r, r)
    # L_i(x) = sum_S (w0 + e_j) a_j^2 - x.(b + r)
    objective = constant - dot(x, b) - dot(x, r)
    noise = np.finfo(p.dtype).eps * constant
    for _ in range(max_steps):
        if rr == 0:
            complete = False
            break
        for c in range(k):
            q[c] = p[c]
        for top in range(start, stop, CHUNK):
            count = min(CHUNK, stop - top)
            if stop - start > CHUNK:
                _gather(items, fixed, i, top, top + count, work)
            add_normal_product(work.rows, count, work.extra, p, q)
        alpha = rr / dot(p, q)
        decrease = alpha * rr
        objective -= decrease
        for c in range(k):
            x[c] += alpha * p[c]
            r[c] -= alpha * q[c]
        if decrease <= max(tol * objective, noise):
            complete = False
            break
        previous, rr = rr, dot(r, r)
        for c in range(k):
            p[c] = r[c] + rr / previous * p[c]
    return np.nan if complete else constant - dot(x, b) - dot(x, r)


@jit_inline
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
    steps, complete, warm = plan.max_steps, plan.complete, warm and base > 0
    if items.weights[i] == 0:  # the system is the identity, for which one step from 0 is exact
        steps, complete, warm = 1, False, False
    elif plan.paths[i] != CG or base == 0.0:
        steps, warm = 0, False
    for c in range(k):
        work.x[c] = x[c] / scale[c] if warm and scale[c] > 0 else 0.0
    objective = np.nan
    if steps > 0:
        objective = _solve_cg(items, fixed, i, start, stop, steps, plan.tol, complete, warm, work)
    if np.isnan(objective) and (base > 0 or stop - start >= k):
        dual = plan.paths[i] == DUAL and base > 0
        objective = _solve_exact(items, fixed, i, start, stop, base, dual, work)
    for c in range(k):
        x[c] = scale[c] * work.x[c]
    return objective, singular


# -------------------------------------------------------------------------------------- shards
#
# Each function with a `first` and a `last` handles one shard. The driver below it runs all shards
# in parallel; no result depends on which thread took which shard.


@jit
def solve_shard(first, last, items, fixed, plan, warm, x, objectives, squares, singular):
    """Solve the items first:last in place; set their objectives (NaN: failed) and |u_i|^2."""
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
            squares[i] = dot(x[i], x[i])
        else:
            objectives[i], singular[i], squares[i] = 0, False, 0
            for c in range(k):
                x[i, c] = 0


@jit_parallel
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


@jit
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
            copy_rows(V, top, block, 0, count)
            np.dot(block[:count].T, block[:count], product)
            for c in range(k):
                for d in range(k):
                    parts[p, c, d] += product[c, d]


@jit_parallel
def gram(shards, part_size, V, parts):
    """Compute the partial Gramians of all parts; see `gram_shard`."""
    for s in prange(shards.shape[0]):
        gram_shard(shards[s, 0], shards[s, 1], part_size, V, parts)


@jit
def rotate_shard(first, last, X, Q, out):
    """Set out[i] = X[i] Q for first <= i < last, in float64; out may be X."""
    k = X.shape[1]
    block, product = np.empty((_BLOCK, k)), np.empty((_BLOCK, k))
    for top in range(first, last, _BLOCK):
        count = min(_BLOCK, last - top)
        copy_rows(X, top, block, 0, count)
        np.dot(block[:count], Q, product[:count])
        copy_rows(product, 0, out, top, count)


@jit_parallel
def rotate(shards, X, Q, out):
    """Rotate all rows; see `rotate_shard`."""
    for s in prange(shards.shape[0]):
        rotate_shard(shards[s, 0], shards[s, 1], X, Q, out)


@jit
def sampled_product_shard(first, last, indices, indptr, U, V, out):
    """Set out[t] = u_i.v_j for the stored positions (i, j) of the rows first:last."""
    for i in range(first, last):
        for t in range(indptr[i], indptr[i + 1]):
            out[t] = dot(U[i], V[indices[t]])


@jit_parallel
def sampled_product(shards, indices, indptr, U, V, out):
    """Compute (U V^T) at all stored positions; see `sampled_product_shard`."""
    for s in prange(shards.shape[0]):
        sampled_product_shard(shards[s, 0], shards[s, 1], indices, indptr, U, V, out)


@jit
def extra_weights_shard(first, last, items, other_weights, out):
    """Set out[i] = sum_S e_j for the items first:last."""
    for i in range(first, last):
        total = 0.0
        for t in range(items.indptr[i], items.indptr[i + 1]):
            total += _entry(items, other_weights, i, t)[0]
        out[i] = total


@jit_parallel
def extra_weights(shards, items, other_weights, out):
    """Sum the extra weights of all items; see `extra_weights_shard`."""
    for s in prange(shards.shape[0]):
        extra_weights_shard(shards[s, 0], shards[s, 1], items, other_weights, out)
