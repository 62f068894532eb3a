"""Reading files, good and bad."""

import copy
import gzip
import inspect
import os
import pickle
import re
import sys
import tracemalloc
import warnings
from decimal import Decimal
from operator import itemgetter

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pyarrow import parquet
from scipy.sparse import csc_array, csr_array, csr_matrix, save_npz

from wals import _fast_text, _text
from wals._fast_text import _READERS as READERS
from wals.interactions import read_interactions
from wals.model_selection import split_entries


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
        ("a.csv", "1,2,3\n".encode("utf-32"), "is neither UTF-8 nor UTF-16 text"),
        ("a.csv", b"1;2;1.000,5\n2;3;2,5\n", "line 1: value '1.000,5' is not a number$"),
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
        ({"u": ["a", " "], "i": [1, 2]}, "row 2: the user is missing"),
        ({"u": [1, 2], "i": [1, 2], "v": [1.0, None]}, "row 2: value nan is not a finite float32"),
        ({"u": [1], "i": [1], "v": [1e99]}, r"row 1: value 1e\+99 is not a finite float32"),
        ({"u": [1], "i": [1], "v": ["x"]}, "column 'v' may be the value or not: say value='v'"),
        ({"u": [1, 2], "i": [1, 2], "v": ["1", "x"]}, "'x'"),
        ({"u": [1]}, "number of columns is 1, not at least 2"),
        ({"u": [], "i": []}, "is empty"),
    ):
        with pytest.raises(ValueError, match=f"a.parquet: .*{message}"):
            read(columns)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a.parquet: .*pip install wals\[parquet\]"):
        read_interactions(tmp_path / "a.parquet")


def written(result):
    """Return the interactions as the table of the docstring has them."""
    rows, cols = result.X.tocoo().coords
    entries = zip(result.row_ids[rows], result.col_ids[cols], result.X.data, strict=True)
    return "; ".join(f"{user} {item} {value:g}" for user, item, value in entries)


def table_of_the_docstring():
    lines = inspect.getdoc(read_interactions).splitlines()
    bars = [place for place, line in enumerate(lines) if line.startswith("====")]
    rows = [re.fullmatch(r"(\S+) +``(.*?)`` +(.*)", x) for x in lines[bars[1] + 1 : bars[2]]]
    return [(row[1], row[2].encode().decode("unicode_escape"), row[3]) for row in rows]


def test_the_docstring_has_a_table():
    assert len(table_of_the_docstring()) > 20


