"""Splits by their properties, and the scorer against the same steps written out."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, StandardScaler

from wals import WALS, metrics, model_selection
from wals._core.parallel import effective_n_threads
from wals.callbacks import EarlyStopping
from wals.datasets import make_interactions
from wals.model_selection import _rank, holdout_scorer, leave_k_out, split_entries

METRICS = {
    "ndcg": metrics.ndcg_at_k,
    "recall": metrics.recall_at_k,
    "capped_recall": lambda *args: metrics.recall_at_k(*args, capped=True),
    "precision": metrics.precision_at_k,
    "map": metrics.average_precision_at_k,
    "mrr": metrics.reciprocal_rank_at_k,
    "hit_rate": metrics.hit_rate_at_k,
}


def entries(X):
    """Return the stored entries as a set of (row, column, value)."""
    X = sp.coo_array(X)
    return set(zip(X.coords[0].tolist(), X.coords[1].tolist(), X.data.tolist(), strict=True))


def draw(n_rows, n_columns, density, seed):
    """Return a CSR whose values are all different, one of them an explicit zero."""
    rng = np.random.default_rng(seed)
    X = sp.csr_array((rng.random((n_rows, n_columns)) < density).astype(float))
    X.data[:] = rng.permutation(X.nnz)
    return X


def counts(X):
    return np.diff(X.tocsr().indptr)


# ------------------------------------------------------------------------------------------- splits


@settings(max_examples=100, deadline=None)
@given(
    n_rows=st.integers(0, 15),
    n_columns=st.integers(1, 15),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    size=st.one_of(st.floats(0.01, 0.99), st.integers(1, 20)),
    seed=st.integers(0, 1000),
)
def test_every_entry_is_in_one_part(n_rows, n_columns, density, size, seed):
    X = draw(n_rows, n_columns, density, seed)
    before = entries(X)
    times = np.random.default_rng(seed).integers(5, size=X.nnz)
    splits = {
        "per-row": split_entries(X, size, strategy="per-row", random_state=seed),
        "last": split_entries(X, size, strategy="last", timestamps=times),
    }
    n_test = size if size >= 1 else int(np.ceil(size * X.nnz))
    if n_test < X.nnz or not n_test:
        splits["uniform"] = split_entries(X, size, random_state=seed)
        assert splits["uniform"][1].nnz == n_test
    else:
        with pytest.raises(ValueError, match="leaves none for training"):
            split_entries(X, size)
    k = max(1, int(size))
    splits["k"] = leave_k_out(X, k, random_state=seed)
    splits["last k"] = leave_k_out(X, k, timestamps=times)
    for train, test in splits.values():
        assert train.shape == test.shape == X.shape
        assert train.dtype == test.dtype == X.dtype
        assert train.has_canonical_format and test.has_canonical_format
        assert not entries(train) & entries(test)
        assert entries(train) | entries(test) == before
    for name in ("per-row", "last"):
        for n, held in zip(counts(X), counts(splits[name][1]), strict=True):
            share = size if size >= 1 else max(1, int(size * n))
            assert held == max(0, min(share, n - 1))
    for name in ("k", "last k"):
        assert_array_equal(counts(splits[name][1]), np.where(counts(X) > k, k, 0))
    # The latest: nothing in the training part comes after anything in the test part.
    when = {(i, j): t for (i, j, _), t in zip(sorted(before), times.tolist(), strict=True)}
    for name in ("last", "last k"):
        train, test = ({(i, j) for i, j, _ in entries(part)} for part in splits[name])
        for i, j in test:
            assert all((when[i, b], b) < (when[i, j], j) for a, b in train if a == i)


def test_splits_are_random_and_reproducible():
    X = draw(30, 30, 0.5, 0)
    for split in (
        lambda seed: split_entries(X, 0.3, random_state=seed),
        lambda seed: split_entries(X, 0.3, random_state=seed, strategy="per-row"),
        lambda seed: leave_k_out(X, 3, random_state=seed),
    ):
        test = entries(split(0)[1])
        assert entries(split(0)[1]) == test == entries(split(np.random.RandomState(0))[1])
        assert entries(split(1)[1]) != test
        assert entries(split(None)[1]) != entries(split(None)[1])


@pytest.mark.parametrize(
    "split",
    [
        lambda X, seed: split_entries(X, 3, random_state=seed, strategy="per-row"),
        lambda X, seed: leave_k_out(X, 3, random_state=seed),
        lambda X, seed: split_entries(X, 0.3, random_state=seed),
    ],
)
def test_every_entry_is_as_likely(split):
    X = sp.csr_array(np.ones((400, 10)))
    n_held = split(X, 0)[1].sum(axis=0)
    low, high = binom.ppf([1e-4, 1 - 1e-4], 400, 0.3)
    assert np.all((low <= n_held) & (n_held <= high))
    assert n_held.sum() == 1200


@pytest.mark.parametrize("split", [split_entries, leave_k_out])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, bool])
@pytest.mark.parametrize(
    ("kind", "returned"),
    [
        (sp.csr_matrix, sp.csr_matrix),
        (sp.csc_matrix, sp.csr_matrix),
        (sp.csr_array, sp.csr_array),
        (sp.coo_array, sp.csr_array),
        (sp.csr_array.toarray, sp.csr_array),
        (lambda X: pd.DataFrame(X.toarray()), sp.csr_array),
    ],
)
def test_containers(split, dtype, kind, returned):
    X = sp.csr_array(np.array([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=dtype))
    expected = split(X, 1, random_state=0)
    for part, same in zip(split(kind(X), 1, random_state=0), expected, strict=True):
        assert type(part) is returned
        assert part.dtype == dtype
        assert part.indices.dtype == part.indptr.dtype == np.int32
        assert_array_equal(part.toarray(), same.toarray())


def test_parts_are_copies():
    X = draw(5, 5, 0.8, 0)
    before = X.copy()
    for part in split_entries(X, 0.5, random_state=0):
        part.data[:] = -1
        part.indices[:] = 0
    assert_array_equal(X.toarray(), before.toarray())


def test_timestamps_in_any_form():
    X = draw(8, 9, 0.6, 0)
    rng = np.random.default_rng(0)
    times = rng.permutation(X.nnz)
    expected = entries(leave_k_out(X, 2, timestamps=times)[1])
    as_matrix = sp.csr_array((times, X.indices, X.indptr), shape=X.shape)
    order = np.lexsort((rng.random(X.nnz), np.repeat(np.arange(8), counts(X))))
    mixed = sp.csr_array((X.data[order], X.indices[order], X.indptr), shape=X.shape)
    hours = np.datetime64("2020-01-01T00") + times.astype("timedelta64[h]")
    for matrix, given_times in (
        (X, as_matrix),
        (X, as_matrix.tocsc()),
        (X.tocsc(), as_matrix),
        (mixed, times[order]),
        (mixed, as_matrix),
        (X, hours),
        (X, pd.Series(hours)),
        (X, times - 0.5),
    ):
        assert entries(leave_k_out(matrix, 2, timestamps=given_times)[1]) == expected
        parts = split_entries(matrix, 2, strategy="last", timestamps=given_times)
        assert entries(parts[0]) | entries(parts[1]) == entries(X)


def test_timestamps_are_in_the_order_of_what_was_passed():
    rows, columns = np.array([1, 0, 1, 0, 0]), np.array([2, 1, 0, 2, 0])
    times = np.array([1, 9, 2, 3, 4])
    X = sp.coo_array((np.arange(1.0, 6.0), (rows, columns)), shape=(2, 3))
    dense = np.zeros((2, 3))
    dense[rows, columns] = times
    for matrix, given_times in (
        (X, times),
        (sp.coo_matrix(X), times),
        (X.tocsr(), dense[dense > 0]),
        (X.toarray(), dense[dense > 0]),
        (X.copy().todok(), sp.coo_array(dense)),  # SciPy sorts what it converts
    ):
        _, test = leave_k_out(matrix, timestamps=given_times)
        assert entries(test) == {(0, 1, 2.0), (1, 0, 3.0)}
    for other in ("csc", "bsr", "lil", "dok", "dia"):
        with pytest.raises(ValueError, match=f"X a {other.upper()} matrix.*pass X as a CSR or COO"):
            leave_k_out(X.copy().asformat(other), timestamps=times)


@settings(max_examples=50, deadline=None)
@given(size=st.one_of(st.floats(0.01, 0.9), st.integers(1, 5)), seed=st.integers(0, 1000))
def test_the_latest_of_all_entries(size, seed):
    X = draw(9, 7, 0.4, seed)
    times = np.random.default_rng(seed).integers(4, size=X.nnz)
    n_test = size if size >= 1 else int(np.ceil(size * X.nnz))
    train, test = split_entries(X, size, strategy="time", timestamps=times, random_state=1)
    order = sorted(zip(times.tolist(), sorted(entries(X)), strict=True))
    assert entries(train) == {entry for _, entry in order[: X.nnz - n_test]}
    assert entries(test) == {entry for _, entry in order[X.nnz - n_test :]}
    shuffled = np.random.default_rng(seed).permutation(X.nnz)
    coo = X.tocoo()
    at = tuple(c[shuffled] for c in coo.coords)
    mixed = sp.coo_array((coo.data[shuffled], at), shape=X.shape)
    _, again = split_entries(mixed, size, strategy="time", timestamps=times[shuffled])
    assert entries(again) == entries(test)


def test_a_row_may_lose_all_to_a_date():
    X = sp.csr_array([[1.0, 2.0], [3.0, 4.0]])
    times = np.array(["2020-01-01", "2020-03-01", "2020-03-02", "2020-03-03"], "datetime64[D]")
    train, test = split_entries(X, 0.5, strategy="time", timestamps=times)
    assert_array_equal(train.toarray(), [[1, 2], [0, 0]])
    assert_array_equal(test.toarray(), [[0, 0], [3, 4]])


def test_duplicates_are_summed():
    X = sp.csr_array((np.array([1.0, 2.0, 4.0]), [1, 0, 1], [0, 3]), shape=(1, 2))
    train, test = leave_k_out(X, random_state=0)
    assert entries(train) | entries(test) == {(0, 0, 2.0), (0, 1, 5.0)}
    assert_array_equal(X.indices, [1, 0, 1])
    with pytest.raises(ValueError, match="X has duplicates"):
        leave_k_out(X, timestamps=[1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_size": 0.0}, "test_size must be a float between 0 and 1"),
        ({"test_size": 1.0}, "test_size must be a float between 0 and 1"),
        ({"test_size": 0}, "test_size must be a float between 0 and 1"),
        ({"test_size": -1}, "test_size must be a float between 0 and 1"),
        ({"test_size": True}, "test_size must be a float between 0 and 1"),
        ({"test_size": np.nan}, "test_size must be a float between 0 and 1"),
        ({"test_size": "half"}, "test_size must be a float between 0 and 1"),
        ({"test_size": 5}, "test_size=5 of 5 stored entries leaves none for training"),
        ({"strategy": "first"}, "must be 'uniform', 'per-row', 'last' or 'time', got 'first'"),
        ({"strategy": "last"}, "strategy='last' needs timestamps"),
        ({"strategy": "time"}, "strategy='time' needs timestamps"),
        ({"timestamps": np.arange(5)}, "are for strategy='last' or 'time', not 'uniform'"),
        (
            {"strategy": "time", "timestamps": np.arange(5), "test_size": 5},
            "test_size=5 of 5 stored entries leaves none for training",
        ),
        ({"X": [1.0, 2.0]}, "Expected 2D array"),
        ({"X": sp.coo_array([1.0, 2.0])}, "Expected 2D"),
        ({"X": sp.csr_array([[1j]])}, "Complex data not supported"),
        ({"X": sp.csr_array([[np.inf]])}, "infinity"),
        ({"X": [["a"]]}, "could not convert|Unable to convert|not compatible"),
        ({"random_state": "seed"}, "cannot be used to seed"),
    ],
)
def test_bad_splits_are_refused(arguments, message):
    arguments = {"X": sp.csr_array([[1, 2, 0, 3], [0, 4, 5, 0]])} | arguments
    with pytest.raises(ValueError, match=message):
        split_entries(**arguments)


@pytest.mark.parametrize(
    ("timestamps", "message"),
    [
        ([1, 2, 3], r"timestamps has shape \(3,\), but \(5,\) is needed"),
        (np.ones((2, 4)), r"timestamps has shape \(2, 4\)"),
        (sp.csr_array(np.ones((2, 4))), "timestamps must store exactly the positions"),
        ([1, 2, 3, 4, np.nan], "timestamps must not be NaN"),
        (np.array([0, 1, 2, 3, "NaT"], dtype="datetime64[s]"), "timestamps must not be NaN"),
        (list("abcde"), "timestamps must be numbers or datetime64, got <U1"),
    ],
)
def test_bad_timestamps_are_refused(timestamps, message):
    X = sp.csr_array([[1, 2, 0, 3], [0, 4, 5, 0]])
    with pytest.raises(ValueError, match=message):
        split_entries(X, strategy="last", timestamps=timestamps)
    with pytest.raises(ValueError, match=message):
        leave_k_out(X, timestamps=timestamps)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "1"])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        leave_k_out(sp.csr_array(np.eye(2)), k)


# ------------------------------------------------------------------------------------------ ranking


@settings(max_examples=100, deadline=None)
@given(n_columns=st.integers(1, 20), k=st.integers(1, 25), seed=st.integers(0, 1000))
def test_rank(n_columns, k, seed):
    rng = np.random.default_rng(seed)
    # Small integers: many ties, and every product is exact.
    left, right = rng.integers(-1, 2, size=(6, 2)), rng.integers(-1, 2, size=(2, n_columns))
    left, right = left.astype(np.float32), right.astype(np.float32)
    exclude = sp.csr_array(rng.random((6, n_columns)) < rng.random())
    for seen in (exclude, None):
        ranked = _rank(left, right, k, exclude=seen)
        for row, scores in enumerate(left @ right):
            free = [j for j in range(n_columns) if right[:, j].any()]
            free = [j for j in free if seen is None or not seen[row, j]]
            best = sorted(free, key=lambda j: (-scores[j], j))[:k]
            assert ranked[row].tolist() == best + [-1] * (k - len(best))


@pytest.mark.parametrize("n_jobs", [1, 2, None])
def test_rank_takes_the_threads_of_the_model(n_jobs, monkeypatch):
    taken = []
    rank = model_selection.rank
    monkeypatch.setattr(
        model_selection, "rank", lambda *args, **more: taken.append(more) or rank(*args, **more)
    )
    X = make_interactions(60, 20, 400, random_state=0)
    model = WALS(2, max_iter=1, random_state=0, n_jobs=n_jobs).fit(X)
    holdout_scorer("ndcg@5")(model, X)
    kept, hidden = split_entries(X, 0.3, random_state=0, strategy="per-row")
    EarlyStopping(kept, hidden)._score(model)
    assert [more["n_threads"] for more in taken] == [effective_n_threads(n_jobs)] * 2


# ------------------------------------------------------------------------------------------- scorer


@pytest.fixture(scope="module")
def X():
    """Interactions with values, among them rows of one entry and of none."""
    X = make_interactions(240, 40, 2_000, n_topics=4, random_state=0).tolil()
    X[[3, 77, 150]] = 0
    X[[5, 151], :] = 0
    X[[5, 151], 7] = 1
    X = sp.csr_array(X.tocsr().astype(np.float64))
    X.data[:] = np.random.default_rng(0).integers(1, 6, size=X.nnz)
    return X


@pytest.fixture(scope="module")
def model(X):
    return WALS(4, max_iter=3, regularization=1.0, random_state=0).fit(X[:160])


def written_out(model, X, name, k, *, exclude_seen=True, weights=None, **split):
    """Compute a score from the dense matrix of all scores."""
    kept, hidden = split_entries(X, strategy="per-row", **split)
    rows = np.flatnonzero(counts(X) > 1)
    assert_array_equal(rows, np.flatnonzero(counts(hidden)))
    factors = model.transform(kept, weights=weights)
    predicted = (factors @ model.components_)[rows]
    if name in ("neg_rmse", "neg_mae"):
        where = hidden[rows].nonzero()
        errors = predicted[where] - hidden[rows].data
        return -np.sqrt(np.mean(errors**2)) if name == "neg_rmse" else -np.abs(errors).mean()
    if exclude_seen:
        predicted[kept[rows].nonzero()] = -np.inf
    ranked = np.argsort(-predicted, axis=1, kind="stable")[:, :k]
    ranked[np.isneginf(np.take_along_axis(predicted, ranked, axis=1))] = -1
    return METRICS[name](hidden[rows], ranked, k)


@pytest.mark.parametrize("name", [*METRICS, "neg_rmse", "neg_mae"])
def test_scorer_is_the_steps_written_out(model, X, name):
    test = X[160:]
    metric = f"{name}@6" if name in METRICS else name
    for scorer, split in (
        (holdout_scorer(metric), {"test_size": 0.2, "random_state": 0}),
        (holdout_scorer(metric, holdout=2), {"test_size": 2, "random_state": 0}),
        (holdout_scorer(metric, random_state=3), {"test_size": 0.2, "random_state": 3}),
        (
            holdout_scorer(metric, exclude_seen=False),
            {"test_size": 0.2, "random_state": 0, "exclude_seen": False},
        ),
    ):
        value = scorer(model, test)
        assert isinstance(value, float)
        assert_allclose(value, written_out(model, test, name, 6, **split), rtol=1e-12)
    assert np.sign(value) == (1 if name in METRICS else -1)


def test_default_is_ndcg_at_20(model, X):
    assert holdout_scorer()(model, X) == holdout_scorer("ndcg@20")(model, X)


def test_rows_that_cannot_be_scored_do_not_count(model, X):
    scorer = holdout_scorer("neg_rmse", holdout=1)
    able = X[:, :][np.flatnonzero(counts(X) > 1)]
    assert scorer(model, able) == pytest.approx(
        written_out(model, able, "neg_rmse", None, test_size=1, random_state=0), rel=1e-12
    )
    padded = sp.vstack([able, sp.csr_array((3, 40)), sp.csr_array(np.eye(5, 40))], format="csr")
    for metric in ("ndcg@5", "neg_rmse"):
        # With the rows at the end, the random numbers of the others stay the same.
        assert holdout_scorer(metric)(model, padded) == holdout_scorer(metric)(model, able)


def test_fewer_columns_than_k(model, X):
    value = holdout_scorer("recall@100")(model, X)
    assert value == 1
    value = holdout_scorer("precision@100", holdout=1)(model, X)
    assert value == pytest.approx(0.01, rel=1e-12)


def test_explicit_zeros_are_hidden_too(model):
    X = sp.csr_array((np.zeros(8), (np.repeat([0, 1], 4), np.tile(np.arange(4), 2))), shape=(2, 40))
    assert holdout_scorer("neg_mae", holdout=2)(model, X) == 0
    assert holdout_scorer("recall@40", holdout=2)(model, X) == 1


def test_dense_and_frames(model, X):
    scorer = holdout_scorer("ndcg@6")
    expected = scorer(model, X)
    assert scorer(model, X.toarray()) == expected
    assert scorer(model, sp.csc_matrix(X)) == expected
    columns = [f"item {j}" for j in range(40)]
    frame = pd.DataFrame(X.toarray(), columns=columns)
    sparse_frame = pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(X), columns=columns)
    named = clone(model).fit(frame[:160]).set_output(transform="pandas")
    assert scorer(named, frame) == expected
    assert scorer(named, sparse_frame) == expected
    with pytest.raises(ValueError, match="feature names should match"):
        scorer(named, frame.rename(columns={"item 3": "another"}))
    search = GridSearchCV(model, {"n_components": [2, 4]}, cv=3, scoring=scorer)
    scores = search.fit(X).cv_results_["mean_test_score"]
    assert_array_equal(search.fit(sparse_frame).cv_results_["mean_test_score"], scores)


def test_row_weights_are_those_of_the_projection(model, X):
    weights = np.random.default_rng(0).uniform(0.1, 9, size=240)
    for name in ("ndcg", "neg_rmse"):
        scorer = holdout_scorer("ndcg@6" if name == "ndcg" else name)
        value = scorer(model, X, row_weights=weights)
        expected = written_out(model, X, name, 6, weights=weights, test_size=0.2, random_state=0)
        assert_allclose(value, expected, rtol=1e-12)
        assert value != scorer(model, X)
        assert scorer.score(model, X, row_weights=weights) == value
        assert scorer(model, X, row_weights=2.0) == scorer(model, X, row_weights=np.full(240, 2.0))
    with pytest.raises(ValueError, match="row_weights has shape"):
        scorer(model, X, row_weights=weights[1:])
    with pytest.raises(ValueError, match="Negative weight in row_weights"):
        scorer(model, X, row_weights=-weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"metric": metric}, "metric must be one of ndcg@<k>, recall@<k>, .*neg_mae; got")
            for metric in (
                *("ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@5 ", "@5", "ndcg@5@5"),
                *("auc@5", "neg_rmse@5", "neg_rmse@", "rmse", "", None, 5, ["ndcg@5"], "ndcg@²"),
            )
        ),
        ({"holdout": 0.0}, "holdout must be a float between 0 and 1"),
        ({"holdout": 0}, "holdout must be a float between 0 and 1"),
        ({"random_state": None}, "random_state must be an integer"),
        ({"random_state": np.random.RandomState(0)}, "random_state must be an integer"),
        ({"random_state": -1}, "random_state must be an integer"),
        ({"exclude_seen": "yes"}, "exclude_seen must be True or False"),
    ],
)
def test_bad_parameters_are_refused(model, X, arguments, message):
    with pytest.raises(ValueError, match=message):
        holdout_scorer(**arguments)
    scorer = holdout_scorer().set_params(**arguments)
    with pytest.raises(ValueError, match=message):
        scorer(model, X)


def test_what_cannot_be_scored_is_refused(model, X):
    for estimator in (WALS(), MaxAbsScaler().fit(X), make_pipeline(MaxAbsScaler(), WALS())):
        with pytest.raises(ValueError, match="holdout_scorer needs a fitted WALS"):
            holdout_scorer()(estimator, X)
    with pytest.raises(ValueError, match="No row can be scored"):
        holdout_scorer()(model, sp.csr_array(np.eye(40)))
    with pytest.raises(ValueError, match="X has 39 features, but WALS is expecting 40"):
        holdout_scorer()(model, X[:, :39])


def test_clone_pickle_and_repr(model, X):
    scorer = holdout_scorer("map@7", holdout=3, random_state=5, exclude_seen=False)
    expected = scorer(model, X)
    for copy in (clone(scorer), pickle.loads(pickle.dumps(scorer))):
        assert copy.get_params() == scorer.get_params()
        assert copy(model, X) == expected
    assert repr(scorer) == (
        "holdout_scorer(exclude_seen=False, holdout=3, metric='map@7', random_state=5)"
    )


# ---------------------------------------------------------------------------------------- pipelines


class Half(TransformerMixin, BaseEstimator):
    """Keep every other column."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X[:, ::2]


