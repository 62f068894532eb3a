"""What it takes to write a matrix to disk, and to train from there.

    python benchmarks/storage.py                        # 300 million entries, about 12 GB of disk
    python benchmarks/storage.py --nnz 30_000_000
    python benchmarks/storage.py --large                # more than 2**31 entries at k = 2, 46 GB
    python benchmarks/storage.py --factors              # more than 2**31 numbers of rows, 11 GB RAM

Every step runs in a process of its own, of which the largest anonymous memory (RssAnon) is told
beyond what it had when all was imported and compiled. Pages of files are no part of it: the system
drops them when it needs the room. There are no buffers, whose size would matter.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

K, N_ITER = 32, 3
#: Entries of a row, and of a column, on average; entries of a block.
PER_ROW, PER_COLUMN, BLOCK = 100, 1000, 1_000_000


def anonymous():
    """Return the bytes of anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory in a block, beyond that at its start."""

    def __enter__(self):
        self.start = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.bytes = self.most - self.start


def blocks(nnz):
    """Yield rows whose columns are popular by Zipf's law, and whose lengths are log-normal."""
    m, rng, done = nnz // PER_COLUMN, np.random.default_rng(0), 0
    while done < nnz:
        lengths = rng.lognormal(np.log(PER_ROW) - 0.32, 0.8, size=BLOCK // PER_ROW).astype(int) + 1
        columns = (m * rng.random(lengths.sum()) ** 3).astype(np.int32)
        rows = np.repeat(np.arange(lengths.size), lengths)
        keys = np.unique(rows * m + columns)
        rows, columns = np.divmod(keys, m)
        indptr = np.searchsorted(rows, np.arange(lengths.size + 1))
        data = np.ones(keys.size, np.float32)
        done += keys.size
        yield sp.csr_array((data, columns.astype(np.int32), indptr), (lengths.size, m))


def nearly_full(nnz):
    """Yield rows that store nearly every column: the quickest way to many entries."""
    m = 2**15
    n, columns = -(-nnz // (m - 1)), np.arange(m, dtype=np.int32)
    rng = np.random.default_rng(0)
    for first in range(0, n, 100):
        q = min(100, n - first)
        kept = np.ones((q, m), bool)
        kept[np.arange(q), rng.integers(m, size=q)] = False
        indices = np.broadcast_to(columns, (q, m))[kept]
        data = rng.random(indices.size, np.float32)
        yield sp.csr_array((data, indices, np.arange(q + 1) * (m - 1)), (q, m))


def warmed_up(k):
    """Compile and import what is needed, so that it does not count."""
    from wals import WALS, storage
    from wals.datasets import load_msweb

    with tempfile.TemporaryDirectory() as folder:
        X = storage.write(load_msweb(), f"{folder}/m")
        WALS(k, max_iter=1, random_state=0).fit(X)
    return WALS, storage


def write(options):
    _, storage = warmed_up(2)
    made = 0.0

    def source():
        nonlocal made
        start = time.perf_counter()
        for block in (nearly_full if options.large else blocks)(options.nnz):
            made += time.perf_counter() - start
            yield block
            start = time.perf_counter()

    start = time.perf_counter()
    with Peak() as peak:
        X = storage.write(source(), options.path)
    return {
        "seconds": time.perf_counter() - start - made,
        "seconds to make the blocks": made,
        "anonymous": peak.bytes,
        "shape": X.shape,
        "nnz": X.nnz,
        "bytes": sum(file.stat().st_size for file in Path(options.path).iterdir()),
    }


def read(options):
    """Return how long it takes to read what a sweep does, from the disk and from memory."""
    seconds = []
    for cold in (True, False):
        start = time.perf_counter()
        for file in Path(options.path).iterdir():
            with open(file, "rb", buffering=0) as opened:
                if cold:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while opened.read(2**24):
                    pass
        seconds.append(time.perf_counter() - start)
    return {"seconds from disk": seconds[0], "seconds from the page cache": seconds[1]}


def fit(options):
    WALS, storage = warmed_up(options.k)
    X = storage.open(options.path)
    if options.cold:
        for file in Path(options.path).iterdir():
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    in_memory = X[:] if options.in_memory else X
    n_iter = 1 if options.large else N_ITER
    model = WALS(options.k, max_iter=n_iter, random_state=0, solver=options.solver, init="random")
    start = time.perf_counter()
    with Peak() as peak:
        model.fit(in_memory)
    seconds = time.perf_counter() - start
    # The last rows and columns are those that start beyond 2**31 entries.
    for axis, A in enumerate((X, X.T)):
        last = A[A.shape[0] - 5 :]
        expected = model.transform(last if axis == 0 else last.T, axis=axis)
        found = model.row_factors_ if axis == 0 else model.transform(X, axis=1)
        np.testing.assert_allclose(found[-5:], expected, rtol=1e-4, atol=1e-6)
    factors = model.row_factors_.nbytes + 3 * model.components_.nbytes
    return {
        "seconds": seconds,
        "seconds of the first": model.seconds_[1],
        "seconds of each of the others": (model.seconds_[2 * n_iter - 1] - model.seconds_[1])
        / max(n_iter - 1, 1),
        "anonymous": peak.bytes,
        "beyond the factors": peak.bytes - factors,
        "loss": float(model.loss_),
    }


def factors(options):
    """Compare rows at both ends of more than 2**31 numbers with those of a small matrix."""
    WALS, _ = warmed_up(options.k)
    few = sp.random_array((1000, 60), density=0.1, format="csr", dtype=np.float32, rng=0)
    n, start = 2**31 // options.k + 1000, time.perf_counter()
    indptr = np.zeros(n + 1, np.int32)
    indptr[1:501] = few.indptr[1:501]
    indptr[501:-500] = few.indptr[500]
    indptr[-500:] = few.indptr[501:]
    many = sp.csr_array((few.data, few.indices, indptr), (n, few.shape[1]))
    # Of the first V, alone, so that rows without entries do not matter.
    settings = {"max_iter": 1, "solver": "exact", "init": np.eye(60, options.k, dtype=np.float32)}
    small = WALS(options.k, **settings).fit(few)
    with Peak() as peak:
        large = WALS(options.k, **settings).fit(many)
    ends = np.concatenate([large.row_factors_[:500], large.row_factors_[-500:]])
    difference = np.abs(ends - small.row_factors_).max() / np.abs(small.row_factors_).max()
    assert difference < 1e-4, difference
    assert not large.row_factors_[500:-500].any()
    return {
        "seconds": time.perf_counter() - start,
        "shape of the factors": large.row_factors_.shape,
        "anonymous": peak.bytes,
        "relative difference": float(difference),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nnz", type=int, default=300_000_000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--folder", default=".", help="where the matrix is written to")
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--solver", default="auto")
    for flag in ("--cold", "--in-memory"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    steps = ("write", "read", "fit", "factors")
    parser.add_argument("--step", choices=steps, help=argparse.SUPPRESS)
    parser.add_argument("--factors", action="store_true")
    parser.add_argument("--path", help="write the matrix to this path, or use what is there")
    options = parser.parse_args()
    if options.step:
        result = globals()[options.step](options)
        print(json.dumps(result))
        return
    if options.large:
        options.nnz, options.k = 2**31 + 2**20, 2
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = options.path or f"{folder}/matrix"
        steps = [("write", []), ("fit", [])]
        if not options.large:
            steps[1:] = [("read", []), ("fit", ["--cold"]), ("fit", []), ("fit", ["--in-memory"])]
        if os.path.exists(path):
            steps = steps[1:]
        if options.factors:
            steps, options.k = [("factors", [])], 128
        common = ["--nnz", str(options.nnz), "--k", str(options.k), "--path", path]
        common += ["--solver", options.solver]
        common += ["--large"] * options.large
        for step, more in steps:
            command = [sys.executable, "-P", __file__, "--step", step, *common, *more]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(step, *more)
            for name, value in json.loads(told).items():
                if name.startswith(("anonymous", "beyond", "bytes")):
                    value = f"{value / 1e6:,.0f} MB"
                print(f"    {name:<32}{f'{value:.4g}' if isinstance(value, float) else value}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
