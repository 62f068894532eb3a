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

    def target(self, mean):
        """Return for each column the sum of what its bias is made of, where the others are 0."""
        left = self.values - mean - self.biases(mean, np.zeros(self.m))[self.rows]
        return np.bincount(self.cols, self.weights * left, self.m)

    def product(self, col_biases):
        """Return by how much biases of the columns change that, through those of the rows."""
        of_rows = np.bincount(self.rows, self.weights * col_biases[self.cols], self.n) / self.sums
        return np.bincount(self.cols, self.weights * of_rows[self.rows], self.m)


def fit_biases(X, weights):
    """Return the mean, the biases of the rows, and those of the columns."""
    rows = Rows(X, weights)
    mean, col_biases = solve(rows.total(), rows.target, rows.product)
    return mean, rows.biases(mean, col_biases), col_biases


def solve(totals, target, product):
    """Return the mean, and the biases of the columns.

    The biases of the rows are eliminated from the normal equations, which conjugate gradients,
    preconditioned by the diagonal, then solve: to 1e-9 of the largest value.

    Parameters
    ----------
    totals : Totals
    target, product : callable
        Return the sums of `Rows.target` and `Rows.product` of all rows.
    """
    mean = float(totals.value / max(totals.weight, np.finfo(float).tiny))
    tol = 1e-9 * max(totals.largest - mean, mean - totals.least)
    diagonal = ITEM_DAMPING + totals.of_cols
    c, r = np.zeros(len(diagonal)), target(mean)
    z = p = r / diagonal
    for _ in range(1000):
        if np.abs(z).max() <= tol:
            break
        q = diagonal * p - product(p)
        step, before = (r @ z) / (p @ q), r @ z
        c, r = c + step * p, r - step * q
        z = r / diagonal
        p = z + (r @ z) / before * p
    return mean, c


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
