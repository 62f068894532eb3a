"""Read who interacted with what from a file."""

import os
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, load_npz

from wals._encoding import AGGREGATES, gather, sort_ids, strings
from wals._parquet import parquet_parts, read_parquet
from wals._text import Table, read_text, text_parts

__all__ = ["Interactions", "read_interactions"]

_OPTIONS = ("header", "values", "user", "item", "value", "time", "delimiter", "decimal")
_NO_TIMES = "aggregate='last' needs a column of times: say time="
_TEXTS = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".tab", ".psv")


class _Fields(NamedTuple):
    X: csr_array
    row_ids: np.ndarray
    col_ids: np.ndarray


class Interactions(_Fields):
    """A matrix of interactions and what its rows and columns stand for.

    A named tuple of three, ``X, row_ids, col_ids = ...``, which also has the times and the names.

    Attributes
    ----------
    X : csr_array of shape (n_rows, n_columns), float32
        The value of every pair that the file holds. No duplicates, columns ascending.
    row_ids : ndarray of shape (n_rows,)
        Id of every row (user): ascending, int or str (of dtype object where one is much longer than
        the others); or the `row_ids` that were given.
    col_ids : ndarray of shape (n_columns,)
        Id of every column (item), likewise.
    times : ndarray of shape (n_stored,) or None
        Of every entry, in the order of ``X.data``, the time of its latest interaction: int64,
        float64 or datetime64. None if the file has no times. ``split_entries(X, strategy="last",
        timestamps=times)`` takes them.
    names : tuple of str or None
        What the file calls the columns of user and item. None if it does not.
    """

    times = names = None

    def __new__(cls, X, row_ids, col_ids, times=None, names=None):
        """Make the tuple; pickle and copy keep times and names by themselves."""
        self = super().__new__(cls, X, row_ids, col_ids)
        if times is not None:
            self.times = times
        if names is not None:
            self.names = names
        return self


