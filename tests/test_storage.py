"""Matrices on disk: what is written, what is trained from it, and what a failure leaves."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal
from sklearn.base import clone

from wals import WALS, _disk, _memory, _spool, _stored, storage
from wals._core import kernels, sweep
from wals.datasets import make_interactions
from wals.interactions import read_interactions
from wals.weights import power_law


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """Cut small matrices as large ones are."""
    monkeypatch.setattr(storage, "_BUCKET", 500)
    monkeypatch.setattr(storage, "ENTRIES", 300)
    monkeypatch.setattr(_spool, "_BUCKET", 200)


@pytest.fixture(scope="module")
def X():
    X = make_interactions(400, 70, 4000, random_state=0).tolil()
    X[17] = 0
    X[300:310] = 0
    X[:, 5] = 0
    X = sp.csr_array(X)
    X.data = np.random.default_rng(0).normal(2, 1, X.nnz).astype(np.float32)
    X.data[::7] = 0  # stored all the same
    return X


def cut(X, *ends):
    ends = [0, *ends, X.shape[0]]
    return [X[a:b] for a, b in pairwise(ends)]


def assert_same(stored, X):
    """Both orientations are exactly what SciPy makes of X."""
    X = sp.csr_array(X, copy=True)
    X.sum_duplicates()
    for mine, theirs in ((stored, X), (stored.T, X.T.tocsr())):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        for name in ("data", "indices", "indptr"):
            assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert not getattr(mine, name).flags.writeable


def assert_same_fit(one, other):
    for name in ("components_", "row_factors_", "loss_curve_", "rwse_curve_"):
        assert_array_equal(getattr(one, name), getattr(other, name))


# ------------------------------------------------------------------------------------------ write


@pytest.mark.parametrize("ends", [(), (1,), (17, 18), range(1, 400), (0, 0, 400, 400)])
def test_writes_blocks(X, ends, tmp_path):
    stored = storage.write(iter(cut(X, *ends)), tmp_path / "m", shape=X.shape)
    assert_same(stored, X)
    assert stored.indices.dtype == stored.indptr.dtype == np.int32
    stored.verify()
    assert os.listdir(tmp_path) == ["m"]
    assert len(os.listdir(stored.path)) == 7


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X,
        lambda X: X.tocsc(),
        lambda X: sp.csr_array((X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64))),
        lambda X: sp.coo_matrix(X.astype(np.float64)),
        lambda X: X.toarray(),
        lambda X: pd.DataFrame(X.toarray()),
        lambda X: X.astype(bool).astype(int),
        lambda X: X[:, [3]],
        lambda X: X[:1],
        lambda X: X[:3] * 0,
        lambda X: sp.csr_array((5, 3)),
    ],
)
def test_writes_whatever_is_a_matrix(X, convert, tmp_path):
    matrix = convert(X)
    expected = sp.csr_array(matrix)
    if expected.dtype.kind != "f":
        expected = expected.astype(np.float64)
    assert_same(storage.write(matrix, tmp_path / "m"), expected)


@pytest.mark.parametrize("bucket", [1, 3, 10**6])
def test_no_size_of_buckets_matters(X, bucket, tmp_path, monkeypatch):
    # A column, or a row, may have more entries than any bucket.
    monkeypatch.setattr(storage, "_BUCKET", bucket)
    monkeypatch.setattr(storage, "ENTRIES", bucket)
    assert_same(storage.write(cut(X, 100), tmp_path / "m"), X)


def test_sums_duplicates_and_sorts(tmp_path):
    parts = np.array([1.0, 2.0, 4.0, 8.0]), np.array([2, 0, 2, 1]), np.array([0, 3, 4])
    X = sp.csr_array(parts, shape=(2, 3))
    stored = storage.write([X], tmp_path / "m")
    assert_array_equal(stored.data, [2, 5, 8])
    assert_array_equal(stored.indices, [0, 2, 1])


def test_read_only_blocks(X, tmp_path):
    X = X.copy()
    for array in (X.data, X.indices, X.indptr):
        array.flags.writeable = False
    assert_same(storage.write(cut(X, 100), tmp_path / "m"), X)


def test_precision(X, tmp_path):
    stored = storage.write(cut(X, 100), tmp_path / "m", dtype=np.float64)
    assert_same(stored, X.astype(np.float64))
    assert_same(storage.write(stored, tmp_path / "again", dtype="float32"), X)
    wide = [X[:100], X[100:].astype(np.float64)]
    with pytest.raises(ValueError, match=r"block 1 is float64, .*dtype="):
        storage.write(wide, tmp_path / "no")
    with pytest.raises(ValueError, match=r"block 0 holds inf in its row 0, row 0"):
        storage.write(sp.csr_array([[1e300]]), tmp_path / "no", dtype=np.float32)


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ([np.eye(3), np.eye(4)], {}, "block 1 has 4 columns, but 3 are needed"),
        ([np.eye(3)], {"shape": (3, 4)}, "block 0 has 3 columns, but 4 are needed"),
        ([np.eye(3)], {"shape": (4, 3)}, "The blocks have 3 rows, but shape has 4"),
        ([np.eye(3), np.eye(3) * np.nan], {}, "block 1 holds nan in its row 0, row 3 of the"),
        ([sp.csr_array([[1.0], [np.inf]])], {}, "block 0 holds inf in its row 1, row 1 of the"),
        ([np.eye(3) * 1j], {}, "block 0: .*omplex"),
        ([], {}, "hold no rows"),
        ([np.eye(3)[:0]], {}, "hold no rows"),
        (["abc"], {}, "block 0"),
        ("abc", {}, "iterable of matrices, got str"),
        (3, {}, "iterable of matrices, got int"),
        ([np.eye(3)], {"dtype": np.int32}, "dtype must be float32 or float64"),
        ([np.eye(3)], {"shape": (3,)}, "shape must be the numbers of rows and columns"),
    ],
)
def test_refuses(blocks, options, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        storage.write(blocks, tmp_path / "m", **options)
    assert os.listdir(tmp_path) == []


def test_refuses_paths(X, tmp_path):
    (tmp_path / "m").write_text("precious")
    with pytest.raises(ValueError, match="exists"):
        storage.write(X, tmp_path / "m")
    with pytest.raises(ValueError, match="there is no folder"):
        storage.write(X, tmp_path / "a" / "m")
    assert (tmp_path / "m").read_text() == "precious"


# ------------------------------------------------------------------------------------------- open


def test_rows(X, tmp_path):
    stored = storage.write(X, tmp_path / "m")
    slices = slice(3, 9), slice(None), slice(5, 2), slice(0, 50, 7), slice(None, None, -1)
    for rows in (*slices, slice(-3, 10**9), [3], [9, 2, 2], [-1], [4, 5, 6], []):
        found = stored[rows] if rows != [] else stored[np.array(rows, int)]
        expected = X[np.arange(400)[rows]] if rows != [] else X[:0]
        assert_array_equal(found.toarray(), expected.toarray())
        assert found.nnz == expected.nnz
    assert_array_equal(stored[X.sum(axis=1) > 30].toarray(), X[X.sum(axis=1) > 30].toarray())
    blocks = list(stored.blocks(250))
    assert max(block.nnz for block in blocks) <= 250
    assert_array_equal(sp.vstack(blocks).toarray(), X.toarray())
    with pytest.raises(IndexError):
        stored[3]


def test_names_itself(X, tmp_path):
    stored = storage.write(X, tmp_path / "m")
    other = storage.write(X, tmp_path / "n")
    assert stored.checksum == other.checksum
    X = X.copy()
    X.data[3] += 1
    assert storage.write(X, tmp_path / "o").checksum != stored.checksum
    assert repr(stored).startswith("<400 x 70 StoredMatrix of")
    assert stored.checksum != stored.T.checksum
    assert stored.checksum == stored.T.T.checksum
    assert len(pickle.dumps(stored)) < 1000
    assert_same(pickle.loads(pickle.dumps(stored)), other[:])
    assert_array_equal(pickle.loads(pickle.dumps(stored.T))[:].toarray(), other[:].T.toarray())


def test_damage(X, tmp_path):
    path = tmp_path / "m"
    storage.write(X, path)
    sound = {file: file.read_bytes() for file in path.iterdir()}
    assert len(sound) == 7
    for file, content in sound.items():
        for damaged in (content[:-1], content + b"\0", content[: len(content) // 2], b""):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=str(path)):
                storage.open(path)
        file.unlink()
        with pytest.raises(ValueError, match=str(path)):
            storage.open(path)
        if file.name != "manifest.json":
            flipped = bytearray(content)
            flipped[-2] ^= 64
            file.write_bytes(flipped)
            with pytest.raises(ValueError, match=file.name.replace(".", r"\.") + " is damaged"):
                storage.open(path).verify()
        file.write_bytes(content)
    storage.open(path).verify()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"shape": [70, 400]},
        {"shape": "x"},
        {"nnz": -1},
        {"files": {}},
        {"files": []},
        {"files": {"../x/manifest.json": {"dtype": "<f4", "length": 1, "sha256": ""}}},
        {"files": {"rows.data": {"dtype": "O", "length": 1, "sha256": ""}}},
    ],
)
def test_foreign_manifests(X, change, tmp_path):
    storage.write(X, tmp_path / "m")
    file = tmp_path / "m" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=str(tmp_path)):
        storage.open(tmp_path / "m")


def test_opens_nothing_else(tmp_path):
    for content in ("", "[]", "3", '{"format": []}', "\0"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"is not that of a stored matrix|is a"):
            storage.open(tmp_path)
    for path in ("absent", "manifest.json"):
        with pytest.raises(ValueError, match="there is no stored matrix"):
            storage.open(tmp_path / path)


# --------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, MemoryError])
def test_failing_source(X, error, tmp_path):
    def failing(part):
        yield part
        raise error("gone")

    with pytest.raises(error, match="gone"):
        storage.write(failing(X[:100]), tmp_path / "m")
    with pytest.raises(error, match="gone"):
        storage.write_interactions(failing([("a", 1)]), tmp_path / "m")
    assert os.listdir(tmp_path) == []
    assert_same(storage.write(X, tmp_path / "m"), X)


@pytest.mark.parametrize("room", [0, 100, 3000, 10_000, 15_000, 20_000, 30_000])
def test_full_disk(X, room, tmp_path):
    # Files that may not grow any more are what a full disk is.
    table = pd.DataFrame({"u": np.repeat(np.arange(500), 8), "i": np.arange(4000), "v": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            storage.write(X.astype(np.float64), tmp_path / "m")
        with pytest.raises(OSError, match="File too large"):
            storage.write_interactions([table], tmp_path / "n", value="v")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


_KILLED = """
import os, signal, sys
import numpy as np
from wals import storage, _disk

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def blocks():
    yield np.eye(300)
    if sys.argv[2] == "source":
        kill()

