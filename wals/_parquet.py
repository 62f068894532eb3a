"""Read the columns of Parquet files: one, or the parts in a folder."""

import os
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from wals._columns import LARGEST, N_SAMPLED, choose_columns, dates
from wals._encoding import encode_arrow
from wals._text import Table

__all__ = ["parquet_parts", "read_parquet"]

#: Rows that are read at a time, where not all are.
_ROWS = 2**20


def read_parquet(path, options, *, last):
    """Read a Parquet file, or the parts in a folder; parameters as of `read_text`."""
    with _in_one_line(path) as pa:
        tables = []
        for content, needed in _contents(path, options):
            tables.append(content.read(columns=needed.names))
        table = pa.concat_tables(tables, promote_options="permissive")
        return _as_table(table, needed, options, last)


def parquet_parts(path, options, *, last):
    """Yield what `read_parquet` reads, some rows at a time, each with numbers of its own."""
    with _in_one_line(path) as pa:
        n_read = 0
        for content, needed in _contents(path, options):
            for batch in content.iter_batches(_ROWS, columns=needed.names):
                if batch.num_rows:
                    table = pa.Table.from_batches([batch])
                    yield _as_table(table, needed, options, last, first=n_read + 1)
                n_read += batch.num_rows


@contextmanager
def _in_one_line(path):
    """Give PyArrow, whose errors take several lines."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(
            f"{path}: reading Parquet needs pyarrow (pip install wals[parquet])"
        ) from error
    try:
        yield pa
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error


class _Needed(NamedTuple):
    """The columns to read."""

    names: list
    roles: dict  # of user, item, value, time the name, or None
    notes: list


def _contents(path, options):
    """Yield each part, open, and what is needed of it."""
    from pyarrow import parquet

    names = needed = None
    for part in _parts(path):
        # An open file: PyArrow itself would take a path for an address.
        with open(part, "rb") as file:
            content = parquet.ParquetFile(file)
            found = content.schema_arrow.names
            if names is None:
                names = found
                chosen, notes = _choose(content, names, options)
                roles = {
                    role: None if place is None else names[place] for role, place in chosen.items()
                }
                needed = _Needed(
                    [name for name in roles.values() if name is not None], roles, notes
                )
            elif found != names:
                raise ValueError(
                    f"part {os.path.basename(part)} has the columns {', '.join(found)}, not "
                    f"{', '.join(names)} as the first part"
                )
            yield content, needed


def _as_table(table, needed, options, last, first=1):
    """Return the columns of an Arrow table, whose first row errors call `first`."""
    import pyarrow as pa

    if not table.num_rows:
        raise ValueError("is empty")
    roles, notes = needed.roles, needed.notes
    columns = {role: None if name is None else table.column(name) for role, name in roles.items()}
    (rows, row_keys), (cols, col_keys) = (
        _ids(columns[role], role, roles[role], first) for role in ("user", "item")
    )
    values = None
    if columns["value"] is not None:
        values = columns["value"].cast(pa.float64(), safe=False).to_numpy()
        bad = np.flatnonzero(~(np.abs(values) <= LARGEST))
        if bad.size:
            raise ValueError(
                f"row {bad[0] + first}: value {values[bad[0]]} is not a finite float32"
            )
    times = None
    if columns["time"] is not None:
        try:
            times = _times(columns["time"], first)
        except (ValueError, pa.ArrowException) as error:
            said = f"column {roles['time']!r} holds no times ({error})"
            if options["time"] is not None or last:
                raise ValueError(said) from None
            notes.append(f"{said}; it is left out")
    called = roles["user"], roles["item"]
    return Table(rows, row_keys, cols, col_keys, values, times, notes, called)


def _parts(path):
    """Return the files to read."""
    if not os.path.isdir(path):
        return [path]
    # Spark and others leave "_SUCCESS", "_metadata" and hidden files beside the parts.
    names = sorted(name for name in os.listdir(path) if not name.startswith(("_", ".")))
    for name in names:
        if os.path.isdir(os.path.join(path, name)):
            raise ValueError(f"is a folder that holds a folder, {name}: only files are read")
        if not name.lower().endswith(".parquet"):
            raise ValueError(f"is a folder that holds {name}: only .parquet files are read")
    if not names:
        raise ValueError("is a folder without .parquet files")
    return [os.path.join(path, name) for name in names]


def _choose(content, names, options):
    import pyarrow as pa

    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several columns are named {min(repeated)!r}")
    batch = next(content.iter_batches(batch_size=N_SAMPLED), None)
    samples = []
    for place in range(len(names)):
        try:
            sample = batch.column(place).cast(pa.string()).to_pylist()
        except (pa.ArrowException, AttributeError):  # nested, or no rows
            sample = []
        samples.append([field for field in sample if field is not None])
    given = {role: options[role] for role in ("user", "item", "value", "time")}
    return choose_columns(names, samples, given, values=options["values"])


def _ids(column, role, name, first):
    """Return the codes and the keys of a column of integers or strings."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = any(
        check(column.type)
        for check in (types.is_string, types.is_large_string, types.is_string_view)
    )
    if not (is_text or types.is_integer(column.type)):
        raise ValueError(f"column {name!r} holds {column.type}, neither integers nor strings")
    if column.null_count:
        row = column.is_null().to_numpy().argmax() + first
        raise ValueError(f"row {row}: the {role} is missing")
    codes, keys = encode_arrow(column)
    if not is_text:
        return codes, keys.to_numpy()
    keys = keys.to_pylist()
    if blank := [code for code, key in enumerate(keys) if not key.strip()]:
        raise ValueError(f"row {np.isin(codes, blank).argmax() + first}: the {role} is missing")
    return codes, keys


def _times(column, first):
    from pyarrow import types

    if column.null_count:
        raise ValueError(f"row {column.is_null().to_numpy().argmax() + first} has none")
    kind = column.type
    if types.is_temporal(kind) and not (types.is_timestamp(kind) or types.is_date(kind)):
        raise ValueError(f"but {kind}")
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return dates(column.to_pylist())
    times = column.to_numpy()
    if times.dtype.kind not in "iufM":
        raise ValueError(f"but {kind}")
    if times.dtype.kind == "f" and not np.isfinite(times).all():
        raise ValueError("but numbers that are not finite")
    if times.dtype.kind in "iu":
        times = times.astype(np.int64)
    return times
