"""Fits and projections of matrices that are spread over a Dask cluster.

`wals.WALS` takes them by itself: a ``dask.array`` of blocks of rows, sparse or dense, or a list of
delayed or futures of such blocks. This module is what it imports then.

Blocks of rows stay on the workers, and one shuffle makes blocks of columns of them. In a sweep each
worker solves its blocks, for which it gets the fixed side once, rounded as kernels round it.
Factors of rows move from worker to worker alone; those of columns pass the client once per
iteration. With the latter a fit goes on when a worker is lost: its blocks are made again where
there is room, and the sweep is repeated; one of columns, after that of rows before it.

What a sweep leaves on a block, the factors of rows and dual coefficients, is kept with the block in
the memory of its worker, and neither moved nor saved. A block that was made again lacks it: it
starts from 0, and a task that needs its factors says that they are `_Lost`.
"""

import asyncio
import copy
import uuid
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from itertools import pairwise

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask._task_spec import Task, convert_legacy_graph
from dask.core import flatten
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.sizeof import sizeof
from dask.utils import ensure_dict
from distributed import Future, KilledWorker, get_client
from distributed.comm import CommClosedError
from sklearn.utils.validation import check_is_fitted

from ._core.compile import constant, empty_lines
from ._core.kernels import DUALS, FACTORS, ZERO, Fixed
from ._core.parallel import effective_n_threads, parallel_section
from ._core.passes import NS_PRODUCT, gram, rotate, transpose
from ._core.sweep import Objective, Side, Swept, code_size, eigenbasis, find_axes, fix
from ._fitted import freeze
from ._recommend import check_n
from ._validation import (
    as_csr,
    as_matrix,
    check_entry_weights,
    check_matrix,
    check_weights,
    is_distributed,
)
from .checkpoint import digest

__all__ = ["gather_rows"]

#: So many blocks of columns at most: the shuffle has a task for each with each block of rows.
_MOST_COL_BLOCKS = 256
#: How often a sweep is repeated, and for how many seconds there may be no worker at all.
_REPEATS, _NO_WORKER = 10, 120
#: Seconds between looks whether workers are still there.
_LOOK = 1.0

_FLOATS = [np.float64, np.float32]
#: What a client is told when a worker is lost.
_GONE = (CancelledError, CommClosedError, TimeoutError)
_PREFIX = "wals-"


class _Lost(RuntimeError):
    """What a task needs is gone, with a worker."""


# ---------------------------------------------------------------------------------- on the workers


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
    """

    def __init__(self, X, entry_weights, weights, other_weights, settings):
        self.X, self.entry_weights = X, entry_weights
        self.weights, self.other_weights, self.settings = weights, other_weights, settings
        self._forget()

    def _forget(self):
        self.sides, self.stamp, self.frame = {}, None, None

    def __getstate__(self):
        kept = ("X", "entry_weights", "weights", "other_weights", "settings")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state):
        vars(self).update(state)
        self._forget()

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
            return self.sides[kind]

    def swept(self, stamp):
        """Return the side of the sweep with this stamp."""
        if self.stamp is None or self.stamp[0] != stamp:
            raise _Lost("the factors of a block of rows")
        return self.sides[self.stamp[1]]


@sizeof.register(sp.csr_array)
def _size(X):
    """Return the bytes of a matrix, of which Dask knows only those of the older spmatrix."""
    return X.data.nbytes + X.indices.nbytes + X.indptr.nbytes


def _named(name, function, *args, **kwargs):
    """Call a function, whose errors then begin with a name."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from None


def _check(X, b):
    options = {"ensure_min_samples": 0, "dtype": _FLOATS}
    return _named(f"Block {b} of X", check_matrix, X, **options)


def _same(X):
    return X


def _shape(X):
    return X.shape, X.dtype, X.nnz


def _part(parts, c):
    return parts[c]


def _nothing(block):
    """Be done when the block is there."""


def _count(X):
    return np.bincount(X.indices, minlength=X.shape[1])


