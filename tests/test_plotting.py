"""Displays, drawn for real where there is Matplotlib, and what is said where there is none."""

import functools
import importlib.util
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from wals import WALS
from wals.datasets import make_interactions
from wals.plotting import EmbeddingDisplay, LossCurveDisplay

INSTALLED = importlib.util.find_spec("matplotlib") is not None

if INSTALLED:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt


def with_matplotlib(test):
    """Run a test of plots; without Matplotlib, test that plotting says so."""

    @functools.wraps(test)
    def test_message(*args, **kwargs):
        with pytest.raises(ImportError, match=r"Display\.\w+ requires matplotlib"):
            test(*args, **kwargs)

    return test if INSTALLED else test_message


@pytest.fixture(autouse=True)
def close():
    yield
    if INSTALLED:
        plt.close("all")


@pytest.fixture(scope="module")
def X():
    return make_interactions(80, 30, 900, n_topics=3, random_state=0)


@pytest.fixture
def model(X):
    return WALS(5, max_iter=3, random_state=0).fit(X)


@pytest.fixture
def titles():
    return [f"item {j}" for j in range(30)]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


# --------------------------------------------------------------------------------------- the curve


@with_matplotlib
@pytest.mark.parametrize("x", ["sweeps", "seconds"])
@pytest.mark.parametrize("y", ["loss", "rwse"])
def test_loss_curve(model, x, y):
    display = LossCurveDisplay.from_estimator(model, x=x, y=y, color="red")
    line = display.line_
    assert_array_equal(line.get_xdata(), {"sweeps": np.arange(1, 8), "seconds": model.seconds_}[x])
    assert_array_equal(line.get_ydata(), {"loss": model.loss_curve_, "rwse": model.rwse_curve_}[y])
    assert line.get_color() == "red"
    assert display.ax_.get_xlabel() == {"sweeps": "Sweeps", "seconds": "Seconds"}[x]
    assert display.ax_.get_ylabel() == {"loss": "Loss", "rwse": "RWSE"}[y]
    assert display.ax_.get_legend() is None
    assert display.figure_ is display.ax_.figure
    assert line.axes is display.ax_
    assert len(np.unique(pixels(display.figure_))) > 2


@with_matplotlib
def test_loss_curves_in_the_same_axes(X, model):
    first = LossCurveDisplay.from_estimator(model, label="k = 5")
    assert [text.get_text() for text in first.ax_.get_legend().get_texts()] == ["k = 5"]
    other = clone(model).set_params(n_components=2).fit(X)
    second = LossCurveDisplay.from_estimator(other, label="k = 2", ax=first.ax_)
    assert second.ax_ is first.ax_
    assert first.ax_.get_lines() == [first.line_, second.line_]
    assert [text.get_text() for text in first.ax_.get_legend().get_texts()] == ["k = 5", "k = 2"]
    assert len(plt.get_fignums()) == 1


@with_matplotlib
def test_loss_curve_again(model):
    display = LossCurveDisplay.from_estimator(model)
    first = display.line_
    assert display.plot() is display
    assert display.line_ is not first
    assert_array_equal(display.line_.get_xydata(), first.get_xydata())
    assert len(plt.get_fignums()) == 2


@with_matplotlib
def test_loss_curve_of_bad_input(X, model):
    with pytest.raises(ValueError, match=r"x must be one of \['sweeps', 'seconds'\], got 'hours'"):
        LossCurveDisplay.from_estimator(model, x="hours")
    with pytest.raises(ValueError, match=r"y must be one of \['loss', 'rwse'\], got 'score'"):
        LossCurveDisplay.from_estimator(model, y="score")
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(clone(model))
    with pytest.raises(ValueError, match="partial_fit removes"):
        LossCurveDisplay.from_estimator(model.partial_fit(X[:2]))
    assert not plt.get_fignums()


# ----------------------------------------------------------------------------------- the embedding


