"""What checkpoints cost, and what they are worth when a fit is killed.

    python benchmarks/checkpoint.py                                # the cost, on 10 million entries
    python benchmarks/checkpoint.py --kills 200 --matrix GOWALLA.npz   # kill, resume, compare

A killed fit is one of "auto", "cg" and "exact" in turn, in a process of its own, which is sent
SIGKILL at a random instant, and started anew until it ends. All that it leaves must be that of a
fit that was not disturbed, to the bit.
"""

import argparse
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from wals import WALS
from wals.datasets import make_interactions

SOLVERS = "auto", "cg", "exact"


def cost(k, rounds, folder):
    X = make_interactions(136_677, 20_108, 10_000_000, random_state=0).astype(np.float32)
    print(f"{X.shape[0]:,} x {X.shape[1]:,}, {X.nnz:,} entries, k = {k}", flush=True)
    ratios = []
    for turn in range(rounds):
        seconds = {}
        with tempfile.TemporaryDirectory(dir=folder) as states:
            for kept in (None, states):
                model = WALS(k, max_iter=8, random_state=0, checkpoint_dir=kept).fit(X)
                ends = model.seconds_[1:-1:2]  # of iterations
                seconds[kept] = np.median(np.diff(ends[2:]))
            size = max(path.stat().st_size for path in Path(states).iterdir()) / 1e6
        ratios.append(seconds[states] / seconds[None])
        print(
            f"turn {turn}: {seconds[None]:.3f} s per iteration, {seconds[states]:.3f} s with a "
            f"state of {size:.0f} MB after each, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


def fit(matrix, solver, folder):
    """Print a digest of all that a fit leaves."""
    X = sp.csr_array(sp.load_npz(matrix)).astype(np.float32)
    print("starts", flush=True)
    model = WALS(32, max_iter=12, solver=solver, random_state=0, checkpoint_dir=folder, verbose=1)
    model.fit(X)
    arrays = model.components_, model.row_factors_, model.loss_curve_, model._row_mass
    total = hashlib.sha256(b"".join(np.ascontiguousarray(array) for array in arrays))
    print(f"ends {total.hexdigest()}", flush=True)


def kills(n, matrix, folder):
    rng, expected, longest = np.random.default_rng(0), {}, {}
    for solver in SOLVERS:
        process = start(matrix, solver, None)
        begun = time.perf_counter()
        expected[solver] = process.communicate()[0].splitlines()[-1]
        longest[solver] = time.perf_counter() - begun
        print(f"{solver}: {longest[solver]:.1f} s undisturbed", flush=True)
    killed = ended = resumed = 0
    while killed < n:
        solver = SOLVERS[ended % len(SOLVERS)]
        with tempfile.TemporaryDirectory(dir=folder) as states:
            while True:
                process = start(matrix, solver, states)
                try:
                    told = process.communicate(timeout=rng.uniform(0, longest[solver] / 2))[0]
                except subprocess.TimeoutExpired:
                    if killed < n:
                        process.send_signal(signal.SIGKILL)
                        killed += 1
                        process.communicate()
                        continue
                    told = process.communicate()[0]
                break
            resumed += "goes on after" in told
            assert told.splitlines()[-1] == expected[solver], told
            assert all(path.suffix == ".checkpoint" for path in Path(states).iterdir())
        ended += 1
        print(f"{killed} killed, {ended} ended, {resumed} of them resumed", flush=True)
    print(f"all {ended} have the bits of an undisturbed fit, and left no litter")


def start(matrix, solver, folder):
    """Start a fit in a process of its own, and wait until it has its data."""
    command = [sys.executable, "-P", __file__, "--matrix", matrix, "--fit", solver]
    command += ["--folder", folder] if folder else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "starts\n"
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, metavar="N")
    parser.add_argument("--matrix", help="a CSR matrix in an .npz")
    parser.add_argument("--folder", help="where states are written")
    parser.add_argument("--fit", choices=SOLVERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        fit(arguments.matrix, arguments.fit, arguments.folder)
        return
    print(f"load {os.getloadavg()[0]:.2f}")
    if arguments.kills:
        kills(arguments.kills, arguments.matrix, arguments.folder)
    else:
        cost(arguments.components, arguments.rounds, arguments.folder)


if __name__ == "__main__":
    main()
