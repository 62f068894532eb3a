"""Write a table to a file, block by block: all of it, or nothing."""

import csv
import io
import os
from contextlib import contextmanager, suppress

from ._format import replacing

__all__ = ["check_output", "table_writer", "text_writer"]


class _Csv:
    """Text in UTF-8, with the names of the columns in the first line."""

    def __init__(self, file):
        self.file, self.has_names = file, False

    def write(self, columns):
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not self.has_names:
            writer.writerow(columns)
            self.has_names = True
        # NumPy writes a float32 by no more digits than it has.
        fields = (
            values.astype(str) if values.dtype.kind == "f" else values
            for values in columns.values()
        )
        writer.writerows(zip(*(values.tolist() for values in fields), strict=True))
        self.file.write(text.getvalue().encode())

    def close(self):
        pass


class _Parquet:
    def __init__(self, file):
        self.file, self.writer = file, None

    def write(self, columns):
        import pyarrow as pa
        from pyarrow import parquet

        # Of a block without rows, Arrow could not tell that objects are strings.
        types = (pa.string() if x.dtype.kind in "OU" else None for x in columns.values())
        arrays = [pa.array(x, type) for x, type in zip(columns.values(), types, strict=True)]
        table = pa.table(arrays, names=list(columns))
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.file, table.schema)
        self.writer.write_table(table)

    def close(self):
        if self.writer is not None:
            self.writer.close()


_FORMATS = {".csv": _Csv, ".parquet": _Parquet}


def check_output(path):
    """Raise an error if no table could be written to a path: before what is to be written is made.

    Raises
    ------
    ValueError
        If the suffix is none that is known, or there can be no such file.
    ImportError
        If it takes a library that is not installed.
    """
    suffix = _suffix(path)
    if suffix not in _FORMATS:
        raise ValueError(f"the suffix must be {' or '.join(_FORMATS)}, got {suffix!r}")
    if suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "writing Parquet needs pyarrow (pip install wals[parquet])"
            ) from error
    try:
        with suppress(_Tried), replacing(path):
            raise _Tried
    except OSError as error:
        raise ValueError(f"{error.strerror}") from error


class _Tried(Exception):
    """A file could be made, but is not wanted yet."""


@contextmanager
def table_writer(path):
    """Give a function that writes the next rows of a table: a dict of names and arrays.

    The file takes the place of one that is there when all is written, and in one step. If anything
    is raised, what was there stays.
    """
    with replacing(path) as file:
        table = _FORMATS[_suffix(path)](file)
        try:
            yield table.write
        except BaseException:
            with suppress(Exception):
                table.close()
            raise
        table.close()


@contextmanager
def text_writer(stream):
    """Give such a function that writes to a stream of text, as CSV."""
    stream.flush()
    yield _Csv(stream.buffer).write
    stream.buffer.flush()


def _suffix(path):
    return os.path.splitext(path)[1].lower()
