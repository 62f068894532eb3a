"""Splits of the stored entries of a matrix, and a scorer that hides some and asks for them."""

import math
import re
from functools import partial
from numbers import Integral, Real

import numpy as np
from scipy.sparse import csr_array, csr_matrix, issparse, isspmatrix
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metadata_routing import UNUSED

from ._core.parallel import effective_n_threads
from ._core.ranking import rank
from ._validation import as_csr, as_matrix, check_matrix, check_weights
from .metrics import (
    _stored_values,
    average_precision_at_k,
    hit_rate_at_k,
    mae,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    rmse,
)

__all__ = ["holdout_scorer", "leave_k_out", "split_entries"]

_RANKING = {
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "capped_recall": partial(recall_at_k, capped=True),
    "precision": precision_at_k,
    "map": average_precision_at_k,
    "mrr": reciprocal_rank_at_k,
    "hit_rate": hit_rate_at_k,
}
_PREDICTION = {"neg_rmse": rmse, "neg_mae": mae}


class holdout_scorer(BaseEstimator):
    """Scorer that hides entries of the test rows and asks the model for them.

    Part of the stored entries of every test row is hidden. The rest is projected by the `transform`
    of the estimator, which has never seen these rows, and the hidden columns are looked for in the
    ranking of all columns, or their values are compared with the predicted ones. Unlike the
    reconstruction that ``WALS.score`` measures, this gets worse for a model that is too large.

    An instance is a callable for the `scoring` of ``GridSearchCV``, ``HalvingGridSearchCV``,
    ``cross_val_score`` and their like: greater is better.

    Parameters
    ----------
    metric : str, default="ndcg@20"
        What is measured. Of the first k columns of the ranking, where k is any positive number:
        "ndcg@k", "recall@k", "capped_recall@k" (`wals.metrics.recall_at_k` with ``capped=True``),
        "precision@k", "map@k" (average_precision_at_k), "mrr@k" (reciprocal_rank_at_k) or
        "hit_rate@k"; the mean over the rows. Of the values of all hidden entries together:
        "neg_rmse" or "neg_mae".
    holdout : float or int, default=0.2
        How many entries of a row are hidden: a share, or a number. See `split_entries` with
        ``strategy="per-row"``, which makes this split.
    random_state : int, default=0
        Determines which entries are hidden: the same at every call with the same X, so that all
        candidates of a search have the same task.
    exclude_seen : bool, default=True
        Leave the entries of a row that are not hidden out of its ranking.

    Raises
    ------
    ValueError
        If a parameter is not one of the above; when scoring, if the estimator has no `transform`
        and `components_`, the metadata or X are bad, or no row can be scored.

    See Also
    --------
    wals.metrics : The measures and their sources.

    Notes
    -----
    *Rows* with fewer than two entries cannot be both projected and scored, and do not count.

    *Every hidden entry is relevant* to a ranking, whatever its value, explicit zeros too. The
    "neg_" metrics compare values, and so do not suit ``implicit=True``, where values are
    confidences.

    *Columns are ranked* by ``transform(X) @ components_``, equal ones in their order; those that
    the model knows nothing of, whose components are all 0, are not ranked. This holds for WALS, and
    as well for TruncatedSVD or NMF. The "neg_" metrics call ``inverse_transform(U, pattern=...)``,
    which WALS has.

    *In a pipeline*, the earlier steps transform the kept entries, as they would in use: a
    ``TfidfTransformer`` normalises a row by what is kept. They get them in the form of X: dense, or
    a frame of the same library with the same names, if X is one. Columns and values are those that
    the last step gets: the earlier steps transform the complete rows too, and of these the entries
    that the transformed kept ones do not store are the hidden ones. What a ``StandardScaler`` makes
    of a dense row has few zeros or none: of dense rows those entries count as stored which are not
    what the steps make of 0 there. So values are compared in the
    scale of a ``MaxAbsScaler``, and a column that a feature selection drops is not looked for. A
    row of which nothing kept, or nothing hidden, is left then does not count. A pipeline can end
    in a pipeline or a search.

    *Weights.* The projected rows have the weight 1 unless `row_weights` come to the scorer. With
    metadata routing, ``set_score_request(row_weights=True)`` asks for them, and a search slices
    them with the rows; without it, a search passes them to `fit` alone. The mean over the rows is
    not weighted.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from wals import WALS
    >>> from wals.datasets import make_interactions
    >>> from wals.model_selection import holdout_scorer
    >>> X = make_interactions(600, 120, 9_000, n_topics=4, random_state=0)
    >>> model = WALS(regularization=0.5, random_state=0)
    >>> grid = {"n_components": [2, 4, 32]}
    >>> GridSearchCV(model, grid, cv=3).fit(X).best_params_
    {'n_components': 32}
    >>> GridSearchCV(model, grid, cv=3, scoring=holdout_scorer("ndcg@20")).fit(X).best_params_
    {'n_components': 4}
    """

    # `score` is there for the request of metadata alone, and the estimator is none.
    __metadata_request__score = {"estimator": UNUSED}  # noqa: RUF012

    def __init__(self, metric="ndcg@20", *, holdout=0.2, random_state=0, exclude_seen=True):
        self.metric = metric
        self.holdout = holdout
        self.random_state = random_state
        self.exclude_seen = exclude_seen
        self._check()

    def _check(self):
        """Check the parameters, which set_params may have changed; return name and k."""
        name, at, k = str(self.metric).partition("@")
        valid = re.fullmatch("[1-9][0-9]*", k) if name in _RANKING else not at
        if not valid or name not in (*_RANKING, *_PREDICTION):
            names = [f"{name}@<k>" for name in _RANKING] + list(_PREDICTION)
            raise ValueError(f"metric must be one of {', '.join(names)}; got {self.metric!r}.")
        _check_size(self.holdout, "holdout")
        if not _is_integer(self.random_state) or not 0 <= self.random_state < 2**32:
            raise ValueError(
                "random_state must be an integer from 0 to 2**32 - 1, so that all candidates are "
                f"scored on the same entries; got {self.random_state!r}."
            )
        if not isinstance(self.exclude_seen, bool | np.bool_):
            raise ValueError(f"exclude_seen must be True or False, got {self.exclude_seen!r}.")
        return name, int(k) if k else None

    def __call__(self, estimator, X, y=None, *, row_weights=None):
        """Score a fitted estimator.

        Parameters
        ----------
        estimator : object
            A fitted WALS, or a pipeline or search that ends in one.
        X : {array-like, sparse matrix, data frame} of shape (n_samples, n_features)
            Rows that it was not fitted on.
        y : Ignored
            Not used, present for API consistency by convention.
        row_weights : float or array-like of shape (n_samples,), default=None
            Weights of the rows in their projection; None stands for 1.

        Returns
        -------
        score : float
            Greater is better.
        """
        name, k = self._check()
        steps, model = _unwrap(estimator)
        X = as_matrix(X, "X")
        kept, hidden = split_entries(
            X, self.holdout, random_state=self.random_state, strategy="per-row"
        )
        weights = {}
        if row_weights is not None:
            weights["weights"] = check_weights(row_weights, kept.shape[0], "row_weights")
        seen, kept = kept, _in_form_of(X, kept)
        if steps:
            complete, empty = X, None if _is_sparse(X) else _in_form_of(X, csr_array(seen.shape))
            for step in steps:
                kept, complete = step.transform(kept), step.transform(complete)
                empty = None if empty is None else step.transform(empty)
            seen = _entries(kept, empty)
            hidden = _without(_entries(complete, empty), seen)
        factors = check_array(model.transform(kept, **weights), input_name="factors")

        rows = np.flatnonzero((np.diff(seen.indptr) > 0) & (np.diff(hidden.indptr) > 0))
        if not rows.size:
            raise ValueError(
                "No row can be scored: that takes two stored entries, one to keep and one to hide."
            )
        factors, seen, hidden = factors[rows], seen[rows], hidden[rows]
        if name in _PREDICTION:
            return -_PREDICTION[name](hidden, model.inverse_transform(factors, pattern=hidden))
        seen = seen if self.exclude_seen else None
        n_jobs = getattr(model, "n_jobs", None)
        ranked = _rank(factors, model.components_, k, exclude=seen, n_jobs=n_jobs)
        return _RANKING[name](hidden, ranked, k)

    def score(self, estimator, X, y=None, *, row_weights=None):
        """Do the same as a call: the method whose metadata `set_score_request` is about."""
        return self(estimator, X, y, row_weights=row_weights)


