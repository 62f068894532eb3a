"""Reading files, good and bad."""

import gzip
import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csc_array, csr_array, csr_matrix, save_npz

from wals.interactions import read_interactions


def check(result, pairs):
    """Compare with a dict (user, item) -> value."""
    X, row_ids, col_ids = result
    X.check_format(full_check=True)
    assert X.format == "csr"
    assert X.has_canonical_format
    assert X.dtype == np.float32
    assert row_ids.tolist() == sorted({user for user, _ in pairs})
    assert col_ids.tolist() == sorted({item for _, item in pairs})
    rows, cols = X.tocoo().coords
    found = zip(row_ids[rows].tolist(), col_ids[cols].tolist(), strict=True)
    assert dict(zip(found, X.data.tolist(), strict=True)) == pairs


@pytest.mark.parametrize(
    ("name", "text", "pairs"),
    [
        ("a.csv", "1,2,3\n10,2,4.5\n", {(1, 2): 3, (10, 2): 4.5}),
        ("a.csv", "10,9\n9,10\n", {(9, 10): 1, (10, 9): 1}),
        ("A.CSV", "b,x,1\r\na,x,2\r\n", {("a", "x"): 2, ("b", "x"): 1}),
        ("a.csv", "\n1,2,3\n\n   \n1,3,1e1", None),
        ("a.csv", "\n1,2,3\n\n1,3,1e1", {(1, 2): 3, (1, 3): 10}),
        ("a.csv", "1;2;3\n", {(1, 2): 3}),
        ("a.csv", "1\t2\t3\n", {(1, 2): 3}),
        ("a.tsv", "a b\tc,d\t3\n", {("a b", "c,d"): 3}),
        ("a.txt", "1 2 3\n", {(1, 2): 3}),
        ("a.txt", "1, 2, 3\n", {(1, 2): 3}),
        ("a.csv", "1,2,3,too,many\n4,5,6,,\n", {(1, 2): 3, (4, 5): 6}),
        ("a.csv", '"a, b","say ""hi""",1\n', {("a, b", 'say "hi"'): 1}),
        ("a.csv", " a , b ,1\n", {("a", "b"): 1}),
        ("a.csv", "é,日本\n", {("é", "日本"): 1}),
        ("a.csv", "\ufeff1,2\n", {(1, 2): 1}),
        # Ids are integers only if all of a side are written as integers.
        ("a.csv", "1,007\n2,7\n", {(1, "007"): 1, (2, "7"): 1}),
        ("a.csv", "-1,1_0\n", {(-1, "1_0"): 1}),
        ("a.csv", f"{10**30},1\n", {(str(10**30), 1): 1}),
        # Duplicates are summed, and a zero is stored.
        ("a.csv", "1,2,3\n1,2,-1\n1,3,0\n1,4,5\n1,4,-5\n", {(1, 2): 2, (1, 3): 0, (1, 4): 0}),
        # Headers are told from data.
        ("a.csv", "user,item,rating,timestamp\n1,2,3,4\n", {(1, 2): 3}),
        ("a.csv", "who,what\n1,2\n", {(1, 2): 1}),
        ("a.csv", "who,what,how often\na,b,2\n", {("a", "b"): 2}),
        ("a.csv", "User_ID,item\na,b\n", {("a", "b"): 1}),
        ("a.csv", "a,b\nc,d\n", {("a", "b"): 1, ("c", "d"): 1}),
        ("a.csv", "a,1\n2,b\n", {("a", "1"): 1, ("2", "b"): 1}),
    ],
)
def test_text(tmp_path, name, text, pairs):
    for path, write in ((tmp_path / name, open), (tmp_path / f"{name}.gz", gzip.open)):
        with write(path, "wt", encoding="utf-8", newline="") as file:
            file.write(text)
        if pairs is None:
            with pytest.raises(ValueError, match="line 4: number of fields is 1, not 3 as in line"):
                read_interactions(path)
        else:
            check(read_interactions(path), pairs)
            check(read_interactions(str(path)), pairs)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 10_000))
