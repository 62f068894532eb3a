"""Time the first fit and transform of a machine: import, compilation from an empty cache, and all.

    python benchmarks/cold_start.py                       # this checkout
    python benchmarks/cold_start.py --against FOLDER      # in turn with another checkout
    python benchmarks/cold_start.py --dtype float64 --rounds 5

Every measurement is a process of its own with an empty cache. Processor seconds, of both the import
and what is compiled, are less disturbed by what else a machine does than those of the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FIT = """
import json, sys, time
begun = time.perf_counter()
import numpy as np, scipy.sparse as sp
from wals import WALS
imported = time.perf_counter(), time.process_time()
X = sp.random(300, 200, 0.1, format="csr", random_state=0, dtype=sys.argv[1])
WALS(16, max_iter=2, random_state=0).fit(X).transform(X)
now = time.perf_counter(), time.process_time()
print(json.dumps({
    "import, s": imported[0] - begun,
    "fit and transform, s": now[0] - imported[0],
    "fit and transform, processor s": now[1] - imported[1],
}))
"""


def measure(checkout, dtype):
    """Return what one process measured, and the size of the cache that it filled."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(checkout)}
        command = [sys.executable, "-c", FIT, dtype]
        run = subprocess.run(command, env=env, cwd=cache, stdout=subprocess.PIPE, check=True)
        files = [file for file in Path(cache).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
    return json.loads(run.stdout) | {"files": len(files), "MB": size / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = [Path(__file__).resolve().parents[1]]
    checkouts += [arguments.against.resolve()] if arguments.against else []
    results = [[] for _ in checkouts]
    for _ in range(arguments.rounds):
        for checkout, rows in zip(checkouts, results, strict=True):
            rows.append(measure(checkout, arguments.dtype))
    print(f"medians of {arguments.rounds}, {arguments.dtype}; load {os.getloadavg()[0]:.2f}")
    for name in results[0][0]:
        values = [[row[name] for row in rows] for rows in results]
        text = "  ".join(f"{statistics.median(column):9.2f}" for column in values)
        if len(values) == 2:
            ratios = [ours / theirs for ours, theirs in zip(*values, strict=True)]
            text += "   ratios " + " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{name:32}{text}")


if __name__ == "__main__":
    main()
