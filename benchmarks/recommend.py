"""Time the exact best columns of many rows against a peer, and against the bare product of factors.

    python benchmarks/recommend.py GOWALLA.npz           # a CSR matrix, for its factors
    python benchmarks/recommend.py GOWALLA.npz --peer    # with implicit, if it is installed

It begins with what a service waits for: the 20 best for one row that the model has not seen, folded
in and ranked. The rest is for many rows: all take the same factors, in turn, in one process, for 20
columns for each of 20,000 rows, without those that a row has already. The product leaves out and
ranks nothing.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from wals import WALS

N, ROWS = 20, 20_000


def product(U, V):
    for top in range(0, len(U), 1000):
        U[top : top + 1000] @ V.T


def peer(U, V, X):
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=U.shape[1], num_threads=0)
    model.user_factors, model.item_factors = U, V
    rows = np.arange(len(U))
    return lambda: model.recommend(rows, X, N=N)


def latency(name, model, X, threads, n=1000):
    """Time single rows, one after the other."""
    model.set_params(n_jobs=threads)
    rows = [X[[i]] for i in np.flatnonzero(np.diff(X.indptr))[:n]]
    for method, call in {
        "fold-in and ranking": lambda row: model.recommend(row, N),
        "fold-in alone": model.transform,
    }.items():
        taken = []
        for row in rows:
            start = time.perf_counter()
            call(row)
            taken.append(time.perf_counter() - start)
        median, high = 1e3 * np.quantile(taken[10:], [0.5, 0.99])
        print(f"{name}, {threads} threads, {method} of one row: {median:.2f} ms, p99 {high:.2f} ms")


def measure(name, U, V, X, threads, rounds, with_peer):
    model = WALS(U.shape[1], n_jobs=threads)
    model.components_, model.row_factors_ = V.T, U
    model.n_features_in_ = len(V)
    contestants = {
        "wals": lambda: model.recommend(X, N, factors=U),
        "product": lambda: product(U, V),
    }
    if with_peer:
        contestants["implicit"] = peer(U, V, sp.csr_matrix(X))
    seconds = {name: [] for name in contestants}
    with threadpool_limits(threads):
        for call in contestants.values():
            call()
        for _ in range(rounds):
            for contestant, call in contestants.items():
                start = time.perf_counter()
                call()
                seconds[contestant].append(time.perf_counter() - start)
    own = seconds["wals"]
    print(f"{name}, {threads} threads: {1e6 * statistics.median(own) / len(U):.1f} us a row")
    for contestant, taken in seconds.items():
        if contestant != "wals":
            ratios = [other / mine for other, mine in zip(taken, own, strict=True)]
            texts = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"  {contestant} takes {statistics.median(ratios):.2f} times as long ({texts})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--peer", action="store_true", help="time implicit, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}")
    options = arguments.threads, arguments.rounds, arguments.peer
    X = sp.csr_array(sp.load_npz(arguments.matrix)).astype(np.float32)
    for k in (64, 128):
        model = WALS(k, max_iter=8, random_state=0).fit(X)
        for threads in (1, arguments.threads):
            latency(f"k = {k}, {X.shape[1]:,} columns", model, X, threads)
        U, V = model.row_factors_[:ROWS], model.col_factors_
        measure(f"k = {k}, {arguments.matrix.name}", U, V, X[:ROWS], *options)
    rng = np.random.default_rng(0)
    U, V = (rng.normal(size=(n, 128)).astype(np.float32) for n in (ROWS, 20_000))
    nothing = sp.csr_array((ROWS, 20_000), dtype=np.float32)
    measure("k = 128, a flat spectrum", U, V, nothing, *options)


if __name__ == "__main__":
    main()
