"""The rows and the columns of a matrix on a cluster, as the loop of a fit has them."""

import copy
import uuid
from contextlib import suppress
from functools import partial
from itertools import pairwise

import numpy as np
from distributed import Future

from .._core.kernels import DUALS, FACTORS, ZERO, Fixed
from .._core.parallel import effective_n_threads, parallel_section
from .._core.passes import NS_PRODUCT, gram, rotate
from .._core.sweep import Objective, Swept, code_size, eigenbasis, find_axes, fix
from . import _blocks as tasks
from ._blocks import Coordinates, Lost
from ._cluster import Cluster, cut, row_blocks, rows_array, rows_of

#: So many blocks of columns at most: the shuffle has a task for each with each block of rows.
_MOST_COL_BLOCKS = 256
#: How often a sweep is repeated, and for how many seconds there may be no worker at all.
_REPEATS, _NO_WORKER = 10, 120


class Matrix:
    """The entries of a matrix on a cluster, as blocks of rows and of columns.

    Parameters
    ----------
    X : dask.array, or list of delayed or futures of blocks of rows
    row_weights, entry_weights
        See `wals.WALS.fit`; they may be collections like X, too.

    Attributes
    ----------
    shape, dtype
    counts : ndarray of shape (m,)
        The stored entries of every column.
    lengths : list of int
        The rows of every block.
    blocks : dict of list of Future
        Of each axis, 0 and 1; once `load` was called.
    owners : dict of list of str
        The workers that they are on.
    """

    def __init__(self, X, row_weights, entry_weights):
        self.cluster = Cluster()
        self.given = row_blocks(X)
        self.weights_given = row_weights, entry_weights
        self.blocks, self.owners = {0: [], 1: []}, {0: [], 1: []}
        self.checked = self._check()
        submit, gather = self.cluster.submit, self.cluster.gather
        about = gather([submit(tasks.shape, block) for block in self.checked])
        widths = sorted({shape[1] for shape, _, _ in about})
        if len(widths) > 1:
            raise ValueError(
                f"Blocks of X have different numbers of columns: {widths[0]} and {widths[-1]}."
            )
        self.lengths = [shape[0] for shape, _, _ in about]
        self.n_entries = [nnz for _, _, nnz in about]
        self.shape = sum(self.lengths), widths[0]
        if self.shape[0] == 0:
            raise ValueError(f"Found array with 0 sample(s) (shape={self.shape}) in X.")
        self.dtype = np.result_type(*(dtype for shape, dtype, _ in about if shape[0]))
        counts = self.cluster.add([submit(tasks.count, block) for block in self.checked])
        self.counts = gather([counts])[0]

    def digests(self):
        """Return a digest of each block of rows, with its weights."""
        submit = self.cluster.submit
        return self.repeat(
            lambda: self.cluster.gather(
                [submit(tasks.digest_of, block) for block in self.blocks[0]]
            )
        )

    def _check(self):
        raw = self.cluster.compute(self.given)
        return [self.cluster.submit(tasks.check, block, b) for b, block in enumerate(raw)]

    def _homes(self):
        """Return a worker for each block of rows: where it is, unless that has too many entries."""
        client = self.cluster.client
        self.cluster.gather([self.cluster.submit(tasks.shape, block) for block in self.checked])
        places = client.who_has(self.checked)
        costs = np.add(self.n_entries, self.lengths)
        loads = dict.fromkeys(sorted(self.cluster.workers()), 0)
        most = costs.sum() / max(len(loads), 1)
        homes = [None] * len(costs)
        for b in np.argsort(-costs, kind="stable"):
            there = [w for w in places.get(self.checked[b].key, ()) if w in loads]
            home = min(there, key=loads.get) if there else None
            if home is None or loads[home] + costs[b] > most:
                home = min(loads, key=loads.get)
            loads[home] += int(costs[b])
            homes[b] = home
        return homes

    def sides(self, C, settings):
        """Return the rows and the columns, given the weights of the latter.

        Parameters
        ----------
        C : ndarray of shape (m,)
        settings : tuple
            See `Block`.
        """
        self.C, self.settings = C, settings
        self.repeat(lambda: self.blocks[0] or self.load())
        return ClusterRows(self), ClusterCols(self)

    def load(self):
        """Make the blocks of rows and of columns."""
        C, settings = self.C, self.settings
        submit, put = self.cluster.submit, self.cluster.put
        if self.checked is None:
            self.checked = self._check()
        homes = self._homes()
        R, E = self.weights_given
        R = self.cluster.place(rows_of(R, self.lengths, self.shape[:1], "row_weights"))
        E = self.cluster.place(rows_of(E, self.lengths, self.shape, "entry_weights"))
        (weights,) = put([C])
        rows = [
            submit(
                tasks.row_block, X, b, self.dtype, *rest, weights, settings, on=[home], loosely=True
            )
            for b, (X, *rest, home) in enumerate(zip(self.checked, R, E, homes, strict=True))
        ]
        self.checked = None
        self.cuts = cut(self.counts, min(len(rows), self.shape[1], _MOST_COL_BLOCKS))
        self.blocks = {0: rows, 1: self._shuffle(rows, sorted(set(homes)))}
        self.settle()

    def _shuffle(self, rows, homes):
        """Return blocks of columns made of those of rows."""
        submit, n_blocks = self.cluster.submit, len(self.cuts) - 1
        pieces = [self.cluster.parts(submit(tasks.split, b, self.cuts), n_blocks) for b in rows]
        R = [submit(tasks.weights_of, block) for block in rows]
        return [
            submit(
                tasks.col_block,
                [parts[c] for parts in pieces],
                R,
                self.C[slice(*cut)],
                self.settings,
                on=[homes[c % len(homes)]],
                loosely=True,
            )
            for c, cut in enumerate(pairwise(self.cuts))
        ]

    def settle(self):
        """Wait until all blocks are on workers, and note which."""
        futures = [*self.blocks[0], *self.blocks[1]]
        submit, client = self.cluster.submit, self.cluster.client
        while True:
            self.cluster.gather([submit(tasks.nothing, block) for block in futures])
            places = client.who_has(futures)
            if all(places.get(block.key) for block in futures):
                break
        self.owners = {
            axis: [sorted(places[block.key])[0] for block in blocks]
            for axis, blocks in self.blocks.items()
        }

    def repeat(self, attempt, before=None):
        """Return what an attempt returns, which is repeated when a worker is lost.

        Before it is repeated, blocks are made again, and `before` is called.
        """
        lost = None
        for _ in range(_REPEATS):
            try:
                if lost is not None:
                    self.recover()
                    if before is not None:
                        before()
                return attempt()
            except Lost as error:
                lost = error
        raise RuntimeError(
            f"A sweep was given up after {_REPEATS} attempts, in which workers, or what they kept, "
            f"were lost: the last one lacked {lost}. The logs of the workers tell why. Most often "
            "it is too little memory: give them more, or add workers."
        ) from lost

    def recover(self):
        """Have all blocks on workers again."""
        try:
            self.cluster.client.wait_for_workers(1, timeout=_NO_WORKER)
        except TimeoutError:
            raise RuntimeError(f"All workers are gone, for {_NO_WORKER} seconds.") from None
        blocks = [*self.blocks[0], *self.blocks[1]]
        if blocks and not any(block.cancelled() for block in blocks):
            with suppress(Lost):  # for good
                return self.settle()
        if any(isinstance(block, Future) and block.cancelled() for block in self.given):
            raise RuntimeError(
                "Blocks of X are lost with their worker, and nothing can make them again: pass "
                "delayed, or a dask.array that is not of futures alone."
            )
        self.checked = None
        return self.load()

    def array(self, task, shape=(), dtype=np.float64):
        """Return what a task makes of each block of rows, as a dask.array."""
        futures = [self.cluster.submit(task, block) for block in self.blocks[0]]
        return rows_array(futures, self.lengths, shape, dtype)


