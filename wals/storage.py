"""Matrices larger than memory: written to disk once, in both orientations, and trained from there.

A stored matrix is a directory of plain arrays, those of the CSR format of the matrix and of its
transpose, and a manifest. Nothing in it is ever executed.
"""

import contextlib
import json
import os
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from ._core.parallel import effective_n_threads
from ._core.passes import transpose
from ._disk import Numbers, Output, new_directory, write_text
from ._spool import Spool
from ._stored import (
    ENTRIES,
    FORMAT,
    MANIFEST,
    PARTS,
    SIDES,
    VERSION,
    StoredMatrix,
    ids_as_arrays,
    open_stored,
    slices,
)
from ._validation import check_matrix

__all__ = ["StoredMatrix", "open", "write", "write_interactions"]

_DTYPES = (np.dtype(np.float64), np.dtype(np.float32))
#: Stored entries, and columns, of a bucket of the transpose, which is put in order in memory.
_BUCKET = 2**23


def open(path):
    """Open a stored matrix.

    Parameters
    ----------
    path : str or path-like
        Its directory.

    Returns
    -------
    X : StoredMatrix

    Raises
    ------
    ValueError
        If there is none, or it is damaged: lengths and row boundaries are checked. Of all that is
        stored, that would take as long as to read it: it is what `StoredMatrix.verify` does, after
        which no fit can crash on what a disk has spoilt.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from wals import WALS, storage
    >>> from wals.datasets import load_msweb
    >>> with TemporaryDirectory() as folder:
    ...     _ = storage.write(load_msweb(), f"{folder}/msweb")
    ...     X = storage.open(f"{folder}/msweb")
    ...     X.verify()
    ...     model = WALS(n_components=16, max_iter=5, random_state=0).fit(X)
    >>> model.row_factors_.shape
    (32711, 16)
    """
    return open_stored(path)


def write(blocks, path, *, shape=None, dtype=None):
    """Write a matrix to disk, in both orientations, in bounded memory.

    Next to what is of the size of a block and of the numbers of rows and columns, it takes a few
    hundred megabytes. On disk, meanwhile, it takes a quarter more than the matrix that results: 20
    bytes for each stored entry of float32 instead of 16.

    Parameters
    ----------
    blocks : iterable of {sparse matrix, array-like} of shape (q, m), or one such matrix
        The rows, block by block. The iterable is read once. Duplicates are summed, explicit zeros
        kept.
    path : str or path-like
        The directory to make. It must not exist yet, and does not until all is written: whatever
        fails before, up to a power cut, leaves nothing that opens. What a killed process has left
        beside it is removed by the next one that writes to the same path.
    shape : tuple of (int, int), default=None
        What the blocks are expected to add up to. None: whatever they do.
    dtype : {float32, float64}, default=None
        Type of the values. None: that of the first block, which all others must have; float64 if
        that is no type of floats.

    Returns
    -------
    X : StoredMatrix

    Raises
    ------
    ValueError
        If path exists, or a block is no matrix, is not finite or does not fit to the others. The
        number of the block and, where it applies, the row are in the message.
    OSError
        If it cannot be written, as on a full disk.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import scipy.sparse as sp
    >>> from wals import storage
    >>> blocks = (sp.random_array((1000, 50), density=0.1, rng=seed) for seed in range(3))
    >>> with TemporaryDirectory() as folder:
    ...     X = storage.write(blocks, f"{folder}/matrix")
    ...     print(X.shape, X.nnz, X.dtype)
    (3000, 50) 15000 float64
    """
    dtype = _check_dtype(dtype)
    if shape is not None and len(shape := tuple(shape)) != 2:
        raise ValueError(f"shape must be the numbers of rows and columns, got {shape!r}.")
    if isinstance(blocks, StoredMatrix):
        blocks = blocks.blocks()
    elif len(getattr(blocks, "shape", ())) == 2:
        blocks = [blocks]
    if isinstance(blocks, str | bytes) or not hasattr(blocks, "__iter__"):
        raise ValueError(f"blocks must be an iterable of matrices, got {type(blocks).__name__}.")
    with new_directory(path) as folder:
        _write_matrix(folder, blocks, shape, dtype)
    return open(path)


