"""Checks of input, in the words of scikit-learn where these say what to do."""

import re
from numbers import Number

import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from ._stored import ENTRIES, StoredMatrix, slices

#: What tells NumPy that an object is an array, or a library that it is a table.
_PROTOCOLS = ("__array__", "__array_interface__", "__dlpack__", "__dataframe__")
#: Formats that arrays of positions and values make up; in the others nothing is stored twice.
_LISTED = ("csr", "csc", "coo", "bsr")
#: Types that duplicates are summed in, of those that are too narrow for it.
_WIDE = {"b": np.int64, "i": np.int64, "u": np.uint64}


def check_matrix(
    X, *, dtype="numeric", estimator=None, reset=True, name="X", stored=False, **options
):
    """Return whatever stands for a matrix as canonical CSR: the one way in.

    Values are converted before duplicates are summed. Masked elements are not stored.

    Parameters
    ----------
    X : {array-like, sparse matrix, data frame} of shape (n, m)
    dtype : "numeric", dtype or list of dtype, default="numeric"
        "numeric" keeps the type of X, but for that of narrow numbers with duplicates, see `as_csr`.
        Of a list, what is none of it becomes the first.
    estimator : estimator, default=None
        Its number and names of columns are checked, or set if `reset`.
    reset : bool, default=True
    name : str, default="X"
    stored : bool, default=False
        Whether X may be a `StoredMatrix`, which is returned as it is.
    **options
        See `sklearn.utils.check_array`.
    """
    if estimator is not None and not reset and not options and _is_checked(X, dtype, estimator):
        return as_csr(X)
    if stored and isinstance(X, StoredMatrix):
        return _check_stored(X, dtype, estimator, reset, name)
    refuse_distributed(X, name)
    X = _converted(as_matrix(X, name), dtype)
    options = {"accept_sparse": True, "dtype": dtype} | options
    try:
        if estimator is None:
            checked = check_array(X, input_name=name, **options)
        else:
            checked = validate_data(estimator, X, reset=reset, **options)
        if checked.dtype.kind == "O":  # of a list
            options["dtype"] = np.float64
            checked = check_array(checked, input_name=name, **options)
    except ValueError as error:
        raise _in_our_words(error, name) from None
    return as_csr(checked)


def _is_checked(X, dtype, estimator):
    """Return whether a matrix passes all checks, most of which take longer than to solve a row."""
    return (
        sp.issparse(X)
        and X.format == "csr"
        and X.dtype == dtype
        and X.ndim == 2
        and X.shape[0] > 0
        and X.shape[1] == estimator.n_features_in_ > 0
        and not hasattr(estimator, "feature_names_in_")
        and bool(np.isfinite(X.data).all())
    )


def _check_stored(X, dtype, estimator, reset, name):
    """Return a stored matrix, of which no other precision can be had."""
    if X.dtype not in (dtype if isinstance(dtype, list) else [dtype]):
        raise ValueError(
            f"{name} is stored as {X.dtype}, but {np.dtype(dtype)} is needed: wals.storage.write("
            f"{name}, path, dtype={np.dtype(dtype).name!r}) converts it."
        )
    if estimator is not None:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    return X


def is_distributed(X):
    """Return whether X is a Dask collection, or a list of such: of delayed or futures.

    Nothing is imported: who has such an object has Dask.
    """
    parts = [X, *X] if isinstance(X, list | tuple) else [X]
    return any(type(part).__module__.startswith(("dask.", "distributed.")) for part in parts)


def refuse_distributed(X, name):
    """Raise an error if X is a Dask collection."""
    if is_distributed(X):
        raise TypeError(f"{name} is a Dask collection, and needed in memory: pass {name}.compute()")


