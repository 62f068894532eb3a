"""Models of factors from elsewhere, and regularization by counts, from fit to the file."""

import pickle

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import LinAlgWarning
from sklearn.base import clone

import wals
from wals import WALS, storage
from wals._fitted import get_side
from wals.datasets import make_interactions
from wals.plotting import _check_items
from wals.weights import power_law

PARAMS = {
    "unobserved_weight": 0.3,
    "observed_weight": 1.7,
    "regularization": 0.4,
    "regularization_exponent": 0.7,
}
K = 3


@pytest.fixture
def X():
    """Positive, negative and zero values, an empty row and column, a row of zeros and one of -1."""
    rng = np.random.default_rng(0)
    X = sp.random(30, 20, 0.3, format="lil", random_state=0)
    X[4], X[:, 7], X[5], X[6] = 0, 0, 0, 0
    X[5, [1, 2]], X[6, [1, 3, 5, 8]] = 1, -1
    X = sp.csr_array(X)
    X.data[rng.random(X.nnz) < 0.2] *= -1
    X.data[rng.random(X.nnz) < 0.2] = 0
    X.data[slice(*X.indptr[5:7])] = 0
    X.data[slice(*X.indptr[6:8])] = -1
    return X


@pytest.fixture
def weights():
    return {"row_weights": np.linspace(0.5, 2, 30), "col_weights": np.linspace(2, 0.5, 20)}


@pytest.fixture
def factors():
    rng = np.random.default_rng(1)
    return rng.normal(size=(K, 20)), rng.normal(size=(30, K))


def count_problem(X, weights, implicit):
    settings = PARAMS | {"implicit": implicit, "regularization_by": "count"}
    return reference.make_problem(X, **settings, **weights)


# ------------------------------------------------------------------------- regularization by counts


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_path_regularizes_by_counts(X, weights, implicit, dtype, tmp_path):
    tol = 1e-9 if dtype == np.float64 else 2e-4
    problem = count_problem(X.astype(dtype), weights, implicit)
    assert np.any(problem.lam == 0)
    V0 = np.random.default_rng(2).normal(size=(20, K))
    model = WALS(K, init=V0, max_iter=2, solver="exact", **PARAMS, implicit=implicit)
    model.set_params(regularization_by="count", col_weights=weights["col_weights"])
    given = {"row_weights": weights["row_weights"]}
    model.fit(X.astype(dtype), **given)
    trajectory, losses = reference.run(problem, V0, 2)
    U, V = trajectory[-1]
    assert_allclose(model.row_factors_, U, rtol=0, atol=tol)
    assert_allclose(model.col_factors_, V, rtol=0, atol=tol)
    assert_allclose(model.loss_curve_, losses, rtol=tol)
    assert_allclose(model.transform(X, weights=weights["row_weights"]), U, rtol=0, atol=tol)
    columns = reference.solve(problem.T, U)
    ours = model.transform(X, axis=1, weights=weights["col_weights"])
    assert_allclose(ours, columns, rtol=0, atol=tol)
    for other in (pickle.loads(pickle.dumps(model)), model):
        evaluated = other.evaluate(X, weights=weights["row_weights"])
        assert evaluated["loss"] == pytest.approx(losses[-1], rel=tol)
        assert evaluated["sum_weights"] == pytest.approx(problem.W.sum(), rel=1e-6)
    path = tmp_path / "model.wals"
    model.save(path)
    assert wals.load(path).evaluate(X) == model.evaluate(X)
    if dtype == np.float32:
        return
    stored = clone(model).fit(storage.write(X, tmp_path / "stored"), **given)
    assert_array_equal(stored.components_, model.components_)
    assert_array_equal(stored.row_factors_, model.row_factors_)
    assert stored.evaluate(X) == model.evaluate(X)


