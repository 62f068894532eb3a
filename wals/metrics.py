"""Measures of ranked recommendations, and of predicted values, against what really happened.

The measures of rankings take the relevant columns of each row as a sparse matrix and a ranking per
row, and give the mean over the rows, or one value per row. `rmse` and `mae` take values and
predictions of the stored entries of a sparse matrix.
"""

from numbers import Integral

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import check_array

from ._validation import as_csr, refuse_masked

__all__ = [
    "auc",
    "average_precision_at_k",
    "hit_rate_at_k",
    "mae",
    "ndcg_at_k",
    "precision_at_k",
    "recall_at_k",
    "reciprocal_rank_at_k",
    "rmse",
]


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
        If the shapes do not agree, k < 1, or `ranked` holds an index out of range or a column
        twice in a row.

    See Also
    --------
    precision_at_k : The share of what is ranked that is relevant.

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


def precision_at_k(truth, ranked, k, *, average=True):
    """Compute the share of the first `k` ranked columns that are relevant.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`.

    Returns
    -------
    precision : float or ndarray of shape (n_rows,), float64
        Between 0 and 1, and nan as in `recall_at_k`. The divisor is k even where fewer columns are
        ranked or relevant.

    Raises
    ------
    ValueError
        See `recall_at_k`.

    References
    ----------
    C. D. Manning, P. Raghavan and H. Schütze (2008). Introduction to Information Retrieval,
    section 8.4.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import precision_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 3]]
    >>> precision_at_k(truth, ranked, 2, average=False)
    array([1. , 0.5])
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    return _ratio(hits.sum(axis=1), np.where(n_relevant > 0, k, 0), average)


def ndcg_at_k(truth, ranked, k, *, average=True):
    """Compute the normalised discounted cumulative gain of the first `k` ranked columns.

    A relevant column at place p = 1, 2, ... gains 1 / log2(p + 1), any other one nothing. The sum
    is divided by that of an ideal ranking: min(k, relevant) hits at the first places.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`.

    Returns
    -------
    ndcg : float or ndarray of shape (n_rows,), float64
        Between 0 and 1, and nan as in `recall_at_k`.

    Raises
    ------
    ValueError
        See `recall_at_k`.

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


def average_precision_at_k(truth, ranked, k, *, average=True):
    """Compute the average precision of the first `k` ranked columns; its mean is MAP@k.

    The precision at the place of every hit, summed, and divided by min(k, relevant), the largest
    number of hits that there can be.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`.

    Returns
    -------
    average_precision : float or ndarray of shape (n_rows,), float64
        Between 0 and 1, and nan as in `recall_at_k`.

    Raises
    ------
    ValueError
        See `recall_at_k`.

    Notes
    -----
    With k no less than the relevant columns, this is the average precision of information
    retrieval [1]_. For smaller k other authors divide by all relevant columns, so that no ranking
    reaches 1, or by the hits. min(k, relevant) is the divisor of implicit [2]_ and of Kaggle.

    References
    ----------
    .. [1] C. D. Manning, P. Raghavan and H. Schütze (2008). Introduction to Information Retrieval,
       section 8.4.
    .. [2] B. Frederickson. ``implicit.evaluation.mean_average_precision_at_k``.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import average_precision_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 3]]
    >>> average_precision_at_k(truth, ranked, 2, average=False)
    array([1. , 0.5])
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    precisions = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return _ratio((precisions * hits).sum(axis=1), np.minimum(n_relevant, k), average)