def read_interactions(
    path,
    *,
    header=None,
    values=True,
    user=None,
    item=None,
    value=None,
    time=None,
    delimiter=None,
    decimal=None,
    aggregate="sum",
    row_ids=None,
    col_ids=None,
    handle_unknown="drop",
):
    r"""Read a file of interactions into a sparse matrix.

    The suffix tells the format:

    - ``.csv``, ``.tsv``, ``.tab``, ``.psv``, ``.inter``, ``.txt``, ``.dat``, ``.data``, each also
      with ``.gz`` after it: text, one interaction a line. What separates the fields, whether the
      first line names them, and which is what, is found out from the first lines; where that is
      not clear, it is not guessed: the error says which parameter decides it. Text is UTF-8, or
      UTF-16 that begins with its mark. Ids are integers if all of them are written as such, else
      strings ("007" is no integer).
    - ``.parquet``, or a folder of such parts: a table. Needs pyarrow.
    - ``.npz``: a CSR matrix written by ``scipy.sparse.save_npz``; its ids are 0, 1, ... Nothing is
      ever unpickled.

    Parameters
    ----------
    path : str or path-like
        The file, or a folder of Parquet files.
    header : bool, default=None
        Whether the first line of a text names the fields. None: it does if it has a usual name of
        a user or an item, such as ``user_id`` or ``sku``, or a name above a column of numbers;
        never if one of its fields is a number, unless others name a user and an item.
    values : bool, default=True
        False ignores the value: every interaction counts 1.
    user, item, value, time : str or int, default=None
        Which column is what, by name or by position from 0. None: usual names decide, else the
        first two columns are user and item, and the third is the value, unless they count the
        lines, hold times or words, or there are many columns.
    delimiter : str, default=None
        What separates the fields of a text; ``" "`` stands for any blanks. None: whatever cuts the
        first lines into the same number of fields, of tab, ``::``, ``;``, ``|`` and comma; in .txt,
        .dat and .data also blanks.
    decimal : {".", ","}, default=None
        The decimal mark of the values of a text. None: found out, if a comma is not the delimiter.
    aggregate : {"sum", "mean", "max", "last", "count"}, default="sum"
        What becomes of several interactions of the same user and item. "last" takes the value of
        the latest; of those at the same time, that of the later line.
    row_ids, col_ids : sequence of int or str, default=None
        The rows and columns that X shall have, in this order: those of another reading, so that two
        files go together. Ids are compared as they are written.
    handle_unknown : {"drop", "error"}, default="drop"
        What becomes of interactions of others than these: left out with a warning that counts them,
        or an error.

    Returns
    -------
    Interactions
        A named tuple (X, row_ids, col_ids), which also has ``times`` and ``names``. Pairs whose
        value is 0 are stored.

    Raises
    ------
    ValueError
        If the file is missing or cannot be read, a line is not as described, or what is what is
        not clear. The message, one line, names the file, the line or row (from 1), what is wrong
        and, where a parameter helps, which.
    ImportError
        If the file is a Parquet file and pyarrow is not installed.

    Warns
    -----
    UserWarning
        If columns or interactions are left out that one might have expected to count.

    Notes
    -----
    Texts of more than a few megabytes are cut by pyarrow, polars or pandas where one of them is
    installed, with the same result. `wals.storage.write_interactions` reads what does not fit into
    memory.

    What becomes of some texts, as the user, the item and the value of each interaction:

    ======  ==============================================  =====================================
    suffix  text                                            becomes
    ======  ==============================================  =====================================
    .csv    ``item_id,user_id,rating\nA1,bob,5``            ``bob A1 5``
    .csv    ``buyer,product\nbob,A1``                       ``bob A1 1``
    .inter  ``user_id:token\titem_id:token\n1\t2``          ``1 2 1``
    .csv    ``user_id,item_id,timestamp\n1,10,1433221332``  ``1 10 1``
    .csv    ``1,10,1433221332\n2,10,1433221332``            ``1 10 1; 2 10 1`` (noted: time)
    .csv    ``1,10,20240131\n2,10,20240229``                ``1 10 1; 2 10 1`` (noted: time)
    .tsv    ``u1\t2024-01-31\t3``                           refused: user= and item=
    .csv    ``1,10,buy,3\n2,11,view,1``                     refused: value=2
    .csv    ``user_id,item_id,category\n1,10,7``            refused: value='category'
    .csv    ``customer,member,item\n1,2,3``                 refused: user='customer'
    .csv    ``,user_id,item_id,score\n0,7,103,4``           ``7 103 4`` (noted: index)
    .csv    ``0,7,103,4\n1,8,103,4\n2,8,104,4``             refused: user= and item=
    .tsv    ``475DD9\tabc\n475E9\tdef``                     ``475DD9 abc 1; 475E9 def 1``
    .csv    ``1;10;3,5\n2;11;4,0``                          ``1 10 3.5; 2 11 4``
    .csv    ``1;10;3,500\n2;11;4,000``                      refused: decimal=','
    .csv    ``1,10;3\n2,11;4``                              refused: delimiter=';'
    .csv    ``sep=|\n1|2|3``                                ``1 2 3``
    .dat    ``a::b::3::978300760``                          ``a b 3``
    .txt    ``u1 i1 3,5\nu2 i2 4,0``                        ``u1 i1 3.5; u2 i2 4``
    .txt    ``u1 3,5\nu2 4,0``                              refused: delimiter=' '
    .tsv    ``u1\tBlur\nu2\t"Heroes``                       ``u1 Blur 1; u2 "Heroes 1``
    .csv    ``u1,Blur\nu2,"Heroes\nu3,Abba``                refused: line 2: a quote is left open
    .csv    ``# borrowed\n1,2,3\n4,5,6\n,,``                ``1 2 3; 4 5 6``
    .csv    ``1,2,3\r4,5,6\r``                              ``1 2 3; 4 5 6``
    .csv    ``1,2,4\n1,2,5``                                ``1 2 9``
    ======  ==============================================  =====================================

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from wals.interactions import read_interactions
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "lent.csv"
    ...     _ = path.write_text("user,item,times\nBea,12,1\nAda,7,2\nBea,7,1\nBea,12,1\n")
    ...     X, row_ids, col_ids = read_interactions(path)
    >>> X.toarray()
    array([[2., 0.],
           [1., 2.]], dtype=float32)
    >>> row_ids.tolist(), col_ids.tolist()
    (['Ada', 'Bea'], [7, 12])
    """
    path = os.fspath(path)
    columns = {"user": user, "item": item, "value": value, "time": time}
    options = columns | {
        "header": header,
        "values": values,
        "delimiter": delimiter,
        "decimal": decimal,
    }
    _check_options(options, aggregate, handle_unknown)
    given = {
        name: None if ids is None else _Given(name, ids)
        for name, ids in (("row_ids", row_ids), ("col_ids", col_ids))
    }
    with _naming(path):
        kind, suffix = _kind(path, options)
        if kind == "parquet":
            table = read_parquet(path, options, last=aggregate == "last")
        elif kind == "text":
            table = read_text(path, suffix, options, last=aggregate == "last")
        else:
            _refuse(columns, "are of tables: a matrix has no such columns")
            table = _read_npz(path, values)
        if aggregate == "last" and table.times is None:
            raise ValueError(_NO_TIMES)
        content = _assemble(table, aggregate, handle_unknown, **given)

    bad = np.flatnonzero(~np.isfinite(content.X.data))
    if bad.size:
        row = np.searchsorted(content.X.indptr, bad[0], side="right") - 1
        column = content.X.indices[bad[0]]
        raise ValueError(
            f"{path}: the value of user {content.row_ids[row]} and item {content.col_ids[column]} "
            f"is {content.X.data[bad[0]]} in single precision"
        )
    for note in table.notes:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return content


