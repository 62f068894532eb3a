"""The contract of the estimator: input of every kind, errors, and what a failure leaves behind."""

import copy
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import LinAlgWarning
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from wals import WALS
from wals._core import kernels
from wals._core.sweep import Side
from wals.datasets import load_msweb
from wals.weights import power_law


def make(n_components, *, regularization=0.1, **params):
    """A model of little regularization, so that what else matters shows."""
    return WALS(n_components, regularization=regularization, **params)


def random_csr(n=40, m=25, density=0.2, seed=0, dtype=np.float64):
    return sp.random(n, m, density, format="csr", random_state=seed, dtype=dtype)


@pytest.fixture
def X():
    return random_csr()


@pytest.fixture
def model():
    return make(4, max_iter=3, solver="exact", random_state=0)


def assert_same_model(a, b):
    assert_array_equal(a.components_, b.components_)
    assert_array_equal(a.row_factors_, b.row_factors_)
    assert_array_equal(a.loss_curve_, b.loss_curve_)


def assert_finite(model, X):
    assert np.isfinite(model.components_).all()
    assert np.isfinite(model.row_factors_).all()
    assert np.isfinite(model.loss_curve_).all()
    assert np.isfinite(model.rwse_)
    assert np.isfinite(model.transform(X)).all()
    assert np.isfinite(model.transform(X, axis=1)).all()


# ------------------------------------------------------------------------------------ input forms


def test_fitted_attributes(X, model):
    model.fit(X)
    assert model.components_.shape == (4, 25)
    assert model.row_factors_.shape == (40, 4)
    assert_array_equal(model.col_factors_, model.components_.T)
    assert model.loss_curve_.shape == (2 * model.n_iter_ + 1,)
    assert model.loss_ == model.loss_curve_[-1]
    assert model.n_iter_ == 3
    assert model.n_features_in_ == 25
    assert type(model.loss_) is type(model.rwse_) is float


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_of_input_is_kept(X, model, dtype):
    model.fit(X.astype(dtype))
    for array in (
        model.components_,
        model.row_factors_,
        model.transform(X),
        model.transform(X, axis=1),
        model.inverse_transform(model.row_factors_),
        model.inverse_transform(model.row_factors_, pattern=X).data,
    ):
        assert array.dtype == dtype


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float16, ">f8"])
def test_other_types_become_float64(X, model, dtype):
    data = (X > 0.5).astype(np.float64)
    expected = clone(model).fit(data)
    other = sp.csr_matrix((data.data.astype(dtype), data.indices, data.indptr), data.shape)
    assert_same_model(model.fit(other), expected)


def test_float32_csr_is_neither_copied_nor_changed(model):
    X = random_csr(dtype=np.float32)
    before = X.copy()
    ids = [id(a) for a in (X.data, X.indices, X.indptr)]
    model.fit(X).transform(X)
    assert [id(a) for a in (X.data, X.indices, X.indptr)] == ids
    for name in ("data", "indices", "indptr"):
        assert_array_equal(getattr(X, name), getattr(before, name))


def test_int64_indices(X, model):
    wide = X.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    model.fit(X)
    expected = [
        model.transform(X),
        model.transform(X, axis=1),
        model.inverse_transform(model.row_factors_, pattern=X).data,
    ]
    compiled = len(kernels.solve.signatures)
    other = clone(model).fit(wide)
    assert_same_model(other, model)
    assert_array_equal(model.transform(wide), expected[0])
    assert_array_equal(model.transform(wide, axis=1), expected[1])
    product = model.inverse_transform(model.row_factors_, pattern=wide)
    assert_array_equal(product.data, expected[2])
    # To compile for another type of index would take half a minute.
    assert len(kernels.solve.signatures) == compiled
    assert wide.indices.dtype == wide.indptr.dtype == np.int64


def test_read_only_memmap(X, model, tmp_path):
    parts = []
    for name in ("data", "indices", "indptr"):
        np.save(tmp_path / name, getattr(X, name))
        parts.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    mapped = sp.csr_matrix(tuple(parts), shape=X.shape, copy=False)
    assert_same_model(clone(model).fit(mapped), model.fit(X))
    assert_array_equal(model.transform(mapped), model.transform(X))


def test_unsorted_indices_are_sorted_in_a_copy(X, model):
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in pairwise(X.indptr)])
    messy = sp.csr_matrix((X.data[order], X.indices[order], X.indptr), shape=X.shape)
    before = messy.indices.copy()
    assert_same_model(clone(model).fit(messy), model.fit(X))
    assert_array_equal(messy.indices, before)


def test_duplicates_are_summed_in_a_copy(X, model):
    twice = sp.csr_matrix(
        (np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), 2 * X.indptr), shape=X.shape
    )
    assert_same_model(clone(model).fit(twice), model.fit(X))
    assert twice.nnz == 2 * X.nnz


