#!/usr/bin/env bash
# Dask takes the transpose of a square matrix for the matrix itself.
#
# dask 2026.8.0 with NumPy 2.4.6: `tokenize` hashes the memory of an array that is contiguous in either order, its shape
# and its type, but not its strides. A square matrix and its transpose, or a copy in Fortran's order, get the same token,
# and whatever is named by tokens takes one for the other: with distributed 2026.8.0, `submit(f, Q.T)` after
# `submit(f, Q)` returns f(Q), and so does `delayed(f, pure=True)`; nothing is said.
#
# Seen: the first row of [[0, 1], [2, 3]] and of its transpose are both [0, 1].
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dask==2026.8.0 distributed==2026.8.0 numpy==2.4.6
cd "$folder"
cat > compare.py <<'END'
import dask
import distributed
import numpy as np
from dask.base import tokenize

print("dask", dask.__version__, "NumPy", np.__version__)


def first_row(matrix):
    return matrix[0].tolist()


if __name__ == "__main__":
    Q = np.arange(4.0).reshape(2, 2)
    same = tokenize(Q) == tokenize(Q.T)
    with distributed.Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as client:
        one = client.submit(first_row, Q)
        two = client.submit(first_row, Q.T)
        rows = client.gather([one, two])
    lazily = dask.compute(
        *(dask.delayed(first_row, pure=True)(matrix) for matrix in (Q, Q.T)), scheduler="sync"
    )
    print("the same token:", same)
    print("first rows by submit:", *rows)
    print("first rows by delayed:", *lazily)
    print("first rows:", first_row(Q), first_row(Q.T))
    raise SystemExit(not (same and rows[0] == rows[1] and lazily[0] == lazily[1]))
END
venv/bin/python compare.py
