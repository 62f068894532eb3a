"""Numba kernels: arrays and scalars in, arrays out.

One *item* is a row in a row sweep and a column in a column sweep. With the other side V fixed,
item i with stored positions S, base weight w0, extra weights e_j and ridge lam_i minimises

    L_i(u) = sum_S (w0 + e_j)(a_j - u.v_j)^2 + sum_(not S) w0 (u.v_j)^2 + lam_i |u|^2.

In the eigenbasis of the fixed side, w0 V^T V = Q diag(s) Q^T, the part that all items share is
diagonal. Scaled as well, by g = (s + min_i lam_i)^-1/2, it is nearly or wholly the identity: with
p_j = g Q^T v_j for the rows of P and u = Q g x, the normal equations of every item are

    (D + P^T E P) x = P^T b,    D = diag(g^2 (s + lam_i)),  E = diag(e_j),  b_j = (w0 + e_j) a_j.

D starts at 1, so a Cholesky factorisation in the precision of the data does not break down before
max_j e_j / w0 nears the reciprocal of that precision, and conjugate gradients need few steps.

The solution is x = D^-1 P^T c with the dual coefficients c = b - E P x. Between two sweeps of one
side, these change less than x does, and not at all with the coordinates of the other side: so CG
starts from the c of the sweep before, and no factors are rotated for it to start from.
"""

from typing import NamedTuple

import numpy as np

from .compile import (
    SHARD,
    THREAD,
    empty_lines,
    epsilon,
    fill,
    jit,
    jit_inline,
    jit_item,
    kernel,
    lanes,
    lanes_of_line,
    least,
    load,
    load_as,
    prefetch,
    store,
    take,
    this_call,
    total,
    whole_lines,
    widen,
)
from .linalg import (
    add_combination,
    add_gram,
    add_normal_product,
    add_residual,
    dot,
    factorise,
    padded,
    set_products,
    set_products_of_four,
    solve_factorised,
)
from .team import in_threads

#: Ways to solve an item: Cholesky in as many dimensions as it has entries, in k dimensions, and
#: CG.
DUAL, PRIMAL, CG = 0, 1, 2
#: Entries between one whose row is gathered and one whose row is asked for.
_AHEAD = 16
#: An extra weight, relative to the unobserved one, that is 0 to working precision.
LEAST_EXTRA = 1e-20
#: Numbers none of which is larger are rounded to 0, where they are rounded to steps.
LEAST_LARGEST = np.float32(1e-30)
#: The first solution by CG in the precision of the data is worth so much, in squares of norms.
_FIRST_TOL = 1e-11
_MAX_CORRECTIONS = 8
#: What CG starts from: 0, the factors, or the dual coefficients of the sweep before.
ZERO, FACTORS, DUALS = 0, 1, 2


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
    """The other side, in the coordinates of the sweep: m items.

    P is in one of three arrays, and the others are empty: in `factors`, or rounded to multiples of
    steps[j] in row j. Codes take a quarter or half of the memory to gather from, and no number is
    off by more than 1/254, or 1/65,000, of the largest of its row. There are zeros where
    k' = whole_lines(k) exceeds k.
    """

    factors: np.ndarray  # (m, k') V Q g
    codes: np.ndarray  # (m, k') int8
    fine_codes: np.ndarray  # (m, k') int16
    steps: np.ndarray  # (m,), or empty
    scale: np.ndarray  # (k,) g, float64: 0 where all of s + lam_i vanishes
    spectrum: np.ndarray  # (k,) g^2 s, float64, or 1 where g = 0
    metric: np.ndarray  # (k,) g^2, float64
    weights: np.ndarray  # (m,), or empty: all 1
    unobserved_weight: float


class Duals(NamedTuple):
    """The dual coefficients of the last sweep, rounded to multiples of steps[i] in item i.

    They are kept if there is room for them. One byte is enough to start from.
    """

    codes: np.ndarray  # (nnz,) int8, or empty
    steps: np.ndarray  # (n,)


class Plan(NamedTuple):
    """How to solve each item."""

    paths: np.ndarray  # (n,) DUAL, PRIMAL or CG, uint8
    chunk: int  # an item with no more stored entries is gathered only once; a multiple of 8
    strip: int  # as many entries the nearest cache holds, while CG uses them; a multiple of 8
    largest: int  # stored entries of the item that has most
    exact: bool  # whether CG solves to working precision, and how many steps it takes at most,
    max_steps: int  # to do so, or at all;
    tol: float  # else, it stops when a step lowers the objective by no more than this part