def write_interactions(
    tables,
    path,
    *,
    user=None,
    item=None,
    value=None,
    time=None,
    aggregate="sum",
    **options,
):
    r"""Write interactions to disk as a matrix, in bounded memory, with what its sides stand for.

    The matrix is that of `wals.interactions.read_interactions`, and ids are in the same order. They
    are held in memory, each once; interactions are not, and those of a user may be anywhere.

    Parameters
    ----------
    tables : str, path-like or iterable of tables
        A file, or folder of Parquet files, that `wals.interactions.read_interactions` reads; or
        tables of any library, as `wals.Recommender` takes them, one after the other. The iterable
        is read once.
    path : str or path-like
        See `write`.
    user, item, value, time : str or int, default=None
        Columns by name or position. None: of a file, see `wals.interactions.read_interactions`; of
        tables the first is the user, the second the item, every interaction counts 1.
    aggregate : {"sum", "mean", "max", "last", "count"}, default="sum"
        What becomes of several interactions of the same user and item. "last" needs times.
    **options
        Of a file: header, values, delimiter, decimal; see `wals.interactions.read_interactions`.

    Returns
    -------
    X : StoredMatrix
        With `row_ids` and `col_ids`; float32.

    Raises
    ------
    ValueError
        If an argument is none of these, or an interaction is incomplete.
    OSError
        If it cannot be written, as on a full disk.

    Notes
    -----
    A text that is irregular, in its quotes say, is held in memory, and so are all interactions of
    one user at a time. On disk, interactions take up to 48 bytes each before the matrix is written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from wals import storage
    >>> days = [[("bea", 12), ("ada", 7)], [("bea", 7), ("bea", 12)]]
    >>> with TemporaryDirectory() as folder:
    ...     X = storage.write_interactions(days, f"{folder}/lent")
    ...     print(X[:].toarray(), X.row_ids, X.col_ids)
    [[1. 0.]
     [1. 2.]] ['ada' 'bea'] [ 7 12]
    """
    columns = {"user": user, "item": item, "value": value, "time": time}
    with new_directory(path) as folder, Spool(folder, tables, columns, aggregate, options) as spool:
        ids = [ids_as_arrays(side) for side in spool.ids]
        _write_matrix(folder, spool.blocks(), spool.shape, _DTYPES[1], ids)
    return open(path)


# ---------------------------------------------------------------------------------------- a matrix


def _check_dtype(dtype):
    if dtype is None:
        return None
    if np.dtype(dtype) not in _DTYPES:
        raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}.")
    return np.dtype(dtype)


def _write_matrix(folder, blocks, shape, dtype, ids=({}, {})):
    """Write all files of a matrix to a folder."""
    files = {}
    indptr, column_counts, dtype = _write_rows(folder, blocks, shape, dtype, files)
    lengths = [indptr.size - 1, column_counts.size]
    column_indptr = np.concatenate([[0], np.cumsum(column_counts)])
    _write_columns(folder, indptr, column_indptr, dtype, files)
    # As in memory, the kernels have one type of index for all but the largest matrices.
    largest = max(*lengths, int(indptr[-1]))
    for side, starts, side_ids in zip(SIDES, (indptr, column_indptr), ids, strict=True):
        for part, array in {PARTS[2]: starts.astype(_index_type(largest)), **side_ids}.items():
            with Output(folder, f"{side}.{part}", array.dtype, files) as output:
                output.write(array)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "shape": lengths,
        "nnz": int(indptr[-1]),
        "files": files,
    }
    write_text(folder, MANIFEST, json.dumps(manifest, indent=1))


def _index_type(largest):
    return np.dtype("<i4" if largest <= np.iinfo(np.int32).max else "<i8")


def _write_rows(folder, blocks, shape, dtype, files):
    """Write data and indices of the rows; return their indptr, counts of columns, and the type."""
    n, counts, column_counts = 0, [], None
    with contextlib.ExitStack() as stack:
        for number, block in enumerate(blocks):
            name = f"block {number}"
            X = _as_block(block, name, dtype)
            if column_counts is None:
                m, column_counts = X.shape[1], np.zeros(X.shape[1], np.int64)
                data, indices = (
                    stack.enter_context(Output(folder, f"{SIDES[0]}.{part}", of_type, files))
                    for part, of_type in zip(PARTS, (X.dtype, _index_type(m)), strict=False)
                )
            if X.shape[1] != (m if shape is None else shape[1]):
                needed = m if shape is None else shape[1]
                raise ValueError(f"{name} has {X.shape[1]} columns, but {needed} are needed.")
            if X.dtype != data.dtype:
                raise ValueError(
                    f"{name} is {X.dtype}, but those before are {data.dtype}: say dtype="
                )
            for start in range(0, X.nnz, ENTRIES):
                part = slice(start, start + ENTRIES)
                if (bad := np.flatnonzero(~np.isfinite(X.data[part]))).size:
                    row = int(np.searchsorted(X.indptr, start + bad[0], side="right")) - 1
                    raise ValueError(
                        f"{name} holds {X.data[start + bad[0]]} in its row {row}, row {n + row} of "
                        "the matrix. Leave out what is not known."
                    )
                data.write(X.data[part])
                indices.write(X.indices[part])
                np.add.at(column_counts, X.indices[part], 1)
            counts.append(np.diff(X.indptr))
            n += X.shape[0]
        if not n or not m:
            raise ValueError("The blocks hold no rows, or no columns.")
        if shape is not None and shape[0] != n:
            raise ValueError(f"The blocks have {n} rows, but shape has {shape[0]}.")
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
    return indptr, column_counts, data.dtype


