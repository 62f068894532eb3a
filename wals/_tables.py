"""Read the columns of whatever is a table, and answer in the same library."""

import narwhals.stable.v2 as nw
import numpy as np
import scipy.sparse as sp
from narwhals.exceptions import DuplicateError

from ._encoding import plain
from ._validation import is_distributed, refuse_masked

#: Columns of answers next to those of users and items.
ANSWERED = ("score", "rank", "similar", "contribution")


class Table:
    """The columns of whatever is a table, one of a row at least, unless it `may_be_empty`.

    Attributes
    ----------
    columns : list of narwhals Series, ndarray or list
    names : list or None
    library : str or None
        What narwhals calls the library of a data frame.
    """

    def __init__(self, X, *, may_be_empty=False):
        refuse_masked(X, "X")
        self.names = self.library = None
        if sp.issparse(X):
            raise ValueError("X is a sparse matrix, not a table of interactions: pass it to WALS.")
        if is_distributed(X):
            raise ValueError("X is a Dask collection, which fit alone takes: pass X.compute().")
        if isinstance(X, np.ndarray) and X.dtype.names:
            self.names = list(X.dtype.names)
            self.columns = [X[name] for name in self.names]
        elif isinstance(X, np.ndarray):
            if X.ndim != 2:
                raise ValueError(
                    f"Expected 2D array, a row for each interaction, got {X.ndim}D array instead. "
                    "Reshape your data."
                )
            self.columns = list(X.T)
        elif isinstance(X, list | tuple):
            if not all(isinstance(row, list | tuple | np.ndarray) for row in X):
                raise ValueError("X is a list, but not of rows: a tuple for each interaction.")
            if len({len(row) for row in X}) > 1:
                raise ValueError("X has rows of different lengths.")
            self.columns = [list(column) for column in zip(*X, strict=True)]
        else:
            try:
                frame = nw.from_native(X, pass_through=True)
            except DuplicateError as error:
                names = ", ".join(map(repr, getattr(X, "column_names", X.columns)))
                raise ValueError(f"X has columns of the same name: {names}.") from error
            if isinstance(frame, nw.LazyFrame):
                frame = frame.collect()
            if not isinstance(frame, nw.DataFrame) and hasattr(X, "__array__"):
                self.__init__(np.asarray(X), may_be_empty=may_be_empty)
                return
            if not isinstance(frame, nw.DataFrame):
                raise ValueError(
                    "X must be a table of interactions: a data frame, an array of two dimensions "
                    f"or a list of tuples; got {type(X).__name__}."
                )
            self.names, self.library = list(frame.columns), frame.implementation.value
            self.columns = [frame[:, place] for place in range(len(self.names))]
        if self.columns and len(self) == 0 and not may_be_empty:
            raise ValueError("X has no interactions: found 0 sample(s), and 1 is needed.")

    def __len__(self):
        return len(self.columns[0]) if self.columns else 0

    def place(self, role, which):
        """Return the position of a column that is given by name or position."""
        if not isinstance(which, str):
            if which < len(self.columns):
                return which
            width = len(self.columns)
            raise ValueError(
                f"{role}={which} is a position from 0, but X has {width} feature(s) (shape="
                f"({len(self)}, {width})) while a minimum of {which + 1} is required."
            )
        if self.names is None:
            raise ValueError(f"{role}={which!r}: the columns of X have no names: give a position.")
        if which in self.names:
            return self.names.index(which)
        raise ValueError(f"{role}={which!r}: X has the columns {', '.join(map(repr, self.names))}.")

    def column(self, role, which):
        """Return a column."""
        return self.columns[self.place(role, which)]


def numbers(column, name, n):
    """Return values as float64 that single precision can hold."""
    refuse_masked(column, name)
    if isinstance(column, nw.Series):
        column = column.to_numpy() if not column.is_null().any() else column.to_list()
    values = np.asarray(column)
    try:
        if values.dtype.kind not in "biufOUS":
            raise TypeError(f"of type {values.dtype}")
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers: {error}") from None
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}, but {(n,)} is needed.")
    if (bad := np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))).size:
        kind = "NaN" if np.isnan(values[bad[0]]) else f"{values[bad[0]]}, not a finite float32,"
        raise ValueError(f"{name} holds {kind} in row {bad[0]} (counted from 0).")
    return values


def as_list(ids, name):
    """Return ids that are asked for as a list of Python objects."""
    if is_distributed(ids):
        raise ValueError(f"{name} is a Dask collection: pass {name}.compute().")
    if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
        raise ValueError(f"{name} must be a sequence of ids, got {ids!r}.")
    ids = nw.from_native(ids, series_only=True, pass_through=True)
    ids = [plain(key) for key in (ids.to_list() if isinstance(ids, nw.Series) else ids)]
    try:
        hash(tuple(ids))
    except TypeError as error:
        raise ValueError(f"{name} holds ids that cannot be hashed: {error}") from None
    return ids


def names_of_ids(names):
    """Return what answers call the ids of users and items, given the names of their columns."""
    free = len(set(names)) == 2 and all(
        isinstance(name, str) and name and name not in ANSWERED for name in names
    )
    return tuple(names) if free else ("user", "item")


def make_table(columns, library):
    """Return columns as a data frame of a library, or without one as a record array."""
    if library is None:
        return np.rec.fromarrays(list(columns.values()), names=list(columns))
    columns = {
        name: values.tolist() if values.dtype.kind in "OU" else values
        for name, values in columns.items()
    }
    return nw.from_dict(columns, backend=library).to_native()
