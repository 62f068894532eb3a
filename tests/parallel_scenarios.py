"""Scenarios of threads and processes, run by test_parallel in processes of their own.

    python parallel_scenarios.py SCENARIO [SCENARIO ...]

prints "begin SCENARIO" before each, and "passed SCENARIO" after it if all results are right; what
follows a failure is run all the same. Ends with exit code 0, unless the process itself fails.
"""

import multiprocessing
import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import scipy.sparse as sp
import threadpoolctl
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV

from wals import WALS
from wals._core import parallel
from wals._core.parallel import effective_n_threads

X = sp.random(300, 120, 0.1, format="csr", random_state=0, dtype=np.float32)


def make(n_jobs=None):
    return WALS(12, max_iter=3, random_state=0, n_jobs=n_jobs)


def blas_threads():
    return [
        lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"
    ]


def helpers():
    return [thread for thread in threading.enumerate() if thread.name == "wals"]


def digest(model):
    return model.components_.tobytes() + model.row_factors_.tobytes() + model.transform(X).tobytes()


def threads():
    """Eight Python threads fit and transform at once."""
    before, expected = blas_threads(), digest(make().fit(X))
    shared = make().fit(X)
    barrier = threading.Barrier(8)

    def work(seed):
        barrier.wait()
        for _ in range(5):
            assert digest(make().fit(X)) == expected
            assert_array_equal(shared.transform(X), shared.row_factors_)
            shared.evaluate(X)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert blas_threads() == before


def _in_child(function):
    """Run a function in a forked child and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork():
    """A child forked after a fit fits and transforms, and so does its own child."""
    model = make().fit(X)
    expected = digest(model)

    def work():
        assert digest(make().fit(X)) == expected
        assert_array_equal(model.transform(X), model.row_factors_)
        assert len(helpers()) == 2

    def work_in_grandchild():
        assert _in_child(work) == 0

    assert _in_child(work) == 0
    assert _in_child(work_in_grandchild) == 0
    work()


def fork_during_fit():
    """A child forked while another thread is in a sweep inherits no lock that stays locked."""
    expected = digest(make().fit(X))
    before = blas_threads()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            make().fit(X)

    def work():
        assert digest(make().fit(X)) == expected
        assert blas_threads() == before

    thread = threading.Thread(target=busy)
    thread.start()
    codes = [_in_child(work) for _ in range(10)]
    stop.set()
    thread.join()
    assert codes == [0] * 10


@numba.njit(parallel=True)
def _sum_of_roots(x):
    total = 0.0
    for i in numba.prange(x.size):
        total += np.sqrt(x[i])
    return total


def other_kernels():
    """Numba's threads, which another kernel uses meanwhile, are neither used nor started."""
    expected = digest(make().fit(X))
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = None
    assert layer is None
    total, stop = _sum_of_roots(X.data), threading.Event()

    def others():
        while not stop.is_set():
            assert_allclose(_sum_of_roots(X.data), total, rtol=1e-4)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(others)
        for _ in range(50):
            assert digest(make().fit(X)) == expected
        stop.set()
        running.result()
    numba.set_num_threads(2)
    assert effective_n_threads(None) == 2
    assert digest(make().fit(X)) == expected
    assert numba.get_num_threads() == 2


def fork_before_fit():
    """A child may be the first to work."""

    def work():
        make().fit(X)

    assert _in_child(work) == 0
    make().fit(X)


def _grid_search(backend):
    grid = {"unobserved_weight": [0.01, 0.1, 1.0], "n_components": [2, 8]}
    expected = GridSearchCV(make(), grid, cv=2, error_score="raise").fit(X)
    with parallel_config(backend=backend):
        search = GridSearchCV(make(), grid, cv=2, n_jobs=2, error_score="raise").fit(X)
    for key, value in expected.cv_results_.items():
        if key.endswith("test_score"):
            assert_array_equal(search.cv_results_[key], value)
    assert digest(search.best_estimator_) == digest(expected.best_estimator_)


def loky_backend():
    _grid_search("loky")


def multiprocessing_backend():
    _grid_search("multiprocessing")


def threading_backend():
    _grid_search("threading")


def _fit_and_count_threads(_):
    return digest(make().fit(X)), effective_n_threads(None)


def pool():
    """Daemonic workers of a pool use one thread each."""
    expected = digest(make().fit(X)), 1
    # What is spawned shares nothing with its like: one is enough.
    for method, n_workers in (("fork", 2), ("spawn", 1)):
        with multiprocessing.get_context(method).Pool(n_workers) as workers:
            assert workers.map(_fit_and_count_threads, range(4)) == [expected] * 4


def n_jobs():
    """The results are the same to the bit for every number of threads, and from run to run."""
    assert effective_n_threads(None) == effective_n_threads(-1) == 3
    assert [effective_n_threads(j) for j in (1, 2, 3, 99, -2, -9)] == [1, 2, 3, 3, 2, 1]
    for dtype in (np.float32, np.float64):
        for solver in ("exact", "cg", "auto"):
            for w0 in (0.0, 0.1):
                model = make().set_params(solver=solver, unobserved_weight=w0)
                data = X.astype(dtype)
                expected = model.set_params(n_jobs=1).fit(data)
                curve, factors = expected.loss_curve_, digest(expected)
                for j in (1, 2, 3, None):
                    again = model.set_params(n_jobs=j).fit(data)
                    assert_array_equal(again.loss_curve_, curve)
                    assert digest(again) == factors


if __name__ == "__main__":
    # Let threads share even the small problems of these scenarios. (Not where pytest imports this
    # module to look for examples.)
    parallel._WORK_PER_THREAD = 1
    for name in sys.argv[1:]:
        print("begin", name, flush=True)
        try:
            globals()[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
        else:
            print("passed", name, flush=True)
