"""Metrics against their definitions in plain Python."""

from math import isnan, log2, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import coo_array, coo_matrix, csc_array, csr_array, csr_matrix
from sklearn.metrics import ndcg_score, roc_auc_score

from wals.metrics import (
    auc,
    average_precision_at_k,
    hit_rate_at_k,
    mae,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    rmse,
)


def recall(relevant, ranking, n_columns):
    return sum(column in relevant for column in ranking) / len(relevant)


def capped_recall(relevant, ranking, n_columns):
    hits = sum(column in relevant for column in ranking)
    return hits / min(len(ranking), len(relevant))


def precision(relevant, ranking, n_columns):
    return sum(column in relevant for column in ranking) / len(ranking)


def ndcg(relevant, ranking, n_columns):
    def gain(hits):
        return sum(hit / log2(place + 2) for place, hit in enumerate(hits))

    ideal = [True] * min(len(ranking), len(relevant))
    return gain([column in relevant for column in ranking]) / gain(ideal)


def average_precision(relevant, ranking, n_columns):
    total = 0
    for place, column in enumerate(ranking):
        if column in relevant:
            total += precision(relevant, ranking[: place + 1], n_columns)
    return total / min(len(ranking), len(relevant))


def reciprocal_rank(relevant, ranking, n_columns):
    for place, column in enumerate(ranking):
        if column in relevant:
            return 1 / (place + 1)
    return 0


def hit_rate(relevant, ranking, n_columns):
    return float(any(column in relevant for column in ranking))


def area(relevant, ranking, n_columns):
    place = {column: place for place, column in enumerate(ranking)}
    pairs = []
    for one in relevant:
        for other in set(range(n_columns)) - relevant:
            a, b = (place.get(column, len(ranking)) for column in (one, other))
            pairs.append(1 if a < b else 0.5 if a == b else 0)
    return sum(pairs) / len(pairs) if pairs else nan


DEFINITIONS = {
    recall_at_k: recall,
    precision_at_k: precision,
    ndcg_at_k: ndcg,
    average_precision_at_k: average_precision,
    reciprocal_rank_at_k: reciprocal_rank,
    hit_rate_at_k: hit_rate,
    auc: area,
}
METRICS = list(DEFINITIONS)


def by_definition(function, relevant, ranked, k, n_columns):
    return [
        function(row, ranking[:k], n_columns) if row else nan
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
        *((metric, definition, {}) for metric, definition in DEFINITIONS.items()),
        (recall_at_k, capped_recall, {"capped": True}),
    ):
        expected = by_definition(definition, relevant, ranked.tolist(), k, n_columns)
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


def test_average_precision_by_hand():
    # Hits at places 1, 3 and 4, of five relevant columns.
    truth = csr_array([[1, 0, 1, 1, 1, 1]])
    value = average_precision_at_k(truth, [[0, 1, 5, 2]], 4)
    assert_allclose(value, (1 + 2 / 3 + 3 / 4) / 4)


