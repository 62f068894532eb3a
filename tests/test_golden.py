"""The public interface against runs of TensorFlow 1.12, described in golden/README.md."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from reference import GOLDEN, load_golden

from wals import WALS

CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
TOL = 2e-4


def assert_close(actual, desired, tol):
    """Check max|actual - desired| <= tol max|desired|."""
    assert actual.shape == desired.shape
    assert_allclose(actual, desired, rtol=0, atol=tol * np.abs(desired).max())


def matrix(tf, dtype, prefix=""):
    rows, cols, vals, shape = (
        getattr(tf, prefix + name) for name in ("rows", "cols", "vals", "shape")
    )
    return sp.coo_array((vals.astype(dtype), (rows, cols)), shape=tuple(shape)).tocsr()


class Run(SimpleNamespace):
    """A case in the words of `WALS`, and its fit for every number of iterations."""

    def __init__(self, name, dtype):
        tf = load_golden(name)
        given = [w for w in (tf.row_w, tf.col_w) if w.size]
        super().__init__(
            name=name,
            tf=tf,
            dtype=dtype,
            X=matrix(tf, dtype),
            n_iter=len(tf.V),
            row_weights=tf.row_w if tf.row_w.ndim and tf.row_w.size else None,
            params={
                "n_components": int(tf.k),
                "unobserved_weight": float(tf.w0),
                "observed_weight": float(
                    np.prod([w for w in given if w.ndim == 0]) if given else 0
                ),
                "col_weights": tf.col_w if tf.col_w.ndim and tf.col_w.size else None,
                "regularization": float(np.nan_to_num(tf.reg)),
                "solver": "exact",
                "init": tf.V0.astype(dtype),
                "tol": 0,
            },
        )

    @functools.cached_property
    def fits(self):
        return [self.fit(max_iter=t) for t in range(self.n_iter + 1)]

    def fit(self, **params):
        return WALS(**self.params | params).fit(self.X, row_weights=self.row_weights)

    def at_sweep(self, s, axis):
        """Return the model whose fixed side, when it projects along axis, is that of sweep s."""
        return self.fits[s // 2 if axis == 0 else (s - 1) // 2]

    def tf_loss(self, model, result, axis, n_items):
        """Return the loss, unregularized loss and penalty that TensorFlow makes of `evaluate`."""
        fixed = (model.components_, model.row_factors_)[axis].astype(np.float64)
        fixed_penalty = self.params["regularization"] * (fixed**2).sum()
        scale = self.X.shape[axis] / n_items
        data_loss = scale * result["data_loss"]
        penalty = scale * (result["penalty"] - fixed_penalty) + fixed_penalty
        return data_loss + penalty, data_loss, penalty


make_run = functools.cache(Run)


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=CASES)
def run(request, dtype):
    return make_run(request.param, dtype)


def test_factors(run):
    for t, model in enumerate(run.fits):
        assert model.row_factors_.dtype == model.components_.dtype == run.dtype
        if t < run.n_iter:
            assert_close(model.row_factors_, run.tf.U[t], TOL)
        if t > 0:
            assert_close(model.col_factors_, run.tf.V[t - 1], TOL)
    tol = 1e-7 if run.dtype == "float64" else TOL
    assert_close(run.fits[-2].row_factors_, run.tf.ref64_U, tol)
    assert_close(run.fits[-1].col_factors_, run.tf.ref64_V, tol)


def test_losses(run):
    """After every sweep; before a column sweep, U is that of a fit with an iteration less."""
    tf, weights = run.tf, (run.row_weights, run.params["col_weights"])
    loss_curve = run.fits[-1].loss_curve_
    n_empty = [n - np.unique(i).size for n, i in zip(run.X.shape, (tf.rows, tf.cols), strict=True)]
    for s in range(2 * run.n_iter):
        model, axis = run.fits[s // 2], s % 2
        result = model.evaluate(run.X, axis=axis, weights=weights[axis])
        assert_allclose(loss_curve[s], result["loss"], rtol=1e-5)
        assert_allclose(result["data_loss"], tf.ref64_loss_unreg[s], rtol=1e-4)
        assert_allclose(result["penalty"], tf.ref64_reg_loss[s], rtol=1e-4)
        assert_allclose(result["sum_weights"], tf.ref64_sum_weights[s], rtol=1e-6)

        n, other = run.X.shape[axis], run.X.shape[1 - axis]
        seen = n - n_empty[axis]
        total, data_loss, penalty = run.tf_loss(model, result, axis, seen)
        seen_weights = result["sum_weights"] - n_empty[axis] * other * tf.w0
        assert_allclose(total, tf.total_loss[s], rtol=1e-4)
        assert_allclose(np.sqrt(result["data_loss"] / seen_weights), tf.rwse[s], rtol=1e-4)
        if not run.name.startswith("est_"):
            assert_allclose(data_loss, tf.loss_unreg[s], rtol=1e-4)
            assert_allclose(penalty, tf.reg_loss[s], rtol=1e-4)
            assert_allclose(n / seen * seen_weights, tf.sum_weights[s], rtol=1e-4)


def test_attributes_of_the_last_sweep(run):
    """The last row sweep of a fit is the first of the next iteration."""
    tf = run.tf
    for t, model in enumerate(run.fits[: run.n_iter]):
        data_loss, sum_weights = tf.ref64_loss_unreg[2 * t], tf.ref64_sum_weights[2 * t]
        assert_allclose(model.loss_, data_loss + tf.ref64_reg_loss[2 * t], rtol=1e-4)
        assert_allclose(model.rwse_, np.sqrt(data_loss / sum_weights), rtol=1e-4)
        assert model.n_iter_ == t
        assert model.loss_curve_.shape == (2 * t + 1,)


@pytest.mark.parametrize("axis, side", [(0, "row"), (1, "col")])
def test_projections(run, axis, side):
    """TensorFlow's replaces the scalar weight of its side; ours multiplies observed_weight."""
    tf = vars(run.tf)
    scalar = tf[f"{side}_w"] if tf[f"{side}_w"].ndim == 0 else 1.0
    model = run.at_sweep(int(tf[f"proj{side}_at_s"]), axis)
    X = matrix(run.tf, run.dtype, f"proj{side}_")
    for kind in ("default", "scalar", "vector"):
        weights = tf.get(f"proj{side}_{kind}_w", 1.0) / scalar
        projected = model.transform(X, axis=axis, weights=weights)
        assert_close(projected, tf[f"proj{side}_{kind}"], TOL)
    if scalar == 1:
        assert_close(model.transform(X, axis=axis), tf[f"proj{side}_default"], TOL)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("est_")])