def test_pipeline_transforms_what_is_kept(X):
    train, test = X[:160], X[160:]
    kept, hidden = split_entries(test, 0.2, strategy="per-row", random_state=0)
    rows = np.flatnonzero(counts(hidden))
    for step in (MaxAbsScaler(), TfidfTransformer(), "passthrough"):
        pipeline = make_pipeline(step, WALS(4, max_iter=3, random_state=0)).fit(train)
        step, last = pipeline[0], pipeline[-1]
        transform = (lambda X: X) if step == "passthrough" else step.transform
        scores = last.inverse_transform(last.transform(transform(kept)))[rows]
        target = sp.csr_array(transform(test))[rows]
        where = hidden[rows].nonzero()
        error = np.sqrt(np.mean((scores[where] - target[where]) ** 2))
        assert holdout_scorer("neg_rmse")(pipeline, test) == pytest.approx(-error, rel=1e-12)
        scores[kept[rows].nonzero()] = -np.inf
        ranked = np.argsort(-scores, axis=1)[:, :5]
        expected = metrics.ndcg_at_k(hidden[rows], ranked, 5)
        assert holdout_scorer("ndcg@5")(pipeline, test) == pytest.approx(expected, rel=1e-12)
    # TfidfTransformer sees the kept entries only: the norm of a row is theirs.
    assert not np.allclose(TfidfTransformer().fit(train).transform(kept)[rows[0]].data, 1)


