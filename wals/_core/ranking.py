"""The n best columns of every row, exactly, most columns of them unseen.

The score of row i and column j is u_i.v_j, summed in float64 and rounded to the precision of the
factors; of equal scores, the smaller column's is the better one. In the eigenbasis of V^T V, whose
first h coordinates hold most of what there is, u.v <= (first h) + |u_rest| |v_rest|. So the columns
are put in the order of falling |v|, and taken by tiles: a row is done when |u| |v| of the next tile
does not reach its n-th best score so far. Else the first h coordinates rule most of a tile out, and
the sum over the others, in the precision of the factors, most of what is left. What then is left is
scored. No bound is trusted by more than rounding allows.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import issparse

from .compile import (
    LINE,
    SHARD,
    THREAD,
    constant,
    empty_lines,
    epsilon,
    jit,
    kernel,
    least,
    load_eight,
    store,
    take,
    this_call,
    whole_lines,
)
from .linalg import dot, eight_products, in_panels, multiply
from .parallel import even_shards, make_shards, parallel_section
from .passes import gram
from .team import in_threads

#: Rows that share a tile of columns, a multiple of 6, and columns of a tile, which panels divide.
_ROWS, _TILE = 48, 256
#: Columns of a tile that are looked at together.
_STRIP = 32
#: Columns that are prepared at once, and rows that are: what bounds the memory.
_COLUMNS, _BATCH = 2**15, 2**14
#: Where more of a tile than this is left, the rest of its products are made as those of a matrix.
_MANY = 0.15
#: The first coordinates hold this part of what V^T V has, if it takes no more than half of them.
_LEADING = 0.6
#: What factors are rounded to is a whole number of steps, at most so many.
_MOST = 127
#: Fewer rows than this do not repay that columns are put in order.
_FEW = 48
_NS_PRODUCT = 0.03
#: Nanoseconds for each number of few rows, and where they are rounded.
_NS_FEW = 0.3, 0.07


@jit
def _is_worse(scores, ranked, a, b):
    """Return whether place a of a row's list holds less than place b."""
    return scores[a] < scores[b] or (scores[a] == scores[b] and ranked[a] > ranked[b])


@jit
def _offer(u, v, column, seen, scores, ranked):
    """Put a column into a row's list, a heap with the worst first, unless it is worse or seen."""
    score = u.dtype.type(dot(u, v))
    if not (score > scores[0] or (score == scores[0] and column < ranked[0])):
        return
    low, high = 0, seen.size
    while low < high:
        middle = (low + high) // 2
        if seen[middle] < column:
            low = middle + 1
        else:
            high = middle
    if low < seen.size and seen[low] == column:
        return
    scores[0], ranked[0] = score, column
    place, n = 0, scores.size
    while 2 * place + 1 < n:
        worst = 2 * place + 1
        if worst + 1 < n and _is_worse(scores, ranked, worst + 1, worst):
            worst += 1
        if not _is_worse(scores, ranked, worst, place):
            break
        scores[place], scores[worst] = scores[worst], scores[place]
        ranked[place], ranked[worst] = ranked[worst], ranked[place]
        place = worst


@jit
def _count(products, rests, reach, count, needed):
    """Return how many of a tile's columns may have a product that is needed."""
    n = np.int32(0)
    for j in range(count):
        n += np.int32(products[j] + reach * rests[j] >= needed)
    return n


@jit
def _floor(products, rests, count, n, most):
    """Return a number that n of a tile's products reach, -inf if there are not so many.

    No product is larger than `most` in absolute value.
    """
    zero = products.dtype.type(0)
    low, high = -most, most
    if _count(products, rests, zero, count, low) < n:
        return -products.dtype.type(np.inf)
    for _ in range(12):
        middle = (low + high) / 2
        if _count(products, rests, zero, count, middle) >= n:
            low = middle
        else:
            high = middle
    return low


