"""Callbacks in a fit: order, what they get, stopping; and what is said where there are none."""

import functools
import importlib.util
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wals import WALS
from wals._core.sweep import Side
from wals.callbacks import EarlyStopping
from wals.datasets import make_interactions
from wals.metrics import ndcg_at_k, rmse
from wals.model_selection import holdout_scorer, split_entries
from wals.weights import power_law

SUPPORTED = importlib.util.find_spec("sklearn.callback") is not None


def with_callbacks(test):
    """Run a test of callbacks; where there are none, test that setting them says so."""

    @functools.wraps(test)
    def test_message(*args, **kwargs):
        with pytest.raises(ImportError, match=r"need scikit-learn >= 1.9, but .* is installed"):
            test(*args, **kwargs)

    return test if SUPPORTED else test_message


@pytest.fixture(scope="module")
def X():
    return make_interactions(300, 60, 4_500, n_topics=4, random_state=0).astype(np.float64)


@pytest.fixture(scope="module")
def split(X):
    return split_entries(X, 0.3, strategy="per-row", random_state=0)


@pytest.fixture
def model():
    return WALS(6, max_iter=4, random_state=0)


def assert_same_fit(a, b):
    """Assert equality but for the clock; LAPACK may round by where its arrays are in memory."""
    assert a.n_iter_ == b.n_iter_
    assert len(a.loss_curve_) == len(a.rwse_curve_) == len(a.seconds_) == 2 * a.n_iter_ + 1
    for name in ("components_", "row_factors_", "loss_curve_", "rwse_curve_"):
        assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-8, atol=1e-10, err_msg=name)
    for name in ("row_weights_", "col_weights_", "_row_mass", "_col_mass"):
        assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.loss_ == a.loss_curve_[-1]
    assert a.rwse_ == a.rwse_curve_[-1]


