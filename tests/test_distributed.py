"""`WALS` on a Dask cluster does what it does in memory, also when workers are lost."""

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import dask
import dask.array as da
import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from distributed import Client, Future, LocalCluster, Status, wait
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import LinAlgWarning
from sklearn.model_selection import GridSearchCV
from test_exactness import OBJECTIVES, Case
from test_golden import CASES, make_run

from wals import WALS, load
from wals._core.kernels import ZERO
from wals._core.parallel import effective_n_threads, parallel_section
from wals._core.sweep import eigenbasis, find_axes, fix
from wals._validation import as_csr
from wals.distributed import _blocks, _cluster, _sides, gather_rows
from wals.distributed._blocks import Block
from wals.distributed._cluster import Cluster, row_blocks
from wals.weights import power_law

#: Rows of each block of 60 rows: one of them alone, some of none, most in one.
UNEQUAL = (0, 1, 40, 0, 19)


class Machines(LocalCluster):
    """A cluster that does not miss workers that were killed before it had heard of them."""

    def _update_worker_status(self, op, msg):
        with contextlib.suppress(KeyError):
            super()._update_worker_status(op, msg)


def start(n_workers, threads_per_worker=1, processes=False):
    return Machines(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        processes=processes,
        dashboard_address=":0",
        worker_dashboard_address=":0",
        silence_logs=50,
    )


@pytest.fixture(scope="module")
def client():
    with start(2) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def processes():
    """A cluster of its own for each test: of one whose workers were killed, none may be left."""
    with start(2, processes=True) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


def cut(X, lengths):
    """Return blocks of rows as delayed."""
    stops = np.cumsum(lengths)
    assert stops[-1] == X.shape[0]
    return [delayed(X[stop - n : stop]) for stop, n in zip(stops, lengths, strict=True)]


def as_dask(X, lengths):
    """Return a dask.array, of sparse blocks if X is sparse."""
    blocks = [
        da.from_delayed(block, (n, *X.shape[1:]), X.dtype, meta=X[:0])
        for block, n in zip(cut(X, lengths), lengths, strict=True)
    ]
    return da.concatenate(blocks)


def assert_close(actual, desired, tol):
    """Check max|actual - desired| <= tol max|desired|."""
    assert actual.shape == desired.shape and actual.dtype == desired.dtype
    assert_allclose(actual, desired, rtol=0, atol=tol * np.abs(desired).max())


def assert_equal_fits(model, local, tol):
    gather_rows(model)
    for name in ("components_", "row_factors_"):
        assert_close(getattr(model, name), getattr(local, name), tol)
    assert_allclose(model.loss_curve_, local.loss_curve_, rtol=tol)
    assert_allclose(model.rwse_curve_, local.rwse_curve_, rtol=tol)
    for name in ("row_weights_", "col_weights_", "_row_mass", "_col_mass"):
        assert_allclose(getattr(model, name), getattr(local, name), rtol=1e-12)
    assert (model.n_iter_, model.n_features_in_) == (local.n_iter_, local.n_features_in_)


@pytest.fixture
def case():
    return Case(60, 25, 4, 0, **OBJECTIVES[4])