def test_pipeline_that_drops_columns(X):
    train, test = X[:160], X[160:]
    last = WALS(4, max_iter=3, random_state=0)
    pipeline = make_pipeline(Half(), last).fit(train)
    kept, hidden = split_entries(test, 0.2, strategy="per-row", random_state=0)
    kept, hidden = kept[:, ::2], hidden[:, ::2]
    rows = np.flatnonzero((counts(kept) > 0) & (counts(hidden) > 0))
    assert 0 < rows.size < np.count_nonzero(counts(hidden))
    scores = last.inverse_transform(last.transform(kept))[rows]
    scores[kept[rows].nonzero()] = -np.inf
    expected = metrics.recall_at_k(hidden[rows], np.argsort(-scores, axis=1)[:, :5], 5)
    assert holdout_scorer("recall@5")(pipeline, test) == pytest.approx(expected, rel=1e-12)
    # The same by a selection of scikit-learn, within a search over it.
    selection = SelectKBest(lambda X, y: np.arange(40) % 2 == 0, k=20)
    pipeline = make_pipeline(selection, last)
    search = GridSearchCV(
        pipeline, {"wals__n_components": [4]}, cv=[(np.arange(160), np.arange(160, 240))]
    )
    search.set_params(scoring=holdout_scorer("recall@5")).fit(X, np.zeros(240))
    assert search.best_score_ == pytest.approx(expected, rel=1e-12)


