"""Time how long Recommender takes to number the ids of a table, and to gather its interactions.

The ids are strings, and there are twenty rows of a user. Every library is a process of its own;
making the table does not count.
"""

import argparse
import subprocess
import sys
import time

import numpy as np

LIBRARIES = ("pandas object", "pandas", "polars", "pyarrow", "array")


def make_table(library, n):
    """Return a table of n interactions."""
    rng = np.random.default_rng(0)
    columns = {
        name: np.array([form(i) for i in range(size)], object)[rng.integers(size, size=n)]
        for name, form, size in (
            ("user", "user-{:08x}".format, n // 20),
            ("item", "B{:09d}".format, n // 200),
        )
    }
    if library == "array":
        return np.stack(list(columns.values()), axis=1)
    if library == "polars":
        import polars as pl

        return pl.DataFrame({name: ids.tolist() for name, ids in columns.items()})
    if library == "pyarrow":
        import pyarrow as pa

        return pa.table(columns)
    import pandas as pd

    dtype = object if library == "pandas object" else "str"
    return pd.DataFrame({name: pd.Series(ids, dtype=dtype) for name, ids in columns.items()})


def run(library, n):
    """Print the seconds of everything in a fit but the factorisation."""
    from wals import WALS, Recommender

    X = make_table(library, n)
    model, seconds = Recommender(WALS()), []
    WALS.fit = lambda self, X, **weights: seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    model.fit(X)
    print(f"{library:14} {n:,} rows: {seconds[0]:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--run", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.rows)
        return
    for library in LIBRARIES:
        command = [sys.executable, "-P", __file__, "--rows", str(arguments.rows), "--run", library]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
