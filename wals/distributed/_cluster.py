"""Tasks, and data, on a Dask cluster."""

import asyncio
import uuid
from concurrent.futures import CancelledError
from contextlib import suppress
from copy import copy

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask._task_spec import Task, convert_legacy_graph
from dask.core import flatten
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.utils import ensure_dict
from distributed import Future, KilledWorker, get_client, secede
from distributed.comm import CommClosedError
from distributed.threadpoolexecutor import thread_state

from .._validation import as_matrix, check_weights, is_distributed
from ._blocks import Lost, add, join, part, same

PREFIX = "wals-"
#: Dask warns of tasks that hold ten times as many bytes.
_PART = 2**20
#: Seconds between looks whether workers are still there, and to wait for those that are paused.
_LOOK, _PAUSED = 1.0, 120.0
#: What a client is told when a worker is lost.
_GONE = (CancelledError, CommClosedError, TimeoutError)


class Cluster:
    """A client with tasks that run where they are told to, and are missed when they cannot."""

    def __init__(self):
        try:
            self.client = get_client()
        except ValueError:
            raise ValueError(
                "Dask collections need a cluster here: start a distributed.Client before, as by "
                "Client() for this machine."
            ) from None
        if self.client.asynchronous:
            raise ValueError("The distributed.Client is asynchronous: one that waits is needed.")
        if getattr(thread_state, "proceed", False):
            secede()  # a task of a worker, which waits for other tasks, leaves its thread to them

    def submit(self, function, *args, on=None, loosely=False):
        """Return the future of a task, on this worker alone, or `loosely` there."""
        # Keys of our own: by its own, Dask takes a symmetric matrix, or a transpose, for another.
        return self.client.submit(
            function,
            *args,
            key=f"{PREFIX}{function.__name__.strip('_')}-{uuid.uuid4().hex}",
            workers=on,
            allow_other_workers=loosely,
            pure=False,
        )

    def put(self, objects, on=None):
        """Return futures of objects, which are sent to these workers, or to one after the other."""
        keys = [f"{PREFIX}data-{uuid.uuid4().hex}" for _ in objects]
        parts = {}
        for i, key in enumerate(keys):
            parts.setdefault(on[i] if on else None, {})[key] = objects[i]
        if on and not self.workers().issuperset(on):  # that is waited for otherwise
            raise Lost("a worker")
        futures = {}
        for worker, data in parts.items():
            to = {"workers": None if worker is None else [worker], "direct": True, "hash": False}
            try:
                futures |= self.client.scatter(data, **to)
            except OSError as error:  # a worker that was there a moment ago
                raise Lost(str(error)) from error
        return [futures[key] for key in keys]

    def compute(self, blocks):
        """Return futures of delayed or futures."""
        given = [block for block in blocks if isinstance(block, Delayed)]
        computed = iter(self.client.compute(given, sync=False) if given else ())
        return [next(computed) if isinstance(block, Delayed) else block for block in blocks]

    def parts(self, future, n):
        """Return futures of the n elements of a list, or tuple."""
        key = f"{PREFIX}part-{uuid.uuid4().hex}"
        keys = [f"{key}-{i}" for i in range(n)]
        return self.client.map(part, [future] * n, range(n), key=keys, pure=False)

    def add(self, futures, function=add):
        """Return the future of the sum of arrays, or of what else a function adds."""
        while len(futures) > 1:
            futures = [
                self.submit(function, *futures[i : i + 8]) for i in range(0, len(futures), 8)
            ]
        return futures[0]

    def hold(self, array):
        """Return the future of an array that comes by the scheduler, and is not lost with a worker.

        For a number for each column, not for factors.
        """
        parts = np.array_split(array, max(1, array.nbytes // _PART))
        return self.submit(join, *(self.submit(same, part) for part in parts))

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
        """Return results from the workers; raise Lost if one of those that are needed is gone."""
        try:
            return self.client.sync(self._gather, list(futures), set(needed))
        except KilledWorker as error:
            raise RuntimeError(
                f"{error} Most often the memory of a worker did not do: use more workers, or "
                "smaller blocks of rows."
            ) from error
        except _GONE as error:
            raise Lost(str(error)) from error
        except Exception as error:
            # The client has this one as long as the future, and with its traceback all that this
            # program held.
            with suppress(Exception):
                other = copy(error).with_traceback(error.__traceback__)
                error.__traceback__ = None
                error = other
            raise error from None

    async def _gather(self, futures, needed):
        gathering = asyncio.ensure_future(
            self.client.gather(futures, direct=True, asynchronous=True)
        )
        try:
            looks = 0  # since anything was processed
            while not (await asyncio.wait([gathering], timeout=_LOOK))[0]:
                workers = (await self.client.scheduler.identity())["workers"]
                if missing := needed - workers.keys():
                    raise Lost(f"the worker {', '.join(sorted(missing))}")
                paused = {w for w, about in workers.items() if about["status"] == "paused"}
                processing = await self.client.scheduler.processing(workers=None) if paused else {}
                running = any(
                    _executes(workers[w]) if w in paused else keys
                    for w, keys in processing.items()
                    if w in workers
                )
                waiting = any(future.status == "pending" for future in futures)
                looks = looks + 1 if paused and waiting and not running else 0
                if looks * _LOOK >= _PAUSED:
                    raise RuntimeError(
                        f"Workers are paused, as Dask pauses those whose memory is nearly full: "
                        f"{', '.join(sorted(paused))}. Give them more memory, or add workers."
                    )
            return gathering.result()
        finally:
            gathering.cancel()


def _executes(worker):
    """Return whether a worker, by what the scheduler knows of it, is at work on a task."""
    return worker["metrics"].get("task_counts", {}).get("executing", 0) > 0


def row_blocks(X, name="X"):
    """Return the blocks of rows of a Dask collection, as delayed or futures."""
    if isinstance(X, list | tuple):
        if not all(isinstance(block, Delayed | Future) for block in X):
            raise TypeError(f"{name} mixes delayed or futures with other objects.")
        given = [block for block in X if isinstance(block, Delayed)]
        ours = iter(renamed(given, [block.key for block in given]))
        return [next(ours) if isinstance(block, Delayed) else block for block in X]
    if isinstance(X, Delayed | Future):
        return row_blocks([X], name)
    if not isinstance(X, da.Array):
        raise TypeError(
            f"{name} is of type {type(X).__name__}: pass a dask.array, as by "
            f"{name}.to_dask_array(lengths=True), or a list of delayed or futures of its rows. "
            "Tables of ids are for wals.Recommender."
        )
    if X.ndim == 2 and X.numblocks[1] > 1:
        X = X.rechunk({1: -1}, method="tasks")
    return renamed([X], [*flatten(X.__dask_keys__())])


def renamed(collections, keys):
    """Return some keys of collections as delayed, made by tasks with keys of our own, or futures.

    Dask merges tasks in one way for one graph and in another for the next. A worker that knows a
    key from the first may wait for ever for what it needed there.
    """
    given = {}
    for collection in collections:
        given |= ensure_dict(collection.__dask_graph__())
    if any(str(key).startswith("shuffle-barrier-") for key in given):  # is looked for by its name
        layer = f"{PREFIX}given-{uuid.uuid4().hex}"
        graph = HighLevelGraph.from_collections(layer, given)
        return [
            given[k] if isinstance(given[k], Future) else Delayed(k, graph, layer=layer)
            for k in keys
        ]
    tasks, layer = convert_legacy_graph(given), f"{PREFIX}given-{uuid.uuid4().hex}"
    names = {key: f"{layer}-{i}" for i, key in enumerate(given)}
    graph = {
        names[key]: Task(names[key], same, value)
        if isinstance(value, Future)
        else tasks[key].substitute(names, key=names[key])
        for key, value in given.items()
    }
    graph = HighLevelGraph.from_collections(layer, graph)
    return [
        given[key] if isinstance(given[key], Future) else Delayed(names[key], graph, layer=layer)
        for key in keys
    ]


def rows_array(futures, lengths, shape, dtype, meta=None):
    """Return blocks of rows as a dask.array; their lengths may be unknown: NaN."""
    meta = np.empty((0,) * (1 + len(shape)), dtype) if meta is None else meta
    blocks = [
        da.from_delayed(delayed(block), (n, *shape), dtype, meta)
        for block, n in zip(futures, lengths, strict=True)
    ]
    return da.concatenate(blocks, allow_unknown_chunksizes=True)


def cut(costs, n_blocks):
    """Return where to cut items into blocks of about equal costs: 0, ..., their number."""
    bounds, n = np.cumsum(costs + 1.0), len(costs)  # an item costs something at any rate
    cuts = np.searchsorted(bounds, np.linspace(0, bounds[-1], n_blocks + 1)[1:-1], "left") + 1
    return np.unique(np.concatenate([[0], cuts, [n]]).clip(0, n)).tolist()


def rows_of(values, lengths, shape, name, check=check_weights):
    """Return the values of each block of rows: None, a number, an array, a delayed or a future.

    Parameters
    ----------
    values : None, float, array-like or Dask collection of this shape
    lengths : list of int
        The rows of every block; NaN where it is unknown.
    shape : tuple
    name : str
    check : callable
        Returns an array of one dimension, in memory, of so many numbers.
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
    values = check(values, shape[0], name) if len(shape) == 1 else as_matrix(values, name)
    values = values.tocsr() if sp.issparse(values) else np.asarray(values)
    _check_shape(values, shape, name)
    stops = np.cumsum(lengths)
    return [values[stop - n : stop] for stop, n in zip(stops, lengths, strict=True)]


def _check_shape(values, shape, name):
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}, but {shape} is needed.")
