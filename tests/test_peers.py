"""README's translations: one exact iteration from what a peer converged to does not move it.

The files of tests/peers, of real runs, are made by benchmarks/peers.py.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import scipy.sparse as sp
from numpy.testing import assert_array_equal
from sklearn.base import clone
from test_golden import TOL, assert_close, make_run

from wals import WALS

FOLDER = Path(__file__).parent / "peers"


def load_case(peer, case):
    """Return what a library was given, its parameters, item factors that it found, and the rest."""
    with np.load(FOLDER / f"{peer}.npz", allow_pickle=False) as file:
        arrays = {name.removeprefix(f"{case}/"): file[name] for name in file.files}
    V, indptr = arrays["V"].astype(np.float64), arrays["indptr"].astype(np.int32)
    X = (arrays["values"].astype(np.float64), arrays["indices"].astype(np.int32), indptr)
    X = sp.csr_array(X, shape=(len(indptr) - 1, len(V)))
    return X, json.loads(str(arrays["about"]))["cases"][case], V, arrays


def with_values(X, values):
    return sp.csr_array(
        (np.broadcast_to(values, X.nnz).astype(X.dtype), X.indices, X.indptr), X.shape
    )


def translate(peer, case, X, p, arrays):
    """Return X, entry weights, and parameters of WALS, as README says."""
    if peer == "implicit":
        settings = {"unobserved_weight": 1, "regularization": p["regularization"]}
        if case == "ones":
            return X, None, settings | {"observed_weight": p["alpha"] - 1}
        E = with_values(X, p["alpha"] * np.abs(X.data) - 1)
        return with_values(X, X.data > 0), E, settings
    if peer == "irspack":
        settings = {"unobserved_weight": p["alpha0"], "regularization": p["reg"]}
        settings["regularization_exponent"] = p["nu"]
        if p["loss_type"] == "ORIGINAL":
            return X, None, settings | {"implicit": True}
        return with_values(X, X.data / (X.data + p["alpha0"])), X, settings
    if peer == "cmfrec":
        settings = {"regularization": p["lambda_"]}
        if case == "implicit":
            settings |= {"unobserved_weight": 1, "observed_weight": p["alpha"], "implicit": True}
        elif p.get("NA_as_zero"):
            settings |= {"unobserved_weight": 1, "observed_weight": 0}
        else:
            settings |= {"unobserved_weight": 0}
            settings["regularization_exponent"] = float(p.get("scale_lam", False))
        E = with_values(X, arrays["entry_weights"]) if case == "weights" else None
        return X, E, settings
    if peer == "lenskit":
        settings = {"unobserved_weight": 1, "observed_weight": p["weight"]}
        settings |= {"regularization": p["regularization"], "implicit": p["use_ratings"]}
        return (X if p["use_ratings"] else with_values(X, 1)), None, settings
    settings = {"regularization": p["regParam"], "regularization_exponent": 1}
    if not p.get("implicitPrefs"):
        return X, None, settings | {"unobserved_weight": 0}
    settings |= {"unobserved_weight": 1, "observed_weight": p["alpha"], "implicit": True}
    return X, None, settings | {"regularization_by": "count"}


def moves(V, X, E, settings):
    """Return how far one exact iteration moves V, relative to it."""
    model = WALS(V.shape[1], init=V, solver="exact", max_iter=1, **settings)
    model.fit(X, entry_weights=E)
    return np.linalg.norm(model.col_factors_ - V) / np.linalg.norm(V)


def moves_by_ridges(V, problem, lam, mu):
    """Return the same for regularizations that no parameters of WALS state, by the oracle."""
    V1 = reference.run(problem._replace(lam=lam, mu=mu), V, 1)[0][-1][1]
    return np.linalg.norm(V1 - V) / np.linalg.norm(V)


#: Other parameters, from which V must move.
WRONG = {
    "implicit": {"unobserved_weight": 0.9},
    "irspack": {"unobserved_weight": 0.4},
    "cmfrec": {"regularization": 2.0},
    "lenskit": {"observed_weight": 2.0},  # as if the weight were the total, and not the extra one
    "spark": {"regularization_exponent": 0},
}
#: Factors in float64 move by 2e-12 at most.
DOUBLE, SINGLE = 1e-10, 1e-5


@pytest.mark.parametrize(
    ("peer", "case", "tol"),
    [
        ("implicit", "values", DOUBLE),
        ("implicit", "negative", DOUBLE),
        ("implicit", "ones", DOUBLE),
        ("irspack", "ORIGINAL ones", SINGLE),
        ("irspack", "ORIGINAL values", SINGLE),
        ("irspack", "IALSPP ones", SINGLE),
        ("irspack", "IALSPP values", SINGLE),
        ("cmfrec", "implicit", DOUBLE),
        ("cmfrec", "explicit", DOUBLE),
        ("cmfrec", "scaled", DOUBLE),
        ("cmfrec", "zeros", DOUBLE),
        ("cmfrec", "weights", DOUBLE),
        ("lenskit", "ones", SINGLE),
        ("lenskit", "ratings", SINGLE),
        ("spark", "explicit", SINGLE),
        ("spark", "implicit", SINGLE),
        ("spark", "implicit signed", SINGLE),
    ],
)
def test_translation(peer, case, tol):
    X, parameters, V, arrays = load_case(peer, case)
    X, E, settings = translate(peer, case, X, parameters, arrays)
    assert moves(V, X, E, settings) <= tol
    assert moves(V, X, E, settings | WRONG[peer]) > 1e-3


def test_ridges_of_users_and_items_count_as_their_product():
    """U c and V / c predict the same: here for 4 and 1/4 times the ridge."""
    X, parameters, V, arrays = load_case("lenskit", "ratings")
    X, _, settings = translate("lenskit", "ratings", X, parameters, arrays)
    problem = reference.make_problem(X, **settings)
    assert moves_by_ridges(2 * V, problem, 4 * problem.lam, problem.mu / 4) <= SINGLE
    assert moves_by_ridges(V, problem, 4 * problem.lam, problem.mu / 4) > 1e-3


def test_spark_counts_positive_ratings():
    """Neither weights nor all ratings, of which some are negative or 0."""
    X, parameters, V, arrays = load_case("spark", "implicit signed")
    _, _, settings = translate("spark", "", X, parameters, {})
    assert moves(V, X, None, settings | {"regularization_by": "weight"}) > 1e-3
    rated = sp.csr_array((np.ones(X.nnz), X.indices, X.indptr), X.shape)
    ridges = (parameters["regParam"] * rated.sum(axis=axis) for axis in (1, 0))
    assert moves_by_ridges(V, reference.make_problem(X, **settings), *ridges) > 1e-3
    # A user of zeros only.
    assert not X[[0]].data.any()
    assert not arrays["U"][0].any()


def test_spark_takes_duplicates_for_separate_observations():
    """Here every third rating is there twice: it weighs twice as much, and counts twice."""
    X, parameters, V, _ = load_case("spark", "explicit twice")
    _, _, settings = translate("spark", "", X, parameters, {})
    twice = with_values(X, 1 + (np.arange(X.nnz) % 3 == 0))
    assert moves(V, X, twice, settings) <= SINGLE
    assert moves(V, X, None, settings) > 1e-3


def test_spark_recommends_what_was_seen():
    X, parameters, V, arrays = load_case("spark", "implicit")
    X, _, settings = translate("spark", "", X, parameters, {})
    model = WALS.from_factors(V.T, arrays["U"], **settings)
    columns, _ = model.recommend(None, 3, factors=arrays["U"], exclude_seen=False)
    assert_array_equal(10 + 3 * columns, arrays["best"])
    seen = X.toarray()[np.arange(X.shape[0])[:, None], columns] > 0
    assert seen.mean() > 0.5


def test_a_model_that_spark_saved():
    """Ids are not dense, and are in any order."""
    X, parameters, V, _ = load_case("spark", "implicit signed")
    users, items = (
        pd.read_parquet(FOLDER / "spark_model" / name) for name in ("userFactors", "itemFactors")
    )
    assert sorted(items["id"]) == list(range(10, 10 + 3 * X.shape[1], 3))
    U, own = np.stack(users["features"]), np.stack(items["features"])
    assert_array_equal(own[np.argsort(items["id"])], V)
    X, _, settings = translate("spark", "", X, parameters, {})
    model = WALS.from_factors(own.T, U, **settings)
    assert model.components_.dtype == np.float32
    # The rows of its users, in the order of its folder, are what it has of them.
    ours = model.transform(X[users["id"]][:, (items["id"] - 10) // 3])
    assert np.linalg.norm(ours - U) <= SINGLE * np.linalg.norm(U)


def test_a_model_that_implicit_saved():
    X, parameters, V, arrays = load_case("implicit", "values")
    X, E, settings = translate("implicit", "values", X, parameters, arrays)
    with np.load(FOLDER / "implicit_model.npz", allow_pickle=False) as file:
        model = WALS.from_factors(file["item_factors"].T, file["user_factors"], **settings)
    assert_array_equal(model.col_factors_, V)
    # transform has no entry_weights, but a fit from its factors has.
    U = clone(model).set_params(init=V, max_iter=0).fit(X, entry_weights=E).row_factors_
    assert np.linalg.norm(U - model.row_factors_) <= DOUBLE * np.linalg.norm(U)


def test_variables_of_tensorflow(tmp_path):
    """Training goes on from a row sweep of TensorFlow to what its column sweep gave."""
    run = make_run("est_list_weights", np.float32)
    for name, factors in (("row", run.tf.U[-1]), ("col", run.tf.V[-2])):
        np.save(tmp_path / f"{name}_factors.npy", factors)
    U, V = (np.load(tmp_path / f"{name}_factors.npy") for name in ("row", "col"))
    settings = {name: value for name, value in run.params.items() if name != "init"}
    model = WALS.from_factors(V.T, U, row_weights=run.row_weights, **settings)
    model.partial_fit(run.X, axis=1)
    assert_close(model.col_factors_, run.tf.V[-1], TOL)


@pytest.mark.parametrize("loss_type", ["ORIGINAL", "IALSPP"])
def test_irspack_counts_entries_whatever_their_values(loss_type):
    """Its regularization is a power of alpha0 m + n_i, which is no total weight but of ones."""
    X, p, V, _ = load_case("irspack", f"{loss_type} values and nu")
    A, E, settings = translate("irspack", "", X, p, {})
    assert moves(V, A, E, settings) > 1e-3
    counts = (np.diff(matrix.indptr) + p["alpha0"] * matrix.shape[1] for matrix in (X, X.T.tocsr()))
    ridges = (p["reg"] * count ** p["nu"] for count in counts)
    problem = reference.make_problem(A, entry_weights=E, **settings)
    assert moves_by_ridges(V, problem, *ridges) <= SINGLE
