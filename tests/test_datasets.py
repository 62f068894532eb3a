"""The embedded data and the generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from wals.datasets import _draw_distinct, _share_out, load_msweb, make_interactions


def assert_canonical(X):
    X.check_format(full_check=True)
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    assert np.all(np.diff(rows * X.shape[1] + X.indices) > 0)
    assert X.indices.dtype == X.indptr.dtype == np.int32
    assert X.dtype == np.float32
    assert_array_equal(X.data, 1)


def test_msweb_is_the_source():
    X, titles = load_msweb(return_titles=True)
    assert X.shape == (32_711, 294)
    assert X.nnz == 98_654
    assert_canonical(X)
    assert titles.shape == (294,)
    # As counted in the source: users 10001 and 42711, and the most visited areas.
    assert titles[X[[0]].indices].tolist() == [
        "regwiz",
        "Support Desktop",
        "End User Produced View",
    ]
    assert X[[-1]].indices.tolist() == [8]
    visits = np.bincount(X.indices, minlength=294)
    top = np.argsort(-visits)[:5]
    assert dict(zip(titles[top].tolist(), visits[top].tolist(), strict=True)) == {
        "Free Downloads": 10_836,
        "Internet Explorer": 9_383,
        "Microsoft.com Search": 8_463,
        "isapi": 5_330,
        "Products": 5_108,
    }
    assert titles[visits == 0].tolist() == [
        "International AutoRoute",
        "library",
        "Master Chef Product Information",
        "Activate the Internet Conference",
        "news",
        "MS North Africa",
        "Encarta",
        "Bookshelf",
        "Central America",
    ]
    sizes = np.diff(X.indptr)
    assert (sizes.min(), sizes.max()) == (1, 35)


def test_msweb_is_fresh_at_every_call():
    X = load_msweb()
    X.data[:] = X.indices[:] = X.indptr[:] = 0
    assert_canonical(load_msweb())


@settings(max_examples=100, deadline=None)
@given(
    n_samples=st.integers(1, 40),
    n_features=st.integers(1, 40),
    density=st.sampled_from([0, 0.02, 0.3, 0.9, 1]),
    n_topics=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_interactions_of_any_shape(n_samples, n_features, density, n_topics, seed):
    nnz = int(density * n_samples * n_features)
    X = make_interactions(n_samples, n_features, nnz, n_topics=n_topics, random_state=seed)
    assert X.shape == (n_samples, n_features)
    assert X.nnz == nnz
    assert_canonical(X)
    assert nnz < n_samples or np.diff(X.indptr).min() >= 1


def test_interactions_follow_the_random_state():
    def make(random_state):
        return make_interactions(300, 100, 3000, random_state=random_state).toarray()

    assert_array_equal(make(3), make(3))
    assert np.any(make(3) != make(4))
    state = np.random.RandomState(3)
    assert_array_equal(make(state), make(3))
    assert np.any(make(state) != make(3))


def test_rows_are_log_normal():
    X = make_interactions(20_000, 2_000, 600_000, random_state=0)
    logs = np.log(np.maximum(np.diff(X.indptr) - 1, 0.5))  # the first entry is everyone's
    assert_allclose(logs.std(), 1, atol=0.05)
    centred = (logs - logs.mean()) / logs.std()
    assert abs(np.mean(centred**3)) < 0.2


def test_columns_follow_a_power_law():
    # One entry per row: nothing is drawn without repetition.
    X = make_interactions(200_000, 1_000, 200_000, random_state=0)
    counts = np.sort(np.bincount(X.indices, minlength=1_000))[::-1]
    slope, _ = np.polyfit(np.log(np.arange(1_000) + 1 + 1_000 / 200), np.log(counts), 1)
    assert_allclose(slope, -1, atol=0.1)


def test_topics_give_low_rank():
    X = make_interactions(2_000, 500, 40_000, n_topics=8, random_state=0)
    # The same activity and popularity without topics.
    popularity = np.maximum(np.bincount(X.indices, minlength=500), 0.5)
    keys = _draw_distinct(
        np.diff(X.indptr),
        np.ones((2_000, 1)),
        popularity[np.newaxis] / popularity.sum(),
        np.random.default_rng(0),
    )
    shuffled = csr_array((X.data, keys % 500, X.indptr), shape=X.shape)

    with_topics, without = (
        np.linalg.svd(matrix.toarray(), compute_uv=False) for matrix in (X, shuffled)
    )
    assert with_topics[7] > 1.2 * without[2]
    assert with_topics[9] < without[2]


@pytest.mark.parametrize("n_features", [64, 16], ids=["rounds", "race"])
def test_draws_are_weighted_draws_without_repetition(n_features):
    n_rows = 50_000
    p = np.random.default_rng(0).dirichlet(np.full(n_features, 0.5))
    keys = _draw_distinct(
        np.full(n_rows, 2), np.ones((n_rows, 1)), p[np.newaxis], np.random.default_rng(1)
    )
    # First i, or first some j and then i among the others.
    odds = p / (1 - p)
    expected = p * (1 + odds.sum() - odds)
    observed = np.bincount(keys % n_features, minlength=n_features) / n_rows
    error = np.sqrt(expected * (1 - expected) / n_rows)
    assert np.all(np.abs(observed - expected) < 4.5 * error + 1e-9)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 30), limit=st.integers(0, 20), fill=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_shares_meet_total_and_limit(size, limit, fill, seed):
    weights = np.random.default_rng(seed).lognormal(sigma=2, size=size)
    total = int(fill * size * limit)
    shares = _share_out(total, weights, limit)
    assert shares.sum() == total
    assert shares.min() >= 0
    assert shares.max() <= limit
    # What everybody would get without rounding: the scale is found by bisection.
    low, high = 0, limit / weights.min()
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (
            (low, scale) if np.minimum(scale * weights, limit).sum() > total else (scale, high)
        )
    assert np.abs(shares - np.minimum(scale * weights, limit)).max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0), "n_samples must be an integer of at least 1, got 0"),
        ((5, -1, 0), "n_features must be an integer of at least 1, got -1"),
        ((5, 5, -1), "nnz must be an integer of at least 0, got -1"),
        ((5, 5, 2.0), "nnz must be an integer of at least 0, got 2.0"),
        ((5, 5, 26), "nnz=26 entries do not fit into 5 x 5"),
    ],
)
def test_interactions_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_interactions(*arguments)


def test_interactions_need_a_topic():
    with pytest.raises(ValueError, match="n_topics must be an integer of at least 1, got 0"):
        make_interactions(5, 5, 5, n_topics=0)
