"""What a fit tells of its course: losses and times, and singular systems."""

import copy
import time
import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

_NAMES = ("rows", "columns")


class Progress:
    """The losses of a fit so far."""

    def __init__(self, sum_weights, col_penalty, verbose):
        self.sum_weights, self.verbose = float(sum_weights), verbose
        self.penalties = {"rows": 0.0, "columns": col_penalty}
        self.n_singular = {"rows": 0, "columns": 0}
        self.losses, self.rwses, self.seconds = [], [], []
        self.started = time.perf_counter()

    def copy(self):
        """Return a copy that prints nothing."""
        other = copy.deepcopy(self)
        other.verbose = 0
        return other

    def add(self, side, swept, n_iter):
        """Add what a sweep of "rows" or "columns" told, and print it if asked to."""
        data_loss = max(swept.loss - swept.penalty, 0.0)
        self.penalties[side] = swept.penalty
        self.n_singular[side] = swept.n_singular
        self.losses.append(data_loss + sum(self.penalties.values()))
        self.rwses.append(rwse(data_loss, self.sum_weights))
        self.seconds.append(time.perf_counter() - self.started)
        if self.verbose >= 2 or (self.verbose and side == "columns"):
            print(
                f"[WALS] iteration {n_iter:3d}  {side:7s}  loss {self.losses[-1]:.6e}"
                f"  RWSE {self.rwses[-1]:.6f}  {self.seconds[-1]:7.2f} s"
            )

    def relative_decrease(self):
        """Return that of the loss over the last iteration."""
        if len(self.losses) < 4:
            return np.inf
        before, now = self.losses[-3], self.losses[-1]
        return (before - now) / before if before > 0 else 0.0


def rwse(data_loss, sum_weights):
    """Return the root weighted squared error; 0 where nothing has a weight."""
    return float(np.sqrt(data_loss / sum_weights)) if sum_weights > 0 else 0.0


def warn_singular(n_singular, n_items):
    """Warn once of singular systems: tuples of how many rows, columns; out of how many."""
    told = [
        f"{count} of {n} {name}"
        for count, n, name in zip(n_singular, n_items, _NAMES, strict=True)
        if count
    ]
    if told:
        warnings.warn(
            f"{' and '.join(told)} have a singular system, and got the solution of minimum norm. "
            "Set regularization > 0 to avoid this.",
            LinAlgWarning,
            stacklevel=4,
        )
