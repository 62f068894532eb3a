"""One sweep of one side with the other fixed: rows or columns, to fit or to project."""

import copy
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from . import kernels
from .compile import constant, empty_lines, whole_lines
from .parallel import parallel_section
from .passes import NS_PRODUCT, encode, extra_weights, gram, rotate, sampled_product, transpose
from .plan import make_plan

#: So many numbers a second-level cache holds as they are: to round them would gain nothing.
_FEW = 2**18
#: Stored entries and rows, of which the data loss is computed at once, and numbers of dense rows.
_ENTRIES, _ROWS, _DENSE = 2**20, 2**14, 2**22


class Objective(NamedTuple):
    """The constants of the objective; see `wals.WALS`."""

    unobserved_weight: float
    observed_weight: float
    regularization: float
    regularization_exponent: float
    implicit: bool
    regularization_by: str = "weight"

    @property
    def unstored_mass(self):
        """What an entry that is not stored adds to the mass of its row and column."""
        return self.unobserved_weight if self.regularization_by == "weight" else 0.0

    def ridge(self, mass):
        """Return the regularization of items, given the mass of each."""
        return self.regularization * mass**self.regularization_exponent

    def penalty(self, factors, mass):
        """Return the regularization term of one side, given its factors and masses."""
        squares = np.einsum("ij,ij->i", factors, factors)
        return float(np.sum(self.ridge(mass) * squares))


class Swept(NamedTuple):
    """What a sweep tells about the items that it solved."""

    loss: float  # sum of the minima, with the penalty of this side
    penalty: float
    n_singular: int
    spent: bool  # whether the fixed factors are lost