class Work(NamedTuple):
    """Scratch of one thread; T is the precision of the data.

    Here k stands for whole_lines(k); what this adds are coordinates in which x = 0 and D = 1. A
    padded chunk, or largest item, has 16 more entries: panels are read eight rows at a time, see
    `linalg`, and factorised systems fill whole lines.
    """

    panel: np.ndarray  # (padded chunk, k) the gathered rows of P, T
    extra: np.ndarray  # (padded chunk,) e_j, T
    target: np.ndarray  # (padded chunk,) a_j, T
    root: np.ndarray  # (padded chunk,) F, T
    coef: np.ndarray  # (padded size,) T, often scratch
    duals: np.ndarray  # (padded size,) c_j, T
    products: np.ndarray  # (padded chunk,) float64
    four: np.ndarray  # (4, k) T
    system: np.ndarray  # (k, k) T
    pivots: np.ndarray  # (k,) of the factorised system, see `linalg.factorise`, T
    scale: np.ndarray  # (k,) g, T
    unscale: np.ndarray  # (k,) g^-1, or 0 where g = 0, T
    diagonal: np.ndarray  # (k,) D, T
    inverse: np.ndarray  # (k,) D^-1, T
    x: np.ndarray  # (k,) T
    r: np.ndarray  # (k,) T, the residual
    p: np.ndarray  # (k,) T
    q: np.ndarray  # (k,) T
    y: np.ndarray  # (k,) T
    exact_x: np.ndarray  # (k,) float64
    exact_r: np.ndarray  # (k,) float64


class Scratch(NamedTuple):
    """The memory of `Work` for all threads, which share no cache line, nor two that are adjacent.

    Here k stands for whole_lines(k), too.
    """

    panel: np.ndarray  # (threads, padded chunk, k)
    entries: np.ndarray  # (threads, 4, padded chunk) extra, target, root
    coefs: np.ndarray  # (threads, 3, padded size) coef, duals
    products: np.ndarray  # (threads, 2, padded chunk) float64
    four: np.ndarray  # (threads, 8, k)
    system: np.ndarray  # (threads, k, k)
    vectors: np.ndarray  # (threads, 14, k) pivots to y
    exact: np.ndarray  # (threads, 4, k) float64


def empty_scratch(plan, k, dtype, n_threads):
    """Return scratch for so many threads; what is not set by an item itself is 0, or 1."""
    room, most = plan.chunk + 16, max(plan.chunk, plan.largest) + 16
    width = whole_lines(k, np.empty(0, dtype))

    def empty(*shape, dtype=dtype):
        return empty_lines((n_threads, *shape), dtype)

    scratch = Scratch(
        panel=empty(room, width),
        entries=empty(4, room),
        coefs=empty(3, most),
        products=empty(2, room, dtype=np.float64),
        four=empty(8, width),
        system=empty(width, width),
        vectors=empty(14, width),
        exact=empty(4, width, dtype=np.float64),
    )
    scratch.coefs[:, 1] = scratch.vectors[:] = scratch.exact[:] = 0
    scratch.vectors[:, 3:5] = 1
    return scratch


# ------------------------------------------------------------------------------------- one item


@jit_item
def set_entries(
    data, indices, entry_weights, weight, other_weights, implicit, start, stop, extra, target
):
    """Set e_j and a_j of the stored entries start:stop, which are of an item of this weight."""
    for t in range(stop - start):
        target[t] = data[start + t]
        extra[t] = weight
    if other_weights.size:
        for t in range(stop - start):
            extra[t] *= other_weights[np.uint64(indices[start + t])]
    if entry_weights.size:
        for t in range(stop - start):
            extra[t] *= entry_weights[start + t]
    if implicit:
        for t in range(stop - start):
            extra[t] *= abs(target[t])
            target[t] = 1 if target[t] > 0 else 0


