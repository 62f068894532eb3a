"""Number the ids of columns, and gather interactions into a matrix: for files and for tables."""

from itertools import pairwise

import narwhals.stable.v2 as nw
import numpy as np
from scipy.sparse import coo_array, csr_array

AGGREGATES = ("sum", "mean", "max", "last", "count")


def encode(column, name):
    """Return the ids of a column, and the number of each element's.

    Parameters
    ----------
    column : narwhals Series, ndarray of shape (n,) or list
    name : str
        What errors call it.

    Returns
    -------
    ids : ndarray
        Each id once, in the order of `sort_ids`, which does not depend on that of the column.
    codes : ndarray of shape (n,), int32
        The place of each element among them.

    Raises
    ------
    ValueError
        If an id is missing or infinite, or cannot be hashed.
    """
    try:
        codes, keys = _factorize(column)
    except TypeError as error:
        raise ValueError(f"{name} holds ids that cannot be hashed: {error}") from None
    bad = np.fromiter((place for place, key in enumerate(keys) if _is_missing(key)), np.int64)
    if bad.size or codes.min(initial=0) < 0:
        row = np.flatnonzero((codes < 0) | np.isin(codes, bad))[0]
        key = None if codes[row] < 0 else keys[codes[row]]
        found = "NaN" if isinstance(key, float | np.floating) and key != key else key or "null"
        raise ValueError(f"{name} holds {found} in row {row} (counted from 0).")
    ids, places = sort_ids(keys)
    return ids, places[codes]


def plain(key):
    """Return an id as the Python object that it equals, however a library wraps it."""
    if hasattr(key, "as_py"):
        key = key.as_py()
    if type(key) is list:
        return tuple(key)
    if isinstance(key, np.datetime64):
        in_python = key.astype("M8[us]") if np.datetime_data(key)[0] in ("ns", "ps") else key
        return in_python.item() if in_python == key else key
    return key.item() if isinstance(key, np.generic) else key


def sort_ids(keys):
    """Return ids, each there once, in order, and the place of every key among them.

    They are ascending. Where they cannot be compared, as numbers and strings, they are in the order
    of the names of their types, and then of what they are written as.

    The array has a type of NumPy that holds them exactly, if one does, else it is one of objects.
    """
    if isinstance(keys, list):
        keys = as_array(keys)
    if keys.dtype != object:
        order = np.argsort(keys, kind="stable")
    else:
        listed = keys.tolist()
        try:
            order = sorted(range(len(listed)), key=listed.__getitem__)
            # Sets, say, can be compared, but are in no order.
            total = all(listed[i] < listed[j] for i, j in pairwise(order))
        except TypeError:
            total = False
        if not total:
            written = [(type(key).__qualname__, repr(key)) for key in listed]
            order = sorted(range(len(listed)), key=written.__getitem__)
        order = np.array(order, dtype=np.intp)
    places = np.empty(order.size, dtype=np.int32)
    places[order] = np.arange(order.size, dtype=np.int32)
    return keys[order], places


def as_array(keys):
    """Return a list of ids as an array that holds them exactly."""
    types = set(map(type, keys))
    if types == {str}:
        return strings(keys)
    if types == {int}:
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= min(keys) and max(keys) <= np.iinfo(dtype).max:
                return np.array(keys, dtype=dtype)
    if types in ({bool}, {float}):
        return np.array(keys)
    return _objects(keys)


def strings(keys):
    """Make an array of strings: of fixed width, unless that takes much more than the text."""
    width = max(map(len, keys), default=0)
    # NumPy takes a NUL at the end for padding.
    if width * len(keys) <= 4 * sum(map(len, keys)) + 1000 and not any("\0" in x for x in keys):
        return np.array(keys, dtype=str)
    return _objects(keys)


def sortable(column, name):
    """Return a column as an array that tells the order; raise an error if something is missing."""
    array = column.to_numpy() if isinstance(column, nw.Series) else np.asarray(column)
    if array.dtype.kind in "iu" or (array.dtype.kind in "mM" and not np.isnat(array).any()):
        return array
    ids, codes = encode(column, name)
    return ids[codes]


