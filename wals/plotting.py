"""Plots of a fitted WALS, as displays in the style of scikit-learn; they need Matplotlib."""

from numbers import Integral

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_is_fitted

from ._fitted import get_side
from ._validation import check_axis

__all__ = ["EmbeddingDisplay", "LossCurveDisplay"]

_X = {"sweeps": "Sweeps", "seconds": "Seconds"}
_Y = {"loss": "Loss", "rwse": "RWSE"}


class LossCurveDisplay:
    """Plot of the loss of a fit after every sweep.

    Use `from_estimator` to create one. All parameters are stored as attributes.

    Parameters
    ----------
    x_values : ndarray of shape (n_sweeps,)
        Where the points are: how many sweeps, or seconds, the fit had taken.

    y_values : ndarray of shape (n_sweeps,)
        The loss, or the root weighted squared error, then.

    x_name : str, default="Sweeps"
        The label of the x-axis.

    y_name : str, default="Loss"
        The label of the y-axis.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.

    ax_ : matplotlib Axes
        Axes with the curve.

    figure_ : matplotlib Figure
        Figure with the axes.

    Examples
    --------
    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> from wals.plotting import LossCurveDisplay
    >>> X = load_msweb()
    >>> model = WALS(8, max_iter=3, random_state=0).fit(X)
    >>> display = LossCurveDisplay.from_estimator(model, y="rwse", label="k = 8")
    >>> model = WALS(16, max_iter=3, random_state=0).fit(X)
    >>> display = LossCurveDisplay.from_estimator(model, y="rwse", label="k = 16", ax=display.ax_)
    >>> legend = display.ax_.legend()
    >>> display.line_.get_xdata()
    array([1, 2, 3, 4, 5, 6, 7])
    """

    def __init__(self, x_values, y_values, *, x_name="Sweeps", y_name="Loss"):
        self.x_values = x_values
        self.y_values = y_values
        self.x_name = x_name
        self.y_name = y_name

    @classmethod
    def from_estimator(cls, estimator, *, x="sweeps", y="loss", ax=None, **line_kw):
        """Plot the curve of a fitted model.

        Parameters
        ----------
        estimator : WALS
            A fitted model.

        x : {"sweeps", "seconds"}, default="sweeps"
            Whether the x-axis counts sweeps or the time of `seconds_`, to compare models whose
            sweeps take different times.

        y : {"loss", "rwse"}, default="loss"
            Whether the y-axis shows `loss_curve_`, which the fit minimises, or `rwse_curve_`, which
            can be compared between models of different regularization.

        ax : matplotlib Axes, default=None
            Where to plot; None stands for a new figure.

        **line_kw : dict
            Keyword arguments of Matplotlib's `plot`.

        Returns
        -------
        display : LossCurveDisplay

        Raises
        ------
        ImportError
            If there is no Matplotlib.
        ValueError
            If `x` or `y` is none of the above, or `partial_fit` has removed the curves.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        for name, value, choices in [("x", x, _X), ("y", y, _Y)]:
            if value not in choices:
                raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")
        check_is_fitted(estimator)
        if not hasattr(estimator, "loss_curve_"):
            raise ValueError("The model has no loss curve: partial_fit removes that of fit.")
        y_values = estimator.loss_curve_ if y == "loss" else estimator.rwse_curve_
        x_values = np.arange(1, len(y_values) + 1) if x == "sweeps" else estimator.seconds_
        return cls(x_values, y_values, x_name=_X[x], y_name=_Y[y]).plot(ax=ax, **line_kw)

    def plot(self, ax=None, **line_kw):
        """Plot the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to plot; None stands for a new figure.

        **line_kw : dict
            Keyword arguments of Matplotlib's `plot`.

        Returns
        -------
        display : LossCurveDisplay
            The object itself.
        """
        self.ax_, self.figure_ = _check_ax(ax, f"{type(self).__name__}.plot")
        (self.line_,) = self.ax_.plot(self.x_values, self.y_values, **line_kw)
        self.ax_.set(xlabel=self.x_name, ylabel=self.y_name)
        if "label" in line_kw:
            self.ax_.legend()
        return self


class EmbeddingDisplay:
    """Plot of the factors of columns, or rows, in two dimensions, with titles.

    Use `from_estimator` to create one. All parameters are stored as attributes.

    Parameters
    ----------
    points : ndarray of shape (n_items, 2)
        Where the items are.

    titles : array-like of shape (n_items,) or None, default=None
        What is written beside them.

    explained_variance_ratio : ndarray of shape (2,) or None, default=None
        The share of the variance of the factors along each axis, for the labels of the axes.

    Attributes
    ----------
    scatter_ : matplotlib PathCollection
        The points.

    text_ : list of matplotlib Text
        The titles; empty without.

    ax_ : matplotlib Axes
        Axes with the points.

    figure_ : matplotlib Figure
        Figure with the axes.

    Examples
    --------
    >>> from wals import WALS
    >>> from wals.datasets import load_msweb
    >>> from wals.plotting import EmbeddingDisplay
    >>> X, titles = load_msweb(return_titles=True)
    >>> model = WALS(16, random_state=0).fit(X)
    >>> display = EmbeddingDisplay.from_estimator(model, titles=titles, items=20)
    >>> display.points.shape
    (20, 2)
    >>> display.text_[0].get_text()
    'Free Downloads'
    """

    def __init__(self, points, *, titles=None, explained_variance_ratio=None):
        self.points = points
        self.titles = titles
        self.explained_variance_ratio = explained_variance_ratio

    @classmethod
    def from_estimator(cls, estimator, *, titles=None, items=None, axis=1, ax=None, **scatter_kw):
        """Plot the first two principal components of the factors of a fitted model.

        They are those of the items that are plotted, centred, from a singular value decomposition
        in float64. They depend neither on the basis of the factors nor on its signs: of each
        component, the item farthest from the centre is on the positive side.

        Parameters
        ----------
        estimator : WALS
            A fitted model.

        titles : array-like of shape (n_features,), or (n_samples,) with ``axis=0``, default=None
            The titles of all items of the model.

        items : int, array-like of int or None, default=None
            Which items are plotted: an array has their positions, an int is the number of those
            with the largest sums of weights, and None stands for all. Titles are legible for some
            dozens.

        axis : {1, 0}, default=1
            1 plots columns, 0 plots rows.

        ax : matplotlib Axes, default=None
            Where to plot; None stands for a new figure.

        **scatter_kw : dict
            Keyword arguments of Matplotlib's `scatter`.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        ImportError
            If there is no Matplotlib.
        ValueError
            If `items` or `axis` is none of the above, or the titles are not as many as the items
            of the model.

        Notes
        -----
        The weight of an item is what `regularization_exponent` is the power of: the sum over all
        its entries, or their number. Unless the weights say otherwise, the largest ones are of the
        most popular items.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator)
        check_axis(axis)
        factors, _, mass = get_side(estimator, axis)
        items = _check_items(items, mass)
        if titles is not None:
            titles = np.asarray(titles, dtype=object)
            if titles.shape != (len(factors),):
                raise ValueError(
                    f"titles has shape {titles.shape}, but {(len(factors),)} is needed."
                )
            titles = titles[items]
        points, ratio = _principal_components(factors[items])
        display = cls(points, titles=titles, explained_variance_ratio=ratio)
        return display.plot(ax=ax, **scatter_kw)

    def plot(self, ax=None, *, text_kw=None, **scatter_kw):
        """Plot the points.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to plot; None stands for a new figure.

        text_kw : dict, default=None
            Keyword arguments of Matplotlib's `annotate`, for the titles.

        **scatter_kw : dict
            Keyword arguments of Matplotlib's `scatter`.

        Returns
        -------
        display : EmbeddingDisplay
            The object itself.
        """
        self.ax_, self.figure_ = _check_ax(ax, f"{type(self).__name__}.plot")
        self.scatter_ = self.ax_.scatter(*np.transpose(self.points), **scatter_kw)
        self.text_ = []
        if self.titles is not None:
            # A title is no formula, whatever it has between dollars.
            text_kw = {
                "xytext": (3, 3),
                "textcoords": "offset points",
                "fontsize": "small",
                "parse_math": False,
                **(text_kw or {}),
            }
            for title, point in zip(self.titles, self.points, strict=True):
                self.text_.append(self.ax_.annotate(str(title), point, **text_kw))
        labels = ["First principal component", "Second principal component"]
        if self.explained_variance_ratio is not None:
            labels = [
                f"{label} ({share:.0%} of the variance)"
                for label, share in zip(labels, self.explained_variance_ratio, strict=True)
            ]
        self.ax_.set(xlabel=labels[0], ylabel=labels[1])
        return self