def test_explicit_zeros_are_observed(X, model):
    zeros = X.copy()
    zeros.data[::3] = 0
    kept = clone(model).fit(zeros)
    assert zeros.nnz == X.nnz
    zeros.eliminate_zeros()
    dropped = clone(model).fit(zeros)
    assert abs(kept.loss_ / dropped.loss_ - 1) > 0.01
    assert_same_model(clone(model).fit(zeros.toarray()), dropped)


def test_empty_rows_and_columns_have_factors_of_zero(X, model):
    X = X.tolil()
    X[[0, 7]] = 0
    X[:, [3, 24]] = 0
    X = X.tocsr()
    model.fit(X)
    assert_array_equal(model.row_factors_[[0, 7]], 0)
    assert_array_equal(model.components_[:, [3, 24]], 0)
    assert (model.row_factors_[1:7] != 0).any(axis=1).all()


def test_no_entries_at_all(model):
    X = sp.csr_matrix((5, 4))
    model.fit(X)
    assert_array_equal(model.row_factors_, 0)
    assert model.loss_ == model.rwse_ == model.score(X) == 0


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_few_rows_and_columns_with_more_components(shape, solver, dtype):
    X = random_csr(*shape, density=0.7, dtype=dtype)
    model = make(50, solver=solver, random_state=0, max_iter=3).fit(X)
    assert_finite(model, X)
    assert (np.diff(model.loss_curve_) <= 1e-5 * model.loss_curve_[0]).all()


@pytest.mark.parametrize("n_items", [600, 1500])
@pytest.mark.parametrize("w0", [0.0, 0.1])
def test_heavy_rows_are_gathered_in_chunks(n_items, w0, monkeypatch):
    monkeypatch.setattr("wals._core.plan._PANEL_SIZE", 7 * 100)
    monkeypatch.setattr("wals._core.plan._STRIP_SIZE", 7 * 40)
    X = random_csr(20, n_items, density=0.9)
    model = make(7, unobserved_weight=w0, max_iter=0, random_state=0).fit(X)
    V = model.col_factors_
    for i in range(20):
        w = np.full(n_items, w0)
        w[X[i].indices] += 1
        A = (V.T * w) @ V + 0.1 * np.eye(7)
        assert_allclose(A @ model.row_factors_[i], (V.T * w) @ X[i].toarray()[0], rtol=1e-11)
    ahead = clone(model).set_params(max_iter=4, solver="auto").fit(X)
    exact = clone(ahead).set_params(solver="exact").fit(X)
    assert ahead.loss_ <= exact.loss_ * (1 + 1e-3)


