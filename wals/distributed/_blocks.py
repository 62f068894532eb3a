"""What a worker has of a matrix, and the tasks that solve it."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from dask.sizeof import sizeof

from .._core.compile import constant, empty_lines
from .._core.kernels import FACTORS, ZERO, Duals, Fixed
from .._core.parallel import effective_n_threads, parallel_section
from .._core.passes import NS_PRODUCT, gram, rotate, transpose
from .._core.sweep import Axes, Side, fix
from .._validation import as_csr, check_entry_weights, check_matrix, check_weights
from ..checkpoint import digest

_FLOATS = [np.float64, np.float32]


class Lost(RuntimeError):
    """What a task needs is gone, with a worker."""


class Coordinates(NamedTuple):
    """The coordinates of a sweep, and the way to them.

    Attributes
    ----------
    frame : ndarray of shape (k, k)
        Those of the loop before, from which ``axes.turn`` leads to those of the sweep.
    axes : Axes
    turn : ndarray of shape (k, k) or None
        For columns: from those in which the factors of rows were left to those of the loop before.
    """

    frame: np.ndarray
    axes: Axes
    turn: np.ndarray | None


class Kept(NamedTuple):
    """What the last sweep of a block has left of it.

    Attributes
    ----------
    stamp : str
        Of this sweep.
    kind : str
        See `Block.side`.
    frame : ndarray of shape (k, k)
        The coordinates of the factors.
    start, factors, duals
        See `wals._core.sweep.Side`.
    """

    stamp: str
    kind: str
    frame: np.ndarray
    start: int
    factors: np.ndarray
    duals: Duals


class Block:
    """Some rows, or columns, on a worker: their entries, and what sweeps keep of them.

    Parameters
    ----------
    X : CSR matrix of shape (n, m)
        Its rows are the items.
    entry_weights : ndarray of shape (nnz,) or None
    weights, other_weights : ndarray of shape (n,) and (m,)
    settings : tuple
        The objective, the number of components, the solver and `n_jobs`.

    Attributes
    ----------
    kept : Kept or None
        None before the first sweep, and while one runs.
    """

    def __init__(self, X, entry_weights, weights, other_weights, settings):
        self.X, self.entry_weights = X, entry_weights
        self.weights, self.other_weights, self.settings = weights, other_weights, settings
        self.sides, self.kept = {}, None

    def __getstate__(self):
        # Where memory is short, Dask writes blocks to disk or moves them, even while they are
        # swept: what it then has is an old block, from which the sweep is repeated.
        return vars(self) | {"sides": {}}

    def __sizeof__(self):
        X, k, E = self.X, self.settings[1], self.entry_weights
        kept = X.nnz + X.shape[0] * (k * X.dtype.itemsize + 32)
        return kept + _size(X) + self.weights.nbytes + (0 if E is None else E.nbytes)

    def side(self, kind="fit"):
        """Return these items to be solved as the fit says, "equal"ly or "exact"ly."""
        with parallel_section(1, 0):  # one task at a time
            if not self.sides:
                objective, k, solver, n_jobs = self.settings
                weights = self.weights, self.other_weights, objective, k, solver
                n_threads = effective_n_threads(n_jobs)
                self.sides["fit"] = Side(
                    self.X, *weights, n_threads, entry_weights=self.entry_weights
                )
            if kind not in self.sides:
                fit = self.sides["fit"]
                self.sides[kind] = (
                    fit.to_solve_equally() if kind == "equal" else fit.to_solve_exactly()
                )
            side, kept = self.sides[kind], self.kept
            if kept is not None and kept.kind == kind and kept.factors is not side.factors:
                side.keep(kept.start, kept.duals._asdict() | {"factors": kept.factors})
                self.keep(kept.stamp, kind, kept.frame)
            return side

    def keep(self, stamp, kind, frame):
        """Note what a sweep has left."""
        side = self.sides[kind]
        self.kept = Kept(stamp, kind, frame, side.start, side.factors, side.duals)

    def swept(self, stamp):
        """Return the side of the sweep with this stamp."""
        if self.kept is None or self.kept.stamp != stamp:
            raise Lost("the factors of a block of rows")
        return self.side(self.kept.kind)


@sizeof.register(sp.csr_array)
def _size(X):
    """Return the bytes of a matrix, of which Dask knows only those of the older spmatrix."""
    return X.data.nbytes + X.indices.nbytes + X.indptr.nbytes


def named(name, function, *args, **kwargs):
    """Call a function, whose errors then begin with a name."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from None


def check(X, b):
    options = {"ensure_min_samples": 0, "dtype": _FLOATS}
    return named(f"Block {b} of X", check_matrix, X, **options)


def same(X):
    return X


def shape(X):
    return X.shape, X.dtype, X.nnz


def part(parts, c):
    return parts[c]


def take(X, rows):
    return X[rows]


def nothing(block):
    """Be done when the block is there."""


def count(X):
    return np.bincount(X.indices, minlength=X.shape[1])


def add(*arrays):
    return sum(arrays[1:], start=arrays[0])