def test_scikit_learn_agrees():
    n_rows, n_columns = 40, 12
    rng = np.random.default_rng(3)
    truth = rng.random((n_rows, n_columns)) < 0.3
    truth[:, 0], truth[:, 1] = True, False  # neither all nor none
    scores = rng.permuted(np.tile(np.arange(n_columns), (n_rows, 1)), axis=1)
    ranked = np.argsort(-scores, axis=1)
    sparse = csr_array(truth)
    for k in (1, 5, 12):
        assert_allclose(ndcg_at_k(sparse, ranked, k), ndcg_score(truth, scores, k=k), rtol=1e-12)
        # What is not ranked ties at the end.
        tied = np.maximum(scores, n_columns - k - 1)
        expected = [roc_auc_score(t, s) for t, s in zip(truth, tied, strict=True)]
        assert_allclose(auc(sparse, ranked, k, average=False), expected, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_many_columns_are_done_in_blocks(metric):
    n_columns = 2**19
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(n_columns // 7, size=(7, 3), replace=False), axis=1) * 7
    truth = csr_array(
        (np.ones(21), (np.repeat(np.arange(7), 3), columns.ravel())), shape=(7, n_columns)
    )
    ranked = np.column_stack([columns[:, 1], columns[:, 0] + 1, columns[:, 2], [-1] * 7])
    # Two hits, one miss before the second of them; the third relevant column ties with the rest.
    n_others = n_columns - 3
    expected = {
        recall_at_k: 2 / 3,
        precision_at_k: 2 / 4,
        ndcg_at_k: (1 + 1 / 2) / (1 + 1 / log2(3) + 1 / 2),
        average_precision_at_k: (1 + 2 / 3) / 3,
        reciprocal_rank_at_k: 1,
        hit_rate_at_k: 1,
        auc: (n_others + (n_others - 1) + (n_others - 1) / 2) / (3 * n_others),
    }[metric]
    assert_allclose(metric(truth, ranked, 4, average=False), np.full(7, expected), rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_ranking_is_exactly_one(metric):
    for n in (3, 50, 100, 300):
        truth = csr_array(np.pad(np.ones((1, n)), ((0, 0), (0, 5))))
        assert metric(truth, np.arange(n)[np.newaxis], n) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_relevant_means_stored(metric):
    ranked = [[2, 0, 1]]
    zeros = csr_array((np.zeros(2), ([0, 0], [0, 1])), shape=(1, 3))
    duplicates = csr_array((np.ones(3), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 3))
    expected = metric(csr_array([[1, 1, 0]]), ranked, 2)
    assert metric(zeros, ranked, 2) == metric(duplicates, ranked, 2) == expected
    assert_array_equal(duplicates.indices, [1, 0, 1])


def test_auc_of_many_pairs():
    # 4.2e9 of them, which do not fit into 32 bits.
    truth = csr_array(np.arange(130_000)[np.newaxis] < 60_000)
    assert auc(truth, [[0]], 1) == pytest.approx((1 + 60_000) / 2 / 60_000, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (0, 0)])
def test_nothing_is_relevant(metric, shape):
    truth, ranked = csr_array(shape), np.full((shape[0], 2), -1)
    assert isnan(metric(truth, ranked, 2))
    assert_array_equal(metric(truth, ranked, 2, average=False), np.full(shape[0], nan))


def test_everything_is_relevant():
    truth, ranked = csr_array(np.ones((1, 2))), [[1, 0]]
    assert isnan(auc(truth, ranked, 2))
    assert precision_at_k(truth, ranked, 2) == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("container", [csr_matrix, csc_array, coo_array])
@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_any_sparse_format_and_integer(metric, container, dtype):
    _, truth, ranked = draw(9, 8, 8, 1)
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
        ([[1, -1, 1], [-1, 0, -1]], 3, "ranked repeats column 1 in row 0"),
    ],
)
def test_bad_rankings_are_refused(metric, ranked, k, message):
    with pytest.raises(ValueError, match=message):
        metric(csr_array([[1, 0, 0], [0, 0, 1]]), ranked, k)


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_first_k_are_looked_at(metric):
    truth = csr_array([[1, 0, 0]])
    assert metric(truth, [[1, 2, 2]], 2) == metric(truth, [[1, 2]], 2)