def split_entries(X, test_size=0.2, *, random_state=None, strategy="uniform", timestamps=None):
    """Split the stored entries of a matrix into two matrices.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_rows, n_columns)
        Its stored entries are split, explicit zeros too; of a dense array the non-zeros that are
        not masked. Duplicates are summed.
    test_size : float or int, default=0.2
        A float between 0 and 1 is the share of the entries that goes to the test matrix, an int is
        their number: with "uniform" and "time" of all entries together, otherwise of the entries of
        every row.
        The number of all is rounded up, as by `train_test_split` of scikit-learn; that of a row is
        rounded down, as for Mult-VAE [1]_, but at least 1.
    random_state : int, RandomState instance or None, default=None
        An int gives the same split at every call (with the same release of NumPy).
    strategy : {"uniform", "per-row", "last", "time"}, default="uniform"
        Which entries go to the test matrix.

        - "uniform": any; a row may lose all of its entries.
        - "per-row": any of every row.
        - "last": the latest of every row, by `timestamps`; `random_state` has no effect. Of
          entries at the same time those with the larger columns count as the later ones.
        - "time": the latest of all, by `timestamps`, as if the test began at a date; a row may lose
          all of its entries, and `random_state` has no effect. Of entries at the same time those in
          the larger rows, and there in the larger columns, count as the later ones.

        "per-row" and "last" leave at least one entry of every row in the training matrix: a row
        with one entry has none in the test matrix.
    timestamps : array-like of shape (n_stored,) or sparse matrix, default=None
        When the entries happened: numbers or datetime64, in the order of ``X.data`` of a CSR or COO
        matrix, or of the non-zeros of a dense one, row by row; or, also for a sparse matrix in
        another format, a sparse matrix that stores exactly the positions that X stores. Needed for
        "last" and "time", and for nothing else.

    Returns
    -------
    train, test : csr_array or csr_matrix of shape (n_rows, n_columns)
        Every stored entry of X is stored in exactly one of them. csr_matrix for a sparse matrix,
        csr_array otherwise. The dtype is that of X, unless its values do not fit: integers and
        bools with duplicates become 64-bit integers, and float16 becomes float64.

    Raises
    ------
    ValueError
        If an argument is none of the above, `test_size` leaves nothing for the training matrix,
        the timestamps do not fit X or are NaN, or X is not finite.

    TypeError
        If X is no matrix in memory, or timestamps are masked.

    See Also
    --------
    leave_k_out : Hold out the same number of entries of every row.

    References
    ----------
    .. [1] D. Liang, R. G. Krishnan, M. D. Hoffman and T. Jebara (2018). Variational Autoencoders
       for Collaborative Filtering. WWW.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.model_selection import split_entries
    >>> X = csr_array([[1, 2, 0, 3], [0, 4, 5, 0]])
    >>> train, test = split_entries(X, 0.4, random_state=0)
    >>> train.nnz, test.nnz
    (3, 2)
    >>> train, test = split_entries(X, 1, strategy="last", timestamps=[9, 3, 5, 1, 2])
    >>> test.toarray()
    array([[1, 0, 0, 0],
           [0, 0, 5, 0]])
    >>> train, test = split_entries(X, 2, strategy="time", timestamps=[9, 3, 5, 1, 2])
    >>> test.toarray()
    array([[1, 0, 0, 3],
           [0, 0, 0, 0]])
    """
    _check_size(test_size, "test_size")
    if strategy not in ("uniform", "per-row", "last", "time"):
        raise ValueError(
            f"strategy must be 'uniform', 'per-row', 'last' or 'time', got {strategy!r}."
        )
    if (timestamps is not None) != (strategy in ("last", "time")):
        raise ValueError(
            f"strategy={strategy!r} needs timestamps."
            if timestamps is None
            else f"timestamps are for strategy='last' or 'time', not {strategy!r}."
        )
    X, container, timestamps = _check_entries(X, timestamps)
    if strategy in ("uniform", "time"):
        n_test = math.ceil(test_size * X.nnz) if test_size < 1 else int(test_size)
        if n_test and n_test >= X.nnz:
            raise ValueError(
                f"test_size={test_size} of {X.nnz} stored entries leaves none for training."
            )
        held_out = np.zeros(X.nnz, dtype=bool)
        if strategy == "uniform":
            chosen = _generator(random_state).choice(X.nnz, n_test, replace=False)
        else:
            chosen = np.argsort(timestamps, kind="stable")[X.nnz - n_test :]
        held_out[chosen] = True
    else:
        counts = np.diff(X.indptr)
        if test_size < 1:
            n_test = (float(test_size) * counts).astype(int)
        else:
            n_test = min(test_size, X.shape[1])
        n_test = np.clip(n_test, 1, counts - 1)
        held_out = _last_of_rows(X, n_test, timestamps, random_state)
    return _divide(X, held_out, container)


