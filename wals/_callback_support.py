"""Callbacks in a fit: the one place that knows whether scikit-learn has them."""

import copy

import sklearn

from ._fitted import FittedSide, set_side

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # before 1.9

    class CallbackSupportMixin:
        """Mixin class of an estimator whose scikit-learn has no callbacks yet."""

        def set_callbacks(self, *callbacks):
            """Set callbacks, which scikit-learn supports from 1.9 on; before, raise an error.

            Parameters
            ----------
            *callbacks : callback instances
                The callbacks to set.

            Raises
            ------
            ImportError
                Always.
            """
            raise ImportError(
                f"Callbacks need scikit-learn >= 1.9, but {sklearn.__version__} is installed. "
                "Upgrade it with `pip install -U scikit-learn`."
            )


#: The name of the task that is one iteration.
ITERATION = "iteration"


class Observer:
    """Base class of a callback that wants no more of an iteration than the factors of columns.

    The `fitted_estimator` of scikit-learn's hooks takes a sweep for the factors of the rows.
    """

    def observe(self, estimator, model):
        """Look at the end of an iteration, before the hook that may stop the fit is called.

        Parameters
        ----------
        estimator : WALS
            The estimator that is fitted.
        model : WALS
            A copy that can project rows, but has none of its own.

        Returns
        -------
        keep : bool
            Whether the fit is to end with what it has now. The last True counts.
        """
        raise NotImplementedError

    def remember(self, estimator):
        """Return what a fit that is resumed after this iteration has to know, as JSON can say it.

        Its "key" tells callbacks apart that observe other things.
        """
        raise NotImplementedError

    def recall(self, estimator, remembered):
        """Take it up where `remember` was called, and return whether the fit was to stop there."""
        raise NotImplementedError


class FitTasks:
    """The tasks of a fit for its callbacks: the fit and, inside it, each iteration.

    Without callbacks nothing happens.

    Parameters
    ----------
    estimator : WALS
    X, y
        What `fit` got. Without y, X is the target, as it is of the factorization: a callback that
        scores insists on one.
    row_weights : array-like or None
        The metadata that `score` takes too.

    Attributes
    ----------
    kept : State or None
        Where the fit stood at the iteration to end with, if an observer wants one.
    cols : Side
        The columns; to be set before the first iteration ends.
    attributes_of : callable
        Likewise: returns the fitted attributes of where the fit stands, a `State`.
    """

    def __init__(self, estimator, X, y, row_weights):
        self.kept = self.root = self.cols = self.attributes_of = None
        self.observers = []
        callbacks = getattr(estimator, "_skl_callbacks", ())
        if not callbacks:
            return
        self.observers = [callback for callback in callbacks if isinstance(callback, Observer)]
        metadata = None if row_weights is None else {"row_weights": row_weights}
        y = X if y is None else y
        self.about = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self.root = estimator._init_callback_context(max_subtasks=estimator.max_iter)
        self.root.call_on_fit_task_begin(**self.about)

    def begin_iteration(self):
        if self.root is not None:
            self.iteration = self.root.subcontext(task_name=ITERATION)
            self.iteration.call_on_fit_task_begin(**self.about)

    def end_iteration(self, snapshot):
        """Return whether to stop, given a function that returns where the fit stands."""
        if self.root is None:
            return False
        estimator = self.about["estimator"]
        if self.observers:
            state, model = snapshot(), copy.copy(estimator)
            set_side(model, 1, FittedSide(state.V, self.cols.weights, self.cols.mass))
            # Not any(): each is to observe each iteration.
            if any([callback.observe(estimator, model) for callback in self.observers]):
                self.kept = state
        return self.iteration.call_on_fit_task_end(
            **self.about, reconstruction_attributes=lambda: self.attributes_of(snapshot())
        )

    def remember(self):
        """Return what `recall` takes."""
        return [observer.remember(self.about["estimator"]) for observer in self.observers]

    def recall(self, remembered, kept):
        """Go on after an iteration of an earlier fit, if that had the same observers.

        Returns
        -------
        stop : bool
            Whether the fit ended there.
        """
        keys = [observer.remember(self.about["estimator"])["key"] for observer in self.observers]
        if [one["key"] for one in remembered] != keys:
            return False
        self.kept = kept
        pairs = zip(self.observers, remembered, strict=True)
        return any([observer.recall(self.about["estimator"], one) for observer, one in pairs])

    def end(self):
        if self.root is not None:
            self.root.call_on_fit_task_end(**self.about, reconstruction_attributes={})
