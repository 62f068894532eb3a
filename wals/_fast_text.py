"""Read large texts by pyarrow, polars or pandas, where one is installed.

They do no more than to cut regular texts, block by block. Whatever is unusual is left to the
standard library, which knows the rules: so the result never depends on what is installed.
"""

import csv
import importlib.util
import io
from collections import defaultdict
from itertools import count

import numpy as np

from wals._columns import LARGEST, dates
from wals._encoding import factorize

__all__ = ["Unusual", "cut_blocks", "fast_reader", "read_blocks"]

_LARGE = 1 << 21  # bytes from which on the import of another library pays
_BLOCK = 1 << 25  # bytes that are held at a time


class Unusual(Exception):
    """A text that the standard library should read."""


def fast_reader():
    """Return the function that reads a block with what is installed, or None."""
    for name, read in _READERS.items():
        if importlib.util.find_spec(name) is not None:
            return read
    return None


def read_blocks(file, dialect, read):
    """Read a text block by block.

    Parameters
    ----------
    file : binary file
        The text.
    dialect : Dialect
        What it is like.
    read : callable
        What `fast_reader` returned.

    Returns
    -------
    rows, row_keys, cols, col_keys, values, times : ndarray, list of str or None
        The columns, as in Table.

    Raises
    ------
    Unusual
        If the text is small, or not as regular as it must be.
    """
    codes = defaultdict(count().__next__), defaultdict(count().__next__)
    parts = [], [], [], []
    for *ids, values, times in cut_blocks(file, dialect, read):
        for part, code, (numbers, keys) in zip(parts, codes, ids, strict=False):
            lookup = np.fromiter(map(code.__getitem__, keys), np.int32, len(keys))
            part.append(lookup[numbers])
        for part, column in ((parts[2], values), (parts[3], times)):
            if column is not None:
                part.append(column)
    rows, cols, values, times = (_joined(part) for part in parts)
    return rows, list(codes[0]), cols, list(codes[1]), values, times


def cut_blocks(file, dialect, read):
    """Yield the columns of each block of a text: those of ids as numbers and what they stand for.

    Parameters and errors are those of `read_blocks`.
    """
    if dialect.encoding != "utf-8-sig" or len(dialect.delimiter) > 1:
        raise Unusual
    empty = True
    for block in _blocks(file, dialect.skip):
        if block is None:
            raise Unusual
        _check(block, dialect)
        n_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        try:
            *ids, values, times = read(block, dialect)
        except Exception as error:  # whatever the library objects to
            raise Unusual from error
        for numbers, keys in ids:
            longest = max(map(len, keys), default=0)
            if (
                numbers.size != n_lines
                or longest > csv.field_size_limit()
                or not all(map(str.strip, keys))
            ):
                raise Unusual
        for column, largest in ((values, LARGEST), (times, np.finfo(float).max)):
            is_real = column is not None and column.dtype.kind == "f"
            if is_real and not (np.abs(column) <= largest).all():
                raise Unusual
        empty = False
        yield *ids, values, times
    if empty:
        raise Unusual


def _joined(part):
    """Concatenate arrays, and let go of them."""
    joined = np.concatenate(part) if part else None
    part.clear()
    return joined


def _blocks(file, skip):
    """Yield blocks of whole lines without those to skip; None first if the text is small."""
    block = file.read(_LARGE)
    if len(block) < _LARGE:
        yield None
    block = block.removeprefix(b"\xef\xbb\xbf")
    for _ in range(skip):
        # The first lines were seen, and are no longer than a block.
        block = block.partition(b"\n")[2]
    rest = block
    while more := file.read(_BLOCK):
        # The last line stays, so that empty lines at the end come with it.
        end = more.rfind(b"\n", 0, len(more.rstrip(b"\r\n"))) + 1
        block = rest + more[:end] if end else b""
        rest = more[end:] if end else rest + more
        if block:
            yield block
    if rest := rest.rstrip(b"\r\n"):
        yield rest


def _check(block, dialect):
    """Refuse a block in which a reader might see other fields than the standard library does."""
    if b"\0" in block or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
        raise Unusual
    if (dialect.decimal == "," and b"." in block) or (dialect.delimiter == " " and b"\t" in block):
        raise Unusual
    if dialect.quoted and b'"' in block:
        _check_quotes(block, dialect.delimiter.encode())