@kernel
def _rank(
    team,
    taken,
    shards,
    U,
    V,
    columns,
    norms,
    rests,
    head,
    body,
    tails,
    lead,
    tail,
    reach,
    indices,
    indptr,
    products,
    counts,
    least_scores,
    scores,
    ranked,
):
    if team:
        in_threads(team, *this_call())
        return
    t = take(taken, THREAD)
    heads, bodies, lefts, floors = products[t, 0], products[t, 1], counts[t], least_scores[t]
    width, rounding, none = head.shape[2], epsilon(U) * (V.shape[1] + 8), U.dtype.type(0)
    s = take(taken, SHARD)
    while s < len(shards):
        for block in range(shards[s, 0], shards[s, 1]):
            first, last = block * _ROWS, least((block + 1) * _ROWS, len(U))
            left, right, n_rows = lead[first:], tail[first:], last - first
            for r in range(n_rows):
                floors[r] = scores[first + r, 0]
            for top in range(0, columns.size, _TILE):
                count, p, spans = least(_TILE, columns.size - top), top // width, rests[top:]
                hopeless, n_left = True, 0
                for r in range(n_rows):
                    hopeless &= reach[first + r, 0] * norms[top] * (1 + rounding) < floors[r]
                if hopeless:
                    break
                panels = head[p : p + _TILE // width]
                multiply(left, n_rows, panels, n_rows, heads)
                for r in range(n_rows):
                    slack = rounding * reach[first + r, 0] * norms[top]
                    needed = floors[r] - slack
                    lefts[r] = _count(heads[r], spans, reach[first + r, 1], count, needed)
                    n_left += lefts[r]
                many = n_left > _MANY * count * n_rows
                if many:
                    panels = body[p : p + _TILE // width]
                    multiply(right, n_rows, panels, n_rows, bodies)
                    for r in range(n_rows):
                        for j in range(_TILE):
                            heads[r, j] += bodies[r, j]
                for r in range(n_rows):
                    i, row = first + r, heads[r]
                    beyond = none if many else reach[i, 1]
                    slack = rounding * reach[i, 0] * norms[top]
                    seen = indices[indptr[i] : indptr[i + 1]]
                    if top == 0 and many and floors[r] == -np.inf:
                        n = scores.shape[1] + seen.size
                        floors[r] = _floor(row, spans, count, n, reach[i, 0] * norms[0]) - 2 * slack
                    if lefts[r] == 0:
                        continue
                    for j0 in range(0, count, _STRIP):
                        j1 = least(j0 + _STRIP, count)
                        needed = floors[r] - slack
                        if _count(row[j0:], spans[j0:], beyond, j1 - j0, needed) == 0:
                            continue
                        for j in range(j0, j1):
                            score = row[j]
                            if score + beyond * spans[j] + slack < floors[r]:
                                continue
                            if not many:
                                for c in range(tails.shape[1]):
                                    score += right[r, c] * tails[top + j, c]
                            if score + slack >= floors[r]:
                                column = columns[top + j]
                                _offer(U[i], V[top + j], column, seen, scores[i], ranked[i])
                                floors[r] = max(floors[r], scores[i, 0])
        s = take(taken, SHARD)


@kernel
def _rank_few(
    team, taken, shards, rows, U, V, columns, zero, reach, indices, indptr, scores, ranked
):
    if team:
        in_threads(team, *this_call())
        return
    rounding = epsilon(U) * (V.shape[1] + 8)
    s = take(taken, SHARD)
    while s < len(shards):
        i = rows[s]
        u, seen = U[i], indices[indptr[i] : indptr[i + 1]]
        for place in range(shards[s, 0], shards[s, 1]):
            column = columns[place] if columns.size else place
            v = V[column]
            product, square, present = U.dtype.type(0), U.dtype.type(0), False
            for c in range(V.shape[1]):
                product += u[c] * v[c]
                square += v[c] * v[c]
                present |= v[c] != 0
            if not (present or zero):
                continue
            # Beyond the range of numbers, the bound says nothing.
            slack = rounding * reach[i] * np.sqrt(square)
            if not (0 < slack < np.inf) or product + slack >= scores[s, 0]:
                _offer(u, v, column, seen, scores[s], ranked[s])
        s = take(taken, SHARD)


@kernel
def _rank_rounded(
    team,
    taken,
    shards,
    rows,
    U,
    V,
    padded,
    codes,
    steps,
    errors,
    reach,
    indices,
    indptr,
    bounds,
    scores,
    ranked,
):
    if team:
        in_threads(team, *this_call())
        return
    bound = bounds[take(taken, THREAD)]
    s = take(taken, SHARD)
    while s < len(shards):
        i = rows[s]
        u, x, reached, seen = U[i], padded[i], reach[i], indices[indptr[i] : indptr[i + 1]]
        for top in range(shards[s, 0], shards[s, 1], 8):
            slack = reached * load_eight(errors, top)
            store(
                load_eight(steps, top) * eight_products(codes, np.uint64(top), x) + slack, bound, 0
            )
            for r in range(8):
                # Beyond the range of numbers, it is not one, and no bound.
                if bound[r] < scores[s, 0] or errors[top + r] < 0:
                    continue
                _offer(u, V[top + r], top + r, seen, scores[s], ranked[s])
        s = take(taken, SHARD)


@kernel
def _rank_stored(team, taken, shards, U, V, places, bounds, indices, indptr, scores, ranked):
    if team:
        in_threads(team, *this_call())
        return
    s = take(taken, SHARD)
    while s < len(shards):
        for i in range(shards[s, 0], shards[s, 1]):
            seen = indices[indptr[i] : indptr[i + 1]]
            for t in range(bounds[i], bounds[i + 1]):
                column = np.int64(places[t])
                _offer(U[i], V[column], column, seen, scores[i], ranked[i])
        s = take(taken, SHARD)


class Rounded(NamedTuple):
    """Factors V of columns as whole numbers of steps, and how far off that is at most."""

    codes: np.ndarray  # (m' >= m, k' >= k) int8; m' is a multiple of 8, what is added is 0
    steps: np.ndarray  # (m',)
    errors: np.ndarray  # (m',) of products, for |u| = 1; -1 where a factor is 0


def round_factors(V):
    """Return the rounded factors of columns, for `rank`."""
    (m, k), rounding = V.shape, np.finfo(V.dtype).eps
    room = -(-m // 8) * 8
    codes, steps = empty_lines((room, whole_lines(k, V)), np.int8), np.zeros(room, V.dtype)
    codes[m:] = codes[:, k:] = 0
    errors = np.full(room, -1, V.dtype)
    for top in range(0, m, _COLUMNS):
        part = slice(top, min(top + _COLUMNS, m))
        exact = V[part].astype(np.float64)
        largest = np.abs(exact).max(axis=1, initial=0)
        steps[part] = largest / _MOST
        step = steps[part, None].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes[part, :k] = np.where(step > 0, np.rint(exact / step), 0).clip(-_MOST, _MOST)
        rest = exact - step * codes[part, :k]
        norms = [np.sqrt(np.einsum("ij,ij->i", A, A)) for A in (rest, exact)]
        bound = (norms[0] + rounding * (k + 8) * (norms[0] + 2 * norms[1])) * (1 + 4 * rounding)
        errors[part] = np.where(largest > 0, bound, -1)
    return Rounded(*map(constant, (codes, steps, errors)))


def rank(U, V, n, *, columns=None, seen=None, rounded=None, n_threads):
    """Return the n best columns of every row, and their scores.

    Parameters
    ----------
    U : ndarray of shape (q, k)
    V : ndarray of shape (m, k)
        Of the same precision.
    n : int
    columns : ndarray of int or CSR matrix of shape (q, m), default=None
        The columns to choose from, each once, or those of each row. None: all whose factor is
        not 0.
    seen : CSR matrix of shape (q, m), default=None
        Positions that are left out; its indices are sorted.
    rounded : callable, default=None
        Returns the `Rounded` factors of V, which make it quicker to look at all columns for few
        rows.
    n_threads : int

    Returns
    -------
    ranked : ndarray of shape (q, n), int64
        -1 where no column is left.
    scores : ndarray of shape (q, n)
        Falling; -inf where no column is left.
    """
    q = len(U)
    ranked, scores = np.full((q, n), -1, np.int64), np.full((q, n), -np.inf, U.dtype)
    U, V = constant(U), constant(V)
    if not (q and n and len(V)):
        return ranked, scores
    if issparse(columns):
        _rank_given(U, V, columns, seen, scores, ranked, n_threads)
    elif q < _FEW:
        rounded = None if rounded is None or columns is not None else rounded()
        ranked, scores = _rank_few_rows(U, V, n, columns, seen, rounded, n_threads)
    else:
        work = _NS_PRODUCT * q * len(V) * V.shape[1]
        with parallel_section(n_threads, work) as run:
            items = _Items(V, columns, run)
            for top in range(0, q, _BATCH):
                batch = slice(top, min(top + _BATCH, q))
                pattern = _pattern(seen, batch)
                _rank_batch(U[batch], items, pattern, scores[batch], ranked[batch], run)
    return _best(ranked, scores, n)


def _best(ranked, scores, n):
    """Return the n best of each list, best first."""
    order = np.lexsort((ranked, -scores), axis=1)[:, :n]
    return np.take_along_axis(ranked, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _pattern(matrix, rows):
    """Return indices and indptr of some rows, of none that stores anything without a matrix."""
    if matrix is None:
        return constant(np.empty(0, np.int32)), constant(
            np.zeros(rows.stop - rows.start + 1, np.int32)
        )
    indptr = matrix.indptr[rows.start : rows.stop + 1]
    return constant(matrix.indices[indptr[0] : indptr[-1]]), constant(indptr - indptr[0])


def _lengths(A):
    """Return the norms of rows, rounded up."""
    norms = np.sqrt(np.einsum("ij,ij->i", A, A, dtype=np.float64))
    return constant(norms * (1 + 4 * np.finfo(A.dtype).eps), A.dtype)


class _Items:
    """Columns in the order of falling norm, in the eigenbasis of all, piece by piece."""

    def __init__(self, V, columns, run):
        self.V, self.norms = V, _lengths(V)
        if columns is None:
            columns = np.flatnonzero(self.norms)
        order = np.argsort(-self.norms[columns], kind="stable")
        self.columns = constant(columns[order], np.int64)
        spectrum, Q = np.linalg.eigh(gram(V, V.dtype, run))
        self.Q = Q[:, ::-1].astype(V.dtype)
        share = np.cumsum(spectrum[::-1].clip(0))
        h = np.searchsorted(share, _LEADING * share[-1]) + 1
        self.h = min(V.shape[1], -(-h // 8) * 8)

    def pieces(self):
        """Yield what `_rank` takes of some columns."""
        for top in range(0, len(self.columns), _COLUMNS):
            columns = self.columns[top : top + _COLUMNS]
            # With zeros, so that no panel ends in the midst of a tile.
            W = np.zeros((-(-len(columns) // _TILE) * _TILE, self.V.shape[1]), self.V.dtype)
            V = self.V[columns]
            np.matmul(V, self.Q, out=W[: len(columns)])
            head, tail = (np.ascontiguousarray(part) for part in np.split(W, [self.h], axis=1))
            panels = (constant(in_panels(np.ascontiguousarray(part.T))) for part in (head, tail))
            yield constant(V), columns, self.norms[columns], _lengths(tail), *panels, constant(tail)


def _rank_batch(U, items, pattern, scores, ranked, run):
    """Fill the lists of some rows with what all items offer."""
    blocks = -(-len(U) // _ROWS)
    turned = np.zeros((blocks * _ROWS, U.shape[1]), U.dtype)
    np.matmul(U, items.Q, out=turned[: len(U)])
    lead, tail = (constant(part) for part in np.split(turned, [items.h], axis=1))
    reach = constant(np.stack([_lengths(turned), _lengths(tail)], axis=1))
    products = empty_lines((run.n_threads, 2, _ROWS, _TILE), U.dtype)
    # Of these, no two threads share a line.
    counts = np.empty((run.n_threads, _ROWS + LINE), np.int32)
    floors = np.empty((run.n_threads, _ROWS + LINE), U.dtype)
    rows = lead, tail, reach
    for piece in items.pieces():
        args = U, *piece, *rows, *pattern, products, counts, floors, scores, ranked
        run(_rank, even_shards(blocks), *args)


def _rank_given(U, V, columns, seen, scores, ranked, n_threads):
    """Fill the lists of rows that have columns of their own to choose from."""
    pattern = *_pattern(columns, slice(0, len(U))), *_pattern(seen, slice(0, len(U)))
    work = 10 * _NS_PRODUCT * columns.nnz * V.shape[1]
    with parallel_section(n_threads, work) as run:
        run(_rank_stored, make_shards(np.diff(columns.indptr) + 1), U, V, *pattern, scores, ranked)


def _rank_few_rows(U, V, n, columns, seen, rounded, n_threads):
    """Look at every column: for each row in as many parts as there is use for."""
    q, m = len(U), len(V) if columns is None else len(columns)
    with parallel_section(n_threads, _NS_FEW[rounded is not None] * q * m * V.shape[1]) as run:
        parts = -(-4 * run.n_threads // q) if run.n_threads > 1 else 1
        ends = np.linspace(0, m, parts + 1).astype(np.int64)
        shards = np.tile(np.stack([ends[:-1], ends[1:]], axis=1), (q, 1))
        ranked = np.full((q * parts, n), -1, np.int64)
        scores = np.full((q * parts, n), -np.inf, U.dtype)
        rows, reach = constant(np.repeat(np.arange(q), parts)), _lengths(U)
        lists = *_pattern(seen, slice(0, q)), scores, ranked
        if rounded is not None:
            shards = -(-shards // 8) * 8
            padded = empty_lines((q, rounded.codes.shape[1]), U.dtype)
            padded[:, : U.shape[1]], padded[:, U.shape[1] :] = U, 0
            bounds = empty_lines((run.n_threads, LINE), U.dtype)
            args = U, V, constant(padded), *rounded, reach, *lists[:2], bounds, *lists[2:]
            run(_rank_rounded, shards, rows, *args)
        else:
            names = constant(np.empty(0) if columns is None else columns, np.int64)
            run(_rank_few, shards, rows, U, V, names, columns is not None, reach, *lists)
    return ranked.reshape(q, -1), scores.reshape(q, -1)
