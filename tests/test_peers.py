"""README's translations: one exact iteration from what a peer converged to does not move it.

The files of tests/peers, of real runs, are made by benchmarks/peers.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from wals import WALS

FOLDER = Path(__file__).parent / "peers"


def load_case(peer, case):
    """Return what a library was given, its parameters, and the item factors that it found."""
    with np.load(FOLDER / f"{peer}.npz", allow_pickle=False) as file:
        arrays = {name.removeprefix(f"{case}/"): file[name] for name in file.files}
    V, indptr = arrays["V"].astype(np.float64), arrays["indptr"].astype(np.int32)
    X = (arrays["values"].astype(np.float64), arrays["indices"].astype(np.int32), indptr)
    X = sp.csr_array(X, shape=(len(indptr) - 1, len(V)))
    return X, json.loads(str(arrays["about"]))["cases"][case], V, arrays.get("entry_weights")


def with_values(X, values):
    return sp.csr_array((np.broadcast_to(values, X.nnz).astype(X.dtype), X.indices, X.indptr), X.shape)


def translate(peer, case, X, p, entry_weights):
    """Return X, parameters of WALS and entry weights, as README says."""
    if peer == "implicit":
        settings = {"unobserved_weight": 1, "regularization": p["regularization"]}
        if case == "ones":
            return X, settings | {"observed_weight": p["alpha"] - 1}, None
        E = with_values(X, p["alpha"] * np.abs(X.data) - 1)
        return with_values(X, X.data > 0), settings, E
    if peer == "irspack":
        settings = {"unobserved_weight": p["alpha0"], "regularization": p["reg"]}
        settings["regularization_exponent"] = p["nu"]
        return X, settings, None
    if peer == "cmfrec":
        settings = {"regularization": p["lambda_"]}
        if case == "implicit":
            settings |= {"unobserved_weight": 1, "observed_weight": p["alpha"], "implicit": True}
        elif p.get("NA_as_zero"):
            settings |= {"unobserved_weight": 1, "observed_weight": 0}
        else:
            settings |= {"unobserved_weight": 0}
            settings["regularization_exponent"] = float(p.get("scale_lam", False))
        E = None if entry_weights is None else with_values(X, entry_weights)
        return X, settings, E
    if peer == "lenskit":
        settings = {"unobserved_weight": 1, "observed_weight": p["weight"]}
        settings |= {"regularization": p["regularization"], "implicit": p["use_ratings"]}
        return (X if p["use_ratings"] else with_values(X, 1)), settings, None
    settings = {"regularization": p["regParam"], "regularization_exponent": 1}
    if not p.get("implicitPrefs"):
        return X, settings | {"unobserved_weight": 0}, None
    settings |= {"unobserved_weight": 1, "observed_weight": p["alpha"], "implicit": True}
    return X, settings | {"regularization_by": "count"}, None


def moves(V, X, settings, entry_weights=None):
    """Return how far one exact iteration moves V, relative to it."""
    model = WALS(V.shape[1], init=V, solver="exact", max_iter=1, **settings)
    model.fit(X, entry_weights=entry_weights)
    return np.linalg.norm(model.col_factors_ - V) / np.linalg.norm(V)


@pytest.mark.parametrize(
    ("peer", "case", "tol"),
    [
        ("implicit", "values", 1e-6),
        ("implicit", "negative", 1e-6),
        ("implicit", "ones", 1e-6),
        ("irspack", "original", 1e-5),
        ("irspack", "ialspp", 1e-5),
        ("cmfrec", "implicit", 1e-6),
        ("cmfrec", "explicit", 1e-6),
        ("cmfrec", "scaled", 1e-6),
        ("cmfrec", "zeros", 1e-6),
        ("cmfrec", "weights", 1e-6),
        ("lenskit", "ones", 1e-5),
        ("lenskit", "ratings", 1e-5),
        ("spark", "explicit", 1e-5),
        ("spark", "implicit", 1e-5),
        ("spark", "negative", 1e-5),
    ],
)
def test_translation(peer, case, tol):
    X, parameters, V, entry_weights = load_case(peer, case)
    X, settings, E = translate(peer, case, X, parameters, entry_weights)
    moved = moves(V, X, settings, E)
    print(peer, case, f"{moved:.1e}")
    if peer == "irspack":
        other = with_values(X, X.data / (1 + parameters["alpha0"]))
        print("other", moves(V, other, settings, E), moves(V, with_values(X, 1/(1+parameters["alpha0"])), settings, E), moves(V, with_values(X, 1), settings, E))
    assert moved <= tol
