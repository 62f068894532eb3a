"""The first fit: what is compiled, where that is kept, and what happens where nothing can be."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import wals
from wals import WALS
from wals._core import kernels, passes, ranking, team
from wals._precompile import precompile

SCENARIOS = Path(__file__).with_name("cold_start_scenarios.py")
PACKAGE = Path(wals.__file__).parent


def can_mount():
    try:
        return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not can_mount(), reason="may not mount file systems")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a copy of the package that holds no machine code."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "site" / "wals", ignore=ignored)
    (tmp_path / "home").mkdir()
    return tmp_path


def run(folder, path="site", *, before="", dtype="float32", cache=None):
    """Return what the scenario told that used this copy, after mounting as a shell command says."""
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    others = [p for p in sys.path if p and not (Path(p) / "wals").is_dir()]
    # The copy comes before the installed package.
    env["PYTHONPATH"] = os.pathsep.join([str(folder / path), *others])
    if cache is not None:
        env["NUMBA_CACHE_DIR"] = str(cache)
    command = [sys.executable, str(SCENARIOS), dtype]
    if before:
        script = f'{before} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-ec", script, "sh", *command]
    result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["file"].startswith(str(folder))
    assert told["at_import"] == []
    return told


def read_only(folder):
    """Return the shell command that makes a folder a read-only file system."""
    return f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"


def assert_warned(told):
    assert told["compiled"]
    (warning,) = told["warnings"]
    assert "NUMBA_CACHE_DIR" in warning


@needs_mount
def test_nowhere_to_write(folder):
    """Neither beside the package, nor at home, nor where NUMBA_CACHE_DIR says."""
    (folder / "cache").mkdir()
    told = run(folder, before=read_only(folder), cache=folder / "cache")
    assert_warned(told)
    assert told["folder"] is None


@needs_mount
def test_what_an_image_compiled_is_used_where_it_is_read_only(folder):
    told = run(folder)
    assert told["compiled"]
    assert Path(told["folder"]) == folder / "site" / "wals" / "_core" / "__pycache__"
    told = run(folder, before=read_only(folder))
    assert not told["compiled"]
    assert told["warnings"] == []
    # What the image lacks is compiled, and kept at home where that can be written to.
    told = run(folder, before=read_only(folder / "site"), dtype="float64")
    assert told["compiled"]
    assert told["warnings"] == []
    assert not run(folder, before=read_only(folder / "site"), dtype="float64")["compiled"]


@needs_mount
def test_full_disk(folder):
    (folder / "cache").mkdir()
    full = f"mount -t tmpfs -o size=16k none {folder / 'cache'}"
    assert_warned(run(folder, before=full, cache=folder / "cache"))


@needs_mount
def test_zip_file(folder):
    with zipfile.ZipFile(folder / "site.zip", "w") as file:
        for path in (folder / "site").rglob("*"):
            file.write(path, path.relative_to(folder / "site"))
    told = run(folder, "site.zip", before=read_only(folder))
    assert_warned(told)


def test_damaged_files_are_made_anew(folder):
    told = run(folder, cache=folder / "cache")
    assert told["compiled"]
    assert len(told["log"]) == 1
    assert str(folder / "cache") in told["log"][0]
    files = sorted(path for path in (folder / "cache").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for number, path in enumerate(files):  # of each kind, some empty and some cut short
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size * (number % 3) // 3)
    told = run(folder, cache=folder / "cache")
    assert told["compiled"]
    assert told["warnings"] == []
    told = run(folder, cache=folder / "cache")
    assert not told["compiled"]
    assert told["log"] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_left_to_compile(dtype):
    compiled = {
        name: kernel
        for name, kernel in (vars(kernels) | vars(passes) | vars(ranking) | vars(team)).items()
        if hasattr(getattr(kernel, "_cache", None), "places")
    }
    assert len(compiled) == 14

    def signatures():
        return {
            (name, signature)
            for name, kernel in compiled.items()
            for signature in kernel.signatures
        }

    precompile(dtype)
    before = signatures()
    X = sp.random(600, 500, 0.05, format="csr", random_state=0, dtype=dtype)
    weights = {"row_weights": np.full(600, 2.0), "entry_weights": X}
    for options in (
        {"n_components": 600, "init": "random"},  # more numbers than are left as they are
        {"n_components": 600, "regularization_exponent": 0.5, "col_weights": np.full(500, 0.5)},
        {"n_components": 3, "solver": "exact", "implicit": True},
        {"n_components": 3, "solver": "cg", "unobserved_weight": 0.0},
        {"n_components": 3, "observed_weight": 0.0},
    ):
        model = WALS(max_iter=2, random_state=0, **options).fit(X, **weights)
    model.partial_fit(X[:10], indices=np.arange(10)).partial_fit(X, axis=1)
    model.inverse_transform(model.transform(X), pattern=X)
    model.transform(X, axis=1)
    model.similar(np.arange(100))
    model.explain(X[[0]], 3)
    for rows in (X[:3], X):
        for candidates in (None, [1, 2, 3], X[: rows.shape[0]]):
            model.recommend(rows, candidates=candidates)
            model.recommend(rows, candidates=candidates, exclude_seen=False)
    assert signatures() == before