def gather(values, coords, times, shape, aggregate):
    """Return the matrix of the aggregated values, and the latest times of its entries."""
    summed = aggregate in ("sum", "count")
    if times is None and summed:
        return coo_array((values, coords), shape=shape).tocsr(), None
    # Where every pair is there once, the matrix of the places tells their order.
    n = values.size
    X = coo_array((np.arange(n), coords), shape=shape).tocsr()
    if X.nnz == n:
        order = X.data
        X.data = values[order]
        return X, None if times is None else times[order]
    order = np.lexsort((*coords[::-1],) if times is None else (times, coords[1], coords[0]))
    rows, cols = coords[0][order], coords[1][order]
    starts = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])])
    ends = np.r_[starts[1:], n] - 1
    values = values[order]
    if aggregate == "last":
        X.data = values[ends]
    elif aggregate == "max":
        X.data = np.maximum.reduceat(values, starts)
    else:
        X.data = np.add.reduceat(values, starts)
        if aggregate == "mean":
            X.data /= ends + 1 - starts
    return X, None if times is None else times[order][ends]


def gather_matrix(values, coords, times, shape, aggregate):
    """Return the matrix of the aggregated values in float32, which has to hold them."""
    if times is not None and times.dtype.kind in "OUS":
        times = encode(times, "times")[1]
    X, _ = gather(values, coords, times, shape, aggregate)
    with np.errstate(over="ignore"):
        X = csr_array(X).astype(np.float32)
    if not np.isfinite(X.data).all():
        raise ValueError("The values of a user and an item add up to more than a float32 can hold.")
    return X


def factorize(texts, library):
    """Return the number of each string, or category, by the means of their library.

    Parameters
    ----------
    texts : Series of pandas or Polars, Array or ChunkedArray of Arrow
        Without nulls.
    library : {"pandas", "polars", "pyarrow"}

    Returns
    -------
    codes : ndarray of shape (n,), int32
    keys : list of str, or of what the categories are
        Each once, in any order.
    """
    if library == "pandas":
        codes, keys = texts.factorize()
        return codes.astype(np.int32), keys.tolist()
    if library == "pyarrow":
        codes, keys = encode_arrow(texts)
        return codes, keys.to_pylist()
    import polars as pl

    keys = texts.unique()
    codes = texts.cast(pl.Enum(keys)).to_physical().to_numpy()
    return codes.astype(np.int32), keys.to_list()


def encode_arrow(column):
    """Return the codes and the keys, as an Arrow array, of a column without nulls."""
    encoded = column.dictionary_encode()
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32, copy=False), encoded.dictionary


def _factorize(column):
    """Return the codes of a column, -1 for nulls, and its keys, each once, in any order."""
    if isinstance(column, nw.Series):
        dtype = column.dtype
        if nulls := column.is_null().arg_true().to_list():
            codes = np.zeros(len(column), np.int32)
            codes[nulls[0]] = -1
            return codes, []
        if isinstance(dtype, nw.String | nw.Categorical | nw.Enum):
            library, native = column.implementation.value, column.to_native()
            if library == "polars":
                native = column.cast(nw.String).to_native()
            elif library == "pyarrow" and hasattr(native.type, "value_type"):
                native = native.cast(native.type.value_type)
            known = library in ("pandas", "polars", "pyarrow")
            return factorize(native, library) if known else _factorize(column.to_list())
        is_number = dtype.is_numeric() and not isinstance(dtype, nw.Decimal)
        is_naive = isinstance(dtype, nw.Datetime) and dtype.time_zone is None
        if is_number or is_naive or isinstance(dtype, nw.Boolean | nw.Date):
            column = column.to_numpy()
        else:
            column = column.to_list()
    if isinstance(column, np.ndarray) and column.dtype.kind in "iubfMm":
        keys, codes = np.unique(column, return_inverse=True)
        if column.dtype.kind in "Mm":
            keys = [plain(key) for key in keys]
        return codes.astype(np.int32, copy=False), keys
    if isinstance(column, np.ndarray):
        column = column.tolist()
    places = {}
    codes = np.fromiter(
        # Arrow and Polars have lists where others have tuples.
        (places.setdefault(tuple(x) if type(x) is list else x, len(places)) for x in column),
        np.int32,
        len(column),
    )
    return codes, [plain(key) for key in places]


def _is_missing(key):
    # NaN and NaT alone differ from themselves; pandas.NA does not say.
    if key is None or type(key).__name__ == "NAType":
        return True
    return bool(key != key) or (isinstance(key, float | np.floating) and not np.isfinite(key))


def _objects(keys):
    return np.fromiter(keys, object, len(keys))
