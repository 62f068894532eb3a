"""Metrics against their definitions in plain Python."""

from math import isnan, log2, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import coo_array, csc_array, csr_array, csr_matrix

from wals.metrics import ndcg_at_k, recall_at_k

METRICS = [recall_at_k, ndcg_at_k]


def recall(relevant, ranking, k, capped=False):
    hits = sum(column in relevant for column in ranking[:k])
    return hits / (min(k, len(relevant)) if capped else len(relevant))


def ndcg(relevant, ranking, k):
    def gain(hits):
        return sum(hit / log2(place + 2) for place, hit in enumerate(hits))

    ideal = [True] * min(k, len(relevant))
    return gain([column in relevant for column in ranking[:k]]) / gain(ideal)


def by_definition(function, relevant, ranked, k, **kwargs):
    return [
        function(row, ranking, k, **kwargs) if row else nan
        for row, ranking in zip(relevant, ranked, strict=True)
    ]


def draw(n_rows, n_columns, width, seed):
    """Return sets of relevant columns, the same as a matrix, and rankings that end in some -1."""
    rng = np.random.default_rng(seed)
    relevant = [
        set(rng.choice(n_columns, rng.integers(n_columns + 1), replace=False).tolist())
        for _ in range(n_rows)
    ]
    pairs = [(row, column) for row, columns in enumerate(relevant) for column in columns]
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    truth = coo_array(
        (rng.normal(size=len(pairs)), (np.array(rows, int), np.array(columns, int))),
        shape=(n_rows, n_columns),
    )
    ranked = rng.permuted(np.tile(np.arange(n_columns), (n_rows, 1)), axis=1)
    ranked = np.pad(ranked, ((0, 0), (0, width)), constant_values=-1)[:, :width]
    ranked[np.arange(width) >= rng.integers(width + 1, size=(n_rows, 1))] = -1
    return relevant, truth.tocsr(), ranked


@settings(max_examples=150, deadline=None)
@given(
    n_rows=st.integers(0, 12),
    n_columns=st.integers(1, 12),
    width=st.integers(1, 15),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_metrics_are_their_definitions(n_rows, n_columns, width, seed, data):
    relevant, truth, ranked = draw(n_rows, n_columns, width, seed)
    k = data.draw(st.integers(1, width))
    for metric, definition, kwargs in (
        (recall_at_k, recall, {}),
        (recall_at_k, recall, {"capped": True}),
        (ndcg_at_k, ndcg, {}),
    ):
        expected = by_definition(definition, relevant, ranked.tolist(), k, **kwargs)
        values = metric(truth, ranked, k, average=False, **kwargs)
        assert values.dtype == np.float64
        assert_allclose(values, np.array(expected, float), rtol=1e-12)
        counted = [value for value in expected if not isnan(value)]
        mean = metric(truth, ranked, k, **kwargs)
        assert isinstance(mean, float)
        assert_allclose(mean, sum(counted) / len(counted) if counted else nan, rtol=1e-12)


def test_published_definition_of_ndcg_by_hand():
    truth = csr_array([[1, 0, 1, 1, 0]])
    value = ndcg_at_k(truth, [[2, 1, 0]], 3)
    assert_allclose(value, (1 + 1 / 2) / (1 + 1 / log2(3) + 1 / 2))


@pytest.mark.parametrize("metric", METRICS)
def test_many_columns_are_done_in_blocks(metric):
    n_columns = 2**19
    rng = np.random.default_rng(0)
    columns = rng.integers(n_columns, size=(7, 3)) // 7 * 7
    truth = csr_array(
        (np.ones(21), (np.repeat(np.arange(7), 3), columns.ravel())), shape=(7, n_columns)
    )
    ranked = np.column_stack([columns[:, 1], columns[:, 0] + 1, columns[:, 2], [-1] * 7])
    definition = {recall_at_k: recall, ndcg_at_k: ndcg}[metric]
    expected = by_definition(definition, [set(row) for row in columns.tolist()], ranked.tolist(), 4)
    assert_allclose(metric(truth, ranked, 4, average=False), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_ranking_is_exactly_one(metric):
    for n in (3, 50, 100, 300):
        truth = csr_array(np.ones((1, n)))
        assert metric(truth, np.arange(n)[np.newaxis], n) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_relevant_means_stored(metric):
    ranked = [[0, 1, 2]]
    zeros = csr_array((np.zeros(2), ([0, 0], [0, 1])), shape=(1, 3))
    duplicates = csr_array((np.ones(3), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 3))
    expected = metric(csr_array([[1, 1, 0]]), ranked, 2)
    assert metric(zeros, ranked, 2) == metric(duplicates, ranked, 2) == expected
    assert_array_equal(duplicates.indices, [1, 0, 1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("container", [csr_matrix, csc_array, coo_array])
@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_any_sparse_format_and_integer(metric, container, dtype):
    _, truth, ranked = draw(9, 8, 8, 1)
    ranked[ranked < 0] = 0
    ranked = np.argsort(ranked, axis=1)
    assert metric(container(truth), ranked.astype(dtype), 4) == metric(truth, ranked, 4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("ranked", "k", "message"),
    [
        ([[0, 1], [1, 2]], 0, "k must be an integer of at least 1, got 0"),
        ([[0, 1], [1, 2]], 1.5, "k must be an integer of at least 1, got 1.5"),
        ([[0, 1], [1, 2]], 3, r"2 rows, as truth has, and at least k=3 columns, .*\(2, 2\)"),
        ([[0, 1]], 2, "2 rows, as truth has"),
        ([0, 1], 2, "2 rows, as truth has"),
        ([[0, 1], [1, 3]], 2, "column indices from -1 to 2"),
        ([[0, 1], [1, -2]], 2, "column indices from -1 to 2"),
        ([[0.0, 1.0], [1.0, 2.0]], 2, "ranked must hold integers, got float64"),
        ([[0, 1], [2, 2]], 2, "ranked repeats column 2 in row 1"),
    ],
)
def test_bad_rankings_are_refused(metric, ranked, k, message):
    with pytest.raises(ValueError, match=message):
        metric(csr_array([[1, 0, 0], [0, 0, 1]]), ranked, k)


@pytest.mark.parametrize("metric", METRICS)
def test_dense_truth_is_refused(metric):
    with pytest.raises(ValueError, match="truth must be a sparse matrix, got ndarray"):
        metric(np.eye(2), [[0], [1]], 1)