@pytest.mark.parametrize("axis, side", [(0, "row"), (1, "col")])
@pytest.mark.parametrize("kind", ["train", "new"])
def test_evaluate(name, dtype, axis, side, kind):
    """TensorFlow weights new items like those of the model with the same numbers."""
    run = make_run(name, dtype)
    tf = vars(run.tf)
    model = run.at_sweep(int(tf[f"eval{side}_{kind}_at_s"]), axis)
    X = run.X if kind == "train" else matrix(run.tf, dtype, f"proj{side}_")
    n_items = X.shape[axis]
    result = model.evaluate(X, axis=axis, weights=tf[f"{side}_w"][:n_items])
    loss, _, _ = run.tf_loss(model, result, axis, n_items)
    assert_allclose(loss, tf[f"eval{side}_{kind}_loss"], rtol=1e-4)


def test_warm_start(run):
    """One iteration at a time."""
    model = WALS(**run.params | {"max_iter": 1, "warm_start": True})
    for straight in run.fits[1:]:
        model.fit(run.X, row_weights=run.row_weights)
        assert_close(model.components_, straight.components_, 1e-6)
        assert_close(model.row_factors_, straight.row_factors_, 1e-6)
        rtol = 1e-6 if run.X.dtype == np.float64 else 1e-5
        assert_allclose(model.loss_curve_, straight.loss_curve_[-3:], rtol=rtol)


def test_minibatch(dtype):
    """Batches of rows and then of columns, as TensorFlow was fed in this case."""
    run = make_run("minibatch", dtype)
    model = WALS(**run.params)
    n, m = run.X.shape
    for U, V in zip(run.tf.U, run.tf.V, strict=True):
        for rows in (np.arange(n)[b::5] for b in range(5)):
            model.partial_fit(run.X[rows], indices=rows, weights=run.row_weights[rows])
        assert_close(model.row_factors_, U, TOL)
        for cols in (np.arange(m)[b::4] for b in range(4)):
            model.partial_fit(run.X[:, cols], indices=cols, axis=1)
        assert_close(model.col_factors_, V, TOL)


def test_auto(run):
    model = run.fit(solver="auto", max_iter=run.n_iter)
    assert model.loss_ <= run.fits[-1].loss_ * (1 + 1e-3)


@pytest.mark.parametrize("name", CASES)
def test_cg(name):
    """Gets as low as exact solves do, though not always within as few iterations."""
    run = make_run(name, "float64")
    max_iter = 200 if name == "ratings_300x200" else 100
    exact, cg = (run.fit(solver=solver, max_iter=max_iter).loss_ for solver in ("exact", "cg"))
    assert cg <= exact * (1 + 1e-3)