if sys.argv[2] != "source":
    setattr(*{
        "transpose": (storage, "transpose"),
        "manifest": (storage, "write_text"),
        "rename": (_disk, "_sync_folder"),
    }[sys.argv[2]], kill)
storage.write(blocks(), sys.argv[1])
"""


@pytest.mark.parametrize("when", ["source", "transpose", "manifest", "rename"])
def test_killed(X, when, tmp_path):
    path = tmp_path / "m"
    (tmp_path / ".other.partial-1").mkdir()
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), when], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    with pytest.raises(ValueError, match="there is no stored matrix"):
        storage.open(path)
    assert_same(storage.write(X, path), X)
    assert sorted(os.listdir(tmp_path)) == [".other.partial-1", "m"]


def test_two_writers(X, tmp_path):
    # The one that is not done yet is not taken for one that was killed.
    begun, go_on = threading.Event(), threading.Event()

    def blocks():
        yield X[:100]
        begun.set()
        go_on.wait(60)
        yield X[100:]

    thread = threading.Thread(target=lambda: storage.write(blocks(), tmp_path / "m"))
    thread.start()
    begun.wait(60)
    assert_same(storage.write(X, tmp_path / "m2"), X)
    _disk._remove_if_stale(next(str(path) for path in tmp_path.glob(".m.partial-*")))
    go_on.set()
    thread.join()
    assert_same(storage.open(tmp_path / "m"), X)


# -------------------------------------------------------------------------------------- estimator


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["auto", "exact", "cg"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_same_bits_as_in_memory(X, dtype, solver, n_jobs, tmp_path):
    X = X.astype(dtype)
    stored = storage.write(cut(X, 100), tmp_path / "m")
    model = WALS(
        8,
        solver=solver,
        n_jobs=n_jobs,
        regularization_exponent=0.3,
        col_weights=power_law(-0.3),
        max_iter=4,
        random_state=0,
    )
    weights = np.linspace(0.5, 2, 400)
    model.fit(X, row_weights=weights)
    from_disk = clone(model).fit(stored, row_weights=weights)
    assert_same_fit(model, from_disk)
    assert_array_equal(model.transform(X), from_disk.transform(stored))
    columns = model.transform(X, axis=1)
    assert_array_equal(columns, from_disk.transform(stored, axis=1))
    for axis in (0, 1):
        assert model.evaluate(X, axis=axis) == from_disk.evaluate(stored, axis=axis)
    assert model.score(X) == from_disk.score(stored)
    for mine, theirs in zip(model.recommend(X, 5), from_disk.recommend(stored, 5), strict=True):
        assert_array_equal(mine, theirs)
    assert len(os.listdir(stored.path)) == 7


def test_the_same_bits_with_all_weights(X, tmp_path):
    implicit = abs(X)
    E = sp.csr_array((np.linspace(0, 3, X.nnz, dtype=np.float32), X.indices, X.indptr), X.shape)
    stored = [storage.write(A, tmp_path / name) for A, name in ((implicit, "X"), (E, "E"))]
    model = WALS(8, implicit=True, unobserved_weight=0, max_iter=3, random_state=0, init="random")
    in_memory = clone(model).fit(implicit, entry_weights=E)
    assert_same_fit(in_memory, model.fit(stored[0], entry_weights=stored[1]))


def test_small_data_loss(tmp_path):
    # Of what can be fitted exactly, the loss is computed entry by entry.
    rng = np.random.default_rng(0)
    X = sp.csr_array(rng.normal(size=(30, 3)) @ rng.normal(size=(3, 20)))
    model = WALS(4, regularization=1e-12, max_iter=3, random_state=0).fit(X)
    assert_same_fit(model, clone(model).fit(storage.write(X, tmp_path / "m")))


def test_nothing_of_the_size_of_the_entries_is_in_memory(X, tmp_path, monkeypatch):
    stored, made = storage.write(X, tmp_path / "m"), []
    monkeypatch.setattr(
        _stored.Numbers, "mapped", lambda self: made.append(self.reserved) or real(self)
    )
    real = _disk_mapped
    WALS(4, max_iter=2, random_state=0).fit(stored)
    assert made == [X.nnz, X.nnz]
    made.clear()
    WALS(4, max_iter=2, random_state=0, solver="exact").fit(stored)
    assert made == [0, 0]


_disk_mapped = _disk.Numbers.mapped


def test_memory_is_needed_for_factors_alone(X, tmp_path, monkeypatch):
    # 400 x 4 and 3 times 70 x 4 numbers, and weights.
    stored = storage.write(X, tmp_path / "m")
    monkeypatch.setattr(_memory, "available_memory", lambda: 42_000)
    with pytest.raises(MemoryError, match="the transpose"):
        WALS(4, max_iter=1).fit(X)
    WALS(4, max_iter=1).fit(stored)
    monkeypatch.setattr(_memory, "available_memory", lambda: 39_000)
    with pytest.raises(
        MemoryError, match=r"\(9.76 kB for the factors, 512 B|\(9.76 kB for the fac"
    ):
        WALS(4, max_iter=1).fit(stored)


def test_no_room_for_dual_coefficients(X, tmp_path):
    stored = storage.write(X, tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"4 kB are needed beside .*, but for solver='cg'"):
            WALS(4).fit(stored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(os.listdir(stored.path)) == 7


def test_read_only_directory(X, tmp_path, monkeypatch):
    # Root may write anywhere.
    def refuse(*, dir=None):
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return temporary_file()

    temporary_file = _disk.tempfile.TemporaryFile
    stored = storage.write(X, tmp_path / "m")
    monkeypatch.setattr(_disk.tempfile, "TemporaryFile", refuse)
    model = WALS(4, max_iter=2, random_state=0)
    assert_same_fit(clone(model).fit(X), model.fit(stored))


def test_threads_and_forks_share_a_matrix(X, tmp_path):
    stored, model = storage.write(X, tmp_path / "m"), WALS(8, max_iter=3, random_state=0)
    expected, found = clone(model).fit(X), []
    threads = [
        threading.Thread(target=lambda: found.append(clone(model).fit(stored))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        assert_same_fit(expected, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, X, S: model.partial_fit(S), "is on disk.*blocks"),
        (lambda model, X, S: model.fit(X, entry_weights=S), "both must be stored or none"),
        (lambda model, X, S: model.fit(S, entry_weights=X), "both must be stored or none"),
        (lambda model, X, S: model.fit(S, entry_weights=S), "Negative weight in entry_weights"),
        (lambda model, X, S: model.fit(S.T).transform(S), "features"),
        (lambda model, X, S: model.fit(X.astype(float)).transform(S), "stored as float32, but fl"),
        (lambda model, X, S: model.fit(X[:5]).transform(S, axis=1), "X has 400 rows"),
        (lambda model, X, S: model.fit(X).inverse_transform(model.row_factors_, pattern=S), "disk"),
    ],
)
def test_says_what_it_does_not_take(X, call, message, tmp_path):
    stored = storage.write(X, tmp_path / "m")
    with pytest.raises((ValueError, TypeError), match=message):
        call(WALS(2, max_iter=1), X, stored)


def test_weights_of_other_positions(X, tmp_path):
    stored = storage.write(abs(X), tmp_path / "m")
    other = X.copy()
    row = 40
    columns = other.indices[other.indptr[row] : other.indptr[row + 1]]
    columns[-1] = 69 if columns[-1] != 69 else next(j for j in range(69, 0, -1) if j not in columns)
    other = storage.write(abs(other), tmp_path / "n")
    with pytest.raises(ValueError, match="exactly the positions"):
        WALS(2).fit(stored, entry_weights=other)


# ---------------------------------------------------------------------------- indices of all sizes


@pytest.mark.parametrize("solver", ["auto", "exact", "cg"])
def test_large_indices(X, solver, tmp_path, monkeypatch):
    # As if there were more stored entries, or more rows, than 32 bits can count.
    model = WALS(8, solver=solver, max_iter=3, random_state=0)
    expected = clone(model).fit(X)
    types = iter([np.dtype("<i4"), np.dtype("<i4"), np.dtype("<i4"), *[np.dtype("<i8")] * 2])
    monkeypatch.setattr(storage, "_index_type", lambda largest: next(types))
    stored = storage.write(cut(X, 100), tmp_path / "entries")
    assert stored.indptr.dtype == stored.T.indptr.dtype == np.int64
    assert stored.indices.dtype == stored.T.indices.dtype == np.int32
    assert_same_fit(expected, clone(model).fit(stored))
    monkeypatch.setattr(storage, "_index_type", lambda largest: np.dtype("<i8"))
    stored = storage.write(cut(X, 100), tmp_path / "rows")
    assert stored.indices.dtype == stored.T.indices.dtype == np.int64
    wide = clone(model).fit(stored)
    assert_same_fit(expected, wide)
    assert_array_equal(expected.recommend(X)[0], wide.recommend(stored)[0])
    assert expected.evaluate(X) == wide.evaluate(stored)


def test_data_loss_near_the_limit_of_32_bits():
    # Arrays that are long, but have one number.
    rng, start = np.random.default_rng(0), 2**31 - 40
    U, V = rng.normal(size=(3, 2)), rng.normal(size=(5, 2))
    indptr = np.array([0, 2, 9, 30], np.int32)

    def data_loss(length, indptr):
        items = kernels.Items(
            data=np.broadcast_to(np.float64(2), length),
            indices=np.broadcast_to(np.int32(3), length),
            indptr=indptr,
            entry_weights=np.empty(0),
            weights=np.ones(3),
            ridge=np.zeros(3),
            implicit=False,
        )
        return sweep._data_loss(items, np.empty(0), 0.0, U, V, 1)

    expected = np.diff(indptr) @ (2 - U @ V[3]) ** 2
    assert data_loss(30, indptr) == pytest.approx(expected, rel=1e-12)
    assert data_loss(2**31 - 10, indptr + np.int32(start)) == data_loss(30, indptr)


def test_slices_near_the_limit_of_32_bits():
    indptr = np.array([0, 2**31 - 3, 2**31 - 2, 2**31 - 1], np.int32)
    assert list(_stored.slices(indptr, 2**22)) == [slice(0, 1), slice(1, 3)]


def test_index_types():
    assert storage._index_type(2**31 - 1) == np.int32
    assert storage._index_type(2**31) == np.int64


# ----------------------------------------------------------------------------------- interactions


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user": rng.integers(0, 90, 2500) * 7,
            "item": rng.choice([f"sku {i}" for i in range(40)], 2500),
            "value": rng.integers(1, 6, 2500) / 2,
            "time": rng.integers(1_600_000_000, 1_600_000_500, 2500),
        }
    )


def assert_as_read(stored, interactions):
    X, row_ids, col_ids = interactions
    assert_same(stored, X)
    for mine, theirs in ((stored.row_ids, row_ids), (stored.col_ids, col_ids)):
        assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "last", "count"])
def test_parquet(table, aggregate, tmp_path, monkeypatch):
    monkeypatch.setattr("wals._parquet._ROWS", 111)
    path = tmp_path / "log.parquet"
    table.to_parquet(path)
    stored = storage.write_interactions(path, tmp_path / "m", aggregate=aggregate)
    assert_as_read(stored, read_interactions(path, aggregate=aggregate))
    assert stored.T.row_ids is not None
    assert sorted(os.listdir(tmp_path)) == ["log.parquet", "m"]
    stored.verify()


def test_folder_of_parquet(table, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for part in range(3):
        pq.write_table(pa.Table.from_pandas(table[part::3]), folder / f"{part}.parquet")
    assert_as_read(
        storage.write_interactions(folder, tmp_path / "m", value="time"),
        read_interactions(folder, value="time"),
    )


@pytest.mark.parametrize("aggregate", ["sum", "last"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv.gz"])
def test_text(table, aggregate, name, tmp_path, monkeypatch):
    monkeypatch.setattr("wals._fast_text._LARGE", 1000)
    monkeypatch.setattr("wals._fast_text._BLOCK", 2000)
    path = tmp_path / name
    table = table.assign(item=table.item.where(table.index % 9 > 0, " blank "))
    table.to_csv(path, index=False, sep="," if name.endswith(".csv") else "\t")
    stored = storage.write_interactions(path, tmp_path / "m", aggregate=aggregate)
    assert_as_read(stored, read_interactions(path, aggregate=aggregate))


def test_text_that_turns_out_to_be_unusual(table, tmp_path, monkeypatch):
    monkeypatch.setattr("wals._fast_text._LARGE", 1000)
    monkeypatch.setattr("wals._fast_text._BLOCK", 2000)
    path = tmp_path / "log.csv"
    text = table.to_csv(index=False) + '700,"say ""hello""",1,1600000000\nx7,sku 1,2,1600000000\n'
    path.write_text(text)
    stored = storage.write_interactions(path, tmp_path / "m")
    assert_as_read(stored, read_interactions(path))
    assert 'say "hello"' in stored.col_ids
    assert "x7" in stored.row_ids  # so that none is a number
    assert "7" in stored.row_ids