# --------------------------------------------------------------------------- scales and weights


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_of_values(scale, solver, dtype):
    X = random_csr(dtype=dtype)
    base = make(4, regularization=0, max_iter=3, solver=solver, random_state=0)
    scaled = clone(base).fit(X * dtype(scale))
    assert_finite(scaled, X)
    base.fit(X)
    assert scaled.rwse_ == pytest.approx(scale * base.rwse_, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_of_weights_and_regularization(scale, dtype):
    X = random_csr(dtype=dtype)
    base = make(4, max_iter=3, solver="exact", random_state=0).fit(X)
    scaled = make(
        4,
        unobserved_weight=0.1 * scale,
        observed_weight=scale,
        regularization=0.1 * scale,
        max_iter=3,
        solver="exact",
        random_state=0,
    ).fit(X)
    tol = 1e-4 if dtype == np.float32 else 1e-10
    assert_allclose(scaled.row_factors_, base.row_factors_, atol=tol, rtol=tol)
    assert scaled.loss_ == pytest.approx(scale * base.loss_, rel=tol)


@pytest.mark.parametrize("weight", [1e6, 1e12, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["exact", "auto", "cg"])
def test_huge_observed_weight(weight, dtype, solver):
    X = random_csr(dtype=dtype)
    model = make(6, observed_weight=weight, max_iter=2, solver=solver, random_state=0).fit(X)
    assert_finite(model, X)
    # Rows with fewer entries than components can be met, next to weights of this size.
    few = np.diff(X.indptr) <= 3
    predicted = model.inverse_transform(model.row_factors_, pattern=X)
    assert_allclose(predicted[few].data, X[few].data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regularization_that_vanishes_next_to_the_weights(dtype):
    X = random_csr(dtype=dtype)
    with pytest.warns(LinAlgWarning, match=r"\d+ of 40 rows and \d+ of 25 columns"):
        model = make(6, observed_weight=1e32, max_iter=2, random_state=0).fit(X)
    with pytest.warns(LinAlgWarning):
        assert_finite(model, X)


def test_all_weights_zero(X):
    model = make(4, unobserved_weight=0, observed_weight=0, random_state=0).fit(X)
    assert_array_equal(model.row_factors_, 0)
    assert model.rwse_ == 0
    model = make(4, unobserved_weight=0, max_iter=2, random_state=0)
    model.fit(X, row_weights=0.0)
    assert_array_equal(model.row_factors_, 0)
    # Nothing to solve is not a singular system.
    model = make(4, unobserved_weight=0, regularization=0, random_state=0)
    assert_array_equal(model.fit(X, row_weights=0.0).row_factors_, 0)


@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_stored_entries_without_regularization(solver, dtype):
    X = random_csr(30, 20, 0.3, dtype=dtype)
    V0 = np.random.default_rng(1).uniform(size=(20, 6))
    model = make(6, unobserved_weight=0, regularization=0, init=V0, max_iter=0, solver=solver)
    counts = np.diff(X.indptr)
    few = np.count_nonzero((counts < 6) & (counts > 0))
    with pytest.warns(LinAlgWarning, match=f"{few} of 30 rows have a singular system") as record:
        model.fit(X)
    assert len(record) == 1
    for i in range(30):
        stored = X[i].indices
        expected = np.linalg.lstsq(V0.astype(dtype)[stored].astype(float), X[i].data, rcond=None)[0]
        tol = 1e-9 if dtype == np.float64 else 2e-3
        assert_allclose(model.row_factors_[i], expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_columns_than_components_without_regularization(dtype):
    # The Gramian of V has rank 5: every row is singular, and gets the solution of minimum norm.
    X = random_csr(30, 5, 0.5, dtype=dtype)
    X.data[:] += 1
    V0 = np.random.default_rng(1).standard_normal((5, 8)).astype(dtype)
    model = make(8, regularization=0, init=V0, max_iter=0, solver="exact")
    filled = np.count_nonzero(np.diff(X.indptr))
    with pytest.warns(LinAlgWarning, match=f"{filled} of 30 rows"):
        model.fit(X)
    V = V0.astype(np.float64)
    for i in range(30):
        w = np.full(5, 0.1)
        w[X[i].indices] += 1
        root = np.sqrt(w)
        expected = np.linalg.lstsq(root[:, None] * V, root * X[i].toarray()[0], rcond=1e-12)[0]
        tol = 1e-9 if dtype == np.float64 else 1e-4
        assert_allclose(model.row_factors_[i], expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("k", [5, 8, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_entry_less_than_components(k, dtype):
    # The pivots of such a system are all above rounding, but for the last.
    rng = np.random.default_rng(k)
    V0 = rng.uniform(size=(50, k)).astype(dtype)
    columns = np.array([rng.choice(50, k - 1, replace=False) for _ in range(200)])
    X = sp.csr_matrix(
        (
            rng.normal(size=columns.size).astype(dtype),
            columns.ravel(),
            range(0, columns.size + 1, k - 1),
        ),
        shape=(200, 50),
    )
    model = make(k, unobserved_weight=0, regularization=0, init=V0, max_iter=0)
    with pytest.warns(LinAlgWarning, match="200 of 200 rows"):
        model.fit(X)
    for i in range(200):
        row = X[i]
        expected = np.linalg.lstsq(V0[row.indices].astype(float), row.data, rcond=None)[0]
        tol = 1e-8 if dtype == np.float64 else 1e-2
        assert np.linalg.norm(model.row_factors_[i]) <= (1 + tol) * np.linalg.norm(expected)


def test_minimum_norm_in_float32_ignores_rounding():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        V0 = np.repeat(rng.uniform(size=(20, 1)), 5, axis=1).astype(np.float32)
        X = random_csr(30, 20, 0.3, seed=seed, dtype=np.float32)
        model = make(5, unobserved_weight=1e-8, regularization=0, init=V0, max_iter=0)
        with pytest.warns(LinAlgWarning):
            model.fit(X)
        assert np.abs(model.row_factors_).max() < 10


@pytest.mark.parametrize("w0", [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 1.0])
def test_auto_ends_no_later_than_exact(w0):
    X = load_msweb()[:6000]
    model = make(64, unobserved_weight=w0, max_iter=5, random_state=0)
    exact = clone(model).set_params(solver="exact").fit(X)
    assert model.fit(X).loss_ <= exact.loss_ * (1 + 1e-3)


def test_weights_may_be_scalars_arrays_or_functions(X, model):
    expected = clone(model).set_params(observed_weight=6.0).fit(X)
    model.set_params(col_weights=np.full(25, 2.0)).fit(X, row_weights=3.0)
    assert_allclose(model.components_, expected.components_, rtol=1e-10)
    model.set_params(col_weights=lambda counts: np.full(counts.shape, 3.0))
    model.fit(X, row_weights=[2.0] * 40)
    assert_allclose(model.components_, expected.components_, rtol=1e-10)


def test_col_weights_see_the_counts(X, model):
    seen = []

    def weights(counts):
        seen.append(counts)
        return np.ones(len(counts))

    model.set_params(col_weights=weights).fit(X)
    assert_array_equal(seen, [np.bincount(X.indices, minlength=25)])
    assert np.issubdtype(seen[0].dtype, np.integer)


def test_implicit_is_confidences(X, model):
    X.data -= 0.3
    explicit, entry_weights = X.copy(), X.copy()
    explicit.data = (X.data > 0).astype(float)
    entry_weights.data = np.abs(X.data)
    expected = clone(model).fit(explicit, entry_weights=entry_weights)
    model.set_params(implicit=True).fit(X)
    assert_same_model(model, expected)


def test_dense_entry_weights(X, model):
    E = np.random.default_rng(0).uniform(size=X.shape)
    sparse = X.copy()
    sparse.data = E[X.nonzero()]
    expected = clone(model).fit(X, entry_weights=sparse)
    assert_same_model(clone(model).fit(X, entry_weights=E), expected)


@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
def test_no_observed_weight_is_ridge_regression(X, solver):
    model = make(4, observed_weight=0, max_iter=1, solver=solver, random_state=0).fit(X)
    V = model.col_factors_
    expected = X @ (0.1 * V) @ np.linalg.inv(0.1 * V.T @ V + 0.1 * np.eye(4))
    assert_allclose(model.row_factors_, expected, rtol=1e-10, atol=1e-13)


# ------------------------------------------------------------------------------------ bad input


def with_data(X, value):
    X = X.copy()
    X.data[3] = value
    return X


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X: with_data(X, np.nan), "contains NaN"),
        (lambda X: with_data(X, np.inf), "contains infinity"),
        (lambda X: np.where(X.toarray() > 0.5, np.nan, 0), "contains NaN"),
        (lambda X: X.astype(complex), "Complex data not supported"),
        (
            lambda X: X.toarray().astype(str) + "a",
            "could not convert string to float|dtype='numeric'",
        ),
        (lambda X: X[:0], "0 sample"),
        (lambda X: X[:, :0], "0 feature"),
        (lambda X: X.toarray()[0], "Expected 2D array"),
    ],
)
def test_bad_X(X, model, spoil, message):
    with pytest.raises(ValueError, match=message):
        model.fit(spoil(X))
    with pytest.raises(NotFittedError):
        model.transform(X)


def test_object_dtype_of_numbers_is_accepted(X, model):
    assert_same_model(clone(model).fit(X.toarray().astype(object)), model.fit(X))


def test_corrupt_csr(X, model):
    X.indices[5] = 25
    with pytest.raises(ValueError, match="indices"):
        model.fit(X)
    X.indices[5] = -1
    with pytest.raises(ValueError, match="indices"):
        model.fit(X)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(39), re.escape("row_weights has shape (39,), but (40,) is needed")),
        (np.ones((40, 1)), "row_weights has shape"),
        (
            np.r_[np.ones(12), -1, np.ones(27)],
            "Negative weight in row_weights: -1.0 at position 12",
        ),
        (np.r_[np.ones(39), np.nan], "row_weights contains NaN"),
        (np.r_[np.ones(39), np.inf], "row_weights contains infinity"),
        (np.ones(40) * 1j, "Complex data"),
        (-1.0, "Negative weight"),
        (power_law(0.5), "row_weights must be numbers, not a function"),
    ],
)
def test_bad_row_weights(X, model, weights, message):
    with pytest.raises(ValueError, match=message):
        model.fit(X, row_weights=weights)
    assert not hasattr(model, "n_features_in_")
    model.fit(X)
    with pytest.raises(ValueError, match=message.replace("row_weights", "weights")):
        model.transform(X, weights=weights)
    with pytest.raises(ValueError, match=message.replace("row_weights", "weights")):
        model.score(X, row_weights=weights)


@pytest.mark.parametrize("weights", [np.ones(24), -np.ones(25), np.full(25, np.nan)])
def test_bad_col_weights(X, model, weights):
    for value in (weights, lambda counts: weights):
        with pytest.raises(ValueError, match="col_weights"):
            model.set_params(col_weights=value).fit(X)


def test_bad_entry_weights(X, model):
    E = X.copy()
    for bad, message in [
        (E[:-1], "entry_weights has shape"),
        (sp.csr_matrix(X.shape), "exactly the positions"),
        (with_data(E, np.nan), "NaN"),
        (with_data(E, -1), r"Negative weight in entry_weights: -1.0 at row 0, column \d+"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(X, entry_weights=bad)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "'n_components' parameter"),
        ({"n_components": 2.0}, "'n_components' parameter"),
        ({"unobserved_weight": -0.1}, "'unobserved_weight' parameter"),
        ({"unobserved_weight": np.nan}, "'unobserved_weight' parameter"),
        ({"observed_weight": np.inf}, "'observed_weight' parameter"),
        ({"regularization": -1}, "'regularization' parameter"),
        ({"regularization_exponent": -1}, "'regularization_exponent' parameter"),
        ({"solver": "lu"}, "'solver' parameter"),
        ({"init": "ones"}, "'init' parameter"),
        ({"init": np.ones((24, 4))}, r"init has factors of shape \(24, 4\)"),
        ({"init": np.full((25, 4), np.nan)}, "init contains NaN"),
        ({"max_iter": -1}, "'max_iter' parameter"),
        ({"tol": -1}, "'tol' parameter"),
        ({"n_jobs": 0}, "'n_jobs' parameter"),
        ({"implicit": "yes"}, "'implicit' parameter"),
    ],
)
def test_bad_parameters(X, model, parameters, message):
    with pytest.raises(ValueError, match=message):
        model.set_params(**parameters).fit(X)
    assert not hasattr(model, "n_features_in_")


