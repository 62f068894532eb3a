"""Time read_interactions on large texts, by each library that can cut them, and its peak memory.

Every reading is a process of its own; the import of the library that cuts the text counts, that of
wals does not. ``--against FOLDER`` also reads by the package in another checkout.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

READERS = ("pyarrow", "polars", "pandas", "standard library")
_BLOCK = 1_000_000  # lines written at a time


def write(path, n_lines, kind):
    """Write user, item, rating lines: numbers, or texts as ids; about 10 lines of a user."""
    rng = np.random.default_rng(0)
    user, item = ("{}", "{}") if kind == "int" else ("user-{:08x}", "B{:09d}")
    form = f"{user},{item},{{}}\n".format
    with open(path, "w") as file:
        file.write("user_id,item_id,rating\n")
        for start in range(0, n_lines, _BLOCK):
            n = min(_BLOCK, n_lines - start)
            users = rng.integers(0, n_lines // 10, n).tolist()
            # Few items are in most lines.
            items = (n_lines // 100 * rng.random(n) ** 3).astype(int).tolist()
            ratings = (rng.integers(1, 11, n) / 2).tolist()
            file.writelines(map(form, users, items, ratings))


def read(path, reader):
    """Read in this process; print seconds, the entries, and the memory before and at the peak."""
    for name in READERS[:3]:
        if name != reader:
            sys.modules[name] = None
    from wals.interactions import read_interactions

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    X, _, _ = read_interactions(path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, X.nnz, float(X.data.sum(dtype=float)), before / 1024, peak / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--against", metavar="FOLDER", help="another checkout")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--ids", nargs="+", choices=("int", "str"), default=["int", "str"])
    parser.add_argument("--read", nargs=2, metavar=("FILE", "READER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(*arguments.read)
        return
    here = Path(__file__).parents[1]
    runs = [(name, here) for name in READERS]
    if arguments.against:
        runs.append(("other checkout", Path(arguments.against)))
    for kind in arguments.ids:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "lines.csv")
            write(path, arguments.lines, kind)
            size = os.path.getsize(path) / 2**20
            print(f"{arguments.lines:,} lines, {kind} ids, {size:,.0f} MiB")
            results = {}
            for name, root in runs:
                command = [sys.executable, "-P", __file__, "--read", path, name]
                environment = os.environ | {"PYTHONPATH": str(root)}
                found = [
                    subprocess.run(
                        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                    ).stdout.split()
                    for _ in range(arguments.repeat)
                ]
                results[name] = min(found, key=lambda numbers: float(numbers[0]))
            contents = {tuple(numbers[1:3]) for numbers in results.values()}
            assert len(contents) == 1, contents
            last = float(results[runs[-1][0]][0])
            for name, (seconds, _, _, before, peak) in results.items():
                took = float(seconds)
                print(
                    f"  {name:<18}{took:8.2f} s  {last / took:5.1f} x  {float(peak):6,.0f} MiB at "
                    f"the peak, {float(before):,.0f} MiB before",
                    flush=True,
                )


if __name__ == "__main__":
    main()
