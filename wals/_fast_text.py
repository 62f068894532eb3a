"""Read large texts by pyarrow, polars or pandas, where one is installed.

They do no more than to cut regular texts, block by block. Whatever is unusual is left to the
standard library, which knows the rules: so the result never depends on what is installed.
"""

import csv
import importlib.util
import io

import numpy as np

from wals._columns import LARGEST, dates

__all__ = ["Unusual", "fast_library", "read_blocks"]

_LARGE = 1 << 21  # bytes from which on the import of another library pays
_BLOCK = 1 << 25  # bytes that are held at a time


class Unusual(Exception):
    """A text that the standard library should read."""


def fast_library():
    """Return the library that is installed and fastest, or None."""
    for name, library in _LIBRARIES.items():
        if importlib.util.find_spec(name) is not None:
            return library
    return None


def read_blocks(file, dialect, library):
    """Read a text block by block.

    Parameters
    ----------
    file : binary file
        The text.
    dialect : Dialect
        What it is like.
    library : class
        What `fast_library` returned.

    Returns
    -------
    rows, row_keys, cols, col_keys, values, times : ndarray, list of str or None
        The columns, as in Table; None for a small text.

    Raises
    ------
    Unusual
        If the text is not as regular as it must be.
    """
    if dialect.encoding != "utf-8-sig" or len(dialect.delimiter) > 1:
        raise Unusual
    # Of each block the codes and the keys of users and of items, the values and the times.
    parts = [], [], [], [], [], []
    limits = (None,) * 4 + (LARGEST, np.finfo(float).max)
    for block in _blocks(file, dialect.skip):
        if block is None:
            return None
        _check(block, dialect)
        n_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        try:
            user, item, *numbers = library.read(block, dialect)
            columns = *library.encode(user), *library.encode(item), *numbers
        except Exception as error:  # whatever the library objects to
            raise Unusual from error
        if columns[0].size != n_lines:
            raise Unusual
        for part, column, limit in zip(parts, columns, limits, strict=True):
            if column is None:
                continue
            # Written so that NaN fails, too.
            if limit and column.dtype.kind == "f" and not (np.abs(column) <= limit).all():
                raise Unusual
            part.append(column)
    if not parts[0]:
        raise Unusual
    rows, row_keys = _merged(library, *parts[:2])
    cols, col_keys = _merged(library, *parts[2:4])
    return rows, row_keys, cols, col_keys, *map(_joined, parts[4:])


def _merged(library, codes, keys):
    """Return the codes of all blocks, numbered together, and the list of the ids."""
    sizes = [len(part) for part in keys]
    lookup, keys = library.encode(library.concatenate(keys))
    keys = library.to_list(keys)
    longest = max(map(len, keys))
    if longest > csv.field_size_limit() or not all(map(str.strip, keys)):
        raise Unusual
    lookup = lookup.astype(np.int32, copy=False)
    lookups = np.split(lookup, np.cumsum(sizes)[:-1])
    codes[:] = [of_block[part] for of_block, part in zip(lookups, codes, strict=True)]
    return _joined(codes), keys


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


def _time_type(dialect, integer, real, text):
    return {"integer": integer, "number": real, "date": text}[dialect.time_type]


class _PyArrow:
    """Cut a block, and number ids, by pyarrow; the others do the same by theirs."""

    @staticmethod
    def read(block, dialect):
        """Yield the columns of users and items as the library has them, values and times."""
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
        for name in (user, item, value, time):
            column = None if name is None else table.column(name)
            if name in (user, item):
                yield column.combine_chunks()
            elif name is not None and types[name] == pa.string():
                yield dates(_PyArrow.to_list(column))
            else:
                yield None if name is None else column.to_numpy()

    @staticmethod
    def encode(column):
        """Return codes from 0, and what each stands for."""
        encoded = column.dictionary_encode()
        return encoded.indices.to_numpy(), encoded.dictionary

    @staticmethod
    def concatenate(columns):
        import pyarrow as pa

        # 64-bit offsets: together the ids may be longer than those of 32 bits can tell.
        return pa.concat_arrays([column.cast(pa.large_string()) for column in columns])

    @staticmethod
    def to_list(column):
        return column.to_numpy(zero_copy_only=False).tolist()


class _Polars:
    @staticmethod
    def read(block, dialect):
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
        for name in (user, item, value, time):
            if name in (user, item):
                yield table[name]
            elif name is not None and types[name] == pl.String:
                yield dates(table[name].to_list())
            else:
                yield None if name is None else table[name].to_numpy()

    @staticmethod
    def encode(column):
        import polars as pl

        keys = column.unique()
        return column.cast(pl.Enum(keys)).to_physical().to_numpy(), keys

    @staticmethod
    def concatenate(columns):
        import polars as pl

        return pl.concat(columns)

    @staticmethod
    def to_list(column):
        return column.to_list()


class _Pandas:
    @staticmethod
    def read(block, dialect):
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
        for name in (user, item, value, time):
            if name in (user, item):
                yield table[name]
            elif name is None or types[name] is not str:
                yield None if name is None else table[name].to_numpy()
            elif name == time and dialect.time_type == "date":
                yield dates(table[name].tolist())
            else:
                # The numbers that pandas reads are not the nearest ones in all of its releases.
                mark = dialect.decimal if name == value else "."
                codes, keys = pd.factorize(table[name])
                yield np.array([float(key.replace(mark, ".")) for key in keys])[codes]

    @staticmethod
    def encode(column):
        import pandas as pd

        codes, keys = pd.factorize(column)
        return codes.astype(np.int32), pd.Series(keys)

    @staticmethod
    def concatenate(columns):
        import pandas as pd

        return pd.concat(columns)

    @staticmethod
    def to_list(column):
        return column.tolist()


_LIBRARIES = {"pyarrow": _PyArrow, "polars": _Polars, "pandas": _Pandas}
