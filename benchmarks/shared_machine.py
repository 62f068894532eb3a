"""Time two threads against one on a machine that others use as well.

    python benchmarks/shared_machine.py                     # this checkout
    python benchmarks/shared_machine.py --against FOLDER    # in turn with another checkout
    python benchmarks/shared_machine.py --threads 4 --neighbours 0 1 4

With each number of busy neighbours, processes that this script starts, fits and projections of
several sizes run with one thread and with more, in turn. A ratio above 1 says that threads do harm.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MEASURE = """
import json, sys, time
import numpy as np
from wals import WALS
from wals.datasets import make_interactions

seconds, threads = float(sys.argv[1]), int(sys.argv[2])
X = {n: make_interactions(n, m, nnz, random_state=0).astype(np.float32)
     for n, m, nnz in ((300, 200, 6_000), (5_000, 1_000, 100_000), (50_000, 10_000, 2_000_000))}
def fit(n, k, n_jobs):
    return lambda: WALS(k, max_iter=4, tol=0, random_state=0, n_jobs=n_jobs).fit(X[n])
def transform(n, q, k, n_jobs):
    model, rows = WALS(k, max_iter=1, tol=0, random_state=0, n_jobs=n_jobs).fit(X[n]), X[n][:q]
    return lambda: model.transform(rows)
tasks = {}
for n, k in ((300, 16), (300, 64), (5_000, 64), (50_000, 64)):
    tasks[f"fit {n:,} rows, k={k}"] = [fit(n, k, j) for j in (1, threads)]
for n, q, k in ((300, 1, 64), (300, 300, 16), (5_000, 5_000, 64), (50_000, 50_000, 64)):
    tasks[f"transform {q:,} rows, k={k}"] = [transform(n, q, k, j) for j in (1, threads)]
results = {}
for name, pair in tasks.items():
    for call in pair:
        call()
    times, begun = ([], []), time.perf_counter()
    while time.perf_counter() - begun < seconds or len(times[0]) < 3:
        for call, taken in zip(pair, times):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    results[name] = [[float(np.median(t)), float(np.mean(t))] for t in times]
print(json.dumps(results))
"""


@contextlib.contextmanager
def busy(n):
    """Keep n processes busy."""
    command = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(command) for _ in range(n)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each task")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    checkouts = [Path(__file__).resolve().parents[1]]
    checkouts += [arguments.against.resolve()] if arguments.against else []
    for n in arguments.neighbours:
        results = [{} for _ in checkouts]
        load = os.getloadavg()[0]
        with busy(n):
            for _ in range(arguments.rounds):
                for checkout, collected in zip(checkouts, results, strict=True):
                    command = [sys.executable, "-P", "-c", MEASURE]
                    command += [str(arguments.seconds), str(arguments.threads)]
                    env = {**os.environ, "PYTHONPATH": str(checkout)}
                    output = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
                    for name, pair in json.loads(output.stdout).items():
                        collected.setdefault(name, []).append(pair)
        print(f"{n} busy neighbours; load before {load:.2f}; ms with one thread, ratio of", end=" ")
        print(f"{arguments.threads} threads to one, of medians and of means")
        for name in results[0]:
            texts = []
            for collected in results:
                one = statistics.median(pair[0][0] for pair in collected[name])
                ratios = (
                    statistics.median(pair[1][kind] / pair[0][kind] for pair in collected[name])
                    for kind in (0, 1)
                )
                texts.append(f"{1e3 * one:10.2f}" + "".join(f"{ratio:8.2f}" for ratio in ratios))
            print(f"  {name:32}" + "   ".join(texts))


if __name__ == "__main__":
    main()
