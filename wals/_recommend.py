"""What a fitted model recommends, finds similar, and can give reasons for."""

from numbers import Integral

import numpy as np
import scipy.sparse as sp
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted

from ._core.parallel import effective_n_threads, parallel_section
from ._core.passes import NS_PRODUCT, gram
from ._core.ranking import rank
from ._core.sweep import entries
from ._fitted import as_side, get_side, known_rounded
from ._validation import as_csr, check_axis, check_numbers, check_weights, refuse_masked

#: Rows whose factors are held at once.
_BATCH = 2**16


def recommend(model, X, n, exclude_seen, candidates, factors, weights):
    """Do what `WALS.recommend` says."""
    check_is_fitted(model)
    n, m = check_n(n), model.components_.shape[1]
    if factors is not None:
        if weights is not None:
            raise ValueError("weights are for projecting X: with factors, nothing is projected.")
        options = {"dtype": model.components_.dtype, "order": "C", "ensure_min_samples": 0}
        factors = check_numbers(factors, "factors", **options)
        if factors.shape[1] != model.components_.shape[0]:
            raise ValueError(
                f"factors have {factors.shape[1]} columns, but WALS has "
                f"{model.components_.shape[0]} components."
            )
    elif X is None:
        raise ValueError("X is None, and so are factors: one of them is needed.")
    X = None if X is None else model._check_items(X, 0)
    q = X.shape[0] if factors is None else len(factors)
    if X is not None and X.shape[0] != q:
        raise ValueError(f"X has {X.shape[0]} rows, but factors have {q}.")
    weights = None if weights is None else check_weights(weights, q, "weights")
    if sp.issparse(exclude_seen):
        seen = _check_pattern(exclude_seen, (q, m), "exclude_seen")
    elif isinstance(exclude_seen, bool | np.bool_):
        seen = X if exclude_seen else None
    else:
        raise ValueError(
            "exclude_seen must be True, False or a sparse matrix of the positions to leave out; "
            f"got {exclude_seen!r}."
        )
    candidates = _check_candidates(candidates, (q, m))
    n_threads = effective_n_threads(model.n_jobs)
    ranked, scores = np.empty((q, n), np.int64), np.empty((q, n), model.components_.dtype)
    for batch in gen_batches(q, _BATCH):
        if factors is None:
            rows = X if q <= _BATCH else X[batch]
            given = None if weights is None else weights[batch]
            U = model._project(rows, 0, given)[0].factors
        else:
            U = factors[batch]
        ranked[batch], scores[batch] = rank(
            U,
            model.components_.T,
            n,
            columns=candidates[batch] if sp.issparse(candidates) else candidates,
            seen=seen if seen is None or q <= _BATCH else seen[batch],
            rounded=lambda: known_rounded(model),
            n_threads=n_threads,
        )
    return ranked, scores


def similar(model, indices, n, axis, metric):
    """Do what `WALS.similar` says."""
    check_is_fitted(model)
    check_axis(axis)
    n = check_n(n)
    if metric not in ("cosine", "dot"):
        raise ValueError(f"metric must be 'cosine' or 'dot', got {metric!r}.")
    V, kind = get_side(model, axis).factors, ("rows", "columns")[axis]
    wanted = _check_places(indices, len(V), "indices", f"{kind} of the model")
    places = np.atleast_1d(wanted)
    if places.ndim > 1:
        raise ValueError(f"indices must be a number or a list of them, got shape {places.shape}.")
    if metric == "cosine":
        norms = np.sqrt(np.einsum("ij,ij->i", V, V, dtype=np.float64))
        V = np.divide(V, norms[:, None], out=np.zeros_like(V), where=norms[:, None] > 0)
    themselves = (np.ones(len(places), bool), places, np.arange(len(places) + 1))
    themselves = as_csr(sp.csr_array(themselves, (len(places), len(V))))
    n_threads = effective_n_threads(model.n_jobs)
    ranked, scores = rank(V[places], V, n, seen=themselves, n_threads=n_threads)
    nothing = ~V[places].any(axis=1)
    ranked[nothing], scores[nothing] = -1, -np.inf
    if metric == "cosine":
        scores[ranked >= 0] = scores[ranked >= 0].clip(-1, 1)
    return (ranked[0], scores[0]) if wanted.ndim == 0 else (ranked, scores)


def explain(model, x, column, n, weight):
    """Do what `WALS.explain` says."""
    check_is_fitted(model)
    n = check_n(n)
    x = model._check_items(x, 0)
    if x.shape[0] != 1:
        raise ValueError(f"x must be one row, of shape {(1, x.shape[1])}; got {x.shape}.")
    column = _check_places(column, x.shape[1], "column", "columns of the model")
    if column.ndim:
        raise ValueError(f"column must be one number, got shape {column.shape}.")
    side, fixed = as_side(model, x, 0, check_weights(weight, 1, "weight")), get_side(model, 1)
    e, a = entries(side.items, side.other_weights, slice(0, x.nnz), side.items.weights[0])
    V, w0 = fixed.factors, side.objective.unobserved_weight
    with parallel_section(side.n_threads, NS_PRODUCT * V.size * V.shape[1]) as run:
        system = w0 * gram(V, np.float64, run)
    P = V[x.indices].astype(np.float64)
    system += P.T @ (e[:, None] * P) + side.items.ridge[0] * np.eye(len(system))
    # Of minimum norm, as the factor is, where the system is singular.
    reason = np.linalg.lstsq(system, V[column].astype(np.float64), rcond=None)[0]
    contributions = (w0 + e) * a * (P @ reason)
    order = np.lexsort((x.indices, -np.abs(contributions)))[:n]
    return x.indices[order].astype(np.int64), contributions[order]


def check_n(n):
    """Return how many are asked for, as an int."""
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}.")
    return int(n)


def _check_places(numbers, m, name, of):
    """Return an array of numbers from 0 to m - 1."""
    refuse_masked(numbers, name)
    numbers = np.asarray(numbers)
    if numbers.size == 0:
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, the numbers of {of}; got {numbers.dtype}.")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < m:
        raise ValueError(
            f"{name} must be from 0 to {m - 1}, the numbers of {of}; got {numbers.min()} to "
            f"{numbers.max()}."
        )
    return numbers.astype(np.int64)


def _check_pattern(pattern, shape, name):
    """Return a sparse matrix as CSR whose positions are sorted and there once."""
    if pattern.shape != shape:
        raise ValueError(f"{name} has shape {pattern.shape}, but {shape} is needed.")
    pattern = sp.csr_array(pattern)
    return as_csr(
        sp.csr_array((np.ones(pattern.nnz, bool), pattern.indices, pattern.indptr), shape)
    )


def _check_candidates(candidates, shape):
    """Return what there is to choose from as `rank` takes it."""
    if candidates is None:
        return None
    if sp.issparse(candidates):
        return _check_pattern(candidates, shape, "candidates")
    refuse_masked(candidates, "candidates")
    candidates = np.asarray(candidates)
    if candidates.ndim != 1:
        raise ValueError(
            "candidates must be numbers of columns, or a sparse matrix of the positions to choose "
            f"from; got shape {candidates.shape}."
        )
    if candidates.dtype == bool:
        if candidates.shape != shape[1:]:
            raise ValueError(f"candidates has shape {candidates.shape}, not {shape[1:]}.")
        return np.flatnonzero(candidates)
    return np.unique(_check_places(candidates, shape[1], "candidates", "columns of the model"))
