"""Fits that were interrupted end as if they had not been."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from wals import WALS, checkpoint, storage
from wals.callbacks import EarlyStopping
from wals.datasets import load_msweb, make_interactions
from wals.model_selection import split_entries

COMPARED = ("components_", "row_factors_", "loss_curve_", "rwse_curve_", "_row_mass", "_col_mass")


@pytest.fixture(scope="module")
def X():
    return make_interactions(300, 90, 4_000, n_topics=4, random_state=0).astype(np.float32)


def assert_same(model, expected):
    for name in COMPARED:
        assert_array_equal(getattr(model, name), getattr(expected, name), err_msg=name)
    assert model.n_iter_ == expected.n_iter_


def n_iter(path):
    return checkpoint.read(path, kind="checkpoint")[0]["n_iter"]


def fit(model, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(*arguments, **options)


@pytest.mark.parametrize("solver", ["auto", "cg", "exact"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("w0", [0.0, 0.1])
def test_a_fit_goes_on_to_the_same_bits(X, tmp_path, capsys, solver, dtype, w0):
    X = X.astype(dtype)
    model = WALS(
        9, solver=solver, unobserved_weight=w0, regularization=0.1, max_iter=6, random_state=0
    )
    weights = {
        "row_weights": np.linspace(0.5, 2, X.shape[0]),
        "entry_weights": sp.csr_array((np.linspace(1, 2, X.nnz), X.indices, X.indptr), X.shape),
    }
    expected = clone(model).fit(X, **weights)
    model.set_params(checkpoint_dir=tmp_path / "states", verbose=1)
    for max_iter, goes_on_after in ((0, None), (2, None), (3, 2), (6, 3), (6, 6), (4, None)):
        fit(model.set_params(max_iter=max_iter), X, **weights)
        text = f"goes on after iteration {goes_on_after}, from {tmp_path / 'states'}"
        told = capsys.readouterr().out
        assert (text in told) == (goes_on_after is not None)
        assert ("goes on" in told) == (goes_on_after is not None)
        assert len(model.seconds_) == 2 * max_iter + 1
        assert np.all(np.diff(model.seconds_) > 0)
        if max_iter == 6:
            assert_same(model, expected)
    assert_same(model, clone(model).set_params(checkpoint_dir=None, verbose=0).fit(X, **weights))
    assert len(os.listdir(tmp_path / "states")) == 2


def test_every_so_many_iterations(X, tmp_path, capsys):
    model = WALS(4, max_iter=5, random_state=0, checkpoint_dir=tmp_path, checkpoint_every=3)
    model.fit(X)
    assert sorted(map(n_iter, tmp_path.iterdir())) == [3, 5]  # the last one, too
    model.set_params(verbose=1, max_iter=4).fit(X)
    assert "after iteration 3" in capsys.readouterr().out


def test_tol_ends_a_fit_where_it_would(X, tmp_path):
    model = WALS(6, max_iter=30, tol=2e-4, random_state=0)
    expected = clone(model).fit(X)
    assert 3 < expected.n_iter_ < 29
    model.set_params(checkpoint_dir=tmp_path, max_iter=3)
    fit(model, X)
    for max_iter in (30, 40):  # the second time, nothing is left to do
        assert_same(model.set_params(max_iter=max_iter).fit(X), expected)
    model.set_params(tol=0, max_iter=expected.n_iter_ + 4).fit(X)
    assert model.n_iter_ == expected.n_iter_ + 4
    assert_same(model.set_params(tol=2e-4).fit(X), expected)  # not beyond where it ends


@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping_goes_on(X, tmp_path, restore_best):
    pytest.importorskip("sklearn.callback")
    fold_in, held_out = split_entries(X, 0.2, strategy="per-row", random_state=0)

    def stopping():
        return EarlyStopping(fold_in, held_out, patience=2, restore_best=restore_best)

    model, callback = WALS(12, max_iter=30, regularization=0.1, random_state=0), stopping()
    expected = clone(model).set_callbacks(callback).fit(fold_in)
    best = callback.best_iteration_
    assert 2 <= best < len(callback.scores_) < 30
    model.set_params(checkpoint_dir=tmp_path)
    for max_iter in (best, best + 1, 30, 30):
        again = stopping()
        model = clone(model).set_params(max_iter=max_iter).set_callbacks(again).fit(fold_in)
    assert_same(model, expected)
    assert again.scores_ == callback.scores_
    assert again.best_iteration_ == best
    # One that looks at something else begins to look where the fit goes on.
    other = EarlyStopping(fold_in, held_out, metric="recall@5", patience=1)
    model = clone(model).set_params(max_iter=30).set_callbacks(other).fit(fold_in)
    assert len(other.scores_) < 30


def test_warm_start_and_arrays_as_init(X, tmp_path):
    first = WALS(5, max_iter=2, random_state=0).fit(X)
    for model in (
        WALS(5, max_iter=4, init=np.array(first.col_factors_)),
        pickle.loads(pickle.dumps(first)).set_params(warm_start=True, max_iter=4, solver="cg"),
    ):
        expected = pickle.loads(pickle.dumps(model)).fit(X)
        for max_iter in (2, 4):
            again = pickle.loads(pickle.dumps(model))
            again.set_params(checkpoint_dir=tmp_path, max_iter=max_iter).fit(X)
        assert_same(again, expected)


def test_without_a_seed_the_last_fit_is_gone_on_with(X, tmp_path):
    model = WALS(5, max_iter=2, checkpoint_dir=tmp_path).fit(X)
    again = clone(model).set_params(max_iter=4).fit(X)
    assert_array_equal(again.loss_curve_[:4], model.loss_curve_[:4])
    seeded = clone(model).set_params(random_state=np.random.RandomState(3)).fit(X)
    assert not np.array_equal(seeded.loss_curve_, model.loss_curve_)
    assert_same(clone(model).set_params(random_state=np.random.RandomState(3)).fit(X), seeded)


def test_fits_that_differ_do_not_meet(X, tmp_path):
    grid = {
        "regularization": [0.1, 5.0],
        "n_components": [3, 6],
        "col_weights": [None, np.linspace(1, 2, X.shape[1])],
        "implicit": [False, True],
    }
    searches = [
        GridSearchCV(WALS(max_iter=2, random_state=0, checkpoint_dir=folder), grid, cv=2).fit(X)
        for folder in (None, tmp_path, tmp_path)
    ]
    for search in searches[1:]:
        for fold in (0, 1):
            name = f"split{fold}_test_score"
            assert_array_equal(search.cv_results_[name], searches[0].cv_results_[name])
        assert_same(search.best_estimator_, searches[0].best_estimator_)
    assert len(os.listdir(tmp_path)) == 2 * (16 * 2 + 1)


def test_a_damaged_state_is_left_out(X, tmp_path):
    model = WALS(5, max_iter=6, random_state=0)
    expected = clone(model).fit(X)
    model.set_params(checkpoint_dir=tmp_path)
    clone(model).set_params(max_iter=4).fit(X)
    newest = max(
        tmp_path.iterdir(), key=lambda path: checkpoint.read(path, kind="checkpoint")[0]["n_iter"]
    )
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    with pytest.warns(
        RuntimeWarning, match="left out, and will be replaced: .* is damaged"
    ) as told:
        assert_same(clone(model).fit(X), expected)
    assert told[0].filename == __file__
    for path, damaged in zip(tmp_path.iterdir(), (b"", content[:999]), strict=True):
        path.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="left out"):
        assert_same(clone(model).fit(X), expected)
    assert_same(clone(model).fit(X), expected)  # without a warning


def test_what_cannot_be_written(X, tmp_path, monkeypatch):
    model = WALS(5, max_iter=6, random_state=0)
    expected = clone(model).fit(X)
    model.set_params(checkpoint_dir=tmp_path)

    def full(path, arrays, content, *, kind):
        if content["n_iter"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return write(path, arrays, content, kind=kind)

    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(
        OSError, match=r"could not be written \(No space left on device\)"
    ) as raised:
        model.fit(X)
    assert raised.value.errno == errno.ENOSPC
    assert not hasattr(model, "components_")
    monkeypatch.undo()
    assert_same(model.fit(X), expected)

    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        model.set_params(checkpoint_dir=file).fit(X)
    for parameters, message in (
        ({"checkpoint_dir": 3}, "checkpoint_dir"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ):
        with pytest.raises(ValueError, match=message):
            clone(model).set_params(**parameters).fit(X)


def test_an_interrupted_fit_leaves_a_sound_state(X, tmp_path, monkeypatch):
    model = WALS(5, max_iter=6, random_state=0, checkpoint_dir=tmp_path)
    sweep = checkpoint.State.add

    def interrupted(self, *arguments):
        sweep(self, *arguments)
        if len(self.losses) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.State, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    monkeypatch.undo()
    assert sorted(map(n_iter, tmp_path.iterdir())) == [2, 3]
    assert_same(model.fit(X), clone(model).set_params(checkpoint_dir=None).fit(X))


KILLED = """
import sys
import numpy as np
from wals import WALS
from wals.datasets import load_msweb
X = load_msweb().astype(np.float32)
print("starts", flush=True)
model = WALS(16, max_iter=40, solver=sys.argv[2], random_state=0, checkpoint_dir=sys.argv[1])
model.fit(X)
"""


@pytest.mark.parametrize(
    ("solver", "how"),
    [("auto", signal.SIGKILL), ("cg", signal.SIGTERM), ("exact", signal.SIGKILL)],
)
def test_a_killed_fit_goes_on(tmp_path, how, solver):
    for wait in np.random.default_rng(0).uniform(0.05, 0.4, size=2):
        command = [sys.executable, "-P", "-c", KILLED, tmp_path, solver]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "starts\n"
            time.sleep(wait)
            process.send_signal(how)
    X = load_msweb().astype(np.float32)
    model = WALS(16, max_iter=40, solver=solver, random_state=0)
    resumed = clone(model).set_params(checkpoint_dir=tmp_path).fit(X)
    assert_same(resumed, model.fit(X))
    assert all(path.suffix == ".checkpoint" for path in tmp_path.iterdir())
    assert len(os.listdir(tmp_path)) == 2


def test_a_matrix_on_disk_is_told_by_its_checksums(X, tmp_path, capsys):
    stored = storage.write(X, tmp_path / "matrix")
    expected = WALS(5, max_iter=4, random_state=0).fit(X)
    model = WALS(5, max_iter=2, random_state=0, checkpoint_dir=tmp_path / "states", verbose=1)
    model.fit(stored)
    again = clone(model).set_params(max_iter=4)
    assert_same(again.fit(storage.open(tmp_path / "matrix")), expected)
    assert "goes on after iteration 2" in capsys.readouterr().out
    other = storage.write(2 * X, tmp_path / "other")
    clone(again).fit(other)
    assert "goes on" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no thread")])
def test_what_hinders_a_writer_from_starting_is_what_is_raised(X, tmp_path, monkeypatch, error):
    def start(self):
        raise error

    expected = fit(WALS(4, max_iter=3, random_state=0), X)  # the threads of sweeps run from now on
    model = clone(expected).set_params(checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.threading.Thread, "start", start)
        with pytest.raises(type(error)) as raised:
            fit(model, X)
    assert raised.value is error
    assert_same(fit(model, X), expected)
