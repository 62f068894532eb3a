"""Fit on a Dask cluster of this machine: show it, and measure what it costs.

    python benchmarks/cluster.py                    # show it: data made on the workers, and a fit
    python benchmarks/cluster.py --study overhead   # two workers of one thread against two threads
    python benchmarks/cluster.py --study traffic    # bytes between workers, against the model
    python benchmarks/cluster.py --study workers    # the same bits with 1, 2 and 4 workers
    python benchmarks/cluster.py --study kills      # kill -9 of a worker at random instants
    python benchmarks/cluster.py --study scheduler  # memory of the scheduler over 30 iterations
    python benchmarks/cluster.py --study tables     # ids encoded by two workers, and in memory

``benchmarks/cluster.rst`` has the model of time, memory and traffic, and results.
"""

import argparse
import contextlib
import logging
import os
import random
import signal
import statistics
import threading
import time

import dask
import distributed
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
from dask.delayed import delayed
from distributed import Client, LocalCluster, SubprocessCluster

from wals import WALS, Recommender
from wals.datasets import make_interactions


@contextlib.contextmanager
def cluster(n_workers, threads=1, memory_limit="auto"):
    with (
        dask.config.set({"distributed.admin.low-level-log-length": 10**6}),  # of transfers, too
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=threads,
            memory_limit=memory_limit,
            dashboard_address=":0",
            worker_dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as started,
        Client(started) as client,
    ):
        yield client


def blocks(arguments):
    """Return delayed blocks of rows, which the workers make."""
    n, nnz = (size // arguments.blocks for size in (arguments.rows, arguments.entries))
    make = delayed(make_interactions, pure=False)
    return [
        make(n, arguments.columns, nnz, random_state=b, dask_key_name=f"block-{b}")
        for b in range(arguments.blocks)
    ]


def in_memory(arguments):
    made = [block.compute(scheduler="synchronous") for block in blocks(arguments)]
    return sp.vstack(made, "csr")


def received(client):
    """Return how many bytes the workers have got from each other."""

    def count(dask_worker):
        return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)

    return sum(client.run(count).values())


def per_iteration(model):
    """Return the median seconds of an iteration, all but the first."""
    ends = np.concatenate([[0], model.seconds_[1:-1:2]])
    return statistics.median(np.diff(ends)[1:])


def estimator(arguments, **params):
    return WALS(
        arguments.components,
        **{"max_iter": arguments.iterations, "random_state": 0, "solver": arguments.solver}
        | params,
    )


def show(arguments):
    with cluster(arguments.workers, arguments.threads, arguments.memory_limit) as client:
        print(f"dashboard: {client.dashboard_link}")
        before, begun = received(client), time.perf_counter()
        X = client.persist(blocks(arguments))
        print(f"{arguments.entries:,} entries on {arguments.workers} workers")
        model = estimator(arguments, verbose=1).fit(X)
        moved = received(client) - before
        print(f"row_factors_: {model.row_factors_}")
        print(f"score: {model.score(X):.6f}")
        print(f"moved between workers, with the shuffle: {moved / 1e6:.1f} MB")
        print(f"{time.perf_counter() - begun:.1f} s")


def overhead(arguments):
    X = in_memory(arguments)
    local = estimator(arguments, n_jobs=2)
    local.fit(X)
    alone = per_iteration(local.fit(X))
    del X
    with cluster(arguments.workers, arguments.threads) as client:
        X = client.persist(blocks(arguments))
        spread = estimator(arguments)
        spread.fit(X)
        together = per_iteration(spread.fit(X))
    print(f"in memory, two threads: {alone:.3f} s per iteration; ", end="")
    print(f"workers: {arguments.workers}, threads: {arguments.threads}: {together:.3f} s", end="; ")
    print(f"ratio {together / alone:.3f}; loss differs by {spread.loss_ / local.loss_ - 1:.1e}")


def traffic(arguments):
    n, m, k, p = arguments.rows, arguments.columns, arguments.components, arguments.workers
    with cluster(p) as client:
        X = client.persist(blocks(arguments))
        for solver, size in (("exact", 4), ("cg", 2), ("auto", 2)):
            moved = []
            for max_iter in (1, 5):
                before = received(client)
                estimator(arguments, solver=solver, max_iter=max_iter, init="random").fit(X)
                moved.append(received(client) - before)
            measured, model = (moved[1] - moved[0]) / 4, (p - 1) * (n + m) * k * size
            print(f"{solver:5}  {measured / 1e6:8.2f} MB per iteration, ", end="")
            print(f"{measured / model:.3f} of (p - 1) (n + m) k {size}")


def workers(arguments):
    fits = []
    for p in (1, 2, 4):
        with cluster(p):
            model = estimator(arguments).fit(blocks(arguments))
            fits.append((model.components_, model.loss_, per_iteration(model)))
        same = np.array_equal(fits[0][0], fits[-1][0]) and fits[0][1] == fits[-1][1]
        print(f"{p} workers: {fits[-1][2]:.3f} s per iteration, loss {fits[-1][1]!r}, same: {same}")


