"""From a table of interactions to recommendations, in its own ids."""

from copy import copy
from numbers import Integral

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, _fit_context, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._biases import fit_biases, fold_in_biases, residuals
from ._encoding import AGGREGATES, as_array, encode, gather_matrix, sortable
from ._fitted import check_home
from ._recommend import check_n
from ._saving import SaveMixin
from ._tables import Table, as_list, make_table, names_of_ids, numbers
from ._validation import check_weights, is_distributed
from ._wals import WALS
from .metrics import ndcg_at_k

__all__ = ["Recommender"]

#: How many items `Recommender.score` ranks.
N_SCORED = 20
#: How newer interactions join the entries of a user that are aggregated already.
_JOIN = {"sum": "sum", "count": "sum", "max": "max", "mean": "last", "last": "last"}
_COLUMN = [str, Interval(Integral, 0, None, closed="left")]


class Recommender(SaveMixin, BaseEstimator):
    r"""Recommend items to users, from a table of interactions and in its ids.

    The interactions are gathered into a sparse matrix of users and items, which a `wals.WALS`
    factorises.

    Parameters
    ----------
    estimator : WALS, default=None
        What factorises the matrix. None stands for ``WALS()``, and with biases for
        ``WALS(unobserved_weight=0)``.

    user, item : str or int, default=0 and 1
        The columns of the ids, by name or by position from 0.

    value : str or int, default=None
        The column of the values. Without it, and without `y`, an interaction counts 1.

    time : str or int, default=None
        The column of the times: of any type that can be ordered. For ``aggregate="last"``.

    aggregate : {"sum", "mean", "max", "last", "count"}, default="sum"
        What becomes of several interactions of the same user and item. "last" takes the value of
        the latest; of those at the same time, that of the later row. "count" ignores values.

    row_weights : callable, default=None
        Gets the number of items of each user, an int array, and returns the weights of the users:
        see `wals.weights.power_law`. None stands for 1.

    biases : bool, default=False
        Whether values are ratings, say, that differ by user and item before they do by taste. The
        factors are then of what a mean and biases leave; see Notes. It needs an estimator with
        ``unobserved_weight=0``.

    Attributes
    ----------
    users_, items_ : ndarray of shape (n_users,) and (n_items,)
        The ids of rows and columns. They are ascending; those that cannot be compared, as numbers
        and strings, are in the order of the names of their types and of what they are written as.
        The dtype is object where no other holds the ids exactly.

    interactions_ : csr_array of shape (n_users, n_items), float32
        The aggregated values. After a fit on a Dask cluster it is a ``dask.array``, whose blocks
        stay on the workers, as the factors of users do. See `wals.distributed.gather_rows`.

    estimator_ : WALS
        The fitted estimator.

    mean_ : float
        The mean of the values; 0 without biases.

    user_biases_, item_biases_ : ndarray of shape (n_users,) and (n_items,), float64
        0 without biases.

    n_features_in_ : int
        The number of columns of the table.

    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names. Defined only if all are strings.

    See Also
    --------
    wals.WALS : The same for a sparse matrix, and what the methods rest on.
    wals.interactions.read_interactions : Read a file into a sparse matrix.

    Notes
    -----
    A *table* is whatever narwhals reads, as a data frame of pandas or Polars or a table of Arrow,
    or else an array of two dimensions, a structured array, or a list of tuples. Results are tables
    of the library of the table that `fit` saw, or record arrays.

    With the ``dask`` extra, `fit` also takes a Dask data frame, or array, or a list of delayed or
    futures of tables, and the workers of the active ``distributed.Client`` encode the ids, gather
    the interactions and fit. The ids come to the client, and so does what is asked of some users;
    `recommend` for all is a Dask data frame, or for other tables a list of delayed. Other methods
    take tables in memory. Users are there as long as that client is open, unless
    `wals.distributed.gather_rows` brings them home. Data frames of Dask make strings of ids that
    are other objects, as tuples; lists of tables do not.

    Ids may be of any type that can be hashed, and must not be missing. Categories are compared as
    what they stand for, lists as tuples. The model does not depend on the order of the rows, but
    for the rounding of sums and for interactions at the same time.

    With biases, the value of user u and item i is predicted as

    .. math:: \mu + b_u + b_i + u_u \cdot v_i,

    kept within the range of the values of `fit`. :math:`\mu` is the mean, weighted as the values
    are; the biases minimise the weighted squared error of :math:`\mu + b_u + b_i` plus
    :math:`5 \sum_u b_u^2 + 4 \sum_i b_i^2`, so that

    .. math:: b_u = \frac{\sum_i e_{ui} (r_{ui} - \mu - b_i)}{5 + \sum_i e_{ui}}, \quad
              b_i = \frac{\sum_u e_{ui} (r_{ui} - \mu - b_u)}{4 + \sum_u e_{ui}};

    and the factors are fitted on what is left. See section 2.1 of [1]_.

    References
    ----------
    .. [1] Y. Koren (2010). Factor in the neighbors: Scalable and accurate collaborative filtering.
       ACM Transactions on Knowledge Discovery from Data 4(1).

    Examples
    --------
    >>> import pandas as pd
    >>> from wals import WALS, Recommender
    >>> orders = pd.DataFrame(
    ...     {
    ...         "customer": ["Ada", "Ada", "Bea", "Bea", "Cem", "Cem", "Dan"],
    ...         "sku": ["tea", "milk", "tea", "milk", "nails", "glue", "tea"],
    ...     }
    ... )
    >>> estimator = WALS(2, regularization=0.1, random_state=0)
    >>> model = Recommender(estimator, user="customer", item="sku").fit(orders)
    >>> model.recommend(["Dan"], n=1)[["customer", "sku", "rank"]]
      customer   sku  rank
    0      Dan  milk     1
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [None, WALS],
        "user": _COLUMN,
        "item": _COLUMN,
        "value": [None, *_COLUMN],
        "time": [None, *_COLUMN],
        "aggregate": [StrOptions(set(AGGREGATES))],
        "row_weights": [None, callable],
        "biases": ["boolean"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        user=0,
        item=1,
        value=None,
        time=None,
        aggregate="sum",
        row_weights=None,
        biases=False,
    ):
        self.estimator = estimator
        self.user = user
        self.item = item
        self.value = value
        self.time = time
        self.aggregate = aggregate
        self.row_weights = row_weights
        self.biases = biases

    def set_params(self, **params):
        """Set parameters; those of the estimator, as ``estimator__n_components``, too.

        Parameters
        ----------
        **params : dict
            Where `estimator` is None, and parameters of it are set, it becomes what None stands
            for.

        Returns
        -------
        self : object
        """
        of_estimator = {name: params[name] for name in params if name.startswith("estimator__")}
        super().set_params(**{name: params[name] for name in params if name not in of_estimator})
        if of_estimator and self.estimator is None:
            self.estimator = self._default()
        return super().set_params(**of_estimator)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    def __getstate__(self):
        state = super().__getstate__()
        for name in ("_places", "_there"):
            state.pop(name, None)
        return {name: value for name, value in state.items() if not is_distributed(value)}

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, sample_weight=None):
        """Factorise the interactions of a table.

        Parameters
        ----------
        X : table with the columns `user`, `item`, `value` and `time`
            A row for each interaction. If it is a Dask data frame, `y` and `sample_weight` may be
            series with as many partitions; whatever they are, they go by position.

        y : array-like of shape (n_rows,), default=None
            The values, in place of the column `value`.

        sample_weight : array-like of shape (n_rows,), default=None
            Non-negative weights of the interactions: `entry_weights` of `wals.WALS.fit`. Of several
            of the same user and item, the mean counts.

        Returns
        -------
        self : object
            A fit that fails leaves the recommender as it was.

        Raises
        ------
        ValueError
            If a column or an id is missing, the table is empty, a value is not finite, a weight is
            negative, or the parameters are none of the above or do not agree; or if a Dask
            collection comes without a client.

        RuntimeError
            As `wals.WALS.fit`, on a cluster.
        """
        estimator = self._default() if self.estimator is None else clone(self.estimator)
        estimator._validate_params()
        if self.aggregate == "last" and self.time is None:
            raise ValueError("aggregate='last' needs the column of the times: time=")
        if self.biases and (estimator.unobserved_weight != 0 or estimator.implicit):
            raise ValueError(
                "biases=True is for values that are known: it needs an estimator with "
                "unobserved_weight=0 and implicit=False."
            )
        gathered = self._gather(X, y, sample_weight)
        users, items, targets = gathered.users, gathered.items, gathered.matrix
        row_weights, fitted = None, (0.0, np.zeros(len(users)), np.zeros(len(items)))
        if self.row_weights is not None:
            row_weights = self.row_weights(gathered.counts())
        if self.biases:
            fitted, targets = gathered.without_biases()
        estimator.fit(targets, row_weights=row_weights, entry_weights=gathered.weights)
        self.users_, self.items_, self.interactions_ = users, items, gathered.interactions
        self.mean_, self.user_biases_, self.item_biases_ = fitted
        self.estimator_ = estimator
        vars(self).pop("_there", None)
        if gathered.there is not None:
            self._there = gathered.there
        self._places, self._by_y = {}, y is not None and self.aggregate != "count"
        self._library, self.n_features_in_ = gathered.library, gathered.n_columns
        names = gathered.names
        columns = self.user, self.item
        if names is not None:
            columns = [x if isinstance(x, str) else names[x] for x in columns]
        self._names = names_of_ids(columns)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def recommend(self, users=None, n=10, *, exclude_seen=True, items=None, interactions=None):
        """Return the n best items of users.

        Parameters
        ----------
        users : sequence of ids, default=None
            None stands for all users of `interactions`, if there are any, else for all of `fit`.

        n : int, default=10
            How many items.

        exclude_seen : bool, default=True
            Whether to leave out the items that a user has.

        items : sequence of ids, default=None
            The items to choose from. None stands for all of `fit`.

        interactions : table, default=None
            Interactions of new users, or newer ones of those of `fit`, with columns as there: that
            of the values, too, if `fit` got any. They are folded in: the factors of these users are
            computed anew, those of items stay. With "sum" and "count" they are added to what a user
            has; with "max" the larger value counts; with "last" and "mean" they replace it. Items
            that `fit` did not see tell nothing.

        Returns
        -------
        table : data frame or record array
            A row for each user and item: the ids, in columns named as in `fit` ("user" and "item"
            where these have no names), "score", and "rank" from 1. Users in the order asked for,
            the best items first. There are fewer than n where fewer are left, and none for a new
            user of whom nothing is known, unless there are biases. After a fit on a Dask cluster,
            what all users are recommended is computed when it is asked for.

        Raises
        ------
        ValueError
            If users or items are unknown: the first five are named. If the table lacks something,
            as in `fit`.

        Notes
        -----
        Scores are the predicted values, but with biases they are not kept within a range. A user
        who is folded in has the weight that `row_weights` gives together with the users of `fit`.
        Weights of single interactions count in `fit` alone.

        Examples
        --------
        >>> from wals import WALS, Recommender
        >>> loans = [("Ada", "Emma"), ("Ada", "Dracula"), ("Bea", "Emma"), ("Bea", "Dracula")]
        >>> loans += [("Cem", "Walden"), ("Cem", "Utopia"), ("Dan", "Emma")]
        >>> model = Recommender(WALS(2, regularization=0.1, random_state=0)).fit(loans)
        >>> model.recommend(["Dan"], n=1)[["user", "item"]].tolist()
        [('Dan', 'Dracula')]
        >>> model.recommend(interactions=[("Eva", "Utopia")], n=1)[["user", "item"]].tolist()
        [('Eva', 'Walden')]
        """
        check_is_fitted(self)
        n = check_n(n)
        if not isinstance(exclude_seen, bool | np.bool_):
            raise ValueError(f"exclude_seen must be True or False, got {exclude_seen!r}.")
        candidates = None if items is None else self._find(items, 1)
        if users is None and interactions is None and "_there" in vars(self):
            from .distributed._tables import recommend_to_all

            return recommend_to_all(self, n, exclude_seen, candidates)
        if interactions is None:
            of_users = self._of_fit(slice(None) if users is None else self._find(users, 0))
            anything = np.ones(len(of_users[0]), dtype=bool)
        else:
            of_users = self._fold_in(users, Table(interactions))
            anything = (np.diff(of_users[1].indptr) > 0) | self.biases
        return self._answer(n, exclude_seen, candidates, *of_users, anything)

    def similar(self, items, n=10):
        """Return the items that are most similar to some.

        Parameters
        ----------
        items : sequence of ids

        n : int, default=10
            How many of the others.

        Returns
        -------
        table : data frame or record array
            A row for each item and one similar to it: the ids, the second named "similar"; "score",
            the cosine of the angle between their factors; and "rank" from 1. See
            `wals.WALS.similar`.

        Raises
        ------
        ValueError
            If items are unknown: the first five are named.

        Examples
        --------
        >>> from wals import WALS, Recommender
        >>> loans = [("Ada", "Emma"), ("Ada", "Dracula"), ("Bea", "Emma"), ("Bea", "Dracula")]
        >>> loans += [("Cem", "Walden"), ("Cem", "Utopia"), ("Dan", "Emma")]
        >>> model = Recommender(WALS(2, regularization=0.1, random_state=0)).fit(loans)
        >>> model.similar(["Walden"], n=1)[["item", "similar"]].tolist()
        [('Walden', 'Utopia')]
        """
        check_is_fitted(self)
        places = self._find(items, 1)
        ranked, scores = self.estimator_.similar(places, n)
        row, place = np.nonzero(ranked >= 0)
        return make_table(
            {
                self._names[1]: self.items_[places[row]],
                "similar": self.items_[ranked[row, place]],
                "score": scores[row, place].astype(np.float64),
                "rank": place + 1,
            },
            self._library,
        )

    def explain(self, user, item, n=10):
        """Tell how much each item of a user contributes to the score of another.

        Parameters
        ----------
        user, item : id
            Of `fit`.

        n : int, default=10
            How many items of the user to return, at most.

        Returns
        -------
        table : data frame or record array
            The ids of the items, and "contribution", the largest absolute ones first. All of them
            add up to the score, or with biases to what it has above mean and biases. See
            `wals.WALS.explain`. Weights of single interactions count in `fit` alone: if there were
            any, the sum is the score of the user folded in without them.

        Raises
        ------
        ValueError
            If the user or the item is unknown.

        Examples
        --------
        >>> from wals import WALS, Recommender
        >>> loans = [("Ada", "Emma"), ("Ada", "Dracula"), ("Bea", "Emma"), ("Bea", "Dracula")]
        >>> loans += [("Cem", "Walden"), ("Cem", "Utopia"), ("Dan", "Emma")]
        >>> model = Recommender(WALS(2, regularization=0.1, random_state=0)).fit(loans)
        >>> model.explain("Dan", "Dracula")["item"].tolist()
        ['Emma']
        """
        check_is_fitted(self)
        row, column = self._find([user], 0), self._find([item], 1)[0]
        x = _take(self, "interactions_", row)
        if self.biases:
            x = residuals(x, self.mean_, self.user_biases_[row], self.item_biases_)
        weight = _take(self.estimator_, "row_weights_", row)[0]
        indices, contributions = self.estimator_.explain(x, column, n, weight=weight)
        columns = {self._names[1]: self.items_[indices], "contribution": contributions}
        return make_table(columns, self._library)

    def predict(self, X):
        """Predict the values of pairs of users and items.

        Parameters
        ----------
        X : table with the columns `user` and `item`

        Returns
        -------
        values : ndarray of shape (n_rows,), float64
            The product of the factors, where user and item are known, else 0; with biases, the mean
            and the biases that are known are added, and the sum is kept within the range of the
            values of `fit`.

        Examples
        --------
        >>> from wals import WALS, Recommender
        >>> ratings = [("Ada", "Emma", 5), ("Bea", "Emma", 4), ("Ada", "Utopia", 2)]
        >>> estimator = WALS(2, unobserved_weight=0, random_state=0)
        >>> model = Recommender(estimator, value=2, biases=True).fit(ratings)
        >>> model.predict([("Bea", "Utopia"), ("Cem", "Emma")]).round(2)
        array([3.35, 3.95])
        """
        check_is_fitted(self)
        rows, cols = (
            self._lookup(axis, ids)[codes]
            for axis, (ids, codes) in enumerate(self._encode(Table(X)))
        )
        # What is unknown is at -1.
        values = self.mean_ + np.r_[self.user_biases_, 0][rows] + np.r_[self.item_biases_, 0][cols]
        known = np.flatnonzero((rows >= 0) & (cols >= 0))
        V = self.estimator_.col_factors_
        for start in range(0, len(known), 2**16):
            t = known[start : start + 2**16]
            U = _take(self.estimator_, "row_factors_", rows[t])
            values[t] += np.einsum("ij,ij->i", U, V[cols[t]], dtype=np.float64)
        if self.biases:
            values.clip(*self._limits(), out=values)
        return values

    def score(self, X, y=None):
        """Return how well the interactions of a table are foretold: NDCG@20.

        For each user, all items but those that the user had in `fit` are ranked; those of X among
        them are relevant. Where X or y have values above 0, only those are.

        Parameters
        ----------
        X : table with the columns of `fit`
            Interactions that `fit` did not see.

        y : array-like of shape (n_rows,), default=None
            Their values.

        Returns
        -------
        score : float
            The mean over the users of `fit` with a relevant item, see `wals.metrics.ndcg_at_k`; nan
            if there is none. Other users do not count, as nothing is known of them. An item that
            `fit` did not see is relevant, and missed.

        Examples
        --------
        >>> from sklearn.model_selection import KFold, cross_val_score
        >>> from wals import WALS, Recommender
        >>> loans = [(user, item) for user in range(8) for item in range(6) if (user + item) % 2]
        >>> model = Recommender(WALS(2, regularization=0.1, random_state=0))
        >>> scores = cross_val_score(model, loans, cv=KFold(3, shuffle=True, random_state=0))
        >>> print(f"{scores.mean():.2f}")
        0.83
        """
        check_is_fitted(self)
        table = Table(X)
        values = self._values(table, y)
        (users, rows), (items, cols) = self._encode(table)
        rows, found = self._lookup(0, users)[rows], self._lookup(1, items)
        relevant = (rows >= 0) & ((values > 0) | ~(values > 0).any())
        if not relevant.any():
            return np.nan
        # Unknown items get columns of their own, which are never ranked.
        n_known, unknown = len(self.items_), found < 0
        found[unknown] = n_known + np.arange(np.count_nonzero(unknown))
        users, rows = np.unique(rows[relevant], return_inverse=True)
        shape = len(users), n_known + np.count_nonzero(unknown)
        coords = rows, found[cols[relevant]]
        truth = gather_matrix(np.ones(len(rows)), coords, None, shape, "max")
        _, *of_users = self._of_fit(users)
        seen = of_users[0].copy()
        seen.resize(shape)
        seen.data[:] = 1
        truth = sp.csr_array(truth - truth.multiply(seen))
        truth.eliminate_zeros()
        rows = np.flatnonzero(np.diff(truth.indptr))
        if not rows.size:
            return np.nan
        ranked, _ = self._rank(*(each[rows] for each in of_users), N_SCORED, True, None)
        return float(ndcg_at_k(truth[rows], ranked, N_SCORED))

    # ------------------------------------------------------------------------------------- private

    def _default(self):
        return WALS(unobserved_weight=0.0) if self.biases else WALS()

    def _gather(self, X, y, sample_weight):
        """Return the interactions of a table in memory, or of those on a cluster."""
        if is_distributed(X):
            from .distributed._tables import ClusterInteractions

            return ClusterInteractions(self, X, y, sample_weight)
        return Interactions(self, X, y, sample_weight)

    def _encode(self, table):
        """Return the ids of users, and those of items, and of each row the places among them."""
        columns = ("user", self.user), ("item", self.item)
        if len({table.place(role, which) for role, which in columns}) < 2:
            raise ValueError(f"user={self.user!r} and item={self.item!r} are the same column.")
        return [
            encode(table.column(role, which), f"column {role}={which!r}") for role, which in columns
        ]

    def _values(self, table, y=None):
        if self.aggregate == "count" or (y is None and self.value is None):
            return np.ones(len(table))
        if y is None:
            name = f"column value={self.value!r}"
            return numbers(table.column("value", self.value), name, len(table))
        return numbers(y, "y", len(table))

    def _times(self, table):
        """Return the times, if they matter."""
        if self.aggregate != "last":
            return None
        return sortable(table.column("time", self.time), f"column time={self.time!r}")

    def _lookup(self, axis, ids):
        """Return the places of ids among the users (axis 0) or items of `fit`, -1 for unknown."""
        if axis not in self.__dict__.setdefault("_places", {}):
            known = (self.users_, self.items_)[axis]
            self._places[axis] = dict(zip(known.tolist(), range(len(known)), strict=True))
        return _look_up(self._places[axis], ids.tolist() if isinstance(ids, np.ndarray) else ids)

    def _find(self, ids, axis):
        """Return the places of ids that are asked for."""
        ids = as_list(ids, ("users", "items")[axis])
        places = self._lookup(axis, ids)
        _refuse_unknown(ids, places, axis)
        return places

    def _of_fit(self, rows):
        """Return ids, entries, factors and biases of users of `fit`."""
        entries = _take(self, "interactions_", rows)
        factors = _take(self.estimator_, "row_factors_", rows)
        return self.users_[rows], entries, factors, self.user_biases_[rows]

    def _counts(self):
        """Return the number of items of each user of `fit`."""
        if is_distributed(vars(self).get("interactions_")):
            from .distributed._tables import count_items

            return count_items(self.interactions_)
        check_home(self, "interactions_")
        return np.diff(self.interactions_.indptr)

    def _limits(self):
        """Return the least value and the largest."""
        if "_there" in vars(self):
            return self._there.limits
        check_home(self, "interactions_")
        return self.interactions_.data.min(), self.interactions_.data.max()

    def _fold_in(self, users, table):
        """Return the same of users some of whom have new interactions."""
        if self._by_y and self.value is None:
            raise ValueError(
                "fit got the values as y, but interactions have none: value= has to name their "
                "column."
            )
        (ids, rows), (items, cols) = self._encode(table)
        cols, in_fit = self._lookup(1, items)[cols], self._lookup(0, ids)
        values, times, told = self._values(table), self._times(table), cols >= 0
        shape = len(ids), len(self.items_)
        new = gather_matrix(
            values[told],
            (rows[told], cols[told]),
            None if times is None else times[told],
            shape,
            self.aggregate,
        )
        known = np.flatnonzero(in_fit >= 0)
        # Copies that have left a cluster have no users, and those are not needed for new ones.
        old = _take(self, "interactions_", in_fit[known]) if known.size else new[:0]
        old, new = old.tocoo(), new.tocoo()
        X = gather_matrix(
            np.r_[old.data, new.data],
            (np.r_[known[old.row], new.row], np.r_[old.col, new.col]),
            np.repeat([0, 1], [old.nnz, new.nnz]),
            shape,
            _JOIN[self.aggregate],
        )
        weights, biases, targets = None, np.zeros(len(ids)), X
        if self.row_weights is not None:
            counts = [self._counts(), np.diff(X.indptr)]
            weights = np.asarray(self.row_weights(np.concatenate(counts)))[len(counts[0]) :]
        if self.biases:
            biases = fold_in_biases(X, self.mean_, self.item_biases_)
            targets = residuals(X, self.mean_, biases, self.item_biases_)
        # An array, whatever set_output says.
        factors = np.asarray(self.estimator_.transform(targets, weights=weights))
        if users is None:
            return ids, X, factors, biases
        users = as_list(users, "users")
        places = _look_up(dict(zip(ids.tolist(), range(len(ids)), strict=True)), users)
        others = np.flatnonzero(places < 0)
        of_others = self._lookup(0, [users[i] for i in others])
        _refuse_unknown([users[i] for i in others], of_others, 0)
        if not others.size:
            return as_array(users), X[places], factors[places], biases[places]
        places[others] = len(ids) + np.arange(len(others))
        _, entries, *more = self._of_fit(of_others)
        X = sp.csr_array(sp.vstack([X, entries], format="csr"))[places]
        factors, biases = (
            np.concatenate(both)[places] for both in zip((factors, biases), more, strict=True)
        )
        return as_array(users), X, factors, biases

    def _answer(self, n, exclude_seen, candidates, ids, entries, factors, biases, anything):
        """Return what is recommended to users; nothing to those of whom there is not anything."""
        ranked, scores = self._rank(entries, factors, biases, n, exclude_seen, candidates)
        ranked[~anything] = -1
        row, place = np.nonzero(ranked >= 0)
        return self._table(ids[row], ranked[row, place], scores[row, place], place + 1)

    def _table(self, users, places, scores, ranks):
        columns = {
            self._names[0]: users,
            self._names[1]: self.items_[places],
            "score": scores,
            "rank": ranks,
        }
        return make_table(columns, self._library)

    def _rank(self, seen, factors, biases, n, exclude_seen, candidates):
        """Return the best items of users, -1 for none, and their scores."""
        if not len(factors):
            return np.empty((0, n), np.int64), np.empty((0, n))
        model = self.estimator_
        if self.biases:
            # The bias of an item is one more component, of which every user has 1.
            model, V = copy(model), model.col_factors_
            model.components_ = np.c_[V, self.item_biases_].astype(V.dtype, order="C").T
            factors = np.c_[factors, np.ones(len(factors), factors.dtype)]
        ranked, scores = model.recommend(
            seen, n, exclude_seen=exclude_seen, candidates=candidates, factors=factors
        )
        return ranked, scores + (self.mean_ + biases)[:, None]


class Interactions:
    """The ids, and the matrix, of a table.

    Parameters
    ----------
    recommender : Recommender
    X, y, sample_weight
        See `Recommender.fit`.

    Attributes
    ----------
    users, items : ndarray of shape (n_users,) and (n_items,)
    matrix : csr_array of shape (n_users, n_items)
    weights : csr_array of the same structure, or None
    names : list or None
        Of the columns.
    n_columns : int
    library : str or None
        See `wals._tables.Table`.
    """

    there = None

    def __init__(self, recommender, X, y, sample_weight):
        table = Table(X)
        self.names, self.n_columns, self.library = table.names, len(table.columns), table.library
        (self.users, rows), (self.items, cols) = recommender._encode(table)
        coords, shape = (rows, cols), (len(self.users), len(self.items))
        values, times = recommender._values(table, y), recommender._times(table)
        self.matrix = gather_matrix(values, coords, times, shape, recommender.aggregate)
        self.weights = None
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, len(table))
            if not weights.any():
                raise ValueError("sample_weight is zero for all interactions.")
            self.weights = gather_matrix(weights, coords, None, shape, "mean")

    @property
    def interactions(self):
        """The matrix, as the model has it."""
        return self.matrix

    def counts(self):
        """Return the number of items of each user."""
        return np.diff(self.matrix.indptr)

    def without_biases(self):
        """Return mean and biases, and what they leave of the matrix."""
        fitted = fit_biases(self.matrix, self.weights)
        return fitted, residuals(self.matrix, *fitted)


def check_sample_weight(weights, n):
    """Return the weights of n interactions; there may be none in a part of a table."""
    if n == 0:
        return np.zeros(0)
    return check_weights(numbers(weights, "sample_weight", n), n, "sample_weight")


def _take(model, name, rows):
    """Return rows of what a model has of each of its users, from the cluster, if it is there."""
    array = vars(model).get(name)
    if is_distributed(array):
        from .distributed._models import take_rows

        return take_rows(array, rows)
    check_home(model, name)
    return array[rows]


def _look_up(places, ids):
    return np.fromiter((places.get(key, -1) for key in ids), np.int64, len(ids))


def _refuse_unknown(ids, places, axis):
    if (unknown := np.flatnonzero(places < 0)).size:
        first = ", ".join(repr(ids[i]) for i in unknown[:5])
        more = ", ..." if unknown.size > 5 else ""
        kind = ("users", "items")[axis]
        raise ValueError(f"{unknown.size} of the {kind} are unknown to this model: {first}{more}.")