class ClusterSide:
    """The rows of a matrix on a cluster, or its columns: what a `Side` is to the loop of a fit.

    Parameters
    ----------
    matrix : Matrix
        Its blocks are loaded.
    """

    kind, axis = "fit", None

    def __init__(self, matrix):
        self.matrix, self.start = matrix, ZERO
        self.objective, self.k, self.solver, n_jobs = matrix.settings
        self.n_threads = effective_n_threads(n_jobs)
        about = matrix.repeat(lambda: self._results(tasks.about))
        ridges, sums, least = zip(*about, strict=True)
        self.least_ridge, self.sum_weights = min(ridges), float(sum(sums))
        self.least_data_loss = float(sum(least))

    @property
    def exact(self):
        """Whether a sweep solves to working precision."""
        return self.kind == "exact" or (self.kind == "fit" and self.solver == "exact")

    @property
    def precision(self):
        """Of the rotations of a sweep, and the products of its Gramian."""
        return np.dtype(np.float64) if self.exact else self.matrix.dtype

    def _axes(self, square):
        w0 = self.objective.unobserved_weight
        return find_axes(eigenbasis(square, w0, self.precision), w0, self.least_ridge)

    def kept(self):
        """Return nothing: what sweeps keep stays on the workers, see `Side.kept`."""
        return {}

    def keep(self, start, kept):
        """Start from 0, but for columns whose factors are at the client, see `Side.keep`."""
        self.start = FACTORS if self.axis else ZERO

    def _of_kind(self, kind):
        other = copy.copy(self)
        other.kind, other.start = kind, ZERO
        return other

    def to_solve_equally(self):
        """Return the same items, for single steps in which all entries have the weight 1."""
        other = self._of_kind("equal")
        other.objective = Objective(1.0, 0.0, 0.0, 0.0, self.objective.implicit)
        other.least_ridge = 0.0
        return other

    # What follows is to be called in an attempt, see `Matrix.repeat`.

    def _tasks(self, function, *args, each=(), loosely=False):
        """Submit a task for each block where it is, with these arguments and one of each list."""
        blocks, owners = self.matrix.blocks[self.axis], self.matrix.owners[self.axis]
        submit = self.matrix.cluster.submit
        return [
            submit(function, block, *args, *rest, on=[owner], loosely=loosely)
            for block, owner, *rest in zip(blocks, owners, *each, strict=True)
        ]

    def _gather(self, futures):
        needed = set(self.matrix.owners[0]) | set(self.matrix.owners[1])
        return self.matrix.cluster.gather(futures, needed)

    def _results(self, function, *args, each=()):
        return self._gather(self._tasks(function, *args, each=each))

    def _on_all(self, join, parts):
        """Return, for each block, the future of the joined parts on its worker."""
        owners, submit = self.matrix.owners[self.axis], self.matrix.cluster.submit
        joined = {w: submit(join, *parts, on=[w], loosely=True) for w in sorted(set(owners))}
        return [joined[owner] for owner in owners]

    def _spread(self, fixed):
        """Return the futures of parts of the rows of a fixed side, one for each worker."""
        workers, whole = sorted(set(self.matrix.owners[self.axis])), isinstance(fixed, Fixed)
        arrays = fixed[:4] if whole else [fixed]
        parts = zip(*(np.array_split(array, len(workers)) for array in arrays), strict=True)
        parts = [Fixed(*part, *fixed[4:]) if whole else part[0] for part in parts]
        return self.matrix.cluster.put(parts, workers)

    def data_loss(self, swept, other):
        """Return the data loss after a sweep; see `Side.data_loss`."""
        data_loss = swept.loss - swept.penalty
        if data_loss < self.least_data_loss:
            with suppress(Lost):  # the next sweep makes up for it; the number is less exact
                data_loss = sum(self._data_losses(other))
        return max(data_loss, 0.0)


