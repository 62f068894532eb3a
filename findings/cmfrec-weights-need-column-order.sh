#!/usr/bin/env bash
# cmfrec 3.5.1, NumPy 1.26.4: CMF gives observation weights W to other entries when it solves the item
# factors, if X is a COO matrix whose entries are not in column-major order.
#
# Seen: the same entries and weights, in row-major order, converge to a weighted loss of 454.8 and a
# gradient of the item factors of 36; in column-major order to 372.0 and a gradient below 1e-4. The
# gradient of the user factors vanishes both times. No warning is given.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "numpy==1.26.4" "scipy==1.13.1" "pandas==2.2.3" \
    "threadpoolctl==3.6.0" "cmfrec==3.5.1"
"$folder/venv/bin/python" - <<'END'
import sys

import numpy as np
import scipy.sparse as sp
from cmfrec import CMF

rng = np.random.default_rng(0)
X = sp.random(30, 20, 0.3, random_state=0, format="csr")
X.data = rng.integers(1, 6, X.nnz).astype(float)
W = X.copy()
W.data = rng.uniform(0.1, 3, X.nnz)
dense, weights = X.toarray(), W.toarray()
settings = dict(k=2, lambda_=1.0, niter=500, use_cg=False, finalize_chol=False, nthreads=1)
settings |= dict(user_bias=False, item_bias=False, center=False, verbose=False, random_state=0)
seen = []
for order in (sp.csr_matrix, sp.csc_matrix):
    model = CMF(**settings, precompute_for_predictions=False)
    model.fit(sp.coo_matrix(order(X)), W=sp.coo_matrix(order(W)).data)
    error = weights * (dense - model.A_ @ model.B_.T)
    loss = (error * (dense - model.A_ @ model.B_.T)).sum() + (model.A_**2).sum() + (model.B_**2).sum()
    gradients = model.B_ - error.T @ model.A_, model.A_ - error @ model.B_
    seen.append((round(loss, 1), *(bool(abs(g).max() < 1e-3) for g in gradients)))
print("row-major, column-major: loss, whether the gradients of items and users vanish:", seen)
sys.exit(seen != [(454.8, False, True), (372.0, True, True)])
END
