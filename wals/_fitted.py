"""The two sides of a fitted model: arrays that items are projected on, and that may grow."""

from typing import NamedTuple

import numpy as np

from ._core.parallel import effective_n_threads
from ._core.sweep import Side
from ._validation import is_distributed

_NAMES = (
    ("row_factors_", "row_weights_", "_row_mass"),
    ("components_", "col_weights_", "_col_mass"),
)


class FittedSide(NamedTuple):
    """What a fitted model has of its rows, or of its columns."""

    factors: np.ndarray  # (n, k)
    weights: np.ndarray  # (n,)
    mass: np.ndarray  # (n,) sum_j w_ij of rows, sum_i w_ij of columns


def get_side(model, axis):
    """Return a side of a fitted WALS: its rows for axis 0, its columns for axis 1."""
    if is_distributed(getattr(model, _NAMES[axis][0], None)) or not hasattr(model, _NAMES[axis][0]):
        raise ValueError(
            "The factors of the rows are on a cluster, or were left there: call "
            "wals.distributed.gather_rows(model) first, on the model that was fitted."
        )
    factors, weights, mass = (getattr(model, name) for name in _NAMES[axis])
    return FittedSide(factors if axis == 0 else factors.T, weights, mass)


def set_side(model, axis, side):
    """Give a WALS the side that `get_side` returns then."""
    arrays = side._replace(factors=side.factors if axis == 0 else side.factors.T)
    vars(model).update(zip(_NAMES[axis], arrays, strict=True))


def as_side(model, X, axis, weights):
    """Return the rows of X, which are items of a side of a model, to be solved exactly."""
    other = get_side(model, 1 - axis)
    n_threads = effective_n_threads(model.n_jobs)
    return Side(
        X, weights, other.weights, model._objective(), other.factors.shape[1], "exact", n_threads
    )


def store(model, axis, indices, X, solved):
    """Put items that were solved at these places of a model, which may lie beyond its end.

    Parameters
    ----------
    model : WALS
    axis : {0, 1}
    indices : ndarray of shape (q,)
    X : CSR matrix of shape (q, m)
        Their entries.
    solved : Side
    """
    side, other, w0 = get_side(model, axis), get_side(model, 1 - axis), model.unobserved_weight
    known = len(side.factors)
    # New items add their stored entries to the weight of the other side.
    new = indices >= known
    added = Side(
        X[new].T.tocsr(),
        other.weights,
        solved.weights[new],
        model._objective(),
        side.factors.shape[1],
        "exact",
        solved.n_threads,
    ).mass
    missing = max(0, indices.max(initial=-1) + 1 - known)
    if missing or not all(array.flags.writeable for array in side):
        empty = w0 * len(other.factors)
        side = FittedSide(
            np.pad(side.factors, [(0, missing), (0, 0)]),
            np.pad(side.weights, (0, missing), constant_values=1.0),
            np.pad(side.mass, (0, missing), constant_values=empty),
        )
    for ours, theirs in zip(side, (solved.factors, solved.weights, solved.mass), strict=True):
        ours[indices] = theirs
    mass = other.mass + w0 * missing
    mass += added - w0 * np.count_nonzero(new)
    set_side(model, axis, side)
    set_side(model, 1 - axis, other._replace(mass=mass))
    if axis == 1:
        model.n_features_in_ = len(side.factors)
        if missing:
            vars(model).pop("feature_names_in_", None)
