"""save and load: what comes back, what is refused, and what others make of it."""

import copy
import importlib
import pickle
import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from functools import partial
from mmap import mmap
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import skops.io
from persistence_scenarios import models, reseal
from safetensors import safe_open

import wals
from wals import WALS, Recommender, _format
from wals._core import kernels, passes, ranking, team
from wals._precompile import precompile
from wals.weights import power_law

MODELS = Path(__file__).with_name("models")


def assert_same(a, b):
    """Assert that two values are of the same type and bits, as deep as they go."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        for flag in ("c_contiguous", "f_contiguous", "aligned"):
            assert getattr(a.flags, flag) == getattr(b.flags, flag)
        if a.dtype == object:
            assert_same(a.tolist(), b.tolist())
        else:
            assert a.tobytes() == b.tobytes()
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    elif isinstance(a, dict):
        assert_same([*a.items()], [*b.items()])
    elif isinstance(a, sp.csr_array):
        assert a.shape == b.shape
        assert_same([a.data, a.indices, a.indptr], [b.data, b.indices, b.indptr])
    elif isinstance(a, np.random.RandomState):
        assert_same(a.get_state(), b.get_state())
    elif isinstance(a, WALS | Recommender | power_law):
        a, b = (dict(sorted(vars(model).items())) for model in (a, b))
        a.pop("_places", None), b.pop("_places", None)
        assert_same(a, b)
    else:
        assert repr(a) == repr(b)
        if isinstance(a, datetime):
            assert (a.fold, type(a.tzinfo)) == (b.fold, type(b.tzinfo))


def again(model, path, **options):
    model.save(path)
    return wals.load(path, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.wals"


@pytest.fixture
def mapping(monkeypatch):
    """Have small arrays mapped, too."""
    monkeypatch.setattr(_format, "SMALL", 1)


@pytest.fixture(scope="module", params=[np.float32, np.float64])
def X(request):
    return sp.random(90, 60, 0.2, "csr", request.param, random_state=0)


@pytest.fixture(scope="module")
def model(X):
    return WALS(5, max_iter=2, random_state=0).fit(X, row_weights=np.arange(1.0, 91))


def results(model, X):
    """Return what all methods say that do not change the model."""
    return [
        model.transform(X[:9], weights=2),
        model.transform(X[:, :3], axis=1),
        model.inverse_transform(model.row_factors_[:3]),
        model.inverse_transform(model.row_factors_, pattern=X),
        model.recommend(X[:7], 4),
        model.recommend(X, 4, candidates=[1, 2, 5], exclude_seen=False),
        model.similar([1, 2], 3),
        model.similar(3, axis=0, metric="dot"),
        model.explain(X[[3]], 2),
        model.score(X),
        model.evaluate(X[:, :3], axis=1),
    ]


# -------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("mmap", [False, True])
def test_results_are_the_same_bits(X, model, path, mapping, mmap):
    served = again(model, path, mmap=mmap)
    assert_same(served, model)
    assert_same(results(served, X), results(model, X))


@pytest.mark.parametrize(
    "params",
    [
        {"col_weights": power_law(-0.5), "regularization": 1 / 3, "tol": 1e-300},
        {"col_weights": np.linspace(0, 1, 60, dtype=np.float32), "implicit": True},
        {"col_weights": [0.5] * 60, "solver": "exact", "n_jobs": -1, "verbose": np.int64(0)},
        {"col_weights": tuple(range(60)), "warm_start": np.True_, "solver": np.str_("cg")},
        {"init": np.arange(180.0).reshape(60, 3), "n_components": np.int32(3)},
        {"init": np.arange(180).reshape(3, 60).T, "n_components": 3},
        {"init": np.arange(360).reshape(60, 6)[:, ::2].tolist(), "n_components": 3},
        {"random_state": np.random.RandomState(7), "init": "random", "tol": np.float32(0.1)},
    ],
)
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.filterwarnings("ignore:tol=")
def test_parameters(X, path, params, fitted, mmap):
    model = WALS(**{"n_components": 2, "max_iter": 1, "random_state": 0} | params)
    if fitted:
        model.fit(X)
    served = again(model, path, mmap=mmap)
    assert_same(served, model)
    refitted = [estimator.fit(X) for estimator in (model, served)]
    for estimator in refitted:
        del estimator.seconds_
    assert_same(*refitted)


def test_a_folder_is_kept(path, tmp_path):
    model = again(WALS(checkpoint_dir=tmp_path, checkpoint_every=3), path)
    assert (model.checkpoint_dir, model.checkpoint_every) == (tmp_path, 3)


def test_a_full_disk_is_named(model, path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=re.escape(str(path))):
        model.save(path)


def test_unusual_values(path):
    model = WALS(tol=np.inf, regularization=-np.inf, observed_weight=np.float32("nan"))
    model.set_params(init=Path("a/b"))  # nothing is checked before fit
    assert_same(again(model, path), model)


def test_state_of_a_batch_and_output(X, path):
    model = WALS(3, random_state=0).set_output(transform="pandas").partial_fit(X)
    served = again(model, path, mmap=True)
    assert_same(served, model)
    assert served.transform(X).columns.tolist() == ["wals0", "wals1", "wals2"]
    model.row_ids_, model.col_ids_ = np.arange(90).astype(str), np.arange(60)
    assert_same(again(model, path), model)


def test_strided_and_foreign_arrays_come_back_in_their_values(X, model, path):
    changed = copy.copy(model)
    changed.row_factors_ = np.repeat(model.row_factors_, 2, axis=1)[::-1, ::2]
    changed.row_weights_ = model.row_weights_.astype(">f8")
    changed.col_weights_ = np.broadcast_to(1.0, 60)
    served = again(changed, path)
    np.testing.assert_array_equal(served.row_factors_, changed.row_factors_)
    np.testing.assert_array_equal(served.row_weights_, model.row_weights_)
    np.testing.assert_array_equal(served.col_weights_, np.ones(60))
    assert served.row_weights_.dtype.isnative
    assert served.row_factors_.flags.c_contiguous


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_one_row_or_column(path, shape):
    model = WALS(1, max_iter=1).fit(sp.csr_array(np.ones(shape, np.float32)))
    assert_same(again(model, path), model)
    assert_same(again(model, path, mmap=True), model)


def test_callbacks_and_requests_are_left_out(model, path):
    changed = copy.copy(model)
    vars(changed).update(_skl_callbacks=[print], _metadata_request={})
    assert_same(again(changed, path), model)


IDS = {
    "str": ["a", "ü", "𝄞 clef", ""],
    "lengths": ["a", "b" * 5000],
    "nul": ["a\0", "a"],
    "surrogate": ["\ud800", "\udfff\ud800"],
    "int64": [-(2**63), 0, 2**63 - 1],
    "uint64": [0, 2**64 - 1],
    "large": [2**64, -(2**70), 1],
    "float": [-0.5, 1e-320, 1.7e308],
    "bool": [False, True],
    "bytes": [b"", b"a\0", b"\xff"],
    "UUID": [UUID(int=0), UUID(int=2**128 - 1)],
    "date": [date(1, 1, 1), date(9999, 12, 31)],
    "datetime": [datetime(1, 1, 1), datetime(2024, 2, 29, 1, 2, 3, 456789)],
    "utc": [datetime(2024, 2, 29, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)],
    "offset": [datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3, seconds=7)))],
    "zone": [
        datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold) for fold in (1,)
    ],
    "datetime64": [np.datetime64(1, "ns"), np.datetime64(10**18 + 1, "ns")],
    "time": [time(1, 2, 3, 4), time(0)],
    "timedelta": [timedelta(-5, 3, 2), timedelta(0)],
    "Decimal": [Decimal("1.10"), Decimal("-0.00")],
    "tuple": [("a", 1), ("a", (2, b"x"))],
    "mixed": ["1", 1, 2.5, (3,), date(2020, 1, 1), False],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("mmap", [False, True])
def test_ids(kind, mmap, path, mapping):
    ids = IDS[kind]
    table = [(x, y) for i, x in enumerate(ids) for j, y in enumerate(ids) if (i + j) % 3 != 1]
    model = Recommender(WALS(2, max_iter=2, random_state=0), row_weights=power_law(0.5)).fit(table)
    served = again(model, path, mmap=mmap)
    assert_same(served, model)
    for user in model.users_.tolist():
        answers = [r.recommend([user], exclude_seen=False).tolist() for r in (model, served)]
        assert_same(*answers)
        assert_same(model.explain(user, ids[0]).tolist(), served.explain(user, ids[0]).tolist())


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_recommender_of_tables(library, mmap, path, mapping):
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(0, 20, 300).astype(str).tolist(),
        "sku": rng.integers(0, 30, 300).tolist(),
        "rating": rng.uniform(1, 5, 300).tolist(),
    }
    module = importlib.import_module(library)
    frame = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    model = Recommender(
        WALS(3, unobserved_weight=0, random_state=0),
        user="user",
        item="sku",
        value="rating",
        aggregate="mean",
        biases=True,
    ).fit(frame)
    served = again(model, path, mmap=mmap)
    assert_same(served, model)
    new = frame[:5]
    for recommender in (model, served):
        recommender.answers = [
            recommender.recommend(n=3),
            recommender.recommend(interactions=new),
            recommender.similar([3]),
            recommender.predict(frame),
        ]
    for ours, theirs in zip(model.answers, served.answers, strict=True):
        assert type(ours) is type(theirs)
        if hasattr(ours, "equals"):
            assert ours.equals(theirs)
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert_same(again(Recommender(), path), Recommender())


# --------------------------------------------------------------------------------- what is refused


class Derived(WALS):
    pass


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WALS(col_weights=np.sqrt), "col_weights is or has a ufunc.*use wals.weights.power_law"),
        (WALS(col_weights=partial(np.power, 2)), "col_weights is or has a partial"),
        (WALS(col_weights=lambda counts: counts), "col_weights is or has a function"),
        (Recommender(row_weights=np.sqrt), "row_weights is or has a ufunc"),
        (Recommender(WALS(col_weights=np.sqrt)), "estimator.col_weights is or has a ufunc"),
        (WALS(init=np.ones(3, complex)), "init is or has a ndarray"),
        (WALS(init=np.ones(3, np.longdouble)), "init has the type .*128"),
        (WALS(init=np.array([[1, "a"]], dtype=object)), "init is an array of objects of 2 dim"),
        (WALS(random_state=np.random.default_rng(0)), "random_state is or has a Generator"),
        (Derived(), "The model is or has a Derived"),
        (WALS(n_components=Colour.RED), "n_components is or has a Colour"),
        (WALS(init=[Fraction(1, 3)]), "init is or has a Fraction"),
        (WALS(init=sp.csr_matrix((3, 3))), "init is or has a csr_matrix"),
        (WALS(init=np.ma.ones(3)), "init is or has a MaskedArray.*NumPy array"),
    ],
)
def test_what_a_file_cannot_hold(model, message, path):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        model.save(path)
    assert path.read_bytes() == b"old"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("ids", [[Fraction(1, 3)], [Colour.RED], [frozenset({1})], [(1, 2j)]])
def test_ids_that_a_file_cannot_hold(ids, path):
    model = Recommender(WALS(1, max_iter=1)).fit([(x, 1) for x in ids])
    with pytest.raises(ValueError, match=r"users_ is or has a \w+, which a file cannot hold"):
        model.save(path)
    assert [*path.parent.iterdir()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"note": 3}, "The attribute note is none that a WALS has"),
        ({"components_": np.ones((5, 59))}, "n_features_in_|does not fit"),
        ({"row_factors_": np.ones((90, 5), np.float16)}, "row_factors_ is an array of float16"),
        ({"row_weights_": np.ones(90, int)}, "row_weights_ is an array of int64"),
        ({"row_weights_": np.ones((90, 1))}, "row_weights_ is not an array of 1 dim"),
        ({"_col_mass": np.ones(61)}, "_col_mass has shape .61,., which does not fit"),
        ({"n_features_in_": 61}, "components_ has 60 columns, not 61"),
        ({"n_iter_": "1"}, "n_iter_ is a str"),
        ({"col_ids_": np.arange(59)}, "col_ids_ has shape"),
    ],
)
def test_models_that_do_not_fit_together(model, path, change, message):
    changed = copy.copy(model)
    vars(changed).update(change)
    with pytest.raises(ValueError, match=message):
        changed.save(path)
    assert [*path.parent.iterdir()] == []


def test_factors_of_different_precision(model, path):
    changed = copy.copy(model)
    other = {"f": np.float64, "d": np.float32}[model.components_.dtype.char]
    changed.components_ = model.components_.astype(other)
    with pytest.raises(ValueError, match="differ in precision"):
        changed.save(path)


def replaced(old, new):
    def edit(header):
        assert header.count(old) >= 1
        return header.replace(old, new, 1)

    return edit


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'\\"version\\": 1', b'\\"version\\": 2', "version 2 of the format.*upgrade wals"),
        (b'\\"kind\\": \\"model', b'\\"kind\\": \\"fit', "holds a fit, not a model"),
        (b'\\"max_iter\\"', b'\\"max_iters\\"', "does not know the parameter max_iters of WALS"),
        (b'\\"n_iter_\\"', b'\\"n_iters_\\"', "does not know the attribute n_iters_ of WALS"),
        (b'{\\"WALS\\"', b'{\\"SLAW\\"', "no model that can be read"),
        (b'{\\"WALS\\"', b'{\\"power_law\\"', "does not know the"),
        (b'{\\"WALS\\": [{', b"[" * 5000 + b'{\\"WALS\\": [{', "cannot|wrong header"),
    ],
)
def test_other_versions(model, path, old, new, message):
    model.save(path)
    path.write_bytes(reseal(path.read_bytes(), replaced(old, new)))
    with pytest.raises(ValueError, match=message):
        wals.load(path)


def test_parameters_that_an_older_version_did_not_have(path):
    WALS(3).save(path)
    content = path.read_bytes()
    old = re.search(rb'\\"max_iter\\": 10, ', content)[0]
    path.write_bytes(reseal(content, replaced(old, b"")))
    assert_same(wals.load(path), WALS(3))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["wals", "recommender"])
def test_files_of_version_1(name, mmap):
    expected = models()[name]
    assert_same(wals.load(MODELS / f"{name}-1.wals", mmap=mmap), expected)


@pytest.mark.parametrize("mmap", [False, True])
def test_pickle_is_not_loaded(path, mmap):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    path.write_bytes(pickle.dumps(Trap()) * 50)
    with pytest.raises(ValueError, match="is not a file of wals"):
        wals.load(path, mmap=mmap)
    joblib.dump(Trap(), path)
    with pytest.raises(ValueError, match="is not a file of wals"):
        wals.load(path, mmap=mmap)


# ------------------------------------------------------------------------------------ maps of files


def test_mapped_arrays(model, X, path, mapping):
    served = again(model, path, mmap=True)
    before = path.read_bytes()
    for name in ("row_factors_", "components_", "row_weights_", "_col_mass"):
        array = getattr(served, name)
        assert not array.flags.writeable
        while isinstance(array, np.ndarray):
            owner, array = array, array.base
        assert isinstance(owner.base, mmap | memoryview)
        assert getattr(served, name).T.ctypes.data % _format.ALIGNMENT == 0
    expected = copy.deepcopy(model)
    for changing in (served, expected):
        changing.partial_fit(X[:9], indices=np.arange(9), weights=3)
        changing.partial_fit(X, axis=1)
        changing.partial_fit(X[:4])
    assert_same(served, expected)
    assert path.read_bytes() == before
    assert_same(wals.load(path), model)


def test_a_file_that_is_replaced_stays_what_it_was(model, X, path, mapping):
    served, before = again(model, path, mmap=True), results(model, X)
    WALS(2, max_iter=1).fit(X).save(path)
    assert_same(results(served, X), before)
    path.unlink()
    assert_same(results(served, X), before)


def test_small_arrays_of_a_mapped_model_are_read_only(model, path):
    served = again(model, path, mmap=True)
    with pytest.raises(ValueError, match="read-only"):
        served.components_[0, 0] = 1
    assert not served.row_weights_.flags.writeable
    assert again(model, path).row_weights_.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_compiled_for_a_map(dtype, path, mapping):
    precompile(dtype)
    compiled = [
        kernel
        for kernel in (vars(kernels) | vars(passes) | vars(ranking) | vars(team)).values()
        if hasattr(getattr(kernel, "_cache", None), "places")
    ]
    before = [list(kernel.signatures) for kernel in compiled]
    X = sp.random(90, 60, 0.2, "csr", dtype, random_state=0)
    served = again(WALS(5, max_iter=1, random_state=0).fit(X), path, mmap=True)
    results(served, X)
    served.partial_fit(X, axis=1).partial_fit(X)
    served.set_params(warm_start=True).fit(X)
    assert [list(kernel.signatures) for kernel in compiled] == before
    assert len(compiled) == 14


# ------------------------------------------------------------------------------------------- others


def test_safetensors_reads_the_arrays(model, path):
    model.save(path)
    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if not name.startswith("padding.")]  # noqa: SIM118
        assert_same(file.get_tensor("components_.T"), np.ascontiguousarray(model.col_factors_))
        assert_same(file.get_tensor("row_factors_"), model.row_factors_)
    arrays = {"components_.T" if name == "components_" else name for name in vars(model)}
    assert set(names) == {
        name for name in arrays if name.startswith("comp") or np.ndim(vars(model)[name])
    }


def test_files_of_safetensors_itself_are_refused(path):
    from safetensors.numpy import save_file

    save_file({"components_": np.ones((3, 4))}, path)
    with pytest.raises(ValueError, match="is not a file of wals"):
        wals.load(path)


@pytest.mark.parametrize("mmap_mode", [None, "r", "c", "r+"])
def test_joblib(model, X, path, mmap_mode):
    joblib.dump(model, path)
    before = path.read_bytes()
    served = joblib.load(path, mmap_mode=mmap_mode)
    assert_same(results(served, X), results(model, X))
    expected = copy.deepcopy(model)
    for changing in (served, expected):
        changing.partial_fit(X, axis=1).partial_fit(X[:3], indices=[2, 1, 0])
    assert_same(results(served, X), results(expected, X))
    del served
    assert path.read_bytes() == before


@pytest.fixture
def recommender():
    return Recommender(WALS(2, max_iter=2, random_state=0)).fit(
        [(f"u{i % 7}", i % 5) for i in range(0, 99, 2)]
    )


def through(how, model, path):
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    if how == "joblib":
        joblib.dump(model, path)
        return joblib.load(path)
    if how == "skops":
        skops.io.dump(model, path)
        return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    if how == "deepcopy":
        return copy.deepcopy(model)
    return again(model, path)


@pytest.mark.parametrize("how", ["pickle", "joblib", "skops", "deepcopy", "save"])
@pytest.mark.parametrize("source", ["memory", "joblib", "wals"])
def test_all_ways_from_all_sources(model, recommender, X, path, how, source, mapping):
    for original in (model, recommender):
        loaded = original
        if source == "joblib":
            joblib.dump(original, path.with_name("mapped"))
            loaded = joblib.load(path.with_name("mapped"), mmap_mode="r")
        elif source == "wals":
            loaded = again(original, path.with_name("mapped"), mmap=True)
        served = through(how, loaded, path)
        if isinstance(served, WALS):
            assert_same(results(served, X), results(original, X))
        else:
            assert served.recommend(n=3).tolist() == original.recommend(n=3).tolist()
        for name in vars(original).keys() - {"_places", "estimator", "estimator_"}:
            assert_same(vars(served)[name], vars(original)[name])
