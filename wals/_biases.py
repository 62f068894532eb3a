"""Mean and biases of explicit values; the formulas are in the Notes of `wals.Recommender`."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

#: Pseudo-counts that draw the bias of a user, and of an item, to 0.
USER_DAMPING, ITEM_DAMPING = 5.0, 4.0


class Totals(NamedTuple):
    """What the mean and the biases of some rows are made of."""

    weight: float
    value: float  # weighted
    least: float
    largest: float
    of_cols: np.ndarray  # (m,) the weights of the entries of each column


class Rows:
    """Some rows of explicit values, of which mean and biases are made.

    Parameters
    ----------
    X : CSR of shape (n, m)
    weights : CSR of the same structure, or None
    """

    def __init__(self, X, weights):
        (self.n, self.m), self.values, self.cols = X.shape, X.data, X.indices
        self.rows = np.repeat(np.arange(self.n), np.diff(X.indptr))
        self.weights = np.ones(X.nnz) if weights is None else weights.data.astype(np.float64)
        self.sums = USER_DAMPING + np.bincount(self.rows, self.weights, self.n)

    def total(self):
        """Return the totals."""
        w, x = self.weights, self.values
        least, largest = (float(x.min()), float(x.max())) if x.size else (np.inf, -np.inf)
        return Totals(w.sum(), w @ x, least, largest, np.bincount(self.cols, w, self.m))

    def biases(self, mean, col_biases):
        """Return their biases, given the mean and those of the columns."""
        left = self.weights * (self.values - mean - col_biases[self.cols])
        return np.bincount(self.rows, left, self.n) / self.sums

    def col_sums(self, mean, col_biases):
        """Return for each column the sum of what its bias is made of, given their biases."""
        of_rows = self.biases(mean, col_biases)[self.rows]
        return np.bincount(self.cols, self.weights * (self.values - mean - of_rows), self.m)


def fit_biases(X, weights):
    """Return the mean, the biases of the rows, and those of the columns."""
    rows = Rows(X, weights)
    mean, before, col_biases = settle(rows.total(), rows.col_sums)
    return mean, rows.biases(mean, before), col_biases


def settle(totals, col_sums):
    """Return the mean, and two kinds of biases of the columns.

    Parameters
    ----------
    totals : Totals
    col_sums : callable
        Returns the sums of `Rows.col_sums` of all rows.

    Returns
    -------
    mean : float
    before, col_biases : ndarray of shape (m,)
        Those of rows are made of the former, and the latter of these.
    """
    mean = float(totals.value / max(totals.weight, np.finfo(float).tiny))
    tol = 1e-9 * max(totals.largest - mean, mean - totals.least)
    c = np.zeros(len(totals.of_cols))
    for _ in range(1000):
        before, c = c, col_sums(mean, c) / (ITEM_DAMPING + totals.of_cols)
        if np.abs(c - before).max() <= tol:
            break
    return mean, before, c


def add_totals(*totals):
    """Return the totals of all rows."""
    add = sum, sum, min, max, sum
    return Totals(*(of(each) for of, each in zip(add, zip(*totals, strict=True), strict=True)))


def fold_in_biases(X, mean, col_biases):
    """Return the biases of rows, given mean and biases of the columns."""
    centred = residuals(X, mean, np.zeros(X.shape[0]), col_biases)
    return centred.sum(axis=1) / (USER_DAMPING + np.diff(X.indptr))


def residuals(X, mean, row_biases, col_biases):
    """Return what mean and biases leave of the stored values."""
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    data = X.data - mean - row_biases[rows] - col_biases[X.indices]
    return sp.csr_array((data.astype(X.dtype), X.indices, X.indptr), shape=X.shape)
