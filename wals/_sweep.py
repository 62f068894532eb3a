"""One sweep of one side with the other fixed: rows or columns, to fit or to project."""

from typing import NamedTuple

import numpy as np

from . import _kernels as kernels
from ._parallel import make_shards, parallel_section

#: Passes over the gathered rows of an item: one to gather them and two for the right-hand side,
#: for each product with the system, and for each residual and correction.
_EXACT_PASSES = 1 + 2 + 2 + 2
_CG_PASSES = 1 + 2 + 2
#: Steps that an item takes at most, and when to stop before: see `_kernels._solve_cg`. With these,
#: the loss of "auto" ends within 1e-3 of that of "exact" on all data that was tried.
_CG_STEPS = {"exact": 0, "cg": 6, "auto": 20}
_CG_TOL = {"exact": 0.0, "cg": 1e-5, "auto": 1e-5}
#: "auto" leaves to Cholesky the items whose stored entries outweigh the unstored ones by more than
#: this: they are far from the part that all items share, in which CG starts.
_LEAST_RATIO = 0.002
#: Steps that "auto" takes on average, to tell what is cheaper.
_USUAL_STEPS = 3


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
        squares = np.einsum("ij,ij->i", factors, factors, dtype=np.float64)
        return float(self.ridge(mass) @ squares)


class Side(NamedTuple):
    """The items that a sweep solves, and how."""

    items: kernels.Items
    weights: np.ndarray  # (n,)
    other_weights: np.ndarray  # (m,)
    mass: np.ndarray  # (n,) sum_j w_ij, over stored and unstored entries
    ratio: np.ndarray  # (n,) unobserved weight over the mean extra weight of the stored entries
    plan: kernels.Plan
    shards: np.ndarray  # (n_shards, 2)
    work: float  # multiply-adds of a sweep

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
    other_weights = _constant(other_weights)
    mass = np.empty(n)
    shards = make_shards(np.diff(X.indptr) + 1.0)
    with parallel_section(n_threads, X.nnz) as run:
        run(kernels.extra_weights, kernels.extra_weights_shard, shards, items, other_weights, mass)
    w0 = objective.unobserved_weight
    with np.errstate(all="ignore"):  # inf or NaN without extra weights: no path is ruled out
        ratio = w0 * np.diff(X.indptr) / mass
    mass += w0 * m
    items = items._replace(ridge=_constant(objective.ridge(mass)))
    plan = make_plan(X.indptr, ratio, k, solver)
    return Side(items, weights, other_weights, mass, ratio, *plan)


def make_plan(indptr, ratio, k, solver):
    """Choose the cheapest path for each item, and shards of equal cost.

    Costs are counted in multiply-adds.

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
        The sum of the costs.
    """
    s = np.diff(indptr).astype(np.float64)
    never = np.full(s.shape, np.inf)
    dual = s**2 * k / 2 + s**3 / 6 + _EXACT_PASSES * s * k
    dual[s > min(k, kernels.CHUNK)] = np.inf
    primal = s * k**2 / 2 + k**3 / 6 + _EXACT_PASSES * s * k
    cg = (_CG_PASSES + 2 * _USUAL_STEPS) * s * k
    if solver == "auto":
        cg[ratio < _LEAST_RATIO] = np.inf
    costs = {
        "exact": (dual, primal, never),
        "cg": (never, never, cg),
        "auto": (dual, primal, cg),
    }[solver]
    paths = np.argmin(costs, axis=0).astype(np.uint8)
    on_dual = s[paths == kernels.DUAL]
    max_dual = int(on_dual.max()) if on_dual.size else 0
    costs = np.min(costs, axis=0) + 4.0 * k
    plan = kernels.Plan(
        _constant(paths), max_dual, _CG_STEPS[solver], _CG_TOL[solver], complete=solver == "auto"
    )
    return plan, make_shards(costs), float(costs.sum())


