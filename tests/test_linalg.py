"""The building blocks against NumPy, and all kernels against themselves without compilation."""

import contextlib
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from wals._core import linalg, plan
from wals._core.compile import callable_from_python, empty_lines, whole_lines

DTYPES = [np.float32, np.float64]
blocks = SimpleNamespace(
    **{
        name: callable_from_python(function)
        for name, function in vars(linalg).items()
        if hasattr(function, "py_func")
    }
)
SIZES = [1, 3, 8, 13, 16, 17, 32, 65, 100]
COUNTS = [0, 8, 24, 112]


def tolerance(dtype):
    return 100 * np.finfo(dtype).eps


def symmetric(A):
    return np.triu(A) + np.triu(A, 1).T


def with_whole_lines(A, dtype):
    """Return a copy of a vector or of rows that fill cache lines, with zeros."""
    A = np.asarray(A, dtype=dtype)
    widths = [(0, 0)] * (A.ndim - 1) + [(0, whole_lines(A.shape[-1], A) - A.shape[-1])]
    return np.pad(A, widths)


def test_building_blocks_do_not_crash_when_python_calls_them():
    with pytest.raises(TypeError):
        linalg.dot(np.ones(2), np.ones(2))
    with pytest.raises(TypeError):
        linalg.padded(3)


@pytest.mark.parametrize(("dtype", "line"), [(np.float32, 16), (np.float64, 8), (np.int8, 64)])
def test_whole_lines(dtype, line):
    A = np.empty(1, dtype)
    assert [whole_lines(n, A) for n in (0, 1, line, line + 1)] == [0, line, line, 2 * line]


@pytest.mark.parametrize("shape", [(1,), (999,), (37, 64), (300, 1000)])
@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_empty_lines(dtype, shape):
    arrays = [empty_lines(shape, np.dtype(dtype)) for _ in range(5)]
    for A in arrays:
        assert (A.shape, A.dtype) == (shape, dtype)
        assert A.flags.c_contiguous
        assert A.ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_add_gram(n, count, dtype):
    rng = np.random.default_rng(n)
    P = with_whole_lines(rng.normal(size=(count + 2, n)), dtype)
    coef = rng.uniform(size=count).astype(dtype)
    A = np.eye(P.shape[1] + 1, dtype=dtype)[:, :-1].copy()
    blocks.add_gram(A, P, count, coef)
    expected = np.eye(P.shape[1]) + (P[:count].T * coef) @ P[:count].astype(np.float64)
    assert_allclose(symmetric(A[:-1]), expected, rtol=0, atol=tolerance(dtype) * max(count, 1))
    assert_array_equal(A[-1], 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [16, 32, 64, 144])
def test_factorise(n, dtype):
    rng = np.random.default_rng(n)
    R, b = rng.normal(size=(2 * n, n)), rng.normal(size=n)
    A = R.T @ R + np.eye(n)
    W, coef = np.full((n, n + 16), np.nan, dtype), np.empty(n, dtype)
    W[:, :n] = A
    assert blocks.factorise(W, n, coef)
    upper = np.triu(W[:, :n]).astype(np.float64)
    assert_allclose(coef, -1 / np.diag(upper), rtol=tolerance(dtype))
    product = upper.T / np.diag(upper) @ upper
    assert_allclose(product, A, rtol=0, atol=tolerance(dtype) * np.abs(A).max())
    x = b.astype(dtype)
    blocks.solve_factorised(W, n, coef, x)
    assert_allclose(x, np.linalg.solve(A, b), atol=tolerance(dtype) * 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [16, 32])
def test_factorise_tells_singular_matrices(n, dtype):
    r, coef = np.arange(1, n + 1, dtype=dtype), np.empty(n, dtype)
    assert not blocks.factorise(np.outer(r, r), n, coef)
    assert not blocks.factorise(np.zeros((n, n), dtype=dtype), n, coef)
    assert not blocks.factorise(np.full((n, n), np.nan, dtype=dtype), n, coef)
    assert not blocks.factorise(-np.eye(n, dtype=dtype), n, coef)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("k", [*SIZES, 1000])
