"""Recommender: tables and ids in, tables and ids out."""

import datetime
import pickle
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from wals import WALS, Recommender
from wals.interactions import read_interactions
from wals.weights import power_law

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
UTC = datetime.UTC


def draw(n=600, n_users=40, n_items=25, seed=0):
    """Interactions of which some pairs are there twice, at different times."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "who": [f"u{i}" for i in random.integers(n_users, size=n)],
            "what": 3 * random.integers(n_items, size=n),
            "stars": random.integers(1, 6, size=n).astype(float),
            "when": random.permutation(n),
        }
    )


@pytest.fixture
def frame():
    return draw()


@pytest.fixture
def model():
    return make()


def make(aggregate="mean", **params):
    estimator = WALS(4, regularization=0.1, max_iter=3, random_state=0, n_jobs=1)
    columns = {"user": "who", "item": "what", "value": "stars", "time": "when"}
    return Recommender(**({"estimator": estimator, "aggregate": aggregate} | columns | params))


def make_ratings(**params):
    estimator = WALS(4, unobserved_weight=0, regularization=1, random_state=0, n_jobs=1)
    return make(estimator=estimator, biases=True, **params)


def rows(table):
    """The rows of any table as tuples."""
    if isinstance(table, np.ndarray):
        return table.tolist()
    if isinstance(table, pa.Table):
        table = pl.from_arrow(table)
    if isinstance(table, pl.DataFrame):
        return table.rows()
    return list(table.itertuples(index=False, name=None))


def as_records(frame):
    return frame.to_records(index=False)


TABLES = {
    "pandas": lambda frame: frame,
    "pandas object": lambda frame: frame.astype({"who": object, "what": object}),
    "pandas categorical": lambda frame: frame.astype({"who": "category", "what": "category"}),
    "pandas nullable": lambda frame: frame.convert_dtypes(),
    "polars": pl.from_pandas,
    "polars lazy": lambda frame: pl.from_pandas(frame).lazy(),
    "polars categorical": lambda frame: pl.from_pandas(frame).cast({"who": pl.Categorical}),
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "pyarrow dictionary": lambda frame: pa.Table.from_pandas(
        frame.astype({"who": "category", "what": "category"}), preserve_index=False
    ),
    "records": as_records,
    "array": lambda frame: frame.to_numpy(object),
    "tuples": lambda frame: list(frame.itertuples(index=False, name=None)),
}
ANSWERS = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.Table}


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("kind", TABLES)
def test_tables_give_the_same_model(kind, frame):
    expected = make().fit(frame)
    table = TABLES[kind](frame)
    by_position = {"user": 0, "item": 1, "value": 2, "time": 3}
    model = make(**(by_position if kind in ("array", "tuples") else {})).fit(table)
    assert model.users_.tolist() == sorted(set(frame["who"]))
    assert model.items_.tolist() == sorted(set(frame["what"]))
    assert_array_equal(model.interactions_.toarray(), expected.interactions_.toarray())
    assert_array_equal(model.estimator_.components_, expected.estimator_.components_)
    assert_array_equal(model.predict(table), expected.predict(frame))
    assert model.n_features_in_ == 4
    assert hasattr(model, "feature_names_in_") == (kind not in ("array", "tuples"))
    answers = [
        model.recommend(["u1", "u3"], n=3),
        model.similar([3, 6], n=2),
        model.explain("u1", 3, n=4),
    ]
    expected = [
        expected.recommend(["u1", "u3"], n=3),
        expected.similar([3, 6], n=2),
        expected.explain("u1", 3, n=4),
    ]
    for answer, right in zip(answers, expected, strict=True):
        assert isinstance(answer, ANSWERS.get(kind.split()[0], np.recarray))
        assert rows(answer) == rows(right)
        if kind.split()[0] in ANSWERS:
            names = answer.column_names if isinstance(answer, pa.Table) else list(answer.columns)
            assert names == list(right.columns)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "last", "count"])
def test_the_order_of_rows_does_not_matter(kind, aggregate, frame):
    by_position = {"user": 0, "item": 1, "value": 2, "time": 3}
    model = make(aggregate, **(by_position if kind in ("array", "tuples") else {}))
    expected = clone(model).fit(TABLES[kind](frame))
    for seed in range(3):
        table = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
        model.fit(TABLES[kind](table))
        assert_array_equal(model.users_, expected.users_)
        assert_array_equal(model.items_, expected.items_)
        assert_array_equal(model.interactions_.toarray(), expected.interactions_.toarray())
        assert_array_equal(model.estimator_.row_factors_, expected.estimator_.row_factors_)
        assert_array_equal(model.estimator_.components_, expected.estimator_.components_)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "last", "count"])
def test_aggregates(aggregate, frame):
    model = make(aggregate).fit(frame)
    ordered = frame.sort_values("when").groupby(["who", "what"])["stars"]
    expected = getattr(ordered, aggregate)().unstack()
    assert model.users_.tolist() == expected.index.tolist()
    assert model.items_.tolist() == expected.columns.tolist()
    assert_allclose(model.interactions_.toarray(), expected.fillna(0).to_numpy(), rtol=1e-6)
    assert model.interactions_.nnz == expected.count().sum() < len(frame)


def test_values_of_y_and_none(frame, model):
    assert_array_equal(
        clone(model).set_params(value=None).fit(frame, frame["stars"]).interactions_.toarray(),
        model.fit(frame).interactions_.toarray(),
    )
    # y takes the place of the column, and without either each interaction counts 1.
    tripled = clone(model).fit(frame, 3 * frame["stars"])
    assert_allclose(tripled.interactions_.data, 3 * model.interactions_.data, rtol=1e-6)
    counted = make("sum", value=None).fit(frame)
    assert counted.interactions_.sum() == len(frame)


def test_same_as_a_file(frame, tmp_path):
    frame.to_csv(tmp_path / "stars.csv", index=False, header=["user", "item", "rating", "time"])
    for aggregate in ("sum", "mean", "max", "last", "count"):
        model = make(aggregate).fit(frame)
        X, users, items = read_interactions(tmp_path / "stars.csv", aggregate=aggregate)
        assert_array_equal(model.users_, users)
        assert_array_equal(model.items_, items)
        assert_array_equal(model.interactions_.toarray(), X.toarray())


IDS = {
    "strings": ["b", "a", "", "é", "aa"],
    "strings with NUL": ["a", "a\0", "\0", "b"],
    "long and short": ["x" * 5000, *(f"{i}" for i in range(40))],
    "int64": [2**63 - 1, 2**63 - 2, -(2**63), 0],
    "uint64": [2**64 - 1, 2**64 - 2, 2**63, 1],
    "huge ints": [2**70, -(2**70), 5],
    "floats": [0.5, -1.5, 1e300],
    "bools": [True, False],
    "bytes": [b"b", b"a", b"a\0"],
    "uuid": [uuid.UUID(int=i) for i in (2**127, 3, 1)],
    "tuples": [("b", 1), ("a", 2), ("a", 1)],
    "dates": [datetime.date(2024, 2, 29), datetime.date(1969, 1, 1)],
    "datetimes": [datetime.datetime(2024, 2, 29, 1), datetime.datetime(1969, 1, 1, 0, 0, 0, 1)],
    "aware": [
        datetime.datetime(2024, 2, 29, tzinfo=UTC),
        datetime.datetime(1969, 1, 1, tzinfo=UTC),
    ],
    "mixed": ["a", 1, ("a", 1), b"a", 2.5],
    "sets": [frozenset("ab"), frozenset("c"), frozenset("abc")],
}


def as_objects(columns):
    """An array of objects, which NumPy makes of tuples only one by one."""
    table = np.empty((len(columns["user"]), len(columns)), object)
    for place, values in enumerate(columns.values()):
        for row, value in enumerate(values):
            table[row, place] = value
    return table


CLASSES = {
    "pandas": lambda columns: pd.DataFrame(columns),
    "polars": lambda columns: pl.DataFrame(columns, strict=False),
    "pyarrow": lambda columns: pa.table(
        {name: pa.array(of, pa.uint64()) if 2**64 - 1 in of else of for name, of in columns.items()}
    ),
    "array": as_objects,
    "tuples": lambda columns: list(zip(*columns.values(), strict=True)),
}
#: What a library cannot hold in a column.
HOLDS_NOT = {
    ("polars", "huge ints"),  # as 128-bit integers, which NumPy does not have
    ("polars", "mixed"),
    ("polars", "sets"),
    ("pyarrow", "huge ints"),
    ("pyarrow", "mixed"),
    ("pyarrow", "tuples"),
    ("pyarrow", "sets"),
    ("pyarrow", "uuid"),
}


@pytest.mark.parametrize(
    "library, kind",
    [(lib, kind) for lib in CLASSES for kind in IDS if (lib, kind) not in HOLDS_NOT],
)
def test_ids(library, kind):
    ids = IDS[kind]
    q = len(ids)
    columns = {"user": [ids[i % q] for i in range(2 * q)], "item": [0] * q + [1] * q}
    if library == "polars" and kind == "tuples":
        ids = [(a, str(b)) for a, b in ids]
        columns["user"] = [list(ids[i % q]) for i in range(2 * q)]
    if kind in ("long and short", "strings"):
        columns = {name: values[::-1] for name, values in columns.items()}
    model = Recommender(WALS(1, random_state=0, n_jobs=1)).fit(CLASSES[library](columns))
    try:
        expected = sorted(ids)
        assert all(a < b for a, b in pairwise(expected))
    except (TypeError, AssertionError):
        expected = sorted(ids, key=lambda x: (type(x).__name__, repr(x)))
    assert model.users_.tolist() == expected
    assert_array_equal(model.interactions_.toarray(), np.ones((q, 2)))
    # Every id is found again, and answered with.
    table = model.recommend(ids, n=2, exclude_seen=False)
    answer = rows(table)
    as_asked = [tuple(row[0]) if type(row[0]) is list else row[0] for row in answer]
    assert as_asked == [x for x in ids for _ in range(2)]
    assert [row[-1] for row in answer] == [1, 2] * q
    # What was answered can be asked for.
    if library not in ("array", "tuples"):
        assert len(rows(model.recommend(table["user"], n=1, exclude_seen=False))) == 2 * q
    # The same ids in another kind of table are the same model.
    columns["user"] = [tuple(x) if type(x) is list else x for x in columns["user"]]
    same = clone(model).fit(CLASSES["tuples"](columns))
    assert_array_equal(same.users_, model.users_)
    assert same.users_.dtype == model.users_.dtype
    assert_array_equal(same.estimator_.row_factors_, model.estimator_.row_factors_)
    assert_array_equal(same.estimator_.components_, model.estimator_.components_)
    flipped = {name: values[::-1] for name, values in columns.items()}
    again = clone(model).fit(CLASSES[library](flipped))
    assert again.users_.tolist() == expected
    assert_array_equal(again.estimator_.row_factors_, model.estimator_.row_factors_)


def test_unused_categories_and_typed_arrays():
    who = pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"])
    table = pd.DataFrame({"who": who, "what": [1, 2, 2]})
    known = pl.Series("who", ["b", "a", "b"], pl.Enum(["c", "b", "a"]))
    codes = pa.DictionaryArray.from_arrays([1, 2, 1], ["c", "b", "a"])
    expected = Recommender(WALS(1, random_state=0)).fit(table.astype({"who": object}))
    for categories in (
        table,
        pl.DataFrame({"who": known, "what": [1, 2, 2]}),
        pa.table({"who": codes, "what": [1, 2, 2]}),
    ):
        model = Recommender(WALS(1, random_state=0)).fit(categories)
        assert model.users_.tolist() == ["a", "b"]
        assert_array_equal(model.interactions_.toarray(), [[0, 1], [1, 1]])
        assert_array_equal(model.estimator_.row_factors_, expected.estimator_.row_factors_)
    times = pd.DataFrame({"who": pd.to_datetime(["2024-01-02", "2024-01-01"]), "what": [1, 2]})
    model = Recommender(WALS(1, random_state=0)).fit(times)
    wanted = times["who"]
    for asked in (wanted, wanted.to_numpy(), list(wanted), [datetime.datetime(2024, 1, 2)]):
        answer = model.recommend(asked, n=1)
        assert answer["who"].tolist() == list(wanted)[: len(asked)]
    finer = pd.DataFrame({"who": np.array([1, 2], "M8[ns]"), "what": [1, 2]})
    assert len(Recommender(WALS(1, random_state=0)).fit(finer).users_) == 2


# ------------------------------------------------------------------------------------- what is bad


def with_bad(frame, column, value, row=7):
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "tuples"])
@pytest.mark.parametrize(
    "column, message", [("who", "user.*row 7"), ("what", "item.*row 7"), ("stars", "NaN in row 7")]
)
def test_missing_ids_and_values_are_named(library, column, message, frame):
    columns = frame.to_dict("list")
    columns[column][7] = None
    by_position = {"user": 0, "item": 1, "value": 2, "time": 3} if library == "tuples" else {}
    with pytest.raises(ValueError, match=message):
        make(**by_position).fit(CLASSES[library](columns))


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda X: with_bad(X, "who", np.nan), "user='who' holds (NaN|null) in row 7"),
        (lambda X: with_bad(X, "who", pd.NaT), "user='who' holds null in row 7|NaT in row 7"),
        (lambda X: with_bad(X, "who", [1]).assign(who=[{}] * len(X)), "cannot be hashed"),
        (lambda X: with_bad(X, "stars", np.inf), "inf, not a finite float32, in row 7"),
        (lambda X: with_bad(X, "stars", 1e39), "1e\\+39, not a finite float32, in row 7"),
        (lambda X: with_bad(X, "stars", "good"), "value='stars' must hold numbers"),
        (lambda X: X.drop(columns="who"), "user='who': X has the columns 'what', 'stars', 'when'"),
        (lambda X: X.iloc[:0], "no interactions"),
        (lambda X: X.set_axis(["who", "what", "stars", "what"], axis=1), "same name: .*'stars'"),
        (lambda X: X.to_numpy(object), "user='who': the columns of X have no names"),
        (lambda X: sp.eye_array(3), "sparse matrix"),
        (lambda X: ["ab", "cd"], "not of rows"),
        (lambda X: [("a", 1), ("b",)], "different lengths"),
        (lambda X: 3, "must be a table"),
        (lambda X: np.arange(4), "Expected 2D array"),
    ],
)
def test_bad_tables(bad, message, frame, model):
    model.fit(frame)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=message) as told:
        model.fit(bad(frame))
    assert "\n" not in str(told.value)
    assert pickle.dumps(model) == before


@pytest.mark.parametrize(
    "params, message",
    [
        ({"aggregate": "last", "time": None}, "time="),
        ({"aggregate": "first"}, "aggregate"),
        ({"user": -1}, "user"),
        ({"user": 1}, "user=1 and item='what' are the same column"),
        ({"estimator__n_components": 0}, "n_components"),
        ({"user": 9}, "user=9 .* X has 4 feature"),
        ({"estimator": 3}, "estimator"),
        ({"biases": True}, "unobserved_weight=0"),
        ({"row_weights": 2.0}, "row_weights"),
    ],
)
def test_bad_parameters(params, message, frame, model):
    with pytest.raises(ValueError, match=message):
        model.set_params(**params).fit(frame)


def test_bad_arguments(frame, model):
    with pytest.raises(NotFittedError):
        model.recommend()
    with pytest.raises(ValueError, match="y has shape"):
        model.fit(frame, frame["stars"][:-1])
    with pytest.raises(ValueError, match="sample_weight has shape"):
        model.fit(frame, sample_weight=[1, 2])
    with pytest.raises(ValueError, match="Negative weight in sample_weight"):
        model.fit(frame, sample_weight=-frame["stars"])
    model.fit(frame)
    unknown = ["u1", *(f"x{i}" for i in range(7))]
    with pytest.raises(
        ValueError, match=r"7 of the users .*: 'x0', 'x1', 'x2', 'x3', 'x4', \.\.\."
    ):
        model.recommend(unknown)
    with pytest.raises(ValueError, match=r"1 of the users .*: 'x'\.$"):
        model.recommend(["u1", "x"], interactions=frame[:5])
    with pytest.raises(ValueError, match=r"1 of the items .*: 1\.$"):
        model.recommend(["u1"], items=[3, 1])
    with pytest.raises(ValueError, match="1 of the items"):
        model.similar([1])
    with pytest.raises(ValueError, match="1 of the users"):
        model.explain("x", 3)
    with pytest.raises(ValueError, match="users must be a sequence"):
        model.recommend("u1")
    with pytest.raises(ValueError, match="users holds ids that cannot be hashed"):
        model.recommend([{}])
    with pytest.raises(ValueError, match="n must be"):
        model.recommend([], n=0)
    with pytest.raises(ValueError, match="exclude_seen"):
        model.recommend(["u1"], exclude_seen="yes")


# ------------------------------------------------------------------------------- what is answered


def test_recommend_is_that_of_the_matrix(frame, model):
    model.fit(frame)
    columns, scores = model.estimator_.recommend(model.interactions_, 30)
    answer = model.recommend(n=30)
    assert list(answer.columns) == ["who", "what", "score", "rank"]
    for i, user in enumerate(model.users_):
        part = answer[answer["who"] == user]
        left = columns[i] >= 0
        assert 0 < left.sum() < 30
        assert part["what"].tolist() == model.items_[columns[i][left]].tolist()
        assert_array_equal(part["score"], scores[i][left])
        assert part["rank"].tolist() == list(range(1, left.sum() + 1))
    # Users in the order asked for, also twice; candidates; and what was seen.
    answer = model.recommend(["u5", "u2", "u5"], n=2, items=[9, 3, 6], exclude_seen=False)
    assert answer["who"].tolist() == ["u5", "u5", "u2", "u2", "u5", "u5"]
    assert set(answer["what"]) <= {3, 6, 9}
    scores = model.predict(answer)
    assert_allclose(answer["score"], scores, rtol=1e-6, atol=1e-7)
    best = max(model.predict(pd.DataFrame({"who": ["u5"] * 3, "what": [3, 6, 9]})))
    assert answer["score"][0] == pytest.approx(best, rel=1e-6)
    assert rows(model.recommend([], n=2)) == []


@pytest.mark.parametrize("ratings", [False, True])
def test_known_users_with_nothing_new_are_as_fitted(ratings, frame):
    model = (make_ratings if ratings else make)(row_weights=np.ones_like).fit(frame)
    # Unknown items tell nothing.
    newer = frame[:4].assign(what=-1)
    users = sorted({*newer["who"], "u7"})
    expected = model.recommend(users, n=5)
    answer = model.recommend(users, n=5, interactions=newer)
    assert answer["what"].tolist() == expected["what"].tolist()
    assert_allclose(answer["score"], expected["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "last", "count"])
def test_interactions_of_new_and_known_users_are_folded_in(aggregate, frame):
    weights = power_law(-0.5)
    model = make(aggregate, row_weights=weights).fit(frame)
    newer = draw(30, n_users=4, seed=1).assign(when=lambda X: X["when"] + 10_000)
    newer["who"] = newer["who"].replace({"u0": "new0", "u1": "new1"})
    answer = model.recommend(n=4, interactions=newer)
    assert sorted(set(answer["who"])) == sorted(set(newer["who"]))
    both = pd.concat([frame, newer])
    if aggregate == "mean":  # the newer one replaces
        both = (
            newer
            if False
            else pd.concat(
                [
                    frame.groupby(["who", "what"], as_index=False)["stars"].mean(),
                    newer.groupby(["who", "what"], as_index=False)["stars"].mean(),
                ]
            )
        )
        entries = both.groupby(["who", "what"])["stars"].last()
    else:
        entries = getattr(both.sort_values("when").groupby(["who", "what"])["stars"], aggregate)()
    table = entries.unstack().reindex(columns=model.items_)
    users = sorted(set(newer["who"]))
    X = table.loc[users]
    counts = np.diff(model.interactions_.indptr)
    R = weights(np.r_[counts, X.notna().sum(axis=1)])[len(counts) :]
    U = model.estimator_.transform(X.fillna(0).to_numpy(np.float32), weights=R)
    scores = U.astype(float) @ model.estimator_.components_
    scores[X.notna().to_numpy()] = -np.inf
    for i, user in enumerate(users):
        part = answer[answer["who"] == user]
        best = np.argsort(-scores[i], kind="stable")[:4]
        assert part["what"].tolist() == model.items_[best].tolist()
        assert_allclose(part["score"], scores[i][best], rtol=1e-4, atol=1e-6)
    # Users are chosen among both.
    some = model.recommend(["u9", "new1"], n=4, interactions=newer)
    assert_array_equal(some[4:]["what"], answer[answer["who"] == "new1"]["what"])
    assert rows(some[:4]) == rows(model.recommend(["u9"], n=4))


def test_new_users_of_whom_nothing_is_known(frame):
    unknown = pd.DataFrame({"who": ["new"], "what": [-1], "stars": [5.0], "when": [0]})
    assert len(make().fit(frame).recommend(interactions=unknown)) == 0
    # With biases the best items are known.
    model = make_ratings().fit(frame)
    answer = model.recommend(interactions=unknown, n=3)
    best = np.argsort(-model.item_biases_)[:3]
    assert answer["what"].tolist() == model.items_[best].tolist()
    assert_allclose(answer["score"], model.mean_ + model.item_biases_[best], rtol=1e-6)
    with pytest.raises(ValueError, match="value="):
        model.set_params(value=None).fit(frame, frame["stars"]).recommend(interactions=unknown)


def test_similar_and_explain(frame, model):
    model.fit(frame)
    column = model.items_.tolist().index(6)
    columns, scores = model.estimator_.similar([column], 5)
    answer = model.similar([6], n=5)
    assert list(answer.columns) == ["what", "similar", "score", "rank"]
    assert answer["what"].tolist() == [6] * 5
    assert answer["similar"].tolist() == model.items_[columns[0]].tolist()
    assert_array_equal(answer["score"], scores[0])
    model.set_params(row_weights=power_law(-0.5)).fit(frame)
    predicted = model.predict(pd.DataFrame({"who": ["u1"], "what": [6]}))
    reasons = model.explain("u1", 6, n=100)
    assert list(reasons.columns) == ["what", "contribution"]
    assert set(reasons["what"]) == set(frame[frame["who"] == "u1"]["what"])
    assert_allclose(reasons["contribution"].sum(), predicted, rtol=1e-4)


def test_explain_with_biases(frame):
    model = make_ratings().fit(frame)
    row, column = (x.tolist().index(y) for x, y in ((model.users_, "u1"), (model.items_, 6)))
    product = model.estimator_.row_factors_[row] @ model.estimator_.components_[:, column]
    assert_allclose(model.explain("u1", 6, n=99)["contribution"].sum(), product, rtol=1e-3)


# ----------------------------------------------------------------------------------------- values


def test_predict(frame, model):
    model.fit(frame)
    pairs = [("u1", 3), ("nobody", 3), ("u2", 1), ("u2", 9), ("nobody", 1)]
    U, V = model.estimator_.row_factors_.astype(float), model.estimator_.components_.astype(float)
    users, items = model.users_.tolist(), model.items_.tolist()
    expected = [
        U[users.index(u)] @ V[:, items.index(i)] if u in users and i in items else 0.0
        for u, i in pairs
    ]
    assert expected[1] == expected[2] == 0 != expected[0]
    X = pd.DataFrame(pairs, columns=["who", "what"])
    assert_allclose(model.predict(X), expected, rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_biases(weighted, frame):
    """The biases solve the normal equations; predictions are mean, biases and product."""
    frame = frame.drop_duplicates(["who", "what"])
    w = np.linspace(0, 2, len(frame)) if weighted else np.ones(len(frame))
    model = make_ratings().fit(frame, sample_weight=w if weighted else None)
    w = w.astype(np.float32).astype(float)
    n, m, t = len(model.users_), len(model.items_), np.arange(len(frame))
    row = np.searchsorted(model.users_, frame["who"].to_numpy(str))
    col = np.searchsorted(model.items_, frame["what"])
    r = frame["stars"].to_numpy()
    A = np.zeros((len(frame), n + m))
    A[t, row] = A[t, n + col] = 1
    mean = w @ r / w.sum()
    damping = np.diag(np.repeat([5.0, 4.0], [n, m]))
    b = np.linalg.solve(A.T @ (w[:, None] * A) + damping, A.T @ (w * (r - mean)))
    assert model.mean_ == pytest.approx(mean, rel=1e-12)
    assert_allclose(np.r_[model.user_biases_, model.item_biases_], b, atol=1e-7)
    U, V = model.estimator_.row_factors_.astype(float), model.estimator_.components_.T.astype(float)
    expected = mean + b[row] + b[n + col] + np.sum(U[row] * V[col], axis=1)
    assert_allclose(model.predict(frame), expected.clip(1, 5), atol=1e-6)
    # The factors are those of the residuals.
    X = sp.coo_array((r - mean - b[row] - b[n + col], (row, col))).toarray()
    E = sp.coo_array((w, (row, col))).toarray()
    expected = np.sum(E * (X - U @ V.T) ** 2) + np.sum(U**2) + np.sum(V**2)
    assert model.estimator_.loss_ == pytest.approx(expected, rel=1e-5)
    # What is not known is left out.
    other = pd.DataFrame({"who": ["u1", "x", "x"], "what": [-1, 6, -1]})
    u, i = model.users_.tolist().index("u1"), n + model.items_.tolist().index(6)
    assert_allclose(model.predict(other), [mean + b[u], mean + b[i], mean], atol=1e-6)


def test_recommend_with_biases(frame):
    model = make_ratings().fit(frame)
    answer = model.recommend(["u3"], n=30, exclude_seen=False)
    assert len(answer) == len(model.items_)
    row = model.users_.tolist().index("u3")
    scores = model.mean_ + model.user_biases_[row] + model.item_biases_
    scores = scores + model.estimator_.row_factors_[row] @ model.estimator_.components_
    order = np.argsort(-scores)
    assert answer["what"].tolist() == model.items_[order].tolist()
    assert_allclose(answer["score"], scores[order], rtol=1e-5)


def test_sample_weights_are_entry_weights(frame, model):
    w = np.linspace(0.5, 2, len(frame))
    model.fit(frame, sample_weight=w)
    E = frame.assign(w=w).groupby(["who", "what"])["w"].mean().unstack().fillna(0).to_numpy()
    expected = clone(model.estimator).fit(model.interactions_, entry_weights=E)
    assert_allclose(model.estimator_.row_factors_, expected.row_factors_, rtol=1e-5, atol=1e-6)


def test_row_weights(frame):
    model = make(row_weights=power_law(-0.5)).fit(frame)
    counts = frame.drop_duplicates(["who", "what"]).groupby("who").size().to_numpy()
    assert_allclose(model.estimator_.row_weights_, power_law(-0.5)(counts), rtol=1e-12)


# ------------------------------------------------------------------------------- in scikit-learn


def test_score(frame, model):
    """NDCG@20 by hand: of pairs that are new, among items that are new to the user."""
    train, test = frame[:400], frame[400:]
    model.fit(train)
    seen = set(zip(train["who"], train["what"], strict=True))
    found = []
    for user, part in test.groupby("who"):
        if user not in model.users_:
            continue
        truth = {item for item in part["what"] if (user, item) not in seen}
        ranked = model.recommend([user], n=20)["what"].tolist()
        gains = [item in truth for item in ranked] / np.log2(np.arange(2, len(ranked) + 2))
        if truth:
            found.append(gains.sum() / (1 / np.log2(np.arange(2, len(truth) + 2))).sum())
    assert model.score(test) == pytest.approx(np.mean(found), rel=1e-12)
    assert np.isnan(model.score(train))
    # Users that are not known do not count; items that are not known are missed.
    extra = pd.DataFrame({"who": ["x"], "what": [3], "stars": [1.0], "when": [0]})
    assert model.score(pd.concat([test, extra])) == model.score(test)
    extra = pd.DataFrame({"who": sorted(model.users_), "what": -1, "stars": 1.0, "when": 0})
    assert model.score(extra) == 0
    assert 0 < model.score(pd.concat([test, extra])) < model.score(test)
    # Values below 0 are no success where there are others.
    disliked = test.assign(stars=np.where(np.arange(len(test)) % 2, 1.0, -1.0))
    assert model.score(disliked) == model.score(test.iloc[1::2])


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", "records", "array", "tuples"])
@pytest.mark.parametrize("cv", [KFold(3, shuffle=True, random_state=0), TimeSeriesSplit(3)])
def test_search_and_validation(kind, cv, frame):
    by_position = {"user": 0, "item": 1, "value": 2, "time": 3}
    model = make(**(by_position if kind in ("array", "tuples") else {}))
    table = TABLES[kind](frame)
    search = GridSearchCV(model, {"estimator__n_components": [2, 3]}, cv=cv).fit(table)
    assert search.best_estimator_.estimator_.n_components in (2, 3)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    expected = GridSearchCV(make(), {"estimator__n_components": [2, 3]}, cv=cv).fit(frame)
    assert_array_equal(scores, expected.cv_results_["mean_test_score"])
    best = search.best_estimator_
    assert rows(search.best_estimator_.recommend(["u1"])) == rows(best.recommend(["u1"]))
    pairs = frame[["who", "what"]]
    scorer = "neg_root_mean_squared_error"
    errors = cross_val_score(make_ratings(value=None), pairs, frame["stars"], cv=cv, scoring=scorer)
    assert np.all((errors < 0) & (errors > -2))


def test_parameters_of_an_estimator_that_is_none(frame):
    model = Recommender().set_params(estimator__n_components=3, biases=True)
    assert model.estimator.n_components == 3
    assert model.estimator.unobserved_weight == 0
    assert Recommender().set_params(estimator__max_iter=1).estimator.unobserved_weight == 0.1
    with pytest.raises(ValueError, match="Invalid parameter"):
        Recommender().set_params(n_components=3)
    grid = {"estimator__n_components": [2, 3]}
    search = GridSearchCV(Recommender(), grid, cv=KFold(2, shuffle=True, random_state=0))
    assert np.isfinite(search.fit(frame).cv_results_["mean_test_score"]).all()


def test_pickle_clone_and_pipeline(frame, model):
    model.fit(frame)
    expected = model.recommend(n=3)
    again = pickle.loads(pickle.dumps(model))
    pd.testing.assert_frame_equal(again.recommend(n=3), expected)
    assert model.get_params()["estimator__n_components"] == 4
    assert not hasattr(clone(model), "users_")
    pipeline = make_pipeline(clone(model)).fit(frame)
    assert_array_equal(pipeline.predict(frame), model.predict(frame))
    assert pipeline.score(frame[:9].assign(what=3)) == model.score(frame[:9].assign(what=3))


@pytest.mark.skipif(
    not REAL_DATA.exists(), reason="the data may not be distributed with the package"
)
def test_ratings_of_movielens():
    ratings = pd.read_csv(REAL_DATA / "ml100k.csv.gz")
    estimator = WALS(
        50, unobserved_weight=0, regularization=1.3, regularization_exponent=0.5, random_state=0
    )
    errors = cross_val_score(
        Recommender(estimator, biases=True),
        ratings[["user", "item"]],
        ratings["rating"],
        scoring="neg_root_mean_squared_error",
        cv=KFold(5, shuffle=True, random_state=0),
    )
    assert -errors.mean() < 0.912


EXPECTED_FAILURES = {
    "check_n_features_in_after_fitting": "pairs to predict need no columns of values or times",
    "check_sample_weight_equivalence_on_dense_data": "of repeated pairs, values are aggregated",
    "check_complex_data": "complex numbers may be ids",
}


@parametrize_with_checks(
    [
        Recommender(WALS(2, random_state=0)),
        Recommender(WALS(2, unobserved_weight=0, random_state=0), biases=True),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