def read_parts(path, options, aggregate):
    """Read what `read_interactions` does part by part.

    Parameters
    ----------
    path : str
    options : dict
        The parameters of `read_interactions` from header to decimal; those left out are None.
    aggregate : str

    Returns
    -------
    parts : iterator of Table
        Each with numbers of its own. None tells that those before are to be forgotten.
    is_text : bool
        Whether ids are strings that may all turn out to be integers.
    """
    options = dict.fromkeys(_OPTIONS) | {"values": True} | options
    _check_options(options, aggregate, "drop")
    with _naming(path):
        kind, suffix = _kind(path, options)
        if kind == "matrix":
            raise ValueError("is a matrix in memory: pass what scipy.sparse.load_npz returns")
    last = aggregate == "last"
    if kind == "parquet":
        parts = parquet_parts(path, options, last=last)
    else:
        parts = text_parts(path, suffix, options, last=last)
    return _named_parts(path, parts, last), kind == "text"


def _named_parts(path, parts, last):
    with _naming(path):
        for table in parts:
            if last and table is not None and table.times is None:
                raise ValueError(_NO_TIMES)
            yield table


def _kind(path, options):
    """Return what a file is, and the suffix of a text; refuse options that do not apply."""
    suffix = os.path.splitext(path.lower().removesuffix(".gz"))[1]
    is_parquet = path.lower().endswith(".parquet") or os.path.isdir(path)
    if suffix in _TEXTS and not is_parquet:
        return "text", suffix
    given = {name: options.get(name) for name in ("delimiter", "decimal")}
    _refuse(given, "are of texts alone")
    if is_parquet:
        return "parquet", suffix
    if path.lower().endswith(".npz"):
        return "matrix", suffix
    raise ValueError(
        f"unknown suffix; known are {', '.join(_TEXTS)} (also with .gz), .parquet and .npz"
    )