def _check_ax(ax, caller):
    """Return the axes to plot in, and their figure."""
    check_matplotlib_support(caller)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    return ax, ax.figure


def _check_items(items, mass):
    """Return positions, given those, how many of the largest masses to take, or None."""
    if items is None:
        return np.arange(len(mass))
    if isinstance(items, Integral) and not isinstance(items, bool):
        if items < 1:
            raise ValueError(f"items must be at least 1, got {items}.")
        if np.isnan(mass).any():
            raise ValueError("items must be positions: this model does not know all weights.")
        return np.argsort(-mass, kind="stable")[:items]
    positions = np.asarray(items)
    if positions.ndim != 1 or positions.dtype.kind not in "iu" or not positions.size:
        raise ValueError(f"items must be an int, an array of positions or None, got {items!r}.")
    if positions.min() < 0 or positions.max() >= len(mass):
        raise ValueError(f"items must be positions from 0 to {len(mass) - 1}.")
    return positions


def _principal_components(factors):
    """Return the first two principal components, and their shares of the variance."""
    centred = factors - factors.mean(axis=0, dtype=np.float64)
    U, s, Vt = np.linalg.svd(centred, full_matrices=False)
    U, _ = svd_flip(U, Vt)
    points, ratio = np.zeros((len(factors), 2)), np.zeros(2)
    n = min(2, len(s))
    points[:, :n] = U[:, :n] * s[:n]
    total = np.sum(s**2)
    if total > 0:
        ratio[:n] = s[:n] ** 2 / total
    return points, ratio
