"""A matrix on disk: what its directory holds, and how that is read."""

import hashlib
import json
import os
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ._disk import Numbers
from ._encoding import strings
from ._memory import amount

FORMAT, VERSION, MANIFEST = "wals matrix", 1, "manifest.json"
SIDES, PARTS = ("rows", "columns"), ("data", "indices", "indptr")
#: Of a column of ids: whatever type NumPy has, or the UTF-8 of texts and where each of them ends.
IDS, TEXTS, ENDS = "ids", "texts", "ends"
#: Stored entries of a block, and bytes that are hashed at once.
ENTRIES, _BYTES = 2**22, 2**24


class StoredMatrix:
    """A sparse matrix on disk, which `wals.WALS` takes in place of one in memory.

    `wals.storage.open` and `wals.storage.write` return it. ``fit``, ``fit_transform``,
    ``transform``, ``score``, ``evaluate`` and ``recommend`` read it where it lies: its pages are in
    memory only as long as the system has no better use for them. It pickles as its path.

    Attributes
    ----------
    path : str
        Its directory.
    shape : tuple of (int, int)
    nnz : int
        Number of stored entries.
    dtype : dtype
        float32 or float64.
    data, indices, indptr : ndarray
        Those of a CSR matrix: read-only maps of files. Columns ascend within a row, and nothing is
        stored twice.
    row_ids, col_ids : ndarray or None
        What rows and columns stand for, if `wals.storage.write_interactions` wrote it.
    checksum : str
        Depends on all that is stored, and on nothing else.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from wals import storage
    >>> from wals.datasets import load_msweb
    >>> with TemporaryDirectory() as folder:
    ...     X = storage.write(load_msweb(), f"{folder}/msweb")
    ...     print(X.shape, X.nnz, X.dtype, X.T.shape, X[:2].nnz)
    ...     print(sum(block.nnz for block in X.blocks()))
    (32711, 294) 98654 float32 (294, 32711) 5
    98654
    """

    ndim = 2

    def __init__(self, path, manifest, arrays, checksum, axis=0):
        self.path, self.checksum = path, checksum + "T" * axis
        self._manifest, self._arrays, self._axis = manifest, arrays, axis
        lengths = manifest["shape"]
        self.shape = tuple(lengths[::-1] if axis else lengths)
        self.data, self.indices, self.indptr = (arrays[f"{SIDES[axis]}.{part}"] for part in PARTS)
        self.nnz, self.dtype = self.data.size, self.data.dtype

    def __repr__(self):
        n, m = self.shape
        return f"<{n} x {m} StoredMatrix of {self.nnz} {self.dtype} in {self.path!r}>"

    def __reduce__(self):
        return _reopen, (self.path, self._axis)

    @property
    def T(self):
        """The transpose. It is on disk as well: nothing is computed or copied."""
        return StoredMatrix(
            self.path,
            self._manifest,
            self._arrays,
            self.checksum.removesuffix("T"),
            axis=1 - self._axis,
        )

    @cached_property
    def row_ids(self):
        """What the rows stand for, read when it is first asked for."""
        return _ids_of(self._arrays, SIDES[self._axis])

    @cached_property
    def col_ids(self):
        """What the columns stand for, read when it is first asked for."""
        return _ids_of(self._arrays, SIDES[1 - self._axis])

    def __getitem__(self, rows):
        """Return rows, given by a slice or by numbers, as a CSR array in memory."""
        if isinstance(rows, slice):  # not to list all rows for a few
            chosen = range(self.shape[0])[rows]
            places = np.arange(chosen.start, chosen.stop, chosen.step)
        else:
            places = np.arange(self.shape[0])[rows]
        if places.ndim != 1:
            raise IndexError("X[rows] takes a slice of the rows, or a list of their numbers.")
        starts, stops = (self.indptr[places + last].astype(np.int64) for last in (0, 1))
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        if places.size and (places == np.arange(places[0], places[0] + places.size)).all():
            entries = slice(starts[0], stops[-1])  # what lies together is read at once
        else:
            entries = np.repeat(starts - indptr[:-1], stops - starts) + np.arange(indptr[-1])
        arrays = np.array(self.data[entries]), np.array(self.indices[entries]), indptr
        return sp.csr_array(arrays, shape=(places.size, self.shape[1]))

    def blocks(self, n_entries=ENTRIES):
        """Yield all rows in order, as CSR arrays in memory.

        Parameters
        ----------
        n_entries : int, default=4_194_304
            Stored entries of a block, at most: but a block has one row at least, and no more rows
            than this.

        Yields
        ------
        block : csr_array of shape (q, m)
        """
        for rows in slices(self.indptr, n_entries):
            yield self[rows]

    def verify(self):
        """Read all files and compare them with the checksums taken when they were written.

        Raises
        ------
        ValueError
            If a file has changed since; it is named.
        """
        for name, about in self._manifest["files"].items():
            with open(os.path.join(self.path, name), "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(_BYTES):
                    digest.update(block)
            if digest.hexdigest() != about["sha256"]:
                raise ValueError(f"{self.path}: {name} is damaged: write the matrix anew")

    def scratch(self, n, dtype):
        """Return n numbers on disk, without a name, which are gone with the array.

        They lie in the directory of the matrix or, where that is read-only, with other temporary
        files.
        """
        try:
            with Numbers(self.path, dtype, n) as numbers:
                return numbers.mapped()
        except OSError as error:
            size = amount(n * np.dtype(dtype).itemsize)
            said = f"{error.strerror}: {size} are needed beside {self.path}"
            raise OSError(error.errno, f"{said}, but for solver='cg' and 'exact'") from None


def slices(indptr, n_entries):
    """Yield slices of rows with so many stored entries and rows at most, but one row at least."""
    first, n = 0, len(indptr) - 1
    while first < n:
        most = indptr.dtype.type(min(int(indptr[first]) + n_entries, int(indptr[-1])))
        last = int(np.searchsorted(indptr, most, side="right")) - 1
        last = min(max(last, first + 1), first + n_entries, n)
        yield slice(first, last)
        first = last


def open_stored(path):
    """Do what `wals.storage.open` says."""
    path = os.path.abspath(os.fspath(path))
    try:
        with open(os.path.join(path, MANIFEST), "rb") as file:
            written = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: there is no stored matrix") from None
    try:
        manifest = json.loads(written)
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: {MANIFEST} is not that of a stored matrix") from None
    if kind != FORMAT or version != VERSION:
        raise ValueError(
            f"{path}: is a {kind!r} of version {version!r}, not a {FORMAT!r} of version {VERSION}"
        )
    try:
        arrays = {
            name: _map(path, name, np.dtype(about["dtype"]), about["length"])
            for name, about in manifest["files"].items()
        }
        _check(arrays, manifest)
    except _Damaged as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{path}: {MANIFEST} is damaged") from None
    return StoredMatrix(path, manifest, arrays, hashlib.sha256(written).hexdigest())


class _Damaged(Exception):
    """What is there does not fit together."""


def _reopen(path, axis):
    stored = open_stored(path)
    return stored.T if axis else stored


def _map(folder, name, dtype, length):
    path = os.path.join(folder, name)
    # A foreign manifest cannot make this read elsewhere.
    if os.path.basename(name) != name or dtype.hasobject or not isinstance(length, int):
        raise TypeError(name)
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        raise _Damaged(f"{name} is missing") from None
    if size != length * dtype.itemsize:
        raise _Damaged(f"{name} has {size} bytes, not {length * dtype.itemsize}")
    if size:
        return np.asarray(np.memmap(path, dtype, "r", shape=(length,)))
    empty = np.empty(0, dtype)
    empty.flags.writeable = False
    return empty


def _check(arrays, manifest):
    """Check all that is no larger than the sides are: what a sweep relies on not to crash."""
    nnz, lengths = manifest["nnz"], manifest["shape"]
    types = {arrays[f"{side}.data"].dtype for side in SIDES}
    if len(types) > 1 or not types <= {np.dtype("<f4"), np.dtype("<f8")}:
        raise _Damaged("its values are no floats")
    for side, n in zip(SIDES, lengths, strict=True):
        data, indices, indptr = (arrays[f"{side}.{part}"] for part in PARTS)
        if not {indices.dtype, indptr.dtype} <= {np.dtype("<i4"), np.dtype("<i8")}:
            raise _Damaged("its indices are no integers")
        if not (len(data) == len(indices) == nnz and len(indptr) == n + 1):
            raise _Damaged("its files do not fit together")
        if indptr[0] != 0 or indptr[-1] != nnz or (np.diff(indptr) < 0).any():
            raise _Damaged(f"{side}.indptr is damaged")


def _ids_of(arrays, side):
    """Return the ids of one side, None if there are none."""
    if (ids := arrays.get(f"{side}.{IDS}")) is not None:
        return ids
    if (ends := arrays.get(f"{side}.{ENDS}")) is None:
        return None
    texts = arrays[f"{side}.{TEXTS}"].tobytes()
    starts = np.concatenate([[0], ends[:-1]])
    return strings([texts[a:b].decode() for a, b in zip(starts, ends, strict=True)])


def ids_as_arrays(ids):
    """Return ids as the arrays that they are written as, by the ends of their names.

    Raises
    ------
    ValueError
        If they are neither texts nor of a type that NumPy has.
    """
    if ids.dtype.kind in "biufM":
        return {IDS: ids}
    keys = ids.tolist()
    if not all(isinstance(key, str) for key in keys):
        other = next(type(key).__name__ for key in keys if not isinstance(key, str))
        raise ValueError(f"ids of type {other} cannot be stored: pass integers or strings")
    encoded = [key.encode() for key in keys]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return {TEXTS: np.frombuffer(b"".join(encoded), np.uint8), ENDS: ends}