@pytest.mark.parametrize(("suffix", "text", "becomes"), table_of_the_docstring())
def test_table_of_the_docstring(tmp_path, suffix, text, becomes):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode())
    if refused := becomes.partition("refused: ")[2]:
        with pytest.raises(ValueError, match=re.escape(refused)):
            read_interactions(path)
        return
    expected, note = re.fullmatch(r"``(.*)``(?: \(noted: (.*)\))?", becomes).groups()
    if note:
        with pytest.warns(UserWarning, match=f"a{suffix}: .*{note}") as caught:
            result = read_interactions(path)
        assert len(caught) == 1
    else:
        result = read_interactions(path)
    assert written(result) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Names, in any order and of any spelling.
        ("a.csv", "Rating,Movie ID,User-ID\n4,7,3\n", "3 7 4"),
        ("a.csv", "timestamp,userId,movieId\n1433221332,3,7\n", "3 7 1"),
        ("a.csv", "user_id,username,isbn,title,stars\n3,ann,x1,A,4\n", "3 x1 4"),
        ("a.csv", "customer,what,qty\nann,5,2\n", "ann 5 2"),
        ("a.csv", "customer_id,member,sku\n3,8,x\n", "3 x 1"),
        ("a.csv", '"User-ID";"ISBN";"Book-Rating"\n"27";"034X";"5"\n', "27 034X 5"),
        ("a.csv", "user_id,item_id,rating,\n1,2,3,\n", "1 2 3"),
        ("a.csv", "user,item,2019\nann,x,4\n", "column '2019' may be the value or not: say"),
        # A word of the data is no name.
        ("a.csv", "a,b,NaN\nc,d,2\n", "line 1: value 'NaN' is not a finite float32"),
        ("a.csv", "ann,song\nbob,tree\ncy,book\n", "ann song 1; bob tree 1; cy book 1"),
        ("a.csv", "A123,x\n17,y\n", "17 y 1; A123 x 1"),
        ("a.csv", "847D5,1\n84759,2\n", "84759 2 1; 847D5 1 1"),
        ("a.csv", "#user_id,item_id\n1,2\n", "1 2 1"),
        ("a.csv", "# a, b\n# c\nuser,item\n1,2\n", "1 2 1"),
        ("a.csv", "#cats,5\n#dogs,6\n", "#cats 5 1; #dogs 6 1"),
        ("a.csv", "#cats,5\ndogs,6\n", "#cats 5 1; dogs 6 1"),
        # Delimiters.
        ("a.psv", "1|2|3\n", "1 2 3"),
        ("a.tab", "a b\tc\n", "a b c 1"),
        ("a.data", "1\t2\t3\t881250949\n", "1 2 3"),
        ("a.txt", "u1   i1 3\n u2\ti2  4 \n", "u1 i1 3; u2 i2 4"),
        ("a.txt", "New York City,Big Pie,3\nRome Town,Hot Dog,4\n", None),
        ("a.csv", "1,10,a|b\n2,11,c|d\n", "column 2 may be the value or not: say value=2"),
        ("a.tsv", "1\tf1b1\tAbba\t3\n2\tf1b2\tBlur\t1\n", "column 2 may be the value or not: say"),
        ("a.csv", "d-1,a;b;c;d\nd-2,a;b;c;d\n", "both ';' and ',' may separate"),
        ("a.csv", "u1 3,5\nu2 4,0\n", "both ',' and blanks may separate"),
        ("a.csv", "1~2\n", "none of tab, '::', ';', '|', ',', blanks cuts '1~2'"),
        ("a.csv", '"sep=;"\n1;2;3\n', "1 2 3"),
        ("a.csv", "sep=\t\n1\t2\t3\n", "1 2 3"),
        ("a.csv", f"{'x' * 70_000},2,3\n1,2,3\n", f"1 2 3; {'x' * 70_000} 2 3"),
        # Decimal commas.
        ("a.csv", "1;10;0,500\n2;11;4,000\n", "1 10 0.5; 2 11 4"),
        ("a.csv", "1;10;3\n2;11;4,0\n3;4;1.5\n", "line 2: value '4,0' is not a number; if it has"),
        ("a.csv", "1;10;1,5e-05\n2;11;4,0\n", "1 10 1.5e-05; 2 11 4"),
        ("a.csv", "1;10;1,500e1\n", "1 10 15"),
        # Ends.
        ("a.csv", "1,2,3\n   \n\n", "1 2 3"),
        ("a.csv", "u,i,v\n1,2,3\n,,\n", "1 2 3"),
        ("a.csv", "1,2,3\n,,\n1,3,4\n", "line 2: the user is missing"),
        ("a.csv", "\ufeff1,2,3\r\n4,5,6\r\n", "1 2 3; 4 5 6"),
        # Quotes.
        ("a.csv", 'a,"x\ny"\n', "line 1: a quote is left open"),
        ("a.csv", 'a,b\nc,"x\ny"\n', "line 2: a quote is left open (or a line ends within quotes)"),
        ("a.csv", '1,2,x\n1,"y,3\n', "column 2 may be the value or not: say value=2 or values="),
        ("a.csv", 'a,b\na,"x"y\n', "line 2: there is text after a closing quote"),
        ("a.csv", 'a,b"c\n', 'a b"c 1'),
        # Indices.
        ("a.csv", "Unnamed: 0,user,item,score\n5,7,103,4\n", "index"),
        (
            "a.csv",
            "index,x,y,z\n3,7,103,4\n1,8,103,4\n",
            "'index' may be an index of the rows: say",
        ),
        ("a.csv", ",item,score\nbob,7,4\n", "'' may be an index of the rows: say user= and item="),
        (
            "a.csv",
            "".join(f"{n},{n % 3},1\n" for n in range(1, 11)),
            "column 0 counts the lines from 1, and may be an index: say user= and item=",
        ),
        ("a.csv", "0,1\n1,7\n2,7\n", "0 1 1; 1 7 1; 2 7 1"),
        ("a.csv", ",x,y\nq,1,2\nr,1,3\n", "'' may be an index of the rows: say user= and item="),
        # What cannot be told.
        ("a.csv", "user_id,rating\n1,2\n", "no column is known to be the item among 'user_id', "),
        ("a.tsv", "0\t2010-10-19T23:55:27Z\t30.2\t22\n", "column 1 may be the time: say user="),
        ("a.csv", "1,1433221332,5\n2,1433221399,7\n", "column 1 may be the time: say user="),
        ("a.csv", ",".join("012345") + "\n", "what the 6 columns are is not clear: say user="),
        ("a.csv", "1,2,3\n\ufeff4,5,6\n", "an id starts with what is a byte order mark: were"),
        ("a.csv", "1,2,1433221332,5\n", "column 3 may be the value or not: say value=3 or values="),
        ("a.csv", "user,user,item\n1,2,3\n", "0, 1 may both be the user: say user=0 or user=1"),
        ("a.csv", "user,item,rating,score\n1,2,3,4\n", "'rating', 'score' may both be the value"),
    ],
)
def test_guesses_are_right_or_refused(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    if expected is None:
        expected = "New York City Big Pie 3; Rome Town Hot Dog 4"
    if expected == "index":
        with pytest.warns(UserWarning, match="'Unnamed: 0' is taken for an index of the rows, and"):
            assert written(read_interactions(tmp_path / name)) == "7 103 4"
    elif re.search(" may | is | cuts ", expected):
        with pytest.raises(ValueError, match=re.escape(expected)):
            read_interactions(tmp_path / name)
    else:
        assert written(read_interactions(tmp_path / name)) == expected


def test_days_without_dashes_are_times(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,20200131\n1,3,20191231\n")
    with pytest.warns(UserWarning, match="column 2 is taken for the time; if it is the value, say"):
        result = read_interactions(tmp_path / "a.csv")
    assert written(result) == "1 2 1; 1 3 1"
    assert result.times.tolist() == [20200131, 20191231]
    # The same digits in other columns, or no days, are numbers.
    (tmp_path / "a.csv").write_text("1,2,20200131\n1,3,20201331\n")
    assert written(read_interactions(tmp_path / "a.csv")) == "1 2 2.02001e+07; 1 3 2.02013e+07"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="is a pipe, and a text is read twice"):
        read_interactions(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("0,7,103,4\n1,8,103,5\n2,8,104,6\n", {"user": 1, "item": 2}, "7 103 4; 8 103 5; 8 104 6"),
        ("a,b\nx,y\n", {"user": "b", "item": "a"}, "y x 1"),
        ("a,b,c\nx,y,2\n", {"user": "b", "item": "a", "value": "c"}, "y x 2"),
        ("user,item,category\n1,2,7\n", {"value": "category"}, "1 2 7"),
        ("user,item,category\n1,2,7\n", {"values": False}, "1 2 1"),
        ("5,1,2\n", {"value": 0, "user": 1, "item": np.int64(2)}, "1 2 5"),
        ("1,2\n", {"user": 1}, "2 1 1"),
        ("1~2~3\n", {"delimiter": "~"}, "1 2 3"),
        ("1<>2<>3\n", {"delimiter": "<>"}, "1 2 3"),
        ("1;10;3,500\n", {"decimal": ","}, "1 10 3.5"),
        ('1,10,"3,5"\n', {"decimal": ","}, "1 10 3.5"),
        ("1;10;1.000,5\n", {"decimal": ","}, "line 1: value '1.000,5' is not a number"),
        ("1;10;1.000,5\n", {}, "line 1: value '1.000,5' is not a number"),
        ("a,b,a\n1,2,3\n", {"user": "a"}, "user='a': 2 columns have this name"),
        ("1,2\n", {"user": "x", "header": False}, "header=False and columns by name contradict"),
        ("u1 3,5\n", {"delimiter": ","}, "u1 3 5 1"),
        ("1,2,3\n", {"user": "x"}, "the first line, '1, 2, 3', does not name 'x'"),
        ("1,2\n", {"user": 2}, "user=2: positions go from 0 to 1"),
        ("1,2\n", {"user": -1}, "user=-1: positions go from 0 to 1"),
        ("1,2\n", {"user": 1, "item": 1}, "user= and item= are the same column"),
        ("1,2,3\n", {"value": 2, "time": 2}, "value= and time= are the same column"),
        ("1,2,3\n", {"user": 2, "item": 0}, "say value=1 or values=False"),
        ("1,2,3\n", {"user": 1}, "which column is the item is not clear: say item=, too"),
        ("1,2,3\n", {"values": False, "value": 2}, "value= and values=False contradict"),
        ("a,b\n", {"user": "a", "header": False}, "header=False and columns by name contradict"),
        ("1,2,3\n", {"user": True}, "user must be the name or the position of a column, got True"),
        ("1,2,3\n", {"delimiter": ""}, "delimiter must be a text without quotes, got ''"),
        ("1,2,3\n", {"decimal": "'"}, "decimal must be one of None, '.', ','; got"),
        ("1,2,3\n", {"aggregate": "min"}, "aggregate must be one of 'sum', 'mean', 'max', 'last'"),
        ("1,2,3\n", {"handle_unknown": "x"}, "handle_unknown must be one of 'drop', 'error'"),
        ("1,2,3\n", {"aggregate": "last"}, "aggregate='last' needs a column of times: say time="),
    ],
)
def test_what_is_said_counts(tmp_path, text, options, expected):
    (tmp_path / "a.csv").write_text(text)
    if re.search(" (must|go|are|does|contradict|needs|clear|is not|have)|say ", expected):
        with pytest.raises(ValueError, match=re.escape(expected)) as info:
            read_interactions(tmp_path / "a.csv", **options)
        assert "\n" not in str(info.value)
    else:
        assert written(read_interactions(tmp_path / "a.csv", **options)) == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["user,item,rating", "é,日本,2", "b,x,1", ""])
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert written(read_interactions(tmp_path / "a.csv")) == "b x 1; é 日本 2"
    (tmp_path / "b.csv").write_bytes(text.encode(encoding)[:-1] + b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"line \d: "):
        read_interactions(tmp_path / "b.csv")


