"""Threads, forks and pools, under each of Numba's threading layers, in fresh processes."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import threadpoolctl
from numpy.testing import assert_array_equal

from wals import WALS
from wals._core import parallel, sweep
from wals._core.compile import SHARD, THREAD
from wals._core.parallel import even_shards, make_shards, parallel_section

SCENARIOS = Path(__file__).with_name("parallel_scenarios.py")


# All but "fork_before_fit" fit first, and leave nothing behind: they share a process.
SHARED = [
    "n_jobs",
    "threads",
    "fork",
    "fork_during_fit",
    "threading_backend",
    "multiprocessing_backend",
    "pool",
    "loky_backend",
]


@functools.cache
def run_scenarios(layer, scenarios):
    # More threads than this machine may have: three of them show an odd partition.
    env = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "3"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    # The output goes to a file: of a process that is killed, it is what it got to.
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-W", "error", SCENARIOS, *scenarios]
        with subprocess.Popen(
            command, env=env, stdout=output, stderr=output, start_new_session=True
        ) as process:
            try:
                code = process.wait(timeout=300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = "none within 300 seconds"
        output.seek(0)
        return code, output.read()


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
@pytest.mark.parametrize("scenario", [*SHARED, "fork_before_fit"])
def test_scenario(layer, scenario):
    scenarios = tuple(SHARED) if scenario in SHARED else (scenario,)
    code, output = run_scenarios(layer, scenarios)
    own = output.partition(f"begin {scenario}\n")[2].partition("\nbegin ")[0]
    passed = f"passed {scenario}" in own.splitlines()
    assert passed, f"exit code {code}\n{own or 'Not reached:' + output}"
    if scenario == scenarios[-1]:  # what is wrong after all of them
        assert code == 0, output


def test_section_restores_threads_on_error():
    def state():
        blas = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
        return numba.get_num_threads(), [lib["num_threads"] for lib in blas]

    before = state()
    with pytest.raises(KeyboardInterrupt), parallel_section(1, 1e9):
        assert state() == (1, [1] * len(before[1]))
        raise KeyboardInterrupt
    assert state() == before


def test_interrupt_while_threads_are_restored(monkeypatch):
    real, calls, before = numba.set_num_threads, [], numba.get_num_threads()

    def interrupted(n):
        calls.append(n)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(n)

    monkeypatch.setattr(numba, "set_num_threads", interrupted)
    with pytest.raises(KeyboardInterrupt), parallel_section(1, 1e9):
        pass
    assert calls == [1, before, before]
    assert numba.get_num_threads() == before


def test_every_kernel_takes_the_shards_that_are_left(monkeypatch):
    kernels = set()

    def run(self, kernel, shards, *args):
        taken = np.zeros(2, np.int64)
        kernel(self.n_threads, taken, shards, *args)
        # Each thread ends when it finds that none is left.
        assert taken[SHARD] == len(shards) + self.n_threads
        assert taken[THREAD] in (0, self.n_threads)
        kernels.add(kernel.__name__)

    monkeypatch.setattr(parallel._Run, "__call__", run)
    monkeypatch.setattr(parallel, "_WORK_PER_THREAD", 1)
    monkeypatch.setattr(sweep, "_FEW", 0)  # else so few numbers would not be encoded
    X = sp.random(60, 50, 0.2, format="csr", random_state=0, dtype=np.float32)
    model = WALS(4, max_iter=3, tol=0, random_state=0).fit(X)
    model.inverse_transform(model.row_factors_, pattern=X)
    assert kernels == {
        "solve",
        "_encode",
        "_gram",
        "_rotate",
        "_extrapolate",
        "_sampled_product",
        "_extra_weights",
        "_count_columns",
        "_transpose",
    }


@pytest.mark.parametrize("n", [1, 2, 47, 48, 49, 1000])
def test_shards_cover_all_items_at_about_equal_cost(n):
    costs = np.random.default_rng(n).pareto(1.5, n) + 1
    shards = make_shards(costs)
    assert_array_equal(np.concatenate([np.arange(a, b) for a, b in shards]), np.arange(n))
    cost = np.array([costs[a:b].sum() for a, b in shards])
    assert cost.max() <= costs.sum() / len(shards) + costs.max()


@pytest.mark.parametrize("n", [0, 1, 47, 49, 136_677])
def test_even_shards(n):
    shards = even_shards(n)
    assert_array_equal(np.concatenate([np.arange(a, b) for a, b in shards]), np.arange(n))
    assert np.ptp(shards[:, 1] - shards[:, 0]) <= 1


def test_no_items_no_shards():
    assert make_shards(np.zeros(0)).shape == (0, 2)