@jit
def _gather_rows(start, stop, indices, rows, steps, panel):
    """Gather the rows j = indices[t], start <= t < stop, times steps[j] if any; zeros pad them.

    Each line that is read asks for the same line of the row that is needed _AHEAD entries later,
    even if by an item to come: asking for all of a row at once would fill the queue of requests.
    """
    line, width = lanes_of_line(rows), panel.shape[1]
    whole, final = width // line * line, indices.size - 1
    for t in range(np.uint64(stop - start)):
        j = np.uint64(indices[start + t])
        ahead = np.uint64(indices[least(start + np.int64(t) + _AHEAD, final)])
        step = panel.dtype.type(1)
        if steps.size:
            prefetch(steps, ahead)
            step = steps[j]
        for c in range(0, whole, line):
            prefetch(rows, (ahead, c))
            for d in range(0, line, lanes(panel)):  # unrolled
                store(step * load_as(rows, (j, c + d), panel), panel, (t, c + d))
        if whole < width:
            prefetch(rows, (ahead, whole))
            for c in range(whole, width, lanes(panel)):
                store(step * load_as(rows, (j, c), panel), panel, (t, c))
    for t in range(stop - start, padded(stop - start)):
        for c in range(width):
            panel[t, c] = 0


def _gather_entries(items, fixed, i, start, stop, panel, extra, target):
    """Gather p_j, e_j and a_j of the stored entries start:stop of item i, and zeros that pad them.

    Returns how many places that takes.
    """
    set_entries(
        items.data,
        items.indices,
        items.entry_weights,
        items.weights[i],
        fixed.weights,
        items.implicit,
        start,
        stop,
        extra,
        target,
    )
    for t in range(stop - start, padded(stop - start)):
        extra[t] = target[t] = 0
    if fixed.codes.size:
        _gather_rows(start, stop, items.indices, fixed.codes, fixed.steps, panel)
    elif fixed.fine_codes.size:
        _gather_rows(start, stop, items.indices, fixed.fine_codes, fixed.steps, panel)
    else:
        _gather_rows(start, stop, items.indices, fixed.factors, fixed.steps, panel)
    return padded(stop - start)


#: Where every item is gathered, and where few are: a call, which is compiled once.
_gather, _gather_again = jit_inline(_gather_entries), jit_item(_gather_entries)


@jit_inline
def _take_cg_steps(items, fixed, plan, i, start, stop, tol, objective, x, work):
    """Take conjugate gradient steps from x, where r is the residual; D preconditions.

    A step of this length along p lowers the objective by length * r.D^-1 r. Stops when another
    step of the same length, or a first one of length 1, the most there is, would lower it by no
    more than tol times its absolute value. Returns the objective, and whether plan.max_steps were
    enough; the dual coefficients follow x.
    """
    r, p, q, D, inverse = work.r, work.p, work.q, work.diagonal, work.inverse
    panel, kept, T = work.panel, stop - start <= plan.chunk, x.dtype.type
    zero = widen(fill(T(0), x))
    sums = zero
    for c in range(0, x.size, lanes(x)):
        z = load(inverse, c) * load(r, c)
        store(z, p, c)
        sums = sums + widen(z) * widen(load(r, c))
    length, rz = 1.0, total(sums)
    for _ in range(plan.max_steps):
        if length * rz <= tol * abs(objective):
            return objective, True
        for c in range(0, x.size, lanes(x)):
            store(load(D, c) * load(p, c), q, c)
        if kept:
            add_normal_product(work.panel, padded(stop - start), work.extra, p, work.coef, q)
        else:
            for top in range(start, stop, plan.strip):
                bottom = least(top + plan.strip, stop)
                count = _gather_again(items, fixed, i, top, bottom, panel, work.extra, work.target)
                add_normal_product(work.panel, count, work.extra, p, work.coef[top - start :], q)
        sums = zero
        for c in range(0, x.size, lanes(x)):
            sums = sums + widen(load(p, c)) * widen(load(q, c))
        before, length, sums = rz, rz / total(sums), zero
        alpha = T(length)
        for c in range(0, x.size, lanes(x)):
            store(load(x, c) + alpha * load(p, c), x, c)
            rest = load(r, c) - alpha * load(q, c)
            store(rest, r, c)
            sums = sums + widen(load(inverse, c) * rest) * widen(rest)
        for t in range(stop - start):
            work.duals[t] -= alpha * work.coef[t]
        rz = total(sums)
        objective -= length * before
        beta = T(rz / before)
        for c in range(0, x.size, lanes(x)):
            store(load(inverse, c) * load(r, c) + beta * load(p, c), p, c)
    return objective, length * rz <= tol * abs(objective)


