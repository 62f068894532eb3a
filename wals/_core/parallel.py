"""Threads, forks and BLAS: the one place that knows.

All parallel work of this package goes through `parallel_section`: one at a time, with BLAS on one
thread. Elsewhere, long vectors are not left to BLAS: a thread that a product of two wakes spins for
a tenth of a second, on a core that the next kernel needs. A process that was forked starts threads
of its own. Numba's threads are neither used nor started.
"""

import multiprocessing
import os
import sys
import threading
from contextlib import contextmanager
from functools import lru_cache

import numba
import numpy as np
from threadpoolctl import ThreadpoolController

from .team import Team

#: Shards per pass: many, so that no thread waits long for another that has taken the last one.
_N_SHARDS = 48
#: Nanoseconds of work for which it is worth it to wake a thread.
_WORK_PER_THREAD = 50_000

_lock = threading.RLock()
_controller = None
_blas_limits = []
_team = None


def _after_fork_in_child():
    global _lock, _blas_limits, _team
    _lock, _team = threading.RLock(), None
    _restore(_blas_limits)
    _blas_limits = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def effective_n_threads(n_jobs):
    """Return the number of threads that `n_jobs` stands for.

    None stands for all that Numba may use here, but one in a daemonic worker of multiprocessing,
    as in joblib. A negative number counts down from all, as in joblib: -1 is all, -2 all but one.
    In a task of a Dask worker, all are those of the worker: its tasks take turns in sweeps, so that
    each may have all of them.
    """
    available = most = numba.config.NUMBA_NUM_THREADS
    try:
        numba.threading_layer()
    except ValueError:  # it has started no threads, which get_num_threads would do
        pass
    else:
        available = numba.get_num_threads()
    on_worker = _threads_of_dask_worker()
    if on_worker:
        available = min(on_worker, most)
    if n_jobs is None:
        alone = multiprocessing.current_process().daemon and not on_worker
        return 1 if alone else available
    if n_jobs < 0:
        return max(1, available + 1 + n_jobs)
    return min(n_jobs, most)


def _threads_of_dask_worker():
    """Return how many threads the Dask worker has whose task this is; None elsewhere."""
    worker = sys.modules.get("distributed.worker")
    if worker is None:
        return None
    try:
        return worker.get_worker().state.nthreads
    except ValueError:  # this is no task
        return None


@contextmanager
def parallel_section(n_threads, work):
    """Hold the right to run kernels on up to n_threads, if worth it for `work` nanoseconds.

    Yields `run`: ``run(kernel, shards, *args)`` calls a kernel for all shards, see
    `compile.kernel`, in ``run.n_threads`` threads. Each thread takes the next shard as soon as it
    is done with one. So costs are no more than estimates, and a thread that starts late or shares
    its core has fewer shards.
    """
    global _blas_limits
    with _lock:
        limits = [(library, library.num_threads) for library in _blas_libraries()]
        nested, _blas_limits = _blas_limits, limits
        try:
            for library, _ in limits:
                library.set_num_threads(1)
            yield _Run(min(n_threads, 1 + int(work / _WORK_PER_THREAD)))
        finally:
            try:
                _restore(limits)
            except BaseException:  # a KeyboardInterrupt must not leave BLAS on one thread
                _restore(limits)
                raise
            finally:
                _blas_limits = nested


def _blas_libraries():
    global _controller
    if _controller is None:
        _controller = ThreadpoolController()
    return [library for library in _controller.lib_controllers if library.user_api == "blas"]


def _restore(limits):
    for library, n in limits:
        library.set_num_threads(n)


class _Run:
    def __init__(self, n_threads):
        global _team
        self.n_threads = 1
        if n_threads > 1 and not numba.config.DISABLE_JIT:
            if _team is None:
                _team = Team(numba.config.NUMBA_NUM_THREADS)
            self.n_threads = _team.ask(n_threads)

    def __call__(self, kernel, shards, *args):
        taken = np.zeros(2, np.int64)
        team = _team.of(self.n_threads) if self.n_threads > 1 else 0
        kernel(team, taken, shards, *args)


def make_shards(costs):
    """Cut consecutive items into shards of about equal cost.

    Parameters
    ----------
    costs : ndarray of shape (n_items,)
        The cost of each item, in any unit.

    Returns
    -------
    shards : ndarray of shape (n_shards, 2)
        The first item of each shard and the one after its last.
    """
    if len(costs) < 2:
        return np.array([[0, 1]] * len(costs), np.int64).reshape(-1, 2)
    total = np.cumsum(costs, dtype=np.float64)
    targets = np.linspace(0, total[-1], _N_SHARDS + 1)[1:-1]
    return _between(np.concatenate([[0], np.searchsorted(total, targets), [total.size]]))


@lru_cache(maxsize=64)
def even_shards(n):
    """Cut n items of equal cost into shards, some of them empty if there are few items."""
    return _between(np.linspace(0, n, _N_SHARDS + 1))


def _between(cuts):
    shards = np.empty((len(cuts) - 1, 2), np.int64)
    shards[:, 0], shards[:, 1] = cuts[:-1], cuts[1:]
    return shards