def leave_k_out(X, k=1, *, random_state=None, timestamps=None):
    """Hold out k of the stored entries of every row that has more than k.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_rows, n_columns)
        See `split_entries`.
    k : int, default=1
        How many entries of a row are held out. A row with k entries or fewer keeps them all in the
        training matrix, and has none in the test matrix.
    random_state : int, RandomState instance or None, default=None
        Determines which; without effect if there are timestamps.
    timestamps : array-like of shape (n_stored,) or sparse matrix, default=None
        When the entries happened, see `split_entries`: the k latest of a row are held out.

    Returns
    -------
    train, test : csr_array or csr_matrix of shape (n_rows, n_columns)
        See `split_entries`.

    Raises
    ------
    ValueError
        If k is not an integer of at least 1, the timestamps do not fit X or are NaN, or X is not
        finite.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from wals.model_selection import leave_k_out
    >>> X = csr_array([[1, 2, 0, 3], [0, 4, 0, 0]])
    >>> train, test = leave_k_out(X, timestamps=[9, 3, 5, 1])
    >>> train.toarray()
    array([[0, 2, 0, 3],
           [0, 4, 0, 0]])
    >>> test.toarray()
    array([[1, 0, 0, 0],
           [0, 0, 0, 0]])
    """
    if not _is_integer(k) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}.")
    X, container, timestamps = _check_entries(X, timestamps)
    n_test = np.where(np.diff(X.indptr) > k, k, 0)
    return _divide(X, _last_of_rows(X, n_test, timestamps, random_state), container)