def test_round_trip(tmp_path_factory, n, seed):
    rng = np.random.default_rng(seed)
    lines = [(f"u{a}", int(b), int(c)) for a, b, c in rng.integers(-9, 9, size=(n, 3)).tolist()]
    pairs = {}
    for user, item, value in lines:
        pairs[user, item] = pairs.get((user, item), 0) + value
    folder = tmp_path_factory.mktemp("round_trip")
    text = "".join(f"{user},{item},{value}\n" for user, item, value in lines)
    (folder / "a.csv").write_text(text)
    check(read_interactions(folder / "a.csv"), pairs)
    pl.DataFrame(lines, schema=["user", "item", "value"], orient="row").write_parquet(
        folder / "a.parquet"
    )
    check(read_interactions(folder / "a.parquet"), pairs)


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        (True, {(1, 2): 1}),
        (False, {("id", "1"): 1, ("1", "2"): 1}),
        (None, {("id", "1"): 1, ("1", "2"): 1}),
    ],
)
def test_header_can_be_told(tmp_path, header, pairs):
    (tmp_path / "a.csv").write_text("id,1\n1,2\n")
    X, row_ids, _ = read_interactions(tmp_path / "a.csv", header=header)
    assert X.nnz == len(pairs)
    assert row_ids.tolist() == sorted(user for user, _ in pairs)