@jit_item
def _recall(duals, i, start, stop, out):
    """Set out to the dual coefficients that item i was left with, and what pads them to 0."""
    step = out.dtype.type(duals.steps[i])
    for t in range(stop - start):
        out[t] = step * duals.codes[start + t]
    for t in range(stop - start, padded(stop - start)):
        out[t] = 0


@jit_item
def _keep(coef, duals, i, start, stop):
    """Keep the dual coefficients of item i."""
    largest, most = coef.dtype.type(0), coef.dtype.type(127)
    for t in range(stop - start):
        largest = max(largest, abs(coef[t]))
    usable = LEAST_LARGEST < largest < np.inf
    duals.steps[i] = largest / most if usable else 0
    inverse = most / largest if usable else coef.dtype.type(0)
    for t in range(stop - start):
        duals.codes[start + t] = np.int32(np.rint(coef[t] * inverse)) if usable else 0


@jit_inline
def _solve_cg(items, fixed, plan, i, start, stop, origin, work):
    """Improve x, or D^-1 P^T c, by a few steps; return the objective."""
    x, r, w0 = work.x, work.r, fixed.unobserved_weight
    kept, objective = stop - start <= plan.chunk, 0.0
    if origin == DUALS:
        for top in range(start, stop, plan.strip):
            at, bottom = top - start if kept else 0, least(top + plan.strip, stop)
            panel, extra, target = work.panel[at:], work.extra[at:], work.target[at:]
            count = _gather(items, fixed, i, top, bottom, panel, extra, target)
            add_combination(panel, count, work.duals[top - start :], x)
        for c in range(x.size):
            x[c] *= work.inverse[c]
    for c in range(x.size):
        r[c] = -work.diagonal[c] * x[c]
        objective -= np.float64(x[c]) * r[c]
    for top in range(start, stop, plan.strip):
        at, bottom = top - start if kept else 0, least(top + plan.strip, stop)
        panel, extra, target = work.panel[at:], work.extra[at:], work.target[at:]
        if origin != DUALS or not kept:  # not gathered above, or no longer there
            _gather(items, fixed, i, top, bottom, panel, extra, target)
        c = work.duals[top - start :]
        objective += add_residual(panel, padded(bottom - top), extra, target, w0, x, c, r)
    return _take_cg_steps(items, fixed, plan, i, start, stop, plan.tol, objective, x, work)[0]


@jit_item
def _set_residual(items, fixed, plan, i, start, stop, at_zero, work):
    """Set exact_r = P^T (b - E P x) - D x for x = exact_x, which may be 0; return the objective.

    P x is summed in float64: b - E P x nearly cancels where e_j is large. In these terms

        L_i(x) = sum_S [(w0 + e_j)(a_j - p_j.x)^2 - w0 (p_j.x)^2] + x.(D x).
    """
    w0, x, exact_r = fixed.unobserved_weight, work.exact_x, work.exact_r
    coef, products, partial = work.coef, work.products, work.q
    objective = 0.0
    for c in range(x.size):
        exact_r[c] = -work.diagonal[c] * x[c]
        objective -= exact_r[c] * x[c]
    for top in range(start, stop, plan.chunk):
        bottom = least(top + plan.chunk, stop)
        if stop - start > plan.chunk:
            _gather_again(items, fixed, i, top, bottom, work.panel, work.extra, work.target)
        count = padded(bottom - top)
        if not at_zero:
            set_products(work.panel, count, x, products)
        for t in range(count):
            px = 0.0 if at_zero else products[t]
            e, a = np.float64(work.extra[t]), np.float64(work.target[t])
            objective += (w0 + e) * (a - px) ** 2 - w0 * px**2
            coef[t] = (w0 + e) * a - e * px
        for c in range(x.size):
            partial[c] = 0
        add_combination(work.panel, count, coef, partial)
        for c in range(x.size):
            exact_r[c] += partial[c]
    return objective