def kills(arguments):
    with cluster(2) as client:
        X = blocks(arguments)
        for _ in range(2):
            begun = time.perf_counter()
            reference = estimator(arguments).fit(X)
            undisturbed = time.perf_counter() - begun
        print(f"undisturbed: {undisturbed:.2f} s")
        worst = [0.0, 0.0]
        for seed in range(arguments.kills):
            chance = random.Random(seed)
            pids = client.run(os.getpid)
            victim = pids[chance.choice(sorted(pids))]
            at = chance.uniform(0, undisturbed)
            timer = threading.Timer(at, os.kill, (victim, signal.SIGKILL))
            timer.start()
            begun = time.perf_counter()
            loss = estimator(arguments).fit(X).loss_
            seconds = time.perf_counter() - begun
            timer.join()
            client.wait_for_workers(2)
            difference = loss / reference.loss_ - 1
            print(f"killed after {at:5.2f} s: {seconds:6.2f} s, loss differs by {difference:.1e}")
            worst = [max(worst[0], seconds / undisturbed), max(worst[1], abs(difference))]
        print(f"at most {worst[0]:.2f} times as long, {worst[1]:.1e} of the loss")


def scheduler(arguments):
    # In a process of its own, with logs that are soon as long as they get.
    with (
        dask.config.set({"distributed.admin.low-level-log-length": 1000}),
        SubprocessCluster(n_workers=2, threads_per_worker=1, silence_logs=logging.CRITICAL) as of,
        Client(of) as client,
    ):
        X = client.persist(blocks(arguments))

        def look(dask_scheduler):
            return len(dask_scheduler.tasks), psutil.Process().memory_info().rss

        for max_iter in (1, 30, 30, 30):
            model = estimator(arguments, max_iter=max_iter).fit(X)
            tasks, size = client.run_on_scheduler(look)
            print(f"after {max_iter:2} iterations more: {tasks} tasks, {size / 1e6:.0f} MB")
            del model


def orders(arguments, b):
    """Return a partition of a table with ids that are strings."""
    X = make_interactions(
        arguments.rows,
        arguments.columns,
        arguments.entries // arguments.blocks,
        random_state=b,
    ).tocoo()
    users, items = (np.char.mod(f"{of}%08d", x) for of, x in (("u", X.row), ("i", X.col)))
    return pd.DataFrame({"user": users, "item": items, "value": X.data})


def tables(arguments):
    parts = [
        delayed(orders, pure=False)(arguments, b, dask_key_name=f"orders-{b}")
        for b in range(arguments.blocks)
    ]
    model = Recommender(estimator(arguments, max_iter=1, init="random"), value="value")
    alone, together = [], []
    frame = pd.concat([part.compute(scheduler="synchronous") for part in parts])
    for _ in range(3):
        begun = time.perf_counter()
        expected = model.fit(frame)
        alone.append(time.perf_counter() - begun - model.estimator_.seconds_[-1])
    expected = expected.interactions_
    del frame
    with cluster(2) as client:
        X = client.persist(parts)
        distributed.wait(X)
        for _ in range(3):
            before, begun = received(client), time.perf_counter()
            model.fit(X)
            together.append(time.perf_counter() - begun - model.estimator_.seconds_[-1])
            moved = received(client) - before
        same = (model.interactions_.compute() != expected).nnz == 0
        begun = time.perf_counter()
        n_rows = sum(client.gather(client.compute([t.shape[0] for t in model.recommend(n=10)])))
        seconds = time.perf_counter() - begun
    print(f"{arguments.entries:,} interactions, without the sweeps: {min(alone):.2f} s in memory, ")
    print(f"{min(together):.2f} s by two workers, which moved {moved / 1e6:.0f} MB; same: {same}")
    print(f"recommend to all: {n_rows:,} rows in {seconds:.2f} s")


STUDIES = {
    "show": (show, {"rows": 100_000, "columns": 20_000, "entries": 5_000_000, "components": 64}),
    "overhead": (overhead, {"rows": 500_000, "columns": 60_000, "entries": 40_000_000}),
    "traffic": (traffic, {"rows": 100_000, "columns": 20_000, "entries": 2_000_000}),
    "workers": (workers, {"rows": 100_000, "columns": 20_000, "entries": 2_000_000}),
    "kills": (kills, {"rows": 200_000, "columns": 40_000, "entries": 10_000_000}),
    "tables": (
        tables,
        {"rows": 200_000, "columns": 40_000, "entries": 8_000_000, "components": 16},
    ),
    "scheduler": (scheduler, {"rows": 20_000, "columns": 5_000, "entries": 500_000}),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=STUDIES, default="show", help="see above")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--columns", type=int)
    parser.add_argument("--entries", type=int)
    parser.add_argument("--components", type=int)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--memory-limit", default="auto", help="of each worker, as 1.3GB")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--solver", choices=["auto", "exact", "cg"], default="auto")
    arguments = parser.parse_args()
    study, sizes = STUDIES[arguments.study]
    for name, size in ({"components": 128} | sizes).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, size)
    study(arguments)


if __name__ == "__main__":
    main()