class Side:
    """The rows of a matrix, or its columns: entries and factors, and how the latter are solved.

    A fit alternates two of them, which keep their entries in memory.

    Parameters
    ----------
    X : CSR matrix of shape (n, m)
        Its rows are the items, in canonical format; its arrays are used without copying.
    weights : ndarray of shape (n,)
        Weights of the items.
    other_weights : ndarray of shape (m,)
        Weights of the other side.
    objective : Objective
    k : int
        Number of components.
    solver : {"exact", "cg", "auto"}
    n_threads : int
    entry_weights : ndarray of shape (nnz,), default=None
        Weights of the stored entries, in their order.
    n_others : int, default=None
        How many items the other side has, where X has only those columns that store anything.
    room : callable, default=numpy.empty
        Makes the array of what is kept of each stored entry, given its length and type.

    Attributes
    ----------
    factors : ndarray of shape (n, k)
        A sweep overwrites them.
    start : {ZERO, FACTORS, DUALS}
        What the next sweep's CG starts from: 0, the factors, or the dual coefficients that the last
        sweep has kept; see `kernels`. A solution that is exact starts from nothing.
    total_weights : ndarray of shape (n,)
        sum_j w_ij, over stored and unstored entries.
    mass : ndarray of shape (n,)
        What the regularization of an item is a power of: the total weight, or how many of its
        stored entries have a positive target.
    least_data_loss : float
        What a sweep can tell of it, as a difference of sums that may be as large as the data loss
        of factors of 0.
    """

    def __init__(
        self,
        X,
        weights,
        other_weights,
        objective,
        k,
        solver,
        n_threads,
        *,
        entry_weights=None,
        n_others=None,
        room=np.empty,
    ):
        (n, m), w0 = X.shape, objective.unobserved_weight
        m = m if n_others is None else n_others
        self.objective, self.k, self.n_threads, self.weights = objective, k, n_threads, weights
        self.items = kernels.Items(
            data=constant(X.data),
            indices=constant(X.indices),
            indptr=constant(X.indptr),
            entry_weights=constant(
                np.empty(0) if entry_weights is None else entry_weights, X.dtype
            ),
            weights=constant(objective.observed_weight * weights),
            ridge=constant(np.empty(0)),
            implicit=objective.implicit,
        )
        other_weights = np.empty(0) if np.all(other_weights == 1) else other_weights
        self.other_weights = constant(other_weights)  # (m,), or empty: all 1
        given = self.items, self.other_weights, w0
        self.total_weights, energy = extra_weights(*given, n_threads=n_threads)
        self.least_data_loss = 3 * np.sqrt(np.finfo(X.dtype).eps) * energy.sum()
        with np.errstate(all="ignore"):  # inf or NaN without extra weights: no path is ruled out
            self._ratio = w0 * np.diff(X.indptr) / self.total_weights
        self.total_weights += w0 * m
        by_weight = objective.regularization_by == "weight"
        self.mass = self.total_weights if by_weight else _count_positive(self.items)
        self.items = self.items._replace(ridge=constant(objective.ridge(self.mass)))
        self._set_plan(solver)
        self.duals = empty_duals(n, X.nnz if solver == "auto" else 0, X.dtype, room)
        self.factors, self.start = empty_lines((n, k), X.dtype), kernels.ZERO

    def _set_plan(self, solver):
        indptr = self.items.indptr
        self.plan, self.shards, self._work = make_plan(indptr, self._ratio, self.k, solver)

    def to_solve_exactly(self, factors=None):
        """Return the same items, to be solved exactly, with room for their factors."""
        other = copy.copy(self)
        other._set_plan("exact")
        other.factors = np.empty_like(self.factors) if factors is None else factors
        other.start = kernels.ZERO
        return other

    def to_solve_equally(self):
        """Return the same items, for single steps in which all entries have the weight 1."""
        other, n = copy.copy(self), len(self.weights)
        other.objective = Objective(1.0, 0.0, 0.0, 0.0, self.objective.implicit)
        none = constant(np.zeros(n))
        other.items = self.items._replace(weights=none, ridge=none)
        paths = constant(np.full(n, kernels.CG, np.uint8))
        other.plan = self.plan._replace(paths=paths, exact=False, max_steps=1, tol=0.0)
        other.duals, other.start = empty_duals(n, 0, self.factors.dtype), kernels.ZERO
        return other

    @property
    def least_ridge(self):
        """The least regularization of an item that has any; infinity where none has."""
        return float(self.items.ridge.min(where=self.items.ridge > 0, initial=np.inf))

    @property
    def sum_weights(self):
        """sum_ij w_ij."""
        return float(self.total_weights.sum())

    def gramian(self):
        """Return that of the factors, of shape (k, k), in float64."""
        with parallel_section(self.n_threads, NS_PRODUCT * self.factors.size * self.k) as run:
            return gram(self.factors, np.float64, run)

    def penalty(self):
        """Return the regularization term of the factors."""
        return self.objective.penalty(self.factors, self.mass)

    def kept(self):
        """Return what the next sweep starts from, besides the fixed factors: arrays by name."""
        kept = self.duals._asdict()
        if self.start == kernels.FACTORS and not self.plan.exact:
            kept["factors"] = self.factors
        return kept

    def keep(self, start, kept):
        """Let the next sweep start from where another one did."""
        self.start = start
        for name, array in self.duals._asdict().items():
            array[:] = kept[name]
        if "factors" in kept:
            self.factors[:] = kept["factors"]

    def sweep(self, fixed, *, basis=None, rough=False, frame=None, spend=False):
        """Solve every item with the factors of the other side fixed.

        Parameters
        ----------
        fixed : ndarray of shape (m, k)
            The factors of the other side.
        basis : Eigenbasis, default=None
            That of the other side, where it is known; `fixed` then need not be all of it.
        rough : bool, default=False
            Whether steps may be those towards the solution for slightly rounded fixed factors: one
            byte for every number, where the data is float32.
        frame : ndarray of shape (k, k), default=None
            If given, both sides are left in the eigenbasis of the fixed side, and `frame` is
            multiplied by this rotation: a fit has no reason to rotate back after each sweep.
        spend : bool, default=False
            Whether the fixed factors may be lost: where they are rounded, it is done in their
            place.

        Returns
        -------
        swept : Swept
        """
        w0, exact, dtype = self.objective.unobserved_weight, self.plan.exact, self.factors.dtype
        work = self._work + NS_PRODUCT * (len(self.factors) + len(fixed)) * self.k**2
        with parallel_section(self.n_threads, work) as run:
            if basis is None:
                # Steps towards a solution need no more precision than the data; a solution does.
                precision = np.float64 if exact else dtype
                square = gram(fixed, precision, run) if w0 > 0 else np.zeros((self.k, self.k))
                basis = eigenbasis(square, w0, precision)
            axes, turned = find_axes(basis, w0, self.least_ridge), fixed
            if w0 > 0:
                out = empty_lines(fixed.shape, dtype) if frame is None else fixed
                turned = rotate(fixed, axes.turn, out, run, basis.panels[0])
            n_bytes = code_size(fixed.size, exact, rough)
            in_place = w0 > 0 and frame is None  # a copy of the factors already
            in_place = in_place or (spend and bool(n_bytes))
            shared = fix(turned, axes, self.other_weights, w0, n_bytes, run, in_place=in_place)
            swept = self.solve(axes, shared)
            if w0 > 0 and frame is None:
                rotate(self.factors, axes.turn.T, self.factors, run, basis.panels[1])
            elif w0 > 0:
                frame[:] = frame @ axes.turn
        return swept._replace(spent=spend and bool(n_bytes))

    def solve(self, axes, shared):
        """Solve every item in the coordinates of a sweep, and leave the factors in them.

        Parameters
        ----------
        axes : Axes
        shared : kernels.Fixed
            The fixed side in these coordinates, see `fix`.

        Returns
        -------
        swept : Swept
        """
        factors, items, ridge = self.factors, self.items, self.items.ridge
        (n, k), w0, spectrum = factors.shape, shared.unobserved_weight, axes.spectrum
        objectives, squares = np.empty(n), np.empty(n)
        with parallel_section(self.n_threads, self._work) as run:
            if w0 > 0 and self.start == kernels.FACTORS and not self.plan.exact:
                rotate(factors, axes.turn, factors, run)
            scratch = kernels.empty_scratch(self.plan, k, factors.dtype, run.n_threads)
            args = (items, shared, self.plan, self.start, self.duals, factors, objectives, squares)
            run(kernels.solve, self.shards, *args, scratch)
        singular = spectrum[0] + ridge <= k * np.finfo(np.float64).eps * spectrum[-1]
        if w0 == 0:
            singular &= items.weights == 0
        for i in np.flatnonzero(np.isnan(objectives)):
            factors[i], objectives[i], singular[i] = _solve_least_norm(items, shared, i)
            squares[i] = np.sum(factors[i] ** 2, dtype=np.float64)
        self.start = kernels.DUALS if self.duals.codes.size else kernels.FACTORS
        # Without any weight, 0 is as good as for an item without entries.
        singular &= (self.total_weights > 0) & (np.diff(items.indptr) > 0)
        singular &= (self.mass > 0) | (squares > 0)  # nor is another factor than 0 looked for
        penalty = float(np.sum(ridge * squares))
        return Swept(float(objectives.sum()), penalty, int(np.count_nonzero(singular)), False)

    def data_loss(self, swept, fixed):
        """Return the data loss after a sweep, given what it told and the factors that it fixed.

        Where it is nearly all that the sums of the sweep cancel to, it is computed anew.
        """
        data_loss = swept.loss - swept.penalty
        if data_loss >= self.least_data_loss or swept.spent:
            return max(data_loss, 0.0)
        return self.data_loss_of(fixed)

    def data_loss_of(self, fixed):
        """Return the data loss of the factors and those of the other side, without a sweep."""
        w0, weights = self.objective.unobserved_weight, self.other_weights
        return _data_loss(self.items, weights, w0, self.factors, fixed, self.n_threads)


