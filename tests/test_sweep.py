"""Sweeps below the estimator: transposition, codes, plans, paths and momentum."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal

from wals import WALS
from wals._alternate import Momentum
from wals._core import kernels, passes
from wals._core.compile import callable_from_python
from wals._core.parallel import effective_n_threads, parallel_section
from wals._core.plan import make_plan
from wals._core.sweep import Objective, Side

OBJECTIVE = Objective(0.05, 1.5, 0.1, 0.0, False)


def random_csr(n, m, density, dtype=np.float64, seed=0):
    return sp.random_array((n, m), density=density, format="csr", rng=seed, dtype=dtype)


def make_side(X, V, objective=OBJECTIVE, solver="exact", weights=1.0, other_weights=1.0):
    """Return the rows of X, to be solved against V by one thread."""
    weights, other_weights = np.full(X.shape[0], weights), np.full(X.shape[1], other_weights)
    return Side(X, weights, other_weights, objective, V.shape[1], solver, n_threads=1)


def set_path(side, path):
    """Let all items be solved by one path."""
    paths = np.full(len(side.weights), path, dtype=np.uint8)
    paths.flags.writeable = False
    side.plan = side.plan._replace(paths=paths)


# --------------------------------------------------------------------------------- transposition


@pytest.mark.parametrize("n_threads", [1, effective_n_threads(None)])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (1, 7), (7, 1), (0, 3), (3, 0)])
def test_transpose(shape, index_dtype, n_threads):
    X = random_csr(*shape, density=0.3, dtype=np.float32)
    X.indices, X.indptr = X.indices.astype(index_dtype), X.indptr.astype(index_dtype)
    actual, expected = passes.transpose(X, n_threads=n_threads), X.T.tocsr()
    assert actual.shape == expected.shape
    assert actual.indices.dtype == actual.indptr.dtype == np.int32
    for name in ("data", "indices", "indptr"):
        assert_array_equal(getattr(actual, name), getattr(expected, name))


# ------------------------------------------------------------------------------------------ codes


@pytest.mark.parametrize(("code", "steps_to_largest"), [(np.int8, 253), (np.int16, 65_000)])
@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize(("k", "width"), [(7, 16), (32, 32), (100, 112)])
def test_codes_are_close_to_each_row(k, width, spread, code, steps_to_largest):
    rng = np.random.default_rng(0)
    V = (rng.normal(size=(50, k)) * 10 ** rng.normal(scale=spread, size=(50, 1))).astype(np.float32)
    V[3], V[4] = 0, 1e-40
    scale = rng.uniform(0.1, 10, size=k)
    codes, steps = np.zeros((50, width), code), np.empty(50, np.float32)
    with parallel_section(1, 1) as run:
        passes.encode(V, scale, codes, steps, run)
    exact, panel = V * scale, np.full((57, width), 7, np.float32)
    callable_from_python(kernels._gather_rows)(0, 50, np.arange(50), codes, steps, panel)
    assert_allclose(panel[:50], steps[:, None] * codes, rtol=1e-6)
    assert_array_equal(panel[:50, k:], 0)
    assert_array_equal(panel[50:56], 0)  # a multiple of eight rows
    assert_array_equal(panel[56:], 7)
    error = np.abs(panel[:50, :k] - exact).max(axis=1)
    assert (error <= np.abs(exact).max(axis=1) / steps_to_largest + 1e-38).all()
    assert not codes[3:5].any()


# ------------------------------------------------------------------------------- plans and paths


@pytest.mark.parametrize("path", [kernels.DUAL, kernels.PRIMAL, kernels.CG])
@pytest.mark.parametrize("w0", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("dtype, tol", [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_every_path_is_exact(dtype, tol, w0, path):
    rng = np.random.default_rng(0)
    objective = OBJECTIVE._replace(unobserved_weight=w0)
    X = random_csr(30, 90, density=0.1, dtype=dtype)
    V = rng.normal(size=(90, 20)).astype(dtype)
    side = make_side(X, V, objective)
    set_path(side, path)
    loss = side.sweep(V).loss
    A, stored = X.toarray().astype(np.float64), X.toarray() != 0
    W, V = w0 + 1.5 * stored, V.astype(np.float64)
    expected = np.array(
        [
            np.linalg.solve((V.T * w) @ V + 0.1 * np.eye(20), (V.T * w) @ a)
            for w, a in zip(W, A, strict=True)
        ]
    )
    assert_allclose(side.factors, expected, rtol=0, atol=tol * np.abs(expected).max())
    value = np.sum(W * (A - expected @ V.T) ** 2) + 0.1 * np.sum(expected**2)
    assert_allclose(loss, value, rtol=max(tol, 1e-13))


@pytest.mark.parametrize("k", [4, 64, 300])
def test_plans(k):
    X = random_csr(200, 3000, density=0.02)
    lengths = np.diff(X.indptr)
    for w0, solver, allowed in [
        (0.1, "cg", {kernels.CG}),
        (1e-6, "cg", {kernels.CG}),
        (0.1, "auto", {kernels.DUAL, kernels.PRIMAL, kernels.CG}),
        (1e-6, "auto", {kernels.DUAL, kernels.PRIMAL}),
        (0.0, "exact", {kernels.DUAL, kernels.PRIMAL}),
    ]:
        ratio = np.full(200, w0)
        plan, shards, work = make_plan(X.indptr, ratio, k, solver)
        assert set(plan.paths) <= allowed
        assert (lengths[plan.paths == kernels.DUAL] <= min(k, plan.chunk)).all()
        assert plan.chunk % 8 == 0
        assert plan.strip % 8 == 0
        assert 0 < plan.strip <= plan.chunk
        assert sorted(i for first, last in shards for i in range(first, last)) == list(range(200))
        assert work > 0


# ------------------------------------------------------------------------------------------ duals


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 1e-3), (np.float64, 1e-9)])
def test_duals_restore_the_solution_in_any_coordinates(dtype, tol, kept):
    """CG that may take no step leaves D^-1 P^T c, with the rounded c of the sweep before."""
    rng, objective = np.random.default_rng(0), OBJECTIVE._replace(unobserved_weight=1.0)
    present = np.arange(60) != 7  # an empty row
    X = sp.csr_array(random_csr(60, 90, density=0.3, dtype=dtype).multiply(present[:, None]))
    V, turn = rng.normal(size=(90, 20)).astype(dtype), np.linalg.qr(rng.normal(size=(20, 20)))[0]
    R, C = rng.uniform(0.5, 2, size=60), rng.uniform(0.5, 2, size=90)
    side = make_side(X, V, objective, "auto", R, C)
    set_path(side, kernels.CG)
    side.plan = side.plan._replace(max_steps=40, tol=0.0)
    if not kept:  # panels of less than an item has
        side.plan = side.plan._replace(chunk=16, strip=8)
    side.factors[:] = np.nan
    loss = side.sweep(V).loss
    U = side.factors.copy()
    side.plan = side.plan._replace(max_steps=0)
    side.factors[:] = np.nan
    assert side.start == kernels.DUALS
    again = side.sweep((V @ turn).astype(dtype)).loss
    restored = side.factors

    A, V, U = X.toarray().astype(np.float64), V.astype(np.float64), U.astype(np.float64)
    E = objective.observed_weight * np.outer(R, C) * (A != 0)
    coef = np.where(A != 0, (1 + E) * A - E * (U @ V.T), 0)
    shared = V.T @ V + objective.regularization * np.eye(20)
    assert_allclose(coef @ V, U @ shared, atol=tol)
    steps = np.abs(coef).max(axis=1, keepdims=True).clip(1e-30) / 127
    expected = np.linalg.solve(shared, V.T @ (np.rint(coef / steps) * steps).T).T
    assert_allclose(restored @ turn.T, expected, rtol=0, atol=tol * np.abs(expected).max())
    assert loss < again < (1 + 1e-4) * loss


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_duals_are_close(dtype):
    rng = np.random.default_rng(0)
    coef = rng.normal(size=(4, 50)).astype(dtype)
    coef[1], coef[2, 3], coef[3] = 0, np.inf, 1e-38
    duals = kernels.Duals(np.full(210, 5, np.int8), np.full(4, np.nan, dtype))
    keep, recall = map(callable_from_python, (kernels._keep, kernels._recall))
    for i in range(4):
        keep(coef[i], duals, i, 50 * i, 50 * i + 50)
    assert np.abs(duals.codes[:50]).max() == 127
    assert not duals.codes[50:200].any()
    assert_array_equal(duals.codes[200:], 5)
    out = np.full(57, 7, dtype)
    recall(duals, 0, 0, 50, out)
    assert np.abs(out[:50] - coef[0]).max() <= np.abs(coef[0]).max() / 253
    assert_array_equal(out[50:56], 0)
    assert out[56] == 7


@pytest.mark.parametrize("w0", [0.1, 1.0])
def test_duals_are_a_better_start_than_factors(w0):
    """After an iteration, one step from duals leaves less to do than one step from factors."""
    rng = np.random.default_rng(0)
    objective = OBJECTIVE._replace(unobserved_weight=w0)
    X, k = random_csr(300, 200, density=0.1), 30
    U, V, frame = np.empty((300, k)), rng.normal(size=(200, k)), np.eye(k)
    rows, cols = (make_side(A, V, objective, "auto") for A in (X, X.T.tocsr()))
    rows.factors, cols.factors = U, V
    for side in (rows, cols):
        set_path(side, kernels.CG)
    for _ in range(3):
        for side, fixed in [(rows, V), (cols, U)]:
            side.sweep(fixed, frame=frame)

    def loss(start, max_steps=1):
        side = copy.copy(rows)
        side.plan = rows.plan._replace(max_steps=max_steps, tol=0.0)
        side.duals = kernels.Duals(*(array.copy() for array in rows.duals))
        side.factors, side.start = U.copy(), start
        return side.sweep(V).loss

    least = loss(kernels.ZERO, max_steps=40)
    from_duals, from_factors, from_zero = map(loss, (kernels.DUALS, kernels.FACTORS, kernels.ZERO))
    assert least < from_duals < least + (from_factors - least) / 2
    assert from_factors < from_zero


# --------------------------------------------------------------------------------------- momentum


def test_momentum_in_turning_coordinates():
    """The sequence is that of Nesterov, whatever rotations the sweeps leave V in."""
    rng = np.random.default_rng(0)
    solutions, losses = rng.normal(size=(5, 30, 6)), [5.0, 4.0, 3.0, 3.5, 2.0]
    momentum, theta, previous = Momentum(), 1.0, None
    for t, (solution, loss) in enumerate(zip(solutions, losses, strict=True)):
        frame = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        V = solution @ frame
        momentum.extrapolate(V, frame, loss, n_threads=1)
        expected = solution
        if previous is not None:
            if loss > losses[t - 1]:
                theta = 1.0
            following = (1 + np.sqrt(1 + 4 * theta**2)) / 2
            expected = solution + (theta - 1) / following * (solution - previous)
            theta = following
        assert_allclose(V @ frame.T, expected, atol=1e-13)
        previous = solution


@pytest.mark.parametrize("w0", [0.0, 0.003, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auto_gets_ahead_of_exact(dtype, w0):
    X = random_csr(300, 200, density=0.1, dtype=dtype)
    params = {"unobserved_weight": w0, "regularization": 0.1, "max_iter": 12, "random_state": 0}
    auto = WALS(16, **params).fit(X)
    exact = WALS(16, solver="exact", **params).fit(X)
    assert auto.loss_ < exact.loss_
    ends = auto.loss_curve_[1::2]
    assert (np.diff(ends) <= 1e-6 * ends[:-1]).all()
