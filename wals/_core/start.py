"""Where a fit starts: nearly the dominant singular vectors."""

import numpy as np

from .kernels import ZERO
from .parallel import parallel_section
from .passes import NS_PRODUCT, rotate


def spectral_start(rows, cols, V, *, n_iter=2):
    """Return an orthogonal basis of nearly the dominant right singular vectors of the targets.

    Where all weights are equal and nothing is regularized, alternating least squares is orthogonal
    (subspace) iteration.

    Parameters
    ----------
    rows, cols : Side
        The factors of the rows are overwritten.
    V : ndarray of shape (m, k)
        Drawn from any one continuous distribution; overwritten.
    n_iter : int, default=2

    Returns
    -------
    V : ndarray of shape (m, k)
        Its columns have the norm that balances both sides for the largest singular value.
    """
    k = V.shape[1]
    V -= V.mean()
    rows, cols = rows.to_solve_equally(), cols.to_solve_equally()
    random, cols.factors = V.copy(), V
    frame = np.eye(k)  # in any coordinates, U and V have the basis that is looked for in common
    for _ in range(n_iter):
        for side, other in ((rows, cols), (cols, rows)):
            side.start = ZERO
            side.sweep(other.factors, rough=True, frame=frame)
    left, right = rows.gramian(), cols.gramian()
    with parallel_section(rows.n_threads, NS_PRODUCT * V.size * k) as run:
        square, Q = np.linalg.eigh(right)
        largest = np.linalg.eigvals(left @ right).real.max() ** 0.25
        regular = square > k * np.finfo(V.dtype).eps * square[-1]
        largest = largest if largest > 0 else 1.0
        V = rotate(V, Q * np.where(regular, largest / np.sqrt(square.clip(1e-300)), 0), V, run)
    # More components than the matrix has rank: whatever may grow.
    V[:, ~regular] = random[:, ~regular]
    return V