def empty_duals(n, nnz, dtype, room=np.empty):
    return kernels.Duals(room(nnz, np.int8), np.empty(n, dtype))


class Eigenbasis(NamedTuple):
    """The eigenbasis of a fixed side."""

    spectrum: np.ndarray  # (k,) s, the eigenvalues of w0 V^T V, rising
    turn: np.ndarray  # (k, k) Q, to be rotated by into this basis
    panels: tuple = (None, None)  # of Q and its transpose, see `linalg.in_panels`


def eigenbasis(square, w0, precision):
    """Return the eigenbasis of a side.

    Parameters
    ----------
    square : ndarray of shape (k, k)
        V^T V.
    w0 : float
        Where it is 0, all that items share is their ridge, which is diagonal in any basis.
    precision : dtype
        That of Q.
    """
    if w0 == 0:
        return Eigenbasis(np.zeros(len(square)), np.eye(len(square), dtype=precision))
    spectrum, Q = np.linalg.eigh(w0 * square)
    return Eigenbasis(spectrum.clip(0), Q.astype(precision))


class Axes(NamedTuple):
    """The coordinates of a sweep: the eigenbasis of the fixed side, scaled."""

    spectrum: np.ndarray  # (k,) s
    turn: np.ndarray  # (k, k) Q
    scale: np.ndarray  # (k,) g: what the items share, s + the least ridge, is 1 in them times g


