"""The two sides of a fitted model: arrays that items are projected on, and that may grow.

Their factors are read-only, so that what was computed of them once holds as long as they are there.
"""

import weakref
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ._core.linalg import in_panels
from ._core.parallel import effective_n_threads, parallel_section
from ._core.passes import NS_PRODUCT, gram
from ._core.ranking import round_factors
from ._core.sweep import Side, eigenbasis
from ._saving import is_mapped
from ._validation import is_distributed

#: Where items have fewer entries than this for each item of the other side, it is not turned whole.
_SPARSE = 0.5
_NAMES = (
    ("row_factors_", "row_weights_", "_row_mass"),
    ("components_", "col_weights_", "_col_mass"),
)


class FittedSide(NamedTuple):
    """What a fitted model has of its rows, or of its columns."""

    factors: np.ndarray  # (n, k)
    weights: np.ndarray  # (n,)
    mass: np.ndarray  # (n,) what their regularization is a power of; NaN where it is not known


def check_home(model, name):
    """Raise an error unless an attribute of a fitted model, with a row for each of its, is here."""
    if name not in vars(model):
        raise ValueError(
            "What the model has of its rows was left on a cluster: it is a copy. Call "
            "wals.distributed.gather_rows on the model that was fitted, before it is copied."
        )
    if is_distributed(vars(model)[name]):
        raise ValueError(
            "What the model has of its rows is on a cluster: call "
            "wals.distributed.gather_rows(model) first."
        )


def get_side(model, axis):
    """Return a side of a fitted WALS: its rows for axis 0, its columns for axis 1."""
    check_home(model, _NAMES[axis][0])
    factors, weights, mass = (getattr(model, name) for name in _NAMES[axis])
    return FittedSide(factors if axis == 0 else factors.T, weights, mass)


def set_side(model, axis, side):
    """Give a WALS the side that `get_side` returns then."""
    arrays = side._replace(factors=side.factors if axis == 0 else side.factors.T)
    vars(model).update(zip(_NAMES[axis], arrays, strict=True))


class _Known:
    """What was computed of factors that nobody writes to."""

    def __init__(self, factors, writable=None):
        place = id(factors)
        self.factors = weakref.ref(factors, lambda _: _known.pop(place, None))
        self.writable = writable  # the same memory, if it is the model's own
        self.eigenbases, self.rounded = {}, None


#: By the id of the attribute of a model.
_known = {}


def _recall(factors):
    """Return what is known of read-only factors, a new `_Known` if that is nothing."""
    known = _known.get(id(factors))
    if known is None or known.factors() is not factors:
        known = _Known(factors)
        if not factors.flags.writeable:
            _known[id(factors)] = known
    return known


def freeze(model, *, copied=False):
    """Make the factors of a fitted model read-only, in place.

    Those that are so already may be another model's, too, if it was copied: then neither writes
    to them any more.
    """
    for name, *_ in _NAMES:
        factors = vars(model).get(name)
        if isinstance(factors, np.ndarray) and factors.flags.writeable:
            frozen = factors.view()
            frozen.flags.writeable = False
            _known[id(frozen)] = _Known(frozen, None if is_mapped(factors) else factors)
            vars(model)[name] = frozen
        elif copied and (known := _known.get(id(factors))) is not None:
            known.writable = None


def _thaw(factors):
    """Return the same memory to write to, None if it is not the model's own to write to.

    The pages of a map are those of the file, or of other processes.
    """
    known = _known.pop(id(factors), None)
    if known is None or known.factors() is not factors:
        return factors if factors.flags.writeable and not is_mapped(factors) else None
    return known.writable


def known_eigenbasis(model, axis):
    """Return the eigenbasis of a side, which is computed once; None if w0 = 0, and none is used."""
    w0, n_threads = float(model.unobserved_weight), effective_n_threads(model.n_jobs)
    if w0 == 0:
        return None
    factors = getattr(model, _NAMES[axis][0])
    known = _recall(factors)
    basis = known.eigenbases.get(w0)
    if basis is None:
        V = factors if axis == 0 else factors.T
        with parallel_section(n_threads, NS_PRODUCT * V.size * V.shape[1]) as run:
            basis = eigenbasis(gram(V, np.float64, run), w0, np.float64)
        basis = basis._replace(panels=(in_panels(basis.turn), in_panels(basis.turn.T)))
        known.eigenbases = {w0: basis}  # what another thread has found meanwhile is the same
    return basis


def known_rounded(model):
    """Return the rounded factors of the columns, which are made once, see `rank`."""
    known = _recall(model.components_)
    if known.rounded is None:
        known.rounded = round_factors(model.components_.T)
    return known.rounded


def as_side(model, X, axis, weights):
    """Return the rows of X, which are items of a side of a model, to be solved exactly."""
    other = get_side(model, 1 - axis)
    return _as_side(model, X, weights, other.weights, len(other.factors))


def project(model, X, axis, weights, *, whole=False):
    """Solve the rows of X, which are items of a side of a model, exactly.

    Parameters
    ----------
    model : WALS
    X : CSR matrix of shape (q, m)
    axis : {0, 1}
    weights : ndarray of shape (q,)
    whole : bool, default=False
        Whether the columns of `side` have to be those of X.

    Returns
    -------
    side : Side
    swept : Swept
    """
    other, basis = get_side(model, 1 - axis), known_eigenbasis(model, 1 - axis)
    factors, other_weights = other.factors, other.weights
    if not whole and X.nnz < _SPARSE * len(factors):
        columns, places = np.unique(X.indices, return_inverse=True)
        X = sp.csr_array(
            (X.data, places.astype(X.indices.dtype), X.indptr), (X.shape[0], len(columns))
        )
        factors, other_weights = factors[columns], other_weights[columns]
    side = _as_side(model, X, weights, other_weights, len(other.factors))
    return side, side.sweep(factors, basis=basis)


def _as_side(model, X, weights, other_weights, n_others):
    n_threads, k = effective_n_threads(model.n_jobs), model.components_.shape[0]
    settings = model._objective(), k, "exact", n_threads
    return Side(X, weights, other_weights, *settings, n_others=n_others)


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
    side, other = get_side(model, axis), get_side(model, 1 - axis)
    unstored_mass = model._objective().unstored_mass
    known = len(side.factors)
    # New items add their stored entries to the mass of the other side.
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
    owned = [_thaw(getattr(model, name)) for name in _NAMES[axis]]
    if not missing and all(array is not None for array in owned):
        side = FittedSide(owned[0] if axis == 0 else owned[0].T, *owned[1:])
    else:
        empty = unstored_mass * len(other.factors)
        side = FittedSide(
            np.pad(side.factors, [(0, missing), (0, 0)]),
            np.pad(side.weights, (0, missing), constant_values=1.0),
            np.pad(side.mass, (0, missing), constant_values=empty),
        )
    mass = other.mass + unstored_mass * missing
    mass += added - unstored_mass * np.count_nonzero(new)
    before = [array[indices] for array in side]
    try:
        for ours, theirs in zip(side, (solved.factors, solved.weights, solved.mass), strict=True):
            ours[indices] = theirs
        set_side(model, axis, side)
        setattr(model, _NAMES[1 - axis][2], mass)
        freeze(model)
        if axis == 1:
            model.n_features_in_ = len(side.factors)
            if missing:
                vars(model).pop("feature_names_in_", None)
    except BaseException:  # KeyboardInterrupt: who has called gives the model its attributes back
        for ours, old in zip(side, before, strict=True):
            ours[indices] = old
        raise
