"""Weighted alternating least squares for sparse matrices, as a scikit-learn estimator."""

from ._wals import WALS

__all__ = ["WALS"]
