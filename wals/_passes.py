"""Numba kernels that pass over whole arrays: to round, rotate or transpose them, or to sum them up.

Each function with a `first` and a `last` handles one shard. In the driver below it, each thread
takes one shard after the other that is left; no result depends on which thread took which.
"""

import numpy as np
from numba import prange

from ._compile import LINE, empty_lines, jit, jit_parallel, take, whole_lines
from ._kernels import LEAST_LARGEST, entries
from ._linalg import copy_rows, dot, empty_panels, multiply, set_panels

#: Rows that are added to a Gramian at once, and those that are rotated: a multiple of 6.
_BLOCK, _ROTATED = 256, 96


@jit
def encode_shard(first, last, V, scale, codes, steps):
    """Round the rows first:last of V g to multiples of a step, a different one for each row."""
    k, most = scale.size, np.float32(np.iinfo(codes.dtype).max)
    row, largest = np.empty(k, np.float32), np.empty(1, np.float32)
    bits, largest_bits = row.view(np.int32), largest.view(np.int32)
    for j in range(first, last):
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


@jit_parallel
def encode(n_threads, taken, shards, V, scale, codes, steps):
    """Round all rows; see `encode_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            encode_shard(shards[s, 0], shards[s, 1], V, scale, codes, steps)
            s = take(taken)


@jit
def gram_shard(first, last, part_size, V, like, parts):
    """Set parts[p] = V_p^T V_p, its upper triangle, for the rows of the parts first:last.

    Products are summed in the precision of the empty array `like`, over _BLOCK rows.
    """
    k = V.shape[1]
    # With one line more, panels are filled, and columns are not all in few places of a cache.
    width = whole_lines(k + LINE // like.itemsize, like)
    block = empty_lines((_BLOCK, width), like.dtype)
    panels = empty_panels(_BLOCK, k, like)
    product = empty_lines((width, panels.shape[0] * panels.shape[2]), like.dtype)
    block[:] = 0
    for p in range(first, last):
        for c in range(k):
            for d in range(k):
                parts[p, c, d] = 0
        stop = min((p + 1) * part_size, V.shape[0])
        for top in range(p * part_size, stop, _BLOCK):
            count = min(_BLOCK, stop - top)
            copy_rows(V, top, block, 0, count)
            block[count:] = 0
            set_panels(block, panels)
            multiply(block.T, k, panels, True, product)
            for c in range(k):
                for d in range(c, k):
                    parts[p, c, d] += product[c, d]


@jit_parallel
def gram(n_threads, taken, shards, part_size, V, like, parts):
    """Compute the partial Gramians of all parts; see `gram_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            gram_shard(shards[s, 0], shards[s, 1], part_size, V, like, parts)
            s = take(taken)


@jit
def rotate_shard(first, last, X, panels, out):
    """Set out[i] = X[i] Q for first <= i < last, in the precision of Q; out may be X.

    Q is in panels; see `_linalg.set_panels`.
    """
    block = empty_lines((_ROTATED, X.shape[1]), panels.dtype)
    product = empty_lines((_ROTATED, panels.shape[0] * panels.shape[2]), panels.dtype)
    block[:] = 0
    for top in range(first, last, _ROTATED):
        count = min(_ROTATED, last - top)
        copy_rows(X, top, block, 0, count)
        multiply(block, count, panels, False, product)
        copy_rows(product, 0, out, top, count)


@jit_parallel
def rotate(n_threads, taken, shards, X, panels, out):
    """Rotate all rows; see `rotate_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            rotate_shard(shards[s, 0], shards[s, 1], X, panels, out)
            s = take(taken)


@jit
def extrapolate_shard(first, last, V, previous, beta):
    """Set V = V + beta (V - previous) and previous = V, for the rows first:last."""
    beta = V.dtype.type(beta)
    for j in range(first, last):
        for c in range(V.shape[1]):
            v = V[j, c]
            V[j, c] += beta * (v - previous[j, c])
            previous[j, c] = v


@jit_parallel
def extrapolate(n_threads, taken, shards, V, previous, beta):
    """Extrapolate all rows; see `extrapolate_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            extrapolate_shard(shards[s, 0], shards[s, 1], V, previous, beta)
            s = take(taken)


@jit
def sampled_product_shard(first, last, indices, indptr, U, V, out):
    """Set out[t] = u_i.v_j for the stored positions (i, j) of the rows first:last."""
    for i in range(first, last):
        for t in range(indptr[i], indptr[i + 1]):
            out[t] = dot(U[i], V[indices[t]])


@jit_parallel
def sampled_product(n_threads, taken, shards, indices, indptr, U, V, out):
    """Compute (U V^T) at all stored positions; see `sampled_product_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            sampled_product_shard(shards[s, 0], shards[s, 1], indices, indptr, U, V, out)
            s = take(taken)


@jit
def extra_weights_shard(first, last, items, other_weights, out):
    """Set out[i] = sum_S e_j for the items first:last."""
    for i in range(first, last):
        out[i] = entries(items, other_weights, i)[0].sum()


@jit_parallel
def extra_weights(n_threads, taken, shards, items, other_weights, out):
    """Sum the extra weights of all items; see `extra_weights_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            extra_weights_shard(shards[s, 0], shards[s, 1], items, other_weights, out)
            s = take(taken)


@jit
def count_columns_shard(first, last, bounds, indices, indptr, counts):
    """Set counts[p, j] to the number of entries of column j in the rows of part p."""
    for p in range(first, last):
        for j in range(counts.shape[1]):
            counts[p, j] = 0
        for t in range(indptr[bounds[p]], indptr[bounds[p + 1]]):
            counts[p, np.uint64(indices[t])] += 1


@jit_parallel
def count_columns(n_threads, taken, shards, bounds, indices, indptr, counts):
    """Count the entries of the columns in all parts; see `count_columns_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            count_columns_shard(shards[s, 0], shards[s, 1], bounds, indices, indptr, counts)
            s = take(taken)


@jit
def transpose_shard(first, last, bounds, data, indices, indptr, places, out_data, out_indices):
    """Move the entries of the parts first:last to their places in the transpose.

    places[p, j] is that of the first entry of column j in part p; it is advanced.
    """
    for p in range(first, last):
        for i in range(bounds[p], bounds[p + 1]):
            for t in range(indptr[i], indptr[i + 1]):
                j = np.uint64(indices[t])
                place = np.uint64(places[p, j])
                places[p, j] += 1
                out_data[place] = data[t]
                out_indices[place] = i


@jit_parallel
def transpose(
    n_threads, taken, shards, bounds, data, indices, indptr, places, out_data, out_indices
):
    """Move all entries to their places in the transpose; see `transpose_shard`."""
    for _ in prange(n_threads):
        s = take(taken)
        while s < len(shards):
            transpose_shard(
                shards[s, 0],
                shards[s, 1],
                bounds,
                data,
                indices,
                indptr,
                places,
                out_data,
                out_indices,
            )
            s = take(taken)