@pytest.mark.parametrize("dtype, tol", [("float64", 1e-9), ("float32", 2e-4)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_exact_fit_is_that_of_memory(client, objective, dtype, tol):
    case = Case(60, 25, 4, 3, **objective)
    local = case.fit(dtype, max_iter=2)
    X, E = case.X.astype(dtype), case.weights["entry_weights"]
    model = WALS(**case.params | {"max_iter": 2}).fit(
        cut(X, (0, 43, 17)),
        row_weights=as_dask(case.weights["row_weights"], (30, 30)),
        entry_weights=as_dask(E, (20, 40)),
    )
    assert_equal_fits(model, local, tol)


@pytest.mark.parametrize("solver", ["auto", "cg"])
@pytest.mark.parametrize("unobserved_weight", [0.1, 0.0])
def test_steps_are_those_of_memory(client, solver, unobserved_weight):
    """Also of the kept factors and duals, which stay on the workers."""
    case = Case(60, 25, 4, 5, regularization=0.1, unobserved_weight=unobserved_weight)
    local = case.fit(solver=solver, max_iter=6)
    model = WALS(**case.params | {"solver": solver, "max_iter": 6})
    model.fit(cut(case.X, UNEQUAL), **case.weights)
    assert_equal_fits(model, local, 1e-7)


def test_codes_are_those_of_memory(client):
    """So many numbers that they are rounded, as they move, to two bytes and to one."""
    rng = np.random.default_rng(0)
    X = sp.random_array((9000, 3000), density=0.003, rng=rng, format="csr", dtype=np.float32)
    params = {"n_components": 96, "max_iter": 4, "init": "random", "random_state": 0}
    local, model = WALS(**params).fit(X), WALS(**params).fit(as_dask(X, (4000, 3000, 2000)))
    assert_allclose(model.loss_curve_, local.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_tensorflow(client, name):
    run = make_run(name, "float64")
    n = run.X.shape[0]
    params = run.params | {"max_iter": run.n_iter}
    model = WALS(**params).fit(as_dask(run.X, (n // 3, n - n // 3)), row_weights=run.row_weights)
    assert_equal_fits(model, run.fits[-1], 1e-9)


@pytest.mark.parametrize("lengths", [(60,), (0,) + (1, 0) * 60, (5,) * 12])
def test_any_blocks(client, case, lengths):
    model = WALS(**case.params | {"max_iter": 2}).fit(as_dask(case.X, lengths), **case.weights)
    assert_equal_fits(model, case.fit(max_iter=2), 1e-9)


def test_kinds_of_blocks(client):
    X = sp.random_array((60, 12), density=0.3, rng=np.random.default_rng(0), format="csr")
    local = WALS(3, max_iter=2, init="random", random_state=0).fit(X)
    dense = X.toarray()
    read_only = X.copy()
    for array in (read_only.data, read_only.indices, read_only.indptr):
        array.flags.writeable = False
    wide = X.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    lengths = (25, 35)
    for given in (
        da.from_array(dense, chunks=(20, 5)),
        da.from_array(X, chunks=(20, 12), asarray=False),
        as_dask(sp.csr_matrix(X), lengths),
        as_dask(read_only, lengths),
        as_dask(wide, lengths),
        client.scatter([X[:25], X[25:]], hash=False),
    ):
        model = WALS(3, max_iter=2, init="random", random_state=0).fit(given)
        assert_equal_fits(model, local, 1e-9)


@pytest.mark.parametrize("solver", ["auto", "exact", "cg"])
def test_spectral_start(client, solver):
    """It may turn by what rounding is magnified to; what it predicts may not."""
    X = sp.random_array((80, 30), density=0.2, rng=np.random.default_rng(0), format="csr")
    params = {"n_components": 5, "solver": solver, "max_iter": 3, "random_state": 0}
    local, model = WALS(**params).fit(X), WALS(**params).fit(as_dask(X, (50, 30)))
    assert_allclose(model.loss_curve_, local.loss_curve_, rtol=1e-9)
    products = model.row_factors_.compute() @ model.components_
    assert_close(products, local.row_factors_ @ local.components_, 1e-6)


def test_bits_for_any_number_of_workers(client):
    X = sp.random_array((300, 80), density=0.1, rng=np.random.default_rng(0), format="csr")
    blocks = as_dask(X, (100, 50, 90, 60))
    fits = [WALS(6, max_iter=4, random_state=0).fit(blocks)]
    for n_workers, threads in ((1, 2), (3, 1)):
        with (
            start(n_workers, threads) as cluster,
            Client(cluster, set_as_default=False) as other,
            other.as_current(),
        ):
            fits.append(gather_rows(WALS(6, max_iter=4, random_state=0).fit(blocks)))
    gather_rows(fits[0])
    for other in fits[1:]:
        for name in ("components_", "row_factors_", "loss_curve_"):
            assert_array_equal(getattr(other, name), getattr(fits[0], name))


def test_functions_of_counts_and_large_data_losses(client, case):
    """Columns are counted on the workers, and losses that cancel are computed anew there."""
    rng = np.random.default_rng(0)
    U, V = rng.normal(size=(60, 3)), rng.normal(size=(25, 3))
    X = sp.csr_array(U @ V.T)
    params = {"n_components": 3, "regularization": 0.0, "solver": "exact", "random_state": 0}
    params |= {"col_weights": power_law(-0.5), "max_iter": 4}
    local, model = WALS(**params).fit(X), WALS(**params).fit(as_dask(X, UNEQUAL))
    assert_array_equal(model.col_weights_, local.col_weights_)
    size = local.evaluate(X, weights=0.0)["loss"] + np.sum((U @ V.T) ** 2)
    assert 0 <= model.loss_ < 1e-20 * size and (model.loss_curve_[1:] < 1e-15 * size).all()


def test_matrices_and_their_transposes_are_told_apart(client):
    """Dask by itself gives both of them the same name."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    cluster = Cluster()
    futures = [cluster.submit(np.copy, M) for M in (Q, Q.T)] + cluster.put([Q, Q.T])
    for found, M in zip(cluster.gather(futures), (Q, Q.T, Q, Q.T), strict=True):
        assert_array_equal(found, M)


def test_using_a_fit(client, case):
    local = case.fit(max_iter=2)
    X, R = as_dask(case.X, UNEQUAL), case.weights["row_weights"]
    factors = WALS(**case.params | {"max_iter": 2}).fit_transform(X, **case.weights)
    assert isinstance(factors, da.Array)
    assert_close(factors.compute(), local.row_factors_, 1e-9)

    model = WALS(**case.params | {"max_iter": 2}).fit(X, **case.weights)
    lazy = model.transform(X, weights=R)
    assert isinstance(lazy, da.Array) and lazy.shape == (60, 4)
    assert_allclose(lazy.compute(), local.transform(case.X, weights=R), rtol=0, atol=1e-9)
    unknown = model.transform(cut(case.X, UNEQUAL), weights=cut(R, UNEQUAL))
    assert_allclose(unknown.compute(), local.transform(case.X, weights=R), rtol=0, atol=1e-9)

    expected = local.evaluate(case.X, weights=R)
    assert_allclose(
        list(model.evaluate(X, weights=da.from_array(R, chunks=7)).values()),
        list(expected.values()),
        rtol=1e-9,
    )
    assert_allclose(model.score(X, row_weights=R), -expected["rwse"], rtol=1e-9)

    ranked, scores = local.recommend(case.X, n=3, weights=R)
    found = model.recommend(X, n=3, weights=R)
    assert_array_equal(found[0].compute(), ranked)
    assert_allclose(found[1].compute(), scores, atol=1e-9)
    found = model.recommend(cut(case.X, UNEQUAL), n=3, weights=cut(R, UNEQUAL))
    assert_array_equal(found[0].compute(), ranked)
    found = model.recommend(None, n=3, factors=model.row_factors_, candidates=[1, 5, 7])
    expected = local.recommend(None, n=3, factors=local.row_factors_, candidates=[1, 5, 7])
    assert_array_equal(found[0].compute(), expected[0])


def test_copies_leave_the_cluster(client, case, tmp_path):
    model = WALS(**case.params | {"max_iter": 2}).fit(as_dask(case.X, UNEQUAL), **case.weights)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_array_equal(other.transform(case.X), model.transform(case.X))
        with pytest.raises(ValueError, match="gather_rows"):
            other.transform(case.X, axis=1)
        with pytest.raises(ValueError, match="gather_rows"):
            other.similar(0, axis=0)
        with pytest.raises(ValueError, match="gather_rows"):
            other.save(tmp_path / "model.wals")
    with pytest.raises(ValueError, match="gather_rows"):
        model.partial_fit(case.X)
    with pytest.raises(ValueError, match="gather_rows"):
        model.save(tmp_path / "model.wals")
    assert not gather_rows(model).row_factors_.flags.writeable
    model.save(tmp_path / "model.wals")
    assert_array_equal(load(tmp_path / "model.wals").row_factors_, model.row_factors_)
    other = pickle.loads(pickle.dumps(gather_rows(model)))
    assert_array_equal(other.row_factors_, model.row_factors_)
    weighted = other.transform(case.X, axis=1)
    assert_allclose(weighted, case.fit(max_iter=2).transform(case.X, axis=1), atol=1e-9)


def test_warm_start(client, case):
    """It continues from the columns."""
    X = as_dask(case.X, UNEQUAL)
    params = case.params | {"max_iter": 2, "warm_start": True}
    model = WALS(**params).fit(X, **case.weights).fit(X, **case.weights)
    assert_equal_fits(
        model, WALS(**params).fit(case.X, **case.weights).fit(case.X, **case.weights), 1e-8
    )


def test_singular_systems_are_counted(client):
    X = sp.random_array((60, 25), density=0.05, rng=np.random.default_rng(0), format="csr")
    params = {"unobserved_weight": 0.0, "regularization": 0.0, "max_iter": 1, "random_state": 0}
    texts = []
    for given in (X, as_dask(X, UNEQUAL)):
        with pytest.warns(LinAlgWarning) as caught:
            WALS(4, init="random", **params).fit(given)
        texts.append(str(caught[0].message))
    assert texts[0] == texts[1]


def test_bad_input(client, case):
    X, model = case.X, WALS(**case.params | {"max_iter": 1})
    holed, negative = X.copy(), np.ones(60)
    holed.data[-1], negative[50] = np.nan, -1
    good = as_dask(X, UNEQUAL)
    for given, options, error, text in (
        (cut(holed, UNEQUAL), {}, ValueError, "Block 4 of X: Input X contains NaN"),
        ([delayed(X), delayed(X[:, :9])], {}, ValueError, "columns: 9 and 25"),
        ([delayed(X), X], {}, TypeError, "mixes"),
        (as_dask(X[:0], (0,)), {}, ValueError, "0 sample"),
        (good, {"row_weights": negative}, ValueError, "row_weights: -1.0 at position 50"),
        (good, {"row_weights": np.ones(59)}, ValueError, "row_weights has shape"),
        (good, {"row_weights": da.ones(59)}, ValueError, "row_weights has shape"),
        (good, {"row_weights": da.from_array(negative)}, ValueError, "Block 2: Negative weight"),
        (good, {"entry_weights": cut(X, (60,))}, ValueError, "entry_weights has 1 blocks"),
        (good, {"entry_weights": 2 * X[:, :9]}, ValueError, "entry_weights has shape"),
    ):
        before = vars(model).copy()
        with pytest.raises(error, match=text):
            model.fit(given, **options)
        assert vars(model) == before
    model.fit(good)
    for call, text in (
        (lambda: model.transform(good, axis=1), "axis=1"),
        (lambda: model.transform(as_dask(X[:, :9], (60,))), "25 columns"),
        (lambda: model.transform(cut(X, UNEQUAL), weights=np.ones(60)), "unknown lengths"),
        (lambda: model.recommend(good, exclude_seen=X), "exclude_seen"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_fit_needs_a_cluster_and_transform_does_not():
    code = (
        "import dask.array as da, numpy as np\nfrom wals import WALS\n"
        "X = np.eye(9)\nD = da.from_array(X, chunks=(4, 9))\n"
        "try:\n    WALS().fit(D)\n"
        "except ValueError as error:\n    assert 'start a distributed.Client' in str(error)\n"
        "else:\n    raise AssertionError\n"
        "model = WALS(2, max_iter=1, random_state=0).fit(X)\n"
        "assert np.array_equal(model.transform(D).compute(), model.transform(X))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dask_is_imported_by_nothing_else():
    code = (
        "import sys, wals\nwals.WALS(1, max_iter=0).fit([[1.0]])\nassert 'dask' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_are_those_of_the_worker():
    with start(1, 3) as cluster, Client(cluster, set_as_default=False) as client:
        found = client.gather(
            [client.submit(effective_n_threads, n, pure=False) for n in (None, -1, -2, 1)]
        )
    most = effective_n_threads(10**6)
    assert found == [min(3, most), min(3, most), max(min(3, most) - 1, 1), 1]


def test_nothing_is_left_behind(client):
    def n_tasks(dask_scheduler):
        return len(dask_scheduler.tasks)

    before = client.run_on_scheduler(n_tasks)
    WALS(2, max_iter=2, random_state=0).fit(as_dask(np.eye(40), (30, 10)))
    for _ in range(100):
        if client.run_on_scheduler(n_tasks) <= before:
            return
        time.sleep(0.1)
    raise AssertionError(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))


def test_a_fit_in_a_task(client, case):
    """It leaves its thread to the tasks that it waits for."""

    params, X, weights = case.params | {"max_iter": 2}, case.X, case.weights

    def fit():  # with nothing of this module, which workers do not have
        blocks = [delayed(X[:30]), delayed(X[30:])]
        return WALS(**params).fit(blocks, **weights).loss_

    with start(1, processes=True) as cluster, Client(cluster) as other:
        assert other.submit(fit).result(timeout=60) == fit()
        search = GridSearchCV(WALS(max_iter=2, random_state=0), {"n_components": [2, 3]}, cv=2)
        scores = search.fit(as_dask(X, (30, 30))).cv_results_["mean_test_score"]
        with joblib.parallel_config(backend="dask"):
            found = search.fit(as_dask(X, (30, 30))).cv_results_["mean_test_score"]
        assert_allclose(found, scores, rtol=1e-12)


def test_search_on_the_cluster(client):
    X = sp.random_array((60, 25), density=0.2, rng=np.random.default_rng(0), format="csr")
    search = GridSearchCV(WALS(max_iter=2, random_state=0), {"n_components": [2, 3]}, cv=2)
    scores = search.fit(X).cv_results_["mean_test_score"]
    with joblib.parallel_config(backend="dask"):
        assert_array_equal(search.fit(X).cv_results_["mean_test_score"], scores)


def test_blocks_tell_their_size(case):
    X = sp.csr_array(case.X)
    assert dask.sizeof.sizeof(X) == X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    settings = WALS(**case.params)._objective(), 4, "auto", 1
    block = Block(X, None, np.ones(60), np.ones(25), settings)
    assert X.data.nbytes + X.indices.nbytes < dask.sizeof.sizeof(block) < 10**5


@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
def test_blocks_that_are_put_on_disk(client, solver, monkeypatch):
    """As Dask does where memory is short: what they keep goes with them."""
    X, n_sweeps = as_dask(interactions(), (1000, 1500, 1500)), []

    def sweep(block, *args):
        n_sweeps.append(None)
        vars(block).update(vars(pickle.loads(pickle.dumps(block))))
        result = original(block, *args)
        vars(block).update(vars(pickle.loads(pickle.dumps(block))))
        return result

    model = WALS(8, max_iter=4, solver=solver, random_state=0)
    expected = model.fit(X).components_
    original = _blocks._sweep
    monkeypatch.setattr(_blocks, "_sweep", sweep)
    assert_array_equal(model.fit(X).components_, expected)
    assert len(n_sweeps) == 36  # of 3 blocks of rows and of columns, two to start with


def test_a_block_on_disk_since_the_sweep_began():
    """It has nothing of the sweep, and says so."""
    X, settings = interactions(), (WALS(8)._objective(), 8, "auto", 1)
    block = Block(as_csr(X), None, np.ones(4000), np.ones(900), settings)
    axes = find_axes(eigenbasis(np.eye(8), 0.1, np.float32), 0.1, block.side().least_ridge)
    with parallel_section(1, 0) as run:
        fixed = fix(np.ones((900, 8), np.float32), axes, np.empty(0), 0.1, 0, run)
    coordinates = _blocks.Coordinates(np.eye(8), axes, None)
    old = pickle.dumps(block)
    _blocks.sweep_rows(block, "new", "fit", ZERO, coordinates, fixed)
    assert block.swept("new").factors.any()
    for place in (pickle.loads(old), pickle.loads(pickle.dumps(block))):
        with pytest.raises(_blocks.Lost, match="factors of a block of rows"):
            place.swept("newer")
    with pytest.raises(_blocks.Lost):
        pickle.loads(old).swept("new")


def test_paused_workers(client, monkeypatch):
    """A fit that waits for those whose memory is full ends."""
    monkeypatch.setattr(_cluster, "_PAUSED", 3)

    def pause(status, dask_worker):
        dask_worker.status = Status[status]

    by_memory = {"distributed.worker.memory.pause": False}
    with dask.config.set(by_memory), start(2) as cluster, Client(cluster) as paused:
        X = paused.persist(as_dask(interactions(), (1000, 1500, 1500)))
        wait(X)
        paused.run(pause, "paused")
        with pytest.raises(RuntimeError, match="paused, as Dask pauses those whose memory"):
            WALS(4, max_iter=1).fit(X)
        paused.run(pause, "running")
        task = paused.submit(time.sleep, 6)
        time.sleep(0.5)
        paused.run(pause, "paused")  # and goes on with what has begun
        Cluster().gather([task])
        paused.run(pause, "running")
        assert WALS(4, max_iter=1).fit(X).n_iter_ == 1


def interactions(n=4000, m=900, density=0.02):
    rng = np.random.default_rng(0)
    return sp.random_array((n, m), density=density, rng=rng, format="csr", dtype=np.float32)


@pytest.mark.parametrize("victim", ["ClusterRows", "ClusterCols"])
def test_a_killed_worker(processes, monkeypatch, victim):
    """Once before the tasks of a sweep are there, and once while they run, or are about to."""
    X = interactions()
    params = {"n_components": 16, "max_iter": 4, "random_state": 0}
    local, side = WALS(**params).fit(X), getattr(_sides, victim)
    original, sweeps, timers = side._sweep, [], []

    def kill():
        pids = processes.run(os.getpid)
        os.kill(pids[min(pids)], signal.SIGKILL)

    def sweep(*args):
        sweeps.append(None)
        if len(sweeps) == 5:
            kill()
        if len(sweeps) == 8:
            timers.append(threading.Timer(0.05, kill))
            timers[0].start()
        return original(*args)

    monkeypatch.setattr(side, "_sweep", sweep)
    with processes.as_current():
        model = WALS(**params).fit(as_dask(X, (1000, 1500, 1500)))
        for timer in timers:
            timer.join()
        assert len(sweeps) >= 7
        assert_allclose(model.loss_, local.loss_, rtol=1e-3)
        assert model.n_iter_ == 4


def test_lost_blocks_that_nothing_can_make_again(processes, monkeypatch):
    original, killed = _sides.ClusterCols._sweep, []

    def sweep(*args):
        if not killed:
            killed.extend(processes.run(os.getpid).values())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return original(*args)

    X = interactions()
    monkeypatch.setattr(_sides.ClusterCols, "_sweep", sweep)
    with processes.as_current():
        blocks = processes.scatter([X[:2000], X[2000:]], hash=False)
        model = WALS(4, max_iter=1, init="random")
        with pytest.raises(RuntimeError, match="lost with their worker"):
            model.fit(blocks)
        assert not hasattr(model, "components_")


def test_factors_move_between_workers_only(processes, monkeypatch):
    """As often as the model of the traffic says; the scheduler carries none, nor Gramians."""
    X, submit, sizes = interactions(20000, 2000, 0.002), Cluster.submit, []

    def measured(self, function, *args, **kwargs):
        parts = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        sizes.extend(part.nbytes for part in parts if isinstance(part, np.ndarray))
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(Cluster, "submit", measured)
    params = {"n_components": 32, "solver": "exact", "init": "random", "random_state": 0}
    moved = []
    with processes.as_current():
        for max_iter in (1, 3):
            before = received(processes)
            WALS(max_iter=max_iter, **params).fit(as_dask(X, (6000, 7000, 7000)))
            moved.append(received(processes) - before)
    (n, m), k = X.shape, 32
    assert_allclose(moved[1] - moved[0], 2 * (n + m) * k * 4, rtol=0.15)
    assert max(sizes) <= 8 * m  # numbers for each column
    assert sum(size >= 4 * k**2 for size in sizes) <= 2 * 3  # of each fit, and block of columns


def received(client):
    """Return how many bytes the workers have got from each other."""

    def count(dask_worker):
        return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)

    return sum(client.run(count).values())


@pytest.mark.parametrize("solver", ["auto", "cg", "exact"])
def test_a_fit_goes_on_from_its_state(client, case, solver, tmp_path, capsys):
    """The state is that of the client, which another client and another cluster may take up."""
    X = case.X.astype(np.float64)
    model = WALS(**case.params | {"solver": solver, "max_iter": 6})
    expected = model.fit(cut(X, UNEQUAL), row_weights=case.weights["row_weights"]).loss_
    for max_iter in (3, 6):
        again = WALS(**model.get_params()).set_params(
            max_iter=max_iter, checkpoint_dir=tmp_path, verbose=1
        )
        again.fit(cut(X, UNEQUAL), row_weights=case.weights["row_weights"])
    assert "goes on after iteration 3" in capsys.readouterr().out
    assert again.n_iter_ == 6
    assert again.loss_ == pytest.approx(expected, rel=1e-9 if solver == "exact" else 1e-3)
    again.fit(cut(2 * X, UNEQUAL), row_weights=case.weights["row_weights"])
    assert "goes on" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["delayed", "persisted", "rechunked", "sliced", "shared"])
def test_blocks_with_keys_of_our_own(client, case, kind):
    """What makes blocks is renamed, but futures, which are there, are used where they are."""
    X = as_dask(case.X.toarray(), (20, 20, 20))
    given = {
        "delayed": lambda: X,
        "persisted": X.persist,
        "rechunked": lambda: X.persist().rechunk((13, 9)),
        "sliced": lambda: da.concatenate([X, X])[30:90],
        "shared": lambda: (lambda whole: [delayed(np.split)(whole, 3)[i] for i in range(3)])(
            delayed(case.X.toarray)()
        ),
    }[kind]()
    expected = np.roll(case.X.toarray(), -30, axis=0) if kind == "sliced" else case.X.toarray()
    for _ in range(2):
        blocks = row_blocks(given)
        assert all(isinstance(block, Future) for block in blocks) == (kind == "persisted")
        found = client.gather(Cluster().compute(blocks))
        assert_array_equal(np.concatenate(found), expected)
