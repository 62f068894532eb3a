"""Mean and biases of explicit values; the formulas are in the Notes of `wals.Recommender`."""

import numpy as np
import scipy.sparse as sp

#: Pseudo-counts that draw the bias of a user, and of an item, to 0.
USER_DAMPING, ITEM_DAMPING = 5.0, 4.0


def fit_biases(X, weights):
    """Return the mean, the biases of the rows, and those of the columns."""
    n, m = X.shape
    rows, cols = np.repeat(np.arange(n), np.diff(X.indptr)), X.indices
    w = np.ones(X.nnz) if weights is None else weights.data.astype(np.float64)
    mean = w @ X.data / max(w.sum(), np.finfo(float).tiny)
    r = X.data - mean
    of_rows = USER_DAMPING + np.bincount(rows, w, n)
    of_cols = ITEM_DAMPING + np.bincount(cols, w, m)
    b, c, tol = np.zeros(n), np.zeros(m), 1e-9 * np.abs(r).max()
    for _ in range(1000):
        before, b = b, np.bincount(rows, w * (r - c[cols]), n) / of_rows
        c = np.bincount(cols, w * (r - b[rows]), m) / of_cols
        if np.abs(b - before).max() <= tol:
            break
    return float(mean), b, c


def fold_in_biases(X, mean, col_biases):
    """Return the biases of rows, given mean and biases of the columns."""
    centred = residuals(X, mean, np.zeros(X.shape[0]), col_biases)
    return centred.sum(axis=1) / (USER_DAMPING + np.diff(X.indptr))


def residuals(X, mean, row_biases, col_biases):
    """Return what mean and biases leave of the stored values."""
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    data = X.data - mean - row_biases[rows] - col_biases[X.indices]
    return sp.csr_array((data.astype(X.dtype), X.indices, X.indptr), shape=X.shape)
