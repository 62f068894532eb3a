"""Weights of rows and columns from how often they occur."""

import numpy as np
from sklearn.base import BaseEstimator


class power_law(BaseEstimator):
    """Weights proportional to a power of the number of stored entries.

    An instance is a function of the counts that pickles, clones, and takes part in a grid search:
    ``col_weights__exponent`` is a parameter of `wals.WALS` when its `col_weights` is a
    `power_law`.

    Parameters
    ----------
    exponent : float
        The power. Negative values give frequent items less weight, positive ones more, and 0 all
        the same.

    Notes
    -----
    The weight of an item with c entries is proportional to max(c, 1)**exponent. The weights are
    scaled so that their mean over the stored entries, sum(counts * weights) / sum(counts), is 1;
    over the items if there are no entries at all.

    Examples
    --------
    >>> import numpy as np
    >>> from wals.weights import power_law
    >>> power_law(-0.5)(np.array([100, 4, 0]))
    array([0.86666667, 4.33333333, 8.66666667])

    For columns, the estimator calls it; weights of rows are passed to ``fit``:

    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> X = load_msweb()
    >>> model = WALS(8, col_weights=power_law(-0.25), max_iter=2, random_state=0)
    >>> model.fit(X, row_weights=power_law(-0.5)(np.diff(X.indptr)))
    WALS(col_weights=power_law(exponent=-0.25), max_iter=2, n_components=8,
         random_state=0)
    """

    def __init__(self, exponent):
        self.exponent = exponent

    def __call__(self, counts):
        """Return the weights.

        Parameters
        ----------
        counts : array-like of int, shape (n,)
            Stored entries of each item.

        Returns
        -------
        weights : ndarray of shape (n,)
        """
        counts = np.asarray(counts, dtype=np.float64)
        if counts.ndim != 1 or not np.all(np.isfinite(counts)) or counts.min(initial=0) < 0:
            raise ValueError("counts must be one-dimensional, finite and not negative.")
        # Relative to the largest count, no power overflows before its ratio to the mean does.
        weights = (np.maximum(counts, 1) / counts.max(initial=1)) ** self.exponent
        total = counts.sum()
        return weights / (counts @ weights / total if total > 0 else weights.mean())
