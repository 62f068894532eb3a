"""WALS in scikit-learn: its checks, containers, metadata routing, pipelines and searches."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from wals import WALS
from wals.weights import power_law


@parametrize_with_checks(
    [
        WALS(),
        WALS(n_components=3, solver="exact", unobserved_weight=0.0, tol=0.1),
        WALS(n_components=2, implicit=True, col_weights=power_law(-0.5), regularization_exponent=1),
        WALS(n_components=2, regularization_exponent=1, regularization_by="count"),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def X():
    return sp.random(
        60, 30, 0.2, format="csr", random_state=0, data_rvs=lambda n: np.linspace(1, 2, n)
    )


@pytest.fixture
def model():
    return WALS(4, max_iter=3, random_state=0)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(X, model, library):
    expected = model.fit_transform(X)
    model = clone(model).set_output(transform=library)
    for frame in (model.fit_transform(X), model.transform(X)):
        assert isinstance(frame, {"pandas": pd, "polars": pl}[library].DataFrame)
        assert list(frame.columns) == ["wals0", "wals1", "wals2", "wals3"]
        assert_array_equal(frame.to_numpy(), expected)


def test_set_output_of_columns(X, model):
    # The projected columns, not the rows of the input, are the rows of the output.
    model.fit(X)
    expected = model.transform(X[:, :7], axis=1)
    model.set_output(transform="pandas")
    frame = pd.DataFrame(X[:, :7].toarray(), columns=list("abcdefg"))
    assert list(model.transform(frame, axis=1).index) == list("abcdefg")
    assert_array_equal(model.transform(frame, axis=1), expected)
    assert_array_equal(model.transform(X[:, :7], axis=1), expected)


def test_data_frame_of_sparse_columns(X, model):
    frame = pd.DataFrame.sparse.from_spmatrix(X, columns=[f"item {j}" for j in range(30)])
    model.fit(frame)
    assert_array_equal(model.feature_names_in_, frame.columns)
    assert_array_equal(model.components_, clone(model).fit(X).components_)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame.rename(columns={"item 3": "another"}))


def test_feature_names_out(X, model):
    assert_array_equal(model.fit(X).get_feature_names_out(), [f"wals{c}" for c in range(4)])


def test_metadata_routing(X, model):
    row_weights = np.linspace(0.5, 3, 60)
    entry_weights = X.copy()
    entry_weights.data = np.linspace(2, 0.1, X.nnz)
    scaled = MaxAbsScaler().fit_transform(X)
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(row_weights=True, entry_weights=True)
        model.set_score_request(row_weights=True)
        pipeline = make_pipeline(MaxAbsScaler(), model)
        pipeline.fit(X, row_weights=row_weights, entry_weights=entry_weights)
        fitted = clone(model).fit(scaled, row_weights=row_weights, entry_weights=entry_weights)
        assert_array_equal(pipeline[-1].components_, fitted.components_)
        assert pipeline.score(X, row_weights=row_weights) == fitted.score(
            scaled, row_weights=row_weights
        )

        search = GridSearchCV(pipeline, {"wals__n_components": [4]}, cv=2, error_score="raise")
        search.fit(X, row_weights=row_weights, entry_weights=entry_weights)
        assert_array_equal(search.best_estimator_[-1].components_, fitted.components_)

        search = GridSearchCV(model, {}, cv=2, error_score="raise")
        search.fit(X, row_weights=row_weights, entry_weights=entry_weights)
    seen, unseen = slice(30, 60), slice(0, 30)
    fitted = clone(model).fit(
        X[seen], row_weights=row_weights[seen], entry_weights=entry_weights[seen]
    )
    score = fitted.score(X[unseen], row_weights=row_weights[unseen])
    assert search.cv_results_["split0_test_score"][0] == score
    assert score != fitted.score(X[unseen])


def test_grid_search_over_weights(X, model):
    model.set_params(col_weights=power_law(0.0))
    grid = {"col_weights__exponent": [-1.0, 0.0, 1.0], "unobserved_weight": [0.01, 1.0]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 6


def test_cross_val_score_does_not_touch_parameters(X, model):
    before = model.get_params()
    cross_val_score(model, X, cv=3, error_score="raise")
    assert model.get_params() == before
    assert not hasattr(model, "components_")


def test_pickle(X, model):
    model.set_params(col_weights=power_law(-0.5)).fit(X)
    copy = pickle.loads(pickle.dumps(model))
    assert_array_equal(copy.transform(X), model.transform(X))
    assert copy.evaluate(X) == model.evaluate(X)
    assert_array_equal(
        copy.partial_fit(X[:5] * 2, indices=range(5)).row_factors_[:5],
        model.partial_fit(X[:5] * 2, indices=range(5)).row_factors_[:5],
    )


def test_html_repr(X, model):
    assert "WALS" in model.fit(X)._repr_html_()


def test_clone_of_array_init(X, model):
    V0 = np.ones((30, 4))
    model.set_params(init=V0)
    assert_array_equal(clone(model).init, V0)
    model.fit(X)
    assert_array_equal(V0, 1)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_containers(X, model, kind):
    expected = clone(model).fit(X)
    model.fit(kind(X))
    assert_array_equal(model.components_, expected.components_)
    assert_array_equal(model.transform(kind(X)), expected.transform(X))
    assert_array_equal(
        model.transform(kind(X[:, :3]), axis=1), expected.transform(X[:, :3], axis=1)
    )
    assert_array_equal(
        model.inverse_transform(model.row_factors_, pattern=kind(X)).indices, X.indices
    )


def test_dense_stores_its_non_zeros(X, model):
    assert_allclose(model.fit(X.toarray()).components_, clone(model).fit(X).components_, rtol=0)
