"""A fit that cannot fit into memory says so before any work."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from wals import WALS, _memory
from wals._memory import amount, available_memory, check_memory

MEBI = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a function that writes a file that the system tells of itself by."""
    monkeypatch.setattr(_memory, "_ROOT", tmp_path)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_nothing_is_known(system):
    assert available_memory() == np.inf


def test_machine(system):
    system("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 2048 kB\nSwapFree: 1024 kB\n")
    assert available_memory() == 3 * MEBI


def test_control_groups(system):
    system("proc/meminfo", f"MemAvailable: {2**40} kB\n")
    system("proc/self/cgroup", "0::/jobs/job\n")
    system("sys/fs/cgroup/jobs/job/memory.max", "max\n")
    system("sys/fs/cgroup/jobs/job/memory.current", f"{MEBI}\n")
    assert available_memory() == 2**50
    # That of a parent counts, too; files that were read long ago can be given back.
    system("sys/fs/cgroup/jobs/memory.max", f"{100 * MEBI}\n")
    system("sys/fs/cgroup/jobs/memory.current", f"{70 * MEBI}\n")
    system("sys/fs/cgroup/jobs/memory.stat", f"anon 5\ninactive_file {20 * MEBI}\nfile 7\n")
    assert available_memory() == 50 * MEBI
    # In a container, its own group is the root, whatever path the host knows it by.
    system("sys/fs/cgroup/memory.max", f"{30 * MEBI}\n")
    system("sys/fs/cgroup/memory.current", f"{40 * MEBI}\n")
    assert available_memory() == 0


def test_control_groups_of_version_1(system):
    system("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/a\n")
    system("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{9 * MEBI}\n")
    system("sys/fs/cgroup/memory/a/memory.usage_in_bytes", f"{5 * MEBI}\n")
    system("sys/fs/cgroup/memory/a/memory.stat", f"total_inactive_file {MEBI}\n")
    assert available_memory() == 5 * MEBI


@pytest.mark.parametrize(
    ("size", "text"), [(31e9, "31 GB"), (2.25e9, "2.25 GB"), (1.5e6, "1.5 MB"), (900, "0.9 kB")]
)
def test_amounts(size, text):
    assert amount(size) == text


def test_figures_of_the_error(system):
    system("proc/meminfo", "MemAvailable: 20000 kB\n")
    X = sp.random_array((10_000, 5_000), density=0.02, format="csr", dtype=np.float32, rng=0)
    with pytest.raises(MemoryError) as error:
        check_memory(X, 100, auto=True, entry_weights=False)
    assert str(error.value) == (
        "The fit needs 21.3 MB beyond X (8 MB for the transpose, 10 MB for the factors, 2 MB for "
        "the dual coefficients, 320 kB for a system of each component with all, 960 kB for weights "
        "of rows and columns), but 20.5 MB are available."
    )


def test_fit_refuses_before_any_work(system):
    X = sp.eye_array(1000, 900, format="csr")
    model = WALS(50, max_iter=1, random_state=0).fit(X)
    before = dict(vars(model))
    system("proc/meminfo", "MemAvailable: 1000 kB\n")
    with pytest.raises(MemoryError, match=r"The fit needs .* but .* are available\."):
        model.fit(X)
    assert vars(model) == before
    assert model.transform(X).shape == (1000, 50)


LIMITED = """
import resource, sys
from pathlib import Path
import scipy.sparse as sp
from wals import WALS
status = Path("/proc/self/status").read_text().splitlines()
size = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + 60_000_000, resource.RLIM_INFINITY))
try:
    WALS(100).fit(sp.csr_array((200_000, 10), dtype="float32"))
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_limit_of_address_space():
    run = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    assert "80 MB for the factors" in run.stdout
    assert run.stdout.strip().endswith("MB are available.")
