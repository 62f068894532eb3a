"""Fit, project, recommend, save and load at once, from threads and forked processes, for minutes.

    python benchmarks/soak.py --minutes 10

All results must equal those of one thread to the bit, and memory must not grow: it is printed every
half minute, as what the process has for itself (anonymous pages).
"""

import argparse
import os
import pickle
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np

import wals
from wals import WALS
from wals.datasets import load_msweb

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def anonymous():
    """Return the anonymous memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return float("nan")


class Work:
    """What is done again and again, and what must come out."""

    def __init__(self, folder):
        self.X = load_msweb().astype(np.float32)[:6000]
        self.shared = WALS(24, max_iter=3, random_state=0).fit(self.X)
        self.path = Path(folder) / "model.wals"
        self.shared.save(self.path)
        self.expected = {name: action() for name, action in self.actions().items()}

    def actions(self):
        return {
            "fit": lambda: self._arrays(WALS(24, max_iter=3, random_state=0).fit(self.X)),
            "fit and kept states": self._fit_with_states,
            "transform": lambda: [self.shared.transform(self.X[:500])],
            "transform one": lambda: [self.shared.transform(self.X[[7]])],
            "recommend": lambda: self.shared.recommend(self.X[:300], 10),
            "recommend one": lambda: self.shared.recommend(self.X[[7]], 10),
            "similar": lambda: self.shared.similar(range(50), 5),
            "partial_fit": self._partial_fit,
            "save": self._save,
            "load": lambda: self._arrays(wals.load(self.path)),
            "map": lambda: wals.load(self.path, mmap=True).recommend(self.X[:60], 10),
        }

    @staticmethod
    def _arrays(model):
        return [model.components_.copy(), model.row_factors_.copy(), model.loss_curve_]

    def _fit_with_states(self):
        with tempfile.TemporaryDirectory() as states:
            model = WALS(8, max_iter=3, random_state=0, checkpoint_dir=states).fit(self.X)
            return self._arrays(model.set_params(max_iter=4).fit(self.X))

    def _partial_fit(self):
        model = pickle.loads(pickle.dumps(self.shared))
        model.partial_fit(self.X[:100], indices=np.arange(100))
        model.partial_fit(self.X[:50])
        return [model.row_factors_, model.transform(self.X[:50])]

    def _save(self):
        self.shared.save(self.path)  # over the one that others map and load
        return []

    def once(self, rng):
        actions = self.actions()
        name = list(actions)[rng.integers(len(actions))]
        for ours, theirs in zip(actions[name](), self.expected[name], strict=True):
            assert np.array_equal(ours, theirs), name
        return name


def repeat(work, seed, until, counts):
    rng = np.random.default_rng(seed)
    while time.monotonic() < until:
        name = work.once(rng)
        counts[name] = counts.get(name, 0) + 1


def forked(work, seed):
    """Do some of it in a process that is forked while threads are at work."""
    process = os.fork()
    if not process:
        code = 1
        try:
            rng = np.random.default_rng(seed)
            for _ in range(5):
                work.once(rng)
            code = 0
        finally:
            os._exit(code)
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, failures, counts = Work(folder), [], {}
        start = time.monotonic()
        until = start + 60 * arguments.minutes

        def guarded(seed):
            try:
                repeat(work, seed, until, counts)
            except BaseException as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=guarded, args=(i,)) for i in range(arguments.threads)]
        for thread in threads:
            thread.start()
        n_forked, told = 0, start
        while time.monotonic() < until:
            _, status = os.waitpid(forked(work, 1000 + n_forked), 0)
            n_forked += 1
            if status:
                failures.append(f"forked process {n_forked} ended with status {status}")
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(
                    f"{told - start:5.0f} s  {anonymous():7.1f} MB  {sum(counts.values())} actions"
                    f", {n_forked} processes, {len(failures)} failures",
                    flush=True,
                )
        for thread in threads:
            thread.join()
        left = [path.name for path in Path(folder).iterdir()]
    print(f"{counts}, {n_forked} processes of 5 actions; left on disk: {left}")
    print("\n".join(failures) or "no failure")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
