"""Kill writers at random instants, and fill disks: nothing unsound opens, and nothing is left.

python benchmarks/storage_faults.py --kills 200
sudo python benchmarks/storage_faults.py --kills 0 --full      # disks of 1 to 25 MB (tmpfs)
"""

import argparse
import errno
import os
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

from wals import WALS, storage
from wals.datasets import make_interactions

_WRITER = """
import sys
from wals import storage
from wals.datasets import make_interactions
X = make_interactions(20_000, 500, 400_000, random_state=0)
storage._BUCKET, storage.ENTRIES = 20_000, 10_000
print("ready", flush=True)
sys.stdin.readline()
storage.write((X[i : i + 500] for i in range(0, 20_000, 500)), sys.argv[1])
print("done", flush=True)
"""


def kill(n):
    """Kill n writers while they write; the longest takes as long as one that is left alone."""
    X, rng = make_interactions(20_000, 500, 400_000, random_state=0), random.Random(0)
    opened = stale = 0
    with tempfile.TemporaryDirectory() as folder:
        path, longest = os.path.join(folder, "m"), None
        for number in range(n + 1):
            with subprocess.Popen(
                [sys.executable, "-c", _WRITER, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                assert writer.stdout.readline() == "ready\n"
                start = time.perf_counter()
                writer.stdin.write("\n")
                writer.stdin.flush()
                if longest is None:
                    assert writer.stdout.readline() == "done\n"
                    longest = time.perf_counter() - start
                else:
                    time.sleep(rng.uniform(0, 1.1 * longest))
                    writer.kill()
            left = sorted(os.listdir(folder))
            assert len(left) <= 1, left  # those of earlier ones are removed
            if left == ["m"]:
                stored = storage.open(path)
                stored.verify()
                assert (stored[:] != X).nnz == 0
                opened += number > 0
                for file in os.listdir(path):
                    os.remove(os.path.join(path, file))
                os.rmdir(path)
            else:
                stale += bool(left)
        storage.write(X, path).verify()
        assert os.listdir(folder) == ["m"]
    print(f"{n} kills: {opened} were done and sound, {stale} left what the next one removed")


def fill():
    """Write, and train, on disks that are too small by more and more."""
    X, told = make_interactions(20_000, 500, 400_000, random_state=0), []
    rows, columns = X.nonzero()
    table = np.stack([rows, columns], axis=1)
    with tempfile.TemporaryDirectory() as disk:
        for size in range(1, 26):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk]
            subprocess.run(mount, check=True)
            try:
                said = "both"
                for write in (
                    lambda: storage.write(X, f"{disk}/n"),
                    lambda: storage.write_interactions([table], f"{disk}/m"),
                ):
                    before = sorted(os.listdir(disk))
                    try:
                        write().verify()
                    except OSError as error:
                        assert error.errno == errno.ENOSPC, error
                        assert sorted(os.listdir(disk)) == before
                        said = f"{len(before)} of 2 written"
                if os.path.exists(f"{disk}/n"):
                    try:
                        WALS(4, max_iter=1).fit(storage.open(f"{disk}/n"))
                    except OSError as error:
                        assert error.errno == errno.ENOSPC, error
                        said += ", no room to train"
                told.append(f"{size} MB: {said}")
            finally:
                subprocess.run(["umount", disk], check=True)
    print("\n".join(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--full", action="store_true", help="needs the right to mount")
    options = parser.parse_args()
    kill(options.kills)
    if options.full:
        fill()
