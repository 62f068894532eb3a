"""Fits and projections of matrices that are spread over a Dask cluster.

`wals.WALS` takes them by itself: a ``dask.array`` of blocks of rows, sparse or dense, or a list of
delayed or futures of such blocks. This package is what it imports then.

Blocks of rows stay on the workers, and one shuffle makes blocks of columns of them. In a sweep each
worker solves its blocks, for which it gets the fixed side once, rounded as kernels round it.
Factors of rows move from worker to worker alone; those of columns pass the client once per
iteration. With the latter a fit goes on when a worker is lost: its blocks are made again where
there is room, and the sweep is repeated; one of columns, after that of rows before it.

What a sweep leaves on a block, the factors of rows and dual coefficients, is kept with the block on
its worker, also on its disk, where Dask puts what memory has no room for. A block that was made
again lacks it: it starts from 0, and a task that needs its factors says that they are `Lost`.
"""

from ._models import gather_rows

__all__ = ["gather_rows"]