# ------------------------------------------------------------------------------------------ checks


def _is_integer(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_size(size, name):
    if _is_integer(size):
        valid = size >= 1
    else:
        valid = isinstance(size, Real) and not isinstance(size, bool) and 0 < size < 1
    if not valid:
        raise ValueError(
            f"{name} must be a float between 0 and 1, a share, or an integer of at least 1, a "
            f"number; got {size!r}."
        )


def _check_entries(X, timestamps):
    """Return X as canonical CSR, the container that it came in, and timestamps in its order."""
    container = csr_matrix if isspmatrix(X) else csr_array
    checked = check_matrix(X, ensure_min_samples=0, ensure_min_features=0)
    if timestamps is None:
        return checked, container, None
    timestamps = _stored_values(timestamps, X if issparse(X) else checked, "timestamps")
    if timestamps.dtype.kind not in "iufM":
        raise ValueError(f"timestamps must be numbers or datetime64, got {timestamps.dtype}.")
    # NaN and NaT alone differ from themselves.
    if np.any(timestamps != timestamps):
        raise ValueError("timestamps must not be NaN.")
    return checked, container, timestamps


def _unwrap(estimator):
    """Return the fitted transformers that come before the model, and the model."""
    if hasattr(estimator, "best_estimator_"):
        return _unwrap(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        *steps, last = (step for _, step in estimator.steps)
        more, model = _unwrap(last)
        return [step for step in steps if step not in (None, "passthrough")] + more, model
    if not (hasattr(estimator, "transform") and hasattr(estimator, "components_")):
        raise ValueError(
            "holdout_scorer needs a fitted WALS, or a pipeline or search that ends in one; got "
            f"{estimator!r}."
        )
    return [], estimator


# ------------------------------------------------------------------------------- forms of a matrix


def _is_sparse(X):
    types = X.dtypes if hasattr(X, "iloc") else [None]
    return issparse(X) or all(hasattr(of_column, "fill_value") for of_column in types)


def _in_form_of(X, entries):
    """Return a CSR matrix as what X is: sparse, dense, or a frame with the same names."""
    if issparse(X):
        return entries
    if _is_sparse(X):
        return type(X).sparse.from_spmatrix(entries, index=X.index, columns=X.columns)
    dense = entries.toarray()
    if hasattr(X, "iloc"):
        return type(X)(dense, index=X.index, columns=X.columns)
    if hasattr(X, "column_names"):
        return type(X).from_pydict(dict(zip(X.column_names, dense.T, strict=True)))
    return type(X)(dense, schema=X.columns, orient="row") if hasattr(X, "columns") else dense


def _entries(X, empty):
    """Return those of a transformed matrix as CSR: what it stores, or where it is not as `empty`.

    `empty` is what the same steps make of zeros: dense ones may move them.
    """
    X = check_matrix(X)
    if empty is None:
        return X
    differs = as_csr(check_matrix(empty) != X)
    values = X[differs.nonzero()]
    values = values.toarray() if issparse(values) else np.asarray(values)
    return csr_array((values.ravel(), differs.indices, differs.indptr), shape=X.shape)


# ---------------------------------------------------------------------------------------- splitting


def _generator(random_state):
    # Generator is several times faster than RandomState.
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))