def _as_block(block, name, dtype):
    """Return a block as canonical CSR of floats, which need not be finite."""
    options = {"ensure_min_samples": 0, "ensure_min_features": 0, "ensure_all_finite": False}
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is found by our caller
            return check_matrix(block, dtype=dtype or list(_DTYPES), name=name, **options)
    except (ValueError, TypeError) as error:
        said = str(error)
        raise type(error)(said if name in said else f"{name}: {said}") from None


def _write_columns(folder, indptr, column_indptr, dtype, files):
    """Write data and indices of the columns, given those of the rows, in bounded memory.

    The entries are read once more, in order of the rows, and put where those of their bucket of
    columns are to be, with their columns beside them. Then one bucket after the other is put in
    order of the columns.
    """
    n, m, nnz = indptr.size - 1, column_indptr.size - 1, int(indptr[-1])
    bounds = [0, *(part.stop for part in slices(column_indptr, _BUCKET))]
    names = [f"{SIDES[1]}.{part}" for part in PARTS[:2]]
    types = (dtype, _index_type(n), _index_type(m))
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(Output(folder, name, of_type, files, nnz))
            for name, of_type in zip(names, types, strict=False)
        ]
        beside = stack.enter_context(Numbers(folder, types[2], nnz))
        _scatter(_rows_of(folder, indptr, m, files), column_indptr, bounds, [*outputs, beside])
        for first, last in pairwise(bounds):
            start, stop = (int(column_indptr[bound]) for bound in (first, last))
            data, rows = (output.read(start, stop) for output in outputs)
            if last - first > 1:
                columns = beside.read(start, stop)
                bucket = sp.coo_array((data, (columns, rows)), shape=(last - first, n)).tocsr()
                data, rows = bucket.data, bucket.indices
            for output, numbers in zip(outputs, (data, rows), strict=True):
                output.write(numbers)


def _rows_of(folder, indptr, m, files):
    """Yield the rows that were written, in order, with the number of the first one."""
    arrays = [
        np.asarray(np.memmap(os.path.join(folder, name), files[name]["dtype"], "r"))
        if indptr[-1]
        else np.empty(0, files[name]["dtype"])
        for name in (f"{SIDES[0]}.{part}" for part in PARTS[:2])
    ]
    # The counts of the columns should take no longer than the entries.
    for rows in slices(indptr, max(ENTRIES, m)):
        entries = slice(indptr[rows.start], indptr[rows.stop])
        starts = indptr[rows.start : rows.stop + 1] - entries.start
        parts = (*(array[entries] for array in arrays), starts)
        yield rows.start, sp.csr_array(parts, shape=(rows.stop - rows.start, m))


def _scatter(blocks, column_indptr, bounds, outputs):
    """Put data, rows and columns of all blocks where their bucket is, in order of the rows."""
    bounds, n_threads = np.asarray(bounds), effective_n_threads(None)
    places = column_indptr[bounds[:-1]].copy()
    for first_row, X in blocks:
        columns = transpose(X, n_threads=n_threads)
        counts = np.diff(columns.indptr)
        rows = columns.indices.astype(outputs[1].dtype) + outputs[1].dtype.type(first_row)
        within = np.arange(counts.size, dtype=outputs[2].dtype)
        within -= np.repeat(bounds[:-1], np.diff(bounds)).astype(within.dtype)
        within = np.repeat(within, counts)
        cuts = columns.indptr[bounds]
        for bucket in np.flatnonzero(np.diff(cuts)):
            part = slice(cuts[bucket], cuts[bucket + 1])
            for output, numbers in zip(outputs, (columns.data, rows, within), strict=True):
                output.put(int(places[bucket]), numbers[part])
            places[bucket] += part.stop - part.start