@pytest.mark.parametrize("rows", ["1,-2\n", '1,-2\n"3",4\n', '1,-2\nx,4\n"3",5\n', "1,-2\n01,4\n"])
@pytest.mark.parametrize("fast", [True, False])
def test_text_of_integers(rows, fast, tmp_path, monkeypatch):
    """However it is read: at once or part by part."""
    if not fast:
        monkeypatch.setattr("wals._text.fast_reader", lambda: None)
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + rows)
    stored = storage.write_interactions(path, tmp_path / "m")
    assert_as_read(stored, read_interactions(path))
    assert stored.col_ids.dtype == np.int64


@pytest.mark.parametrize(
    "convert", [lambda t: t, pl.from_pandas, pa.Table.from_pandas, lambda t: t.to_records(False)]
)
@pytest.mark.parametrize("aggregate", ["sum", "last"])
def test_tables(table, convert, aggregate, tmp_path):
    path = tmp_path / "log.parquet"
    table.to_parquet(path)
    tables = (convert(table[start : start + 300]) for start in range(0, 2500, 300))
    options = {"value": "value", "time": "time", "aggregate": aggregate}
    stored = storage.write_interactions(tables, tmp_path / "m", user="user", item="item", **options)
    assert_as_read(stored, read_interactions(path, aggregate=aggregate))