def in_all_forms(X):
    """Return a matrix in the forms that dense steps take, by name."""
    columns = ["sparse", *(f"item {j}" for j in range(1, X.shape[1]))]  # a name that pandas has
    dense = X.toarray()
    pandas = pd.DataFrame(dense, columns=columns, index=[f"user {i}" for i in range(X.shape[0])])
    return {
        "array": dense,
        "masked": np.ma.masked_equal(dense, 0),
        "pandas": pandas,
        "polars": pl.DataFrame(dense, schema=columns),
        "pyarrow": pa.table(dict(zip(columns, dense.T, strict=True))),
    }


@pytest.mark.parametrize("name", ["ndcg@6", "neg_rmse"])
@pytest.mark.parametrize("form", ["array", "pandas", "polars"])
def test_dense_steps_get_what_is_dense(X, form, name):
    """A scale that all columns share changes no ranking, and errors by itself."""
    X = sp.vstack([X, sp.csr_array(np.full((3, 40), 5.0))])  # so that every maximum is 5
    X = sp.csr_array(X)[np.random.default_rng(0).permutation(243)]
    test = np.array_split(np.arange(243), 3)
    full = np.flatnonzero(counts(X) == 40)
    cv = [(np.union1d(np.setdiff1d(np.arange(243), t), full), np.setdiff1d(t, full)) for t in test]
    last = WALS(4, max_iter=3, random_state=0)
    search = GridSearchCV(last, {"n_components": [2, 4]}, cv=cv, scoring=holdout_scorer(name))
    by_hand = search.fit(X / 5).cv_results_["mean_test_score"]
    for step in (
        MinMaxScaler(),
        MaxAbsScaler(),
        FunctionTransformer(lambda X: np.asarray(X) / 5),
        FunctionTransformer(lambda X: sp.csr_array(np.asarray(X) / 5)),
    ):
        pipeline = make_pipeline(step, last)
        search = GridSearchCV(pipeline, {"wals__n_components": [2, 4]}, cv=cv)
        search.set_params(scoring=holdout_scorer(name), error_score="raise")
        scores = search.fit(in_all_forms(X)[form]).cv_results_["mean_test_score"]
        assert_allclose(scores, by_hand, rtol=1e-9)


