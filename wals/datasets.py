"""Data to try things on: one real set that comes with the package, and a generator."""

from importlib.resources import files
from numbers import Integral

import numpy as np
from scipy.sparse import csr_array, get_index_dtype
from sklearn.utils import check_random_state

__all__ = ["load_msweb", "make_interactions"]


def load_msweb(*, return_titles=False):
    """Load the Anonymous Microsoft Web Data: who visited which areas of a site.

    One week of February 1998 on www.microsoft.com: 32,711 users, 294 areas of the site
    ("vroots", 9 of them never visited) and 98,654 visits; an area counts once per user.

    Parameters
    ----------
    return_titles : bool, default=False
        Return the titles of the areas as well.

    Returns
    -------
    X : csr_array of shape (32711, 294), float32
        1 where the user visited the area. Users in the order of the source (its training part),
        areas in the order of their ids. A fresh array at every call.
    titles : ndarray of shape (294,), str
        Title of every column. Only if `return_titles`. Two areas share the title "MS Project".

    Notes
    -----
    Source: J. S. Breese, D. Heckerman and C. M. Kadie (1998), Anonymous Microsoft Web Data, UCI
    Machine Learning Repository, https://doi.org/10.24432/C5VS3Q, licensed under CC BY 4.0
    (https://creativecommons.org/licenses/by/4.0/). First used in "Empirical Analysis of Predictive
    Algorithms for Collaborative Filtering" (UAI 1998) by the same authors.

    Examples
    --------
    >>> from wals.datasets import load_msweb
    >>> X, titles = load_msweb(return_titles=True)
    >>> X.shape, X.nnz
    ((32711, 294), 98654)
    >>> [str(title) for title in titles[X[[0]].indices]]
    ['regwiz', 'Support Desktop', 'End User Produced View']
    """
    with (
        (files("wals") / "data" / "msweb.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as content,
    ):
        counts, indices, titles = (content[name] for name in ("counts", "indices", "titles"))
    indptr = np.zeros(counts.size + 1, dtype=np.int32)
    np.cumsum(counts, out=indptr[1:])
    X = csr_array(
        (np.ones(indices.size, dtype=np.float32), indices.astype(np.int32), indptr),
        shape=(counts.size, titles.size),
    )
    return (X, titles) if return_titles else X


def make_interactions(n_samples, n_features, nnz, *, n_topics=32, random_state=None):
    """Make a random sparse matrix that looks like people choosing items.

    Every row has a log-normal number of entries and a mixture of topics of its own; every topic
    prefers some columns; over all topics the popularity of the columns follows a power law. A row
    draws its columns one after the other, without repetition.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of the matrix, each at least 1.
    nnz : int
        Number of stored entries, at most ``n_samples * n_features``. Met exactly. From
        ``nnz >= n_samples`` on no row is empty; columns may be.
    n_topics : int, default=32
        Number of topics: about the rank of the expected matrix.
    random_state : int, RandomState instance or None, default=None
        An int gives the same matrix at every call (with the same release of NumPy).

    Returns
    -------
    X : csr_array of shape (n_samples, n_features), float32
        Canonical: columns ascending within a row, no duplicates, int32 indices where they fit.
        Every stored value is 1.

    Raises
    ------
    ValueError
        If an argument is not an integer, is too small, or `nnz` does not fit into the shape.

    Notes
    -----
    With z standard normal and f = n_features, activity is exp(z) per row; popularity is
    1 / (rank + 1 + f / 200) with ranks in random order (Mandelbrot's form of Zipf's law: the plain
    one would put the first column into nearly every row). Topic t shares the popularity of column
    j with the other topics in proportion to exp(3 z_tj), so that few topics prefer it; the topics
    of a row are Dirichlet(0.1).

    Examples
    --------
    >>> from wals.datasets import make_interactions
    >>> X = make_interactions(1000, 200, 8000, random_state=0)
    >>> X.shape, X.nnz, X.dtype
    ((1000, 200), 8000, dtype('float32'))
    """
    for name, value, low in (
        ("n_samples", n_samples, 1),
        ("n_features", n_features, 1),
        ("nnz", nnz, 0),
        ("n_topics", n_topics, 1),
    ):
        if not isinstance(value, Integral) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}.")
    n_samples, n_features, nnz = int(n_samples), int(n_features), int(nnz)
    if nnz > n_samples * n_features:
        raise ValueError(f"nnz={nnz} entries do not fit into {n_samples} x {n_features}.")

    # Generator is several times faster than RandomState, and its multinomial broadcasts.
    rng = np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
    at_least = int(nnz >= n_samples)
    counts = at_least + _share_out(
        nnz - at_least * n_samples, rng.lognormal(size=n_samples), n_features - at_least
    )
    mixture = rng.dirichlet(np.full(n_topics, 0.1), size=n_samples)
    popularity = 1 / (1 + n_features / 200 + rng.permutation(n_features))
    topics = rng.lognormal(sigma=3.0, size=(n_topics, n_features))
    topics *= popularity / topics.sum(axis=0)
    topics /= topics.sum(axis=1, keepdims=True)

    keys = _draw_distinct(counts, mixture, topics, rng)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    index_dtype = get_index_dtype(maxval=max(nnz, n_features))
    keys %= n_features
    return csr_array(
        (np.ones(nnz, dtype=np.float32), keys.astype(index_dtype), indptr.astype(index_dtype)),
        shape=(n_samples, n_features),
    )


