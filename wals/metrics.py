"""Measures of ranked recommendations against what really happened.

Every function takes the relevant columns of each row as a sparse matrix and a ranking per row, and
gives the mean over the rows, or one value per row.
"""

from numbers import Integral

import numpy as np
from scipy.sparse import csr_array, issparse

__all__ = ["ndcg_at_k", "recall_at_k"]


def recall_at_k(truth, ranked, k, *, capped=False, average=True):
    """Compute the share of the relevant columns that are among the first `k` ranked.

    Parameters
    ----------
    truth : sparse matrix or array of shape (n_rows, n_columns)
        The stored entries are the relevant columns of each row, whatever their value.
    ranked : array-like of shape (n_rows, at least k), int
        Column indices of each row, best first, without repetition. -1 stands for no column.
    k : int
        How many of the ranked columns count.
    capped : bool, default=False
        Divide the hits by min(k, relevant) instead of by all relevant columns, so that a perfect
        ranking always reaches 1.
    average : bool, default=True
        Return the mean over the rows with a relevant column instead of one value per row.

    Returns
    -------
    recall : float or ndarray of shape (n_rows,), float64
        Between 0 and 1. nan for a row without a relevant column, and for the mean if there is no
        other row.

    Raises
    ------
    ValueError
        If the shapes do not agree, k < 1, or `ranked` holds an index out of range or finds a
        relevant column twice.

    Notes
    -----
    hits / relevant is the usual recall, reported for instance with LightGCN [1]_; the capped form
    is the one of Mult-VAE [2]_. They differ only for rows with more than k relevant columns.

    References
    ----------
    .. [1] X. He et al. (2020). LightGCN: Simplifying and Powering Graph Convolution Network for
       Recommendation. SIGIR.
    .. [2] D. Liang, R. G. Krishnan, M. D. Hoffman and T. Jebara (2018). Variational Autoencoders
       for Collaborative Filtering. WWW.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import recall_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 3], [2, 3]]
    >>> recall_at_k(truth, ranked, 2, average=False)
    array([0.33333333, 1.        ])
    >>> recall_at_k(truth, ranked, 2, capped=True)
    0.75
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    possible = np.minimum(n_relevant, k) if capped else n_relevant
    return _ratio(hits.sum(axis=1), possible, average)


def ndcg_at_k(truth, ranked, k, *, average=True):
    """Compute the normalised discounted cumulative gain of the first `k` ranked columns.

    A relevant column at place p = 1, 2, ... gains 1 / log2(p + 1), any other one nothing. The sum
    is divided by that of an ideal ranking: min(k, relevant) hits at the first places.

    Parameters
    ----------
    truth : sparse matrix or array of shape (n_rows, n_columns)
        The stored entries are the relevant columns of each row, whatever their value.
    ranked : array-like of shape (n_rows, at least k), int
        Column indices of each row, best first, without repetition. -1 stands for no column.
    k : int
        How many of the ranked columns count.
    average : bool, default=True
        Return the mean over the rows with a relevant column instead of one value per row.

    Returns
    -------
    ndcg : float or ndarray of shape (n_rows,), float64
        Between 0 and 1. nan for a row without a relevant column, and for the mean if there is no
        other row.

    Raises
    ------
    ValueError
        If the shapes do not agree, k < 1, or `ranked` holds an index out of range or finds a
        relevant column twice.

    References
    ----------
    K. Järvelin and J. Kekäläinen (2002). Cumulated gain-based evaluation of IR techniques. ACM
    Transactions on Information Systems 20(4); here with binary gains and the logarithmic discount
    at every place.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import ndcg_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 3]]
    >>> ndcg_at_k(truth, ranked, 2, average=False)
    array([1.        , 0.63092975])
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0], np.cumsum(discounts)])[np.minimum(n_relevant, k)]
    # Both are running sums, so that a perfect ranking is exactly 1 and none exceeds it.
    gain = np.cumsum(hits * discounts, axis=1)[:, -1]
    return _ratio(gain, ideal, average)


def _find_hits(truth, ranked, k):
    """Validate the input of a metric; look the first `k` ranked columns up in `truth`.

    Returns
    -------
    hits : ndarray of shape (n_rows, k), bool
    n_relevant : ndarray of shape (n_rows,), int
    """
    if not issparse(truth):
        raise ValueError(f"truth must be a sparse matrix, got {type(truth).__name__}.")
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}.")
    ranked = np.asarray(ranked)
    n_rows, n_columns = truth.shape
    if ranked.ndim != 2 or ranked.shape[0] != n_rows or ranked.shape[1] < k:
        raise ValueError(
            f"ranked must have {n_rows} rows, as truth has, and at least k={k} columns, "
            f"got shape {ranked.shape}."
        )
    ranked = ranked[:, :k]
    if ranked.dtype.kind not in "iu":
        raise ValueError(f"ranked must hold integers, got {ranked.dtype}.")
    if ranked.size and not -1 <= ranked.min() <= ranked.max() < n_columns:
        raise ValueError(f"ranked must hold column indices from -1 to {n_columns - 1}.")
    ranked = ranked.astype(np.int64, copy=False)

    truth = csr_array(truth, copy=False)
    if not truth.has_canonical_format:
        truth = truth.copy()
        truth.sum_duplicates()
    n_relevant = np.diff(truth.indptr)
    hits = np.empty(ranked.shape, dtype=bool)
    # A block of rows as a dense table of flags that stays in cache. Its spare last column, never
    # set, is the one that -1 refers to.
    step = max(1, 2**20 // (n_columns + 1))
    table = np.zeros((min(step, n_rows), n_columns + 1), dtype=bool)
    for first in range(0, n_rows, step):
        block = slice(first, min(first + step, n_rows))
        start, stop = truth.indptr[[block.start, block.stop]]
        places = np.repeat(np.arange(block.stop - first), n_relevant[block])
        places = places, truth.indices[start:stop]
        table[places] = True
        rows = np.arange(block.stop - first)[:, np.newaxis]
        hits[block] = table[rows, ranked[block]]
        table[places] = False

    # A repeated column would count twice, and only a hit can do harm.
    row, place = np.nonzero(hits)
    found = row * n_columns + ranked[row, place]
    found.sort()
    twice = np.flatnonzero(found[1:] == found[:-1])
    if twice.size:
        row, column = divmod(int(found[twice[0]]), n_columns)
        raise ValueError(f"ranked repeats column {column} in row {row}.")
    return hits, n_relevant


def _ratio(gained, possible, average):
    """Divide row by row, nan for nothing possible; on request average the others."""
    counted = possible > 0
    ratio = np.full(possible.shape, np.nan)
    np.divide(gained, possible, out=ratio, where=counted)
    if not average:
        return ratio
    return float(ratio[counted].mean()) if counted.any() else float("nan")
