"""What the project promises about itself."""

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import docutils.core
import pytest

import wals

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name for module in pkgutil.iter_modules(wals.__path__) if not module.name.startswith("_")
)


def test_readme_is_valid():
    docutils.core.publish_string(
        (ROOT / "README.rst").read_text(),
        writer="null",
        settings_overrides={"halt_level": 2, "report_level": 2},
    )


def test_readme_commands_are_those_of_continuous_integration():
    commands = re.findall(
        r"^    (pip install .*)$", (ROOT / "README.rst").read_text(), re.MULTILINE
    )
    assert commands == [
        "pip install . && python -P -m wals",
        'pip install ".[test]" && python -P -m pytest',
    ]


def test_embedded_data_are_small():
    files = [file for file in resources.files("wals").joinpath("data").iterdir()]
    assert sum(len(file.read_bytes()) for file in files) <= 400_000


@pytest.mark.parametrize("name", ["wals", *(f"wals.{module}" for module in MODULES)])
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in (n for n in vars(module) if not n.startswith("_")):
        value = getattr(module, public)
        if getattr(value, "__module__", None) == name and callable(value):
            assert value.__doc__, public


def test_import_compiles_nothing_and_does_not_load_matplotlib():
    code = (
        "import sys, wals.plotting, wals.callbacks\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import wals, wals._core.kernels as k, wals._core.passes as p\n"
        "kernels = (vars(k) | vars(p)).values()\n"
        "assert not any(f.signatures for f in kernels if hasattr(f, 'signatures'))\n"
        "import numba.np.ufunc.parallel as p\n"
        "assert not p._is_initialized\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