def test_wrong_shapes_after_fit(X, model):
    model.fit(X)
    with pytest.raises(ValueError, match="X has 24 features, but WALS is expecting 25"):
        model.transform(X[:, :24])
    with pytest.raises(ValueError, match="X has 39 rows, but WALS was fitted on 40"):
        model.transform(X[:39], axis=1)
    with pytest.raises(ValueError, match="axis must be 0"):
        model.transform(X, axis=2)
    with pytest.raises(ValueError, match="U has 3 columns"):
        model.inverse_transform(model.row_factors_[:, :3])
    with pytest.raises(ValueError, match="'unobserved_weight' parameter"):
        clone(model).fit(X).set_params(unobserved_weight=-1).transform(X)
    with pytest.raises(ValueError, match="pattern has shape"):
        model.inverse_transform(model.row_factors_, pattern=X[:3])


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "score", "evaluate"])
def test_unfitted(X, model, method):
    with pytest.raises(NotFittedError):
        getattr(model, method)(X)


def interrupt(counts):
    raise KeyboardInterrupt


@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_interrupted_fit_leaves_the_estimator_as_it_was(X, model, monkeypatch, sweeps):
    calls, real = [], Side.sweep

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == sweeps:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    fitted = clone(model).fit(X)
    before = clone(model).fit(X)
    monkeypatch.setattr(Side, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert vars(model) == vars(clone(model))
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X[:, :20])
    monkeypatch.undo()
    assert_same_model(fitted, before)
    assert_array_equal(fitted.transform(X), before.transform(X))


