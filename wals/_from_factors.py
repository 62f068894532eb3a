"""A fitted model around factors that were trained elsewhere."""

import numpy as np

from ._fitted import FittedSide, freeze, set_side
from ._validation import check_numbers, check_weights


def from_factors(cls, components, row_factors, row_weights, parameters):
    """Do what `WALS.from_factors` says; `col_weights` are one of the parameters."""
    V = _check_factors(components, "components").T
    k = V.shape[1]
    U = np.empty((0, k), V.dtype)
    if row_factors is not None:
        U = _check_factors(row_factors, "row_factors", ensure_min_samples=0)
    if U.shape[1] != k:
        raise ValueError(
            f"row_factors has shape {U.shape}, but components has {k} rows, one for each component:"
            " transpose what has a row for each item."
        )
    model = cls(**{"n_components": k, **parameters})
    model._validate_params()
    if model.n_components != k:
        raise ValueError(f"n_components={model.n_components}, but components has {k} rows.")
    dtype = np.result_type(U, V)
    for axis, factors, weights, name in (
        (0, U, row_weights, "row_weights"),
        (1, V, model.col_weights, "col_weights"),
    ):
        n = len(factors)
        unknown = np.full(n, np.nan)
        factors = np.array(factors, dtype, order="C")
        set_side(model, axis, FittedSide(factors, check_weights(weights, n, name), unknown))
    model.n_features_in_, model.n_iter_ = len(V), 0
    freeze(model)
    return model


def _check_factors(factors, name, **options):
    return check_numbers(factors, name, dtype=[np.float64, np.float32], **options)
