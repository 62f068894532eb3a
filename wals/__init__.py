"""Weighted alternating least squares for sparse matrices, as a scikit-learn estimator."""

from ._wals import WALS
from .persistence import load
from .recommender import Recommender

__all__ = ["WALS", "Recommender", "load"]
