"""Whether a fit can get the memory that it needs: better told before than killed in the middle."""

from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None

#: Where the system tells of itself; tests move it.
_ROOT = Path("/")
_PROC = Path("proc/self")


def check_memory(X, k, *, auto, entry_weights, stored=False, kept=False):
    """Raise MemoryError if a fit of a matrix cannot fit into the memory that it may use.

    Parameters
    ----------
    X : CSR matrix of shape (n, m)
    k : int
        Number of components.
    auto : bool
        Whether dual coefficients are kept, and two sets of factors of columns.
    entry_weights : bool
        Whether there are weights of the entries.
    stored : bool, default=False
        Whether X is on disk, and so is whatever else has the size of its entries.
    kept : bool, default=False
        Whether states are kept on disk, of which one is copied.

    Raises
    ------
    MemoryError
        With what it needs at least, beyond X, and what there is.
    """
    (n, m), item, index = X.shape, X.dtype.itemsize, X.indices.itemsize
    nnz = 0 if stored else X.nnz
    needs = {
        "the transpose": nnz * (item * (1 + entry_weights) + index),
        "the factors": (n + m * (3 if auto else 2)) * k * item,
        "the dual coefficients": 2 * nnz if auto else 0,
        "a system of each component with all": 8 * 4 * k**2,
        "weights of rows and columns": 8 * 8 * (n + m),
    }
    if kept:
        needs["a state on its way to disk"] = 2 * nnz + 3 * m * k * item if auto else n * k * item
    needed, available = sum(needs.values()), available_memory()
    if needed > available:
        parts = ", ".join(f"{amount(size)} for {name}" for name, size in needs.items() if size)
        raise MemoryError(
            f"The fit needs {amount(needed)} beyond X ({parts}), but {amount(available)} are "
            "available."
        )


def amount(size):
    """Return a number of bytes as a text."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def available_memory():
    """Return how many bytes this process may still use, infinity where nothing tells.

    That is the least of what the machine has free, what the control groups of the process allow,
    and what its limits of address space and data allow.
    """
    limits = [_of_machine(), *_of_groups(), *_of_process()]
    return max(0, min((limit for limit in limits if limit is not None), default=float("inf")))


def _of_machine():
    table = _table(_ROOT / "proc/meminfo")
    if "MemAvailable" not in table:
        return None
    return 1024 * (table["MemAvailable"] + table.get("SwapFree", 0))


def _of_groups():
    """Yield what each control group that holds the process has left, of version 2 and 1."""
    for line in _text(_ROOT / _PROC / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, files = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):  # within a container, the path may be of the host
            folder = _ROOT.joinpath(base, *parts[:depth])
            limit, used = (_text(folder / file).strip() for file in files[:2])
            if limit.isdigit() and used.isdigit():
                # Pages of files that were not used of late are given back when memory is short.
                cached = _table(folder / "memory.stat").get(files[2], 0)
                yield int(limit) - int(used) + cached


def _of_process():
    """Yield what the limits of address space and data leave."""
    if resource is None:
        return
    table = _table(_ROOT / _PROC / "status")
    for name, used in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY and used in table:
            yield limit - 1024 * table[used]


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def _table(path):
    """Return the numbers of a file with a name and a number in each line."""
    rows = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