@pytest.mark.parametrize("form", ["array", "masked", "pandas", "polars"])
def test_what_a_dense_step_moves_from_zero(X, form):
    train, test = X[:160], X[160:]
    kept, hidden = split_entries(test, 0.2, strategy="per-row", random_state=0)
    rows = np.flatnonzero(counts(hidden))
    pipeline = make_pipeline(StandardScaler(), WALS(4, max_iter=3, random_state=0))
    pipeline.fit(in_all_forms(train)["array" if form == "masked" else form])
    scaler, last = StandardScaler().fit(train.toarray()), pipeline[-1]
    predicted = last.inverse_transform(last.transform(scaler.transform(kept.toarray())))[rows]
    where = hidden[rows].nonzero()
    error = predicted[where] - scaler.transform(test.toarray())[rows][where]
    given_test = in_all_forms(test)[form]
    value = holdout_scorer("neg_rmse")(pipeline, given_test)
    assert value == pytest.approx(-np.sqrt(np.mean(error**2)), rel=1e-9)
    predicted[kept[rows].nonzero()] = -np.inf
    ranked = np.argsort(-predicted, axis=1, kind="stable")[:, :5]
    expected = metrics.ndcg_at_k(hidden[rows], ranked, 5)
    assert holdout_scorer("ndcg@5")(pipeline, given_test) == pytest.approx(expected, rel=1e-9)


