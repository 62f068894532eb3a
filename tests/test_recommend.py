"""recommend, similar and explain against plain products."""

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal

from wals import WALS
from wals._core import ranking
from wals._core.ranking import rank, round_factors
from wals.weights import power_law

DTYPES = [np.float32, np.float64]


def best(scores, n):
    """Return the n best of every row by sorting all of it; -inf is left out."""
    columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.lexsort((columns, -scores), axis=1)[:, :n]
    values = np.take_along_axis(scores, order, axis=1)
    order[np.isneginf(values)] = -1
    missing = ((0, 0), (0, n - order.shape[1]))
    return (
        np.pad(order, missing, constant_values=-1),
        np.pad(values, missing, constant_values=-np.inf),
    )


def scores_of(U, V, *, columns=None, seen=None, given=None):
    scores = (U.astype(np.float64) @ V.astype(np.float64).T).astype(U.dtype)
    if given is not None:
        scores[given.toarray() == 0] = -np.inf
    elif columns is None:
        scores[:, ~V.any(axis=1)] = -np.inf
    else:
        scores[:, np.setdiff1d(np.arange(len(V)), columns)] = -np.inf
    if seen is not None:
        scores[seen.toarray() != 0] = -np.inf
    return scores


def integers(q, m, k, dtype, seed=0):
    """Return factors of small integers, whose products are exact and often equal."""
    rng = np.random.default_rng(seed)
    U, V = (rng.integers(-4, 5, size=(n, k)).astype(dtype) for n in (q, m))
    V *= rng.integers(0, 4, size=(m, 1)).astype(dtype)
    return U, V


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q", [1, 7, ranking._FEW - 1, ranking._FEW, 200])
@pytest.mark.parametrize(("m", "k", "n"), [(300, 5, 10), (3000, 16, 20), (70, 40, 90), (257, 1, 3)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_rank_is_exact_with_ties(q, m, k, n, dtype, n_threads):
    U, V = integers(q, m, k, dtype)
    seen = sp.random(q, m, 0.1, format="csr", rng=np.random.default_rng(0))
    seen.sort_indices()
    columns = np.random.default_rng(1).permutation(m)[: m // 2]
    for chosen in (None, columns):
        for left_out in (None, seen):
            expected = best(scores_of(U, V, columns=chosen, seen=left_out), n)
            for rounded in (None, lambda: round_factors(V)):
                ranked, scores = rank(
                    U, V, n, columns=chosen, seen=left_out, rounded=rounded, n_threads=n_threads
                )
                assert_array_equal(ranked, expected[0])
                assert_array_equal(scores, expected[1])
                assert (ranked.dtype, scores.dtype) == (np.int64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.3, 3.0])
def test_rank_rules_out_nothing_that_belongs(dtype, decay, monkeypatch):
    """Spectra from flat to steep, norms from equal to heavy-tailed, pieces of all sizes."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, 33) ** -decay
    U = (rng.normal(size=(150, 32)) * spectrum).astype(dtype)
    V = rng.normal(size=(2000, 32)) * spectrum
    for norms in (1, rng.pareto(1, size=(2000, 1)), 1e-20, 1e15):
        W = (V * norms).astype(dtype)
        expected, _ = best(scores_of(U, W), 20)
        for n_columns, n_rows in ((2**15, 2**14), (256, 100), (512, 48)):
            monkeypatch.setattr(ranking, "_COLUMNS", n_columns)
            monkeypatch.setattr(ranking, "_BATCH", n_rows)
            ranked, scores = rank(U, W, 20, n_threads=2)
            products = np.einsum("ijk,ik->ij", W[ranked].astype(np.float64), U.astype(np.float64))
            # Rounded once, after a sum in float64 in whatever order.
            lengths = np.linalg.norm(U, axis=1, keepdims=True) * np.linalg.norm(W[ranked], axis=2)
            error = np.abs(scores - products) - np.finfo(dtype).eps * np.abs(products)
            assert np.all(error <= 32 * np.finfo(np.float64).eps * lengths)
            # Sums in another order may differ in the last bit, and so may what is nearly equal.
            assert np.mean(ranked == expected) > 0.999
            assert np.all(np.diff(scores, axis=1) <= 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1e-40, 1e-20, 1.0, 1e15, 1e18])
@pytest.mark.parametrize("tails", [None, 0.3, 3])
def test_rounded_factors_rule_out_nothing_that_belongs(dtype, norm, tails):
    rng = np.random.default_rng(0)
    U, V = rng.normal(size=(30, 19)).astype(dtype), rng.normal(size=(3001, 19))
    V *= norm * (1 if tails is None else rng.pareto(tails, size=V.shape).clip(0, 1e3))
    V[::7] = 0
    V = V.astype(dtype)
    rounded = round_factors(V)
    off = V @ U.T.astype(np.float64)
    off -= (rounded.steps[:3001, None] * rounded.codes[:3001, :19].astype(dtype)) @ U.T
    some = V.any(axis=1)
    assert_array_equal(rounded.errors >= 0, np.append(some, np.zeros(7, bool)))
    lengths = np.linalg.norm(U.astype(np.float64), axis=1)
    assert np.all(np.abs(off[some]) <= rounded.errors[:3001][some, None] * lengths)
    expected = rank(U, V, 20, n_threads=1)
    for ours, theirs in zip(
        rank(U, V, 20, rounded=lambda: rounded, n_threads=2), expected, strict=True
    ):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rounded", [None, round_factors])
def test_rank_at_the_ends_of_the_range(rounded):
    U = np.float32([[1e-30, 0], [0, 1e30]])
    V = np.float32([[1e-30, 0], [0, 0], [1e-25, 1e5], [0, 1e-25]])
    ranked, scores = rank(U, V, 3, rounded=rounded and (lambda: rounded(V)), n_threads=1)
    assert_array_equal(ranked, [[0, 2, 3], [2, 3, 0]])
    assert_array_equal(scores[1], np.float32([1e35, 1e5, 0]))


@pytest.mark.parametrize("q", [1, 60])
def test_rank_of_columns_by_row(q):
    U, V = integers(q, 90, 8, np.float32)
    given, seen = (
        sp.random(q, 90, density, format="csr", rng=np.random.default_rng(seed))
        for seed, density in enumerate((0.2, 0.1))
    )
    for matrix in (given, seen):
        matrix.sort_indices()
    ranked, scores = rank(U, V, 7, columns=given, seen=seen, n_threads=2)
    expected = best(scores_of(U, V, given=given, seen=seen), 7)
    assert_array_equal(ranked, expected[0])
    assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_rank_of_nothing(shape):
    q, m = shape
    ranked, scores = rank(np.ones((q, 3)), np.ones((m, 3)), 2, n_threads=1)
    assert_array_equal(ranked, np.full((q, 2), -1))
    assert_array_equal(scores, np.full((q, 2), -np.inf))


# ---------------------------------------------------------------------------------- the estimator


@pytest.fixture(scope="module", params=DTYPES)
def fitted(request):
    X = sp.random(120, 80, 0.08, format="csr", dtype=request.param, rng=np.random.default_rng(0))
    X = sp.csr_array(X @ sp.diags_array(~np.isin(np.arange(80), [3, 50]), dtype=request.param))
    X.eliminate_zeros()
    weights = np.linspace(0.5, 2, 80)
    model = WALS(8, col_weights=weights, regularization=0.5, max_iter=4, random_state=0)
    return model.fit(X, row_weights=np.linspace(1, 2, 120)), X


def test_recommend(fitted):
    model, X = fitted
    V = model.components_.T
    for q in (1, 120):
        weights = np.linspace(0.5, 3, q)
        U = model.transform(X[:q], weights=weights)
        indices, scores = model.recommend(X[:q], weights=weights)
        ranked, expected = best(scores_of(U, V, seen=X[:q]), 10)
        assert np.mean(indices == ranked) > 0.999
        assert_allclose(scores, expected, rtol=1e-5)
        assert not np.isin(indices, [3, 50]).any()
        again = model.recommend(None, factors=U, exclude_seen=X[:q])
        assert_array_equal(again[0], indices)
        assert_array_equal(again[1], scores)
        more, _ = model.recommend(X[:q], weights=weights, exclude_seen=False)
        assert np.any(X[:q].toarray()[np.arange(q)[:, None], more] > 0)
        assert_array_equal(model.recommend(None, factors=U)[0], more)


def test_recommend_candidates(fitted):
    model, X = fitted
    everything = X.shape[1]
    # By name, what has no factor is recommended too, and each once.
    indices, scores = model.recommend(X[:3], 5, candidates=[50, 3, 3, 7], exclude_seen=False)
    assert_array_equal(np.sort(indices, axis=1), [[-1, -1, 3, 7, 50]] * 3)
    assert_array_equal(scores[indices == 3], [0, 0, 0])
    assert np.all(np.isneginf(scores[indices == -1]))
    mask = np.zeros(everything, bool)
    mask[[50, 3, 7]] = True
    assert_array_equal(model.recommend(X[:3], 5, candidates=mask, exclude_seen=False)[0], indices)
    assert_array_equal(model.recommend(X[:3], 5, candidates=[])[0], np.full((3, 5), -1))
    stocked = sp.csc_matrix(([1, 0, 1, 1], ([0, 0, 1, 1], [3, 9, 4, 5])), shape=(3, everything))
    indices, _ = model.recommend(X[:3], 2, candidates=stocked, exclude_seen=False)
    assert_array_equal(np.sort(indices, axis=1), [[3, 9], [4, 5], [-1, -1]])
    # A stored zero is a position, and one row's positions are not another's.
    shown = sp.coo_array(([0, 1], ([0, 1], [9, 4])), shape=(3, everything))
    indices, _ = model.recommend(X[:3], 2, candidates=stocked, exclude_seen=shown)
    assert_array_equal(np.sort(indices, axis=1), [[-1, 3], [-1, 5], [-1, -1]])


def test_recommend_more_than_there_is(fitted):
    model, X = fitted
    indices, scores = model.recommend(X[:60], 200)
    assert indices.shape == scores.shape == (60, 200)
    for row, places in enumerate(indices):
        seen = X[[row]].indices
        assert set(places[places >= 0]) == set(range(80)) - set(seen) - {3, 50}
        assert np.all(np.isneginf(scores[row][places == -1]))


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_recommend_in_batches(fitted, batch, monkeypatch):
    model, X = fitted
    expected = model.recommend(X, weights=2.0)
    monkeypatch.setattr("wals._recommend._BATCH", batch)
    for one, other in zip(model.recommend(X, weights=2.0), expected, strict=True):
        assert_array_equal(one, other)


def ranked_by_hand(U, V, n, allowed, left_out):
    """Score every pair, one by one, and sort."""
    ranked, scores = [], []
    for i, u in enumerate(U.tolist()):
        pairs = sorted(
            (-sum(a * b for a, b in zip(u, V[j].tolist(), strict=True)), j)
            for j in allowed[i] - left_out[i]
        )[:n]
        missing = n - len(pairs)
        ranked.append([j for _, j in pairs] + [-1] * missing)
        scores.append([-score for score, _ in pairs] + [-np.inf] * missing)
    return np.array(ranked), np.array(scores)


@pytest.mark.parametrize("seed", range(50))
def test_recommend_equals_a_ranking_by_hand(seed):
    """Shapes of all kinds; ties, columns of zeros, rows that have nothing or everything."""
    rng = np.random.default_rng(seed)
    q, m, k = (int(rng.integers(1, most)) for most in (130, 90, 12))
    n, dtype = int(rng.integers(1, m + 20)), DTYPES[seed % 2]
    U, V = integers(q, m, k, dtype, seed)
    X = rng.random((q, m)) < rng.choice([0.0, 0.2, 1.0], size=(q, 1))
    seen = [set(np.flatnonzero(row).tolist()) for row in X]
    X = sp.csr_array(X.astype(dtype))
    X.data[::3] = 0  # stored all the same
    if seed % 3 == 0:
        X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    for array in (U, V, X.data, X.indices, X.indptr):
        array.flags.writeable = False
    model = WALS(k)
    model.components_, model.n_features_in_ = V.T, m
    everything = [set(np.flatnonzero(V.any(axis=1)).tolist())] * q
    nothing = [set()] * q
    some = rng.permutation(m)[: m // 2 + 1]
    given = rng.random((q, m)) < 0.3
    of_rows = [set(np.flatnonzero(row).tolist()) for row in given]
    for candidates, allowed in (
        (None, everything),
        (some, [set(some.tolist())] * q),
        (np.isin(np.arange(m), some), [set(some.tolist())] * q),
        (sp.coo_array(given), of_rows),
    ):
        for exclude_seen, left_out in (
            (True, seen),
            (False, nothing),
            (sp.coo_array(given), of_rows),
        ):
            found = model.recommend(
                X, n, factors=U, candidates=candidates, exclude_seen=exclude_seen
            )
            expected = ranked_by_hand(U, V, n, allowed, left_out)
            assert_array_equal(found[0], expected[0])
            assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1"),
        ({"n": 2.0}, "n must be an integer"),
        ({"n": True}, "n must be an integer"),
        ({"X": None}, "X is None, and so are factors"),
        ({"factors": np.ones((2, 8))}, "X has 3 rows, but factors have 2"),
        ({"factors": np.ones((3, 7))}, "factors have 7 columns, but WALS has 8 components"),
        ({"factors": np.full((3, 8), np.nan)}, "NaN"),
        ({"factors": np.ones((3, 8)), "weights": 1.0}, "nothing is projected"),
        ({"exclude_seen": "yes"}, "exclude_seen must be True, False or a sparse matrix"),
        ({"exclude_seen": sp.eye_array(80)}, "exclude_seen has shape"),
        ({"candidates": sp.eye_array(80)}, "candidates has shape"),
        ({"candidates": [80]}, "candidates must be from 0 to 79"),
        ({"candidates": [-1]}, "candidates must be from 0 to 79"),
        ({"candidates": [0.5]}, "candidates must be integers"),
        ({"candidates": np.ones(79, bool)}, "candidates has shape"),
        ({"candidates": np.ones((3, 80), int)}, "candidates must be numbers of columns"),
        ({"X": sp.csr_array((3, 79))}, "79 features"),
        ({"weights": [1.0]}, "weights has shape"),
    ],
)
def test_recommend_refuses(fitted, arguments, message):
    model, X = fitted
    with pytest.raises(ValueError, match=message):
        model.recommend(**{"X": X[:3], **arguments})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_similar(fitted, axis, metric):
    model, _ = fitted
    V = (model.row_factors_ if axis == 0 else model.col_factors_).astype(np.float64)
    if metric == "cosine":
        V = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), 1e-300)
    scores = V @ V.T
    np.fill_diagonal(scores, -np.inf)
    empty = ~V.any(axis=1)
    scores[:, empty] = scores[empty] = -np.inf
    ranked, expected = best(scores, 10)
    for wanted in (np.arange(len(V)), [5, 3, 5]):
        indices, values = model.similar(wanted, axis=axis, metric=metric)
        assert np.mean(indices == ranked[wanted]) > 0.99
        assert_allclose(values, expected[wanted], rtol=1e-4, atol=1e-6)
    if axis == 1:
        assert_array_equal(model.similar(3)[0], np.full(10, -1))
    single = model.similar(5, 4, axis=axis, metric=metric)
    assert_array_equal(single[0], indices[0][:4])
    assert_array_equal(single[1], values[0][:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 80}, "indices must be from 0 to 79"),
        ({"indices": [-1]}, "indices must be from 0 to 79"),
        ({"indices": 1.0}, "indices must be integers"),
        ({"indices": [[1]]}, "indices must be a number or a list"),
        ({"metric": "euclidean"}, "metric must be"),
        ({"axis": 2}, "axis must be"),
        ({"n": -1}, "n must be an integer"),
    ],
)
def test_similar_refuses(fitted, arguments, message):
    model, _ = fitted
    with pytest.raises(ValueError, match=message):
        model.similar(**{"indices": 0, **arguments})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("w0", [0.0, 0.2])
def test_explain(dtype, implicit, exponent, w0):
    X = sp.random(60, 40, 0.2, format="csr", dtype=dtype, rng=np.random.default_rng(0))
    C = np.linspace(0.5, 2, 40)
    model = WALS(
        6,
        unobserved_weight=w0,
        implicit=implicit,
        regularization=0.1,
        regularization_exponent=exponent,
        col_weights=C,
        max_iter=3,
        random_state=0,
    ).fit(X)
    x, column, weight = X[[4]], 11, 1.7
    indices, contributions = model.explain(x, column, n=99, weight=weight)
    assert set(indices) == set(x.indices)
    assert np.all(np.diff(np.abs(contributions)) <= 0)
    score = model.transform(x, weights=weight)[0].astype(np.float64) @ model.components_[:, column]
    assert_allclose(contributions.sum(), score, rtol=100 * np.finfo(dtype).eps)
    # What the score would be if one entry alone had its target: the sum is linear in targets.
    V = model.col_factors_.astype(np.float64)
    e = weight * C[x.indices] * (x.data if implicit else 1)
    targets = np.ones(x.nnz) if implicit else x.data
    w = np.full(40, w0)
    w[x.indices] += e
    M = V.T @ (w[:, None] * V) + 0.1 * w.sum() ** exponent * np.eye(6)
    expected = (V[column] @ np.linalg.solve(M, V[x.indices].T)) * w[x.indices] * targets
    order = np.argsort(-np.abs(expected))
    assert_array_equal(indices, x.indices[order])
    assert_allclose(contributions, expected[order], rtol=1e-6)
    few = model.explain(x.toarray(), np.int32(column), n=2, weight=weight)
    assert_array_equal(few[0], indices[:2])


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("w0", [0.0, 0.2])
def test_contributions_add_up_to_scores(implicit, exponent, w0):
    """With weights of rows, columns and entries; those of entries are of the fit alone."""
    rng = np.random.default_rng(0)
    X = sp.random(40, 30, 0.3, format="csr", rng=rng)
    E = X.copy()
    E.data = rng.uniform(0.1, 3, size=E.nnz)
    R = rng.uniform(0.2, 5, size=40)
    model = WALS(
        5,
        unobserved_weight=w0,
        observed_weight=1.3,
        col_weights=power_law(-0.5),
        regularization=0.2,
        regularization_exponent=exponent,
        implicit=implicit,
        max_iter=3,
        random_state=0,
    ).fit(X, row_weights=R, entry_weights=E)
    V, C = model.components_.T, power_law(-0.5)(np.bincount(X.indices, minlength=30))
    for i in range(0, 40, 7):
        # The row by its definition: the minimiser of its weighted squared error.
        a, w = X[[i]].toarray()[0], np.full(30, w0)
        w[X[[i]].indices] += 1.3 * R[i] * (C * (a if implicit else 1))[X[[i]].indices]
        target = (a > 0) * 1.0 if implicit else a
        M = V.T @ (w[:, None] * V) + 0.2 * w.sum() ** exponent * np.eye(5)
        scores = V @ np.linalg.solve(M, V.T @ (w * target))
        for column in range(30):
            _, contributions = model.explain(X[[i]], column, n=30, weight=R[i])
            assert_allclose(contributions.sum(), scores[column], rtol=1e-10, atol=1e-10)


def test_explain_singular_and_empty():
    X = sp.csr_array([[1.0, 2, 0, 0], [0, 1, 0, 3], [1, 0, 1, 0]])
    model = WALS(3, unobserved_weight=0.0, regularization=0.0, max_iter=2, random_state=0)
    with pytest.warns(Warning, match="singular"):
        model.fit(X)
    with pytest.warns(Warning, match="singular"):
        U = model.transform(X[[0]])
    _, contributions = model.explain(X[[0]], 3)
    assert_allclose(contributions.sum(), U[0] @ model.components_[:, 3], rtol=1e-8)
    indices, contributions = model.explain(sp.csr_array((1, 4)), 0)
    assert indices.size == contributions.size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": sp.csr_array((2, 80))}, "x must be one row"),
        ({"column": 80}, "column must be from 0 to 79"),
        ({"column": [1]}, "column must be one number"),
        ({"column": 1.5}, "column must be integers"),
        ({"n": 0}, "n must be"),
        ({"weight": -1.0}, "Negative weight"),
    ],
)
def test_explain_refuses(fitted, arguments, message):
    model, X = fitted
    with pytest.raises(ValueError, match=message):
        model.explain(**{"x": X[[0]], "column": 1, **arguments})
