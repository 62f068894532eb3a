"""Files of models: open a large one, share one among workers, damage and kill many times.

    python benchmarks/persistence.py                # all of it, on Linux; takes 11 GB of disk
    python benchmarks/persistence.py --study damage --times 100000

"open" times `wals.load` of a file of 5 GB; "share" adds up what four processes that use all of a
model of 1 GB take more than before (proportional set size); "damage" loads files with random
damage; "kill" kills processes that save.
"""

import argparse
import collections
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import wals

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import persistence_scenarios as scenarios

K, M = 128, 10_000


def large_model(n_bytes):
    n = n_bytes // (4 * K) - M
    model = scenarios.wals_by_formula(1, M, K, np.float32)
    model.row_factors_ = np.ones((n, K), np.float32)
    model.row_weights_, model._row_mass = np.ones((2, n))
    return model


def timed(function, *args, **options):
    start = time.perf_counter()
    result = function(*args, **options)
    return result, time.perf_counter() - start


def study_open(folder, times):
    path, model = folder / "large.wals", large_model(5 * 10**9)
    _, seconds = timed(model.save, path)
    print(f"open: saved {path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s")
    del model
    taken = []
    for _ in range(5):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        taken.append(timed(wals.load, path, mmap=True)[1])
    texts = ", ".join(f"{1e3 * seconds:.1f}" for seconds in taken)
    print(f"open: {texts} ms, none of it in the page cache before")
    _, seconds = timed(wals.load, path)
    print(f"open: {seconds:.1f} s into memory, with checksums")
    path.unlink()


def pss():
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(text.split("\nPss:")[1].split()[0])


def work(path):
    """Be a worker: use all of a model, and tell the sizes, in step with the others."""
    input()
    before = pss()
    print(before, flush=True)
    input()
    model = wals.load(path, mmap=True)
    for batch in np.array_split(model.row_factors_, 100):
        model.recommend(None, 5, factors=batch[:2])
        batch.sum()
    print("ready", flush=True)
    input()
    print(pss(), flush=True)
    input()


def study_share(folder, times):
    path = folder / "shared.wals"
    large_model(10**9).save(path)
    command = [sys.executable, "-P", __file__, "--work", path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(4)]

    def ask():
        answers = []
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            answers.append(worker.stdout.readline().strip())
        return answers

    before, _, after = ask(), ask(), ask()
    added = sum(map(int, after)) - sum(map(int, before))
    size = path.stat().st_size
    print(f"share: four workers take {added / size:.3f} times the {size / 1e9:.2f} GB of the file")
    for worker in workers:
        worker.communicate("\n")
    path.unlink()


def study_damage(folder, times):
    times = times or 10_000
    path, rng, outcomes = folder / "damaged.wals", np.random.default_rng(1), collections.Counter()
    slowest = 0
    models = [*scenarios.models().values(), scenarios.wals_by_formula(900, 700, 8, np.float32)]
    contents = []
    for model in models:
        model.save(path)
        contents.append(path.read_bytes())
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(times):
        content = contents[number % len(contents)]
        damaged, forged = scenarios.damage(content, rng)
        path.write_bytes(damaged)
        start = time.perf_counter()
        try:
            model = wals.load(path, mmap=number % 2 == 1)
        except (ValueError, OSError) as error:
            outcomes[type(error).__name__] += 1
        else:
            if not forged and damaged != content:
                raise SystemExit(f"damage: number {number} was not noticed")
            outcomes["loaded, for its checksums were made to agree" if forged else "same file"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"damage: {dict(outcomes)}")
    print(f"damage: the slowest took {1e3 * slowest:.0f} ms; memory grew by {grown / 1e6:.1f} MB")
    path.unlink()


def study_kill(folder, times):
    times = times or 100
    (folder / "killed").mkdir()
    n = scenarios.kill(folder / "killed" / "a.wals", times)
    print(f"kill: whole after each of {times} kills, {n} of which left a file that was removed")


STUDIES = {
    "damage": study_damage,
    "kill": study_kill,
    "open": study_open,
    "share": study_share,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=[*STUDIES])
    parser.add_argument("--times", type=int, help="how often to damage or kill")
    parser.add_argument("--folder", help="where to put the files; default: where temporary ones go")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    print(f"load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for study in arguments.study:
            STUDIES[study](Path(folder), arguments.times)


if __name__ == "__main__":
    main()
