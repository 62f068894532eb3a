"""The factors of columns as an index of vectors wants them."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._fitted import get_side


def item_vectors(model, metric):
    """Do what `WALS.item_vectors` says."""
    check_is_fitted(model)
    if metric not in ("cosine", "dot"):
        raise ValueError(f"metric must be 'cosine' or 'dot', got {metric!r}.")
    V = np.asarray(get_side(model, 1).factors)
    norms = np.sqrt(np.einsum("ij,ij->i", V, V, dtype=np.float64))
    columns = np.argsort(-norms, kind="stable")[: np.count_nonzero(norms)]
    vectors = V[columns]
    if metric == "cosine":
        np.divide(vectors, norms[columns, None], out=vectors, casting="same_kind")
    return vectors, columns