def as_matrix(X, name):
    """Return X, its masked elements set to 0; raise an error if it is no matrix in memory."""
    if sp.issparse(X):
        return X
    if isinstance(X, StoredMatrix):
        raise TypeError(
            f"{name} is on disk, and is needed in memory: pass one of {name}.blocks() after the "
            f"other, or {name}[:]."
        )
    kind, is_array = type(X).__name__, any(hasattr(X, protocol) for protocol in _PROTOCOLS)
    if not is_array and hasattr(X, "X") and hasattr(X, "var"):
        raise TypeError(
            f"{name} is of type {kind}: pass its matrix, {name}.X, or {name}.X[:] where that is "
            "backed by a file."
        )
    if not is_array and len(getattr(X, "shape", ())) == 2 and hasattr(X, "__getitem__"):
        raise TypeError(f"{name} is of type {kind}, which is not in memory: pass {name}[:].")
    is_sequence = hasattr(X, "__len__") and hasattr(X, "__getitem__") and not hasattr(X, "keys")
    has_values = is_array or is_sequence or isinstance(X, Number)  # of which scikit-learn tells
    if isinstance(X, str | bytes) or not has_values:
        raise TypeError(
            f"{name} must be a matrix in memory: an array, a sparse matrix, a data frame, or what "
            f"[:] reads of a file. Got {kind}."
        )
    if isinstance(X, list | tuple) and any(map(sp.issparse, X)):
        raise ValueError(
            f"{name} is a {kind} of sparse matrices: pass scipy.sparse.vstack({name})."
        )
    if isinstance(X, list | tuple) and any(isinstance(row, np.ma.MaskedArray) for row in X):
        raise TypeError(f"{name} is a {kind} of masked arrays: pass their numpy.ma.stack.")
    if getattr(getattr(X, "dtype", None), "names", None):
        raise ValueError(f"{name} has the fields {X.dtype.names}: pass a matrix of numbers.")
    types = getattr(X, "dtypes", getattr(getattr(X, "schema", None), "types", None))
    types = types if hasattr(types, "__iter__") else [getattr(X, "dtype", None)]
    if re.search("date|time|duration", " ".join(set(map(str, types))).lower()):
        raise ValueError(f"{name} holds dates or times: pass a matrix of numbers.")
    return X.filled(0) if isinstance(X, np.ma.MaskedArray) else X


def _converted(X, dtype):
    """Return a sparse matrix in a precision and format of which the rest is an easy check."""
    if not (sp.issparse(X) and X.ndim == 2):
        return X
    if X.format not in _LISTED:
        X = X.tocsr()
    if dtype != "numeric" and X.dtype.kind in "biuf":
        dtypes = dtype if isinstance(dtype, list) else [dtype]
        X = X if X.dtype in dtypes else X.astype(dtypes[0])
    if X.format in ("csc", "bsr"):  # to convert them, SciPy trusts the indices
        X.check_format(full_check=True)
    return X


def _in_our_words(error, name):
    if "contains NaN" in str(error) or "fill value must be 0" in str(error):
        return ValueError(
            f"Input {name} contains NaN. Leave out what is not known: pass a sparse matrix that "
            "stores only what is, or replace NaN by 0, which a dense array does not store, as by "
            f"numpy.nan_to_num({name}) or {name}.fillna(0)."
        )
    return error


def as_csr(X):
    """Return validated X as canonical CSR, with indices as small as they may be.

    It is a new object, on the same arrays if they are so. The kernels, which compile for each type
    of index, thus do so once.

    The type of X is kept, but for two that sparse matrices cannot have or be summed in: float16
    becomes float64, and where integers or bools have duplicates, their sums are 64-bit integers.
    """
    if X.dtype == np.float16:
        X = X.astype(np.float64)
    nnz, dtype = X.nnz if sp.issparse(X) else None, X.dtype
    if nnz and dtype.kind in _WIDE and not getattr(X, "has_canonical_format", True):
        X = X.astype(_WIDE[dtype.kind], copy=False)
    X = sp.csr_array(X)
    X.check_format(full_check=True)
    index_type = sp.get_index_dtype(maxval=max(*X.shape, X.nnz))
    X.indices = X.indices.astype(index_type, copy=False)
    X.indptr = X.indptr.astype(index_type, copy=False)
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    if X.nnz == nnz:
        return X.astype(dtype, copy=False)
    if nnz is not None and X.dtype.kind == "f" and not np.isfinite(X.data).all():
        raise ValueError(f"Duplicates do not add up to a finite number in {X.dtype}.")
    return X