def test_values_can_be_ignored(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,2024-05-06\n1,2,2024-05-07\n1,3,x\n")
    check(read_interactions(tmp_path / "a.csv", values=False), {(1, 2): 2, (1, 3): 1})
    pd.DataFrame({"u": [1], "i": [2], "v": [7.0]}).to_parquet(tmp_path / "a.parquet")
    check(read_interactions(tmp_path / "a.parquet", values=False), {(1, 2): 1})
    save_npz(tmp_path / "a.npz", csr_array([[0, 5.0]]))
    check_npz = read_interactions(tmp_path / "a.npz", values=False).X.toarray()
    assert_array_equal(check_npz, [[0, 1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.csv", b"user,item\n", "holds no interactions"),
        ("a.csv", b"1,2,3\n4\n", "line 2: number of fields is 1, not 3 as in line 1"),
        ("a.csv", b"u,i,v\n1,2,3\n\n4,5\n", "line 4: number of fields is 2, not 3 as in line 1"),
        ("a.csv", b"one\ntwo\n", "line 1: number of fields is 1, not at least 2"),
        ("a.csv", b"1,2,3\n4,5,x\n", "line 2: value 'x' is not a number"),
        ("a.csv", b"1,2,x\n3,4,5\n", "line 1: value 'x' is not a number"),
        ("a.csv", b"1,2,3\n4,5,\n", "line 2: value '' is not a number"),
        ("a.csv", b"1,2,3\n4,5,NaN\n", "line 2: value 'NaN' is not a finite float32"),
        ("a.csv", b"1,2,3\n4,5,-inf\n", "line 2: value '-inf' is not a finite float32"),
        ("a.csv", b"1,2,1e300\n", "line 1: value '1e300' is not a finite float32"),
        ("a.csv", b"1,2,3e38\n1,2,3e38\n", "user 1 and item 2 is inf in single precision"),
        ("a.csv", b"1,2\n,5\n", "line 2: the user is missing"),
        ("a.csv", b"1,2\n5, \n", "line 2: the item is missing"),
        ("a.csv", b"1,2\n3,\xe9\n", "line 2: is not UTF-8 text"),
        ("a.csv", b"1,2\n\x00\x01", "is a binary file, not text"),
        ("a.csv", b"1,2\n" + b"x" * 200_000 + b",1\n", "line 2: field larger than field limit"),
        ("a.csv.gz", b"1,2\n", "Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"1,2\n" * 9)[:-9], "is damaged or cut short"),
        ("a.csv.gz", gzip.compress(b"1,2\n" * 9)[:10] + b"\xff" * 9, "is damaged or cut short"),
        ("a.json", b"{}", "unknown suffix; known are .csv"),
        ("a", b"1,2\n", "unknown suffix"),
        ("a.npz.gz", b"", "unknown suffix"),
        ("a.parquet", b"1,2\n", "Parquet"),
        ("a.npz", b"1,2\n", "is not an .npz file"),
        ("a.npz", pickle.dumps(csr_array([[1.0]])), "is not an .npz file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        read_interactions(path)
    assert str(info.value).startswith(f"{path}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.npz"])
def test_missing_files_and_folders(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: No such file or directory"):
        read_interactions(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: ."):
        read_interactions(tmp_path / name)


def test_npz(tmp_path):
    X = csr_matrix(([1, 0, 2, 5], [2, 0, 1, 1], [0, 2, 2, 4]), shape=(3, 4))
    save_npz(tmp_path / "a.npz", X)
    result = read_interactions(tmp_path / "a.npz")
    assert_array_equal(result.X.toarray(), [[0, 0, 1, 0], [0, 0, 0, 0], [0, 7, 0, 0]])
    assert result.X.nnz == 3
    assert result.X.has_canonical_format
    assert result.X.dtype == np.float32
    assert result.row_ids.tolist() == [0, 1, 2]
    assert result.col_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: np.savez(path, a=np.ones(3)), "holds no matrix written by scipy"),
        (lambda path: np.savez(path, format=np.array([None])), "holds no matrix written by scipy"),
        (lambda path: save_npz(path, csc_array([[1.0]])), "format csc, not csr"),
        (lambda path: save_npz(path, csr_array([[1j]])), "type complex128, not real numbers"),
        (lambda path: save_npz(path, csr_array((2, 2))), "holds no interactions"),
        (lambda path: save_npz(path, csr_array([[0, 1], [2, np.nan]])), "user 1 and item 1 is nan"),
        (lambda path: save_npz(path, csr_array([[0, 1e200]])), "user 0 and item 1 is inf"),
        (
            # SciPy itself does not look at the indices when it loads.
            lambda path: np.savez(
                path,
                format=b"csr",
                shape=(1, 2),
                data=np.ones(1),
                indices=np.array([7]),
                indptr=np.array([0, 1]),
            ),
            "indices",
        ),
    ],
)
def test_bad_npz(tmp_path, save, message):
    path = tmp_path / "a.npz"
    save(path)
    with pytest.raises(ValueError, match=f"a.npz: .*{message}"):
        read_interactions(path)


def test_npz_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", format=np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds no matrix"):
        read_interactions(tmp_path / "a.npz")


@pytest.mark.parametrize("convert", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_parquet(tmp_path, convert):
    def read(columns, **dtypes):
        frame = convert(columns)
        for name, dtype in dtypes.items():
            if convert is pd.DataFrame:
                frame = frame.astype({name: dtype})
            else:
                frame = frame.with_columns(pl.col(name).cast(pl.Categorical))
        path = tmp_path / "a.parquet"
        frame.to_parquet(path) if convert is pd.DataFrame else frame.write_parquet(path)
        return read_interactions(path)

    check(read({"u": [3, 1, 3], "i": ["b", "a", "b"]}), {(3, "b"): 2, (1, "a"): 1})
    columns = {"u": ["10", "9"], "i": [2, 2], "v": [0.5, 4], "more": ["x", "y"]}
    check(read(columns), {("10", 2): 0.5, ("9", 2): 4})
    check(read(columns, u="category"), {("10", 2): 0.5, ("9", 2): 4})
    check(read({"u": [1], "i": [2], "v": [True]}), {(1, 2): 1})
    for columns, message in (
        ({"u": [1.5], "i": [2]}, "column 'u' holds double, neither integers nor strings"),
        ({"u": [1, 2], "i": ["a", None]}, "row 2: the item is missing"),
        ({"u": [1, 2], "i": [1, 2], "v": [1.0, None]}, "row 2: value nan is not a finite float32"),
        ({"u": [1], "i": [1], "v": [1e99]}, r"row 1: value 1e\+99 is not a finite float32"),
        ({"u": [1], "i": [1], "v": ["x"]}, "x"),
        ({"u": [1]}, "number of columns is 1, not at least 2"),
        ({"u": [], "i": []}, "is empty"),
    ):
        with pytest.raises(ValueError, match=f"a.parquet: .*{message}"):
            read(columns)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a.parquet: .*pip install wals\[parquet\]"):
        read_interactions(tmp_path / "a.parquet")
