"""The oracle against arithmetic on paper, finite differences and an independent float64 solver."""

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from reference import GOLDEN, load_golden, make_problem


def random_problem(seed=0, n=7, m=5, k=3):
    rng = np.random.default_rng(seed)
    X = sp.random_array((n, m), density=0.4, rng=rng, data_sampler=rng.normal, format="csr")
    E = X.copy()
    E.data = rng.uniform(size=X.nnz)
    problem = make_problem(
        X,
        unobserved_weight=0.3,
        observed_weight=2.0,
        row_weights=rng.uniform(size=n),
        col_weights=rng.uniform(size=m),
        entry_weights=E,
        regularization=0.5,
        regularization_exponent=0.5,
    )
    return problem, rng.normal(size=(n, k)), rng.normal(size=(m, k))


def test_targets_and_weights():
    """An explicit zero is stored: an observed entry with target 0."""
    X = sp.csr_array(([3.0, 0.0, -2.0], ([0, 0, 1], [0, 2, 1])), shape=(2, 3))
    E = sp.csr_array(([1.0, 5.0, 2.0], ([0, 0, 1], [0, 2, 1])), shape=(2, 3))
    weights = {
        "unobserved_weight": 0.5,
        "observed_weight": 2.0,
        "row_weights": [1, 10],
        "col_weights": [1, 3, 7],
        "regularization": 0.1,
    }
    problem = make_problem(X, **weights, entry_weights=E, regularization_exponent=1)
    assert_array_equal(problem.A, [[3, 0, 0], [0, -2, 0]])
    assert_array_equal(problem.W, [[2.5, 0.5, 70.5], [0.5, 120.5, 0.5]])
    assert_allclose(problem.lam, [7.35, 12.15])
    assert_allclose(problem.mu, [0.3, 12.1, 7.1])
    problem = make_problem(X, **weights, implicit=True)
    assert_array_equal(problem.A, [[1, 0, 0], [0, 0, 0]])
    assert_array_equal(problem.W, [[6.5, 0.5, 0.5], [0.5, 120.5, 0.5]])
    assert_array_equal(problem.lam, [0.1, 0.1])


def test_objective():
    """Entry by entry, as in the definition."""
    problem, U, V = random_problem()
    n, m = problem.A.shape
    data_loss = sum(
        problem.W[i, j] * (problem.A[i, j] - U[i] @ V[j]) ** 2 for i in range(n) for j in range(m)
    )
    penalty = sum(problem.lam[i] * U[i] @ U[i] for i in range(n))
    penalty += sum(problem.mu[j] * V[j] @ V[j] for j in range(m))
    assert_allclose(reference.loss(problem, U, V), data_loss + penalty)
    assert_allclose(reference.rwse(problem, U, V), np.sqrt(data_loss / problem.W.sum()))
    assert_allclose(reference.loss(problem.T, V, U), data_loss + penalty)


def test_gradient():
    """Central differences are exact for the quadratic functions of U and of V."""
    problem, U, V = random_problem()
    for analytic, factors in zip(reference.gradient(problem, U, V), (U, V), strict=True):
        numeric = np.empty_like(factors)
        for position in np.ndindex(factors.shape):
            value = factors[position]
            around = []
            for factors[position] in (value + 0.1, value - 0.1):
                around.append(reference.loss(problem, U, V))
            factors[position] = value
            numeric[position] = (around[0] - around[1]) / 0.2
        assert_allclose(analytic, numeric, atol=1e-10 * np.abs(analytic).max())


def test_solve():
    problem, U, V = random_problem()
    U = reference.solve(problem, V)
    assert_allclose(reference.gradient(problem, U, V)[0], 0, atol=1e-13)


def test_solve_has_minimum_norm():
    """One entry and no regularization: u = a v / |v|^2."""
    X = sp.csr_array(([2.0], ([0], [1])), shape=(2, 3))
    V = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    U = reference.solve(make_problem(X, unobserved_weight=0), V)
    assert_allclose(U, [[0.24, 0.32], [0, 0]], atol=1e-15)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_run(name):
    tf = load_golden(name)
    X = sp.coo_array((tf.vals, (tf.rows, tf.cols)), shape=tuple(tf.shape))
    problem = make_problem(
        X,
        unobserved_weight=tf.w0,
        observed_weight=float(tf.row_w.size > 0),
        row_weights=tf.row_w if tf.row_w.size else 1.0,
        col_weights=tf.col_w if tf.col_w.size else 1.0,
        regularization=np.nan_to_num(tf.reg),
    )
    trajectory, losses = reference.run(problem, tf.V0, len(tf.V))
    assert_allclose(trajectory[-3][0], tf.ref64_U, rtol=0, atol=1e-12 * np.abs(tf.ref64_U).max())
    assert_allclose(trajectory[-2][1], tf.ref64_V, rtol=0, atol=1e-12 * np.abs(tf.ref64_V).max())
    assert_allclose(losses[:-1], tf.ref64_loss_unreg + tf.ref64_reg_loss, rtol=1e-12)
    assert_allclose(problem.W.sum(), tf.ref64_sum_weights, rtol=1e-12)
    penalties = [reference.penalty(problem, U, V) for U, V in trajectory[:-1]]
    assert_allclose(penalties, tf.ref64_reg_loss, rtol=1e-12)