@contextmanager
def _naming(path):
    """Turn whatever goes wrong with a file into a ValueError that names it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged or cut short") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_options(options, aggregate, handle_unknown):
    for role in ("user", "item", "value", "time"):
        which = options[role]
        whole = isinstance(which, int | np.integer) and not isinstance(which, bool)
        if not (which is None or whole or isinstance(which, str)):
            raise ValueError(f"{role} must be the name or the position of a column, got {which!r}")
    delimiter = options["delimiter"]
    if delimiter is not None and (
        not isinstance(delimiter, str) or not delimiter or set(delimiter) & set('\r\n"\0')
    ):
        raise ValueError(f"delimiter must be a text without quotes, got {delimiter!r}")
    for name, chosen, allowed in (
        ("decimal", options["decimal"], (None, ".", ",")),
        ("aggregate", aggregate, AGGREGATES),
        ("handle_unknown", handle_unknown, ("drop", "error")),
        ("header", options["header"], (None, True, False)),
    ):
        if chosen not in allowed:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, allowed))}; got {chosen!r}"
            )


def _refuse(options, reason):
    if asked := [f"{name}=" for name, chosen in options.items() if chosen is not None]:
        raise ValueError(f"{', '.join(asked)} {reason}")


class _Given:
    """The ids of a side that were given, and where each stands."""

    def __init__(self, name, ids):
        if isinstance(ids, str | bytes) or np.ndim(ids) != 1:
            raise ValueError(f"{name} must be a sequence of ids")
        self.name = name
        if isinstance(ids, np.ndarray):
            self.ids = ids
        else:
            ids = list(ids)
            whole = all(isinstance(x, int | np.integer) and -(2**63) <= x < 2**63 for x in ids)
            self.ids = np.array(ids, dtype=np.int64) if whole else strings(list(map(str, ids)))
        texts = list(map(str, self.ids.tolist()))
        self.places = {text: place for place, text in enumerate(texts)}
        if len(self.places) < len(texts):
            seen = set()
            twice = next(text for text in texts if text in seen or seen.add(text))
            raise ValueError(f"{name} must be unique, but {twice!r} is there twice")

    def find(self, keys):
        """Return the places of ids, -1 for unknown ones."""
        texts = map(str, keys if isinstance(keys, list) else keys.tolist())
        return np.fromiter((self.places.get(x, -1) for x in texts), np.int32, len(keys))


def check_texts(keys):
    """Refuse ids that no text has."""
    if any("\0" in key for key in keys):
        raise ValueError("an id holds a NUL: this is no text")
    if any(key.startswith("\ufeff") for key in keys):
        raise ValueError("an id starts with what is a byte order mark: were several texts joined?")


def _assemble(table, aggregate, handle_unknown, row_ids, col_ids):
    """Build the matrix from numbered ids, in the order of the ids."""
    coords, ids, missing, n = [], [], [], table.rows.size
    known = np.ones(n, dtype=bool)
    for codes, keys, given in (
        (table.rows, table.row_keys, row_ids),
        (table.cols, table.col_keys, col_ids),
    ):
        if given is None:
            if isinstance(keys, list):
                check_texts(keys)
            found, places = sort_ids(keys)
        else:
            found, places = given.ids, given.find(keys)
            if (unknown := np.flatnonzero(places < 0)).size:
                first = ", ".join(str(keys[number]) for number in unknown[:5])
                more = ", ..." if unknown.size > 5 else ""
                kind = "users" if given is row_ids else "items"
                missing.append(f"{unknown.size} {kind} not among {given.name} ({first}{more})")
        ids.append(found)
        coords.append(places[codes])
        if given is not None:
            known &= coords[-1] >= 0
    values, times = table.values, table.times
    if n_dropped := n - np.count_nonzero(known):
        said = f"{n_dropped:,} of {n:,} interactions are of {' or of '.join(missing)}"
        if handle_unknown == "error":
            raise ValueError(said)
        if n_dropped == n:
            raise ValueError(f"holds no interactions of the given ids: {said}")
        table.notes.append(f"{said}, and are left out")
        coords = [side[known] for side in coords]
        values, times = (None if x is None else x[known] for x in (values, times))
        # What only those had is no id of the matrix.
        for side, given in enumerate((row_ids, col_ids)):
            if given is None:
                used, coords[side] = np.unique(coords[side], return_inverse=True)
                ids[side] = ids[side][used]
    if not coords[0].size:
        raise ValueError("holds no interactions")
    if values is None or aggregate == "count":
        values = np.ones(coords[0].size)
    coords = [side.astype(np.int32, copy=False) for side in coords]
    X, times = gather(values, coords, times, tuple(map(len, ids)), aggregate)
    with np.errstate(over="ignore"):
        X = X.astype(np.float32)
    return Interactions(X, *ids, times, table.names)


def _read_npz(path, values):
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("is not an .npz file")
        file.seek(0)
        try:
            X = load_npz(file)  # passes allow_pickle=False
        except Exception as error:  # whatever a damaged or foreign archive makes NumPy raise
            raise ValueError("holds no matrix written by scipy.sparse.save_npz") from error
    if X.format != "csr" or X.ndim != 2:
        raise ValueError(f"holds a matrix of format {X.format}, not csr")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"holds values of type {X.dtype}, not real numbers")
    X.check_format(full_check=True)
    rows = np.repeat(np.arange(X.shape[0], dtype=np.int32), np.diff(X.indptr))
    keys = [np.arange(size) for size in X.shape]
    data = X.data.astype(float) if values else None
    return Table(rows, keys[0], X.indices, keys[1], data, None, [])