@jit_item
def _factorise_primal(items, fixed, plan, i, start, stop, work):
    """Factorise D + P^T E P; False if it is singular."""
    system, k = work.system, fixed.scale.size
    for c in range(len(system)):
        for d in range(len(system)):
            system[c, d] = 0
        system[c, c] = work.diagonal[c]
    for top in range(start, stop, plan.chunk):
        bottom = least(top + plan.chunk, stop)
        if stop - start > plan.chunk:
            _gather_again(items, fixed, i, top, bottom, work.panel, work.extra, work.target)
        add_gram(system, work.panel, padded(bottom - top), work.extra)
    for c in range(k, len(system)):
        system[c, c] = system[0, 0]  # no smaller or larger than what matters
    return factorise(system, len(system), work.pivots)


@jit_item
def _solve_dual(fixed, size, work):
    """Factorise I + F P D^-1 P^T F, F = E^1/2; set x = D^-1 P^T F y, (I + ...) y = F^-1 b.

    An e_j of 0 is moved to LEAST_EXTRA w0, which keeps F^-1 finite.
    """
    system, panel, root, y, s = work.system, work.panel, work.root, work.coef, work.p
    w0 = fixed.unobserved_weight
    for t in range(padded(size)):
        e = np.float64(work.extra[t])
        root[t] = np.sqrt(max(e, LEAST_EXTRA * w0))
        y[t] = (w0 + e) * work.target[t] / root[t] if root[t] > 0 else 0.0
    count, whole, four = padded(size), whole_lines(size, system), work.four
    for t in range(0, count, 4):
        for r in range(4):
            for c in range(s.size):
                four[r, c] = root[t + r] * work.inverse[c] * panel[t + r, c]
        set_products_of_four(four, panel, t, count, system[t:])
        for r in range(4):
            for u in range(t, count):
                system[t + r, u] *= root[u]
    for t in range(whole):
        for u in range(count if count > t else t, whole):
            system[t, u] = 0
        system[t, t] = 1 + system[t, t] if t < size else 1
    if not factorise(system, whole, work.pivots):
        return False
    for t in range(size, whole):
        y[t] = 0
    solve_factorised(system, whole, work.pivots, y)
    for c in range(s.size):
        s[c] = 0
    for t in range(size):
        y[t] *= root[t]
    add_combination(panel, padded(size), y, s)
    for c in range(s.size):
        work.exact_x[c] = work.inverse[c] * s[c]
    return True


@jit_item
def _correct_dual(size, work):
    """Set y = (D + P^T E P)^-1 r = D^-1 (r - P^T F (I + F P D^-1 P^T F)^-1 F P D^-1 r)."""
    panel, root, coef, r, y = work.panel, work.root, work.coef, work.r, work.y
    for c in range(y.size):
        y[c] = work.inverse[c] * r[c]
    set_products(panel, padded(size), y, coef)
    whole = whole_lines(size, work.system)
    for t in range(whole):
        coef[t] = root[t] * coef[t] if t < size else 0
    solve_factorised(work.system, whole, work.pivots, coef)
    for t in range(padded(size)):
        coef[t] *= -root[t]
    add_combination(panel, padded(size), coef, r)
    for c in range(y.size):
        y[c] = work.inverse[c] * r[c]


@jit_item
def _solve_exact(items, fixed, plan, i, start, stop, path, work):
    """Solve to working precision: a factorisation, or CG, corrects x until it stays as it is.

    Residuals are computed in more precision (iterative refinement). Returns the objective, or NaN
    if that does not converge, as in a system that is singular to working precision.
    """
    x, r, y, exact_x, exact_r = work.x, work.r, work.y, work.exact_x, work.exact_r
    k, factorised, energy = x.size, True, 0.0
    for c in range(k):
        exact_x[c] = 0
    if stop - start <= plan.chunk:
        _gather(items, fixed, i, start, stop, work.panel, work.extra, work.target)
    if path == DUAL:
        factorised = _solve_dual(fixed, stop - start, work)
    elif path == PRIMAL:
        factorised = _factorise_primal(items, fixed, plan, i, start, stop, work)
    if not factorised:
        return np.nan
    enough = (epsilon(x) / 4) ** 2
    previous = np.inf
    for correction in range(_MAX_CORRECTIONS):
        at_zero = correction == 0 and path != DUAL
        objective = _set_residual(items, fixed, plan, i, start, stop, at_zero, work)
        for c in range(k):
            r[c] = exact_r[c]
            y[c] = r[c] if path == PRIMAL else 0
        if path == DUAL:
            _correct_dual(stop - start, work)
        elif path == PRIMAL:
            solve_factorised(work.system, k, work.pivots, y)
        else:
            # The first correction is x; others need not be more precise than they matter to it.
            tol = _FIRST_TOL if at_zero else enough
            energy, done = _take_cg_steps(items, fixed, plan, i, start, stop, tol, energy, y, work)
            if not done:
                return np.nan
        step, size = dot(y, y), 0.0
        for c in range(k):
            objective -= exact_r[c] * y[c]
            exact_x[c] += y[c]
            size += exact_x[c] ** 2
        if not step <= previous / 16:
            return np.nan
        # The error that is left is to this correction as this one is to the one before, or to x.
        if step * step <= enough * size * min(size, previous):
            for c in range(k):
                x[c] = exact_x[c]
            return objective
        previous = step
    return np.nan


