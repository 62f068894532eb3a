"""The loop of a fit: it alternates two sides, and does not know where they keep their entries."""

import copy
import time
import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

from ._core.kernels import DUALS
from ._core.parallel import parallel_section
from ._core.passes import NS_PRODUCT, extrapolate, rotate, rotate_back

#: "auto" rounds to one byte as long as an iteration lowers the loss by more than this part. What
#: rounding adds to the loss then is a hundredth of that, or less.
ROUGH_UNTIL = 2e-3


class State:
    """What a fit remembers between iterations, and all that it needs to go on.

    The factors of the rows are solved from V. What sides keep besides makes the next sweep quicker.

    Parameters
    ----------
    V : ndarray of shape (m, k)
        The factors of the columns.
    col_penalty : float
        Their regularization term.
    sum_weights : float
        sum_ij w_ij.
    verbose : int

    Attributes
    ----------
    V : ndarray of shape (m, k)
        In the coordinates that the sweeps have left it in: ``V @ frame.T`` is in its own.
    frame : ndarray of shape (k, k)
    momentum : Momentum
    penalties : dict
        The regularization terms of "rows" and "columns".
    n_singular : dict
        How many rows and columns had a singular system in the last sweep.
    losses, rwses, seconds : list of float
        After every sweep.
    least_data_loss : float
        So far.
    """

    def __init__(self, V, col_penalty, sum_weights, verbose):
        self.V, self.frame = V, np.eye(V.shape[1])
        self.momentum = Momentum()
        self.sum_weights, self.verbose = float(sum_weights), verbose
        self.penalties = {"rows": 0.0, "columns": col_penalty}
        self.n_singular = {"rows": 0, "columns": 0}
        self.losses, self.rwses, self.seconds = [], [], []
        self.least_data_loss = np.inf
        self.started = time.perf_counter()

    @property
    def n_iter(self):
        return len(self.losses) // 2

    def settle(self, n_threads):
        """Turn V to its own coordinates."""
        rotate_back(self.V, self.frame, n_threads)
        self.frame = np.eye(len(self.frame))

    def snapshot(self, n_threads):
        """Return a settled copy that prints nothing."""
        other = copy.copy(self)
        other.V, other.frame, other.verbose = self.V.copy(), self.frame.copy(), 0
        for name in ("penalties", "n_singular", "losses", "rwses", "seconds"):
            setattr(other, name, copy.copy(getattr(self, name)))
        other.settle(n_threads)
        return other

    def add(self, side, swept, data_loss, n_iter):
        """Add what a sweep of "rows" or "columns" told, and print it if asked to."""
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


class Momentum:
    """Nesterov's extrapolation of one side between iterations, restarted when the loss rises.

    With each solution for V after the t-th iteration, the next starts from V_t + beta (V_t -
    V_(t-1)), where beta = (theta_t - 1) / theta_(t+1) rises from 0 to 1.
    """

    def __init__(self):
        self.theta, self.previous, self.frame, self.loss = 1.0, None, None, np.inf

    def extrapolate(self, V, frame, loss, n_threads):
        """Move V, in these coordinates, after an iteration that ended with this loss."""
        if self.previous is None:
            self.previous = V.copy()
        else:
            self.theta = 1.0 if loss > self.loss else self.theta
            theta = (1 + np.sqrt(1 + 4 * self.theta**2)) / 2
            beta, self.theta = (self.theta - 1) / theta, theta
            with parallel_section(n_threads, NS_PRODUCT * V.size * V.shape[1]) as run:
                turn = (self.frame.T @ frame).astype(V.dtype)
                rotate(self.previous, turn, self.previous, run)
                extrapolate(V, self.previous, beta, run)
        self.frame, self.loss = frame.copy(), loss


def relative_decrease(losses):
    """Return that of the losses after each sweep over the last iteration."""
    if len(losses) < 4:
        return np.inf
    before, now = losses[-3], losses[-1]
    return (before - now) / before if before > 0 else 0.0


def alternate(rows, cols, state, *, max_iter, tol, auto, n_threads, tasks, checkpoints=None):
    """Run iterations, which change the state and the factors of both sides.

    Parameters
    ----------
    rows, cols : Side
        See `wals._core.sweep.Side`.
    state : State
    max_iter, tol
        See `wals.WALS`.
    auto : bool
        Whether to extrapolate between iterations, and to round more as long as it hardly shows.
    n_threads : int
    tasks : FitTasks
        Is told of every iteration, and may end the fit.
    checkpoints : Checkpoints, default=None
        Writes the state, of which all is in it.

    Returns
    -------
    ended : bool
        Whether it was tol, or the tasks, that ended it.
    """
    cols.factors = state.V
    may_be_rough = auto and rows.objective.unobserved_weight > 0
    while state.n_iter < max_iter:
        tasks.begin_iteration()
        n_iter = state.n_iter + 1
        if auto and n_iter > 1:
            state.momentum.extrapolate(state.V, state.frame, state.losses[-1], n_threads)
            state.penalties["columns"] = cols.penalty()
        rough = may_be_rough and relative_decrease(state.losses) > ROUGH_UNTIL
        for name, side, other in (("rows", rows, cols), ("columns", cols, rows)):
            # Those of rows are found anew; where a sweep starts from duals, nothing reads them, but
            # for a data loss that is small, or may be soon.
            spend = side is cols and rows.start == DUALS
            spend = spend and n_iter > 1 and state.least_data_loss > 10 * side.least_data_loss
            swept = side.sweep(other.factors, rough=rough, frame=state.frame, spend=spend)
            data_loss = side.data_loss(swept, other.factors)
            state.least_data_loss = min(state.least_data_loss, data_loss)
            state.add(name, swept, data_loss, n_iter)
        ended = tasks.end_iteration(lambda: state.snapshot(n_threads))
        ended = ended or (tol > 0 and relative_decrease(state.losses) < tol)
        if checkpoints is not None:
            last = ended or state.n_iter == max_iter
            checkpoints.save(state, rows, cols, tasks, last=last)
        if ended:
            return True
    return tol == 0


def finish(rows, state, U=None):
    """Sweep the rows exactly with the final V, which is settled, and return them, solved.

    Their factors are in U, if it is given.
    """
    rows = rows.to_solve_exactly(U)
    swept = rows.sweep(state.V)
    state.add("rows", swept, rows.data_loss(swept, state.V), state.n_iter)
    return rows


def rwse(data_loss, sum_weights):
    """Return the root weighted squared error; 0 where nothing has a weight."""
    return float(np.sqrt(data_loss / sum_weights)) if sum_weights > 0 else 0.0


def warn_singular(n_singular, n_items):
    """Warn once of singular systems: how many rows and columns; out of how many."""
    told = [
        f"{count} of {n} {name}"
        for count, n, name in zip(n_singular, n_items, ("rows", "columns"), strict=True)
        if count
    ]
    if told:
        warnings.warn(
            f"{' and '.join(told)} have a singular system, and got the solution of minimum norm. "
            'Set regularization > 0, with regularization_by="weight", to avoid this.',
            LinAlgWarning,
            stacklevel=4,
        )
