"""Examples that need more than what is installed are left out; what is said then, is tested."""

from importlib.util import find_spec

NEEDED = {
    "callbacks.py": "sklearn.callback",
    "distributed.py": "distributed",
    "plotting.py": "matplotlib",
}
MISSING = {file for file, module in NEEDED.items() if find_spec(module) is None}


def pytest_collection_modifyitems(items):
    """Leave out the examples of modules that lack something."""
    items[:] = [
        item
        for item in items
        if not (item.path.parent.name == "wals" and item.path.name in MISSING)
    ]
