"""Files of arrays: written whole or not at all, and never read where they are damaged."""

import errno
import os
import subprocess
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import persistence_scenarios as scenarios
import pytest
from test_persistence import assert_same

import wals
from wals import _format
from wals._format import ALIGNMENT, read, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a[1]*.wals"


def arrays():
    return {
        "a": np.arange(35.0).reshape(5, 7),
        "t": np.arange(35, dtype=np.float16).reshape(5, 7).T,
        "s": np.array(3, dtype=">u2"),
        "none": np.empty((0, 3), np.float32),
        "strided": np.arange(20)[::-2],
        "bool": np.array([True, False]),
        "large": np.arange(_format.SMALL, dtype=np.int8),
        "last": np.ones(1, np.uint64),
    }


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(path, mmap):
    content = {"numbers": [1, -(2**70), 0.1, None, True], "text": "\ud800\0ü"}
    write(path, arrays(), content, kind="x")
    again, found = read(path, kind="x", mmap=mmap)
    assert_same(again, content)
    expected = arrays() | {"s": np.array(3, dtype=np.uint16)}
    assert_same(found, {name: np.asarray(x, order="C") for name, x in expected.items()})
    assert {array.flags.writeable for array in found.values()} == {not mmap}
    assert not mmap or found["large"].ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("kind_of_path", [str, os.fsencode, Path])
def test_paths(path, kind_of_path, monkeypatch):
    write(kind_of_path(path), {}, 1, kind="x")
    assert read(kind_of_path(path), kind="x") == (1, {})
    monkeypatch.chdir(path.parent)
    write(kind_of_path("b.wals"), {}, 2, kind="x")
    assert read(kind_of_path("b.wals"), kind="x") == (2, {})
    assert len([*path.parent.iterdir()]) == 2


@pytest.mark.parametrize("array", [np.ones(2, complex), np.array(["a"]), np.array([None])])
def test_types_that_are_refused(path, array):
    with pytest.raises(ValueError, match=r"x has the type .*, which a file cannot hold"):
        write(path, {"x": array}, None, kind="x")
    assert [*path.parent.iterdir()] == []


def test_too_much_that_is_not_in_arrays(path, monkeypatch):
    monkeypatch.setattr(_format, "_LONGEST_HEADER", 1000)
    with pytest.raises(ValueError, match="pass long lists as arrays"):
        write(path, {}, ["a" * 1000], kind="x")
    assert [*path.parent.iterdir()] == []


# --------------------------------------------------------------------------------------- atomicity


def test_mode_is_what_the_umask_leaves(path):
    for umask, mode in ((0o027, 0o640), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            write(path, {}, None, kind="x")
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failure_leaves_what_was_there(path, monkeypatch, function, error):
    write(path, arrays(), 1, kind="x")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        write(path, {}, 2, kind="x")
    assert read(path, kind="x")[0] == 1
    assert [*path.parent.iterdir()] == [path]


def test_links_are_followed(path, tmp_path):
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "target"
    path.symlink_to(target)
    for number in (1, 2):
        write(path, {}, number, kind="x")
        assert path.is_symlink()
        assert read(target, kind="x")[0] == number
    assert [*target.parent.iterdir()] == [target]


def test_what_is_no_file(path, tmp_path):
    for what in (tmp_path / "folder", tmp_path / "pipe"):
        what.mkdir() if what.name == "folder" else os.mkfifo(what)
        with pytest.raises(OSError, match="not a file that can be replaced"):
            write(what, {}, None, kind="x")
        with pytest.raises(ValueError, match="is not a file"):
            read(what, kind="x")
    with pytest.raises(FileNotFoundError):
        read(path, kind="x")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "x", {}, None, kind="x")
    assert len([*tmp_path.iterdir()]) == 2


def test_leftovers_are_removed_but_not_what_is_being_written(path):
    leftover = path.with_name(f".{path.name}.01234567.tmp")
    others = [path.with_name(name) for name in (".a1x.wals.01234567.tmp", f".{path.name}.tmp")]
    for file in (leftover, *others):
        file.write_bytes(b"x")
    with _format.replacing(path) as file:
        assert not leftover.exists()
        (ours,) = set(path.parent.iterdir()) - set(others)
        write(path, {}, "another process", kind="x")
        assert ours.exists()
        file.write(path.read_bytes().replace(b"another", b"the sam"))
    assert set(path.parent.iterdir()) == {path, *others}
    assert b"the sam process" in path.read_bytes()


def test_many_threads_save_to_one_path(path):
    errors = []

    def save(number):
        try:
            for _ in range(20):
                write(path, {"x": np.full(10_000, number)}, number, kind="x")
                content, found = read(path, kind="x")
                assert (found["x"] == content).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [*path.parent.iterdir()] == [path]


def test_killed_while_saving(path):
    script = [sys.executable, scenarios.__file__, "kill", path, "8"]
    env = os.environ | {"PYTHONPATH": str(Path(wals.__file__).parents[1])}
    result = subprocess.run(script, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["wals", "recommender"])
def test_damaged_files(name, path):
    model = scenarios.models()[name]
    model.save(path)
    content, rng, told = path.read_bytes(), np.random.default_rng(0), set()
    for number in range(400):
        damaged, forged = scenarios.damage(content, rng)
        path.write_bytes(damaged)
        try:
            loaded = wals.load(path, mmap=number % 2 == 1)
        except (ValueError, OSError) as error:
            told.add(str(error).partition(str(path))[2][:20])
        else:
            assert forged or damaged == content
            assert type(loaded) is type(model)
    assert len(told) > 3


def test_damage_takes_no_memory(path):
    scenarios.wals_by_formula(3000, 2000, 8, np.float64).save(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    tracemalloc.start()
    try:
        for number in range(150):
            path.write_bytes(scenarios.damage(content, rng)[0])
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with suppress(ValueError, OSError):
                wals.load(path, mmap=number % 2 == 1)
            assert tracemalloc.get_traced_memory()[1] - before < 2 * len(content)
    finally:
        tracemalloc.stop()


def test_every_bit_counts(path):
    write(path, {"x": np.arange(3, dtype=np.uint8), "y": np.ones(1)}, [1], kind="x")
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        for mmap in (False, True):
            with pytest.raises(ValueError, match=r"a.1.*wals (is|has)"):
                read(path, kind="x", mmap=mmap)
    for at in range(len(content)):
        path.write_bytes(content[:at])
        with pytest.raises(ValueError, match=r"a.1.*wals (is|has)"):
            read(path, kind="x")
