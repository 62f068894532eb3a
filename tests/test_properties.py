"""What must hold for every matrix, weight and parameter.

``pytest tests/test_properties.py --hypothesis-profile=long`` tries many more.
"""

import warnings

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import LinAlgWarning

from wals import WALS

#: How well factors agree that differ by no more than rounding, which systems may amplify.
CLOSE = {np.float64: 1e-7, np.float32: 3e-3}

finite = st.floats(1e-3, 1e3)
non_negative = st.one_of(st.just(0.0), finite)


@st.composite
def matrices(draw, n_min=1):
    """Some rows and columns are empty, some full; values and zeros are stored."""
    n, m = draw(st.integers(n_min, 12)), draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored = rng.random((n, m)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    stored[rng.random(n) < 0.1] = draw(st.booleans())
    stored[:, rng.random(m) < 0.1] = draw(st.booleans())
    values = rng.normal(size=(n, m)) * 10.0 ** draw(st.integers(-3, 3))
    values[rng.random((n, m)) < 0.1] = 0
    row, col = stored.nonzero()
    index = draw(st.sampled_from([np.int32, np.int64]))
    return sp.csr_array((values[stored], (row.astype(index), col.astype(index))), (n, m))


@st.composite
def problems(draw, *, w0=non_negative, exponent=None, by=None, implicit=None):
    """A matrix, the parameters of an exact fit, and weights."""
    X = draw(matrices())
    n, m = X.shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    by = draw(st.sampled_from(["weight", "count"])) if by is None else by
    if by == "count":  # without a positive target, nothing keeps a system from being singular
        X.data[:] = np.abs(X.data) + 0.1

    def weights(size):
        return rng.uniform(0.1, 2, size) * (rng.random(size) < 0.9)

    k = draw(st.integers(1, 7))
    E = sp.csr_array((weights(X.nnz), X.indices, X.indptr), X.shape)
    params = {
        "n_components": k,
        "unobserved_weight": draw(w0),
        "observed_weight": draw(non_negative),
        "col_weights": weights(m) if draw(st.booleans()) else None,
        "regularization": draw(finite),
        "regularization_exponent": draw(st.sampled_from([0.0, 0.5, 1.0]))
        if exponent is None
        else exponent,
        "regularization_by": by,
        "implicit": draw(st.booleans()) if implicit is None else implicit,
        "init": rng.normal(size=(m, k)),
        "solver": "exact",
        "max_iter": draw(st.integers(0, 3)),
        "n_jobs": draw(st.integers(1, 2)),
    }
    given_weights = {
        "row_weights": weights(n) if draw(st.booleans()) else None,
        "entry_weights": E if draw(st.booleans()) else None,
    }
    return X, params, given_weights


def fit(X, params, weights, dtype=np.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # it is tested elsewhere
        return WALS(**params).fit(X.astype(dtype), **weights)


def oracle(X, params, weights):
    names = (
        "unobserved_weight",
        "observed_weight",
        "regularization",
        "regularization_exponent",
        "regularization_by",
        "implicit",
    )
    given_weights = {"col_weights": params["col_weights"]} | weights
    given_weights = {name: value for name, value in given_weights.items() if value is not None}
    return reference.make_problem(X, **{name: params[name] for name in names}, **given_weights)


def assert_same_predictions(ours, theirs, dtype=np.float64):
    size = np.abs(theirs).max(initial=0)
    assert_allclose(ours, theirs, rtol=0, atol=CLOSE[dtype] * size)


def assert_solved(dense, U, V, tol):
    """Check the gradient of every row, relative to the terms that cancel in it."""
    left, right = reference.normal_equations(dense, U, V)
    size = np.maximum(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    assert np.all(np.linalg.norm(left - right, axis=1) <= tol * size)


@given(problems())
def test_a_fit_ends_where_the_gradient_of_rows_vanishes(problem):
    X, _params, _weights = problem
    model, dense = fit(*problem), oracle(*problem)
    U, V = model.row_factors_, model.col_factors_
    assert_solved(dense, U, V, 1e-9)
    scale = reference.loss(dense, 0 * U, 0 * V) + model.loss_curve_[0]
    assert model.loss_ == pytest.approx(reference.loss(dense, U, V), rel=1e-9, abs=1e-12 * scale)
    assert np.all(np.diff(model.loss_curve_) <= 1e-10 * scale)
    assert np.isfinite(U).all()
    assert np.isfinite(V).all()
    empty = np.diff(X.indptr) == 0
    assert not U[empty].any()


@given(problems())
def test_to_project_what_was_fitted_changes_nothing(problem):
    X, _, weights = problem
    model = fit(*problem)
    if weights["entry_weights"] is None:
        U = model.transform(X, weights=weights["row_weights"])
        assert_array_equal(U, model.row_factors_)
        loss = model.evaluate(X, weights=weights["row_weights"])["loss"]
        assert loss == pytest.approx(model.loss_, rel=1e-9, abs=1e-200)


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_does_not_matter(problem, random):
    X, params, weights = problem
    rows, cols = (np.array(random.sample(range(n), n)) for n in X.shape)
    model = fit(*problem)
    params = params | {"init": params["init"][cols]}
    if params["col_weights"] is not None:
        params["col_weights"] = params["col_weights"][cols]
    weights = dict(weights)
    if weights["row_weights"] is not None:
        weights["row_weights"] = weights["row_weights"][rows]
    if weights["entry_weights"] is not None:
        weights["entry_weights"] = weights["entry_weights"][rows][:, cols]
    other = fit(X[rows][:, cols], params, weights)
    predicted = (model.row_factors_ @ model.components_)[rows][:, cols]
    assert_same_predictions(other.row_factors_ @ other.components_, predicted)


@given(problems(), finite)
def test_only_ratios_of_weights_matter(problem, c):
    X, params, weights = problem
    model = fit(*problem)
    by_weight = params["regularization_by"] == "weight"
    exponent = params["regularization_exponent"] if by_weight else 0
    scaled = params | {
        "unobserved_weight": c * params["unobserved_weight"],
        "observed_weight": c * params["observed_weight"],
        "regularization": c ** (1 - exponent) * params["regularization"],
    }
    other = fit(X, scaled, weights)
    predicted = model.row_factors_ @ model.components_
    assert_same_predictions(other.row_factors_ @ other.components_, predicted)
    assert other.loss_ == pytest.approx(c * model.loss_, rel=1e-7, abs=1e-200)


@given(problems(exponent=0.0))
def test_an_empty_column_changes_nothing(problem):
    X, params, weights = problem
    model = fit(*problem)
    wider = params | {"init": np.vstack([params["init"], np.zeros(params["n_components"])])}
    if params["col_weights"] is not None:
        wider["col_weights"] = np.append(params["col_weights"], 3.0)
    shape = X.shape[0], X.shape[1] + 1
    if weights["entry_weights"] is not None:
        E = weights["entry_weights"]
        weights = weights | {"entry_weights": sp.csr_array((E.data, E.indices, E.indptr), shape)}
    other = fit(sp.csr_array((X.data, X.indices, X.indptr), shape), wider, weights)
    predicted = model.row_factors_ @ model.components_
    assert_same_predictions(other.row_factors_ @ other.components_[:, :-1], predicted)
    assert not other.components_[:, -1].any() or params["max_iter"] == 0


@given(problems(implicit=False), finite)
def test_projections_scale_with_values(problem, c):
    X, _, weights = problem
    model = fit(*problem)
    U = model.transform(X, weights=weights["row_weights"])
    scaled = model.transform(c * X, weights=weights["row_weights"])
    assert_same_predictions(scaled @ model.components_, c * U @ model.components_)


@given(problems(exponent=1.0, by="weight"))
def test_rows_that_count_half_may_be_there_twice(problem):
    X, params, weights = problem
    model = fit(*problem)
    halved = params | {
        "unobserved_weight": params["unobserved_weight"] / 2,
        "observed_weight": params["observed_weight"] / 2,
    }
    twice = {
        "row_weights": None
        if weights["row_weights"] is None
        else np.tile(weights["row_weights"], 2),
        "entry_weights": None
        if weights["entry_weights"] is None
        else sp.vstack([weights["entry_weights"]] * 2, format="csr"),
    }
    other = fit(sp.vstack([X, X], format="csr"), halved, twice)
    predicted = np.tile(model.row_factors_ @ model.components_, (2, 1))
    assert_same_predictions(other.row_factors_ @ other.components_, predicted)


@given(
    problems(w0=finite), st.sampled_from(["auto", "cg"]), st.sampled_from([np.float32, np.float64])
)
def test_other_solvers_stay_finite_and_end_exactly(problem, solver, dtype):
    X, params, weights = problem
    with np.errstate(all="raise", under="ignore"):  # strong regularization leaves hardly anything
        model = fit(X, params | {"solver": solver}, weights, dtype)
    U, V = (factors.astype(np.float64) for factors in (model.row_factors_, model.col_factors_))
    assert np.isfinite(U).all()
    assert np.isfinite(V).all()
    dense = oracle(X.astype(dtype).astype(np.float64), params, weights)
    assert_solved(dense, U, V, 1e-9 if dtype == np.float64 else 1e-3)


@given(problems(), st.integers(1, 12))
def test_batches_add_up_to_a_fit(problem, size):
    X, params, weights = problem
    if weights["entry_weights"] is None:
        expected = fit(X, params | {"max_iter": 1}, weights)
        model = WALS(**params)
        n, m = X.shape
        R = weights["row_weights"]
        R = np.ones(n) if R is None else R
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinAlgWarning)
            for first in range(0, n, size):
                rows = np.arange(first, min(first + size, n))
                model.partial_fit(X[rows], indices=rows, weights=R[rows])
            for first in range(0, m, size):
                cols = np.arange(first, min(first + size, m))
                model.partial_fit(X[:, cols], indices=cols, axis=1)
            model.partial_fit(X, indices=np.arange(n), weights=R)
        predicted = expected.row_factors_ @ expected.components_
        assert_same_predictions(model.row_factors_ @ model.components_, predicted)
        assert model.evaluate(X, weights=R)["loss"] == pytest.approx(
            expected.loss_, rel=1e-7, abs=1e-200
        )