def test_columns_are_known_by_name_in_steps(X):
    forms = in_all_forms(X[:160]), in_all_forms(X[160:])
    names = list(forms[0]["pandas"].columns)
    expected = None
    for form in ("pandas", "polars"):
        for output in ("default", "pandas", "polars"):
            select = ColumnTransformer([("half", MinMaxScaler(), names[::2])])
            select.set_output(transform=output)
            pipeline = make_pipeline(select, WALS(4, max_iter=3, random_state=0))
            value = holdout_scorer("recall@5")(pipeline.fit(forms[0][form]), forms[1][form])
            expected = value if expected is None else expected
            assert value == expected > 0


def test_sparse_frames_stay_sparse_in_steps(X):
    frames = [pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(part)) for part in (X[:160], X[160:])]
    pipeline = make_pipeline(MaxAbsScaler(), WALS(4, max_iter=3, random_state=0))
    expected = holdout_scorer("ndcg@5")(clone(pipeline).fit(X[:160]), X[160:])
    assert holdout_scorer("ndcg@5")(pipeline.fit(frames[0]), frames[1]) == expected


@pytest.mark.parametrize("form", ["pandas", "polars", "pyarrow"])
def test_frames_keep_their_names(X, form):
    """Any warning, as that X has no feature names, is an error here."""
    frame, last = in_all_forms(X)[form], WALS(4, max_iter=3, random_state=0)
    scorer = holdout_scorer("ndcg@6")
    model = clone(last).fit(frame)
    assert_array_equal(model.feature_names_in_, ["sparse", *(f"item {j}" for j in range(1, 40))])
    assert scorer(model, frame) == scorer(clone(last).fit(X), X)
    if form != "pyarrow":  # scikit-learn cannot index these
        scores = cross_val_score(last, frame, cv=3, scoring=scorer, error_score="raise")
        assert_array_equal(scores, cross_val_score(last, X, cv=3, scoring=scorer))