def _sum(*arrays):
    return sum(arrays[1:], start=arrays[0])


def _row_block(X, b, dtype, R, E, C, settings):
    name, X = f"Block {b}", X.astype(dtype, copy=False)
    if X.shape[0] == 0:
        return Block(X, None if E is None else X.data, np.ones(0), C, settings)
    R = _named(name, check_weights, R, X.shape[0], "row_weights")
    E = None if E is None else _named(name, check_entry_weights, E, X)
    return Block(X, E, R, C, settings)


def _split(block, cuts):
    """Return the transposes of parts of the columns, and their entry weights."""
    X, n_threads = block.X, effective_n_threads(block.settings[-1])
    parts = [transpose(X, n_threads=n_threads)]
    if block.entry_weights is not None:
        like_X = sp.csr_array((block.entry_weights, X.indices, X.indptr), X.shape)
        parts.append(transpose(like_X, n_threads=n_threads))
    return [[part[start:stop] for part in parts] for start, stop in pairwise(cuts)]


def _col_block(pieces, R, C, settings):
    matrices = [as_csr(sp.hstack(parts, "csr")) for parts in zip(*pieces, strict=True)]
    X, E = matrices[0], matrices[1].data if len(matrices) > 1 else None
    return Block(X, E, C, np.concatenate(R), settings)


def _digest(block):
    X, E = block.X, block.entry_weights
    return digest(X.data, X.indices, X.indptr, block.weights, *([] if E is None else [E]))


def _weights(block):
    return block.weights


def _mass(block):
    return block.side().mass


def _about(block):
    side = block.side()
    return side.least_ridge, side.sum_weights, side.least_data_loss


def _sweep(block, stamp, kind, start, frame, axes, fixed, factors=None):
    """Solve the items of a block, from what it keeps or from these factors, and return their side.

    The factors that it keeps are in the coordinates of `block.frame`, and those of the sweep are
    reached from `frame` by `axes.turn`.
    """
    side = block.side(kind)
    with parallel_section(side.n_threads, side.factors.size) as run:
        if factors is not None:
            np.copyto(side.factors, factors)
            side.start = start
        elif start == ZERO:
            side.start = ZERO
        elif side.start == FACTORS and not side.plan.exact and block.frame is not None:
            turn = (block.frame.T @ frame).astype(side.factors.dtype)
            rotate(side.factors, turn, side.factors, run)
        block.stamp = None
        swept = side.solve(axes, _at(side, fixed))
        block.stamp, block.frame = (stamp, kind), frame @ axes.turn
    return side, swept


def _sweep_rows(*args):
    """Return what a sweep told of a block of rows, and the Gramian of their factors."""
    with parallel_section(1, 0):  # until it is done, no other sweep begins
        side, swept = _sweep(*args)
        precision = np.float64 if side.plan.exact else side.factors.dtype
        with parallel_section(side.n_threads, NS_PRODUCT * side.factors.size * side.k) as run:
            return swept, gram(side.factors, precision, run)


def _sweep_cols(*args):
    """Return what a sweep told of a block of columns, and their factors."""
    with parallel_section(1, 0):
        side, swept = _sweep(*args)
        return swept, side.factors.copy()


def _at(side, fixed):
    """Return a fixed side as the kernels take it, with the weights that a side has for it."""
    arrays = [constant(array) for array in fixed[:-2]]
    return Fixed(*arrays, side.other_weights, fixed.unobserved_weight)


def _solve(block, axes, fixed):
    """Solve the items of a block exactly, and return their factors and what that told."""
    side = block.side().to_solve_exactly()
    swept = side.solve(axes, _at(side, fixed))
    with parallel_section(side.n_threads, NS_PRODUCT * side.factors.size * side.k) as run:
        if fixed.unobserved_weight > 0:
            rotate(side.factors, axes.turn.T, side.factors, run)
    return side.factors, swept


