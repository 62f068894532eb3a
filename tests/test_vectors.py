"""Vectors for an index."""

import joblib
import numpy as np
import pytest
import scipy.sparse as sp

from wals import WALS


@pytest.fixture(scope="module", params=[np.float32, np.float64])
def model(request):
    X = sp.random(80, 50, 0.1, "csr", request.param, random_state=0).tolil()
    X[:, [0, 7, 49]] = 0
    X[:, 9] = X[:, 8]
    return WALS(4, max_iter=3, random_state=0).fit(X.tocsr())


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_vectors_are_factors_by_falling_norm(model, metric):
    vectors, columns = model.item_vectors(metric)
    V = model.col_factors_.astype(np.float64)
    norms = [sum(x * x for x in v) ** 0.5 for v in V.tolist()]
    assert columns.dtype == np.int64
    zero = [c for c, norm in enumerate(norms) if norm == 0]
    assert set(zero) >= {0, 7, 49}
    assert sorted(columns) == [c for c in range(50) if c not in zero]
    assert columns.tolist() == sorted(columns, key=lambda c: (-np.float64(norms[c]).round(12), c))
    scale = np.array(norms)[columns, None] if metric == "cosine" else 1
    rtol = 2 * np.finfo(vectors.dtype).eps if metric == "cosine" else 0
    np.testing.assert_allclose(vectors, V[columns] / scale, rtol=rtol)
    assert vectors.dtype == model.components_.dtype
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    before = model.components_.copy()
    vectors[:] = 0
    np.testing.assert_array_equal(model.components_, before)


def test_a_search_in_them_is_recommend_or_similar(model):
    vectors, columns = model.item_vectors()
    U = model.row_factors_[:9]
    order = np.argsort(-(U.astype(float) @ vectors.T.astype(float)), axis=1)[:, :5]
    np.testing.assert_array_equal(columns[order], model.recommend(None, 5, factors=U)[0])
    vectors, columns = model.item_vectors("cosine")
    some = [1, 2, 3]
    places = [columns.tolist().index(c) for c in some]
    scores = vectors[places].astype(float) @ vectors.T.astype(float)
    scores[range(3), places] = -np.inf
    order = np.argsort(-scores, axis=1)[:, :5]
    np.testing.assert_array_equal(columns[order], model.similar(some, 5)[0])


def test_vectors_of_a_map_are_an_array(model, tmp_path):
    joblib.dump(model, tmp_path / "m")
    vectors, _ = joblib.load(tmp_path / "m", mmap_mode="r").item_vectors()
    assert type(vectors) is np.ndarray
    assert vectors.flags.writeable


def test_refusals(model):
    with pytest.raises(ValueError, match="metric must be 'cosine' or 'dot', got 'l2'"):
        model.item_vectors("l2")
    with pytest.raises(ValueError, match="is not fitted"):
        WALS().item_vectors()


def test_nothing_to_index():
    model = WALS(3, max_iter=1).fit(sp.csr_array((4, 5)))
    vectors, columns = model.item_vectors("cosine")
    assert vectors.shape == (0, 3)
    assert columns.shape == (0,)
