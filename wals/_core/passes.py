"""Passes over whole arrays: to round, rotate or transpose them, or to sum them up.

Each is a kernel and, below it, the function that cuts the work into shards and runs it. No result
depends on how many threads there are, or on which of them took which shard.
"""

import numpy as np
import scipy.sparse as sp

from .compile import (
    LINE,
    SHARD,
    THREAD,
    constant,
    empty_lines,
    kernel,
    take,
    this_call,
    whole_lines,
)
from .kernels import LEAST_LARGEST, set_entries
from .linalg import copy_rows, dot, empty_panels, in_panels, multiply, set_panels
from .parallel import even_shards, make_shards, parallel_section
from .team import in_threads

#: Rows that are added to a Gramian at once, and those that are rotated: a multiple of 6.
_BLOCK, _ROTATED = 256, 96
#: Nanoseconds of a multiply-add of a product of blocks, and of a scalar product.
NS_PRODUCT, _NS_DOT = 0.0205, 0.06


@kernel
def _encode(team, taken, shards, V, scale, codes, steps, most, rows, bits):
    if team:
        in_threads(team, *this_call())
        return
    t, k = take(taken, THREAD), scale.size
    row, largest, largest_bits = rows[t], rows[t, k:], bits[t, k:]
    bits = bits[t]
    s = take(taken, SHARD)
    while s < len(shards):
        for j in range(shards[s, 0], shards[s, 1]):
            for c in range(k):
                row[c] = V[j, c] * scale[c]
            most_bits = np.int32(0)
            for c in range(k):  # of positive numbers, the largest has the largest bits
                most_bits = max(most_bits, bits[c] & np.int32(0x7FFFFFFF))
            largest_bits[0] = most_bits
            steps[j] = largest[0] / most
            inverse = most / largest[0] if largest[0] > LEAST_LARGEST else np.float32(0)
            for c in range(k):
                codes[j, c] = np.int32(np.rint(row[c] * inverse))
        s = take(taken, SHARD)


def encode(V, scale, codes, steps, run):
    """Round the rows of V g to multiples of a step, a different one for each row.

    Parameters
    ----------
    V : ndarray of shape (m, k), float32
    scale : ndarray of shape (k,)
        g.
    codes : ndarray of shape (m, k' >= k), int8 or int16
        The first k columns are set.
    steps : ndarray of shape (m,)
        Set.
    run : callable
        See `parallel.parallel_section`.
    """
    most = np.float32(np.iinfo(codes.dtype).max)
    rows = np.empty((run.n_threads, scale.size + LINE), np.float32)  # no line in common
    bits = rows.view(np.int32)
    run(_encode, even_shards(len(V)), constant(V), scale, codes, steps, most, rows, bits)


@kernel
def _gram(team, taken, shards, part_size, V, blocks, turned, panels, products, parts):
    if team:
        in_threads(team, *this_call())
        return
    t, k = take(taken, THREAD), V.shape[1]
    block, across, panel, product = blocks[t], turned[t], panels[t], products[t]
    s = take(taken, SHARD)
    while s < len(shards):
        for p in range(shards[s, 0], shards[s, 1]):
            for c in range(k):
                for d in range(k):
                    parts[p, c, d] = 0
            stop = (p + 1) * part_size
            if stop > V.shape[0]:
                stop = V.shape[0]
            for top in range(p * part_size, stop, _BLOCK):
                count = _BLOCK if stop - top > _BLOCK else stop - top
                copy_rows(V, top, block, 0, count)
                for r in range(count, _BLOCK):
                    for c in range(k):
                        block[r, c] = 0
                for r in range(_BLOCK):
                    for c in range(k):
                        across[c, r] = block[r, c]
                set_panels(block, panel)
                multiply(across, k, panel, panel.shape[2], product)
                for c in range(k):
                    for d in range(c, k):
                        parts[p, c, d] += product[c, d]
        s = take(taken, SHARD)