@jit_inline
def _solve_item(items, fixed, plan, i, origin, duals, work):
    """Solve item i in the coordinates of the sweep; return its objective, NaN: failed."""
    start, stop = np.int64(items.indptr[i]), np.int64(items.indptr[i + 1])
    path, ridge, k = np.int64(plan.paths[i]), items.ridge[i], fixed.scale.size
    if fixed.unobserved_weight == 0 and ridge == 0:  # nothing is shared: D = 0
        path = PRIMAL
        if stop - start < k:
            return np.nan
    elif items.weights[i] == 0:  # D is the whole system, for which one step is exact
        path = CG
    if path == CG and not plan.exact:
        if origin == DUALS:
            _recall(duals, i, start, stop, work.duals)
        objective = _solve_cg(items, fixed, plan, i, start, stop, origin, work)
        if duals.codes.size:
            _keep(work.duals, duals, i, start, stop)
        return objective
    objective = np.nan
    for _ in range(2):
        objective = _solve_exact(items, fixed, plan, i, start, stop, path, work)
        if path != CG or not np.isnan(objective):
            break
        path = PRIMAL
    return objective


# ------------------------------------------------------------------------------------ all items


@kernel
def solve(
    team,
    taken,
    shards,
    items,
    fixed,
    plan,
    origin,
    duals,
    factors,
    objectives,
    squares,
    scratch,
):
    """Solve all items; set their factors, objectives (NaN: failed) and |u_i|^2.

    The factors are those in the eigenbasis, g x. Nothing is read of them unless they are the
    origin.
    """
    if team:
        in_threads(team, *this_call())
        return
    t, k = take(taken, THREAD), factors.shape[1]
    entries, coefs, vectors = scratch.entries[t], scratch.coefs[t], scratch.vectors[t]
    work = Work(
        panel=scratch.panel[t],
        extra=entries[0],
        target=entries[1],
        root=entries[2],
        coef=coefs[0],
        duals=coefs[1],
        products=scratch.products[t, 0],
        four=scratch.four[t],
        system=scratch.system[t],
        pivots=vectors[0],
        scale=vectors[1],
        unscale=vectors[2],
        diagonal=vectors[3],
        inverse=vectors[4],
        x=vectors[5],
        r=vectors[6],
        p=vectors[7],
        q=vectors[8],
        y=vectors[9],
        exact_x=scratch.exact[t, 0],
        exact_r=scratch.exact[t, 1],
    )
    x, D = work.x, work.diagonal
    for c in range(k):
        work.scale[c] = fixed.scale[c]
        work.unscale[c] = 1 / fixed.scale[c] if fixed.scale[c] > 0 else 0.0
    s = take(taken, SHARD)
    while s < len(shards):
        for i in range(shards[s, 0], shards[s, 1]):
            if i == shards[s, 0] or items.ridge[i] != items.ridge[i - 1]:
                for c in range(k):
                    D[c] = fixed.spectrum[c] + items.ridge[i] * fixed.metric[c]
                    work.inverse[c] = 1 / D[c]
            for c in range(x.size):
                x[c] = 0
            if origin == FACTORS:
                for c in range(k):
                    x[c] = factors[i, c] * work.unscale[c]
            if items.indptr[i] == items.indptr[i + 1]:
                objectives[i] = 0
                for c in range(k):
                    x[c] = 0
            else:
                objectives[i] = _solve_item(items, fixed, plan, i, origin, duals, work)
            for c in range(k):
                factors[i, c] = work.scale[c] * x[c]
            squares[i] = dot(factors[i], factors[i])
        s = take(taken, SHARD)