def _last_of_rows(X, n_last, timestamps, random_state):
    """Mark the last `n_last` entries of every row, by time, or in random order without."""
    keys = _generator(random_state).random(X.nnz) if timestamps is None else timestamps
    counts = np.diff(X.indptr)
    of_row = np.repeat(np.arange(X.shape[0]), counts)
    place = np.arange(X.nnz) - X.indptr[of_row]
    last = np.empty(X.nnz, dtype=bool)
    last[np.lexsort((keys, of_row))] = place >= (counts - n_last)[of_row]
    return last


def _divide(X, chosen, container):
    """Return the entries that are not chosen, and those that are, as matrices."""
    parts = []
    for kept in (~chosen, chosen):
        before = np.zeros(X.nnz + 1, X.indptr.dtype)
        np.cumsum(kept, out=before[1:])
        part = (X.data[kept], X.indices[kept], before[X.indptr])
        parts.append(container(part, shape=X.shape))
    return tuple(parts)


def _without(X, other):
    """Return the entries of X at positions that `other` does not store."""
    keys = (
        np.repeat(np.arange(A.shape[0]), np.diff(A.indptr)) * A.shape[1] + A.indices
        for A in (X, other)
    )
    both = np.isin(*keys, assume_unique=True)
    return _divide(X, both, csr_array)[0]


# ------------------------------------------------------------------------------------------ ranking


def _rank(left, right, k, *, exclude=None, n_jobs=None):
    """Rank the k best columns of ``left @ right`` in every row; see `wals.WALS.recommend`.

    Parameters
    ----------
    left : ndarray of shape (n_rows, n_components)
    right : ndarray of shape (n_components, n_columns)
    k : int
    exclude : sparse matrix of shape (n_rows, n_columns), default=None
        Its stored positions are not ranked.
    n_jobs : int, default=None
        See `wals.WALS`.

    Returns
    -------
    ranked : ndarray of shape (n_rows, k), int64
        Best first; -1 where no column is left.
    """
    dtype = np.result_type(left.dtype, right.dtype, np.float32)
    seen = None if exclude is None else as_csr(exclude)
    U, V = left.astype(dtype, copy=False), right.T.astype(dtype, copy=False)
    return rank(U, V, k, seen=seen, n_threads=effective_n_threads(n_jobs))[0]
