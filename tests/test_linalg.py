"""The building blocks against NumPy, and all kernels against themselves without compilation."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from wals import _linalg as linalg

DTYPES = [np.float32, np.float64]
SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 32, 65]


def tolerance(dtype):
    return 100 * np.finfo(dtype).eps


def symmetric(A):
    return np.triu(A) + np.triu(A, 1).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", [0, 4, 8])
def test_add_gram(n, count, dtype):
    rng = np.random.default_rng(n)
    P, coef = rng.normal(size=(count + 2, n)).astype(dtype), rng.uniform(size=count).astype(dtype)
    A = np.eye(n + 2, dtype=dtype)
    linalg.add_gram(A, P, count, coef)
    expected = np.eye(n) + (P[:count].T * coef) @ P[:count].astype(np.float64)
    assert_allclose(symmetric(A[:n, :n]), expected, rtol=0, atol=tolerance(dtype))
    assert_array_equal(A[n:], np.eye(n + 2)[n:])
    assert_array_equal(A[:, n:], np.eye(n + 2)[:, n:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_cholesky(n, dtype):
    rng = np.random.default_rng(n)
    R, b = rng.normal(size=(2 * n, n)), rng.normal(size=n)
    A = R.T @ R + np.eye(n)
    U = np.zeros((n + 1, n + 1), dtype=dtype)
    U[:n, :n] = np.triu(A)
    assert linalg.cholesky(U, n)
    assert_allclose(
        np.triu(U[:n, :n]), np.linalg.cholesky(A).T, atol=tolerance(dtype) * np.abs(A).max()
    )
    x = b.astype(dtype)
    linalg.cholesky_solve(U, n, x)
    assert_allclose(x, np.linalg.solve(A, b), atol=tolerance(dtype) * 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 4, 6, 9])
def test_cholesky_tells_singular_matrices(n, dtype):
    r = np.arange(1, n + 1, dtype=dtype)
    singular = np.outer(r, r) if n > 1 else np.zeros((1, 1), dtype=dtype)
    assert not linalg.cholesky(singular, n)
    assert not linalg.cholesky(np.full((n, n), np.nan, dtype=dtype), n)
    assert not linalg.cholesky(-np.eye(n, dtype=dtype), n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 4, 8])
@pytest.mark.parametrize("k", SIZES)
def test_products_with_panels(k, count, dtype):
    rng = np.random.default_rng(count)
    panel = rng.normal(size=(count + 1, k)).astype(dtype)
    e, a = rng.uniform(size=(2, count + 1)).astype(dtype)
    x, start = rng.normal(size=(2, k)).astype(dtype)
    P, E, A = (array[:count].astype(np.float64) for array in (panel, e, a))
    w0 = 0.25

    def check(actual, expected):
        assert_allclose(actual, expected, rtol=0, atol=tolerance(dtype))

    out = start.copy()
    linalg.add_normal_product(panel, count, e, x, out)
    check(out, start + P.T @ (E * (P @ x)))

    out = start.copy()
    objective = linalg.add_residual(panel, count, e, a, w0, x, out)
    check(out, start + P.T @ ((w0 + E) * A - E * (P @ x)))
    expected = np.sum((w0 + E) * (A - P @ x) ** 2 - w0 * (P @ x) ** 2)
    assert_allclose(objective, expected, rtol=tolerance(dtype), atol=tolerance(dtype))

    out = start.copy()
    linalg.add_combination(panel, count, e, out)
    check(out, start + E @ P)

    out = np.full(count + 1, 7, dtype=dtype)
    linalg.set_products(panel, count, x, out)
    check(out, [*(P @ x), 7])


def test_dot_is_summed_in_double_precision():
    a, b = np.full(1000, 1e30, dtype=np.float32), np.full(1000, 1e30, dtype=np.float32)
    assert linalg.dot(a, b) == pytest.approx(1e63, rel=1e-6)


FIT = """
import numpy as np, scipy.sparse as sp
from wals import WALS
X = sp.random(9, 600, 0.4, format="csr", random_state=0)
X[0] = 1.0
for data in (X, X.T.tocsr(), X[:, :9]):
    for solver in ("exact", "auto", "cg"):
        for w0 in (0.0, 0.1):
            model = WALS(3, solver=solver, unobserved_weight=w0, max_iter=1, random_state=0)
            print(*model.fit(data).loss_curve_)
"""


def test_kernels_without_compilation():
    losses = []
    for disabled in ("0", "1"):
        env = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        run = subprocess.run(
            [sys.executable, "-c", FIT], env=env, capture_output=True, text=True, check=True
        )
        losses.append(np.array([line.split() for line in run.stdout.splitlines()], dtype=float))
    assert losses[0].shape == (18, 3)
    assert_allclose(losses[1], losses[0], rtol=1e-11)
