"""Which path is cheapest for each item, and shards of equal cost: a model of what kernels cost."""

import numpy as np

from .compile import constant
from .kernels import Plan
from .parallel import make_shards

#: Nanoseconds, as measured on one core for float32 at k = 64 and 128; only their ratios matter.
#: Per item; per stored entry and component, to gather it and take residuals, for each CG step, and
#: to gather it for that again; per multiply-add of P^T E P, and per number and multiply-add of a
#: Cholesky factorisation.
_ITEM, _GATHER, _STEP, _GATHER_AGAIN = 400.0, 0.3, 0.06, 0.15
_GRAM, _NUMBER, _CHOLESKY = 0.0205, 0.8, 0.007
#: The same for the dual path: per entry, per entry and component, per pair of entries, and per pair
#: and component.
_DUAL = (60.0, 0.3, 0.55, 0.0115)
#: Steps of CG to working precision, where the stored entries weigh as much as the others, and for
#: each factor of ten that they outweigh them by. In "auto" and "cg", on average.
_EXACT_STEPS, _EXACT_STEPS_PER_DECADE, _USUAL_STEPS = 6.0, 5.0, 2.0
#: Numbers of a panel, which is read several times: to read them from the third-level cache is
#: quicker than to gather them again. And those that the first-level cache holds.
_PANEL_SIZE, _STRIP_SIZE = 2**20, 2**12
#: Steps that an item takes at most, and when to stop before: see `kernels._take_cg_steps`.
_CG_STEPS = {"exact": 60, "cg": 6, "auto": 20}
_CG_TOL = {"exact": 0.0, "cg": 1e-6, "auto": 1e-4}
#: Cholesky is left the items whose stored entries outweigh the others by more decades than this:
#: they are far from the part that all items share, in which CG starts.
_MOST_DECADES = 2.7
#: Items whose costs are compared at once.
_BLOCK = 2**13


def make_plan(indptr, ratio, k, solver):
    """Choose the cheapest path for each item, and shards of equal cost.

    Parameters
    ----------
    indptr : ndarray of shape (n + 1,)
    ratio : ndarray of shape (n,)
        See `Side`.
    k : int
        Number of components.
    solver : {"exact", "cg", "auto"}

    Returns
    -------
    plan : Plan
    shards : ndarray of shape (n_shards, 2)
    work : float
        The sum of the costs, in nanoseconds.
    """
    n, largest = len(ratio), int(np.diff(indptr).max(initial=0))
    chunk = int(np.clip(largest, 1, max(_PANEL_SIZE // k, 64)) + 7) // 8 * 8
    paths, costs = np.empty(n, np.uint8), np.empty(n)
    for first in range(0, n, _BLOCK):  # so that temporary arrays are short
        block = slice(first, min(first + _BLOCK, n))
        s = np.diff(indptr[block.start : block.stop + 1]).astype(np.float64)
        ways = _costs(s, ratio[block], k, chunk, solver)
        paths[block] = np.argmin(ways, axis=0)
        costs[block] = np.min(ways, axis=0) + _ITEM
    plan = Plan(
        paths=constant(paths),
        chunk=chunk,
        strip=min(max(_STRIP_SIZE // k // 8 * 8, 8), chunk),
        largest=largest,
        exact=solver == "exact",
        max_steps=_CG_STEPS[solver],
        tol=_CG_TOL[solver],
    )
    return plan, make_shards(costs), float(costs.sum())


def _costs(s, ratio, k, chunk, solver):
    """Return the costs of the three ways to solve items with s stored entries; inf: not allowed."""
    per_entry, per_number, per_pair, per_product = _DUAL
    dual = s * (per_entry + per_number * k) + s**2 * (per_pair + per_product * k)
    dual[s > min(k, chunk)] = np.inf
    again = np.where(s > chunk, _GATHER_AGAIN, 0.0)
    primal = s * k * (_GATHER + 2 * again + _GRAM * k / 2) + _NUMBER * k**2 + _CHOLESKY * k**3 / 6
    with np.errstate(divide="ignore"):
        decades = np.nan_to_num(-np.log10(ratio), nan=0.0).clip(0, 99)
    if solver == "exact":
        steps = np.minimum(_EXACT_STEPS + _EXACT_STEPS_PER_DECADE * decades, s + 3)
    else:
        steps = _USUAL_STEPS
    cg = s * k * (_GATHER + (_STEP + again) * steps)
    if solver != "cg":
        cg[decades > _MOST_DECADES] = np.inf
    if solver == "cg":
        dual[:] = primal[:] = np.inf
    return np.stack([dual, primal, cg])