def _turned(block, stamp, turn):
    """Return the factors of a sweep in other coordinates."""
    factors, n_threads = block.swept(stamp).factors, effective_n_threads(block.settings[-1])
    with parallel_section(n_threads, NS_PRODUCT * factors.size * len(turn)) as run:
        return rotate(factors, turn, empty_lines(factors.shape, factors.dtype), run)


def _fix(block, stamp, turn, axes, w0, n_bytes):
    """Return the factors of a sweep as what the next one of the other side fixes, in its axes."""
    basis = _turned(block, stamp, (turn @ axes.turn).astype(axes.turn.dtype))
    with parallel_section(effective_n_threads(block.settings[-1]), basis.size) as run:
        return fix(basis, axes, np.empty(0), w0, n_bytes, run)


def _join_fixed(*parts):
    """Return the parts of a fixed side as one."""
    arrays = [_join(*arrays) for arrays in zip(*(part[:4] for part in parts), strict=True)]
    return Fixed(*arrays, *parts[0][4:])


def _join(*arrays):
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    return np.concatenate(arrays, out=empty_lines(shape, arrays[0].dtype))


def _data_loss(block, stamp, fixed):
    return block.swept(stamp).data_loss_of(fixed)


def _solved_data_loss(block, factors, fixed):
    return block.side().to_solve_exactly(factors).data_loss_of(fixed)


# ------------------------------------------------------------------------------------ the cluster


class Cluster:
    """A client with tasks that run where they are told to, and are missed when they cannot."""

    def __init__(self):
        try:
            self.client = get_client()
        except ValueError:
            raise ValueError(
                "X is a Dask collection, but there is no cluster: start a distributed.Client "
                "before, as by Client() for this machine."
            ) from None
        if self.client.asynchronous:
            raise ValueError("The distributed.Client is asynchronous: one that waits is needed.")

    def submit(self, function, *args, on=None, loosely=False):
        """Return the future of a task, on this worker alone, or `loosely` there."""
        # Keys of our own: by its own, Dask takes a symmetric matrix, or a transpose, for another.
        return self.client.submit(
            function,
            *args,
            key=f"{_PREFIX}{function.__name__.strip('_')}-{uuid.uuid4().hex}",
            workers=on,
            allow_other_workers=loosely,
            pure=False,
        )

    def put(self, objects, on=None):
        """Return futures of objects, which are sent to these workers, or to one after the other."""
        keys = [f"{_PREFIX}data-{uuid.uuid4().hex}" for _ in objects]
        parts = {}
        for i, key in enumerate(keys):
            parts.setdefault(on[i] if on else None, {})[key] = objects[i]
        if on and not self.workers().issuperset(on):  # that is waited for otherwise
            raise _Lost("a worker")
        futures = {}
        for worker, data in parts.items():
            to = {"workers": None if worker is None else [worker], "direct": True, "hash": False}
            try:
                futures |= self.client.scatter(data, **to)
            except OSError as error:  # a worker that was there a moment ago
                raise _Lost(str(error)) from error
        return [futures[key] for key in keys]

    def compute(self, blocks):
        """Return futures of delayed or futures."""
        given = [block for block in blocks if isinstance(block, Delayed)]
        computed = iter(self.client.compute(given, sync=False) if given else ())
        return [next(computed) if isinstance(block, Delayed) else block for block in blocks]

    def place(self, values):
        """Return what `rows_of` returns, on the cluster."""
        computed = self.compute(values)
        arrays = [value for value in values if isinstance(value, np.ndarray) or sp.issparse(value)]
        put = iter(self.put(arrays))
        return [
            next(put) if isinstance(value, np.ndarray) or sp.issparse(value) else value
            for value in computed
        ]

    def workers(self):
        return set(self.client.sync(self.client.scheduler.ncores, workers=None))

    def gather(self, futures, needed=()):
        """Return results from the workers; raise _Lost if one of those that are needed is gone."""
        try:
            return self.client.sync(self._gather, list(futures), set(needed))
        except KilledWorker as error:
            raise RuntimeError(
                f"{error} Most often the memory of a worker did not do: use more workers, or "
                "smaller blocks of rows."
            ) from error
        except _GONE as error:
            raise _Lost(str(error)) from error

    async def _gather(self, futures, needed):
        gathering = asyncio.ensure_future(
            self.client.gather(futures, direct=True, asynchronous=True)
        )
        try:
            while not (await asyncio.wait([gathering], timeout=_LOOK))[0]:
                missing = needed - set(await self.client.scheduler.ncores(workers=None))
                if missing:
                    raise _Lost(f"the worker {', '.join(sorted(missing))}")
            return gathering.result()
        finally:
            gathering.cancel()


