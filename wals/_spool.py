"""Interactions on their way to a matrix on disk: numbered, and brought together row by row.

They are written to a file as they come, and from there to another where those of some rows lie
together; the ids alone are in memory.
"""

import contextlib
import os
import warnings
from datetime import UTC

import numpy as np

from ._columns import dates
from ._disk import Numbers
from ._encoding import AGGREGATES, encode, gather, sort_ids
from ._stored import ids_as_arrays, slices
from ._tables import Table, numbers
from ._text import Table as Part
from ._text import integers_if_all
from .interactions import check_texts, read_parts

#: Interactions, and rows, that are gathered at once.
_BUCKET = 2**21


class Spool:
    """Interactions on disk; parameters as of `wals.storage.write_interactions`.

    Attributes
    ----------
    ids : list of ndarray
        Those of rows and of columns.
    shape : tuple of (int, int)
    """

    def __init__(self, folder, tables, columns, aggregate, options):
        self.folder, self.aggregate, self.files = folder, aggregate, contextlib.ExitStack()
        self.path, self.is_text = None, False
        if isinstance(tables, str | os.PathLike):
            self.path = os.fspath(tables)
            self.parts, self.is_text = read_parts(self.path, columns | options, aggregate)
        else:
            _check_tables(tables, columns, aggregate, options)
            self.parts = (_as_part(table, columns, aggregate) for table in tables)

    def __enter__(self):
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.files.close)
            self._read()
            self.ids, places = zip(*map(self._sorted, self.numberings), strict=True)
            self.shape = tuple(map(len, self.ids))
            self._bring_together(places)
            on_error.pop_all()
        return self

    def __exit__(self, *_):
        self.files.close()

    def blocks(self):
        """Yield the rows of the matrix, block by block."""
        for rows in slices(self.indptr, _BUCKET):
            start, stop = (int(self.indptr[row]) for row in (rows.start, rows.stop))
            columns = {name: file.read(start, stop) for name, file in self.columns.items()}
            shape = (rows.stop - rows.start, self.shape[1])
            coords = columns["rows"] - np.int32(rows.start), columns["cols"]
            values = columns.get("values", np.ones(stop - start))
            yield gather(values, coords, columns.get("times"), shape, self.aggregate)[0]

    def _start(self):
        self.files.close()
        self.columns, self.counts, self.notes = {}, np.zeros(0, np.int64), {}
        self.numberings = _Numbering(), _Numbering()

    def _read(self):
        """Write all interactions to disk as they come."""
        self._start()
        for part in self.parts:
            if part is None:
                self._start()
                continue
            self.notes |= dict.fromkeys(part.notes)
            rows, cols = (
                ids.number(keys)[numbers]
                for ids, keys, numbers in zip(
                    self.numberings,
                    (part.row_keys, part.col_keys),
                    (part.rows, part.cols),
                    strict=True,
                )
            )
            self._append("rows", rows)
            self._append("cols", cols)
            if part.values is not None and self.aggregate != "count":
                self._append("values", part.values.astype(np.float64, copy=False))
            if self.aggregate == "last":
                self._append("times", part.times)
            self.counts = np.pad(self.counts, (0, len(self.numberings[0]) - self.counts.size))
            np.add.at(self.counts, rows, 1)
        if not self.columns:
            raise ValueError("There are no interactions.")
        for note in self.notes:
            warnings.warn(f"{self.path}: {note}", UserWarning, stacklevel=4)

    def _append(self, name, column):
        if name not in self.columns:
            self.columns[name] = self._file(column.dtype)
        file = self.columns[name]
        if column.dtype != file.dtype:
            raise ValueError(f"{name} change their type from {file.dtype} to {column.dtype}.")
        file.write(column)

    def _file(self, dtype, length=0):
        return self.files.enter_context(Numbers(self.folder, dtype, length))

    def _sorted(self, numbering):
        """Return the ids of a side in order, and the place of each number among them."""
        keys = numbering.keys()
        if self.is_text and isinstance(keys, list):  # else integers, of a text in one part
            check_texts(keys)
            keys = integers_if_all(keys)
        return sort_ids(keys)

    def _bring_together(self, places):
        """Bring the interactions of each block together, in the order that they came in."""
        counts = np.empty_like(self.counts)
        counts[places[0]] = self.counts
        self.indptr = np.concatenate([[0], np.cumsum(counts)])
        bounds = np.array([0, *(rows.stop for rows in slices(self.indptr, _BUCKET))])
        free, n = self.indptr[bounds[:-1]].copy(), int(self.indptr[-1])
        spooled, together = self.files.pop_all(), {}
        with spooled:
            for name, file in self.columns.items():
                together[name] = self._file(file.dtype, n)
            for start in range(0, n, _BUCKET):
                stop = min(start + _BUCKET, n)
                columns = {name: file.read(start, stop) for name, file in self.columns.items()}
                for name, side in zip(("rows", "cols"), places, strict=True):
                    columns[name] = side[columns[name]]
                bucket = np.searchsorted(bounds, columns["rows"], side="right") - 1
                # Sixteen bits are sorted in linear time.
                bucket = bucket.astype(np.min_scalar_type(bounds.size))
                order = np.argsort(bucket, kind="stable")
                cuts = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=free.size))])
                for name, column in columns.items():
                    column = column[order]
                    for b in np.flatnonzero(np.diff(cuts)):
                        together[name].put(int(free[b]), column[cuts[b] : cuts[b + 1]])
                free += np.diff(cuts)
        self.columns = together