def test_failed_refit_keeps_the_model(X, model):
    model.fit(X)
    expected = model.transform(X)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(with_data(X[:, :20], np.nan))
    with pytest.raises(ValueError, match="row_weights"):
        model.fit(X[:, :20], row_weights=[1])
    assert_array_equal(model.transform(X), expected)


# ------------------------------------------------------------------------- iterations and starts


def test_tol(X):
    model = make(4, max_iter=100, tol=1e-3, solver="exact", random_state=0).fit(X)
    end = model.loss_curve_[1:-1:2]
    decrease = 1 - end[1:] / end[:-1]
    assert 2 < model.n_iter_ < 100
    assert (decrease[:-1] >= 1e-3).all()
    assert decrease[-1] < 1e-3
    with pytest.warns(ConvergenceWarning, match="tol=1e-12 was not reached in 2 iterations"):
        model.set_params(max_iter=2, tol=1e-12).fit(X)


def test_warm_start_continues(X, model):
    whole = clone(model).set_params(max_iter=5).fit(X)
    model.set_params(warm_start=True, max_iter=2).fit(X)
    model.set_params(max_iter=3).fit(X)
    assert_allclose(model.components_, whole.components_, rtol=0, atol=1e-12)
    assert_allclose(model.loss_curve_[1:], whole.loss_curve_[5:], rtol=1e-12)
    with pytest.raises(ValueError, match="the previous fit has factors of shape"):
        model.set_params(n_components=5).fit(X)
    with pytest.raises(ValueError, match="the previous fit has factors of shape"):
        model.set_params(n_components=4).fit(X[:, :9])
    # Other rows: only V is resumed.
    assert model.fit(X[:7]).row_factors_.shape == (7, 4)


@pytest.mark.parametrize("solver", ["cg", "auto"])
def test_warm_start_of_cg_does_not_rise(X, solver):
    model = make(4, max_iter=4, solver=solver, warm_start=True, random_state=0).fit(X)
    loss = model.loss_
    assert model.fit(X).loss_curve_[0] <= loss * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tol_of_zero_runs_all_iterations(dtype):
    X = random_csr(12, 9, 0.4, dtype=dtype)
    model = make(2, max_iter=150, solver="exact", random_state=0).fit(X)
    assert model.n_iter_ == 150
    assert len(model.loss_curve_) == 301


def test_random_state(X, model):
    assert_same_model(clone(model).fit(X), clone(model).fit(X))
    other = clone(model).set_params(random_state=1).fit(X)
    assert (other.components_ != model.fit(X).components_).any()
    state = np.random.RandomState(0)
    assert_same_model(clone(model).set_params(random_state=state).fit(X), model)


