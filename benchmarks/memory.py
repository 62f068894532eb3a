"""Peak memory of `fit` on 10 million entries, in units of the least that it has to hold.

    python benchmarks/memory.py

That is X and X^T as CSR, and the factors. The peak is that of the resident set, above the bare
import, with X loaded; it is measured in a process in which nothing else has run, after the machine
code was cached.
"""

import argparse
import multiprocessing

import numpy as np


def memory(key):
    """Return a line of /proc/self/status in bytes: VmRSS is resident now, VmHWM at most so far."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def fit(arrays, shape, k, solver, queue):
    import scipy.sparse as sp

    from wals import WALS

    bare = memory("VmRSS")
    X = sp.csr_matrix(tuple(np.load(path) for path in arrays), shape=shape)
    model = WALS(k, max_iter=2, solver=solver, random_state=0).fit(X)
    least = 2 * (X.data.nbytes + X.indices.nbytes) + 8 * sum(shape) + 4 * k * sum(shape)
    assert model.components_.dtype == np.float32
    queue.put((memory("VmHWM") - bare, least))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, nargs="+", default=[64, 128])
    options = parser.parse_args()

    import os
    import tempfile

    from wals.datasets import make_interactions

    X = make_interactions(136_677, 20_108, 10_000_000, random_state=0)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{name}.npy") for name in ("data", "indices", "indptr")]
        for path, array in zip(paths, (X.data, X.indices, X.indptr), strict=True):
            np.save(path, array)
        for k in options.components:
            for solver in ("auto", "exact"):
                for _ in range(2):  # the first compiles
                    queue = context.Queue()
                    process = context.Process(target=fit, args=(paths, X.shape, k, solver, queue))
                    process.start()
                    used, least = queue.get()
                    process.join()
                told = f"{used / 2**20:.0f} MiB = {used / least:.2f} x {least / 2**20:.0f} MiB"
                print(f"k = {k:3d}, {solver:5s}: {told}", flush=True)


if __name__ == "__main__":
    main()