def find_axes(basis, w0, least_ridge):
    """Return the axes of a sweep, given the eigenbasis and the least ridge of all items."""
    spectrum, k = basis.spectrum, len(basis.spectrum)
    if w0 == 0:
        return Axes(spectrum, basis.turn, np.ones(k))
    # Where the common part vanishes, so does V Q: the minimum norm is 0 there.
    common = spectrum + (least_ridge if np.isfinite(least_ridge) else 0.0)
    vanishing = common <= k * np.finfo(np.float64).eps * spectrum[-1]
    scale = np.where(vanishing, 0.0, 1 / np.sqrt(np.where(vanishing, 1.0, common)))
    return Axes(spectrum, basis.turn, scale)


def code_size(size, exact, rough):
    """Return in how many bytes so many fixed numbers are rounded for a sweep; 0: they are not."""
    return 0 if exact or size <= _FEW else 1 if rough else 2


def fix(turned, axes, weights, w0, n_bytes, run, *, in_place=False):
    """Return the fixed side for the kernels, given its factors in their eigenbasis.

    float32 factors are rounded to so many bytes, if any; if in place, `turned` is overwritten.
    """
    (m, k), dtype, spectrum, scale = turned.shape, turned.dtype, axes.spectrum, axes.scale
    width, steps = whole_lines(k, turned), np.empty(0, dtype)
    arrays = [np.empty((0, width), t) for t in (dtype, np.int8, np.int16)]
    if n_bytes and dtype == np.float32:
        code = arrays[n_bytes].dtype
        if in_place and width * n_bytes <= k * turned.itemsize:
            codes = turned.view(code)  # of each row, the first part
        else:
            codes = empty_lines((m, width), code)
        arrays[n_bytes] = codes
        steps = np.empty(m, dtype)
        encode(turned, scale, codes, steps, run)
        codes[:, k:width] = 0
    else:
        arrays[0] = turned if in_place and width == k else empty_lines((m, width), dtype)
        arrays[0][:, k:] = 0
        np.multiply(turned, scale, out=arrays[0][:, :k], casting="same_kind")
    metric = scale**2
    spectrum = np.where(scale > 0, metric * spectrum, 1.0) if w0 > 0 else spectrum
    arrays += [steps, scale, spectrum, metric, weights]
    return kernels.Fixed(*map(constant, arrays), w0)


def _solve_least_norm(items, fixed, i):
    """Solve one item, singular to working precision, in float64 by a singular value decomposition.

    It minimises |M u - c|^2 with M = [(s + lam)^1/2; E^1/2 B] and c = [0; E^-1/2 b], in the
    notation of `kernels` and with the factors of the fixed side in their eigenbasis in B.

    Returns
    -------
    u : ndarray of shape (k,)
        The solution of minimum norm.
    objective : float
    singular : bool
        Whether M has not full rank.
    """
    stored = slice(items.indptr[i], items.indptr[i + 1])
    j, w0 = items.indices[stored], fixed.unobserved_weight
    e, a = entries(items, fixed.weights, stored, items.weights[i])
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