REPEATED = "1,2,4,978300761\n1,3,1,978300769\n1,2,5,978300760\n1,2,3,978300761\n"


@pytest.mark.parametrize(
    ("aggregate", "value"), [("sum", 12), ("mean", 4), ("max", 5), ("last", 3), ("count", 3)]
)
def test_repeated_pairs(tmp_path, aggregate, value):
    (tmp_path / "a.csv").write_text(REPEATED)
    found = read_interactions(tmp_path / "a.csv", aggregate=aggregate)
    assert written(found) == f"1 2 {value}; 1 3 1"
    assert found.times.tolist() == [978300761, 978300769]
    # The same without times, and from a table and a matrix.
    columns = np.array([line.split(",") for line in REPEATED.split()]).astype(int).T
    frame = pd.DataFrame(dict(zip(("u", "i", "v", "time"), columns, strict=True)))
    frame.to_parquet(tmp_path / "a.parquet")
    again = read_interactions(tmp_path / "a.parquet", aggregate=aggregate)
    assert written(again) == written(found)
    assert again.times.tolist() == found.times.tolist()
    if aggregate == "last":
        return
    (tmp_path / "b.csv").write_text(re.sub(",9.*", "", REPEATED))
    plain = read_interactions(tmp_path / "b.csv", aggregate=aggregate)
    assert plain.times is None
    assert written(plain) == written(found)
    X = csr_array(([4.0, 1, 5, 3], [2, 3, 2, 2], [0, 0, 4]), shape=(2, 4))
    save_npz(tmp_path / "a.npz", X)
    assert written(read_interactions(tmp_path / "a.npz", aggregate=aggregate)) == written(found)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 80), seed=st.integers(0, 10_000))
