"""Callbacks for the fit of WALS, with scikit-learn >= 1.9.

``WALS().set_callbacks(...)`` takes these and those of ``sklearn.callback``: ``ProgressBar`` and
``ScoringMonitor``.
"""

from numbers import Integral

import numpy as np

from ._callback_support import ITERATION, Observer
from ._validation import as_csr, check_matrix
from ._wals import WALS
from .checkpoint import digest
from .model_selection import _PREDICTION, _RANKING, _rank, _without, holdout_scorer

__all__ = ["EarlyStopping"]


class EarlyStopping(Observer):
    """Callback that stops a fit of WALS when held-out entries are ranked no better.

    At the end of every iteration, rows are projected on the current factors of the columns, and the
    held-out entries of these rows are looked for in the ranking of all columns, or their values are
    compared with the predicted ones.

    Parameters
    ----------
    fold_in : {array-like, sparse matrix} of shape (n_rows, n_features)
        The entries by which the rows are projected, with a row weight of 1: rows of the fit, or
        others. They are left out of the ranking.

    held_out : {array-like, sparse matrix} of shape (n_rows, n_features)
        The entries of the same rows that are looked for: every stored entry is relevant. None of
        their positions is stored in `fold_in`.

    metric : str, default="ndcg@20"
        What is measured; see `wals.model_selection.holdout_scorer`. Greater is better.

    patience : int, default=2
        The fit stops when this many iterations in a row have not exceeded the best score so far.

    restore_best : bool, default=True
        Whether the model is that of the iteration with the best score: the same as from a fit with
        as many iterations. Otherwise it is that of the last iteration.

    Attributes
    ----------
    scores_ : list of float
        The score after each iteration of the latest fit that ended.

    best_score_ : float
        The greatest score of that fit; nan if it had no iterations.

    best_iteration_ : int
        The iteration that reached it, counted from 1; 0 if there was none.

    Raises
    ------
    ValueError
        If a parameter is none of the above, a position is stored in both matrices, or no row has an
        entry in each.

    TypeError
        In a fit, if the callback is set on another estimator than WALS.

    See Also
    --------
    wals.model_selection.split_entries : Split the entries of rows into such matrices.
    sklearn.callback.ScoringMonitor : Log scores of the matrix that is fitted.

    Notes
    -----
    *Rows* without entries in either matrix do not count.

    *A pipeline or search* hands its own data to WALS, not these: the matrices have the columns and
    the scale that WALS sees, after the earlier steps. Set the callback on WALS itself; it can serve
    any number of fits, as in a search. Processes other than the main one keep `scores_` to
    themselves.

    *The cost* is one projection and ranking of the rows per iteration, and memory for another copy
    or two of the column factors. Some hundreds of rows can be enough.

    *The score of the stopped model* on the same entries is optimistic, for they chose it.

    Examples
    --------
    >>> from wals import WALS
    >>> from wals.callbacks import EarlyStopping
    >>> from wals.datasets import make_interactions
    >>> from wals.model_selection import split_entries
    >>> X = make_interactions(600, 120, 9_000, n_topics=4, random_state=0)
    >>> train, held_out = split_entries(X, 0.2, strategy="per-row", random_state=0)
    >>> stopping = EarlyStopping(train, held_out, metric="ndcg@20")
    >>> model = WALS(n_components=16, max_iter=30, random_state=0)
    >>> model = model.set_callbacks(stopping).fit(train)
    >>> len(stopping.scores_) - stopping.best_iteration_
    2
    >>> model.n_iter_ == stopping.best_iteration_
    True
    """

    def __init__(self, fold_in, held_out, metric="ndcg@20", *, patience=2, restore_best=True):
        self._name, self._k = holdout_scorer(metric)._check()
        if not isinstance(patience, Integral) or isinstance(patience, bool) or patience < 1:
            raise ValueError(f"patience must be an integer of at least 1, got {patience!r}.")
        if not isinstance(restore_best, bool | np.bool_):
            raise ValueError(f"restore_best must be True or False, got {restore_best!r}.")
        fold_in = check_matrix(fold_in, name="fold_in", ensure_min_samples=0)
        held_out = check_matrix(held_out, name="held_out", ensure_min_samples=0)
        if fold_in.shape != held_out.shape:
            raise ValueError(
                f"fold_in has shape {fold_in.shape}, but held_out has {held_out.shape}."
            )
        n_shared = held_out.nnz - _without(held_out, fold_in).nnz
        if n_shared:
            raise ValueError(
                f"fold_in stores {n_shared} of the {held_out.nnz} positions that held_out stores: "
                "an entry is either folded in or looked for."
            )
        rows = np.flatnonzero((np.diff(fold_in.indptr) > 0) & (np.diff(held_out.indptr) > 0))
        if not rows.size:
            raise ValueError(
                "No row can be scored: that takes a stored entry in fold_in and one in held_out."
            )
        self.metric, self.patience, self.restore_best = metric, patience, restore_best
        self._fold_in, self._held_out = as_csr(fold_in[rows]), as_csr(held_out[rows])
        # The scores of each fit that is going on: clones, in threads too, share their callbacks.
        self._scores = {}

    def __repr__(self):
        n, m = self._fold_in.shape
        return (
            f"EarlyStopping(<{n} rows of {m} columns>, metric={self.metric!r}, "
            f"patience={self.patience}, restore_best={self.restore_best})"
        )

    def __getstate__(self):
        return {**vars(self), "_scores": {}}

    def setup(self, estimator, context):
        """Begin a fit.

        Parameters
        ----------
        estimator : WALS
            The estimator that is fitted.
        context : sklearn.callback.CallbackContext
            The task that this is.
        """
        if not isinstance(estimator, WALS):
            raise TypeError(
                "EarlyStopping watches the iterations of WALS: call set_callbacks of WALS itself, "
                f"not of {type(estimator).__name__}."
            )
        self._scores[estimator] = []

    def on_fit_task_begin(self, estimator, context):
        """Check the number of columns.

        Parameters
        ----------
        estimator, context
            See `setup`.
        """
        m = self._fold_in.shape[1]
        if context.task_name == ITERATION and estimator.n_features_in_ != m:
            raise ValueError(
                f"fold_in and held_out have {m} columns, but WALS is fitted on "
                f"{estimator.n_features_in_}."
            )

    def observe(self, estimator, model):
        """Score the model at the end of an iteration.

        Parameters
        ----------
        estimator : WALS
            The estimator that is fitted.
        model : WALS
            A copy that can project rows.

        Returns
        -------
        keep : bool
            Whether this is the best iteration so far, and to be restored.
        """
        scores = self._scores[estimator]
        scores.append(self._score(model))
        return self.restore_best and _best(scores) == len(scores)

    def remember(self, estimator):
        """Return what a fit that is resumed has to know.

        Parameters
        ----------
        estimator : WALS
            The estimator that is fitted.

        Returns
        -------
        remembered : dict
        """
        matrices = [(X.data, X.indices, X.indptr) for X in (self._fold_in, self._held_out)]
        key = f"{self!r} {digest(*matrices[0], *matrices[1])}"
        return {"key": key, "scores": list(self._scores[estimator])}

    def recall(self, estimator, remembered):
        """Go on where a fit was interrupted.

        Parameters
        ----------
        estimator : WALS
            The estimator that is fitted.
        remembered : dict
            What `remember` returned.

        Returns
        -------
        stop : bool
            Whether that fit was to stop there.
        """
        self._scores[estimator] = list(remembered["scores"])
        return self._is_over(estimator)

    def _is_over(self, estimator):
        scores = self._scores[estimator]
        return len(scores) - _best(scores) >= self.patience

    def on_fit_task_end(self, estimator, context):
        """Tell whether to stop, or publish the scores of a fit that ended.

        Parameters
        ----------
        estimator, context
            See `setup`.

        Returns
        -------
        stop : bool
        """
        if context.task_name == ITERATION:
            return self._is_over(estimator)
        scores = self._scores[estimator]
        self.scores_, self.best_iteration_ = scores, _best(scores)
        self.best_score_ = max(scores, default=np.nan)
        return False

    def teardown(self, estimator, context):
        """Forget a fit, which may have failed.

        Parameters
        ----------
        estimator, context
            See `setup`.
        """
        self._scores.pop(estimator, None)

    def _score(self, model):
        # Not transform: the fit may know the columns by name.
        fold_in = self._fold_in.astype(model.components_.dtype, copy=False)
        factors = model._project(fold_in, 0, None)[0].factors
        if self._name in _PREDICTION:
            predicted = model.inverse_transform(factors, pattern=self._held_out)
            return -_PREDICTION[self._name](self._held_out, predicted)
        seen, n_jobs = self._fold_in, model.n_jobs
        ranked = _rank(factors, model.components_, self._k, exclude=seen, n_jobs=n_jobs)
        return _RANKING[self._name](self._held_out, ranked, self._k)


def _best(scores):
    """Return the iteration, counted from 1, with the greatest score; the first of several."""
    return int(np.argmax(scores)) + 1 if scores else 0