def test_times_of_all_kinds(table, tmp_path):
    path = tmp_path / "log.parquet"
    table.to_parquet(path)
    expected = read_interactions(path, aggregate="last")
    times = pd.to_datetime(table.time, unit="s")
    kinds = (times, times.dt.tz_localize("UTC"), times.astype(str), times.astype("datetime64[ms]"))
    for number, kind in enumerate(kinds):
        shuffled = table.assign(time=kind)
        options = {"value": "value", "time": "time", "aggregate": "last"}
        stored = storage.write_interactions(
            [shuffled[:1000], shuffled[1000:]], tmp_path / str(number), **options
        )
        assert_as_read(stored, expected)


def test_ids_of_many_kinds(tmp_path):
    for number, ids in enumerate(
        (
            [3, 1, 2],
            [2**63 + 1, 5, 7],
            ["a", "", "ü" * 3],
            ["a", "b", "x" * 5000],
            ["a\0", "b", "c"],
            [1.5, -2.0, 0.25],
        )
    ):
        stored = storage.write_interactions(
            [[(key, place)] for place, key in enumerate(ids)], tmp_path / str(number)
        )
        assert stored.row_ids.tolist() == sorted(ids)
        assert_array_equal(
            stored.toarray if False else stored[:].toarray().argmax(axis=1),
            [ids.index(key) for key in sorted(ids)],
        )