@pytest.mark.parametrize("metric", METRICS)
def test_dense_truth_is_refused(metric):
    with pytest.raises(ValueError, match="truth must be a sparse matrix, got ndarray"):
        metric(np.eye(2), [[0], [1]], 1)
    with pytest.raises(ValueError, match=r"truth must have two dimensions, got shape \(2,\)"):
        metric(coo_array([0, 1]), [[0], [1]], 1)


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 8), n_columns=st.integers(1, 8), seed=st.integers(0, 1000))
def test_errors_are_their_definitions(n_rows, n_columns, seed):
    rng = np.random.default_rng(seed)
    stored = rng.random((n_rows, n_columns)) < 0.5
    stored[0, 0] = True
    rows, columns = np.nonzero(stored)
    true, predicted = np.round(rng.normal(size=(2, rows.size)), 1)  # some are 0
    truth, guess = (
        csr_array((values, (rows, columns)), shape=stored.shape) for values in (true, predicted)
    )
    errors = [p - t for t, p in zip(true.tolist(), predicted.tolist(), strict=True)]
    expected_rmse = sqrt(sum(e * e for e in errors) / len(errors))
    expected_mae = sum(abs(e) for e in errors) / len(errors)
    # In any form, and in any order of the entries within a row.
    order = np.lexsort((rng.random(rows.size), rows))
    mixed = csr_array((true[order], columns[order], truth.indptr), shape=stored.shape)
    for given_truth, given_guess in (
        (truth, predicted),
        (truth, guess),
        (truth.tocsc(), guess.tocoo()),
        (csr_matrix(truth), predicted.tolist()),
        (mixed, predicted[order]),
        (mixed, guess),
    ):
        assert isinstance(rmse(given_truth, given_guess), float)
        assert_allclose(rmse(given_truth, given_guess), expected_rmse, rtol=1e-12)
        assert_allclose(mae(given_truth, given_guess), expected_mae, rtol=1e-12)


@pytest.mark.parametrize("metric", [rmse, mae])
def test_errors_are_in_double_precision(metric):
    truth = csr_array(np.full((1, 1000), 0.1, dtype=np.float32))
    assert metric(truth, truth.data.astype(np.float64) + 1e-9) == pytest.approx(1e-9, rel=1e-6)
    small, large = np.array([[100], [200]], dtype=np.uint8)
    assert metric(csr_array(large[np.newaxis]), small) == 100


@pytest.mark.parametrize("metric", [rmse, mae])
def test_arrays_are_in_the_order_of_what_was_passed(metric):
    rows, columns, values = [2, 0, 1, 0], [0, 2, 1, 0], np.array([1.0, 2.0, 3.0, 4.0])
    truth = coo_array((values, (rows, columns)), shape=(3, 3))
    assert metric(truth, truth.data) == 0
    assert metric(coo_matrix(truth), truth.data) == 0
    assert metric(truth.tocsr(), truth.tocsr().data) == 0
    assert metric(truth, values + 2 * (values == 4)) == pytest.approx(1 if metric is rmse else 0.5)
    twice = coo_array((np.ones(2), ([0, 0], [1, 1])))
    with pytest.raises(ValueError, match="truth has duplicates"):
        metric(twice, [1, 1])
    for other in ("csc", "bsr", "lil", "dok", "dia"):
        with pytest.raises(ValueError, match=f"truth a {other.upper()} matrix.*CSR or COO"):
            metric(truth.copy().asformat(other), values)
        assert metric(truth.copy().asformat(other), truth) == 0


@pytest.mark.parametrize("metric", [rmse, mae])
def test_errors_of_nothing(metric):
    for shape in ((3, 2), (0, 2)):
        assert isnan(metric(csr_array(shape), []))
        assert isnan(metric(csr_array(shape), csr_array(shape)))


@pytest.mark.parametrize("metric", [rmse, mae])
@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.eye(2), [1, 1], "truth must be a sparse matrix, got ndarray"),
        (csr_array(np.eye(2)), [1], r"predicted has shape \(1,\), but \(2,\) is needed"),
        (csr_array(np.eye(2)), np.eye(2), r"predicted has shape \(2, 2\)"),
        (csr_array(np.eye(2)), csr_array(np.ones((2, 2))), "exactly the positions that truth"),
        (csr_array(np.eye(2)), csr_array([[0, 1], [1, 0]]), "exactly the positions that truth"),
        (csr_array(np.eye(2)), csr_array(np.eye(2, 3)), "exactly the positions that truth"),
        (csr_array(np.eye(2)), [1, nan], "predicted contains NaN"),
        (csr_array([[nan, 1]]), [1, 1], "truth contains NaN"),
        (csr_array((np.ones(2), [0, 0], [0, 2]), shape=(1, 2)), [1, 1], "truth has duplicates"),
    ],
)
def test_bad_predictions_are_refused(metric, truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        metric(truth, predicted)