@pytest.mark.parametrize("solver", ["exact", "auto", "cg"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_of_ones_are_weights_of_ones(solver, dtype):
    X = make_interactions(300, 200, 4000, random_state=0).astype(dtype)
    settings = {"unobserved_weight": 0, "regularization": 0.1, "regularization_exponent": 1}
    model = WALS(8, solver=solver, random_state=0, **settings)
    by_count = clone(model).set_params(regularization_by="count").fit(X)
    assert_array_equal(by_count.components_, model.fit(X).components_)
    assert by_count.loss_ == model.loss_


@pytest.mark.parametrize("solver", ["exact", "auto", "cg"])
def test_without_an_exponent_it_is_the_same(X, solver):
    model = WALS(K, solver=solver, random_state=0, regularization=0.3)
    by_count = clone(model).set_params(regularization_by="count").fit(X)
    assert_array_equal(by_count.components_, model.fit(X).components_)


@pytest.mark.parametrize("solver", ["exact", "auto", "cg"])
def test_items_without_a_positive_target_disturb_no_others(solver):
    """They have no regularization, which is the least that all items share."""
    X = make_interactions(300, 100, 3000, random_state=0).astype(np.float64)
    X.data[:] = np.random.default_rng(0).integers(1, 5, X.nnz)
    model = WALS(
        12,
        implicit=True,
        regularization=0.1,
        regularization_exponent=1,
        regularization_by="count",
        solver=solver,
        init=np.random.default_rng(0).normal(size=(100, 12)),
    ).fit(X)
    zeros = X[:5].copy()
    zeros.data[:] = 0
    wider = clone(model).fit(sp.vstack([X, zeros, sp.csr_array((3, 100))], format="csr"))
    assert not wider.row_factors_[300:].any()
    assert_allclose(wider.components_, model.components_, rtol=0, atol=1e-3)
    if solver == "exact":
        assert_allclose(wider.components_, model.components_, rtol=0, atol=1e-9)


def test_partial_fit_counts(X, weights):
    """Rows in two batches, then all columns, are an iteration, and so are the counts."""
    problem = count_problem(X, weights, False)
    V0 = np.random.default_rng(2).normal(size=(20, K))
    model = WALS(K, init=V0, **PARAMS, regularization_by="count")
    model.set_params(col_weights=weights["col_weights"])
    R, C = weights["row_weights"], weights["col_weights"]
    model.partial_fit(X[:10], weights=R[:10])
    model.partial_fit(X[20:], weights=R[20:], indices=np.arange(20, 30))
    model.partial_fit(X[10:20], weights=R[10:20], indices=np.arange(10, 20))
    U = reference.solve(problem, V0)
    assert_allclose(model.row_factors_, U, rtol=0, atol=1e-9)
    # What the fixed columns are penalised by has grown with the rows, if each row came once.
    fresh = WALS(K, init=V0, **PARAMS, regularization_by="count")
    fresh.set_params(col_weights=C).partial_fit(X[:12]).partial_fit(X[12:])
    assert_allclose(
        fresh.evaluate(X, weights=R)["loss"], reference.loss(problem, U, V0), rtol=1e-10
    )
    model.partial_fit(X, axis=1)
    V = reference.solve(problem.T, U)
    assert_allclose(model.col_factors_, V, rtol=0, atol=1e-9)
    U = reference.solve(problem, V)
    loss = model.evaluate(X, weights=R)["loss"]
    assert_allclose(loss, reference.loss(problem, U, V), rtol=1e-10)


def test_a_long_row_is_counted_whole():
    """In blocks of entries, of which one row may have more than a block."""
    long = sp.csr_array(np.resize([1.0, -1.0, 2.0], (1, 1_100_000)))
    X = sp.vstack([long, sp.csr_array((2, long.shape[1])), long, -long], format="csr")
    model = WALS(1, regularization_exponent=1, regularization_by="count", max_iter=0, init="random")
    model.fit(X)
    assert_array_equal(model._row_mass, (X.toarray() > 0).sum(axis=1))


# ------------------------------------------------------------------------------ factors from others


@pytest.mark.parametrize("by", ["weight", "count"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_of_its_factors_does_what_the_model_does(X, weights, by, dtype):
    X = X.astype(dtype)
    C, R = weights["col_weights"], weights["row_weights"]
    fitted = WALS(K, col_weights=C, random_state=0, regularization_by=by, **PARAMS)
    fitted.fit(X, row_weights=R)
    model = WALS.from_factors(
        fitted.components_,
        fitted.row_factors_,
        row_weights=R,
        col_weights=C,
        regularization_by=by,
        **PARAMS,
    )
    assert model.components_.dtype == dtype
    assert (model.n_components, model.n_features_in_) == (K, 20)
    assert_array_equal(model.transform(X), fitted.transform(X))
    assert_array_equal(model.transform(X, axis=1), fitted.transform(X, axis=1))
    for ours, theirs in zip(model.recommend(X), fitted.recommend(X), strict=True):
        assert_array_equal(ours, theirs)
    for ours, theirs in zip(model.explain(X[[0]], 3), fitted.explain(X[[0]], 3), strict=True):
        assert_array_equal(ours, theirs)
    assert model.score(X) == fitted.score(X)
    assert_array_equal(
        model.partial_fit(X, axis=1).components_, fitted.partial_fit(X, axis=1).components_
    )
    # Now the masses of the columns are known, too.
    assert model.evaluate(X) == fitted.evaluate(X)
    assert_array_equal(
        model.partial_fit(X[:5]).row_factors_, fitted.partial_fit(X[:5]).row_factors_
    )


def test_what_is_not_known_is_not_told(X, factors):
    model = WALS.from_factors(*factors, **PARAMS)
    evaluated = model.evaluate(X)
    assert np.isnan([evaluated["loss"], evaluated["penalty"]]).all()
    assert np.isfinite([evaluated["data_loss"], evaluated["rwse"]]).all()
    assert not hasattr(model, "loss_")
    with pytest.raises(ValueError, match="does not know all weights"):
        _check_items(5, get_side(model, 1).mass)
    # Where the ridge is a constant, all is known.
    model = WALS.from_factors(*factors, regularization=0.4)
    problem = reference.make_problem(X, regularization=0.4)
    U = reference.solve(problem, factors[0].T)
    assert_allclose(model.evaluate(X)["loss"], reference.loss(problem, U, factors[0].T), rtol=1e-10)


def test_without_rows(X, factors, tmp_path):
    V = factors[0].T
    model = WALS.from_factors(V.T, **PARAMS)
    assert model.row_factors_.shape == (0, K)
    U = reference.solve(reference.make_problem(X, **PARAMS), V)
    assert_allclose(model.transform(X), U, rtol=0, atol=1e-10)
    model.save(tmp_path / "model.wals")
    for other in (wals.load(tmp_path / "model.wals"), pickle.loads(pickle.dumps(model))):
        assert_array_equal(other.transform(X), model.transform(X))
    model.partial_fit(X)
    assert_allclose(model.row_factors_, U, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="was fitted on 0"):
        WALS.from_factors(V.T).transform(X, axis=1)


def test_training_goes_on(X, factors):
    """From V alone, an exact iteration with warm_start is the oracle's."""
    V = factors[0].T
    model = WALS.from_factors(V.T, solver="exact", max_iter=1, warm_start=True, **PARAMS)
    problem = reference.make_problem(X, **PARAMS)
    (_, V1) = reference.run(problem, V, 1)[0][-1]
    assert_allclose(model.fit(X).col_factors_, V1, rtol=0, atol=1e-9)


def test_factors_are_copied_and_read_only(factors):
    for given in factors:
        given.flags.writeable = False
    model = WALS.from_factors(*factors)
    assert not np.shares_memory(model.components_, factors[0])
    assert not np.shares_memory(model.row_factors_, factors[1])
    with pytest.raises(ValueError, match="read-only"):
        model.components_[0] = 0


def test_precision_and_layout(factors):
    V, U = (np.asfortranarray(given, np.float32) for given in factors)
    assert WALS.from_factors(V, U).components_.dtype == np.float32
    assert WALS.from_factors(V, factors[1]).components_.dtype == np.float64
    assert WALS.from_factors(V.astype(np.float16)).components_.dtype == np.float64
    assert WALS.from_factors([[1, 2], [3, 4]]).components_.dtype == np.float64
    assert_array_equal(WALS.from_factors(V, U).row_factors_, U)
    assert_array_equal(WALS.from_factors(V, U).components_, V)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": np.full((K, 20), np.nan)}, "components contains NaN"),
        ({"components": np.ones((K, 20), complex)}, "Complex data not supported"),
        ({"components": np.ones(20)}, "Expected 2D array"),
        ({"components": np.ones((0, 20))}, "0 sample"),
        ({"row_factors": np.full((30, K), np.inf)}, "row_factors contains infinity"),
        ({"row_factors": np.ones((K, 30))}, "transpose what has a row for each item"),
        ({"row_weights": np.ones(29)}, "row_weights has shape"),
        ({"row_weights": -1}, "Negative weight in row_weights"),
        ({"col_weights": 2.0}, "'col_weights' parameter"),
        ({"col_weights": np.ones(21)}, "col_weights has shape"),
        ({"col_weights": power_law(0.5)}, "col_weights must be numbers, not a function"),
        ({"n_components": 4}, "n_components=4, but components has 3 rows"),
        ({"regularization": -1}, "'regularization' parameter"),
        ({"regularization_by": "rows"}, "'regularization_by' parameter"),
    ],
)
def test_bad_input(factors, changes, message):
    components, row_factors = factors
    given = {"components": components, "row_factors": row_factors} | changes
    with pytest.raises(ValueError, match=message):
        WALS.from_factors(**given)


def test_unknown_parameter(factors):
    with pytest.raises(TypeError, match="factors_of_items"):
        WALS.from_factors(*factors, factors_of_items=1)


def test_only_a_row_with_nothing_to_hold_it_is_singular(X):
    """Without positive targets there is no ridge, so what is stored alone decides."""
    model = WALS.from_factors(
        np.eye(K, 20),
        unobserved_weight=0,
        regularization=1,
        regularization_exponent=1,
        regularization_by="count",
    )
    with pytest.warns(LinAlgWarning, match="1 of 1 rows"):
        U = model.transform(X[[6]])
    assert_allclose(U, [[0, -1, 0]], rtol=0, atol=1e-12)
    assert not model.transform(X[[5]]).any()  # zeros only: 0, and no warning