class _Numbering:
    """Numbers ids in order of appearance.

    As long as all are integers, they are kept in order: arrays take less room than a dictionary of
    them, and less time.
    """

    def __init__(self):
        self.sorted = self.numbers = None  # integers, and the number of each
        self.places = {}

    def __len__(self):
        return len(self.places) if self.sorted is None else self.sorted.size

    def keys(self):
        """Return all ids by their numbers, and forget them."""
        if self.sorted is None:
            keys, self.places = list(self.places), {}
            return keys
        keys = np.empty_like(self.sorted)
        keys[self.numbers] = self.sorted
        self.sorted = self.numbers = None
        return keys

    def number(self, keys):
        """Return the number of each of some ids, none of which is there twice."""
        is_integer = isinstance(keys, np.ndarray) and keys.dtype.kind in "iu"
        if is_integer and not len(self):
            self.sorted, self.numbers = np.empty(0, keys.dtype), np.empty(0, np.int32)
        if self.sorted is not None and is_integer and keys.dtype == self.sorted.dtype:
            return self._number_integers(keys)
        if self.sorted is not None:
            self.places = {key: number for number, key in enumerate(self.keys().tolist())}
        keys = keys if isinstance(keys, list) else keys.tolist()
        found = list(map(self.places.get, keys))
        for place, number in enumerate(found):
            if number is None:
                found[place] = self.places.setdefault(keys[place], len(self.places))
        return np.array(found, np.int32)

    def _number_integers(self, keys):
        order = np.argsort(keys)
        keys, numbers = keys[order], np.empty(keys.size, np.int32)
        at = np.searchsorted(self.sorted, keys)
        new = np.ones(keys.size, bool)
        inside = at < self.sorted.size
        new[inside] = self.sorted[at[inside]] != keys[inside]
        added = np.arange(len(self), len(self) + np.count_nonzero(new), dtype=np.int32)
        found = np.empty(keys.size, np.int32)
        found[new], found[~new] = added, self.numbers[at[~new]]
        self.sorted = np.insert(self.sorted, at[new], keys[new])
        self.numbers = np.insert(self.numbers, at[new], added)
        numbers[order] = found
        return numbers


def _check_tables(tables, columns, aggregate, options):
    if options:
        raise ValueError(f"{', '.join(options)}: only a file has such options.")
    if aggregate not in AGGREGATES:
        allowed = ", ".join(map(repr, AGGREGATES))
        raise ValueError(f"aggregate must be one of {allowed}; got {aggregate!r}.")
    if aggregate == "last" and columns["time"] is None:
        raise ValueError("aggregate='last' needs a column of times: say time=")
    if not hasattr(tables, "__iter__") or hasattr(tables, "columns") or hasattr(tables, "dtype"):
        raise ValueError(
            f"tables must be a path or an iterable of tables, got {type(tables).__name__}: pass "
            "[table] for a single one."
        )


def _as_part(table, columns, aggregate):
    """Return a table with numbered ids."""
    table = Table(table)
    user, item = (
        default if columns[role] is None else columns[role]
        for default, role in enumerate(("user", "item"))
    )
    if table.place("user", user) == table.place("item", item):
        raise ValueError(f"user={user!r} and item={item!r} are the same column.")
    (row_keys, rows), (col_keys, cols) = (
        encode(table.column(role, which), f"column {role}={which!r}")
        for role, which in (("user", user), ("item", item))
    )
    for keys in (row_keys[:1], col_keys[:1]):
        ids_as_arrays(keys)  # before all is read
    values = times = None
    if columns["value"] is not None and aggregate != "count":
        name = f"column value={columns['value']!r}"
        values = numbers(table.column("value", columns["value"]), name, len(table))
    if aggregate == "last":
        name = f"column time={columns['time']!r}"
        times = _times(*encode(table.column("time", columns["time"]), name), name)
    return Part(rows, row_keys, cols, col_keys, values, times, [])


def _times(keys, codes, name):
    """Return times as numbers that can be compared between tables."""
    if keys.dtype.kind not in "iufM":
        try:
            keys = keys.tolist()
            if all(isinstance(key, str) for key in keys):
                keys = dates(keys)
            else:
                keys = [
                    key.astimezone(UTC).replace(tzinfo=None)
                    if getattr(key, "tzinfo", None)
                    else key
                    for key in keys
                ]
                keys = np.array(keys, "datetime64[us]")
        except (ValueError, TypeError):
            raise ValueError(f"{name} holds neither numbers nor dates.") from None
    return keys[codes]