def test_products_with_panels(k, count, dtype):
    rng = np.random.default_rng(count)
    panel = with_whole_lines(rng.normal(size=(count + 1, k)) / np.sqrt(k), dtype)
    e, a = rng.uniform(size=(2, count + 1)).astype(dtype)
    x, start = with_whole_lines(rng.normal(size=(2, k)), dtype)
    P, E, A = (array[:count].astype(np.float64) for array in (panel, e, a))
    w0, coef = 0.25, np.empty(count, dtype)

    def check(actual, expected):
        size = max(1.0, np.max(np.abs(expected), initial=0))
        assert_allclose(actual, expected, rtol=0, atol=tolerance(dtype) * size)

    out = start.copy()
    blocks.add_normal_product(panel, count, e, x, coef, out)
    check(out, start + P.T @ (E * (P @ x)))

    out = start.copy()
    objective = blocks.add_residual(panel, count, e, a, w0, x, coef, out)
    check(coef, (w0 + E) * A - E * (P @ x))
    check(out, start + P.T @ ((w0 + E) * A - E * (P @ x)))
    expected = np.sum((w0 + E) * (A - P @ x) ** 2 - w0 * (P @ x) ** 2)
    assert_allclose(objective, expected, rtol=tolerance(dtype), atol=tolerance(dtype))

    out = start.copy()
    blocks.add_combination(panel, count, e, out)
    check(out, start + E @ P)

    out = np.full(count + 1, 7, dtype=dtype)
    blocks.set_products(panel, count, x, out)
    check(out, [*(P @ x), 7])

    exact = np.full(count + 1, 7.0)
    blocks.set_products(panel, count, x.astype(np.float64), exact)
    assert_allclose(exact[:-1], P @ x, rtol=0, atol=tolerance(np.float64))

    first, out = min(8, count), np.full((4, count + 1), 7, dtype=dtype)
    four = with_whole_lines(rng.normal(size=(4, k)), dtype)
    blocks.set_products_of_four(four, panel, first, count, out)
    check(out[:, first:-1], four.astype(np.float64) @ P[first:].T)
    assert_array_equal(out[:, :first], 7)
    assert_array_equal(out[:, -1], 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 7, 40])
@pytest.mark.parametrize("n", SIZES)
def test_multiply(n, depth, dtype):
    rng = np.random.default_rng(n)
    count, B = 31, rng.normal(size=(depth, n)).astype(dtype)
    A = np.full((37, depth), np.nan, dtype=dtype)
    A[:36] = rng.normal(size=(36, depth))
    panels = linalg.empty_panels(depth, n, dtype)
    panels[:] = np.nan
    blocks.set_panels(np.pad(B, [(0, 0), (0, panels.shape[0] * panels.shape[2] - n)]), panels)
    assert_array_equal(linalg.in_panels(B), panels)
    out = np.full((37, panels.shape[0] * panels.shape[2]), 7, dtype=dtype)
    blocks.multiply(A, count, panels, count, out)
    check = {"rtol": 0, "atol": tolerance(dtype) * depth}
    assert_allclose(out[:36, :n], A[:36].astype(np.float64) @ B, **check)
    assert_array_equal(out[:36, n:], 0)
    assert_array_equal(out[36], 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_multiply_with_the_transpose(n, dtype):
    rng = np.random.default_rng(n)
    panels = linalg.empty_panels(24, n, dtype)
    width = panels.shape[0] * panels.shape[2]
    block = rng.normal(size=(24, width + 6)).astype(dtype)
    blocks.set_panels(block, panels)
    out = np.full((width + 6, width), np.nan, dtype=dtype)
    blocks.multiply(block.T.copy(), n, panels, panels.shape[2], out)
    expected = block[:, :n].T.astype(np.float64) @ block[:, :n]
    assert_allclose(symmetric(out[:n, :n]), expected, rtol=0, atol=24 * tolerance(dtype))


def test_dot_is_summed_in_double_precision():
    a, b = np.full(1000, 1e30, dtype=np.float32), np.full(1000, 1e30, dtype=np.float32)
    assert blocks.dot(a, b) == pytest.approx(1e63, rel=1e-6)


FIT = """
import numpy as np, scipy.sparse as sp
import wals._core.plan as plan
from wals import WALS
plan._PANEL_SIZE, plan._STRIP_SIZE = 100, 90  # the first row takes several
X = sp.random(5, 150, 0.4, format="csr", random_state=0)
X = sp.csr_array(sp.vstack([np.ones((1, 150)), X]))
for data in (X, X.T.tocsr(), X[:, :9]):
    for solver in ("exact", "auto", "cg"):
        for w0 in (0.0, 0.1):
            model = WALS(3, solver=solver, unobserved_weight=w0, max_iter=1, random_state=0)
            print(*model.fit(data).loss_curve_)
"""


def test_kernels_without_compilation(monkeypatch):
    assert not numba.config.DISABLE_JIT
    for name in ("_PANEL_SIZE", "_STRIP_SIZE"):
        monkeypatch.setattr(plan, name, getattr(plan, name))  # restored afterwards
    with contextlib.redirect_stdout(io.StringIO()) as compiled:
        exec(FIT, {})
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-c", FIT], env=env, capture_output=True, text=True, check=True
    )
    expected, actual = (
        np.array([line.split() for line in out.splitlines()], dtype=float)
        for out in (compiled.getvalue(), run.stdout)
    )
    assert expected.shape == (18, 3)
    assert_allclose(actual, expected, rtol=1e-11)
