"""Compile all that a precision needs, ahead of time."""

import numpy as np
import scipy.sparse as sp

from ._core.cache import compiled_seconds
from ._core.compile import empty_lines
from ._core.kernels import solve
from ._core.parallel import parallel_section
from ._core.passes import encode
from ._core.team import compile_helpers
from ._wals import WALS


def precompile(dtype):
    """Compile every kernel for data of a precision, unless its machine code is kept already.

    Returns
    -------
    seconds : float
        What that took.
    folder : str or None
        Where the machine code is kept; None if it cannot be.
    """
    before = compiled_seconds()
    X = sp.csr_array(np.eye(9, 8, dtype=dtype) + np.eye(9, 8, 1, dtype=dtype))
    model = WALS(2, max_iter=3, random_state=0).fit(X)
    model.inverse_transform(model.transform(X), pattern=X)
    for rows, candidates in ((X, None), (X, [0]), (X, X), (sp.vstack([X] * 8, format="csr"), None)):
        # Of few rows, all columns or some; of positions; of many rows.
        model.recommend(rows, candidates=candidates)
    if np.dtype(dtype) == np.float32:  # few numbers are not rounded
        V, scale = np.ones((8, 2), dtype), np.ones(2)
        with parallel_section(1, 0) as run:
            for code in (np.int8, np.int16):
                encode(V, scale, empty_lines((8, 64), np.dtype(code)), np.empty(8, dtype), run)
    compile_helpers()
    cache = getattr(solve, "_cache", None)
    return compiled_seconds() - before, cache and cache.cache_path