def gram(V, precision, run):
    """Return V^T V in float64, its products summed over _BLOCK rows in the given precision."""
    n, k = V.shape
    size = max(1024, -(-n // 16))
    parts = np.empty((-(-n // size), k, k))
    ends = np.arange(len(parts) + 1)
    shards = np.stack([ends[:-1], ends[1:]], axis=1)
    panels = empty_panels(_BLOCK, k, precision, run.n_threads)
    width = whole_lines(k + LINE // panels.itemsize, panels)  # with one line more, to fill panels
    blocks = empty_lines((run.n_threads, _BLOCK, width), precision)
    # So that its columns are not all in few places of a cache.
    turned = empty_lines((run.n_threads, width, _BLOCK + LINE // panels.itemsize), precision)
    blocks[:] = turned[:] = 0
    wide = panels.shape[1] * panels.shape[3]
    products = empty_lines((run.n_threads, width, wide), precision)
    run(_gram, shards, size, constant(V), blocks, turned, panels, products, parts)
    upper = np.triu(parts.sum(axis=0))
    return upper + np.triu(upper, 1).T


@kernel
def _rotate(team, taken, shards, X, panels, blocks, products, out):
    if team:
        in_threads(team, *this_call())
        return
    t = take(taken, THREAD)
    block, product = blocks[t], products[t]
    s = take(taken, SHARD)
    while s < len(shards):
        last = shards[s, 1]
        for top in range(shards[s, 0], last, _ROTATED):
            count = _ROTATED if last - top > _ROTATED else last - top
            copy_rows(X, top, block, 0, count)
            multiply(block, count, panels, count, product)
            copy_rows(product, 0, out, top, count)
        s = take(taken, SHARD)


def rotate(X, Q, out, run, panels=None):
    """Set out = X Q, in the precision of Q, which may be in panels already; out may be X.

    Returns
    -------
    out : ndarray
    """
    panels = in_panels(Q) if panels is None else panels
    blocks = empty_lines((run.n_threads, _ROTATED, X.shape[1]), Q.dtype)
    blocks[:] = 0
    wide = panels.shape[0] * panels.shape[2]
    products = empty_lines((run.n_threads, _ROTATED, wide), Q.dtype)
    run(_rotate, even_shards(len(X)), constant(X), panels, blocks, products, out)
    return out


def rotate_back(factors, frame, n_threads):
    """Undo the rotation that sweeps have left the factors in."""
    with parallel_section(n_threads, NS_PRODUCT * factors.size * len(frame)) as run:
        rotate(factors, frame.T, factors, run)


@kernel
def _extrapolate(team, taken, shards, V, previous, beta):
    if team:
        in_threads(team, *this_call())
        return
    beta = V.dtype.type(beta)
    s = take(taken, SHARD)
    while s < len(shards):
        for j in range(shards[s, 0], shards[s, 1]):
            for c in range(V.shape[1]):
                v = V[j, c]
                V[j, c] += beta * (v - previous[j, c])
                previous[j, c] = v
        s = take(taken, SHARD)


def extrapolate(V, previous, beta, run):
    """Set V = V + beta (V - previous), and previous = V."""
    run(_extrapolate, even_shards(len(V)), V, previous, beta)


@kernel
def _sampled_product(team, taken, shards, indices, indptr, U, V, out):
    if team:
        in_threads(team, *this_call())
        return
    s = take(taken, SHARD)
    while s < len(shards):
        for i in range(shards[s, 0], shards[s, 1]):
            for t in range(indptr[i], indptr[i + 1]):
                out[t] = dot(U[i], V[indices[t]])
        s = take(taken, SHARD)


def sampled_product(U, V, indices, indptr, *, dtype, n_threads):
    """Return u_i.v_j for the stored positions (i, j) of a CSR matrix, in their order.

    They are summed in float64, and rounded to the given type.
    """
    out = np.empty(indices.size, dtype)
    shards = make_shards(np.diff(indptr) + 1)
    structure = constant(indices), constant(indptr)
    with parallel_section(n_threads, _NS_DOT * out.size * U.shape[1]) as run:
        run(_sampled_product, shards, *structure, constant(U), constant(V), out)
    return out


@kernel
def _extra_weights(team, taken, shards, items, other_weights, w0, extras, targets, mass, energy):
    if team:
        in_threads(team, *this_call())
        return
    thread = take(taken, THREAD)
    extra, target = extras[thread], targets[thread]
    s = take(taken, SHARD)
    while s < len(shards):
        for i in range(shards[s, 0], shards[s, 1]):
            start, stop = np.int64(items.indptr[i]), np.int64(items.indptr[i + 1])
            set_entries(
                items.data,
                items.indices,
                items.entry_weights,
                items.weights[i],
                other_weights,
                items.implicit,
                start,
                stop,
                extra,
                target,
            )
            total = 0.0
            for t in range(stop - start):
                total += extra[t]
            mass[i] = total
            total = 0.0
            for t in range(stop - start):
                total += (w0 + extra[t]) * target[t] ** 2
            energy[i] = total
        s = take(taken, SHARD)


def extra_weights(items, other_weights, w0, *, n_threads):
    """Return sum_S e_j, and sum_S (w0 + e_j) a_j^2, of all items in float64."""
    counts = np.diff(items.indptr)
    mass, energy = np.empty(len(counts)), np.empty(len(counts))
    shards = make_shards(counts + 1.0)
    with parallel_section(n_threads, items.indices.size) as run:
        scratch = np.empty((2, run.n_threads, counts.max(initial=0)))
        run(_extra_weights, shards, items, other_weights, float(w0), *scratch, mass, energy)
    return mass, energy


@kernel
def _count_columns(team, taken, shards, bounds, indices, indptr, counts):
    if team:
        in_threads(team, *this_call())
        return
    s = take(taken, SHARD)
    while s < len(shards):
        for p in range(shards[s, 0], shards[s, 1]):
            for j in range(counts.shape[1]):
                counts[p, j] = 0
            for t in range(indptr[bounds[p]], indptr[bounds[p + 1]]):
                counts[p, np.uint64(indices[t])] += 1
        s = take(taken, SHARD)


@kernel
def _transpose(team, taken, shards, bounds, data, indices, indptr, places, out_data, out_indices):
    if team:
        in_threads(team, *this_call())
        return
    s = take(taken, SHARD)
    while s < len(shards):
        for p in range(shards[s, 0], shards[s, 1]):
            for i in range(bounds[p], bounds[p + 1]):
                for t in range(indptr[i], indptr[i + 1]):
                    j = np.uint64(indices[t])
                    place = np.uint64(places[p, j])
                    places[p, j] += 1
                    out_data[place] = data[t]
                    out_indices[place] = i
        s = take(taken, SHARD)


def transpose(X, *, n_threads):
    """Return the transpose of a CSR matrix in CSR format, with indices as small as they may be."""
    n, m = X.shape
    n_parts = max(1, min(n_threads, X.nnz // (4 * max(m, 1))))  # so that the counts stay small
    bounds = np.searchsorted(X.indptr, np.linspace(0, X.nnz, n_parts + 1)).astype(np.int64)
    bounds[0], bounds[-1] = 0, n
    parts = np.stack([np.arange(n_parts), np.arange(1, n_parts + 1)], axis=1)
    counts = np.empty((n_parts, m), dtype=np.int64)
    index_type = sp.get_index_dtype(maxval=max(n, X.nnz))
    data, indices = np.empty(X.nnz, X.dtype), np.empty(X.nnz, index_type)
    structure = (constant(X.indices), constant(X.indptr))
    with parallel_section(n_threads, X.nnz) as run:
        run(_count_columns, parts, bounds, *structure, counts)
        indptr = np.concatenate([[0], np.cumsum(counts.sum(axis=0))]).astype(index_type)
        # Of the first entry of each column in each part; the kernel advances them.
        places = indptr[:-1] + np.cumsum(counts, axis=0) - counts
        run(_transpose, parts, bounds, constant(X.data), *structure, places, data, indices)
    return sp.csr_array((data, indices, indptr), shape=(m, n))
