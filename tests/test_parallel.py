"""Threads, forks and pools, in fresh processes, and the teams that share a kernel."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import threadpoolctl
from numpy.testing import assert_allclose, assert_array_equal

from wals import WALS
from wals._core import parallel, sweep
from wals._core.compile import SHARD, THREAD, kernel, take, this_call
from wals._core.parallel import even_shards, make_shards, parallel_section
from wals._core.team import Team, in_threads

SCENARIOS = Path(__file__).with_name("parallel_scenarios.py")


# What fits first and leaves nothing behind shares a process.
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
ALONE = ["fork_before_fit", "other_kernels"]


@functools.cache
def run_scenarios(scenarios):
    # More threads than this machine may have: three of them show an odd partition. This layer of
    # Numba's, should anything use it, aborts the process where two threads do so at once.
    env = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "3"}
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


@pytest.mark.parametrize("scenario", SHARED + ALONE)
def test_scenario(scenario):
    scenarios = tuple(SHARED) if scenario in SHARED else (scenario,)
    code, output = run_scenarios(scenarios)
    own = output.partition(f"begin {scenario}\n")[2].partition("\nbegin ")[0]
    passed = f"passed {scenario}" in own.splitlines()
    assert passed, f"exit code {code}\n{own or 'Not reached:' + output}"
    if scenario == scenarios[-1]:  # what is wrong after all of them
        assert code == 0, output


def blas_threads():
    return [
        lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"
    ]


def test_section_restores_blas_on_error():
    before = blas_threads()
    with pytest.raises(KeyboardInterrupt), parallel_section(1, 1e9):
        assert blas_threads() == [1] * len(before)
        raise KeyboardInterrupt
    assert blas_threads() == before


def test_interrupt_while_blas_is_restored(monkeypatch):
    real, calls, before = parallel._restore, [], blas_threads()

    def interrupted(limits):
        calls.append(limits)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(limits)

    monkeypatch.setattr(parallel, "_restore", interrupted)
    with pytest.raises(KeyboardInterrupt), parallel_section(1, 1e9):
        pass
    assert len(calls) == 2
    assert blas_threads() == before


@kernel
def _square(team, taken, shards, delays, out):
    if team:
        in_threads(team, *this_call())
        return
    t = take(taken, THREAD)
    s = take(taken, SHARD)
    while s < len(shards):
        for i in range(shards[s, 0], shards[s, 1]):
            value = np.float64(i)
            for _ in range(delays[t]):
                value = np.sqrt(value) * np.sqrt(value)
            out[i] += value * value
        s = take(taken, SHARD)


def square(team, n_threads, delays):
    """Return the squares of 0, 1, ... by a kernel whose threads take so long for each."""
    out, taken = np.zeros(1000), np.zeros(2, np.int64)
    address = team.of(n_threads) if n_threads > 1 else 0
    _square(address, taken, even_shards(1000), np.array(delays), out)
    return out, taken


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("slow", [None, 0, 1])
def test_a_team_does_all_once(n_threads, slow):
    """Whoever is slow, the caller or a helper that it waits for in the end."""
    delays = [0] * 8
    if slow is not None:
        delays[slow] = 20_000
    team = Team(8)
    assert team.ask(n_threads) == n_threads
    for _ in range(20):
        out, taken = square(team, n_threads, delays)
        assert_allclose(out, np.arange(1000.0) ** 2, rtol=1e-6)
        assert taken[THREAD] <= n_threads


def test_a_team_does_not_wait_for_who_has_not_begun():
    team = Team(3)  # whose helpers never start
    for _ in range(3):
        out, taken = square(team, 3, [0, 0, 0])
        assert_array_equal(out, np.arange(1000.0) ** 2)
        assert taken[THREAD] == 1
    assert team.ask(3) == 3
    for _ in range(1000):  # until one comes in time
        out, taken = square(team, 3, [1000, 1000, 1000])
        assert_allclose(out, np.arange(1000.0) ** 2, rtol=1e-6)
        if taken[THREAD] > 1:
            return
    pytest.fail("No helper ever came.")


def test_no_more_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Team(4).ask(4) == 1


def test_every_kernel_takes_the_shards_that_are_left(monkeypatch):
    kernels = set()

    def run(self, kernel, shards, *args):
        taken = np.zeros(2, np.int64)
        kernel(parallel._team.of(self.n_threads), taken, shards, *args)
        # Each thread that came ends when it finds that none is left.
        came = taken[SHARD] - len(shards)
        assert 1 <= came <= self.n_threads
        assert taken[THREAD] in (0, came)
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
