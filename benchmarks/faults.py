"""What becomes of a fit that keeps its state, and of a saved model, when something fails.

    python benchmarks/faults.py

Each fault is a real one, in a process of its own. It has to end in a clear error, or by the signal,
with the last sound state in place; the fit that is started again ends with the bits of one that was
not disturbed. As root, the full disk is a small tmpfs; else files may grow to some size only.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import wals
from wals import WALS
from wals.datasets import load_msweb

NOBODY = 65534


def make(folder=None, **parameters):
    return WALS(16, max_iter=12, random_state=0, checkpoint_dir=folder, **parameters)


def data():
    return load_msweb().astype(np.float32)


def same(model, expected):
    return all(
        np.array_equal(getattr(model, name), getattr(expected, name))
        for name in ("components_", "row_factors_", "loss_curve_")
    )


# ----------------------------------------------------------------- what runs in another process


def run_fit(folder):
    print("starts", flush=True)
    make(folder).fit(data())


def run_slow_fit(folder):
    """Fit again and again, so that whatever comes comes in the midst of it."""
    print("starts", flush=True)
    for seed in range(1000):
        make(folder).set_params(random_state=seed).fit(data())


def run_limited_fit(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run_fit(folder)


def run_fit_as_nobody(folder):
    X = data()
    WALS(16, max_iter=1, random_state=0).fit(X)  # whose code is then there to be read
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    print("starts", flush=True)
    make(folder).fit(X)


def run_save(path):
    print("starts", flush=True)
    model = make().fit(data())
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    model.save(path)


def run_search(folder):
    from sklearn.model_selection import GridSearchCV

    print("starts", flush=True)
    grid = {"regularization": [1.0, 2.0, 3.0, 4.0], "n_components": [32, 64]}
    GridSearchCV(make(folder, n_jobs=1), grid, cv=2, n_jobs=2).fit(data())


def start(task, folder):
    command = [sys.executable, "-P", __file__, task, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "starts\n", process.communicate()[1]
    return process


# --------------------------------------------------------------------------------------- faults


@contextlib.contextmanager
def full_disk():
    """Give a folder on a disk of 300 kB, if there may be one."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True).returncode:
            yield None
            return
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)


def report(name, process, *, signalled=None, said=None, timeout=120):
    told = process.communicate(timeout=timeout)[1].strip().splitlines()
    last = next(
        (line for line in reversed(told) if said and said in line), told[-1] if told else ""
    )
    if signalled is not None:
        assert process.returncode == -signalled, (process.returncode, told)
        last = last or f"ended by {signal.Signals(signalled).name}"
    else:
        assert process.returncode == 1, (process.returncode, told)
        assert said in last, told
    print(f"{name:<34} {last[:150]}", flush=True)


def check_goes_on(folder, expected):
    assert same(make(folder).fit(data()), expected)
    left = [path.name for path in Path(folder).iterdir() if path.suffix != ".checkpoint"]
    assert not left, left


def main():
    expected = make().fit(data())
    with full_disk() as folder:
        if folder is not None:
            ballast = Path(folder) / "ballast"
            report("full disk (tmpfs)", start("fit", folder), said="No space left on device")
            ballast.unlink(missing_ok=True)
            assert sum(path.suffix == ".tmp" for path in Path(folder).iterdir()) == 0
    with tempfile.TemporaryDirectory() as folder:
        make(folder).set_params(max_iter=3).fit(data())
        report("no file may grow", start("limited_fit", folder), said="File too large")
        check_goes_on(folder, expected)
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            os.chmod(folder, 0o755)
            report("read-only folder", start("fit_as_nobody", folder), said="cannot be written to")
    with tempfile.TemporaryDirectory() as folder:
        process = start("slow_fit", Path(folder) / "states")
        time.sleep(1)
        shutil.rmtree(Path(folder) / "states")
        report("folder that vanishes", process, said="No such file or directory")
    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        with tempfile.TemporaryDirectory() as folder:
            process = start("slow_fit", folder)
            time.sleep(0.7)
            process.send_signal(number)
            report(name, process, signalled=number)
            check_goes_on(folder, expected)
    with tempfile.TemporaryDirectory() as folder:
        process = start("slow_fit", folder)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        report("KeyboardInterrupt", process, signalled=signal.SIGINT)
        check_goes_on(folder, expected)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wals"
        expected.save(path)
        before = path.read_bytes()
        report("a model that cannot be saved", start("save", path), said="File too large")
        assert path.read_bytes() == before
        assert [path.name] == os.listdir(folder)
        assert same(wals.load(path), expected)
    with tempfile.TemporaryDirectory() as folder:
        process = start("search", folder)
        while not any(Path(folder).iterdir()):
            time.sleep(0.05)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "loky"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        report("a worker of GridSearchCV is killed", process, said="TerminatedWorkerError")
        n_states = len(os.listdir(folder))
        process = start("search", folder)
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
        print(f"{'':<34} started again, it went on from {n_states} states to the end")
    print("every fault ended as it should")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        globals()[f"run_{sys.argv[1]}"](sys.argv[2])
    else:
        main()