@with_matplotlib
@pytest.mark.parametrize("axis", [0, 1])
def test_embedding(model, axis):
    factors = [model.row_factors_, model.col_factors_][axis]
    display = EmbeddingDisplay.from_estimator(model, axis=axis, s=9)
    assert display.text_ == []
    points = np.asarray(display.scatter_.get_offsets())
    assert_array_equal(points, display.points)
    assert_array_equal(display.scatter_.get_sizes(), [9])
    pca = PCA(2, svd_solver="full").fit(factors.astype(np.float64))
    expected = pca.transform(factors.astype(np.float64))
    assert_allclose(np.abs(points), np.abs(expected), rtol=1e-6, atol=1e-9)
    assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    assert points[0] @ points[1] == pytest.approx(expected[0] @ expected[1])
    farthest = np.argmax(np.abs(points), axis=0)
    assert (points[farthest, [0, 1]] > 0).all()
    assert_allclose(display.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-6)
    share = f"{pca.explained_variance_ratio_[0]:.0%}"
    assert display.ax_.get_xlabel() == f"First principal component ({share} of the variance)"
    assert display.ax_.get_ylabel().startswith("Second principal component")
    assert len(np.unique(pixels(display.figure_))) > 2


@with_matplotlib
def test_embedding_does_not_depend_on_the_basis(model):
    expected = EmbeddingDisplay.from_estimator(model).points
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    model.components_ = Q @ model.components_
    assert_allclose(EmbeddingDisplay.from_estimator(model).points, expected, atol=1e-5)


@with_matplotlib
def test_titles_and_items(X, model, titles):
    display = EmbeddingDisplay.from_estimator(model, titles=titles, items=[7, 3, 29])
    assert [text.get_text() for text in display.text_] == ["item 7", "item 3", "item 29"]
    assert_array_equal([text.xy for text in display.text_], display.points)
    popular = np.argsort(-np.bincount(X.indices, minlength=30), kind="stable")[:6]
    display = EmbeddingDisplay.from_estimator(model, titles=titles, items=6)
    assert [text.get_text() for text in display.text_] == [titles[j] for j in popular]
    assert_array_equal(display.points, EmbeddingDisplay.from_estimator(model, items=popular).points)
    assert len(EmbeddingDisplay.from_estimator(model, items=10**6).points) == 30
    assert len(EmbeddingDisplay.from_estimator(model, titles=titles).text_) == 30


@with_matplotlib
def test_titles_are_no_formulas(model):
    titles = [r"US$ 1 \frac{ US$ 2"] * 30
    display = EmbeddingDisplay.from_estimator(model, titles=titles, text_kw={"color": "red"})
    assert display.text_[0].get_color() == "red"
    pixels(display.figure_)


@with_matplotlib
def test_embedding_in_given_axes(model, titles):
    _, axes = plt.subplots(1, 2) if INSTALLED else (None, (None, None))
    display = EmbeddingDisplay.from_estimator(model, ax=axes[1])
    assert display.ax_ is axes[1]
    assert not axes[0].collections
    assert display.plot(ax=axes[0]) is display
    assert_array_equal(axes[0].collections[0].get_offsets(), display.points)


@with_matplotlib
@pytest.mark.parametrize(("k", "items"), [(1, None), (5, [2]), (5, [4, 9])])
def test_embedding_of_fewer_dimensions(X, k, items):
    model = WALS(k, max_iter=1, random_state=0).fit(X)
    display = EmbeddingDisplay.from_estimator(model, items=items)
    assert display.points.shape == (len(items) if items else 30, 2)
    assert_allclose(display.points[:, 1], 0, atol=1e-6)
    assert np.isfinite(display.explained_variance_ratio).all()
    pixels(display.figure_)


@with_matplotlib
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"titles": ["a", "b"]}, r"titles has shape \(2,\), but \(30,\) is needed"),
        ({"items": 0}, "items must be at least 1"),
        ({"items": [30]}, "items must be positions from 0 to 29"),
        ({"items": [-1]}, "items must be positions from 0 to 29"),
        ({"items": [0.5]}, "items must be an int, an array of positions or None"),
        ({"items": []}, "items must be an int, an array of positions or None"),
        ({"items": True}, "items must be an int, an array of positions or None"),
        ({"axis": 2}, "axis must be"),
    ],
)
def test_embedding_of_bad_input(model, options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingDisplay.from_estimator(model, **options)
    with pytest.raises(NotFittedError):
        EmbeddingDisplay.from_estimator(clone(model), **options)
    assert not plt.get_fignums()


# ------------------------------------------------------------------------------ without Matplotlib


@pytest.mark.parametrize(
    "plot",
    [
        "LossCurveDisplay.from_estimator(None)",
        "LossCurveDisplay([1], [2]).plot()",
        "EmbeddingDisplay.from_estimator(None)",
        "EmbeddingDisplay([[1, 2]]).plot()",
    ],
)
def test_message_without_matplotlib(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Display\.\w+ requires matplotlib.*pip install"):
        eval(plot)