class Recorder:
    """Records all hooks; stops after an iteration, or fails in a hook."""

    def __init__(self, stop_after=None, fail_at=None):
        self.stop_after, self.fail_at, self.record = stop_after, fail_at, []

    def _add(self, hook, context, **kwargs):
        self.record.append((hook, context.task_name, context.task_id, context.max_subtasks, kwargs))
        if self.fail_at == (hook, context.task_id):
            raise RuntimeError("on purpose")

    def setup(self, estimator, context):
        self._add("setup", context)

    def teardown(self, estimator, context):
        self._add("teardown", context)

    def on_fit_task_begin(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self._add("begin", context, X=X, y=y, metadata=metadata, model=fitted_estimator)

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self._add("end", context, X=X, y=y, metadata=metadata, model=fitted_estimator)
        return context.task_name == "iteration" and context.task_id + 1 == self.stop_after

    @property
    def models(self):
        return [r[4]["model"] for r in self.record if r[:2] == ("end", "iteration")]


class Quiet(Recorder):
    """Asks for nothing."""

    def on_fit_task_begin(self, estimator, context):
        self._add("begin", context)

    def on_fit_task_end(self, estimator, context):
        self._add("end", context)


# ---------------------------------------------------------------------------------- the protocol


@with_callbacks
def test_order_and_data(X, model):
    recorder, weights = Recorder(), np.linspace(0.5, 2, 300)
    model.set_callbacks(recorder).fit(X, row_weights=weights)
    steps = [("setup", "fit", 0, 4), ("begin", "fit", 0, 4)]
    for i in range(4):
        steps += [("begin", "iteration", i, 0), ("end", "iteration", i, 0)]
    steps += [("end", "fit", 0, 4), ("teardown", "fit", 0, 4)]
    assert [r[:4] for r in recorder.record] == steps
    for *_, kwargs in recorder.record[1:-1]:
        assert kwargs["X"] is X
        assert kwargs["y"] is X
        assert kwargs["metadata"] == {"row_weights": weights}
    recorder.record.clear()
    y = np.zeros(300)
    assert_array_equal(model.fit_transform(X, y), model.row_factors_)
    assert [r[:4] for r in recorder.record] == steps
    for *_, kwargs in recorder.record[1:-1]:
        assert kwargs["y"] is y
        assert kwargs["metadata"] is None


@with_callbacks
@pytest.mark.parametrize("solver", ["exact", "cg", "auto"])
@pytest.mark.parametrize("unobserved_weight", [0.1, 0.0])
def test_model_of_an_iteration_is_that_of_a_shorter_fit(X, model, solver, unobserved_weight):
    model.set_params(solver=solver, unobserved_weight=unobserved_weight)
    model.set_params(regularization_exponent=0.5, col_weights=power_law(-0.3))
    entry_weights = X.copy()
    entry_weights.data = np.linspace(0.2, 2, X.nnz)
    weights = {"row_weights": np.linspace(0.5, 2, 300), "entry_weights": entry_weights}
    expected = [clone(model).set_params(max_iter=i).fit(X, **weights) for i in (1, 2, 3, 4)]
    recorder = Recorder()
    model.set_callbacks(recorder).fit(X, **weights)
    assert_same_fit(model, expected[-1])
    assert_same_fit(recorder.record[-2][4]["model"], expected[-1])
    for actual, one in zip(recorder.models, expected, strict=True):
        assert_same_fit(actual, one)
        assert_allclose(actual.transform(X), one.transform(X), rtol=1e-8, atol=1e-10)
        assert actual.evaluate(X) == pytest.approx(one.evaluate(X), rel=1e-8)


@with_callbacks
def test_models_are_made_only_on_demand(X, model, monkeypatch):
    calls, real = [], Side.sweep
    monkeypatch.setattr(Side, "sweep", lambda *a, **kw: calls.append(None) or real(*a, **kw))
    model.set_params(init="random")
    model.set_callbacks(Quiet()).fit(X)
    assert len(calls) == 2 * 4 + 1
    calls.clear()
    # Two that ask share a model.
    model.set_callbacks(Recorder(), Quiet(), Recorder()).fit(X)
    assert len(calls) == 2 * 4 + 1 + 4


@with_callbacks
def test_stop(X, model):
    recorder = Recorder(stop_after=2)
    # Not a failure to converge.
    model.set_params(tol=1e-12).set_callbacks(recorder).fit(X)
    assert len(recorder.models) == 2
    assert_same_fit(model, WALS(6, max_iter=2, random_state=0).fit(X))


@with_callbacks
def test_no_iterations(X, model, split):
    recorder, stopping = Recorder(), EarlyStopping(*split)
    model.set_params(max_iter=0).set_callbacks(recorder, stopping).fit(X)
    assert [r[0] for r in recorder.record] == ["setup", "begin", "end", "teardown"]
    assert_same_fit(model, WALS(6, max_iter=0, random_state=0).fit(X))
    assert stopping.scores_ == []
    assert stopping.best_iteration_ == 0


@with_callbacks
@pytest.mark.parametrize("fail_at", [("setup", 0), ("begin", 1), ("end", 1), ("teardown", 0)])
def test_failure_leaves_the_model_as_it_was(X, model, fail_at, split):
    stopping = EarlyStopping(*split)
    model.fit(X)
    before = vars(clone(model).fit(X)).keys() | {"_skl_callbacks"}
    loss_curve = model.loss_curve_
    model.set_callbacks(stopping, Recorder(fail_at=fail_at))
    with pytest.raises(RuntimeError, match="on purpose"):
        model.fit(X[:, :50] if fail_at[0] == "setup" else X)
    assert model.loss_curve_ is loss_curve
    assert vars(model).keys() == before
    assert not stopping._scores
    model.set_callbacks(stopping).fit(X)
    assert len(stopping.scores_) <= 4


@with_callbacks
def test_nothing_remains_after_a_fit(X, model):
    expected = vars(clone(model).fit(X)).keys()
    model.set_callbacks(Recorder()).fit(X)
    model.set_callbacks()
    assert vars(model).keys() == expected


@with_callbacks
def test_refuses_what_is_no_callback(model):
    with pytest.raises(TypeError, match="FitCallback protocol"):
        model.set_callbacks(print)


@with_callbacks
def test_pickle_and_clone(X, model, split):
    model.set_callbacks(Recorder(), EarlyStopping(*split)).fit(X)
    assert_same_fit(pickle.loads(pickle.dumps(model)).fit(X), model)
    assert_same_fit(clone(model).fit(X), model)
    assert repr(clone(model)) == repr(model)


def test_fit_without_callbacks_says_nothing(X, model, capsys):
    model.fit(X)
    assert capsys.readouterr().out == ""
    model.set_params(verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for i, line in enumerate(lines):
        assert line.startswith(
            f"[WALS] iteration   {i + 1}  columns  loss {model.loss_curve_[2 * i + 1]:.6e}"
        )
        assert f"RWSE {model.rwse_curve_[2 * i + 1]:.6f}" in line


@with_callbacks
def test_callbacks_do_not_change_what_is_printed(X, model, capsys, split):
    stopping = EarlyStopping(*split, patience=9)
    model.set_params(verbose=2).set_callbacks(Recorder(), stopping).fit(X)
    assert len(capsys.readouterr().out.splitlines()) == 2 * 4 + 1


def test_curves(X, model):
    model.fit(X)
    assert model.rwse_curve_.shape == model.seconds_.shape == model.loss_curve_.shape == (9,)
    assert model.seconds_[0] > 0
    assert (np.diff(model.seconds_) > 0).all()
    assert (np.diff(model.loss_curve_) < 0).all()
    # The residuals of the last sweep, by the definition.
    errors = X.toarray() - model.row_factors_ @ model.components_
    W = np.where(X.toarray() != 0, 1.1, 0.1)
    assert model.rwse_curve_[-1] == pytest.approx(np.sqrt((W * errors**2).sum() / W.sum()))
    model.partial_fit(X[:1])
    assert not hasattr(model, "rwse_curve_")
    assert not hasattr(model, "seconds_")


# ---------------------------------------------------------------- the callbacks of scikit-learn


@with_callbacks
def test_scoring_monitor(X, model):
    model.set_callbacks()
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring={"rwse": score_rwse, "ndcg": holdout_scorer("ndcg@5")})
    model.set_callbacks(monitor).fit(X)
    log = monitor.get_logs().data_as_pandas
    expected = [clone(model).set_callbacks().set_params(max_iter=i).fit(X) for i in (1, 2, 3, 4)]
    iterations = log[log["task_name"] == "iteration"]
    assert_allclose(iterations["rwse"], [m.score(X) for m in expected], rtol=1e-8)
    ndcg = [holdout_scorer("ndcg@5")(m, X) for m in expected]
    assert_allclose(iterations["ndcg"], ndcg, rtol=1e-8)
    assert log[log["task_name"] == "fit"]["ndcg"].item() == pytest.approx(ndcg[-1])


def score_rwse(estimator, X, y):
    return estimator.score(X)


@with_callbacks
def test_scoring_monitor_of_named_columns(X, model, split):
    model.set_callbacks()
    from sklearn.callback import ScoringMonitor

    frame = pd.DataFrame(X.toarray(), columns=[f"item {j}" for j in range(60)])
    monitor = ScoringMonitor(scoring={"ndcg": holdout_scorer("ndcg@5")})
    stopping = EarlyStopping(*split)
    model.set_callbacks(monitor, stopping).fit(frame)
    assert len(monitor.get_logs().data) == len(stopping.scores_) + 1


@with_callbacks
def test_progress_bar(X, model, capsys):
    model.set_callbacks()
    from sklearn.callback import ProgressBar

    if importlib.util.find_spec("rich") is None:
        with pytest.raises(ImportError, match="requires rich"):
            ProgressBar()
        return
    expected = clone(model).fit(X)
    assert_same_fit(model.set_callbacks(ProgressBar()).fit(X), expected)
    out = capsys.readouterr().out
    assert "WALS - fit" in out
    assert "100%" in out
    pipeline = make_pipeline(StandardScaler(with_mean=False), clone(model).set_callbacks())
    pipeline.set_callbacks(ProgressBar()).fit(X)
    assert "WALS - fit" in capsys.readouterr().out


@with_callbacks
def test_pipeline(X, model, split):
    train, held_out = split
    recorder, outer = Recorder(), Recorder()
    scaled = StandardScaler(with_mean=False).fit_transform(train)
    stopping = EarlyStopping(scaled, held_out)
    pipeline = make_pipeline(
        StandardScaler(with_mean=False), model.set_callbacks(recorder, stopping)
    )
    # Auto-propagated: it also sees the iterations of WALS.
    outer.max_propagation_depth = None
    pipeline.set_callbacks(outer).fit(train)
    assert [r[1] for r in recorder.record if r[0] == "end"] == [
        *["iteration"] * len(stopping.scores_),
        "fit",
    ]
    assert len(outer.models) == len(stopping.scores_)
    assert pipeline[-1].n_iter_ == stopping.best_iteration_
    alone = clone(model).set_callbacks().set_params(max_iter=stopping.best_iteration_)
    assert_same_fit(pipeline[-1], alone.fit(scaled))


@with_callbacks
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search(X, model, split, n_jobs):
    stopping = EarlyStopping(*split, metric="recall@10", patience=1)
    model.set_params(max_iter=20).set_callbacks(stopping)
    grid = {"n_components": [2, 12]}
    scoring = holdout_scorer("ndcg@10")
    search = GridSearchCV(model, grid, cv=2, scoring=scoring, error_score="raise", n_jobs=n_jobs)
    with parallel_config(backend="threading"):
        search.fit(X)
    best = search.best_estimator_
    # The refit comes last.
    assert best.n_iter_ == stopping.best_iteration_ < 20
    k = search.best_params_["n_components"]
    expected = clone(model).set_callbacks().set_params(max_iter=best.n_iter_, n_components=k)
    assert_same_fit(best, expected.fit(X))
    assert not stopping._scores


# --------------------------------------------------------------------------------- early stopping


@pytest.fixture(scope="module")
def fit_anew(split):
    """Return a function that fits the training part; what is fitted again, is remembered."""

    @functools.cache
    def fit_anew(max_iter, **options):
        return WALS(max_iter=max_iter, **options).fit(split[0])

    return fit_anew


def reference_stop(fit, fold_in, held_out, score, patience):
    """Fit anew for each number of iterations; return the scores, and the best iteration."""
    scores = []
    while len(scores) - (np.argmax(scores) + 1 if scores else 0) < patience and len(scores) < 20:
        scores.append(score(fit(len(scores) + 1), fold_in, held_out))
    return scores, int(np.argmax(scores)) + 1


def ndcg(model, fold_in, held_out):
    scores = model.transform(fold_in) @ model.components_
    scores[fold_in.toarray() != 0] = -np.inf
    return ndcg_at_k(held_out, np.argsort(-scores, axis=1, kind="stable")[:, :10], 10)


def neg_rmse(model, fold_in, held_out):
    predicted = model.inverse_transform(model.transform(fold_in), pattern=held_out)
    return -rmse(held_out, predicted)


@with_callbacks
@pytest.mark.parametrize("solver", ["exact", "auto"])
@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("restore_best", [True, False])
@pytest.mark.parametrize(
    ("metric", "score", "k"), [("ndcg@10", ndcg, 24), ("neg_rmse", neg_rmse, 3)]
)
def test_stops_where_a_plain_loop_does(
    split, fit_anew, solver, patience, restore_best, metric, score, k
):
    train, held_out = split
    options = {"n_components": k, "regularization": 0.1, "solver": solver, "random_state": 3}
    fit = functools.partial(fit_anew, **options)
    expected, best = reference_stop(fit, train, held_out, score, patience)
    stopping = EarlyStopping(train, held_out, metric, patience=patience, restore_best=restore_best)
    model = WALS(max_iter=20, **options).set_callbacks(stopping).fit(train)
    assert_allclose(stopping.scores_, expected, rtol=1e-7)
    assert stopping.best_iteration_ == best
    assert stopping.best_score_ == max(stopping.scores_)
    n_iter = best if restore_best else len(expected)
    assert_same_fit(model, fit(n_iter))
    assert score(model, train, held_out) == pytest.approx(stopping.scores_[n_iter - 1], rel=1e-7)


@with_callbacks
def test_some_stop_is_before_the_last_iteration_and_some_best_before_the_stop(split):
    # What the tests above rely on.
    stopping = EarlyStopping(*split, "ndcg@10")
    options = {"n_components": 24, "regularization": 0.1, "random_state": 3}
    model = WALS(max_iter=20, **options).set_callbacks(stopping).fit(split[0])
    assert model.n_iter_ == len(stopping.scores_) - 2 < 18
    # Without patience to lose, the best is restored as well.
    stopping.patience = 99
    model.set_params(max_iter=stopping.best_iteration_ + 1).fit(split[0])
    assert model.n_iter_ == stopping.best_iteration_


@with_callbacks
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_rows_than_those_of_the_fit(X, dtype):
    X = X.astype(dtype)
    fold_in, held_out = split_entries(X[250:], 0.3, strategy="per-row", random_state=1)
    stopping = EarlyStopping(fold_in.astype(np.int64), held_out, "ndcg@10", patience=1)
    model = WALS(8, max_iter=20, random_state=0).set_callbacks(stopping).fit(X[:250])
    assert model.components_.dtype == dtype
    assert stopping.best_score_ == pytest.approx(ndcg(model, fold_in, held_out), rel=1e-5)


@with_callbacks
def test_rows_without_entries_do_not_count(X, model, split):
    train, held_out = split
    empty = sp.csr_array((5, 60))
    more = [sp.vstack([train, empty, X[:5]]), sp.vstack([held_out, X[:5], empty])]
    a, b = EarlyStopping(train, held_out), EarlyStopping(*more)
    model.set_callbacks(a, b).fit(train)
    assert a.scores_ == b.scores_


@with_callbacks
def test_warm_start_goes_on(split, model):
    stopping = EarlyStopping(*split, restore_best=False, patience=99)
    model.set_params(warm_start=True, max_iter=2).set_callbacks(stopping).fit(split[0])
    first = stopping.best_score_
    model.fit(split[0])
    assert len(stopping.scores_) == 2
    assert stopping.scores_[0] != first


@with_callbacks
def test_early_stopping_is_for_wals_alone(X, model, split):
    stopping = EarlyStopping(*split)
    with pytest.raises(ValueError, match="held_out have 60 columns, but WALS is fitted on 50"):
        model.set_callbacks(stopping).fit(X[:, :50])
    assert not hasattr(model, "components_")
    pipeline = make_pipeline(clone(model).set_callbacks()).set_callbacks(stopping)
    with pytest.raises(TypeError, match="of WALS itself, not of Pipeline"):
        pipeline.fit(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "ndcg"}, "metric must be one of ndcg@<k>"),
        ({"metric": "auc@3"}, "metric must be one of ndcg@<k>"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"patience": 1.5}, "patience must be an integer"),
        ({"patience": True}, "patience must be an integer"),
        ({"restore_best": 1}, "restore_best must be True or False"),
        ({"held_out": sp.csr_array((3, 4))}, r"shape \(300, 60\), but held_out has \(3, 4\)"),
        ({"held_out": sp.csr_array((300, 60))}, "No row can be scored"),
        ({"fold_in": [[np.nan]]}, "Input fold_in contains NaN. Leave out"),
    ],
)
def test_bad_parameters(split, options, message):
    options = {"fold_in": split[0], "held_out": split[1], **options}
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


def test_nothing_is_both_folded_in_and_looked_for(X, split):
    train, held_out = split
    partly = sp.vstack([X[:100], train[100:]])
    for fold_in, n_shared in ((X, held_out.nnz), (partly, held_out[:100].nnz)):
        message = f"fold_in stores {n_shared} of the {held_out.nnz} positions that held_out stores"
        with pytest.raises(ValueError, match=message):
            EarlyStopping(fold_in, held_out)
    # Explicit zeros are stored, too.
    zero = sp.csr_array((np.zeros(1), [int(held_out.indices[0])], [0, *[1] * 300]), shape=X.shape)
    with pytest.raises(ValueError, match="fold_in stores 1 of the"):
        EarlyStopping(zero, held_out)


def test_repr_and_pickle(split):
    stopping = EarlyStopping(*split, metric="mrr@3", patience=4)
    expected = (
        "EarlyStopping(<298 rows of 60 columns>, metric='mrr@3', patience=4, restore_best=True)"
    )
    assert repr(stopping) == repr(pickle.loads(pickle.dumps(stopping))) == expected