def test_pipelines_and_searches_in_each_other(X, model):
    scorer = holdout_scorer("ndcg@5")
    inner = GridSearchCV(model, {"n_components": [4]}, cv=2, scoring=scorer)
    nested = make_pipeline("passthrough", make_pipeline(None, inner)).fit(X[:160])
    assert scorer(nested, X[160:]) == scorer(model, X[160:])
    flat = make_pipeline(MaxAbsScaler(), TfidfTransformer(), model).fit(X[:160])
    nested = make_pipeline(flat[0], make_pipeline(flat[1], flat[2]))
    assert scorer(nested, X[160:]) == scorer(flat, X[160:])
    assert_array_equal(
        cross_val_score(inner, X, cv=3, scoring=scorer),
        cross_val_score(model, X, cv=3, scoring=scorer),
    )


def test_other_estimators_with_components(X):
    svd = TruncatedSVD(4, random_state=0).fit(X)
    assert 0.1 < holdout_scorer("ndcg@5")(svd, X) < 1


# ----------------------------------------------------------------------------------------- searches

GRID = {"n_components": [2, 4, 32]}


@pytest.fixture(scope="module")
def planted():
    """Rows of a mixture of 4 topics, for which 32 components are far too many."""
    X = make_interactions(600, 120, 9_000, n_topics=4, random_state=0)
    return X, WALS(regularization=0.5, random_state=0)


def test_search_finds_the_planted_rank_where_score_does_not(planted):
    X, model = planted
    assert GridSearchCV(model, GRID, cv=3).fit(X).best_params_ == {"n_components": 32}
    scoring = {name: holdout_scorer(name) for name in ("ndcg@20", "recall@20", "neg_rmse")}
    search = GridSearchCV(model, GRID, cv=3, scoring=scoring, refit="ndcg@20").fit(X)
    assert search.best_params_ == {"n_components": 4}
    for name in scoring:
        few, right, many = search.cv_results_[f"mean_test_{name}"]
        assert right > few + 0.003
        assert right > many + 0.05
    assert search.score(X) == scoring["ndcg@20"](search.best_estimator_, X)


def test_search_is_the_same_in_processes(planted):
    X, model = planted
    scorer = holdout_scorer("ndcg@20")
    scores = [
        GridSearchCV(model, GRID, cv=2, scoring=scorer, n_jobs=n, refit=False)
        .fit(X[:200])
        .cv_results_["mean_test_score"]
        for n in (1, 2)
    ]
    assert_array_equal(*scores)


def test_all_candidates_get_the_same_split(planted, monkeypatch):
    X, model = planted
    split, hidden = model_selection.split_entries, []

    def spy(*args, **kwargs):
        parts = split(*args, **kwargs)
        hidden.append(entries(parts[1]))
        return parts

    monkeypatch.setattr(model_selection, "split_entries", spy)
    scoring = holdout_scorer("ndcg@20")
    GridSearchCV(model, {"n_components": [1, 2]}, cv=2, scoring=scoring, refit=False).fit(X)
    first, second, again, another = hidden
    assert first == again
    assert second == another
    assert first != second


