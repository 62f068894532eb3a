"""Examples that need more than what is installed are left out; what is said then, is tested."""

from importlib.util import find_spec

NEEDED = {"wals/callbacks.py": "sklearn.callback", "wals/plotting.py": "matplotlib"}

collect_ignore = [file for file, module in NEEDED.items() if find_spec(module) is None]
