"""Seconds per iteration of WALS and of its peers on one problem, judged by one objective.

    pip install ".[benchmark]"
    python benchmarks/bench.py

Each library runs in a process of its own, on the same threads, from the same V0 where it lets one
set it. The clock is around `fit`: seconds per iteration are (time of 6 iterations - time of 1) /
5, after a fit on a part of the data that compiles what there is to compile. After that, the
objective of the final factors is computed in float64 by the same few lines of NumPy for all. A
rival that fails is a row that says so.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time

import numpy as np
import scipy.sparse as sp

UNOBSERVED_WEIGHT, REGULARIZATION = 0.1, 0.1
N_ITER = 6


def objective(X, U, V):
    """Return L as README.rst defines it, with R = C = E = 1 and nu = 0, in float64."""
    U, V = np.asarray(U, dtype=np.float64), np.asarray(V, dtype=np.float64)
    total = UNOBSERVED_WEIGHT * np.sum((U.T @ U) * (V.T @ V))
    total += REGULARIZATION * (np.sum(U**2) + np.sum(V**2))
    for top in range(0, X.shape[0], 10_000):
        block = X[top : top + 10_000].tocoo()
        p = np.einsum("ij,ij->i", U[top + block.row], V[block.col])
        total += np.sum((1 + UNOBSERVED_WEIGHT) * (block.data - p) ** 2 - UNOBSERVED_WEIGHT * p**2)
    return total


def run_wals(solver):
    def run(X, V0, n_threads):
        from wals import WALS

        def fit(X, n_iter):
            model = WALS(
                V0.shape[1],
                unobserved_weight=UNOBSERVED_WEIGHT,
                regularization=REGULARIZATION,
                solver=solver,
                init=V0,
                max_iter=n_iter,
                n_jobs=n_threads,
            ).fit(X)
            return model.row_factors_, model.col_factors_

        return fit

    return run


def run_implicit(use_cg):
    def run(X, V0, n_threads):
        from implicit.cpu.als import AlternatingLeastSquares

        def fit(X, n_iter):
            # Its weights are 1 where nothing is stored: the objective, divided by the unobserved
            # weight.
            model = AlternatingLeastSquares(
                factors=V0.shape[1],
                regularization=REGULARIZATION / UNOBSERVED_WEIGHT,
                alpha=(1 + UNOBSERVED_WEIGHT) / UNOBSERVED_WEIGHT,
                use_cg=use_cg,
                iterations=n_iter,
                num_threads=n_threads,
            )
            model.item_factors = V0.copy()
            model.user_factors = np.zeros((X.shape[0], V0.shape[1]), dtype=np.float32)
            model.fit(X, show_progress=False)
            return model.user_factors, model.item_factors

        return fit

    return run


LIBRARIES = {
    "wals auto": run_wals("auto"),
    "wals cg": run_wals("cg"),
    "wals exact": run_wals("exact"),
    "implicit CG(3)": run_implicit(use_cg=True),
    "implicit Cholesky": run_implicit(use_cg=False),
}


def measure(name, X, V0, n_threads, queue):
    try:
        fit = LIBRARIES[name](X, V0, n_threads)
        fit(X[:2000], 1)
        seconds = []
        for n_iter in (1, N_ITER):
            start = time.perf_counter()
            U, V = fit(X, n_iter)
            seconds.append(time.perf_counter() - start)
        queue.put(((seconds[1] - seconds[0]) / (N_ITER - 1), objective(X, U, V)))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--output", help="a JSON file for the raw numbers")
    options = parser.parse_args()
    # Before any library starts its threads; the peers ask for BLAS on one.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)

    from wals.datasets import make_interactions

    X = make_interactions(136_677, 20_108, options.entries, random_state=0)
    X = sp.csr_matrix(X, dtype=np.float32)
    load = os.getloadavg()[0]
    print(
        f"{X.shape[0]} x {X.shape[1]}, {X.nnz} entries, {options.threads} threads, load {load:.2f}"
    )
    print(f"{platform.processor() or platform.machine()}, Python {sys.version.split()[0]}\n")
    print(f"{'k':>4}  {'library':20s} {'s/iteration':>12s} {'objective':>14s}")
    context, rows = multiprocessing.get_context("spawn"), []
    for k in options.components:
        random = np.random.default_rng(0)
        V0 = (random.uniform(size=(X.shape[1], k)) / np.sqrt(k)).astype(np.float32)
        for name in options.libraries:
            queue = context.Queue()
            process = context.Process(target=measure, args=(name, X, V0, options.threads, queue))
            process.start()
            result = queue.get()
            process.join()
            rows.append({"k": k, "library": name, "result": result})
            told = result if isinstance(result, str) else f"{result[0]:12.3f} {result[1]:14.6e}"
            print(f"{k:4d}  {name:20s} {told}", flush=True)
    if options.output:
        with open(options.output, "w") as file:
            json.dump({"load": load, "machine": platform.platform(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