def test_verbose(X, model, capsys):
    model.fit(X)
    assert capsys.readouterr().out == ""
    model.set_params(verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(
        re.match(r"\[WALS\] iteration +\d  columns  loss \d\.\d+e[+-]\d+  RWSE", x) for x in lines
    )
    model.set_params(verbose=2).fit(X)
    assert len(capsys.readouterr().out.splitlines()) == 7


# ----------------------------------------------------------------------------------- using a fit


def test_transform_of_columns(X, model):
    model.fit(X, row_weights=np.linspace(0.1, 2, 40))
    again = model.transform(X, axis=1)
    # The columns are optimal for the rows before the last row sweep; here, for those after it.
    U, w = model.row_factors_, np.linspace(0.1, 2, 40)
    for j in range(25):
        stored = X[:, [j]].tocoo().row
        W = np.full(40, 0.1)
        W[stored] += w[stored] * model.col_weights_[j]
        A = (U.T * W) @ U + 0.1 * np.eye(4)
        assert_allclose(A @ again[j], (U.T * W) @ X[:, [j]].toarray()[:, 0], rtol=1e-10, atol=1e-14)


def test_inverse_transform(X, model):
    U = model.fit_transform(X)
    dense = model.inverse_transform(U)
    assert_allclose(dense, U @ model.components_, rtol=1e-13)
    sparse = model.inverse_transform(U, pattern=X)
    assert sparse.format == "csr"
    assert_array_equal(sparse.indices, X.indices)
    assert_allclose(sparse.data, dense[X.nonzero()], rtol=1e-12)
    before = X.indices.copy()
    sparse.data[:50] = 0
    sparse.eliminate_zeros()
    assert_array_equal(X.indices, before)


def test_evaluate(X, model):
    weights = np.linspace(0.1, 2, 40)
    model.set_params(regularization_exponent=0.5, col_weights=power_law(0.3))
    model.fit(X, row_weights=weights)
    before = {name: np.copy(value) for name, value in vars(model).items()}
    result = model.evaluate(X, weights=weights)
    assert result["loss"] == pytest.approx(model.loss_, rel=1e-12)
    assert result["loss"] == result["data_loss"] + result["penalty"]
    assert result["rwse"] == pytest.approx(model.rwse_, rel=1e-12)
    assert -model.score(X, row_weights=weights) == result["rwse"]
    for name, value in vars(model).items():
        assert_array_equal(value, before[name])
    columns = model.evaluate(X, axis=1, weights=model.col_weights_)
    assert columns["loss"] <= model.loss_
    assert columns["sum_weights"] == pytest.approx(result["sum_weights"], rel=1e-12)


def test_fit_transform_returns_a_copy(X, model):
    U = model.fit_transform(X)
    U[:] = 0
    assert model.row_factors_.any()


# ----------------------------------------------------------------------------------- partial_fit


def test_partial_fit_in_batches_is_one_iteration(X, model):
    weights = np.linspace(0.5, 2, 40)
    model.set_params(max_iter=1, col_weights=np.linspace(2, 0.5, 25), regularization_exponent=1)
    expected = clone(model).set_params(init="random").fit(X, row_weights=weights)
    for rows in np.array_split(np.arange(40), 3):
        model.partial_fit(X[rows], weights=weights[rows])
    for cols in np.array_split(np.random.default_rng(0).permutation(25), 4):
        model.partial_fit(X[:, cols], indices=cols, axis=1)
    assert_allclose(model.components_, expected.components_, rtol=1e-12)
    model.partial_fit(X, indices=np.arange(40))
    assert_allclose(model.row_factors_, expected.row_factors_, rtol=1e-12)
    assert_array_equal(model.row_weights_, weights)
    result = model.evaluate(X, weights=weights)
    assert result["loss"] == pytest.approx(expected.loss_, rel=1e-12)


def test_partial_fit_updates_and_grows(X, model):
    model.fit(X)
    U, V = model.row_factors_.copy(), model.col_factors_.copy()
    new = random_csr(2, 25, 0.5, seed=5)
    model.partial_fit(new, indices=[3, 42], weights=[2.0, 3.0])
    assert_array_equal(
        np.delete(model.row_factors_, [3, 40, 41, 42], axis=0), np.delete(U, 3, axis=0)
    )
    assert_array_equal(model.row_factors_[[40, 41]], 0)
    assert_array_equal(model.row_factors_[[3, 42]], model.transform(new, weights=[2.0, 3.0]))
    assert_array_equal(model.row_weights_[[2, 3, 40, 42]], [1, 2, 1, 3])
    assert not hasattr(model, "loss_")

    model.partial_fit(new)
    assert len(model.row_factors_) == 45
    assert_array_equal(model.row_factors_[43:], model.transform(new))

    columns = random_csr(45, 2, 0.5, seed=6)
    model.partial_fit(columns, indices=[0, 25], axis=1)
    assert model.components_.shape == (4, 26)
    assert model.n_features_in_ == 26
    assert_array_equal(model.col_factors_[1:25], V[1:])
    assert_array_equal(model.col_factors_[[0, 25]], model.transform(columns, axis=1))
    assert model.transform(random_csr(3, 26)).shape == (3, 4)


@pytest.mark.parametrize("axis", [0, 1])
def test_penalty_after_growth(X, model, axis):
    model.set_params(regularization_exponent=1, col_weights=np.linspace(0.5, 2, 25))
    new = np.arange(30, 40) if axis == 0 else np.arange(20, 25)
    row_weights = np.linspace(2, 1, 40)
    if axis == 0:
        model.partial_fit(X[:20], weights=row_weights[:20])
        model.partial_fit(X[20:30], weights=row_weights[20:30])
        model.partial_fit(X[30:], weights=row_weights[30:])
        result = model.evaluate(X, weights=row_weights)
    else:
        weights, model.col_weights = model.col_weights, model.col_weights[:20]
        model.fit(X[:, :20], row_weights=row_weights)
        model.partial_fit(X[:, 20:], indices=new, weights=weights[20:], axis=1)
        model.col_weights = weights
        result = model.evaluate(X, axis=1, weights=weights)
    problem = reference.make_problem(
        X,
        row_weights=row_weights,
        col_weights=model.col_weights,
        regularization=0.1,
        regularization_exponent=1,
    )
    if axis == 0:
        expected = reference.loss(problem, model.row_factors_, model.col_factors_)
    else:
        V = model.transform(X, axis=1, weights=weights)
        expected = reference.loss(problem, model.row_factors_, V)
    assert result["loss"] == pytest.approx(expected, rel=1e-12)


def test_partial_fit_on_read_only_factors(X, model):
    """Those that somebody else owns are copied."""
    model.fit(X)
    theirs = {name: getattr(model, name).copy() for name in ("row_factors_", "components_")}
    for name, array in theirs.items():
        array.flags.writeable = False
        setattr(model, name, array)
    before = {name: array.copy() for name, array in theirs.items()}
    model.partial_fit(2 * X[:2], indices=[0, 1])
    assert not np.array_equal(model.row_factors_, before["row_factors_"])
    for name, array in theirs.items():
        assert_array_equal(array, before[name])


def test_factors_are_replaced_and_not_written_to(X, model):
    model.fit(X)
    before = model.transform(X)
    for factors in (model.components_, model.row_factors_, model.col_factors_):
        with pytest.raises(ValueError, match="read-only"):
            factors[0] = 1
    model.components_ = 2 * model.components_
    other = clone(model).fit(X)
    other.components_ = 2 * other.components_
    doubled = model.transform(X)
    assert not np.array_equal(doubled, before)
    assert_array_equal(doubled, other.transform(X))
    assert_array_equal(doubled, pickle.loads(pickle.dumps(other)).transform(X))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_known_of_factors_ends_with_them(X, model, axis, dtype):
    """What transform and recommend keep is that of the present factors, in the same memory."""
    X = X.astype(dtype)
    model.fit(X)
    memory = model.row_factors_ if axis == 0 else model.components_
    for scale in (2, 3):
        for fixed in (0, 1):
            model.transform(X, axis=fixed)
        model.recommend(X[:3])
        items = (X[:, :5] if axis else X[:5]) * dtype(scale)
        model.partial_fit(items, indices=np.arange(5), axis=axis)
        assert np.shares_memory(memory, model.row_factors_ if axis == 0 else model.components_)
        fresh = pickle.loads(pickle.dumps(model))
        for fixed in (0, 1):
            assert_array_equal(model.transform(X, axis=fixed), fresh.transform(X, axis=fixed))
        for ours, theirs in zip(model.recommend(X[:3]), fresh.recommend(X[:3]), strict=True):
            assert_array_equal(ours, theirs)


@pytest.mark.parametrize("of_copy", [False, True])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_copies_do_not_share_what_is_written(X, model, make, of_copy):
    model.fit(X)
    other = make(model)
    for changed, kept in ((other, model) if of_copy else (model, other),) * 2:
        before = [kept.components_.copy(), kept.transform(X), *kept.recommend(X[:3])]
        changed.partial_fit(2 * X, indices=np.arange(X.shape[0])).partial_fit(2 * X, axis=1)
        after = [kept.components_, kept.transform(X), *kept.recommend(X[:3])]
        for ours, theirs in zip(after, before, strict=True):
            assert_array_equal(ours, theirs)


def test_an_interrupted_partial_fit_changes_nothing(X, model, monkeypatch):
    model.fit(X)
    expected = pickle.loads(pickle.dumps(model))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wals._fitted.freeze", interrupted)  # after all is written
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(3 * X[:5], indices=np.arange(5), weights=2)
    monkeypatch.undo()
    assert_same_model(model, expected)
    assert_array_equal(model.transform(X, axis=1), expected.transform(X, axis=1))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_a_shallow_copy_is_a_model_of_its_own(X, model, axis, first):
    """Neither partial_fit writes into what the other model has, or knows of its factors."""
    model.fit(X)
    pair = model, copy.copy(model)
    expected = pickle.loads(pickle.dumps(model))
    others = {name: np.array(value) for name, value in vars(model).items() if name[-1] == "_"}
    items = X[:, :5] if axis else X[:5]
    for scale in (2, 3):
        pair[1 - first].transform(X)
        for one in (pair[first], expected):
            one.partial_fit(items * scale, indices=np.arange(5), axis=axis, weights=scale)
        for name, value in others.items():
            assert_array_equal(getattr(pair[1 - first], name), value)
        for fixed in (0, 1):
            assert_array_equal(
                pair[first].transform(X, axis=fixed), expected.transform(X, axis=fixed)
            )


@pytest.mark.parametrize("w0", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_row_is_solved_as_many_are(w0, dtype):
    """Of few rows, the factors of those columns alone are turned that they store."""
    rng = np.random.default_rng(0)
    X = sp.random_array((300, 400), density=0.05, format="csr", dtype=dtype, rng=rng)
    model = WALS(
        12,
        unobserved_weight=w0,
        col_weights=rng.uniform(0.5, 2, 400),
        regularization=0.1,
        max_iter=2,
        random_state=0,
    ).fit(X)
    weights = rng.uniform(0.5, 2, 300)
    expected = model.transform(X, weights=weights)
    for i in (0, 7, 299):
        assert_array_equal(model.transform(X[[i]], weights=weights[[i]])[0], expected[i])
    assert_array_equal(model.transform(sp.csr_array((2, 400), dtype=dtype)), np.zeros((2, 12)))
    model.set_params(regularization_exponent=0.7)  # of which the least is taken out of all systems
    expected = model.transform(X, weights=weights)
    some = model.transform(X[:3], weights=weights[:3])
    assert_allclose(some, expected[:3], rtol=50 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [0]}, "indices must be 2 integers"),
        ({"indices": [0.0, 1.0]}, "indices must be 2 integers"),
        ({"indices": [-1, 1]}, "distinct and not negative"),
        ({"indices": [1, 1]}, "distinct and not negative"),
        ({"indices": np.array([1, 1], dtype=np.uint8)}, "distinct and not negative"),
        ({"weights": [1.0]}, "weights has shape"),
        ({"axis": 1}, "X has 2 rows, but WALS was fitted on 40"),
        ({"axis": 2}, "axis must be"),
    ],
)
def test_bad_partial_fit_changes_nothing(X, model, options, message):
    model.fit(X)
    expected = clone(model).fit(X)
    with pytest.raises(ValueError, match=message):
        model.partial_fit(X[:2], **options)
    assert_same_model(model, expected)


