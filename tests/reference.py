"""Dense float64 oracle: all n x m entries written out, every item solved on its own. NumPy only.

A `Problem` is the objective

    L(U, V) = sum_ij W_ij (A_ij - u_i.v_j)^2 + sum_i lam_i |u_i|^2 + sum_j mu_j |v_j|^2

All functions look at rows; for columns, pass ``problem.T`` and swap U and V.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


class Problem(NamedTuple):
    A: np.ndarray  # (n, m) targets, 0 where nothing is stored
    W: np.ndarray  # (n, m) weights
    lam: np.ndarray  # (n,) regularization of the rows
    mu: np.ndarray  # (m,) regularization of the columns

    @property
    def T(self):
        return Problem(self.A.T, self.W.T, self.mu, self.lam)


def make_problem(
    X,
    *,
    unobserved_weight=0.1,
    observed_weight=1.0,
    row_weights=1.0,
    col_weights=1.0,
    entry_weights=None,
    regularization=0.0,
    regularization_exponent=0.0,
    regularization_by="weight",
    implicit=False,
):
    """Write out the objective for a sparse X; `entry_weights` stores the same positions as X."""
    n, m = X.shape
    X = X.tocoo()
    values = X.data.astype(np.float64)
    extra = np.ones(values.size) if entry_weights is None else entry_weights.tocoo().data
    if implicit:
        extra = extra * np.abs(values)
        values = (values > 0).astype(np.float64)
    R = np.broadcast_to(np.asarray(row_weights, dtype=np.float64), n)
    C = np.broadcast_to(np.asarray(col_weights, dtype=np.float64), m)
    A = np.zeros((n, m))
    A[X.row, X.col] = values
    W = np.full((n, m), float(unobserved_weight))
    W[X.row, X.col] += observed_weight * R[X.row] * C[X.col] * extra
    mass = W if regularization_by == "weight" else A > 0
    lam, mu = (regularization * mass.sum(axis) ** regularization_exponent for axis in (1, 0))
    return Problem(A, W, lam, mu)


def data_loss(problem, U, V):
    return (problem.W * (problem.A - U @ V.T) ** 2).sum()


def penalty(problem, U, V):
    return problem.lam @ (U**2).sum(axis=1) + problem.mu @ (V**2).sum(axis=1)


def loss(problem, U, V):
    return data_loss(problem, U, V) + penalty(problem, U, V)


def rwse(problem, U, V):
    total = problem.W.sum()
    return np.sqrt(data_loss(problem, U, V) / total) if total > 0 else 0.0


def normal_equations(problem, U, V):
    """Return both sides of the equations that U solves; dL/dU is twice their difference."""
    left = (problem.W * (U @ V.T)) @ V + problem.lam[:, None] * U
    right = (problem.W * problem.A) @ V
    return left, right


def gradient(problem, U, V):
    """Return dL/dU and dL/dV."""
    (left, right), (left_T, right_T) = (
        normal_equations(problem, U, V),
        normal_equations(problem.T, V, U),
    )
    return 2 * (left - right), 2 * (left_T - right_T)


def solve(problem, V):
    """Return the U that minimises L for this V; of many, that of minimum norm."""
    k = V.shape[1]
    U = np.empty((len(problem.A), k))
    for u, a, w, lam in zip(U, problem.A, problem.W, problem.lam, strict=True):
        left = np.vstack([np.sqrt(w)[:, None] * V, np.sqrt(lam) * np.eye(k)])
        right = np.concatenate([np.sqrt(w) * a, np.zeros(k)])
        u[:] = np.linalg.lstsq(left, right)[0]
    return U


def run(problem, V, n_iter):
    """Return (U, V) and L after each of the 2 * n_iter + 1 sweeps of a fit."""
    V = np.asarray(V, dtype=np.float64)
    trajectory = [(solve(problem, V), V)]
    for _ in range(n_iter):
        U, _ = trajectory[-1]
        V = solve(problem.T, U)
        trajectory += [(U, V), (solve(problem, V), V)]
    return trajectory, np.array([loss(problem, U, V) for U, V in trajectory])


def load_golden(name):
    """Load one of the runs of TensorFlow described in golden/README.md."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return SimpleNamespace(**{key: file[key] for key in file.files})