def _data_loss(items, other_weights, w0, U, V, n_threads):
    """Return the data loss of factors, of which products are taken in float64.

    It is sum_i [sum_S (w0 + e_j)(a_j - u_i.v_j)^2 + w0 sum_(not S) (u_i.v_j)^2].
    """
    (n, k), m, indptr = U.shape, len(V), items.indptr
    counts, observed = np.diff(indptr), 0.0
    rest, rounding = np.zeros((2, n))  # of sum_j (u_i.v_j)^2: what is not in S, and how exact
    with parallel_section(n_threads, NS_PRODUCT * (n + m) * k**2) as run:
        square = gram(V, np.float64, run) if w0 > 0 else np.zeros((k, k))
        first = 0
        while first < n:
            most = indptr.dtype.type(min(int(indptr[first]) + _ENTRIES, int(indptr[-1])))
            last = int(np.searchsorted(indptr, most, side="right")) - 1
            rows = slice(first, min(max(last, first + 1), first + _ROWS, n))
            first, stored = rows.stop, slice(indptr[rows.start], indptr[rows.stop])
            u, of_row = U[rows], np.repeat(np.arange(rows.stop - rows.start), counts[rows])
            products = sampled_product(
                u,
                V,
                items.indices[stored],
                indptr[rows.start : rows.stop + 1] - stored.start,
                dtype=np.float64,
                n_threads=n_threads,
            )
            e, a = entries(items, other_weights, stored, items.weights[rows][of_row])
            observed += np.sum((w0 + e) * (a - products) ** 2)
            u = u.astype(np.float64)
            rest[rows] = np.einsum("ij,ij->i", u @ square, u)
            rest[rows] -= np.bincount(of_row, products**2, minlength=len(u))
            rounding[rows] = (np.abs(u) @ np.sqrt(np.diag(square))) ** 2
        rest[counts == m] = 0
        # Differences with less than six digits, in rows with nearly all that they predict in S.
        rounding *= 1e6 * np.finfo(np.float64).eps
        few = (rest < rounding) & (counts < m)
        if w0 * rounding[few].sum() > observed + w0 * rest[~few].sum():
            few, columns = np.flatnonzero(few), V.T.astype(np.float64)
            for rows in np.array_split(few, -(-few.size * m // _DENSE)):
                products = U[rows].astype(np.float64) @ columns
                for product, i in zip(products, rows, strict=True):
                    product[items.indices[indptr[i] : indptr[i + 1]]] = 0
                rest[rows] = np.einsum("ij,ij->i", products, products)
    return float(observed + w0 * rest.clip(0).sum())


def entries(items, other_weights, stored, weight):
    """Return e_j and a_j of some stored entries, of items of this weight, in float64."""
    e, a = np.full(stored.stop - stored.start, weight), items.data[stored].astype(np.float64)
    if other_weights.size:
        e *= other_weights[items.indices[stored]]
    if items.entry_weights.size:
        e *= items.entry_weights[stored]
    return (e * np.abs(a), (a > 0).astype(np.float64)) if items.implicit else (e, a)


def _count_positive(items):
    """Return how many stored entries of each item have a positive target, in float64."""
    indptr, n = items.indptr, len(items.indptr) - 1
    counts, first = np.empty(n), 0
    while first < n:  # in blocks, since the data may be on disk
        most = min(int(indptr[first]) + _ENTRIES, int(indptr[-1]))
        last = int(np.searchsorted(indptr, indptr.dtype.type(most), side="right")) - 1
        last = min(max(last, first + 1), n)
        bounds = indptr[first : last + 1]
        before = np.zeros(int(bounds[-1] - bounds[0]) + 1, np.int64)
        np.cumsum(items.data[bounds[0] : bounds[-1]] > 0, out=before[1:])
        counts[first:last] = np.diff(before[bounds - bounds[0]])
        first = last
    return counts


def make_sides(X, weights, entry_weights, objective, k, solver, n_threads):
    """Return the rows of a matrix and its columns, given both their weights, as two sides.

    Of a matrix on disk, the transpose is there, and so is whatever is kept of each stored entry.
    """
    E = entry_weights
    if sp.issparse(X):
        Xt, Et, room = transpose(X, n_threads=n_threads), None, np.empty
        if E is not None:
            like_X = sp.csr_array((E, X.indices, X.indptr), X.shape)
            Et = transpose(like_X, n_threads=n_threads).data
    else:
        Xt, room = X.T, X.scratch
        E, Et = (None, None) if E is None else (E.data, E.T.data)
    settings = objective, k, solver, n_threads
    rows = Side(X, *weights, *settings, entry_weights=E, room=room)
    cols = Side(Xt, *reversed(weights), *settings, entry_weights=Et, room=room)
    return rows, cols