def _check_quotes(block, delimiter):
    """Refuse quotes unless each stands, alone, at one end of a field."""
    before, after = (b"\n", delimiter), (b"\r\n", b"\n", delimiter)
    opening = sum(block.count(mark + b'"') for mark in before) + block.startswith(b'"')
    closing = sum(block.count(b'"' + mark) for mark in after) + block.endswith(b'"')
    alone = any(mark + b'"' + other in block for mark in before for other in after)
    last = block[block.rfind(b"\n", 0, -1) + 1 :]
    if (
        alone
        or opening != closing
        or opening + closing != block.count(b'"')
        or last.count(b'"') % 2
        or block.startswith(tuple(b'"' + mark for mark in after))
    ):
        raise Unusual


def _check_fields(block, dialect):
    """Refuse a block in which a line has more or fewer fields than it should."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, text.size)
    cuts = np.flatnonzero(text == ord(dialect.delimiter))
    if cuts.size != ends.size * (dialect.width - 1):
        raise Unusual
    cuts = cuts.reshape(ends.size, dialect.width - 1)
    if (cuts[:, -1] > ends).any() or (cuts[1:, 0] < ends[:-1]).any():
        raise Unusual


def _names(dialect):
    """Return names for all fields, and those of the four columns."""
    # What polars calls them by itself.
    names = [f"column_{place + 1}" for place in range(dialect.width)]
    roles = ("user", "item", "value", "time")
    places = [dialect.columns[role] for role in roles]
    return names, [None if place is None else names[place] for place in places]


def _with_pyarrow(block, dialect):
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

    names, (user, item, value, time) = _names(dialect)
    types = {user: pa.string(), item: pa.string(), value: pa.float64()}
    types[time] = _time_type(dialect, pa.int64(), pa.float64(), pa.string())
    types.pop(None, None)
    table = read_csv(
        pa.py_buffer(block),
        read_options=ReadOptions(column_names=names),
        parse_options=ParseOptions(
            delimiter=dialect.delimiter, quote_char='"' if dialect.quoted else False
        ),
        convert_options=ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[],
            strings_can_be_null=False,
            decimal_point=dialect.decimal,
        ),
    )
    for name in (user, item):
        yield factorize(table.column(name), "pyarrow")
    for name in (value, time):
        column = None if name is None else table.column(name)
        is_text = column is not None and pa.types.is_string(column.type)
        if is_text:
            yield dates(column.to_numpy(zero_copy_only=False).tolist())
        else:
            yield None if column is None else column.to_numpy()


def _with_polars(block, dialect):
    import polars as pl

    _check_fields(block, dialect)
    names, (user, item, value, time) = _names(dialect)
    types = dict.fromkeys(names, pl.String) | {value: pl.Float64}
    types[time] = _time_type(dialect, pl.Int64, pl.Float64, pl.String)
    types.pop(None, None)
    table = pl.read_csv(
        block,
        has_header=False,
        separator=dialect.delimiter,
        quote_char='"' if dialect.quoted else None,
        columns=[name for name in (user, item, value, time) if name is not None],
        schema=types,
        decimal_comma=dialect.decimal == ",",
    )
    if any(table.null_count().row(0)):
        raise Unusual
    for name in (user, item):
        yield factorize(table[name], "polars")
    for name in (value, time):
        column = None if name is None else table[name]
        if column is not None and column.dtype == pl.String:
            yield dates(column.to_list())
        else:
            yield None if column is None else column.to_numpy()


def _with_pandas(block, dialect):
    import pandas as pd

    _check_fields(block, dialect)
    names, (user, item, value, time) = _names(dialect)
    types = {user: str, item: str, value: str}
    types[time] = _time_type(dialect, "int64", str, str)
    types.pop(None, None)
    table = pd.read_csv(
        io.BytesIO(block),
        header=None,
        names=names,
        usecols=list(types),
        dtype=types,
        sep=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        na_filter=False,
        skip_blank_lines=False,
    )
    for name in (user, item):
        yield factorize(table[name], "pandas")
    # The numbers that pandas itself reads are not the nearest ones in all of its releases.
    for name, mark in ((value, dialect.decimal), (time, ".")):
        if name is None:
            yield None
        elif types[name] is not str:
            yield table[name].to_numpy()
        elif name == time and dialect.time_type == "date":
            yield dates(table[name].tolist())
        else:
            codes, keys = pd.factorize(table[name])
            yield np.array([float(key.replace(mark, ".")) for key in keys])[codes]


_READERS = {"pyarrow": _with_pyarrow, "polars": _with_polars, "pandas": _with_pandas}


def _time_type(dialect, integer, real, text):
    return {"integer": integer, "number": real, "date": text}[dialect.time_type]