def _sum_swept(told):
    """Return what the sweeps of all blocks told, as one."""
    loss, penalty, n_singular, _ = zip(*told, strict=True)
    return Swept(float(sum(loss)), float(sum(penalty)), int(sum(n_singular)), False)


class ClusterRows(ClusterSide):
    """The rows. They stand for their factors, too, which stay on the workers.

    Attributes
    ----------
    turn : ndarray of shape (k, k)
        The rotation that the loop has made since the last sweep, and the workers have not.
    """

    axis, solved = 0, None

    @property
    def factors(self):
        """What the columns fix; after an exact sweep, a dask.array."""
        if self.solved is None:
            return self
        return rows_array(self.solved, self.matrix.lengths, (self.k,), self.matrix.dtype)

    @property
    def weights(self):
        """The weights of the rows, as a dask.array."""
        return self.matrix.array(tasks.weights_of)

    @property
    def mass(self):
        """What the regularization of each row is a power of, as a dask.array."""
        return self.matrix.array(tasks.mass_of)

    def to_solve_exactly(self, factors=None):
        """Return the same items, to be solved exactly."""
        return self._of_kind("exact")

    def gramian(self):
        return self.turn.T @ self.square @ self.turn

    def sweep(self, V, *, rough=False, frame=None, spend=False):
        """See `Side.sweep`."""
        k, w0 = self.k, self.objective.unobserved_weight
        before = np.eye(k) if frame is None else frame.copy()
        with parallel_section(self.n_threads, 2 * NS_PRODUCT * V.size * k) as run:
            square = gram(V, self.precision, run) if w0 > 0 else np.zeros((k, k))
            axes, basis = self._axes(square), V
            if w0 > 0:
                basis = rotate(V, axes.turn, np.empty_like(V) if frame is None else V, run)
            n_bytes = code_size(V.size, self.exact, rough)
            fixed = fix(basis, axes, np.empty(0), w0, n_bytes, run)
        if frame is not None:
            frame[:] = frame @ axes.turn
        self._last = self.start, Coordinates(before, axes, None), fixed
        return self.again()

    def again(self):
        """Repeat the last sweep."""
        attempt = self._solve if self.kind == "exact" else self._sweep
        return self.matrix.repeat(partial(attempt, *self._last))

    def _sweep(self, start, coordinates, fixed):
        stamp = uuid.uuid4().hex
        everywhere = self._on_all(tasks.join_fixed, self._spread(fixed))
        args = stamp, self.kind, start, *self.matrix.cluster.put([coordinates])
        told, squares = zip(*self._results(tasks.sweep_rows, *args, each=[everywhere]), strict=True)
        self.stamp, self.turn, self.square = stamp, np.eye(self.k), sum(squares)
        self.start = FACTORS
        return _sum_swept(told)

    def _solve(self, start, coordinates, fixed):
        everywhere = self._on_all(tasks.join_fixed, self._spread(fixed))
        (coordinates,) = self.matrix.cluster.put([coordinates])
        pairs = self._tasks(tasks.solve, coordinates, each=[everywhere], loosely=True)
        parts = [self._on_owners(tasks.part, pairs, i) for i in (0, 1)]
        there = self._on_owners(tasks.nothing, parts[0])
        told = self._gather(parts[1] + there)[: len(pairs)]
        self.solved = parts[0]
        return _sum_swept(told)

    def _on_owners(self, function, futures, *args):
        submit, owners = self.matrix.cluster.submit, self.matrix.owners[0]
        return [
            submit(function, future, *args, on=[owner], loosely=True)
            for future, owner in zip(futures, owners, strict=True)
        ]

    def fixed(self, coordinates, w0, n_bytes):
        """Return the futures of the factors in the axes of a sweep of columns."""
        return self._tasks(tasks.fix_rows, self.stamp, coordinates, w0, n_bytes)

    def turned(self):
        """Return the futures of the factors in the coordinates of the loop."""
        (turn,) = self.matrix.cluster.put([self.turn.astype(self.matrix.dtype)])
        return self._tasks(tasks.turned, self.stamp, turn)

    def _data_losses(self, V):
        everywhere = self._on_all(tasks.join, self._spread(V))
        if self.solved is None:
            return self._results(tasks.data_loss, self.stamp, each=[everywhere])
        return self._results(tasks.solved_data_loss, each=[self.solved, everywhere])


