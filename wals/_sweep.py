"""One sweep of one side with the other fixed: rows or columns, to fit or to project."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from . import _kernels as kernels
from . import _passes as passes
from ._compile import empty_lines, whole_lines
from ._linalg import empty_panels, set_panels
from ._parallel import even_shards, make_shards, parallel_section

#: Nanoseconds, as measured on one core for float32 at k = 64 and 128; only their ratios matter.
#: Per item; per stored entry and component, to gather it and take residuals, for each CG step, and
#: to gather it for that again; per multiply-add of P^T E P, and per number and multiply-add of a
#: Cholesky factorisation.
_ITEM, _GATHER, _STEP, _GATHER_AGAIN = 400.0, 0.3, 0.06, 0.15
_GRAM, _NUMBER, _CHOLESKY = 0.0205, 0.8, 0.007
#: The same for the dual path: per entry, per entry and component, per pair of entries, and per pair
#: and component.
_DUAL = (60.0, 0.3, 0.55, 0.0115)
#: Steps of CG to working precision, where the stored entries weigh as much as the others, and for
#: each factor of ten that they outweigh them by. In "auto" and "cg", on average.
_EXACT_STEPS, _EXACT_STEPS_PER_DECADE, _USUAL_STEPS = 6.0, 5.0, 2.0
#: Numbers of a panel, which is read several times: to read them from the third-level cache is
#: quicker than to gather them again. And those that the first-level cache holds.
_PANEL_SIZE, _STRIP_SIZE = 2**20, 2**12
#: Steps that an item takes at most, and when to stop before: see `_kernels._take_cg_steps`.
_CG_STEPS = {"exact": 60, "cg": 6, "auto": 20}
_CG_TOL = {"exact": 0.0, "cg": 1e-6, "auto": 1e-4}
#: "auto" rounds to one byte as long as an iteration lowers the loss by more than this part. What
#: rounding adds to the loss then is a hundredth of that, or less.
ROUGH_UNTIL = 2e-3
#: So many numbers a second-level cache holds as they are: to round them would gain nothing.
_FEW = 2**18
#: Cholesky is left the items whose stored entries outweigh the others by more decades than this:
#: they are far from the part that all items share, in which CG starts.
_MOST_DECADES = 2.7


class Objective(NamedTuple):
    """The constants of the objective; see `wals.WALS`."""

    unobserved_weight: float
    observed_weight: float
    regularization: float
    regularization_exponent: float
    implicit: bool

    def ridge(self, mass):
        """Return the regularization of items, given the sum of the weights of each."""
        return self.regularization * mass**self.regularization_exponent

    def penalty(self, factors, mass):
        """Return the regularization term of one side, given its factors and sums of weights."""
        squares = np.einsum("ij,ij->i", factors, factors)
        return float(np.sum(self.ridge(mass) * squares))


class Side(NamedTuple):
    """The items that a sweep solves, and how."""

    items: kernels.Items
    weights: np.ndarray  # (n,)
    other_weights: np.ndarray  # (m,), or empty: all 1
    mass: np.ndarray  # (n,) sum_j w_ij, over stored and unstored entries
    ratio: np.ndarray  # (n,) unobserved weight over the mean extra weight of the stored entries
    duals: kernels.Duals  # overwritten by each sweep; only "auto" needs them
    plan: kernels.Plan
    shards: np.ndarray  # (n_shards, 2)
    work: float  # nanoseconds of a sweep

    def replan(self, k, solver):
        """Return the same items, to be solved by another solver."""
        plan, shards, work = make_plan(self.items.indptr, self.ratio, k, solver)
        return self._replace(plan=plan, shards=shards, work=work)


class Swept(NamedTuple):
    """What a sweep tells about the items that it solved."""

    loss: float  # sum of the minima, with the penalty of this side
    penalty: float
    n_singular: int


def _constant(array, dtype=None):
    """Return the array as the kernels take it: aligned, C-contiguous and read-only."""
    array = np.require(array, dtype, ["C", "ALIGNED"]).view(np.ndarray)
    array.flags.writeable = False
    return array


def make_side(X, weights, other_weights, entry_weights, objective, k, solver, n_threads):
    """Prepare the rows of a CSR matrix for sweeps.

    Parameters
    ----------
    X : CSR matrix of shape (n, m)
        In canonical format; its arrays are used without copying.
    weights : ndarray of shape (n,)
        Weights of the rows.
    other_weights : ndarray of shape (m,)
        Weights of the columns.
    entry_weights : ndarray of shape (nnz,) or None
        Weights of the stored entries, in their order.
    objective : Objective
    k : int
        Number of components.
    solver : {"exact", "cg", "auto"}
    n_threads : int

    Returns
    -------
    side : Side
    """
    n, m = X.shape
    items = kernels.Items(
        data=_constant(X.data),
        indices=_constant(X.indices),
        indptr=_constant(X.indptr),
        entry_weights=_constant(np.empty(0) if entry_weights is None else entry_weights, X.dtype),
        weights=_constant(objective.observed_weight * weights),
        ridge=_constant(np.empty(0)),
        implicit=objective.implicit,
    )
    if np.all(other_weights == 1):
        other_weights = np.empty(0)
    other_weights = _constant(other_weights)
    mass = np.empty(n)
    shards = make_shards(np.diff(X.indptr) + 1.0)
    with parallel_section(n_threads, X.nnz) as run:
        run(passes.extra_weights, passes.extra_weights_shard, shards, items, other_weights, mass)
    w0 = objective.unobserved_weight
    with np.errstate(all="ignore"):  # inf or NaN without extra weights: no path is ruled out
        ratio = w0 * np.diff(X.indptr) / mass
    mass += w0 * m
    items = items._replace(ridge=_constant(objective.ridge(mass)))
    plan = make_plan(X.indptr, ratio, k, solver)
    duals = _empty_duals(n, X.nnz if solver == "auto" else 0, X.dtype)
    return Side(items, weights, other_weights, mass, ratio, duals, *plan)


def _empty_duals(n, nnz, dtype):
    return kernels.Duals(np.empty(nnz, np.int8), np.empty(n, dtype))


def make_plan(indptr, ratio, k, solver):
    """Choose the cheapest path for each item, and shards of equal cost.

    Parameters
    ----------
    indptr : ndarray of shape (n + 1,)
    ratio : ndarray of shape (n,)
        See `Side`.
    k : int
        Number of components.
    solver : {"exact", "cg", "auto"}

    Returns
    -------
    plan : kernels.Plan
    shards : ndarray of shape (n_shards, 2)
    work : float
        The sum of the costs, in nanoseconds.
    """
    s = np.diff(indptr).astype(np.float64)
    chunk = int(np.clip(s.max(initial=1), 1, max(_PANEL_SIZE // k, 64)) + 7) // 8 * 8
    per_entry, per_number, per_pair, per_product = _DUAL
    dual = s * (per_entry + per_number * k) + s**2 * (per_pair + per_product * k)
    dual[s > min(k, chunk)] = np.inf
    again = np.where(s > chunk, _GATHER_AGAIN, 0.0)
    primal = s * k * (_GATHER + 2 * again + _GRAM * k / 2) + _NUMBER * k**2 + _CHOLESKY * k**3 / 6
    with np.errstate(divide="ignore"):
        decades = np.nan_to_num(-np.log10(ratio), nan=0.0).clip(0, 99)
    if solver == "exact":
        steps = np.minimum(_EXACT_STEPS + _EXACT_STEPS_PER_DECADE * decades, s + 3)
    else:
        steps = _USUAL_STEPS
    cg = s * k * (_GATHER + (_STEP + again) * steps)
    if solver != "cg":
        cg[decades > _MOST_DECADES] = np.inf
    if solver == "cg":
        dual[:] = primal[:] = np.inf
    costs = np.stack([dual, primal, cg])
    paths = np.argmin(costs, axis=0).astype(np.uint8)
    costs = np.min(costs, axis=0) + _ITEM
    plan = kernels.Plan(
        paths=_constant(paths),
        chunk=chunk,
        strip=min(max(_STRIP_SIZE // k // 8 * 8, 8), chunk),
        exact=solver == "exact",
        max_steps=_CG_STEPS[solver],
        tol=_CG_TOL[solver],
    )
    return plan, make_shards(costs), float(costs.sum())


def sweep(
    side, factors, fixed, objective, *, start=kernels.ZERO, rough=False, frame=None, n_threads
):
    """Solve every item of one side with the other side fixed.

    Parameters
    ----------
    side : Side
        The n items to solve.
    factors : ndarray of shape (n, k)
        Their factors: overwritten with the solution.
    fixed : ndarray of shape (m, k)
        The factors of the other side.
    objective : Objective
    start : {ZERO, FACTORS, DUALS}
        What CG starts from: 0, the factors, or the dual coefficients that the last sweep of this
        side has kept; see `_kernels`. A solution that is exact starts from nothing.
    rough : bool
        Whether steps may be those towards the solution for slightly rounded fixed factors: one byte
        for every number, where the data is float32.
    frame : ndarray of shape (k, k) or None
        If given, both sides are left in the eigenbasis of the fixed side, and `frame` is
        multiplied by this rotation: a fit has no reason to rotate back after each sweep.
    n_threads : int

    Returns
    -------
    swept : Swept
    """
    w0, n, k = objective.unobserved_weight, *factors.shape
    exact, ridge = side.plan.exact, side.items.ridge
    objectives, squares = np.empty(n), np.empty(n)
    work = side.work + _GRAM * (n + len(fixed)) * k**2
    with parallel_section(n_threads, work) as run:
        if w0 > 0:
            # Steps towards a solution need no more precision than the data; a solution does.
            precision = np.float64 if exact else factors.dtype
            spectrum, Q = np.linalg.eigh(w0 * _gram(fixed, precision, run))
            spectrum = spectrum.clip(0)
            Q = Q.astype(precision)
            out = empty_lines(fixed.shape, fixed.dtype) if frame is None else fixed
            basis = _rotate(fixed, Q, out, run)
            if start == kernels.FACTORS and not exact:
                _rotate(factors, Q, factors, run)
            # Where the common part vanishes, so does V Q: the minimum norm is 0 there.
            common = spectrum + (ridge.min() if n else 0.0)
            vanishing = common <= k * np.finfo(np.float64).eps * spectrum[-1]
            scale = np.where(vanishing, 0.0, 1 / np.sqrt(np.where(vanishing, 1.0, common)))
        else:
            # All that the items share is then the ridge, which is diagonal in any basis.
            spectrum, basis, scale = np.zeros(k), fixed, np.ones(k)
        n_bytes = 0 if exact or fixed.size <= _FEW else 1 if rough else 2
        in_place = w0 > 0 and frame is None  # a copy of the factors already
        shared = _fix(basis, spectrum, scale, side.other_weights, w0, n_bytes, in_place, run)
        args = (side.items, shared, side.plan, start, side.duals, factors, objectives, squares)
        run(kernels.solve, kernels.solve_shard, side.shards, *args)
        singular = spectrum[0] + ridge <= k * np.finfo(np.float64).eps * spectrum[-1]
        if w0 == 0:
            singular &= side.items.weights == 0
        for i in np.flatnonzero(np.isnan(objectives)):
            factors[i], objectives[i], singular[i] = _solve_least_norm(side.items, shared, i)
            squares[i] = np.sum(factors[i] ** 2, dtype=np.float64)
        if w0 > 0 and frame is None:
            _rotate(factors, Q.T, factors, run)
        elif w0 > 0:
            frame[:] = frame @ Q
    # Without any weight, 0 is as good as for an item without entries.
    singular &= (side.mass > 0) & (np.diff(side.items.indptr) > 0)
    penalty = float(np.sum(ridge * squares))
    return Swept(float(objectives.sum()), penalty, int(np.count_nonzero(singular)))


def _fix(basis, spectrum, scale, weights, w0, n_bytes, in_place, run):
    """Return the fixed side for the kernels, given its factors in their eigenbasis.

    float32 factors are rounded to so many bytes, if any.
    """
    (m, k), dtype = basis.shape, basis.dtype
    width, steps = whole_lines(k, basis), np.empty(0, dtype)
    arrays = [np.empty((0, width), t) for t in (dtype, np.int8, np.int16)]
    if n_bytes and dtype == np.float32:
        arrays[n_bytes] = codes = empty_lines((m, width), arrays[n_bytes].dtype)
        codes[:, k:] = 0
        steps = np.empty(m, dtype)
        shards = even_shards(m)
        run(passes.encode, passes.encode_shard, shards, _constant(basis), scale, codes, steps)
    else:
        arrays[0] = basis if in_place and width == k else empty_lines((m, width), dtype)
        arrays[0][:, k:] = 0
        np.multiply(basis, scale, out=arrays[0][:, :k], casting="same_kind")
    metric = scale**2
    spectrum = np.where(scale > 0, metric * spectrum, 1.0) if w0 > 0 else spectrum
    arrays += [steps, scale, spectrum, metric, weights]
    return kernels.Fixed(*map(_constant, arrays), w0)


class Momentum:
    """Nesterov's extrapolation of one side between iterations, restarted when the loss rises.

    With each solution for V after the t-th iteration, the next starts from V_t + beta (V_t -
    V_(t-1)), where beta = (theta_t - 1) / theta_(t+1) rises from 0 to 1.
    """

    def __init__(self):
        self.theta, self.previous, self.frame, self.loss = 1.0, None, None, np.inf

    def extrapolate(self, V, frame, loss, n_threads):
        """Move V, in these coordinates, after an iteration that ended with this loss."""
        if self.previous is None:
            self.previous = V.copy()
        else:
            self.theta = 1.0 if loss > self.loss else self.theta
            theta = (1 + np.sqrt(1 + 4 * self.theta**2)) / 2
            beta, self.theta = (self.theta - 1) / theta, theta
            with parallel_section(n_threads, _GRAM * V.size * V.shape[1]) as run:
                turn = (self.frame.T @ frame).astype(V.dtype)
                _rotate(self.previous, turn, self.previous, run)
                shards = even_shards(len(V))
                run(passes.extrapolate, passes.extrapolate_shard, shards, V, self.previous, beta)
        self.frame, self.loss = frame.copy(), loss


def spectral_start(rows, cols, V, *, n_iter=2, n_threads):
    """Return an orthogonal basis of nearly the dominant right singular vectors of the targets.

    Where all weights are equal and nothing is regularized, alternating least squares is orthogonal
    (subspace) iteration.

    Parameters
    ----------
    rows, cols : Side
    V : ndarray of shape (m, k)
        Drawn from any one continuous distribution.
    n_iter, n_threads : int

    Returns
    -------
    V : ndarray of shape (m, k)
        Its columns have the norm that balances both sides for the largest singular value.
    """
    k = V.shape[1]
    random = V - V.mean()
    equal = Objective(1.0, 0.0, 0.0, 0.0, rows.items.implicit)
    rows, cols = _with_equal_weights(rows), _with_equal_weights(cols)
    U, V = np.empty((len(rows.weights), k), V.dtype), random.copy()
    frame = np.eye(k)  # in any coordinates, U and V have the basis that is looked for in common
    for _ in range(n_iter):
        sweep(rows, U, V, equal, rough=True, frame=frame, n_threads=n_threads)
        sweep(cols, V, U, equal, rough=True, frame=frame, n_threads=n_threads)
    with parallel_section(n_threads, _GRAM * V.size * k) as run:
        left, right = _gram(U, np.float64, run), _gram(V, np.float64, run)
        square, Q = np.linalg.eigh(right)
        largest = np.linalg.eigvals(left @ right).real.max() ** 0.25
        regular = square > k * np.finfo(V.dtype).eps * square[-1]
        largest = largest if largest > 0 else 1.0
        V = _rotate(V, Q * np.where(regular, largest / np.sqrt(square.clip(1e-300)), 0), V, run)
    # More components than the matrix has rank: whatever may grow.
    V[:, ~regular] = random[:, ~regular]
    return V


def _with_equal_weights(side):
    """Return the same items, for sweeps in which only the unobserved weight counts."""
    n = len(side.weights)
    items = side.items._replace(weights=_constant(np.zeros(n)), ridge=_constant(np.zeros(n)))
    paths = _constant(np.full(n, kernels.CG, np.uint8))
    plan = side.plan._replace(paths=paths, exact=False, max_steps=1, tol=0.0)
    return side._replace(items=items, plan=plan, duals=_empty_duals(n, 0, side.duals.steps.dtype))


def rotate_back(factors, frame, n_threads):
    """Undo the rotation that sweeps have left the factors in."""
    with parallel_section(n_threads, _GRAM * factors.size * len(frame)) as run:
        _rotate(factors, frame.T, factors, run)


def _solve_least_norm(items, fixed, i):
    """Solve one item, singular to working precision, in float64 by a singular value decomposition.

    It minimises |M u - c|^2 with M = [(s + lam)^1/2; E^1/2 B] and c = [0; E^-1/2 b], in the
    notation of `_kernels` and with the factors of the fixed side in their eigenbasis in B.

    Returns
    -------
    u : ndarray of shape (k,)
        The solution of minimum norm.
    objective : float
    singular : bool
        Whether M has not full rank.
    """
    stored = slice(items.indptr[i], items.indptr[i + 1])
    e, a = kernels.entries(items, fixed.weights, i)
    j, w0 = items.indices[stored], fixed.unobserved_weight
    present, k = fixed.scale > 0, len(fixed.scale)
    P = max(fixed[:3], key=len)[j, :k].astype(np.float64)
    if fixed.steps.size:
        P *= fixed.steps[j, None]
    B = np.divide(P, fixed.scale, out=np.zeros(P.shape), where=present)
    D = np.divide(fixed.spectrum, fixed.metric, out=np.zeros(k), where=present)
    D[present] += items.ridge[i]
    F = np.sqrt(np.maximum(e, kernels.LEAST_EXTRA * w0))
    M = np.concatenate([np.diag(np.sqrt(D)), F[:, None] * B])
    c = np.concatenate([np.zeros(k), np.divide((w0 + e) * a, F, out=np.zeros(len(F)), where=F > 0)])
    u, _, rank, _ = np.linalg.lstsq(M, c, rcond=None)
    p = B @ u
    objective = np.sum((w0 + e) * (a - p) ** 2 - w0 * p**2) + D @ u**2
    return u, objective, rank < k


def _rotate(X, Q, out, run):
    """Set out = X Q, which may be X."""
    panels = empty_panels(*Q.shape, Q)
    wide = np.zeros((len(Q), panels[:, 0].size), Q.dtype)
    wide[:, : len(Q)] = Q
    set_panels(wide, panels)
    shards = even_shards(len(X))
    run(passes.rotate, passes.rotate_shard, shards, _constant(X), _constant(panels), out)
    return out


def _gram(V, precision, run):
    """Return V^T V, from partial sums that do not depend on the number of threads."""
    n, k = V.shape
    size = max(1024, -(-n // 16))
    parts = np.empty((-(-n // size), k, k))
    ends, like = np.arange(len(parts) + 1), np.empty(0, precision)
    shards = np.stack([ends[:-1], ends[1:]], axis=1)
    run(passes.gram, passes.gram_shard, shards, size, _constant(V), like, parts)
    upper = np.triu(parts.sum(axis=0))
    return upper + np.triu(upper, 1).T


def transpose(X, *, n_threads):
    """Return the transpose of a CSR matrix in CSR format, with indices as small as they may be."""
    n, m = X.shape
    n_parts = max(1, min(n_threads, X.nnz // (4 * max(m, 1))))  # so that the counts stay small
    bounds = np.searchsorted(X.indptr, np.linspace(0, X.nnz, n_parts + 1)).astype(np.int64)
    bounds[0], bounds[-1] = 0, n
    parts = np.stack([np.arange(n_parts), np.arange(1, n_parts + 1)], axis=1)
    counts = np.empty((n_parts, m), dtype=np.int64)
    index_type = sp.get_index_dtype(maxval=max(n, X.nnz))
    data, indices = np.empty(X.nnz, X.dtype), np.empty(X.nnz, index_type)
    structure = (_constant(X.indices), _constant(X.indptr))
    with parallel_section(n_threads, X.nnz) as run:
        run(passes.count_columns, passes.count_columns_shard, parts, bounds, *structure, counts)
        indptr = np.concatenate([[0], np.cumsum(counts.sum(axis=0))]).astype(index_type)
        places = indptr[:-1] + np.cumsum(counts, axis=0) - counts
        args = (bounds, _constant(X.data), *structure, places, data, indices)
        run(passes.transpose, passes.transpose_shard, parts, *args)
    return sp.csr_array((data, indices, indptr), shape=(m, n))


def sampled_product(U, V, pattern, *, n_threads):
    """Return u_i.v_j for the stored positions (i, j) of a CSR matrix, in their order."""
    out = np.empty(pattern.nnz, dtype=U.dtype)
    shards = make_shards(np.diff(pattern.indptr) + 1)
    with parallel_section(n_threads, _STEP * out.size * U.shape[1]) as run:
        run(
            passes.sampled_product,
            passes.sampled_product_shard,
            shards,
            _constant(pattern.indices),
            _constant(pattern.indptr),
            _constant(U),
            _constant(V),
            out,
        )
    return out