def check_numbers(values, name, **options):
    """Return values as an array, for each of which there has to be a number."""
    refuse_masked(values, name)
    return check_array(as_matrix(values, name), input_name=name, **options)


def refuse_masked(values, name):
    parts = [values, *values] if isinstance(values, list | tuple) else [values]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise TypeError(
            f"{name} has masked elements, but each of its numbers is needed: fill them, as by "
            f"{name}.filled(0)."
        )


def check_axis(axis):
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (rows) or 1 (columns). Got {axis!r} instead.")


def check_weights(weights, n, name):
    """Return weights as a float64 array of shape (n,)."""
    if callable(weights):
        raise ValueError(f"{name} must be numbers, not a function: call it on the counts first.")
    if weights is None:
        return np.ones(n)
    refuse_masked(weights, name)
    if np.ndim(weights) == 0:
        weights = np.full(n, weights)
    weights = check_numbers(weights, name, ensure_2d=False, dtype=np.float64, copy=True)
    if weights.shape != (n,):
        raise ValueError(f"{name} has shape {weights.shape}, but {(n,)} is needed.")
    if weights.min(initial=0) < 0:
        i = int(np.argmin(weights))
        raise ValueError(f"Negative weight in {name}: {weights[i]} at position {i}.")
    return weights


def check_entry_weights(weights, X, first=0):
    """Return the weights of the stored entries of X, in their order, or stored as X is.

    Errors call the first row `first`.
    """
    if isinstance(X, StoredMatrix) or isinstance(weights, StoredMatrix):
        return _check_stored_weights(weights, X)
    weights = _converted(weights, X.dtype)
    weights = check_numbers(weights, "entry_weights", accept_sparse=True, dtype=X.dtype)
    if weights.shape != X.shape:
        raise ValueError(f"entry_weights has shape {weights.shape}, but X has {X.shape}.")
    if sp.issparse(weights):
        weights = as_csr(weights)
        same = np.array_equal(weights.indptr, X.indptr)
        if not (same and np.array_equal(weights.indices, X.indices)):
            raise ValueError(
                "entry_weights must store exactly the positions that X stores, explicit zeros too."
            )
        weights = weights.data
    else:
        weights = weights[np.repeat(np.arange(X.shape[0]), np.diff(X.indptr)), X.indices]
    if weights.min(initial=0) < 0:
        t = int(np.argmin(weights))
        i = int(np.searchsorted(X.indptr, t, side="right")) - 1 + first
        raise ValueError(
            f"Negative weight in entry_weights: {weights[t]} at row {i}, column {X.indices[t]}."
        )
    return weights


def _check_stored_weights(weights, X):
    if not (isinstance(X, StoredMatrix) and isinstance(weights, StoredMatrix)):
        raise ValueError(
            "Of X and entry_weights, both must be stored or none: wals.storage.write stores."
        )
    if (weights.shape, weights.dtype) != (X.shape, X.dtype):
        raise ValueError(
            f"entry_weights is {weights.dtype} of shape {weights.shape}, but X is {X.dtype} of "
            f"shape {X.shape}."
        )
    for rows in slices(X.indptr, ENTRIES):
        check_entry_weights(weights[rows], X[rows], first=rows.start)
    return weights


def check_indices(indices, q, known, axis):
    """Return the positions in the model of the q items of partial_fit."""
    if indices is None:
        if axis == 0:
            return np.arange(known, known + q)
        if q == known:
            return np.arange(q)
        raise ValueError(
            f"X has {q} columns, but the model has {known}: pass indices to say which they are."
        )
    indices = np.asarray(indices)
    if indices.shape != (q,) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"indices must be {q} integers, one for each of the given {('rows', 'columns')[axis]}."
        )
    indices = indices.astype(np.intp)
    if indices.min(initial=0) < 0 or len(np.unique(indices)) < q:
        raise ValueError("indices must be distinct and not negative.")
    return indices