def row_blocks(X, name="X"):
    """Return the blocks of rows of a Dask collection, as delayed or futures."""
    if isinstance(X, list | tuple):
        if not all(isinstance(block, Delayed | Future) for block in X):
            raise TypeError(f"{name} mixes delayed or futures with other objects.")
        given = [block for block in X if isinstance(block, Delayed)]
        renamed = iter(_renamed(given, [block.key for block in given]))
        return [next(renamed) if isinstance(block, Delayed) else block for block in X]
    if isinstance(X, Delayed | Future):
        return row_blocks([X], name)
    if not isinstance(X, da.Array):
        raise TypeError(
            f"{name} is of type {type(X).__name__}: pass a dask.array, as by "
            f"{name}.to_dask_array(lengths=True), or a list of delayed or futures of its rows."
        )
    if X.ndim == 2 and X.numblocks[1] > 1:
        X = X.rechunk({1: -1}, method="tasks")
    return _renamed([X], [*flatten(X.__dask_keys__())])


def _renamed(collections, keys):
    """Return some keys of collections as delayed, made by tasks with keys of our own, or futures.

    Dask merges tasks in one way for one graph and in another for the next. A worker that knows a
    key from the first may wait for ever for what it needed there.
    """
    given = {}
    for collection in collections:
        given |= ensure_dict(collection.__dask_graph__())
    tasks, layer = convert_legacy_graph(given), f"{_PREFIX}given-{uuid.uuid4().hex}"
    names = {key: f"{layer}-{i}" for i, key in enumerate(given)}
    graph = {
        names[key]: Task(names[key], _same, value)
        if isinstance(value, Future)
        else tasks[key].substitute(names, key=names[key])
        for key, value in given.items()
    }
    graph = HighLevelGraph.from_collections(layer, graph)
    return [
        given[key] if isinstance(given[key], Future) else Delayed(names[key], graph, layer=layer)
        for key in keys
    ]


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
        about = gather([submit(_shape, block) for block in self.checked])
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
        counts = [submit(_count, block) for block in self.checked]
        while len(counts) > 1:
            counts = [submit(_sum, *counts[i : i + 8]) for i in range(0, len(counts), 8)]
        self.counts = gather(counts)[0]

    def digests(self):
        """Return a digest of each block of rows, with its weights."""
        submit = self.cluster.submit
        return self.repeat(
            lambda: self.cluster.gather([submit(_digest, block) for block in self.blocks[0]])
        )

    def _check(self):
        raw = self.cluster.compute(self.given)
        return [self.cluster.submit(_check, block, b) for b, block in enumerate(raw)]

    def _homes(self):
        """Return a worker for each block of rows: where it is, unless that has too many entries."""
        client = self.cluster.client
        self.cluster.gather([self.cluster.submit(_shape, block) for block in self.checked])
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
            submit(_row_block, X, b, self.dtype, *rest, weights, settings, on=[home], loosely=True)
            for b, (X, *rest, home) in enumerate(zip(self.checked, R, E, homes, strict=True))
        ]
        self.checked = None
        bounds = np.cumsum(self.counts + 1.0)  # a column costs something without entries, too
        n_blocks = min(len(rows), self.shape[1], _MOST_COL_BLOCKS)
        cuts = np.searchsorted(bounds, np.linspace(0, bounds[-1], n_blocks + 1)[1:-1], "left") + 1
        cuts = np.unique(np.concatenate([[0], cuts, [self.shape[1]]]).clip(0, self.shape[1]))
        self.cuts = [int(cut) for cut in cuts]
        self.blocks = {0: rows, 1: self._shuffle(rows, sorted(set(homes)))}
        self.settle()

    def _shuffle(self, rows, homes):
        """Return blocks of columns made of those of rows."""
        submit, n_blocks = self.cluster.submit, len(self.cuts) - 1
        pieces = []
        for block in rows:
            key, split = uuid.uuid4().hex, submit(_split, block, self.cuts)
            keys = [f"{_PREFIX}part-{key}-{c}" for c in range(n_blocks)]
            args = [split] * n_blocks, range(n_blocks)
            pieces.append(self.cluster.client.map(_part, *args, key=keys, pure=False))
        R = [submit(_weights, block) for block in rows]
        return [
            submit(
                _col_block,
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
            self.cluster.gather([submit(_nothing, block) for block in futures])
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
            except _Lost as error:
                lost = error
        raise RuntimeError(
            f"A sweep was given up after {_REPEATS} attempts, in which workers were lost: the last "
            f"one lacked {lost}. Their logs tell why; give them more memory, or add workers."
        ) from lost

    def recover(self):
        """Have all blocks on workers again."""
        try:
            self.cluster.client.wait_for_workers(1, timeout=_NO_WORKER)
        except TimeoutError:
            raise RuntimeError(f"All workers are gone, for {_NO_WORKER} seconds.") from None
        gone = ("cancelled", "lost")
        blocks = [*self.blocks[0], *self.blocks[1]]
        if blocks and not any(block.status in gone for block in blocks):
            with suppress(_Lost):  # for good
                return self.settle()
        if any(isinstance(block, Future) and block.status in gone for block in self.given):
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


def rows_array(futures, lengths, shape, dtype):
    """Return blocks of rows as a dask.array; their lengths may be unknown: NaN."""
    meta = np.empty((0,) * (1 + len(shape)), dtype)
    blocks = [
        da.from_delayed(delayed(block), (n, *shape), dtype, meta)
        for block, n in zip(futures, lengths, strict=True)
    ]
    return da.concatenate(blocks, allow_unknown_chunksizes=True)


def rows_of(values, lengths, shape, name):
    """Return the values of each block of rows: None, a number, an array, a delayed or a future.

    Parameters
    ----------
    values : None, float, array-like or Dask collection of this shape
    lengths : list of int
        The rows of every block; NaN where it is unknown.
    shape : tuple
    name : str
    """
    if is_distributed(values):
        if isinstance(values, da.Array) and not np.isnan([*values.shape, *lengths]).any():
            _check_shape(values, shape, name)
            values = values.rechunk({0: tuple(lengths)}, method="tasks")
        blocks = row_blocks(values, name)
        if len(blocks) != len(lengths):
            raise ValueError(f"{name} has {len(blocks)} blocks of rows, not {len(lengths)}.")
        return blocks
    if values is None or np.isscalar(values):
        return [values] * len(lengths)
    if np.isnan(lengths).any():
        raise ValueError(
            f"{name} cannot be cut like X, whose blocks are of unknown lengths: pass a Dask "
            "collection of as many blocks."
        )
    values = check_weights(values, shape[0], name) if len(shape) == 1 else as_matrix(values, name)
    values = values.tocsr() if sp.issparse(values) else np.asarray(values)
    _check_shape(values, shape, name)
    stops = np.cumsum(lengths)
    return [values[stop - n : stop] for stop, n in zip(stops, lengths, strict=True)]


def _check_shape(values, shape, name):
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}, but {shape} is needed.")


# ---------------------------------------------------------------------------------------- the sides


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
        about = matrix.repeat(lambda: self._results(_about))
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
            with suppress(_Lost):  # the next sweep makes up for it; the number is less exact
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
        return self.matrix.array(_weights)

    @property
    def mass(self):
        """What the regularization of each row is a power of, as a dask.array."""
        return self.matrix.array(_mass)

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
        self._last = self.start, before, axes, fixed
        return self.again()

    def again(self):
        """Repeat the last sweep."""
        attempt = self._solve if self.kind == "exact" else self._sweep
        return self.matrix.repeat(partial(attempt, *self._last))

    def _sweep(self, start, frame, axes, fixed):
        stamp = uuid.uuid4().hex
        everywhere = self._on_all(_join_fixed, self._spread(fixed))
        args = stamp, self.kind, start, frame, axes
        told, squares = zip(*self._results(_sweep_rows, *args, each=[everywhere]), strict=True)
        self.stamp, self.turn, self.square = stamp, np.eye(self.k), sum(squares)
        self.start = FACTORS
        return _sum_swept(told)

    def _solve(self, start, frame, axes, fixed):
        everywhere = self._on_all(_join_fixed, self._spread(fixed))
        pairs = self._tasks(_solve, axes, each=[everywhere], loosely=True)
        parts = [self._on_owners(_part, pairs, i) for i in (0, 1)]
        there = self._on_owners(_nothing, parts[0])
        told = self._gather(parts[1] + there)[: len(pairs)]
        self.solved = parts[0]
        return _sum_swept(told)

    def _on_owners(self, function, futures, *args):
        submit, owners = self.matrix.cluster.submit, self.matrix.owners[0]
        return [
            submit(function, future, *args, on=[owner], loosely=True)
            for future, owner in zip(futures, owners, strict=True)
        ]

    def fixed(self, axes, w0, n_bytes):
        """Return the futures of the factors in the axes of a sweep of columns."""
        return self._tasks(_fix, self.stamp, self.turn, axes, w0, n_bytes)

    def turned(self):
        """Return the futures of the factors in the coordinates of the loop."""
        return self._tasks(_turned, self.stamp, self.turn.astype(self.matrix.dtype))

    def _data_losses(self, V):
        everywhere = self._on_all(_join, self._spread(V))
        if self.solved is None:
            return self._results(_data_loss, self.stamp, each=[everywhere])
        return self._results(_solved_data_loss, each=[self.solved, everywhere])


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
        self.mass = np.concatenate(matrix.repeat(lambda: self._results(_mass)))

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
        everywhere = self._on_all(_join_fixed, rows.fixed(axes, w0, n_bytes))
        each = [everywhere]
        if self.start == FACTORS and not self.exact:
            factors = [self.factors[place] for place in self._slices()]
            each.append(self.matrix.cluster.put(factors, self.matrix.owners[1]))
        stamp = uuid.uuid4().hex
        args = stamp, self.kind, self.start, frame, axes
        told, factors = zip(*self._results(_sweep_cols, *args, each=each), strict=True)
        self.stamp = stamp
        return axes, told, factors

    def _data_losses(self, rows):
        everywhere = self._on_all(_join, rows.turned())
        return self._results(_data_loss, self.stamp, each=[everywhere])


# ------------------------------------------------------------------------------------- using a fit


def transform(model, X, axis, weights):
    """Do what `WALS.transform` says, when the result is computed."""
    served, blocks, lengths = _serve(model, X, axis)
    weights = rows_of(weights, lengths, (sum(lengths),), "weights")
    task = delayed(_transform, pure=False)
    solved = [task(served, *args) for args in zip(blocks, weights, strict=True)]
    k = model.components_.shape[0]
    return rows_array(solved, lengths, (k,), model.components_.dtype)


def evaluate(model, X, axis, weights):
    """Return the data loss, penalty and sum of weights of rows that are projected."""
    cluster = Cluster()
    served, blocks, lengths = _serve(model, X, axis)
    weights = cluster.place(rows_of(weights, lengths, (sum(lengths),), "weights"))
    blocks = cluster.compute(blocks)
    parts = [cluster.submit(_evaluate, served, *args) for args in zip(blocks, weights, strict=True)]
    return tuple(float(sum(numbers)) for numbers in zip(*cluster.gather(parts), strict=True))


def recommend(model, X, n, exclude_seen, candidates, factors, weights):
    """Do what `WALS.recommend` says, when the two results are computed."""
    check_is_fitted(model)
    n = check_n(n)
    if sp.issparse(exclude_seen) or sp.issparse(candidates):
        raise ValueError(
            "With Dask collections, exclude_seen is True or False, and candidates are for all rows."
        )
    served, blocks, lengths = _serve(model, factors if X is None else X, 0, X is None)
    given = [[None] * len(blocks) if X is None else blocks]
    shape = (sum(lengths), model.components_.shape[0])
    given.append(rows_of(factors, lengths, shape, "factors"))
    given.append(rows_of(weights, lengths, shape[:1], "weights"))
    task = delayed(_recommend, pure=False)
    ranked = [task(served, n, exclude_seen, candidates, *args) for args in zip(*given, strict=True)]
    pick = delayed(_part, pure=False)
    return tuple(
        rows_array([pick(pair, i) for pair in ranked], lengths, (n,), dtype)
        for i, dtype in enumerate((np.dtype(np.int64), model.components_.dtype))
    )


def gather_rows(model):
    """Bring the factors of the rows, and what else there is of each row, from the workers.

    They need 8 k + 16 bytes for each row, or 4 k + 16 in float32. Only then do copies and pickles
    of a model have its rows, which partial_fit, similar with ``axis=0`` and projections of columns
    need.

    Parameters
    ----------
    model : WALS
        Was fitted with a Dask collection; is changed.

    Returns
    -------
    model : WALS

    Examples
    --------
    >>> import dask.array as da
    >>> from distributed import Client
    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> from wals.distributed import gather_rows
    >>> X = load_msweb()
    >>> with Client(n_workers=1, processes=False, dashboard_address=None) as client:
    ...     model = WALS(8, max_iter=2, random_state=0).fit(da.from_array(X, chunks=(8192, -1)))
    ...     _ = gather_rows(model)
    >>> model.row_factors_.shape
    (32711, 8)
    """
    arrays = {name: value for name, value in vars(model).items() if isinstance(value, da.Array)}
    cluster = Cluster() if arrays else None
    found = {
        name: np.concatenate(cluster.gather(cluster.compute(row_blocks(array))))
        for name, array in arrays.items()
    }
    vars(model).update(found)
    freeze(model)
    return model


def _serve(model, X, axis, are_factors=False):
    """Return a model for the tasks, the blocks of X and their lengths."""
    if axis == 1:
        raise ValueError("axis=1 takes no Dask collection: columns are projected in memory.")
    blocks, m = row_blocks(X), model.components_.shape[0 if are_factors else 1]
    lengths = [np.nan] * len(blocks)
    if isinstance(X, da.Array):
        lengths = [int(n) if n == n else n for n in X.chunks[0]]
        if X.ndim != 2 or X.shape[1] not in (m, np.nan):
            raise ValueError(f"X has shape {X.shape}, but {m} columns are needed.")
    served = copy.copy(model)
    for name in ("row_factors_", "row_weights_", "_row_mass", "_skl_callbacks"):
        vars(served).pop(name, None)
    try:
        (served,) = Cluster().put([served])
    except ValueError:  # whoever computes it without a cluster has the model, too
        served = delayed(served, pure=False)
    return served, blocks, lengths


def _transform(model, X, weights):
    if X.shape[0] == 0:
        return np.empty((0, model.components_.shape[0]), model.components_.dtype)
    return model.transform(X, weights=weights)


def _evaluate(model, X, weights):
    return model._evaluate(X, 0, weights) if X.shape[0] else (0.0, 0.0, 0.0)


def _recommend(model, n, exclude_seen, candidates, X, factors, weights):
    if len(factors if X is None else range(X.shape[0])) == 0:
        return np.empty((0, n), np.int64), np.empty((0, n), model.components_.dtype)
    return model.recommend(
        X,
        n,
        exclude_seen=exclude_seen,
        candidates=candidates,
        factors=factors,
        weights=weights,
    )