def test_partial_fit_starts_with_rows(X, model):
    with pytest.raises(ValueError, match="has no rows yet"):
        model.partial_fit(X, axis=1)
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(with_data(X, np.nan))
    assert vars(model) == vars(clone(model))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_svd_start_spans_the_dominant_singular_vectors(dtype, implicit):
    rng = np.random.default_rng(0)
    X = sp.csr_array(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 30)), dtype=dtype)
    model = make(4, max_iter=0, init="svd", implicit=implicit, random_state=0).fit(X)
    V = model.col_factors_.astype(np.float64)
    targets = (X.toarray() > 0).astype(float) if implicit else X.toarray()
    _, s, Wt = np.linalg.svd(targets, full_matrices=False)
    if implicit:  # not of rank 4: near the dominant space
        Q = np.linalg.qr(V)[0]
        assert np.linalg.norm(targets @ Q) ** 2 > 0.9 * np.sum(s[:4] ** 2)
    else:
        assert_allclose(V @ V.T, s[0] * Wt[:4].T @ Wt[:4], atol=1e-4 * s[0])


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 1), (30, 1)])
def test_svd_start_with_more_components_than_rank(shape):
    X = sp.csr_array(np.outer(np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)), dtype=float)
    model = make(12, max_iter=30, random_state=0).fit(X)
    assert np.isfinite(model.components_).all()
    assert model.loss_ <= clone(model).set_params(init="random").fit(X).loss_ * (1 + 1e-6)


@pytest.mark.parametrize("init", ["svd", "random"])
def test_warm_start_on_other_rows_keeps_the_columns(X, init):
    model = WALS(3, init=init, warm_start=True, max_iter=2, random_state=0).fit(X)
    components = model.components_.copy()
    model.set_params(max_iter=0).fit(X[:-2])
    assert_array_equal(model.components_, components)
    assert_array_equal(model.row_factors_, model.transform(X[:-2]))
