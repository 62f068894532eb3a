"""Checks of input, in the words of scikit-learn."""

import numpy as np
import scipy.sparse as sp
from sklearn.utils import check_array


def as_csr(X):
    """Return validated X as canonical CSR, with indices as small as they may be.

    It is a new object, on the same arrays if they are so. The kernels, which compile for each type
    of index, thus do so once.
    """
    X = sp.csr_array(X)
    X.check_format(full_check=True)
    index_type = sp.get_index_dtype(maxval=max(*X.shape, X.nnz))
    X.indices = X.indices.astype(index_type, copy=False)
    X.indptr = X.indptr.astype(index_type, copy=False)
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    return X


def check_axis(axis):
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (rows) or 1 (columns). Got {axis!r} instead.")


def check_weights(weights, n, name):
    """Return weights as a float64 array of shape (n,)."""
    if callable(weights):
        raise ValueError(f"{name} must be numbers, not a function: call it on the counts first.")
    if weights is None or np.ndim(weights) == 0:
        weights = np.full(n, 1.0 if weights is None else weights)
    weights = check_array(weights, ensure_2d=False, dtype=np.float64, input_name=name, copy=True)
    if weights.shape != (n,):
        raise ValueError(f"{name} has shape {weights.shape}, but {(n,)} is needed.")
    if weights.min(initial=0) < 0:
        i = int(np.argmin(weights))
        raise ValueError(f"Negative weight in {name}: {weights[i]} at position {i}.")
    return weights


def check_entry_weights(weights, X):
    """Return the weights of the stored entries of X, in their order."""
    weights = check_array(weights, accept_sparse="csr", dtype=X.dtype, input_name="entry_weights")
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
        i = int(np.searchsorted(X.indptr, t, side="right")) - 1
        raise ValueError(
            f"Negative weight in entry_weights: {weights[t]} at row {i}, column {X.indices[t]}."
        )
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
