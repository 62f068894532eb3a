#!/usr/bin/env bash
# implicit 0.7.3, NumPy 2.4.6, SciPy 1.17.1: AlternatingLeastSquares takes an explicit zero of a sparse
# matrix out of the loss. An entry that is not stored has weight 1 and target 0, one that stores 0 has
# neither.
#
# Seen: 60 zeros that are stored, in a matrix of 30 x 20 with 180 ones, raise the mean of what is
# predicted in their places from 0.384 to 0.480, which is what a weight of 0 gives. No warning is given.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "numpy==2.4.6" "scipy==1.17.1" "implicit==0.7.3"
OPENBLAS_NUM_THREADS=1 "$folder/venv/bin/python" - <<'END'
import sys

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares

ALPHA, RIDGE = 2.0, 0.5
ones = sp.random(30, 20, 0.3, random_state=0, format="csr")
ones.data[:] = 1
places = np.argwhere(ones.toarray() == 0)
i, j = np.random.default_rng(0).permutation(places)[:60].T
entries = ones.tocoo()
stored = (np.r_[entries.row, i], np.r_[entries.col, j])
zeros = sp.csr_matrix((np.r_[np.ones(ones.nnz), np.zeros(60)], stored), ones.shape)
means = []
for X in (ones, zeros):
    model = AlternatingLeastSquares(
        factors=2, alpha=ALPHA, regularization=RIDGE, iterations=2000, dtype=np.float64,
        use_cg=False, random_state=0, num_threads=1,
    )
    model.fit(X, show_progress=False)
    U, V = model.user_factors, model.item_factors
    means.append(float((U @ V.T)[i, j].mean()))
# The gradient of the users for a weight of 0 in these places, alpha where there are ones, 1 elsewhere.
A = ones.toarray()
W = np.where(A > 0, ALPHA, 1.0)
W[i, j] = 0
gradient = (W * (A - U @ V.T)) @ V - RIDGE * U
print(f"{means[0]:.3f} {means[1]:.3f}, gradient {abs(gradient).max():.0e}")
sys.exit(not (means[1] > means[0] + 0.05 and abs(gradient).max() < 1e-9))
END
