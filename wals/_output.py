"""Write a table to a file, block by block: all of it, or nothing."""

import csv
import io
import os
import secrets
import stat
from contextlib import contextmanager, suppress

__all__ = ["check_output", "table_writer"]


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
        if not stat.S_ISREG(os.stat(os.path.realpath(path)).st_mode):
            raise ValueError("is there already, and no file")
    except FileNotFoundError:
        pass
    except OSError as error:  # of a name that is too long, say
        raise ValueError(f"{error.strerror}") from error
    file, temporary = _new_beside(path)
    file.close()
    os.unlink(temporary)


@contextmanager
def table_writer(path):
    """Give a function that writes the next rows of a table: a dict of names and arrays.

    The file takes the place of one that is there when all is written, and in one step. If anything
    is raised, what was there stays.
    """
    file, temporary = _new_beside(path)
    try:
        with file:
            table = _FORMATS[_suffix(path)](file)
            try:
                yield table.write
            except BaseException:
                with suppress(Exception):
                    table.close()
                raise
            table.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.realpath(path))
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def _new_beside(path):
    """Return a new file in the folder of another, or of what that links to, and its path."""
    folder = os.path.dirname(os.path.realpath(path))
    temporary = os.path.join(folder, f".wals-{secrets.token_hex(8)}.tmp")
    try:
        # Unlike those of tempfile, with the permissions of any other file.
        return open(temporary, "xb"), temporary
    except OSError as error:
        raise ValueError(f"no file can be made in {folder}: {error.strerror}") from error