def sweep(side, factors, fixed, objective, *, warm=False, n_threads):
    """Solve every item of one side with the other side fixed.

    Parameters
    ----------
    side : Side
        The n items to solve.
    factors : ndarray of shape (n, k)
        Their factors: overwritten with the solution; where CG starts, if `warm`.
    fixed : ndarray of shape (m, k)
        The factors of the other side.
    objective : Objective
    warm : bool
    n_threads : int

    Returns
    -------
    swept : Swept
    """
    w0, n, k = objective.unobserved_weight, *factors.shape
    fixed = _constant(fixed)
    warm = warm and side.plan.max_steps > 0
    objectives, squares, singular = np.empty(n), np.empty(n), np.empty(n, dtype=bool)
    work = side.work + (n + len(fixed)) * k**2
    with parallel_section(n_threads, work) as run:
        if w0 > 0:
            spectrum, Q = np.linalg.eigh(w0 * _gram(fixed, run))
            basis = _rotate(fixed, Q, np.empty_like(fixed), run)
            if warm:
                _rotate(factors, Q, factors, run)
        else:
            # All that the items share is then the ridge, which is diagonal in any basis.
            spectrum, basis = np.zeros(k), fixed
        shared = kernels.Fixed(
            _constant(basis), _constant(spectrum.clip(0)), side.other_weights, w0
        )
        run(
            kernels.solve,
            kernels.solve_shard,
            side.shards,
            side.items,
            shared,
            side.plan,
            warm,
            factors,
            objectives,
            squares,
            singular,
        )
        for i in np.flatnonzero(np.isnan(objectives)):
            factors[i], objectives[i], singular[i] = _solve_least_norm(side.items, shared, i)
            squares[i] = np.sum(factors[i] ** 2, dtype=np.float64)
        if w0 > 0:
            _rotate(factors, Q.T, factors, run)
    singular &= side.mass > 0  # without any weight, 0 is as good as for an empty item
    penalty = float(side.items.ridge @ squares)
    return Swept(float(objectives.sum()), penalty, int(np.count_nonzero(singular)))


def _solve_least_norm(items, fixed, i):
    """Solve one item, singular to working precision, in float64 by a singular value decomposition.

    It minimises |M u - c|^2 with M = [D^1/2; E^1/2 B] and c = [0; E^-1/2 g], in the notation of
    `_kernels` and with the rows of the fixed factors in B.

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
    B, w0 = fixed.factors[items.indices[stored]].astype(np.float64), fixed.unobserved_weight
    D = fixed.spectrum + items.ridge[i]
    if w0 > 0:  # where D vanishes, B is rounding
        vanishing = len(D) * np.finfo(np.float64).eps * fixed.spectrum[-1] >= D
        D[vanishing] = B[:, vanishing] = 0
    F = np.sqrt(np.maximum(e, kernels.LEAST_EXTRA * w0))
    M = np.concatenate([np.diag(np.sqrt(D)), F[:, None] * B])
    c = np.concatenate(
        [np.zeros(len(D)), np.divide((w0 + e) * a, F, out=np.zeros(len(F)), where=F > 0)]
    )
    u, _, rank, _ = np.linalg.lstsq(M, c, rcond=None)
    p = B @ u
    objective = np.sum((w0 + e) * (a - p) ** 2 - w0 * p**2) + D @ u**2
    return u, objective, rank < len(D)


def _rotate(X, Q, out, run):
    """Set out = X Q, which may be X."""
    shards = make_shards(np.ones(len(X)))
    run(kernels.rotate, kernels.rotate_shard, shards, _constant(X), _constant(Q), out)
    return out


def _gram(V, run):
    """Return V^T V in float64, from partial sums that do not depend on the number of threads."""
    n, k = V.shape
    size = max(1024, -(-n // 16))
    parts = np.empty((-(-n // size), k, k))
    run(kernels.gram, kernels.gram_shard, make_shards(np.ones(len(parts))), size, V, parts)
    return parts.sum(axis=0)


def sampled_product(U, V, pattern, *, n_threads):
    """Return u_i.v_j for the stored positions (i, j) of a CSR matrix, in their order."""
    out = np.empty(pattern.nnz, dtype=U.dtype)
    shards = make_shards(np.diff(pattern.indptr) + 1)
    with parallel_section(n_threads, out.size * U.shape[1]) as run:
        run(
            kernels.sampled_product,
            kernels.sampled_product_shard,
            shards,
            _constant(pattern.indices),
            _constant(pattern.indptr),
            _constant(U),
            _constant(V),
            out,
        )
    return out
