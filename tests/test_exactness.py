"""Every sweep solves what it claims to solve: the mathematics of `WALS`, checked by the oracle."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import LinAlgWarning

from wals import WALS
from wals._core import sweep
from wals.datasets import load_msweb

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

OBJECTIVES = [
    {
        "unobserved_weight": unobserved_weight,
        "regularization": 0.1,
        "regularization_exponent": exponent,
        "implicit": implicit,
    }
    for unobserved_weight in (0.003, 0.1, 1.0, 0.0)
    for exponent in (0.0, 0.5, 1.0)
    for implicit in (False, True)
]
OBJECTIVES += [
    OBJECTIVES[3] | {"unobserved_weight": 1.0, "regularization_by": "count", "implicit": implicit}
    for implicit in (False, True)
]


def random_sparse(rng, n, m):
    """Some values are negative, some explicit zeros; some rows are full, empty or of one entry."""
    stored = rng.random((n, m)) < 0.3
    if n > 4:
        stored[0] = True
        stored[1:4] = False
        stored[[1, 2], rng.integers(m, size=2)] = True
    values = rng.normal(scale=2, size=(n, m)) * (rng.random((n, m)) < 0.8)
    row, col = stored.nonzero()
    return sp.csr_array(sp.coo_array((values[stored], (row, col)), shape=(n, m)))


def random_weights(rng, size):
    return rng.uniform(0.1, 2, size) * (rng.random(size) < 0.8)


class Case(SimpleNamespace):
    """A random problem, for the estimator and for the oracle."""

    def __init__(self, n, m, k, seed, *, weighted_entries=True, **objective):
        rng = np.random.default_rng(seed)
        X = random_sparse(rng, n, m)
        E = sp.csr_array((random_weights(rng, X.nnz), X.indices, X.indptr), shape=X.shape)
        objective |= {"observed_weight": 1.5, "col_weights": random_weights(rng, m)}
        weights = {
            "row_weights": random_weights(rng, n),
            "entry_weights": E if weighted_entries else None,
        }
        super().__init__(
            X=X,
            weights=weights,
            params={"n_components": k, "solver": "exact", "init": rng.uniform(size=(m, k))}
            | objective,
            problem=reference.make_problem(X, **objective, **weights),
        )

    def fit(self, dtype=np.float64, **params):
        return WALS(**self.params | params).fit(self.X.astype(dtype), **self.weights)


def assert_solved(problem, U, V):
    """Check that the gradient of every row vanishes, relative to the terms that cancel in it."""
    left, right = (np.asarray(side) for side in reference.normal_equations(problem, U, V))
    size = np.maximum(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    assert (np.linalg.norm(left - right, axis=1) <= 1e-10 * size).all()


def assert_close(actual, desired, tol):
    """Check max|actual - desired| <= tol max|desired|."""
    assert_allclose(actual, desired, rtol=0, atol=tol * np.abs(desired).max())


def check_sweeps(case, n_iter=2):
    """Check the factors and the loss after each sweep of a fit.

    A fit ends with U solved for V; a fit of one more iteration solves V for that U.
    """
    fits = [case.fit(max_iter=t) for t in range(n_iter + 1)]
    U, V = fits[0].row_factors_, case.params["init"]
    trajectory = [(U, V)]
    for model in fits[1:]:
        trajectory += [(U, model.col_factors_), (model.row_factors_, model.col_factors_)]
        U = model.row_factors_
    for s, (U, V) in enumerate(trajectory):
        if s % 2 == 0:
            assert_solved(case.problem, U, V)
        else:
            assert_solved(case.problem.T, V, U)
    model = fits[-1]
    losses = [reference.loss(case.problem, U, V) for U, V in trajectory]
    assert_allclose(model.loss_curve_, losses, rtol=1e-10)
    assert (np.diff(model.loss_curve_) <= 1e-12 * model.loss_curve_[:-1]).all()
    assert model.loss_ == model.loss_curve_[-1]
    assert_allclose(model.rwse_, reference.rwse(case.problem, *trajectory[-1]), rtol=1e-8)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sweeps(objective):
    check_sweeps(Case(40, 25, 6, seed=0, **objective))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    objective=st.sampled_from(OBJECTIVES),
)
def test_sweeps_of_any_shape(n, m, k, seed, objective):
    """One row, one column, one component, more components than rows and columns."""
    check_sweeps(Case(n, m, k, seed, **objective), n_iter=1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_float32(objective):
    case = Case(40, 25, 6, seed=1, **objective)
    single, double = case.fit(np.float32, max_iter=3), case.fit(max_iter=3)
    assert single.components_.dtype == single.row_factors_.dtype == np.float32
    assert_close(single.components_, double.components_, 1e-4)
    assert_close(single.row_factors_, double.row_factors_, 1e-4)
    assert_allclose(single.loss_curve_, double.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_projections(objective):
    case = Case(40, 25, 6, seed=2, weighted_entries=False, **objective)
    R, C = case.weights["row_weights"], case.params["col_weights"]
    model = case.fit(max_iter=2)
    U, V = model.row_factors_, model.col_factors_
    assert_array_equal(model.transform(case.X, weights=R), U)
    assert_array_equal(
        WALS(**case.params | {"max_iter": 2}).fit_transform(case.X, row_weights=R), U
    )
    result = model.evaluate(case.X, weights=R)
    assert_allclose(result["loss"], model.loss_, rtol=1e-14)
    assert_allclose(result["data_loss"], reference.data_loss(case.problem, U, V), rtol=1e-10)
    assert_allclose(result["penalty"], reference.penalty(case.problem, U, V), rtol=1e-10)
    assert_allclose(result["rwse"], model.rwse_, rtol=1e-12)
    assert_allclose(result["sum_weights"], case.problem.W.sum(), rtol=1e-12)
    assert_allclose(model.score(case.X, row_weights=R), -model.rwse_, rtol=1e-12)

    V = model.transform(case.X, axis=1, weights=C)
    assert_solved(case.problem.T, V, U)
    result = model.evaluate(case.X, axis=1, weights=C)
    assert_allclose(result["loss"], reference.loss(case.problem, U, V), rtol=1e-10)
    assert_allclose(result["penalty"], reference.penalty(case.problem, U, V), rtol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_partial_fit(objective):
    """All rows in batches, then all columns in batches: one iteration."""
    case = Case(40, 25, 6, seed=3, weighted_entries=False, **objective)
    R = case.weights["row_weights"]
    model = WALS(**case.params)
    for rows in np.array_split(np.arange(40), 3):
        model.partial_fit(case.X[rows], indices=rows, weights=R[rows])
    assert_close(model.row_factors_, case.fit(max_iter=0).row_factors_, 1e-10)
    for cols in np.array_split(np.random.default_rng(0).permutation(25), 4):
        model.partial_fit(case.X[:, cols], indices=cols, axis=1)
    straight = case.fit(max_iter=1)
    assert_close(model.components_, straight.components_, 1e-10)
    assert_allclose(model.evaluate(case.X, weights=R)["loss"], straight.loss_, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minimum_norm(dtype):
    """Fewer entries than components, no regularization."""
    rng = np.random.default_rng(0)
    X = random_sparse(rng, 20, 15)
    X = X[:, [0, 3, 7, 11]]
    V = rng.normal(size=(4, 6))
    problem = reference.make_problem(X, unobserved_weight=0)
    model = WALS(6, unobserved_weight=0, regularization=0, solver="exact", init=V, max_iter=0)
    n_nonempty = np.count_nonzero(np.diff(X.indptr))
    with pytest.warns(LinAlgWarning, match=f"{n_nonempty} of 20 rows"):
        model.fit(X.astype(dtype))
    assert_close(
        model.row_factors_, reference.solve(problem, V), 1e-4 if dtype == np.float32 else 1e-10
    )


# --------------------------------------------------------------------------------- the data loss


def nearly_predictable(name, rng, n=60, m=40):
    """Return a matrix of which a model of few components leaves next to nothing."""
    low = rng.uniform(0.5, 1.5, size=(n, 3)) @ rng.uniform(0.5, 1.5, size=(3, m))
    share = {"full": 1.0, "nearly full": 0.97, "half": 0.5, "sparse": 0.04}
    if name == "blocks":  # nothing is predicted outside
        return np.kron(np.eye(4), np.ones((n // 4, m // 4)))
    return np.where(rng.random((n, m)) < share[name], low, 0)


def exact_losses(problem, U, V):
    """Return the data loss, the loss and the RWSE, in the most precision that there is."""
    problem = reference.Problem(*(array.astype(np.longdouble) for array in problem))
    U, V = U.astype(np.longdouble), V.astype(np.longdouble)
    values = (f(problem, U, V) for f in (reference.data_loss, reference.loss, reference.rwse))
    return [float(value) for value in values]


@pytest.mark.parametrize("name", ["full", "nearly full", "half", "sparse", "blocks"])
@pytest.mark.parametrize("scale", [1e-3, 1e6, 1e9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_loss_of_any_scale(dtype, scale, name):
    """The factors that are returned have the loss that is told, to some digits."""
    rng = np.random.default_rng(0)
    X = sp.csr_array((scale * nearly_predictable(name, rng)).astype(dtype))
    R, C = rng.uniform(0.5, 2, size=60), rng.uniform(0.5, 2, size=40)
    E = sp.csr_array((rng.uniform(0.5, 2, size=X.nnz), X.indices, X.indptr), shape=X.shape)
    for solver in ("exact", "auto", "cg"):
        for w0, implicit in ((0.1, False), (0.0, False), (1.0, True)):
            objective = {
                "unobserved_weight": w0,
                "implicit": implicit,
                "regularization": 0.1,
                "col_weights": C,
            }
            problem = reference.make_problem(X, row_weights=R, entry_weights=E, **objective)
            model = WALS(8, solver=solver, max_iter=3, random_state=0, **objective)
            model.fit(X, row_weights=R, entry_weights=E)
            expected = exact_losses(problem, model.row_factors_, model.col_factors_)
            assert_allclose([model.loss_, model.rwse_], expected[1:], rtol=3e-5)
            assert model.rwse_ == model.rwse_curve_[-1]
            # Without weights of entries, which projections do not have.
            U = model.transform(X, weights=R)
            problem = reference.make_problem(X, row_weights=R, **objective)
            told = model.evaluate(X, weights=R)
            expected = exact_losses(problem, U, model.col_factors_)
            # The ridge of the columns is that of the fit; where it is no power, it is the same.
            assert_allclose([told["data_loss"], told["loss"], told["rwse"]], expected, rtol=3e-5)
            assert told["loss"] == told["data_loss"] + told["penalty"]


def test_default_regularization_leaves_what_it_should():
    """Values that differ by scale alone leave the same error, as far as they are exact."""
    rng = np.random.default_rng(0)
    A = rng.integers(1, 10, size=(50, 3)) @ rng.integers(1, 10, size=(3, 30))
    errors = {}
    for dtype in (np.float32, np.float64):
        for scale in (1e2, 1e4, 1e6):
            X = sp.csr_array((scale * A).astype(dtype))
            model = WALS(4, max_iter=10, random_state=0).fit(X)
            errors[dtype, scale] = model.rwse_
    values = [errors[np.float64, scale] for scale in (1e2, 1e4, 1e6)]
    assert_allclose(values, values[0], rtol=3e-3)
    assert errors[np.float32, 1e2] == pytest.approx(values[0], rel=1e-2)
    assert errors[np.float32, 1e6] > values[0] / 2  # and more, for factors are rounded


@pytest.mark.parametrize("few", [0, 2**18])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("init", ["random", "svd"])
def test_data_loss_after_every_sweep(init, dtype, few, monkeypatch):
    """In the coordinates that it leaves, whether large factors are rounded for it or not."""
    monkeypatch.setattr(sweep, "_FEW", few)
    monkeypatch.setattr(sweep, "_ENTRIES", 300)  # several blocks
    monkeypatch.setattr(sweep, "_DENSE", 300)
    rng, real, sides, told = np.random.default_rng(0), sweep.Side.data_loss, [], []
    X = sp.csr_array((1e4 * nearly_predictable("full", rng)).astype(dtype))

    def spy(side, swept, fixed):
        told.append(real(side, swept, fixed))
        problem = reference.make_problem(sp.csr_array((*side.items[:3],), shape=side_shape(side)))
        sides.append(exact_losses(problem, side.factors, fixed)[0])
        return told[-1]

    def side_shape(side):
        return X.shape if len(side.weights) == 60 else X.shape[::-1]

    monkeypatch.setattr(sweep.Side, "data_loss", spy)
    WALS(8, init=init, max_iter=6, regularization=0.1, random_state=0).fit(X)
    assert len(told) == 13
    # Of large losses, a sweep tells that for rounded factors, if it rounds them.
    assert_allclose(told, sides, rtol=1e-2 if few == 0 else 1e-4)
    assert_allclose(told[1:], sides[1:], rtol=1e-4)
    assert min(told) < 1e-7 * np.sum(X.data.astype(float) ** 2)


def load_movielens():
    user, item, rating = np.loadtxt(
        REAL_DATA / "ml100k.csv.gz", np.float32, delimiter=",", skiprows=1, usecols=(0, 1, 2)
    ).T
    return sp.coo_array((rating, (user.astype(int) - 1, item.astype(int) - 1))).tocsr()


def load_gowalla():
    return sp.csr_array(sp.load_npz(REAL_DATA / "gowalla_train.npz"))


needs_real_data = pytest.mark.skipif(
    not REAL_DATA.exists(), reason="the data may not be distributed with the package"
)


@pytest.mark.parametrize("unobserved_weight", [0.1, 0.01])
@pytest.mark.parametrize(
    "load, max_iter",
    [
        (load_msweb, 10),
        pytest.param(load_movielens, 10, marks=needs_real_data),
        pytest.param(load_gowalla, 3, marks=needs_real_data),
    ],
)
def test_inexact_solvers_on_real_data(load, max_iter, unobserved_weight):
    """The few steps of "cg" follow "exact"; with extrapolation, "auto" gets ahead of it."""
    X = load()
    params = {"unobserved_weight": unobserved_weight, "max_iter": max_iter, "random_state": 0}
    params["regularization"] = 0.1
    exact, auto, cg = (
        WALS(32, solver=solver, **params).fit(X).loss_ for solver in ("exact", "auto", "cg")
    )
    assert auto < exact * (1 + 1e-3)
    assert cg == pytest.approx(exact, rel=2e-3)
