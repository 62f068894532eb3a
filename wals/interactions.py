"""Read who interacted with what from a file."""

import csv
import gzip
import os
import zipfile
import zlib
from array import array
from codecs import iterdecode
from collections import defaultdict
from itertools import chain, count
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, load_npz

__all__ = ["Interactions", "read_interactions"]

# What may separate the fields; the first one that the first line contains does.
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".txt": "\t,; "}

_HEADER_WORDS = {"user", "users", "user_id", "userid", "uid", "row", "row_id", "customer_id"}

_LARGEST = float(np.finfo(np.float32).max)


class Interactions(NamedTuple):
    """A matrix of interactions and what its rows and columns stand for.

    Attributes
    ----------
    X : csr_array of shape (n_rows, n_columns), float32
        The summed values of every pair that the file holds. No duplicates, columns ascending.
    row_ids : ndarray of shape (n_rows,), int or str
        Id of every row (user), ascending.
    col_ids : ndarray of shape (n_columns,), int or str
        Id of every column (item), ascending.
    """

    X: csr_array
    row_ids: np.ndarray
    col_ids: np.ndarray


def read_interactions(path, *, header=None, values=True):
    r"""Read a file of interactions into a sparse matrix.

    The suffix tells the format:

    - ``.csv``, ``.tsv``, ``.txt``, each also with ``.gz`` after it: UTF-8 text, one interaction a
      line: user, item and, if there is a third field, its value; further fields are ignored. A CSV
      may be separated by comma, semicolon or tab, a ``.txt`` also by single spaces. Ids are
      integers if all of them are written as such, else strings ("007" is no integer).
    - ``.parquet``: the same in the first columns of a table. Needs pyarrow.
    - ``.npz``: a CSR matrix written by ``scipy.sparse.save_npz``; its ids are 0, 1, ... Nothing is
      ever unpickled.

    Parameters
    ----------
    path : str or path-like
        The file.
    header : bool, default=None
        Whether the first line of a text names the fields. None: it does if none of its (up to
        three) fields is a number, and the next line has a number or the first field is a usual
        name such as ``user_id``.
    values : bool, default=True
        False ignores the value: every interaction counts 1.

    Returns
    -------
    Interactions
        A named tuple (X, row_ids, col_ids). Interactions of the same user and item are summed;
        pairs whose value is 0 are stored.

    Raises
    ------
    ValueError
        If the file is missing or cannot be read, or a line is not as described. The message, one
        line, names the file, the line or row (from 1) and what is wrong.
    ImportError
        If the file is a Parquet file and pyarrow is not installed.

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
    suffix = os.path.splitext(path.lower().removesuffix(".gz"))[1]
    try:
        if suffix in _DELIMITERS:
            content = _read_text(path, _DELIMITERS[suffix], header, values)
        elif path.lower().endswith(".parquet"):
            content = _read_parquet(path, values)
        elif path.lower().endswith(".npz"):
            content = _read_npz(path, values)
        else:
            raise ValueError(
                "unknown suffix; known are .csv, .tsv, .txt (also with .gz), .parquet and .npz"
            )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: is damaged or cut short") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    if not content.X.nnz:
        raise ValueError(f"{path}: holds no interactions")
    bad = np.flatnonzero(~np.isfinite(content.X.data))
    if bad.size:
        row = np.searchsorted(content.X.indptr, bad[0], side="right") - 1
        column = content.X.indices[bad[0]]
        raise ValueError(
            f"{path}: the value of user {content.row_ids[row]} and item {content.col_ids[column]} "
            f"is {content.X.data[bad[0]]} in single precision"
        )
    return content


def _read_text(path, delimiters, header, values):
    # Numbers the ids in order of appearance: a new key gets the next number.
    row_codes = defaultdict(count().__next__)
    col_codes = defaultdict(count().__next__)
    rows, cols, data = array("q"), array("q"), array("d")
    with (gzip.open if path.lower().endswith(".gz") else open)(path, "rb") as file:
        records = _records(file, delimiters)
        first = next(records, None)
        if first is None:
            raise ValueError("is empty")
        second = next(records, None)
        if header is None:
            header = _is_header(first[1], second and second[1])
        start = [second] if header else [first, second]
        width = len(first[1])
        for line, record in chain(filter(None, start), records):
            if len(record) != width or width < 2:
                expected = "at least 2" if width < 2 else f"{width} as in line {first[0]}"
                raise ValueError(f"line {line}: number of fields is {len(record)}, not {expected}")
            row, col = record[0].strip(), record[1].strip()
            if not (row and col):
                raise ValueError(f"line {line}: the {'item' if row else 'user'} is missing")
            value = 1.0
            if values and width > 2:
                try:
                    value = float(record[2])
                except ValueError:
                    raise ValueError(f"line {line}: value {record[2]!r} is not a number") from None
                # Written so that NaN fails, too.
                if not -_LARGEST <= value <= _LARGEST:
                    raise ValueError(f"line {line}: value {record[2]!r} is not a finite float32")
            rows.append(row_codes[row])
            cols.append(col_codes[col])
            data.append(value)
    row_keys, col_keys = (_integers_if_all(list(codes)) for codes in (row_codes, col_codes))
    return _assemble(data, rows, row_keys, cols, col_keys)


def _records(file, delimiters):
    """Yield (line number, fields) of the lines that are not blank."""
    head = file.peek(4096)
    if b"\0" in head:
        raise ValueError("is a binary file, not text")
    line = head.lstrip().partition(b"\n")[0].decode(errors="replace")
    delimiter = next((d for d in delimiters if d in line), delimiters[0])
    reader = csv.reader(
        iterdecode(file, "utf-8-sig"), delimiter=delimiter, skipinitialspace=delimiter != "\t"
    )
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except UnicodeDecodeError as error:
        raise ValueError(f"line {reader.line_num + 1}: is not UTF-8 text") from error
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _is_header(first, second):
    if any(map(_is_number, first[:3])):
        return False
    return first[0].strip().lower() in _HEADER_WORDS or any(map(_is_number, (second or [])[:3]))


def _is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


def _integers_if_all(ids):
    """Turn strings into an array: of int64 if each is an integer in its usual form, else of str."""
    try:
        numbers = np.array([int(key) for key in ids], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array(ids)
    return numbers if list(map(str, numbers.tolist())) == ids else np.array(ids)


def _read_parquet(path, values):
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: reading Parquet needs pyarrow (pip install wals[parquet])"
        ) from error
    try:
        with open(path, "rb") as file:
            content = parquet.ParquetFile(file)
            table = content.read(columns=content.schema_arrow.names[: 3 if values else 2])
        if table.num_columns < 2:
            raise ValueError(f"number of columns is {table.num_columns}, not at least 2")
        if not table.num_rows:
            raise ValueError("is empty")
        (rows, row_keys), (cols, col_keys) = (_parquet_ids(table, place) for place in (0, 1))
        data = np.ones(table.num_rows)
        if table.num_columns > 2:
            data = table.column(2).cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    bad = np.flatnonzero(~(np.abs(data) <= _LARGEST))
    if bad.size:
        raise ValueError(f"row {bad[0] + 1}: value {data[bad[0]]} is not a finite float32")
    return _assemble(data, rows, row_keys, cols, col_keys)


def _parquet_ids(table, place):
    """Return the codes and the keys of a column of integers or strings."""
    from pyarrow import types

    column = table.column(place)
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = any(
        check(column.type)
        for check in (types.is_string, types.is_large_string, types.is_string_view)
    )
    if not (is_text or types.is_integer(column.type)):
        name = table.column_names[place]
        raise ValueError(f"column {name!r} holds {column.type}, neither integers nor strings")
    if column.null_count:
        row = column.is_null().to_numpy().argmax() + 1
        raise ValueError(f"row {row}: the {('user', 'item')[place]} is missing")
    encoded = column.dictionary_encode().combine_chunks()
    keys = encoded.dictionary.to_numpy(zero_copy_only=False)
    return encoded.indices.to_numpy(), np.array(keys.tolist()) if is_text else keys


def _assemble(data, rows, row_keys, cols, col_keys):
    """Build the matrix from numbered ids, in the order of the ids."""
    row_order, col_order = np.argsort(row_keys), np.argsort(col_keys)
    # argsort of a permutation is its inverse: the place of every number. Ids that do not fit into
    # int32 would not fit into memory.
    coords = [
        np.argsort(order).astype(np.int32)[codes]
        for order, codes in ((row_order, rows), (col_order, cols))
    ]
    X = coo_array((np.asarray(data), coords), shape=(row_keys.size, col_keys.size)).tocsr()
    with np.errstate(over="ignore"):
        X = X.astype(np.float32)
    return Interactions(X, row_keys[row_order], col_keys[col_order])


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
    with np.errstate(over="ignore"):
        X = csr_array(X, dtype=np.float32)
    if not values:
        X.data[:] = 1
    X.sum_duplicates()
    return Interactions(X, np.arange(X.shape[0]), np.arange(X.shape[1]))
