"""`Recommender` on tables that are spread over a Dask cluster."""

import copy
import datetime
import gc
import os
import pickle
import signal
import time
import uuid

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
from dask.delayed import delayed
from distributed import Client
from numpy.testing import assert_allclose, assert_array_equal
from pandas.testing import assert_frame_equal
from test_distributed import start

from wals import WALS, Recommender, load
from wals.distributed import gather_rows
from wals.distributed._sides import ClusterCols
from wals.distributed._tables import ClusterInteractions, join_columns, join_ids
from wals.weights import power_law

COLUMNS = {"user": "who", "item": "what", "value": "stars", "time": "when"}


@pytest.fixture(scope="module")
def client():
    with start(2) as cluster, Client(cluster) as client:
        yield client


def draw(n=900, n_users=70, n_items=25, seed=0):
    """Interactions of which some pairs are there several times, at different times."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "who": [f"u{i}" for i in random.integers(n_users, size=n)],
            "what": 3 * random.integers(n_items, size=n),
            "stars": random.integers(1, 6, size=n).astype(float),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.permutation(n), "s"),
        }
    )


@pytest.fixture
def frame():
    return draw()


def make(**params):
    start = np.random.default_rng(1).random((25, 4))
    estimator = WALS(4, regularization=0.1, max_iter=3, solver="exact", init=start)
    return Recommender(**{"estimator": estimator} | COLUMNS | params)


def make_ratings(**params):
    estimator = WALS(
        4, unobserved_weight=0, regularization=1, max_iter=3, solver="exact", random_state=0
    )
    return make(estimator=estimator, biases=True, aggregate="mean", **params)


def cut(frame, n=3):
    """Return partitions, one of which is empty."""
    frame = dd.from_pandas(frame, npartitions=n, sort=False)
    return dd.concat([frame, frame.partitions[[0]].query("stars > 9")])


def assert_same(model, expected):
    """Check that a model on a cluster is one in memory."""
    assert_array_equal(model.users_, expected.users_)
    assert_array_equal(model.items_, expected.items_)
    assert model.users_.dtype == expected.users_.dtype
    found, entries = model.interactions_.compute(), expected.interactions_
    assert_array_equal(found.toarray(), entries.toarray())
    assert found.nnz == entries.nnz
    for of in "estimator_.components_", "estimator_.row_factors_", "user_biases_", "item_biases_":
        arrays = [each for each in (model, expected)]
        for name in of.split("."):
            arrays = [getattr(each, name) for each in arrays]
        assert_allclose(*map(np.asarray, arrays), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "last", "count"])
def test_fit_is_that_of_memory(client, frame, aggregate):
    model, expected = make(aggregate=aggregate).fit(cut(frame, 9)), make(aggregate=aggregate)
    assert_same(model, expected.fit(frame))
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert model.n_features_in_ == 4


def test_answers_are_those_of_memory(client, frame):
    model, expected = make().fit(cut(frame)), make().fit(frame)
    ranked = expected.recommend(n=3)
    found = model.recommend(n=3)
    assert isinstance(found, dd.DataFrame)
    assert found.dtypes.to_dict() == ranked.dtypes.to_dict()
    found = found.compute().reset_index(drop=True)
    assert_frame_equal(found, ranked, rtol=1e-4)
    found = model.recommend(n=2, exclude_seen=False, items=[3, 6, 9]).compute()
    ranked = expected.recommend(n=2, exclude_seen=False, items=[3, 6, 9])
    assert_frame_equal(found.reset_index(drop=True), ranked, rtol=1e-4)

    users = ["u7", "u2", "u55", "u2"]
    assert_frame_equal(model.recommend(users), expected.recommend(users), rtol=1e-4)
    assert_frame_equal(model.similar([3, 0]), expected.similar([3, 0]), rtol=1e-4)
    reasons = [each.explain("u7", 3) for each in (model, expected)]
    assert_frame_equal(*reasons, rtol=1e-3)
    pairs = pd.DataFrame({"who": ["u1", "u60", "new"], "what": [0, 72, 3]})
    assert_allclose(model.predict(pairs), expected.predict(pairs), rtol=1e-4)
    test = draw(seed=1)
    assert model.score(test) == pytest.approx(expected.score(test), rel=1e-6)
    newer = draw(30, seed=2).assign(who=["u3", "new", "u9"] * 10)
    answers = [each.recommend(interactions=newer, n=4) for each in (model, expected)]
    assert_frame_equal(*answers, rtol=1e-4)
    answers = [
        each.recommend(["new", "u60"], interactions=newer, n=4) for each in (model, expected)
    ]
    assert_frame_equal(*answers, rtol=1e-4)


def test_biases_weights_and_targets(client, frame):
    weights, y = np.random.default_rng(3).random(len(frame)), frame["stars"] - 6
    ddf = cut(frame)
    lengths = tuple(len(part.compute()) for part in ddf.to_delayed())
    given = da.from_array(weights, chunks=(lengths,))
    params = {"row_weights": power_law(-0.5)}
    expected = make_ratings(**params).fit(frame, y, sample_weight=weights)
    for sample_weight, target in (
        (weights, y.to_numpy()),
        (given, ddf["stars"] - 6),
        (da.from_array(weights, chunks=100), da.from_array(y.to_numpy(), chunks=77)),
    ):
        model = make_ratings(**params).fit(ddf, target, sample_weight=sample_weight)
        assert_same(model, expected)
    assert model.mean_ == pytest.approx(expected.mean_, rel=1e-12)
    pairs = frame[["who", "what"]].iloc[:50]
    assert_allclose(model.predict(pairs), expected.predict(pairs), rtol=1e-3)
    found = model.recommend(n=3).compute().reset_index(drop=True)
    assert_frame_equal(found, expected.recommend(n=3), rtol=1e-3)


@pytest.mark.parametrize(
    "ids",
    [
        lambda i: int(i),
        lambda i: float(i) / 3,
        lambda i: f"{i:040d}" if i % 7 else f"{i}",
        lambda i: uuid.UUID(int=int(i) * 7**9),
        lambda i: datetime.date(2026, 1, 1) + datetime.timedelta(days=int(i)),
        lambda i: int(i) if i % 2 else f"u{i}",
        lambda i: (int(i), "x"),
        lambda i: bytes([i]),
        lambda i: 2**63 + int(i),
    ],
    ids=["int", "float", "str", "UUID", "date", "mixed", "tuple", "bytes", "uint64"],
)
def test_ids_of_all_kinds(client, frame, ids):
    rows = [
        (ids(int(user[1:])), ids(item), stars, stars)
        for user, item, stars in frame[["who", "what", "stars"]].itertuples(index=False)
    ]
    expected = make(user=0, item=1, value=2, time=3).fit(rows)
    parts = [delayed(rows[start : start + 300], traverse=False) for start in range(0, 1200, 300)]
    assert_same(make(user=0, item=1, value=2, time=3).fit(parts), expected)


@pytest.mark.parametrize("n_parts", [1, 7, 65, 70])
def test_joining_ids(n_parts):
    """As the tree does: every id once, in order, and where those of each part are."""
    random = np.random.default_rng(0)
    parts = [np.unique(random.integers(500, size=random.integers(0, 40))) for _ in range(n_parts)]
    ids, *places = join_ids(*parts)
    assert_array_equal(ids, np.unique(np.concatenate(parts)))
    for part, place in zip(parts, places, strict=True):
        assert_array_equal(ids[place], part)


def test_categories_that_differ_by_partition(client, frame):
    frame = frame.astype({"who": "category"})
    parts = [frame[i : i + 300] for i in range(0, 900, 300)]
    parts = [part.assign(who=part["who"].cat.remove_unused_categories()) for part in parts]
    model = make().fit([delayed(part) for part in parts])
    assert_same(model, make().fit(frame))


def test_tables_of_other_libraries(client, frame):
    table = pl.from_pandas(frame)
    expected = make(aggregate="last").fit(table)
    parts = [delayed(table[i : i + 50]) for i in range(0, 900, 50)]
    model = make(aggregate="last").fit(client.compute(parts))
    assert_same(model, expected)
    tables = model.recommend(n=2)
    assert isinstance(tables, list)
    found = pl.concat(client.gather(client.compute(tables)))
    assert found["who"].to_list() == expected.recommend(n=2)["who"].to_list()
    assert isinstance(model.recommend(["u1"]), pl.DataFrame)


def test_files_and_a_column_of_them(client, frame, tmp_path):
    """Of which Dask would make fewer partitions."""
    for i in range(6):
        frame[150 * i : 150 * (i + 1)].to_parquet(tmp_path / f"{i}.parquet")
    ddf = dd.read_parquet(tmp_path)
    model = make().fit(ddf, ddf["stars"] * 2, sample_weight=ddf["stars"])
    assert_same(model, make().fit(frame, frame["stars"] * 2, sample_weight=frame["stars"]))


def test_partitions_with_columns_in_another_order(client, frame):
    parts = [delayed(frame[:500]), delayed(frame[500:][["when", "what", "who", "stars"]])]
    assert_same(make().fit(parts), make().fit(frame))
    with pytest.raises(ValueError, match="different columns"):
        make(user=0).fit(parts)


def test_what_a_closed_client_leaves(frame):
    with start(1) as cluster:
        with Client(cluster):
            model = make().fit(cut(frame))
        assert len(model.similar([3], n=2)) == 2
        with Client(cluster):
            for call in (gather_rows, lambda model: model.recommend(["u1"])):
                with pytest.raises(RuntimeError, match="no longer on this cluster"):
                    call(model)


def test_an_array_of_ids(client, frame):
    pairs = frame[["who", "what"]].to_numpy()
    array = da.from_array(pairs, chunks=(300, -1))
    params = {"user": 0, "item": 1, "value": None, "time": None}
    assert_same(make(**params).fit(array), make(**params).fit(pairs))


@pytest.mark.parametrize("make_one", [make, make_ratings])
def test_copies_leave_the_cluster(client, frame, make_one, tmp_path):
    model, expected = make_one().fit(cut(frame)), make_one().fit(frame)
    newer = pd.DataFrame({"who": ["new"] * 2, "what": [3, 9], "stars": [1.0, 2.0], "when": [1, 2]})
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        answers = [each.recommend(interactions=newer, n=2) for each in (other, expected)]
        assert_frame_equal(*answers, rtol=1e-3)
        assert_frame_equal(other.similar([3]), model.similar([3]))
        for call in (
            lambda other=other: other.recommend(),
            lambda other=other: other.recommend(["u1"]),
            lambda other=other: other.predict(frame[["who", "what"]]),
            lambda other=other: other.explain("u1", 3),
            lambda other=other: other.save(tmp_path / "model.wals"),
        ):
            with pytest.raises(ValueError, match="gather_rows"):
                call()
    with pytest.raises(ValueError, match="gather_rows"):
        model.save(tmp_path / "model.wals")
    assert not (tmp_path / "model.wals").exists()
    with pytest.raises(ValueError, match="it is a copy"):
        gather_rows(pickle.loads(pickle.dumps(model)))
    assert gather_rows(model) is model
    model.save(tmp_path / "model.wals")
    for other in (model, load(tmp_path / "model.wals"), pickle.loads(pickle.dumps(model))):
        assert_frame_equal(other.recommend(n=3), expected.recommend(n=3), rtol=1e-3)
        pairs = frame[["who", "what"]]
        assert_allclose(other.predict(pairs), expected.predict(pairs), rtol=1e-3)


@pytest.mark.parametrize("of", [ClusterInteractions, ClusterCols])
def test_a_killed_worker(frame, monkeypatch, of):
    """When interactions move, and when they are solved; also with values of the client."""
    name, killed = {ClusterInteractions: "_shuffle", ClusterCols: "_sweep"}[of], []
    original = getattr(of, name)

    def kill(self, *args):
        cluster = self.cluster if of is ClusterInteractions else self.matrix.cluster
        if not killed:
            pids = cluster.client.run(os.getpid)
            killed.append(pids[sorted(pids)[0]])
            os.kill(killed[0], signal.SIGKILL)
        return original(self, *args)

    monkeypatch.setattr(of, name, kill)
    y = frame["stars"].to_numpy()
    with start(2, processes=True) as cluster, Client(cluster):
        model = make_ratings().fit(cut(frame), y, sample_weight=y)
        assert killed
        assert_same(model, make_ratings().fit(frame, y, sample_weight=y))


def test_a_failed_fit_leaves_nothing_on_the_workers(client, frame):
    for change in (np.nan, 3e38):
        with pytest.raises(ValueError, match=r"NaN|more than a float32"):
            make().fit([delayed(frame.assign(stars=change)), delayed(frame)])
    for _ in range(100):
        gc.collect()
        if not (left := client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))):
            break
        time.sleep(0.05)
    assert not left


def test_after_a_shuffle(client, frame):
    """Whose barrier Dask looks for by its name."""
    ddf = cut(frame).shuffle("who")
    assert any(str(key).startswith("shuffle-barrier") for key in ddf.optimize().dask)
    assert_same(make().fit(ddf), make().fit(frame))


def test_the_estimator_alone_at_home(client, frame):
    model, expected = make().fit(cut(frame)), make().fit(frame)
    gather_rows(model.estimator_)
    found = model.recommend(n=2).compute().reset_index(drop=True)
    assert_frame_equal(found, expected.recommend(n=2), rtol=1e-4)
    gather_rows(model)
    assert_frame_equal(model.recommend(n=2), expected.recommend(n=2), rtol=1e-4)


def test_row_weights_of_a_fitted_model(client, frame):
    newer = draw(30, seed=2).assign(who="new")
    models = [make().fit(X).set_params(row_weights=power_law(-0.5)) for X in (cut(frame), frame)]
    answers = [model.recommend(interactions=newer, n=4) for model in models]
    assert_frame_equal(*answers, rtol=1e-4)
    assert len(models[0].recommend(n=1)) == 70


def test_types_of_what_is_recommended_to_all(client, frame):
    """Partitions infer them each for itself, but they are those of all ids."""
    days = frame["who"].str[1:].astype(int)
    ids = pd.Timestamp("2026-01-01") + pd.to_timedelta(days * 250, "ns")
    frame = frame.assign(who=ids)
    found, expected = make().fit(cut(frame)).recommend(n=2), make().fit(frame).recommend(n=2)
    assert found.dtypes.to_dict() == expected.dtypes.to_dict()
    assert all((part.compute().dtypes == found.dtypes).all() for part in found.to_delayed())
    assert_array_equal(found["who"].compute(), expected["who"])


def test_columns_that_differ_in_type():
    def join(*parts):
        return join_columns([np.array(*part) for part in parts])

    large = 2**60 + 1
    assert join(([1, 2],), ([0.5],)).dtype == np.float64
    assert join(([large],), ([0.5],)).tolist() == [large, 0.5]
    assert join(([large],), ([large + 2], np.uint64)).tolist() == [large, large + 2]
    assert join(([2**63], np.uint64), ([-1],)).tolist() == [2**63, -1]
    assert join(([],), (["2026-01-01"], "M8[s]")).dtype == "M8[s]"
    parts = (["2026-01-01"], "M8[D]"), (["2026-01-01T00:00:00.000000001"], "M8[ns]")
    assert join(*parts).tolist()[0] == datetime.date(2026, 1, 1)
    assert join(*parts).dtype == object
    wide = join(([f"u{i}" for i in range(10_000)],), (["x" * 100_000],))
    assert wide.dtype == object and wide[-1] == "x" * 100_000
    assert join((["a"],), (["bcd"],)).dtype == "U3"


def test_a_fit_in_memory_after_one_on_the_cluster(client, frame):
    model = make().fit(cut(frame)).fit(frame)
    assert_frame_equal(model.recommend(n=2), make().fit(frame).recommend(n=2))
    assert isinstance(model.fit(cut(frame)).recommend(n=2), dd.DataFrame)


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        ({"who": [None] * 10}, {}, r"Partition 3 of X: column user='who' holds null in row 0"),
        ({"stars": [np.nan] * 10}, {}, r"Partition 3 of X: .*stars.* holds NaN in row 0"),
        ({}, {"user": "whom"}, r"Partition \d+ of X: user='whom': X has the columns"),
        ({}, {"item": "who"}, "are the same column"),
    ],
)
def test_bad_tables(client, frame, change, params, message):
    parts = [frame[i : i + 10] for i in range(0, 100, 10)]
    parts[3] = parts[3].assign(**change)
    with pytest.raises(ValueError, match=message):
        make(**params).fit([delayed(part) for part in parts])


def test_bad_arguments(client, frame):
    ddf = cut(frame)
    with pytest.raises(ValueError, match=r"^user='whom': X has the columns 'who'"):
        make(user="whom").fit(ddf)
    with pytest.raises(ValueError, match="no interactions"):
        make().fit(ddf.query("stars > 9"))
    with pytest.raises(ValueError, match="different columns"):
        make().fit([delayed(frame[:9]), delayed(frame[9:].drop(columns="when"))])
    with pytest.raises(ValueError, match="sample_weight is zero"):
        make().fit(ddf, sample_weight=np.zeros(900))
    with pytest.raises(ValueError, match="Negative weight in sample_weight"):
        make().fit(ddf, sample_weight=-np.ones(900))
    with pytest.raises(ValueError, match="sample_weight has shape"):
        make().fit(ddf, sample_weight=np.ones(899))
    with pytest.raises(ValueError, match="y holds NaN"):
        make().fit(ddf, np.full(900, np.nan))
    with pytest.raises(ValueError, match="blocks of rows"):
        make().fit(ddf, ddf["stars"].repartition(npartitions=3))
    model = make().fit(ddf)
    with pytest.raises(ValueError, match="2 of the users are unknown to this model: 'a', 'b'"):
        model.recommend(["a", "b"])
    with pytest.raises(ValueError, match="n must be"):
        model.recommend(n=0)
    with pytest.raises(ValueError, match="exclude_seen must be True or False"):
        model.recommend(n=1, exclude_seen=None)
    for call in (model.predict, model.score, lambda X: model.recommend(interactions=X)):
        with pytest.raises(ValueError, match=r"compute\(\)"):
            call(ddf)
    for call in (model.recommend, model.similar):
        with pytest.raises(ValueError, match=r"compute\(\)"):
            call(ddf["what"])