def test_aggregates_against_a_dictionary(tmp_path_factory, n, seed):
    rng = np.random.default_rng(seed)
    lines = rng.integers([0, 0, -9, 978300000], [6, 6, 9, 978300020], size=(n, 4)).tolist()
    path = tmp_path_factory.mktemp("aggregates") / "a.csv"
    path.write_text("user,item,value,time\n" + "".join(f"{str(x)[1:-1]}\n" for x in lines))
    groups = {}
    for user, item, value, time in lines:
        groups.setdefault((user, item), []).append((time, value))
    for aggregate, function in (
        ("sum", lambda group: sum(value for _, value in group)),
        ("mean", lambda group: np.float32(sum(value for _, value in group) / len(group))),
        ("max", lambda group: max(value for _, value in group)),
        ("last", lambda group: sorted(group, key=itemgetter(0))[-1][1]),
        ("count", len),
    ):
        found = read_interactions(path, aggregate=aggregate)
        check(found, {pair: function(group) for pair, group in groups.items()})
        assert found.times.tolist() == [max(groups[pair])[0] for pair in sorted(groups)]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.csv", "item_id, User ID ,rating\n1,2,3\n", ("User ID", "item_id")),
        ("a.inter", "user_id:token\titem_id:token\n1\t2\n", ("user_id:token", "item_id:token")),
        ("a.csv", "1,2,3\n", None),
    ],
)
def test_names(tmp_path, name, text, names):
    (tmp_path / name).write_text(text)
    result = read_interactions(tmp_path / name)
    assert result.names == pickle.loads(pickle.dumps(result)).names == names
    if names:
        frame = pd.DataFrame({names[1]: [1], names[0]: [2]})
        frame.to_parquet(tmp_path / "b.parquet")
        assert read_interactions(tmp_path / "b.parquet").names == names