def reciprocal_rank_at_k(truth, ranked, k, *, average=True):
    """Compute 1 / place of the first hit among the first `k` ranked columns; its mean is MRR@k.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`.

    Returns
    -------
    reciprocal_rank : float or ndarray of shape (n_rows,), float64
        0 without a hit, or from 1 / k to 1; nan as in `recall_at_k`.

    Raises
    ------
    ValueError
        See `recall_at_k`.

    References
    ----------
    E. M. Voorhees (1999). The TREC-8 Question Answering Track Report. TREC.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import reciprocal_rank_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 3]]
    >>> reciprocal_rank_at_k(truth, ranked, 2, average=False)
    array([1. , 0.5])
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    reciprocal = hits.any(axis=1) / (1 + hits.argmax(axis=1))
    return _ratio(reciprocal, np.minimum(n_relevant, 1), average)


def hit_rate_at_k(truth, ranked, k, *, average=True):
    """Compute whether there is a hit among the first `k` ranked columns: 1, or 0 if not.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`.

    Returns
    -------
    hit_rate : float or ndarray of shape (n_rows,), float64
        The mean is the share of the rows with a hit among those with a relevant column. nan as in
        `recall_at_k`.

    Raises
    ------
    ValueError
        See `recall_at_k`.

    Notes
    -----
    With one relevant column per row, as in leave-one-out evaluation [1]_, it is `recall_at_k`.

    References
    ----------
    .. [1] M. Deshpande and G. Karypis (2004). Item-based top-N recommendation algorithms. ACM
       Transactions on Information Systems 22(1).

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import hit_rate_at_k
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 1]]
    >>> hit_rate_at_k(truth, ranked, 2)
    0.5
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    return _ratio(hits.any(axis=1).astype(int), np.minimum(n_relevant, 1), average)


def auc(truth, ranked, k, *, average=True):
    """Compute the area under the ROC curve of a ranking of which the first `k` columns are known.

    It is the share of all pairs of a relevant and another column of which the relevant one comes
    first. All columns that are not among the first `k` ranked, relevant or not, tie after those
    that are: a pair of them counts 1/2.

    Parameters
    ----------
    truth, ranked, k, average
        See `recall_at_k`. Where `ranked` has all columns, k = n_columns gives the whole area.

    Returns
    -------
    auc : float or ndarray of shape (n_rows,), float64
        Between 0 and 1; 1/2 is what chance gives. nan as in `recall_at_k`, and also for a row in
        which every column is relevant.

    Raises
    ------
    ValueError
        See `recall_at_k`.

    Notes
    -----
    With P relevant columns, h of them and m others among the first k ranked, and h_i hits before
    the i-th of these m, it is (sum_i h_i + (n_columns - P - m) (h + P) / 2) / (P (n_columns - P)):
    the definition of [1]_ for the whole ranking, and of ``AUC_at_k`` of implicit [2]_ for the
    truncated one. A column that the ranking leaves out on purpose, because the row has it already,
    counts as any other that is not ranked.

    References
    ----------
    .. [1] S. Rendle, C. Freudenthaler, Z. Gantner and L. Schmidt-Thieme (2009). BPR: Bayesian
       Personalized Ranking from Implicit Feedback. UAI.
    .. [2] B. Frederickson. ``implicit.evaluation.AUC_at_k``.

    Examples
    --------
    Of row 0, pairs (0, 3) and (1, 3) are in order and (2, 3) is a tie. Of row 1, (3, 0) and (3, 1)
    are in order and (3, 2) is not.

    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import auc
    >>> truth = csr_array([[1, 1, 1, 0], [0, 0, 0, 1]])
    >>> ranked = [[0, 1], [2, 3]]
    >>> auc(truth, ranked, 2, average=False)
    array([0.83333333, 0.66666667])
    """
    hits, n_relevant = _find_hits(truth, ranked, k)
    misses = (np.asarray(ranked)[:, :k] >= 0) & ~hits
    in_order = (np.cumsum(hits, axis=1) * misses).sum(axis=1)
    n_relevant = n_relevant.astype(np.int64)
    n_others = truth.shape[1] - n_relevant
    unranked = n_others - misses.sum(axis=1)
    in_order = in_order + unranked * (hits.sum(axis=1) + n_relevant) / 2
    return _ratio(in_order, n_relevant * n_others, average)


def rmse(truth, predicted):
    """Compute the root of the mean squared error over the stored entries of `truth`.

    Parameters
    ----------
    truth : sparse matrix or array of shape (n_rows, n_columns)
        The true values. Explicit zeros are entries, too; duplicates are summed.
    predicted : sparse matrix or array, or array-like of shape (n_stored,)
        What was predicted for them: a matrix that stores exactly the positions that `truth`
        stores; or, if `truth` is a CSR or COO matrix, an array in the order of ``truth.data``.

    Returns
    -------
    rmse : float
        nan if `truth` stores nothing.

    Raises
    ------
    ValueError
        If `truth` is dense, the shapes or positions do not agree, a value is not finite, or
        `predicted` is an array and `truth` has duplicates or is neither CSR nor COO.

    TypeError
        If a prediction is masked.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import rmse
    >>> truth = csr_array([[5.0, 0.0, 3.0], [0.0, 4.0, 0.0]])
    >>> rmse(truth, [4.0, 3.0, 5.0])
    0.816496580927726
    """
    return float(np.sqrt(_mean(_errors(truth, predicted) ** 2)))


def mae(truth, predicted):
    """Compute the mean absolute error over the stored entries of `truth`.

    Parameters
    ----------
    truth, predicted
        See `rmse`.

    Returns
    -------
    mae : float
        nan if `truth` stores nothing.

    Raises
    ------
    ValueError
        See `rmse`.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.metrics import mae
    >>> truth = csr_array([[5.0, 0.0, 3.0], [0.0, 4.0, 0.0]])
    >>> mae(truth, [4.0, 3.0, 5.0])
    0.6666666666666666
    """
    return float(_mean(np.abs(_errors(truth, predicted))))


def _find_hits(truth, ranked, k):
    """Validate the input of a metric; look the first `k` ranked columns up in `truth`.

    Returns
    -------
    hits : ndarray of shape (n_rows, k), bool
    n_relevant : ndarray of shape (n_rows,), int
    """
    _check_sparse(truth)
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}.")
    refuse_masked(ranked, "ranked")
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

    in_order = np.sort(ranked, axis=1)
    repeated = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if repeated.any():
        row, place = np.argwhere(repeated)[0]
        raise ValueError(f"ranked repeats column {in_order[row, place]} in row {row}.")

    truth = as_csr(truth)
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
    return hits, n_relevant


def _ratio(gained, possible, average):
    """Divide row by row, nan for nothing possible; on request average the others."""
    counted = possible > 0
    ratio = np.full(possible.shape, np.nan)
    np.divide(gained, possible, out=ratio, where=counted)
    return float(_mean(ratio[counted])) if average else ratio


def _mean(values):
    """Return the mean, and nan without a warning if there is nothing."""
    return values.mean() if values.size else np.nan


def _errors(truth, predicted):
    """Return predicted minus true values of the stored entries, in float64."""
    _check_sparse(truth)
    predicted = _stored_values(predicted, truth, "predicted", of="truth")
    true = as_csr(truth).data
    options = {"ensure_2d": False, "dtype": np.float64, "ensure_min_samples": 0}
    predicted = check_array(predicted, input_name="predicted", **options)
    return predicted - check_array(true, input_name="truth", **options)


def _check_sparse(truth):
    if not issparse(truth):
        raise ValueError(f"truth must be a sparse matrix, got {type(truth).__name__}.")
    if truth.ndim != 2:
        raise ValueError(f"truth must have two dimensions, got shape {truth.shape}.")


def _stored_values(values, X, name, *, of="X"):
    """Return values of the stored entries of X, given in either form, in the order of `as_csr(X)`.

    Either form: a sparse matrix of the same structure, or an array in the order of X.
    """
    if issparse(values):
        values, X = as_csr(values), as_csr(X)
        same = values.shape == X.shape and np.array_equal(values.indptr, X.indptr)
        if not (same and np.array_equal(values.indices, X.indices)):
            raise ValueError(
                f"{name} must store exactly the positions that {of} stores, explicit zeros too."
            )
        return values.data
    refuse_masked(values, name)
    values = np.asarray(values)
    if X.format not in ("csr", "coo"):
        raise ValueError(
            f"{name} is an array, and {of} a {X.format.upper()} matrix, whose entries have another "
            f"order than by rows: pass {of} as a CSR or COO matrix, or {name} as a sparse matrix."
        )
    if values.shape != (X.nnz,):
        raise ValueError(
            f"{name} has shape {values.shape}, but {(X.nnz,)} is needed: one value for every "
            f"stored entry of {of}."
        )
    if X.format == "csr" and X.has_canonical_format:
        return values
    places = X.copy()
    places.data = np.arange(X.nnz)
    places = as_csr(places)
    if places.nnz < X.nnz:
        raise ValueError(f"{of} has duplicates, so that {name} has several values for an entry.")
    return values[places.data]