def test_ids_that_stop_being_integers(tmp_path):
    first = np.array([[7, 1], [3, 2], [7, 3]])
    second = np.array([[3, 1], [2**63 + 5, 9]], dtype=np.uint64)
    third = pd.DataFrame({"u": [3, 8], "i": [1, 1]})
    stored = storage.write_interactions([first, second, third], tmp_path / "m")
    assert stored.row_ids.tolist() == [3, 7, 8, 2**63 + 5]
    assert stored.col_ids.tolist() == [1, 2, 3, 9]
    assert_array_equal(
        stored[:].toarray(), [[2, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    )
    with pytest.raises(ValueError, match="ids of type int cannot be stored"):
        storage.write_interactions([first, [("a", 1)]], tmp_path / "n")


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ([[(1, None)]], {}, "column item=1 holds null in row 0"),
        ([[((1, 2), 3)]], {}, "ids of type tuple cannot be stored"),
        ([[(1, 2)], [(1,)]], {}, "item=1 is a position"),
        ([], {}, "There are no interactions"),
        ([[(1, 2)]], {"aggregate": "last"}, "needs a column of times"),
        ([[(1, 2)]], {"aggregate": "least"}, "aggregate must be one of"),
        ([[(1, 2)]], {"header": True}, "header: only a file has such options"),
        ([[(1, 2)]], {"item": 0}, "are the same column"),
        ([[(1, 2, "x")]], {"value": 2}, "must hold numbers"),
        ([[(1, 2, 1)], [(1, 2, 1.5)]], {"time": 2, "aggregate": "last"}, "times change their type"),
        (pd.DataFrame({"u": [1], "i": [2]}), {}, r"pass \[table\]"),
        ("absent.csv", {}, "absent.csv: No such file"),
        ("absent.npz", {}, "absent.npz: is a matrix in memory"),
        ("absent.xls", {}, "absent.xls: unknown suffix"),
    ],
)
def test_refuses_tables(tables, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        storage.write_interactions(tables, tmp_path / "m", **options)
    assert os.listdir(tmp_path) == []