class ClusterCols(ClusterSide):
    """The columns, whose factors are at the client: an array that the loop sets.

    Attributes
    ----------
    factors : ndarray of shape (m, k)
    weights, mass : ndarray of shape (m,)
    """

    axis = 1

    def __init__(self, matrix):
        super().__init__(matrix)
        self.weights = matrix.C
        self.mass = np.concatenate(matrix.repeat(lambda: self._results(tasks.mass_of)))

    def _slices(self):
        return [slice(*cut) for cut in pairwise(self.matrix.cuts)]

    def penalty(self):
        """Return the regularization term of the factors."""
        return self.objective.penalty(self.factors, self.mass)

    def gramian(self):
        """Return that of the factors, in float64."""
        with parallel_section(self.n_threads, NS_PRODUCT * self.factors.size * self.k) as run:
            return gram(self.factors, np.float64, run)

    def sweep(self, rows, *, rough=False, frame, spend=False):
        """See `Side.sweep`; the fixed side is that of the rows."""
        attempt = partial(self._sweep, rows, rough, frame)
        axes, told, factors = self.matrix.repeat(attempt, rows.again)
        for place, found in zip(self._slices(), factors, strict=True):
            self.factors[place] = found
        rows.turn = rows.turn @ axes.turn
        frame[:] = frame @ axes.turn
        self.start = DUALS if self.kind == "fit" and self.solver == "auto" else FACTORS
        return _sum_swept(told)

    def _sweep(self, rows, rough, frame):
        w0, n_fixed = self.objective.unobserved_weight, self.matrix.shape[0] * self.k
        axes = self._axes(rows.gramian())
        n_bytes = code_size(n_fixed, self.exact, rough)
        # As data: in the tasks, the scheduler would have k x k numbers for each block.
        (coordinates,) = self.matrix.cluster.put([Coordinates(frame.copy(), axes, rows.turn)])
        everywhere = self._on_all(tasks.join_fixed, rows.fixed(coordinates, w0, n_bytes))
        each = [everywhere]
        if self.start == FACTORS and not self.exact:
            factors = [self.factors[place] for place in self._slices()]
            each.append(self.matrix.cluster.put(factors, self.matrix.owners[1]))
        stamp = uuid.uuid4().hex
        args = stamp, self.kind, self.start, coordinates
        told, factors = zip(*self._results(tasks.sweep_cols, *args, each=each), strict=True)
        self.stamp = stamp
        return axes, told, factors

    def _data_losses(self, rows):
        everywhere = self._on_all(tasks.join, rows.turned())
        return self._results(tasks.data_loss, self.stamp, each=[everywhere])