def _share_out(total, weights, limit):
    """Split `total` into integers about proportional to `weights`, none above `limit`.

    total <= limit * len(weights). Whoever hits the limit leaves the rest to the others.
    """
    order = np.argsort(-weights)
    weights = weights[order]
    remaining = np.cumsum(weights[::-1])[::-1]
    # With the n heaviest at the limit, the next one gets (total - n * limit) * w / remaining.
    left = total - limit * np.arange(weights.size)
    n_full = np.argmax(left * weights <= limit * remaining)
    exact = weights[n_full:] * (left[n_full] / remaining[n_full])
    rounded = np.minimum(np.floor(exact), limit).astype(np.int64)
    largest = np.argsort(rounded - exact)[: left[n_full] - rounded.sum()]
    rounded[largest] += 1
    shares = np.full(weights.size, limit, dtype=np.int64)
    shares[order[n_full:]] = rounded
    return shares


def _draw_distinct(counts, mixture, topics, rng):
    """Draw ``counts[i]`` distinct columns for every row i; return sorted i * n_features + column.

    Columns are drawn from ``mixture[i] @ topics`` one after the other, skipping those that the row
    has already: in rounds over all rows together, and by an equivalent race, which always ends, for
    rows that take a good part of the columns and the last few that the rounds leave.
    """
    n_features = topics.shape[1]
    cumulative = np.cumsum(topics, axis=1)
    cumulative /= cumulative[:, -1:]
    light = counts <= n_features // 16
    keys = np.empty(0, dtype=np.int64)
    missing = counts
    for _ in range(50):
        rows = np.flatnonzero(light & (missing > 0))
        if rows.size * n_features <= 2 * counts.sum():
            break
        per_topic = rng.multinomial(missing[rows], mixture[rows]).T
        drawn = [
            np.repeat(rows * n_features, n) + np.searchsorted(edges, rng.random(n.sum()))
            for n, edges in zip(per_topic, cumulative, strict=True)
        ]
        keys = np.concatenate([keys, *drawn])
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) > 0]
        missing = counts - np.diff(_row_starts(keys, counts.size, n_features))

    # Give every column an exponential waiting time of rate p: the first to arrive are distributed
    # as draws without repetition are. Blocks of rows bound the memory.
    step = max(1, 2**22 // n_features)
    rows = np.flatnonzero(missing)
    starts = _row_starts(keys, counts.size, n_features)
    more = []
    for first in range(0, rows.size, step):
        block = rows[first : first + step]
        arrival = rng.exponential(size=(block.size, n_features)) / (mixture[block] @ topics)
        for time, row in zip(arrival, block, strict=True):
            time[keys[starts[row] : starts[row + 1]] - row * n_features] = np.inf
            columns = np.argpartition(time, missing[row] - 1)[: missing[row]]
            more.append(row * n_features + columns)
    return np.sort(np.concatenate([keys, *more]))


def _row_starts(keys, n_samples, n_features):
    """Return where the keys of every row start, and the end of the last one."""
    return np.searchsorted(keys, np.arange(n_samples + 1) * n_features)
