"""What is done with a fit on a cluster, and on a cluster with any fit."""

import copy

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import delayed
from sklearn.utils.validation import check_is_fitted

from .._fitted import check_home, freeze
from .._recommend import check_n
from ._blocks import Lost, part, take
from ._cluster import Cluster, row_blocks, rows_array, rows_of


def transform(model, X, axis, weights):
    """Do what `WALS.transform` says, when the result is computed."""
    served, blocks, lengths = _serve(model, X, axis)
    weights = rows_of(weights, lengths, (sum(lengths),), "weights")
    task = delayed(_transform, pure=False)
    solved = [task(served, *args) for args in zip(blocks, weights, strict=True)]
    k = model.components_.shape[0]
    return rows_array(solved, lengths, (k,), model.components_.dtype)


def evaluate(model, X, axis, weights):
    """Return the data loss, penalty and sum of weights of rows that are projected."""
    cluster = Cluster()
    served, blocks, lengths = _serve(model, X, axis)
    weights = cluster.place(rows_of(weights, lengths, (sum(lengths),), "weights"))
    blocks = cluster.compute(blocks)
    parts = [cluster.submit(_evaluate, served, *args) for args in zip(blocks, weights, strict=True)]
    return tuple(float(sum(numbers)) for numbers in zip(*cluster.gather(parts), strict=True))


def recommend(model, X, n, exclude_seen, candidates, factors, weights):
    """Do what `WALS.recommend` says, when the two results are computed."""
    check_is_fitted(model)
    n = check_n(n)
    if sp.issparse(exclude_seen) or sp.issparse(candidates):
        raise ValueError(
            "With Dask collections, exclude_seen is True or False, and candidates are for all rows."
        )
    served, blocks, lengths = _serve(model, factors if X is None else X, 0, X is None)
    given = [[None] * len(blocks) if X is None else blocks]
    shape = (sum(lengths), model.components_.shape[0])
    given.append(rows_of(factors, lengths, shape, "factors"))
    given.append(rows_of(weights, lengths, shape[:1], "weights"))
    task = delayed(_recommend, pure=False)
    ranked = [task(served, n, exclude_seen, candidates, *args) for args in zip(*given, strict=True)]
    pick = delayed(part, pure=False)
    return tuple(
        rows_array([pick(pair, i) for pair in ranked], lengths, (n,), dtype)
        for i, dtype in enumerate((np.dtype(np.int64), model.components_.dtype))
    )


def gather_rows(model):
    """Bring the factors of the rows, and what else there is of each row, from the workers.

    They need 8 k + 16 bytes for each row, or 4 k + 16 in float32, and those of a Recommender 8
    bytes more for each entry. Only then do copies, pickles and files have the rows of a model,
    which partial_fit, similar with ``axis=0`` and projections of columns need, and the users of a
    Recommender.

    Parameters
    ----------
    model : WALS or Recommender
        Was fitted with a Dask collection; is changed.

    Returns
    -------
    model : WALS or Recommender

    Raises
    ------
    ValueError
        If the model is a copy that has left the cluster without its rows.

    RuntimeError
        If its rows are lost, as with the client that was active in the fit.

    Examples
    --------
    >>> import dask.array as da
    >>> from distributed import Client
    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> from wals.distributed import gather_rows
    >>> X = load_msweb()
    >>> with Client(n_workers=1, processes=False, dashboard_address=None) as client:
    ...     model = WALS(8, max_iter=2, random_state=0).fit(da.from_array(X, chunks=(8192, -1)))
    ...     _ = gather_rows(model)
    >>> model.row_factors_.shape
    (32711, 8)
    """
    check_is_fitted(model)
    estimator, names = model, {"row_factors_": model}
    if "estimator_" in vars(model):
        estimator = model.estimator_
        names = {"interactions_": model, "row_factors_": estimator}
    for name, of in names.items():
        if name not in vars(of):
            check_home(of, name)
    found = [_gathered(of) for of in names.values()]
    for of, arrays in zip(names.values(), found, strict=True):
        vars(of).update(arrays)
    vars(model).pop("_there", None)
    freeze(estimator)
    return model


def _gathered(model):
    """Return what a model has on the cluster, in memory."""
    arrays = {name: value for name, value in vars(model).items() if isinstance(value, da.Array)}
    cluster = Cluster() if arrays else None
    return {
        name: _bring(cluster, cluster.compute(row_blocks(array))) for name, array in arrays.items()
    }


def without_rows(model):
    """Return a copy of a WALS to be sent to workers: without what it has of rows."""
    served = copy.copy(model)
    for name in ("row_factors_", "row_weights_", "_row_mass", "_skl_callbacks"):
        vars(served).pop(name, None)
    return served


def take_rows(array, rows):
    """Return these rows of a dask.array, in this order, in memory."""
    cluster, blocks, rows = Cluster(), row_blocks(array), np.asarray(rows, dtype=np.int64)
    stops = np.cumsum(array.chunks[0])
    owners = np.searchsorted(stops, rows, side="right")
    touched = np.unique(owners) if rows.size else [0]
    parts = [
        cluster.submit(take, block, rows[owners == b] - (stops[b] - array.chunks[0][b]))
        for block, b in zip(cluster.compute([blocks[b] for b in touched]), touched, strict=True)
    ]
    order = np.argsort(owners, kind="stable")
    return _bring(cluster, parts)[np.argsort(order)]


def _bring(cluster, futures):
    """Return blocks of rows of a model as one, in memory."""
    try:
        blocks = cluster.gather(futures)
    except Lost as error:
        raise RuntimeError(
            "What the model has of its rows is no longer on this cluster: its client was closed, "
            "or too many workers were lost. Fit again, and call wals.distributed.gather_rows(model)"
            " while that client is open."
        ) from error
    return sp.vstack(blocks, "csr") if sp.issparse(blocks[0]) else np.concatenate(blocks)


def _serve(model, X, axis, are_factors=False):
    """Return a model for the tasks, the blocks of X and their lengths."""
    if axis == 1:
        raise ValueError("axis=1 takes no Dask collection: columns are projected in memory.")
    blocks, m = row_blocks(X), model.components_.shape[0 if are_factors else 1]
    lengths = [np.nan] * len(blocks)
    if isinstance(X, da.Array):
        lengths = [int(n) if n == n else n for n in X.chunks[0]]
        if X.ndim != 2 or X.shape[1] not in (m, np.nan):
            raise ValueError(f"X has shape {X.shape}, but {m} columns are needed.")
    served = without_rows(model)
    try:
        (served,) = Cluster().put([served])
    except ValueError:  # whoever computes it without a cluster has the model, too
        served = delayed(served, pure=False)
    return served, blocks, lengths


def _transform(model, X, weights):
    if X.shape[0] == 0:
        return np.empty((0, model.components_.shape[0]), model.components_.dtype)
    return model.transform(X, weights=weights)


def _evaluate(model, X, weights):
    return model._evaluate(X, 0, weights) if X.shape[0] else (0.0, 0.0, 0.0)


def _recommend(model, n, exclude_seen, candidates, X, factors, weights):
    if len(factors if X is None else range(X.shape[0])) == 0:
        return np.empty((0, n), np.int64), np.empty((0, n), model.components_.dtype)
    return model.recommend(
        X,
        n,
        exclude_seen=exclude_seen,
        candidates=candidates,
        factors=factors,
        weights=weights,
    )