def test_cross_val_score(planted):
    X, model = planted
    model = clone(model).set_params(n_components=4)
    scorer = holdout_scorer("recall@10")
    scores = cross_val_score(model, X, cv=3, scoring=scorer, error_score="raise")
    for score, (train, test) in zip(scores, KFold(3).split(X), strict=True):
        assert score == scorer(clone(model).fit(X[train]), X[test])


@pytest.mark.parametrize(
    "resource", [{"resource": "max_iter", "min_resources": 4, "max_resources": 8}, {}]
)
def test_halving_search(planted, resource):
    X, model = planted
    search = HalvingGridSearchCV(
        model,
        GRID | {"regularization": [0.5, 50.0]},
        cv=2,
        scoring=holdout_scorer("ndcg@20"),
        factor=2,
        random_state=0,
        error_score="raise",
        **resource,
    ).fit(X)
    assert search.n_iterations_ >= 2
    assert search.best_params_["n_components"] == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.fixture
def weighted(X):
    """Weights of rows, and of entries in CSR, that change what is learnt a lot."""
    rng = np.random.default_rng(0)
    entry_weights = X.copy()
    entry_weights.data = rng.uniform(0.1, 9, size=X.nnz)
    return rng.uniform(0.1, 9, size=240), entry_weights


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix, sp.coo_array, sp.csr_array.toarray])
def test_metadata_routing_slices_weights(X, model, weighted, kind):
    row_weights, entry_weights = weighted
    with sklearn.config_context(enable_metadata_routing=True):
        model = clone(model).set_fit_request(row_weights=True, entry_weights=True)
        scorer = holdout_scorer("ndcg@6").set_score_request(row_weights=True)
        metadata = {"row_weights": row_weights, "entry_weights": kind(entry_weights)}
        searches = [
            GridSearchCV(estimator, {}, cv=3, scoring=scoring, error_score="raise", **refit)
            for estimator in (model, make_pipeline("passthrough", model))
            for scoring, refit in ((scorer, {}), ({"score": scorer}, {"refit": "score"}))
        ]
        iterations = {"resource": "max_iter", "min_resources": 3, "max_resources": 3}
        searches.append(HalvingGridSearchCV(model, {}, cv=3, scoring=scorer, **iterations))
        expected = []
        for train, test in KFold(3).split(X):
            fitted = clone(model).fit(
                X[train], row_weights=row_weights[train], entry_weights=entry_weights[train]
            )
            score = scorer(fitted, X[test], row_weights=row_weights[test])
            # Each of the weights makes a difference.
            assert score != scorer(fitted, X[test])
            assert score != scorer(
                clone(model).fit(X[train], row_weights=row_weights[train]),
                X[test],
                row_weights=row_weights[test],
            )
            expected.append(score)
        for search in searches:
            search = clone(search).fit(X, **metadata)
            for fold, score in enumerate(expected):
                assert search.cv_results_[f"split{fold}_test_score"][0] == score
            assert search.score(X, row_weights=row_weights) == scorer(
                search.best_estimator_, X, row_weights=row_weights
            )
        scores = cross_val_score(model, X, cv=3, scoring=scorer, params=metadata)
        assert scores[-1] == expected[-1]


def test_row_weights_have_to_be_requested(X, model, weighted):
    row_weights, _ = weighted
    scorer = holdout_scorer("ndcg@6")
    assert scorer.get_metadata_routing().score.requests == {"row_weights": None}
    with sklearn.config_context(enable_metadata_routing=True):
        model = clone(model).set_fit_request(row_weights=True)
        search = GridSearchCV(model, {}, cv=3, scoring=scorer)
        with pytest.raises(UnsetMetadataPassedError, match="holdout_scorer"):
            search.fit(X, row_weights=row_weights)
        scorer.set_score_request(row_weights=False)
        search.fit(X, row_weights=row_weights)
        scorer.set_score_request(row_weights="projection_weights")
        renamed = clone(search).fit(X, row_weights=row_weights, projection_weights=row_weights)
    train, test = next(KFold(3).split(X))
    fitted = clone(model).fit(X[train], row_weights=row_weights[train])
    assert search.cv_results_["split0_test_score"][0] == scorer(fitted, X[test])
    weighted_score = scorer(fitted, X[test], row_weights=row_weights[test])
    assert renamed.cv_results_["split0_test_score"][0] == weighted_score


def test_without_routing_weights_reach_fit_alone(X, model, weighted):
    row_weights, entry_weights = weighted
    scorer = holdout_scorer("ndcg@6")
    search = GridSearchCV(model, {}, cv=3, scoring=scorer, error_score="raise")
    search.fit(X, row_weights=row_weights, entry_weights=entry_weights)
    for fold, (train, test) in enumerate(KFold(3).split(X)):
        fitted = clone(model).fit(
            X[train], row_weights=row_weights[train], entry_weights=entry_weights[train]
        )
        assert search.cv_results_[f"split{fold}_test_score"][0] == scorer(fitted, X[test])
