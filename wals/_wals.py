"""The estimator: parameters, validation and fitted attributes.

The loop of a fit is in `_alternate`, the numbers are in `_core`.
"""

import os
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral, Real

import numpy as np
import scipy.sparse as sp
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted

from ._alternate import State, alternate, finish, rwse, warn_singular
from ._callback_support import CallbackSupportMixin, FitTasks
from ._core.kernels import FACTORS
from ._core.parallel import effective_n_threads
from ._core.passes import sampled_product, transpose
from ._core.start import spectral_start
from ._core.sweep import Objective, make_sides
from ._fitted import freeze, get_side, project, store
from ._from_factors import from_factors
from ._memory import check_memory
from ._recommend import explain, recommend, similar
from ._saving import SaveMixin
from ._stored import StoredMatrix
from ._validation import (
    as_matrix,
    check_axis,
    check_entry_weights,
    check_indices,
    check_matrix,
    check_numbers,
    check_weights,
    is_distributed,
    refuse_distributed,
)
from ._vectors import item_vectors
from .checkpoint import Checkpoints, make_key

_DTYPES = [np.float64, np.float32]


class WALS(
    SaveMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Weighted alternating least squares factorization of a sparse matrix.

    A sparse matrix A of n samples (users, documents, ...) and m features (items, terms, ...) is
    approximated by :math:`U V^T`, with factors U of shape (n, k) and V of shape (m, k) that
    minimise

    .. math::

        L(U, V) = \sum_{ij} w_{ij} (a_{ij} - u_i \cdot v_j)^2
                  + \sum_i \lambda_i |u_i|^2 + \sum_j \mu_j |v_j|^2

    over *all* n m entries, where

    .. math::

        w_{ij} &= w_0 & \text{where } (i, j) \text{ is not stored; its target is 0} \\
        w_{ij} &= w_0 + w\, R_i\, C_j\, E_{ij} & \text{where } (i, j) \text{ is stored} \\
        \lambda_i &= \lambda \Big(\sum_j w_{ij}\Big)^\nu, &
        \mu_j = \lambda \Big(\sum_i w_{ij}\Big)^\nu

    with :math:`w_0` = `unobserved_weight`, w = `observed_weight`, R = `row_weights` and
    E = `entry_weights` of `fit`, C = `col_weights`, :math:`\lambda` = `regularization` and
    :math:`\nu` = `regularization_exponent`. With ``regularization_by="count"``, the number of
    stored entries with a positive target stands in place of the sums of weights.

    One *sweep* solves all rows with V fixed, or all columns with U fixed. One *iteration* is a row
    sweep and a column sweep. This is the model of TensorFlow 1's ``WALSMatrixFactorization`` [1]_,
    of implicit-feedback ALS [2]_ and, with ``regularization_exponent=1``, of its frequency-scaled
    form [3]_ [4]_.

    Parameters
    ----------
    n_components : int, default=64
        The number of components k.

    unobserved_weight : float, default=0.1
        The weight :math:`w_0 \ge 0` of every entry, stored or not. With 0 only stored entries
        count.

    observed_weight : float, default=1.0
        The extra weight :math:`w \ge 0` of stored entries. With 0 every entry has the same weight,
        and all rows share one system of equations.

    col_weights : None, array-like of shape (n_features,) or callable, default=None
        Non-negative weights C of the columns; None stands for 1. A callable gets the number of
        stored entries of each column, an int array of shape (n_features,), and returns the
        weights: see `wals.weights.power_law`. Weights of the rows are passed to `fit`, so that
        cross-validation slices them.

    regularization : float, default=7.0
        The strength :math:`\lambda \ge 0` of the L2 regularization. The default is a compromise
        for matrices of ones: with the other defaults it ranks held-out entries within 8 % (NDCG@20)
        of the best value and exponent on each of four data sets, for which the best values are 0.1,
        6, 6 and 12. It scales with the weights.

    regularization_exponent : float, default=0.0
        The power :math:`\nu \ge 0` of the total weight of a row or column that its regularization
        is proportional to. 0 is plain L2; 1 regularizes an item in proportion to its data, which
        ranks as well with a value of `regularization` for each data set, but no one value suits
        many.

    regularization_by : {"weight", "count"}, default="weight"
        What of a row or column :math:`\nu` is the power of: its total weight, or the number of its
        stored entries with a positive target, as in Spark, whatever their weights. Without any of
        those an item is not regularized, unless :math:`\nu = 0`. Set it before `fit`.

    implicit : bool, default=False
        Whether the stored values are confidences rather than targets: the target of a stored value
        a is then 1 if a > 0 else 0, and \|a\| multiplies its entry weight [2]_.

    solver : {"auto", "exact", "cg"}, default="auto"
        How an item, a row or a column, is solved in a sweep of `fit`.

        - "exact": to working precision, by whichever is cheaper: preconditioned conjugate gradients
          or a Cholesky factorisation, in k dimensions or in as many as the item has stored entries.
        - "cg": by up to six steps of preconditioned conjugate gradients, from the factors of the
          sweep before.
        - "auto": whatever lowers the loss soonest. It takes steps until the next one would lower
          the loss of an item by less than 1e-4 of it, from
          :math:`(w_0 V^T V + \lambda_i I)^{-1} \sum_j c_{ij} v_j`, which is the solution for
          :math:`c_{ij} = w_{ij} a_{ij} - (w_{ij} - w_0) u_i \cdot v_j`. Those of the sweep before
          are kept, in one byte for every stored entry: they change less than the factors do. Each
          iteration starts from an extrapolation of V (Nesterov), which is given up when the loss
          rises. The final loss is at most 1e-3 (relative) above that of "exact", and lower as a
          rule.

        The last row sweep of `fit`, and all projections, are exact. With float32 data, "cg" and
        "auto" gather large fixed factors as 16-bit numbers, and "auto" as 8-bit numbers as long as
        an iteration lowers the loss by more than 0.2 %; the loss hardly shows it.

    init : {"svd", "random"} or array-like of shape (n_features, n_components), default="svd"
        Where V starts. Rows are solved first, so that U has no start.

        - "svd": an orthogonal basis of nearly the dominant right singular vectors of the targets,
          by two iterations with equal weights. It costs about as much as one iteration, and saves
          more.
        - "random": uniformly drawn from [0, 1 / sqrt(n_components)).

    max_iter : int, default=10
        The largest number of iterations. On the same data, the quality of a ranking after 5 and
        after 30 is within 2 % of that after 10; the loss still falls.

    tol : float, default=0.0
        Stop when the relative decrease of the loss over one iteration falls below this. With 0 all
        `max_iter` iterations are run.

    warm_start : bool, default=False
        Whether `fit` starts from the factors of the previous fit, if there was one.

    n_jobs : int, default=None
        The number of threads inside a sweep. None stands for all that Numba may use
        (``NUMBA_NUM_THREADS``, which joblib sets for its workers), -1 too. The result does not
        depend on it.

    random_state : int, RandomState instance or None, default=None
        Determines the start. Pass an int for reproducible results across calls.

    verbose : int, default=0
        1 prints a line per iteration, 2 a line per sweep.

    checkpoint_dir : str or path-like, default=None
        A folder where `fit` keeps its state, so that the same fit goes on where it was interrupted,
        and ends with the same factors to the bit; on a Dask cluster, where what sweeps keep is not
        written, that holds for "exact", and otherwise the final loss hardly differs. The folder is
        made if it is not there. None keeps nothing. Any number of fits can share a folder: what a
        fit finds is told by its data, weights and parameters, but for `max_iter`, `tol`, `n_jobs`,
        `verbose` and callbacks, so that a larger `max_iter` trains on. With ``random_state=None``,
        the last one of such fits is gone on with. A fit that has ended leaves its last two states,
        which may be deleted.

    checkpoint_every : int, default=1
        The number of iterations between two states. They are written while the next iteration
        runs.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        :math:`V^T`.

    row_factors_ : ndarray of shape (n_samples, n_components)
        U, optimal for `components_`. After a fit on a Dask cluster it is a ``dask.array``, whose
        blocks are on the workers, and so is `row_weights_`; copies and pickles are without them.
        See `wals.distributed.gather_rows`.

    row_weights_ : ndarray of shape (n_samples,)
        The weights R of the rows.

    col_weights_ : ndarray of shape (n_features,)
        The weights C of the columns.

    loss_ : float
        The loss L.

    rwse_ : float
        The root weighted squared error,
        :math:`\sqrt{\sum_{ij} w_{ij} (a_{ij} - u_i \cdot v_j)^2 / \sum_{ij} w_{ij}}`.

    loss_curve_ : ndarray of shape (2 * n_iter_ + 1,)
        The loss after every sweep. With "auto", a row sweep may end with more than the column sweep
        before it, since it starts from extrapolated columns.

    rwse_curve_ : ndarray of shape (2 * n_iter_ + 1,)
        The RWSE after every sweep.

    seconds_ : ndarray of shape (2 * n_iter_ + 1,)
        The seconds from the start of the first sweep to the end of every one, callbacks included:
        the one attribute that differs between equal fits.

    n_iter_ : int
        The number of iterations that made the model: all that were run, unless
        `wals.callbacks.EarlyStopping` went back to an earlier one.

    n_features_in_ : int
        Number of features seen during :term:`fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during :term:`fit`. Defined only when `X` has feature names that are
        all strings.

    See Also
    --------
    sklearn.decomposition.NMF : Unweighted factorization into non-negative factors.
    sklearn.decomposition.TruncatedSVD : The optimum for equal weights without regularization.
    wals.callbacks.EarlyStopping : Stop when held-out entries are ranked no better.
    wals.plotting.LossCurveDisplay : Plot `loss_curve_`.

    Notes
    -----
    *Stored* means stored: an explicit zero of a sparse matrix is an observed entry with target 0.
    A dense array stores its non-zeros, and a masked one those that are not masked. Duplicates are
    summed, in the precision of the factors.

    A row or column without stored entries has a factor of 0. A singular system
    (without regularization, or where it vanishes next to huge weights) gets the solution of minimum
    norm, and one warning tells how many there were.

    All factors have the precision of X: float32 or float64. A float32 CSR matrix is not copied.
    Losses are those of the factors as they are, in float64: next to large values, what is left of
    them may be the rounding of the factors.

    With scikit-learn >= 1.9, ``set_callbacks(...)`` has `fit` call callbacks, also those of
    ``sklearn.callback``, for the fit and for each iteration. The `fitted_estimator` that a callback
    asks for at the end of an iteration is what a fit with this `max_iter` gives, and takes its last
    row sweep. Where `fit` gets no y, callbacks get X for it, so that a ``ScoringMonitor`` scores.

    References
    ----------
    .. [1] ``tf.contrib.factorization.WALSMatrixFactorization``, TensorFlow 1.12, 2018.
    .. [2] Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets",
       ICDM 2008.
    .. [3] Zhou, Wilkinson, Schreiber and Pan, "Large-Scale Parallel Collaborative Filtering for
       the Netflix Prize", AAIM 2008.
    .. [4] Rendle, Krichene, Zhang and Koren, "Revisiting the Performance of iALS on Item
       Recommendation Benchmarks", RecSys 2022.

    Examples
    --------
    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> X = load_msweb()
    >>> model = WALS(n_components=16, max_iter=5, random_state=0).fit(X[:30_000])
    >>> model.transform(X[30_000:]).shape
    (2711, 16)
    >>> print(f"{model.score(X[30_000:]):.3f}")
    -0.137
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "unobserved_weight": [Interval(Real, 0, np.inf, closed="left")],
        "observed_weight": [Interval(Real, 0, np.inf, closed="left")],
        "col_weights": [None, "array-like", callable],
        "regularization": [Interval(Real, 0, np.inf, closed="left")],
        "regularization_exponent": [Interval(Real, 0, np.inf, closed="left")],
        "regularization_by": [StrOptions({"weight", "count"})],
        "implicit": ["boolean"],
        "solver": [StrOptions({"auto", "exact", "cg"})],
        "init": [StrOptions({"svd", "random"}), "array-like"],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "n_jobs": [
            None,
            Interval(Integral, 1, None, closed="left"),
            Interval(Integral, None, -1, closed="right"),
        ],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "checkpoint_dir": [None, str, os.PathLike],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left")],
    }

    # With metadata routing, Pipeline.score hands sample_weight=None to every final step, and
    # refuses those that do not know the name. None: known, neither requested nor refused.
    __metadata_request__score = {"sample_weight": None}  # noqa: RUF012

    def __init__(
        self,
        n_components=64,
        *,
        unobserved_weight=0.1,
        observed_weight=1.0,
        col_weights=None,
        regularization=7.0,
        regularization_exponent=0.0,
        regularization_by="weight",
        implicit=False,
        solver="auto",
        init="svd",
        max_iter=10,
        tol=0.0,
        warm_start=False,
        n_jobs=None,
        random_state=None,
        verbose=0,
        checkpoint_dir=None,
        checkpoint_every=1,
    ):
        self.n_components = n_components
        self.unobserved_weight = unobserved_weight
        self.observed_weight = observed_weight
        self.col_weights = col_weights
        self.regularization = regularization
        self.regularization_exponent = regularization_exponent
        self.regularization_by = regularization_by
        self.implicit = implicit
        self.solver = solver
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every

    # ------------------------------------------------------------------------------- scikit-learn

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __setstate__(self, state):
        super().__setstate__(state)
        freeze(self, copied=True)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "components_")

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    @property
    def col_factors_(self):
        """V, of shape (n_features, n_components): the transpose of `components_`."""
        return self.components_.T

    # ------------------------------------------------------------------------------------ fitting

    @classmethod
    def from_factors(
        cls, components, row_factors=None, *, row_weights=None, col_weights=None, **parameters
    ):
        """Make a fitted model of factors that were trained elsewhere.

        It transforms, recommends, explains, evaluates, learns more by `partial_fit` and is saved
        like any other. README tells which parameters state the objectives of other libraries.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features)
            :math:`V^T`: the transpose of what most libraries keep of items. It is copied.

        row_factors : array-like of shape (n_samples, n_components), default=None
            U. None stands for no rows: they are projected when they come.

        row_weights : float or array-like of shape (n_samples,), default=None
            Weights R of the rows; None stands for 1.

        col_weights : array-like of shape (n_features,), default=None
            Weights C of the columns, which become the parameter of this name; None stands for 1.

        **parameters
            Other parameters of `WALS`, by which rows and columns are projected.

        Returns
        -------
        model : WALS
            float32 if both factors are, else float64.

        Raises
        ------
        ValueError
            If shapes do not agree, or a number is not finite, or a parameter is out of its range.

        TypeError
            If there is no parameter of a name, or factors are sparse or masked.

        Notes
        -----
        What is not known without X is left out: `loss_`, `rwse_` and the curves. Nor are the total
        weights of the given rows and columns, so that with a `regularization_exponent` other than
        0, "loss" and "penalty" of `evaluate` are NaN, until `partial_fit` has been given the fixed
        side; what is projected does not depend on them.

        Examples
        --------
        >>> import numpy as np
        >>> from wals import WALS
        >>> V = np.array([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]])  # a row for each item
        >>> model = WALS.from_factors(V.T, regularization=0.1, n_jobs=1)
        >>> model.recommend([[1.0, 0.0, 0.0]], n=1)[0]
        array([[1]])
        """
        parameters["col_weights"] = col_weights
        return from_factors(cls, components, row_factors, row_weights, parameters)

    def fit(self, X, y=None, *, row_weights=None, entry_weights=None):
        """Factorise X.

        Runs up to `max_iter` iterations and one last row sweep, always exact, after which
        `row_factors_` is optimal for `components_`.

        Parameters
        ----------
        X : {array-like, sparse matrix, data frame} of shape (n_samples, n_features)
            The matrix to factorise. A CSR matrix of floats is used without copying. What is not
            known is left out: it is not stored, or 0 in a dense array, but not NaN. A matrix on
            disk, from `wals.storage`, is trained from there. A matrix on a Dask cluster, a
            ``dask.array`` or a list of delayed or futures of blocks of rows, is factorised there,
            by the workers of the active ``distributed.Client``.

        y : Ignored
            Not used, present for API consistency by convention.

        row_weights : float or array-like of shape (n_samples,), default=None
            Non-negative weights R of the rows; None stands for 1. With X on a cluster, this and
            `entry_weights` may be there, too.

        entry_weights : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
            Non-negative weights E of the stored entries of X. A sparse matrix stores the same
            positions as X, on disk if X is there.

        Returns
        -------
        self : object
            The fitted estimator. A fit that fails or is interrupted leaves the estimator as it
            was.

        Raises
        ------
        ValueError
            If X or a weight has a wrong shape, is complex, negative (weights) or not finite, or if
            a parameter is out of its range.

        TypeError
            If X is no matrix in memory, or a weight is masked.

        MemoryError
            If the fit needs more memory than this process may use, before it begins.

        RuntimeError
            If workers of a cluster are lost again and again, or with what cannot be made again, or
            have no memory left. Without a client, a Dask collection is a ValueError.
        """
        with _unchanged_on_error(self):
            self._fit(X, y, row_weights, entry_weights)
        return self

    def fit_transform(self, X, y=None, *, row_weights=None, entry_weights=None):
        """Factorise X and return the factors of its rows.

        Parameters
        ----------
        X, y, row_weights, entry_weights
            See `fit`.

        Returns
        -------
        U : ndarray of shape (n_samples, n_components)
            A copy of `row_factors_`.
        """
        weights = {"row_weights": row_weights, "entry_weights": entry_weights}
        return self.fit(X, y, **weights).row_factors_.copy()

    @_fit_context(prefer_skip_nested_validation=True)
    def _fit(self, X, y, row_weights, entry_weights):
        tasks, auto = FitTasks(self, X, y, row_weights), self.solver == "auto"
        n_threads = effective_n_threads(self.n_jobs)
        settings = self._objective(), self.n_components, self.solver
        checkpoints, R, E = None, None, None
        if self.checkpoint_dir is not None:
            checkpoints = Checkpoints(self.checkpoint_dir, self.checkpoint_every)
        if is_distributed(X):
            from .distributed._sides import Matrix

            X = Matrix(X, row_weights, entry_weights)
            self.n_features_in_ = X.shape[1]
            vars(self).pop("feature_names_in_", None)
            C = self._check_col_weights(X.shape[1], lambda: X.counts)
            U, V, drawn = self._start(None, X.shape[1], X.dtype)
            rows, cols = X.sides(C, (*settings, self.n_jobs))
        else:
            X = check_matrix(X, dtype=_DTYPES, estimator=self, stored=True)
            R = check_weights(row_weights, X.shape[0], "row_weights")
            E = None if entry_weights is None else check_entry_weights(entry_weights, X)
            C = self._check_col_weights(X.shape[1], partial(_count_columns, X))
            stored = isinstance(X, StoredMatrix)
            check_memory(
                X,
                self.n_components,
                auto=auto,
                entry_weights=E is not None,
                stored=stored,
                kept=checkpoints is not None,
            )
            U, V, drawn = self._start(*X.shape, X.dtype)
            rows, cols = make_sides(X, (R, C), E, *settings, n_threads)
        tasks.cols = cols
        tasks.attributes_of = partial(self._attributes, rows, cols)
        with checkpoints or nullcontext():
            state, ended = State(V, 0.0, rows.sum_weights, self.verbose), None
            limits = {"max_iter": self.max_iter, "tol": self.tol}
            if checkpoints is not None:
                start = (None, None) if drawn and self.random_state is None else (U, V)
                checkpoints.find(make_key(self, X, (R, C, E), start))
                checkpoints.beside = not isinstance(X, StoredMatrix)
                ended = checkpoints.resume(state, rows, cols, tasks, **limits)
            if ended is None:
                if U is not None:
                    rows.factors, rows.start = U, FACTORS
                elif drawn and self.init == "svd":
                    V = spectral_start(rows, cols, V)
                cols.factors, cols.start = V, FACTORS
                state = State(V, cols.penalty(), rows.sum_weights, self.verbose)
            ended = ended or alternate(
                rows,
                cols,
                state,
                auto=auto,
                n_threads=n_threads,
                tasks=tasks,
                checkpoints=checkpoints,
                **limits,
            )
            n_iter = state.n_iter
            if tasks.kept is None:
                state.settle(n_threads)
            else:
                state = tasks.kept
                state.verbose = self.verbose
            fitted = self._attributes(rows, cols, state, rows.factors)
        warn_singular(state.n_singular.values(), X.shape)
        if not ended:
            warnings.warn(
                f"tol={self.tol} was not reached in {n_iter} iterations: increase max_iter or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )
        vars(self).update(fitted)
        freeze(self)
        tasks.end()

    def _attributes(self, rows, cols, state, U=None):
        """Sweep the rows a last time, to factors U if given, and return the fitted attributes."""
        rows = finish(rows, state, U)
        return {
            "row_factors_": rows.factors,
            "components_": state.V.T,
            "row_weights_": rows.weights,
            "col_weights_": cols.weights,
            "_row_mass": rows.mass,
            "_col_mass": cols.mass,
            "loss_curve_": np.array(state.losses),
            "rwse_curve_": np.array(state.rwses),
            "seconds_": np.array(state.seconds),
            "loss_": state.losses[-1],
            "rwse_": state.rwses[-1],
            "n_iter_": state.n_iter,
        }

    def partial_fit(self, X, y=None, *, indices=None, axis=0, weights=None):
        """Solve some rows or columns exactly, with the other side fixed, and store their factors.

        To feed all rows in batches, and then all columns in batches, is one iteration of `fit`.
        The attributes that describe a whole fit (`loss_`, `rwse_`, `loss_curve_`, `rwse_curve_`,
        `seconds_`) are removed, since they no longer hold. The factors are changed in place unless
        the model grows, or they are read-only or mapped from a file.

        A model that is not fitted starts from random factors, also with ``init="svd"``, which needs
        to see all data.

        Callable `col_weights` see the counts of the first batch alone: pass an array where
        batches must add up to a fit.

        Parameters
        ----------
        X : {array-like, sparse matrix}
            The rows, of shape (q, n_features), or with ``axis=1`` the columns, of shape
            (n_samples, q).

        y : Ignored
            Not used, present for API consistency by convention.

        indices : array-like of shape (q,), default=None
            Where the rows or columns stand in the model. Numbers beyond its size let it grow;
            those in between that were never given have a factor of 0. None appends the rows after
            those that the model has; it stands for all columns with ``axis=1``.

        axis : {0, 1}, default=0
            0 for rows, 1 for columns. An unfitted model starts with rows, from columns as `init`
            says.

        weights : float or array-like of shape (q,), default=None
            Their weights. None keeps the weights that the model has for them, and stands for 1 for
            new ones.

        Returns
        -------
        self : object
            The estimator.
        """
        with _unchanged_on_error(self):
            self._partial_fit(X, indices, axis, weights)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def _partial_fit(self, X, indices, axis, weights):
        check_axis(axis)
        refuse_distributed(X, "X")
        X = as_matrix(X, "X")  # a batch is in memory
        if not self.__sklearn_is_fitted__():
            self._begin(X, axis)
        X = self._check_items(X, axis)
        known = get_side(self, axis).weights
        indices = check_indices(indices, X.shape[0], len(known), axis)
        if weights is None:
            weights = np.ones(X.shape[0])
            old = indices < len(known)
            weights[old] = known[indices[old]]
        side, _ = self._project(X, axis, weights)
        store(self, axis, indices, X, side)
        for name in ("loss_", "rwse_", "loss_curve_", "rwse_curve_", "seconds_"):
            vars(self).pop(name, None)

    def _begin(self, X, axis):
        """Initialise the model without rows."""
        if axis == 1:
            raise ValueError(
                "The model has no rows yet: call partial_fit with axis=0 before axis=1."
            )
        X = check_matrix(X, dtype=_DTYPES, estimator=self)
        self.col_weights_ = self._check_col_weights(X.shape[1], partial(_count_columns, X))
        _, V, _ = self._start(0, X.shape[1], X.dtype)
        self.components_, self.row_factors_ = V.T, np.zeros((0, V.shape[1]), X.dtype)
        self.row_weights_, self._row_mass, self._col_mass = *np.empty((2, 0)), np.zeros(X.shape[1])
        self.n_iter_ = 0

    # --------------------------------------------------------------------------------- using a fit

    def transform(self, X, *, axis=0, weights=None):
        """Project rows, or columns, on the fitted factors of the other side.

        Parameters
        ----------
        X : {array-like, sparse matrix}
            Rows, of shape (q, n_features), or with ``axis=1`` columns, of shape (n_samples, q). It
            may be on disk, see `wals.storage`. Rows may be a Dask collection, as in `fit`; the
            result is a ``dask.array`` then.

        axis : {0, 1}, default=0
            0 projects rows on `components_`, 1 projects columns on `row_factors_`.

        weights : float or array-like of shape (q,), default=None
            Non-negative weights of the projected rows or columns; None stands for 1. The weights
            of the fixed side are the model's own.

        Returns
        -------
        U : ndarray of shape (q, n_components)
            The exact minimisers; for the rows of `fit`, with their weights, `row_factors_`.
        """
        check_is_fitted(self)
        check_axis(axis)
        if is_distributed(X):
            from .distributed import _models

            return _models.transform(self, X, axis, weights)
        items = self._check_items(X, axis)
        factors = self._project(items, axis, weights)[0].factors
        if axis == 0 or not hasattr(X, "iloc"):
            return factors
        # set_output would index the factors of the columns by the rows of X.
        to_pandas = _get_output_config("transform", self)["dense"] == "pandas"
        return type(X)(factors, index=X.columns) if to_pandas else factors

    def inverse_transform(self, U, *, pattern=None):
        """Compute the approximation of X from factors of its rows.

        Parameters
        ----------
        U : array-like of shape (q, n_components)
            Factors of rows, from `transform`.

        pattern : sparse matrix of shape (q, n_features), default=None
            Where to compute it. None stands for everywhere.

        Returns
        -------
        X : ndarray or CSR array of shape (q, n_features)
            ``U @ components_``, or its values at the stored positions of `pattern` alone.
        """
        check_is_fitted(self)
        U = check_numbers(U, "U", dtype=self.components_.dtype, order="C")
        k, m = self.components_.shape
        if U.shape[1] != k:
            raise ValueError(f"U has {U.shape[1]} columns, but WALS has {k} components.")
        if pattern is None:
            return U @ self.components_
        pattern = sp.csr_array(as_matrix(pattern, "pattern"))
        if pattern.shape != (U.shape[0], m):
            raise ValueError(f"pattern has shape {pattern.shape}, but {(U.shape[0], m)} is needed.")
        pattern.check_format(full_check=True)
        n_threads = effective_n_threads(self.n_jobs)
        structure = (pattern.indices.copy(), pattern.indptr.copy())
        V = self.col_factors_
        values = sampled_product(U, V, *structure, dtype=U.dtype, n_threads=n_threads)
        return sp.csr_array((values, *structure), shape=pattern.shape)

    def recommend(self, X, n=10, *, exclude_seen=True, candidates=None, factors=None, weights=None):
        """Return the n best columns of every row, exactly.

        The score of a column is ``u @ components_[:, column]``, summed in float64 and rounded to
        the precision of the factors. Of equal scores, the smaller column's is the better one.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (q, n_features) or None
            The rows, which are projected. With `factors`, it tells no more than what is seen, and
            may be None. X and `factors` may be Dask collections; then the results are, too.

        n : int, default=10
            How many columns.

        exclude_seen : bool or sparse matrix of shape (q, n_features), default=True
            Whether to leave out what a row of X stores; or the positions to leave out instead.

        candidates : array-like of int or bool, or sparse matrix of shape (q, n_features), \
                default=None
            The columns to choose from, by number or as a mask; or the positions, which give each
            row its own. None stands for all columns whose factor is not 0: those that no entry has
            told of are recommended only as candidates by name.

        factors : array-like of shape (q, n_components), default=None
            Factors of the rows, as from `transform` or in `row_factors_`, instead of projecting X.

        weights : float or array-like of shape (q,), default=None
            Weights of the rows in their projection, see `transform`.

        Returns
        -------
        indices : ndarray of shape (q, n), int64
            The columns, best first; -1 where fewer than n are left.

        scores : ndarray of shape (q, n)
            Their scores; -inf where none is left.

        Raises
        ------
        ValueError
            If an argument is none of the above, or shapes do not agree.

        Notes
        -----
        Rows and columns are taken in blocks, so that next to the result and the factors little
        memory is needed. Columns that cannot be among the best of a row are ruled out by bounds on
        their scores; no approximation is made.

        Examples
        --------
        >>> from wals import WALS
        >>> from wals.datasets import load_msweb
        >>> X, titles = load_msweb(return_titles=True)
        >>> model = WALS(n_components=16, max_iter=5, random_state=0).fit(X)
        >>> indices, scores = model.recommend(X[:2], n=3)
        >>> titles[indices[0]].tolist()
        ['Office Free Stuff', 'Knowledge Base', 'promo']
        """
        call = recommend
        if is_distributed(X) or is_distributed(factors):
            from .distributed._models import recommend as call
        return call(self, X, n, exclude_seen, candidates, factors, weights)

    def similar(self, indices, n=10, *, axis=1, metric="cosine"):
        """Return the nearest columns, or rows, of the model to some of them.

        Parameters
        ----------
        indices : int or array-like of int, shape (q,)
            The numbers of columns, or of rows with ``axis=0``.

        n : int, default=10
            How many of the others.

        axis : {0, 1}, default=1
            0 for rows, 1 for columns.

        metric : {"cosine", "dot"}, default="cosine"
            The cosine of the angle between two factors, or their product.

        Returns
        -------
        indices : ndarray of shape (q, n) or (n,), int64
            The nearest, nearest first, without themselves; -1 where fewer than n are left. A factor
            of 0 is similar to nothing. One-dimensional for a single number.

        scores : ndarray of shape (q, n) or (n,)
            The metric; -inf where none is left.

        Raises
        ------
        ValueError
            If an argument is none of the above, or a number is not one of the model.

        Examples
        --------
        >>> from wals import WALS
        >>> from wals.datasets import load_msweb
        >>> X, titles = load_msweb(return_titles=True)
        >>> model = WALS(n_components=16, max_iter=5, random_state=0).fit(X)
        >>> indices, _ = model.similar(titles.tolist().index("Games"), n=3)
        >>> titles[indices].tolist()
        ['sports', 'Games Support', 'Microsoft Home']
        """
        return similar(self, indices, n, axis, metric)

    def explain(self, x, column, n=10, *, weight=None):
        r"""Tell how much each entry of a row contributes to its score of a column.

        With the factors V of the columns fixed, the score is a sum over the stored entries j of the
        row,

        .. math::
            v_c^T M^{-1} \sum_j w_j a_j v_j, \quad
            M = \sum_j w_j v_j v_j^T + \lambda I,

        where M sums over all columns, stored or not; see section 5 of [2]_, here with all weights.

        Parameters
        ----------
        x : {array-like, sparse matrix} of shape (1, n_features)
            The row.

        column : int
            The column whose score is explained.

        n : int, default=10
            How many entries to return, at most.

        weight : float, default=None
            The weight of the row; None stands for 1.

        Returns
        -------
        indices : ndarray of shape (at most n,), int64
            The columns of the entries, by falling absolute contribution.

        contributions : ndarray of the same shape, float64
            Of all entries, they add up to the score.

        Raises
        ------
        ValueError
            If an argument is none of the above.

        Examples
        --------
        >>> from wals import WALS
        >>> from wals.datasets import load_msweb
        >>> X = load_msweb()
        >>> model = WALS(n_components=16, max_iter=5, random_state=0).fit(X)
        >>> indices, scores = model.recommend(X[[7]], n=1)
        >>> _, contributions = model.explain(X[[7]], indices[0, 0], n=X.shape[1])
        >>> print(f"{scores[0, 0]:.4f} {contributions.sum():.4f}")
        0.1012 0.1012
        """
        return explain(self, x, column, n, weight)

    def item_vectors(self, metric="dot"):
        """Return the factors of the columns as an index for vector search wants them.

        Parameters
        ----------
        metric : {"dot", "cosine"}, default="dot"
            What the index is to rank by: the inner product, as `recommend` does, or the cosine, as
            `similar` does. For the cosine they are scaled to a norm of 1, so that an index of inner
            products ranks by it.

        Returns
        -------
        vectors : ndarray of shape (q, n_components)
            By falling norm of the factors, since many indexes find more if the longest come first.
            Factors of 0, which are neither recommended nor similar to anything, are left out. A
            copy, in C order.

        columns : ndarray of shape (q,), int64
            The columns that they belong to.

        Examples
        --------
        >>> from wals import WALS
        >>> from wals.datasets import load_msweb
        >>> X = load_msweb()
        >>> model = WALS(n_components=16, max_iter=5, random_state=0).fit(X)
        >>> vectors, columns = model.item_vectors()
        >>> nearest = columns[(vectors @ model.row_factors_[0]).argsort()[::-1]]
        >>> nearest[:3].tolist()
        [1, 0, 2]
        >>> model.recommend(X[:1], n=3, exclude_seen=False)[0].tolist()
        [[1, 0, 2]]
        """
        return item_vectors(self, metric)

    def score(self, X, y=None, *, row_weights=None):
        """Return minus the RWSE of X after projecting its rows: greater is better.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows to score.

        y : Ignored
            Not used, present for API consistency by convention.

        row_weights : float or array-like of shape (n_samples,), default=None
            Weights of the rows; None stands for 1.

        Returns
        -------
        score : float
            ``-evaluate(X, weights=row_weights)["rwse"]``.
        """
        return -self.evaluate(X, weights=row_weights)["rwse"]

    def evaluate(self, X, *, axis=0, weights=None):
        """Project rows, or columns, and return the loss that they have then.

        Parameters
        ----------
        X, axis, weights
            See `transform`.

        Returns
        -------
        result : dict
            - "loss": L of these items and the whole fixed side, the sum of the next two;
            - "data_loss": the weighted squared error of these items;
            - "penalty": the regularization terms of both sides;
            - "rwse": the root weighted squared error of these items;
            - "sum_weights": the sum of their weights over all entries.
        """
        check_is_fitted(self)
        check_axis(axis)
        if is_distributed(X):
            from .distributed import _models

            data_loss, penalty, sum_weights = _models.evaluate(self, X, axis, weights)
        else:
            data_loss, penalty, sum_weights = self._evaluate(X, axis, weights)
        fixed = get_side(self, 1 - axis)
        penalty += self._objective().penalty(fixed.factors, fixed.mass)
        return {
            "loss": data_loss + penalty,
            "data_loss": data_loss,
            "penalty": penalty,
            "rwse": rwse(data_loss, sum_weights),
            "sum_weights": sum_weights,
        }

    # ------------------------------------------------------------------------------------- private

    def __getstate__(self):
        """Return what a copy and a pickle have: all but what is on a cluster."""
        state = super().__getstate__()
        return {name: value for name, value in state.items() if not is_distributed(value)}

    def _objective(self):
        return Objective(
            float(self.unobserved_weight),
            float(self.observed_weight),
            float(self.regularization),
            float(self.regularization_exponent),
            bool(self.implicit),
            self.regularization_by,
        )

    def _start(self, n, m, dtype):
        """Return what to start from, and how it was found.

        Returns
        -------
        U : ndarray of shape (n, k) or None
            The factors of the rows, if those of the last fit may serve.
        V : ndarray of shape (m, k)
        drawn : bool
            Whether V is random.
        """
        k, drawn = self.n_components, False
        resumed = self.warm_start and self.__sklearn_is_fitted__()
        if resumed:
            V = self.col_factors_.astype(dtype, order="C")
            source = "warm_start=True: the previous fit"
        elif isinstance(self.init, str):
            random, drawn = check_random_state(self.random_state), True
            V = np.empty((m, k), dtype)
            for block in gen_batches(m, max(1, 2**16 // k)):
                V[block] = random.uniform(size=V[block].shape) / np.sqrt(k)
        else:
            V = check_numbers(self.init, "init", dtype=dtype, order="C", copy=True)
            source = "init"
        if V.shape != (m, k):
            raise ValueError(f"{source} has factors of shape {V.shape}, but {(m, k)} is needed.")
        U = getattr(self, "row_factors_", None)
        if resumed and isinstance(U, np.ndarray) and U.shape == (n, k):
            return U.astype(dtype, order="C"), V, drawn
        return None, V, drawn

    def _check_col_weights(self, m, count):
        """Return the weights of m columns, given a function that counts their entries."""
        given = self.col_weights
        return check_weights(given(count()) if callable(given) else given, m, "col_weights")

    def _check_items(self, X, axis):
        """Return the rows, or columns, to solve as the rows of a CSR in the model's precision."""
        dtype = self.components_.dtype
        if axis == 0:
            return check_matrix(X, dtype=dtype, estimator=self, reset=False, stored=True)
        X = check_matrix(X, dtype=dtype, stored=True)
        n = len(get_side(self, 0).factors)
        if X.shape[0] != n:
            raise ValueError(
                f"X has {X.shape[0]} rows, but WALS was fitted on {n}: with axis=1, X holds "
                "columns over the rows of the fit."
            )
        if isinstance(X, StoredMatrix):
            return X.T
        return transpose(X, n_threads=effective_n_threads(self.n_jobs))

    def _project(self, X, axis, weights, *, whole=False):
        """Solve the rows of X exactly, and return them as a side, and what the sweep told."""
        parameters = {name: getattr(self, name) for name in _PROJECTING}
        validate_parameter_constraints(_PROJECTING, parameters, type(self).__name__)
        weights = check_weights(weights, X.shape[0], "weights")
        side, swept = project(self, X, axis, weights, whole=whole)
        n_singular = (swept.n_singular, 0) if axis == 0 else (0, swept.n_singular)
        warn_singular(n_singular, (X.shape[0],) * 2)
        return side, swept

    def _evaluate(self, X, axis, weights):
        """Return the data loss, penalty and sum of weights of projected rows, or columns."""
        side, swept = self._project(self._check_items(X, axis), axis, weights, whole=True)
        data_loss = side.data_loss(swept, get_side(self, 1 - axis).factors)
        return data_loss, swept.penalty, side.sum_weights


def _count_columns(X):
    """Return how many entries each column of a matrix stores."""
    if isinstance(X, StoredMatrix):
        return np.diff(X.T.indptr)
    return np.bincount(X.indices, minlength=X.shape[1])


#: The parameters that a projection depends on, and what they may be.
_PROJECTING = {name: WALS._parameter_constraints[name] for name in (*Objective._fields, "n_jobs")}


@contextmanager
def _unchanged_on_error(estimator):
    """Give the estimator its attributes back if the block raises, KeyboardInterrupt included."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