def test_times(tmp_path):
    def read(times, **options):
        lines = [f"1,{10 - place},{time}\n" for place, time in enumerate(times)]
        (tmp_path / "a.csv").write_text("user,item,date\n" + "".join(lines))
        return read_interactions(tmp_path / "a.csv", **options)

    assert read(["5", "7"]).times.tolist() == [7, 5]
    assert read(["5", "7"]).times.dtype == np.int64
    assert read(["5.5", "7"]).times.tolist() == [7, 5.5]
    days = read(["2024-05-31", "2023-01-01 10:00:00.5"]).times
    assert_array_equal(days, np.array(["2023-01-01T10:00:00.5", "2024-05-31"], "datetime64[us]"))
    utc = read(["2024-05-31 10:00:00 UTC", "2024-05-31 09:00:00 UTC"]).times
    assert_array_equal(utc, np.array(["2024-05-31T09", "2024-05-31T10"], "datetime64[us]"))
    zones = read(["2024-05-31T10:00:00Z", "2024-05-31T10:00+02:00"]).times
    assert_array_equal(zones, np.array(["2024-05-31T08", "2024-05-31T10"], "datetime64[us]"))
    for times, line in ((["05/31/2024", "x"], 2), (["2024-05-31", "now"], 3), (["5", ""], 3)):
        with pytest.warns(
            UserWarning, match=f"a.csv: line {line}: time .*; the times are left out"
        ):
            result = read(times)
        assert result.times is None
        assert written(result) == "1 9 1; 1 10 1"
        for options in ({"time": "date"}, {"time": 2}, {"aggregate": "last"}):
            with pytest.raises(ValueError, match=f"a.csv: line {line}: time .* is not a "):
                read(times, **options)

    for times in (["5", "nan"], ["5.5", "inf"]):
        with pytest.raises(ValueError, match=r"a.csv: line 3: time .* is not a number"):
            read(times, time="date")
    (tmp_path / "b.csv").write_text("user,item,created_at,updated_at\n1,2,3,4\n")
    said = "the columns 'created_at', 'updated_at' may both be the time, and neither"
    with pytest.warns(UserWarning, match=said):
        assert read_interactions(tmp_path / "b.csv").times is None
    chosen = read_interactions(tmp_path / "b.csv", time="updated_at")
    assert chosen.times.tolist() == [4]

    result = read(["5", "7"])
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        X, row_ids, col_ids = again
        assert_array_equal(X.toarray(), result.X.toarray())
        assert (row_ids.tolist(), col_ids.tolist()) == ([1], [9, 10])
        assert again.times.tolist() == [7, 5]
    train, test = split_entries(result.X, 1, strategy="last", timestamps=result.times)
    assert train.toarray().tolist() == [[0, 1]]
    assert test.toarray().tolist() == [[1, 0]]