def row_block(X, b, dtype, R, E, C, settings):
    name, X = f"Block {b}", X.astype(dtype, copy=False)
    if X.shape[0] == 0:
        return Block(X, None if E is None else X.data, np.ones(0), C, settings)
    R = named(name, check_weights, R, X.shape[0], "row_weights")
    E = None if E is None else named(name, check_entry_weights, E, X)
    return Block(X, E, R, C, settings)


def split(block, cuts):
    """Return the transposes of parts of the columns, and their entry weights."""
    X, n_threads = block.X, effective_n_threads(block.settings[-1])
    parts = [transpose(X, n_threads=n_threads)]
    if block.entry_weights is not None:
        like_X = sp.csr_array((block.entry_weights, X.indices, X.indptr), X.shape)
        parts.append(transpose(like_X, n_threads=n_threads))
    return [[part[start:stop] for part in parts] for start, stop in pairwise(cuts)]


def col_block(pieces, R, C, settings):
    matrices = [as_csr(sp.hstack(parts, "csr")) for parts in zip(*pieces, strict=True)]
    X, E = matrices[0], matrices[1].data if len(matrices) > 1 else None
    return Block(X, E, C, np.concatenate(R), settings)


def digest_of(block):
    X, E = block.X, block.entry_weights
    return digest(X.data, X.indices, X.indptr, block.weights, *([] if E is None else [E]))


def weights_of(block):
    return block.weights


def mass_of(block):
    return block.side().mass


def about(block):
    side = block.side()
    return side.least_ridge, side.sum_weights, side.least_data_loss


def _sweep(block, stamp, kind, start, coordinates, fixed, factors=None):
    """Solve the items of a block, from what it keeps or from these factors, and return their side.

    The factors that it keeps are in the coordinates of `block.kept.frame`.
    """
    side, (frame, axes, _) = block.side(kind), coordinates
    with parallel_section(side.n_threads, side.factors.size) as run:
        if factors is not None:
            np.copyto(side.factors, factors)
            side.start = start
        elif start == ZERO or block.kept is None:
            side.start = ZERO
        elif side.start == FACTORS and not side.plan.exact:
            turn = (block.kept.frame.T @ frame).astype(side.factors.dtype)
            rotate(side.factors, turn, side.factors, run)
        block.kept = None
        swept = side.solve(axes, _at(side, fixed))
        block.keep(stamp, kind, frame @ axes.turn)
    return side, swept


def sweep_rows(*args):
    """Return what a sweep told of a block of rows, and the Gramian of their factors."""
    with parallel_section(1, 0):  # until it is done, no other sweep begins
        side, swept = _sweep(*args)
        precision = np.float64 if side.plan.exact else side.factors.dtype
        with parallel_section(side.n_threads, NS_PRODUCT * side.factors.size * side.k) as run:
            return swept, gram(side.factors, precision, run)


def sweep_cols(*args):
    """Return what a sweep told of a block of columns, and their factors."""
    with parallel_section(1, 0):
        side, swept = _sweep(*args)
        return swept, side.factors.copy()


def _at(side, fixed):
    """Return a fixed side as the kernels take it, with the weights that a side has for it."""
    arrays = [constant(array) for array in fixed[:-2]]
    return Fixed(*arrays, side.other_weights, fixed.unobserved_weight)


def solve(block, coordinates, fixed):
    """Solve the items of a block exactly, and return their factors and what that told."""
    side, axes = block.side().to_solve_exactly(), coordinates.axes
    swept = side.solve(axes, _at(side, fixed))
    with parallel_section(side.n_threads, NS_PRODUCT * side.factors.size * side.k) as run:
        if fixed.unobserved_weight > 0:
            rotate(side.factors, axes.turn.T, side.factors, run)
    return side.factors, swept


def turned(block, stamp, turn):
    """Return the factors of a sweep in other coordinates."""
    factors, n_threads = block.swept(stamp).factors, effective_n_threads(block.settings[-1])
    with parallel_section(n_threads, NS_PRODUCT * factors.size * len(turn)) as run:
        return rotate(factors, turn, empty_lines(factors.shape, factors.dtype), run)


def fix_rows(block, stamp, coordinates, w0, n_bytes):
    """Return the factors of a sweep as what the next one of the other side fixes, in its axes."""
    axes = coordinates.axes
    basis = turned(block, stamp, (coordinates.turn @ axes.turn).astype(axes.turn.dtype))
    with parallel_section(effective_n_threads(block.settings[-1]), basis.size) as run:
        return fix(basis, axes, np.empty(0), w0, n_bytes, run)


def join_fixed(*parts):
    """Return the parts of a fixed side as one."""
    arrays = [join(*arrays) for arrays in zip(*(part[:4] for part in parts), strict=True)]
    return Fixed(*arrays, *parts[0][4:])


def join(*arrays):
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    return np.concatenate(arrays, out=empty_lines(shape, arrays[0].dtype))


def data_loss(block, stamp, fixed):
    return block.swept(stamp).data_loss_of(fixed)


def solved_data_loss(block, factors, fixed):
    return block.side().to_solve_exactly(factors).data_loss_of(fixed)