def test_given_ids(tmp_path):
    (tmp_path / "a.csv").write_text("b,7,1\na,9,2\nb,8,3\nb,7,4\n")
    result = read_interactions(tmp_path / "a.csv", row_ids=["x", "b", "a"], col_ids=[9, 3, 7, 8])
    assert result.X.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 5, 3], [2, 0, 0, 0]]
    assert result.row_ids.tolist() == ["x", "b", "a"]
    assert result.col_ids.tolist() == [9, 3, 7, 8]
    _, row_ids, col_ids = read_interactions(tmp_path / "a.csv")
    pd.DataFrame({"u": ["b", "c", "a"], "i": ["7", "8", "1"]}).to_parquet(tmp_path / "b.parquet")
    said = "b.parquet: 1 of 3 interactions are of 1 items not among col_ids (1), and are left out"
    with pytest.warns(UserWarning, match=re.escape(said)):
        other = read_interactions(tmp_path / "b.parquet", col_ids=col_ids)
    assert other.col_ids is col_ids
    # Whoever had nothing but unknown items is no row.
    assert other.row_ids.tolist() == ["b", "c"]
    assert other.X.toarray().tolist() == [[1, 0, 0], [0, 1, 0]]
    said = (
        "2 of 3 interactions are of 1 users not among row_ids (c) or of 1 items not among col_ids"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        read_interactions(
            tmp_path / "b.parquet", row_ids=row_ids, col_ids=col_ids, handle_unknown="error"
        )
    with pytest.raises(ValueError, match="holds no interactions of the given ids: 4 of 4"):
        read_interactions(tmp_path / "a.csv", row_ids=["B"])
    for bad, message in (
        (["a", "b", "a"], "row_ids must be unique, but 'a' is there twice"),
        ([7, "7"], "row_ids must be unique, but '7' is there twice"),
        ("ab", "row_ids must be a sequence of ids"),
        ([["a"]], "row_ids must be a sequence of ids"),
    ):
        with pytest.raises(ValueError, match=message):
            read_interactions(tmp_path / "a.csv", row_ids=bad)
    (tmp_path / "c.csv").write_text(f"{10**30},1\n7,2\n")
    result = read_interactions(tmp_path / "c.csv", row_ids=[7, 10**30])
    assert result.row_ids.tolist() == ["7", str(10**30)]
    assert result.X.toarray().tolist() == [[0, 1], [1, 0]]
    save_npz(tmp_path / "a.npz", csr_array([[1.0, 0, 2], [0, 3, 0], [0, 0, 0]]))
    # A row without interactions is no unknown one.
    result = read_interactions(tmp_path / "a.npz", row_ids=[1, 0], handle_unknown="error")
    assert result.X.toarray().tolist() == [[0, 3, 0], [1, 0, 2]]
    save_npz(tmp_path / "a.npz", csr_array([[1.0, 0, 2], [0, 3, 0]]))
    assert read_interactions(tmp_path / "a.npz", col_ids=[2, 1, 0]).X.toarray().tolist() == [
        [2, 0, 1],
        [0, 3, 0],
    ]


def test_one_long_id_takes_no_more_than_its_text(tmp_path):
    ids = [f"u{number}" for number in range(20_000)] + ["x" * 20_000]
    (tmp_path / "a.csv").write_text("".join(f"{user},1\n" for user in ids))
    tracemalloc.start()
    X, row_ids, _ = read_interactions(tmp_path / "a.csv")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert X.shape == (20_001, 1)
    assert row_ids.tolist() == sorted(ids)
    # A fixed width would take 1.6 GB.
    assert peak < 20e6


def regular(n=300):
    """Return columns that all libraries can cut."""
    rng = np.random.default_rng(0)
    users = [f"u{number}" for number in rng.integers(40, size=n)]
    items = [str(number) for number in rng.integers(40, size=n)]
    values = [str(x) for x in (rng.random(n) * 10.0 ** rng.integers(-9, 9, n)).tolist()]
    days = [f"2024-0{day % 9 + 1}-1{day % 7} 10:00:0{day % 10}" for day in rng.integers(90, size=n)]
    return users, items, values, days


def lines_of(columns, delimiter=",", end="\n"):
    return "".join(delimiter.join(fields) + end for fields in zip(*columns, strict=True))


USERS, ITEMS, VALUES, DAYS = regular()
PLAIN = lines_of((USERS, ITEMS, VALUES))
QUOTED = lines_of([[f'"{x}"' for x in USERS], [f'"x,{x}"' for x in ITEMS], VALUES])
REGULAR = {
    "plain.csv": PLAIN,
    "two.csv": lines_of((USERS, ITEMS)),
    "times.csv": "user,item,value,time\n" + lines_of((USERS, ITEMS, VALUES, DAYS)),
    "seconds.csv": lines_of((USERS, ITEMS, VALUES, [f"97830{day[8:10]}60" for day in DAYS])),
    "comma.csv": lines_of((USERS, ITEMS, [f"{x},5" for x in ITEMS]), ";"),
    "tab.tsv": lines_of((USERS, [f'"{x}' for x in ITEMS], VALUES), "\t"),
    "blank.txt": lines_of((USERS, ITEMS, VALUES), " "),
    "blanks.csv": lines_of((USERS, ITEMS, ITEMS), ", "),
    "crlf.csv": lines_of((USERS, ITEMS, VALUES), end="\r\n"),
    "bom.csv": "\ufeff" + PLAIN,
    "comment.csv": "# of\n\n# a library\n" + PLAIN,
    "ends.csv": PLAIN + "\n\n",
    "no_end.csv": PLAIN[:-1],
    "empty_words.csv": PLAIN + "NA,null,1\nNaN,None,2\n",
    "letters.csv": PLAIN + "é,日本,1\n",
    "strip.csv": PLAIN + "u1 ,2,1\n u1, 2,1\n",
    "other.csv": PLAIN.replace("\n", ",x,y\n"),
}
UNUSUAL = {
    "quoted.csv": QUOTED,
    "doubled.csv": QUOTED + '"a ""b""",c,1\n',
    "cr.csv": PLAIN.replace("\n", "\r"),
    "blank_end.csv": PLAIN + ",,\n   \n",
    "blank_line.csv": PLAIN + "\n" + PLAIN,
    "quote.csv": PLAIN + 'a,x"y,1\nb, "x,y",1\n',
    "plus.csv": PLAIN + "a,b, +7 \na,c,1_0\n",
    "colons.csv": lines_of((USERS, ITEMS, VALUES), "::"),
    "bad_value.csv": PLAIN + "u1,2,x\n" + PLAIN,
    "bad_nan.csv": PLAIN + "u1,2,nan\n",
    "bad_large.csv": PLAIN + "u1,2,1e39\n",
    "bad_no_value.csv": PLAIN + "u1,2,\n",
    "bad_no_item.csv": PLAIN + "u1, ,1\n",
    "bad_few.csv": PLAIN + "u1,2\n" + PLAIN,
    "bad_many.csv": PLAIN + "u1,2,3,4\n" + PLAIN,
    "bad_both.csv": PLAIN.replace("\n", ",x,y\n") + "u1,2,3,4\nu1,2,3,4,5,6\n",
    "bad_open.csv": PLAIN + 'u1,"x,1\n' + PLAIN,
    "bad_open_end.csv": PLAIN + 'a",b,1\nc,d,"3',
    "bad_after.csv": PLAIN + 'u1,"x"y,1\n',
    "bad_alone.csv": PLAIN + 'a,",b\n' + PLAIN + 'a,",b\n',
    "decimal_point.csv": lines_of((USERS, ITEMS, [f"{x},5" for x in ITEMS]), ";") + "a.b;c;1,5\n",
    "bad_hex.csv": PLAIN + "u1,2,0x10\n",
    "bad_long.csv": PLAIN + f"{'x' * 140_000},2,1\n",
    "bad_infinite_time.csv": lines_of((USERS, ITEMS, ITEMS, ["97830.5"] * len(USERS)))
    + "a,b,1,inf\n",
    "bad_date.csv": "user,item,v,time\n" + lines_of((USERS, ITEMS, ITEMS, DAYS)) + "a,b,1,now\n",
}


@pytest.mark.parametrize("library", ["pyarrow", "polars", "pandas"])
@pytest.mark.parametrize("name", REGULAR | UNUSUAL)
def test_what_is_installed_makes_no_difference(tmp_path, monkeypatch, library, name):
    text = (REGULAR | UNUSUAL)[name]
    (tmp_path / name).write_bytes(text.encode())
    # pandas itself may need the others.
    __import__(library)
    monkeypatch.setattr(_fast_text, "_LARGE", 1 << 10)
    monkeypatch.setattr(_fast_text, "_BLOCK", 700)

    def read(installed):
        finished = []
        blocks = _fast_text.read_blocks
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            patch.setattr(
                _fast_text, "_READERS", {k: v for k, v in READERS.items() if k in installed}
            )
            patch.setattr(
                _text,
                "read_blocks",
                lambda *args: finished.append(result := blocks(*args)) or result,
            )
            warnings.simplefilter("always")
            options = {"bad_date.csv": {"time": "time"}, "bad_infinite_time.csv": {"time": 3}}
            options = options.get(name, {})
            try:
                result = read_interactions(tmp_path / name, **options)
            except ValueError as error:
                return str(error), finished
        X = result.X
        times = None if result.times is None else (result.times.dtype, result.times.tolist())
        found = [x.tolist() for x in (X.data, X.indices, X.indptr, *result[1:])]
        found = found, result.names
        return (found, times, [str(warning.message) for warning in caught]), finished

    expected, finished = read(())
    assert not finished
    found, finished = read((library,))
    assert found == expected
    # And it was that library, where it should be.
    if name in REGULAR:
        assert len(finished) == 1
    assert name.startswith("bad_") == isinstance(found, str)


def test_numbers_are_the_nearest_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(_fast_text, "_LARGE", 1)
    (tmp_path / "a.csv").write_text("user,item,rating\n" + PLAIN)
    pairs = {}
    for user, item, value in zip(USERS, ITEMS, VALUES, strict=True):
        pairs[user, int(item)] = pairs.get((user, int(item)), 0.0) + float(value)
    check(
        read_interactions(tmp_path / "a.csv"),
        {pair: float(np.float32(value)) for pair, value in pairs.items()},
    )


def test_the_fastest_library_that_is_installed(monkeypatch):
    for name in ("pyarrow", "polars", "pandas"):
        assert _fast_text.fast_reader() is _fast_text._READERS[name]
        monkeypatch.setitem(sys.modules, name, None)
    assert _fast_text.fast_reader() is None


def test_parquet_columns(tmp_path):
    def read(columns, **options):
        pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
        return read_interactions(tmp_path / "a.parquet", **options)

    columns = {"item_id": ["A1", "A2"], "rating": [Decimal("4.5"), Decimal("1")], "user_id": [7, 7]}
    assert written(read(columns)) == "7 A1 4.5; 7 A2 1"
    days = pd.to_datetime(["2024-05-31 10:00", "2024-05-30 00:00"])
    result = read({"user": [1, 1], "item": [3, 2], "when": days})
    assert written(result) == "1 2 1; 1 3 1"
    assert_array_equal(result.times, days.to_numpy()[::-1])
    with pytest.warns(UserWarning, match="column 'c' is taken for the time"):
        result = read({"a": [1], "b": [3], "c": days[:1]})
    assert written(result) == "1 3 1"
    assert result.times.dtype.kind == "M"
    assert written(read({"a": [1], "b": [2], "c": [3]}, user="b", item=0, value="c")) == "2 1 3"
    with pytest.raises(ValueError, match="column 'kind' may be the value or not: say value='kind'"):
        read({"user": [1], "item": [2], "kind": ["x"]})
    with pytest.raises(ValueError, match="user='x': the columns are 'a', 'b'"):
        read({"a": [1], "b": [2]}, user="x")
    frame = pd.DataFrame({"u": [1, 1], "i": [2, 3]}, index=[5, 6])
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="'__index_level_0__' is taken for an index of the rows"):
        result = read_interactions(tmp_path / "a.parquet", user="u", item="i")
    assert written(result) == "1 2 1; 1 3 1"
    for times in (["2024-05-31"], [days[0].date()], [7], [7.5]):
        assert read({"user": [1], "item": [2], "ts": times}).times.shape == (1,)
    for times in (["soon"], [None], [float("inf")], [True], [days[0].time()]):
        columns = {"user": [1], "item": [2], "ts": times}
        with pytest.warns(UserWarning, match="column 'ts' holds no times .*; it is left out"):
            assert read(columns).times is None
        with pytest.raises(ValueError, match=r"a.parquet: column 'ts' holds no times"):
            read(columns, time="ts")
    arrays = [pa.array([1]), pa.array([2]), pa.array([3])]
    parquet.write_table(pa.table(arrays, names=["a", "a", "b"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="several columns are named 'a'"):
        read_interactions(tmp_path / "a.parquet")
    parquet.write_table(pa.table(arrays, names=["a", "c", "b"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="delimiter= are of texts alone"):
        read_interactions(tmp_path / "a.parquet", delimiter=",")


def test_a_folder_of_parquet_parts(tmp_path):
    folder = tmp_path / "events"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"events: is a folder without .parquet files"):
        read_interactions(folder)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()
    pd.DataFrame({"user": [2], "item": ["b"]}).to_parquet(folder / "part-1.parquet")
    pd.DataFrame({"user": [1, 2], "item": ["a", "b"]}).to_parquet(folder / "part-0.parquet")
    assert written(read_interactions(folder)) == "1 a 1; 2 b 2"
    pd.DataFrame({"item": ["a"], "user": [1]}).to_parquet(folder / "part-2.parquet")
    with pytest.raises(
        ValueError, match=r"part part-2.parquet has the columns item, user, not use"
    ):
        read_interactions(folder)
    pd.DataFrame({"user": ["x"], "item": ["a"]}).to_parquet(folder / "part-2.parquet")
    with pytest.raises(ValueError, match=r"events: ."):
        read_interactions(folder)
    (folder / "part-2.parquet").unlink()
    (folder / "more").mkdir()
    with pytest.raises(ValueError, match="is a folder that holds a folder, more"):
        read_interactions(folder)
    (folder / "more").rmdir()
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes.txt: only .parquet files are read"):
        read_interactions(folder)


def test_an_id_with_a_nul_is_no_text(tmp_path):
    pd.DataFrame({"user": ["a", "a\0"], "item": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="an id holds a NUL: this is no text"):
        read_interactions(tmp_path / "a.parquet")


def test_npz_has_no_columns(tmp_path):
    save_npz(tmp_path / "a.npz", csr_array([[1.0]]))
    with pytest.raises(ValueError, match="user= are of tables: a matrix has no such columns"):
        read_interactions(tmp_path / "a.npz", user=1)
