#!/usr/bin/env bash
# pandas 3.1.1, SciPy 1.17.1, NumPy 2.4.6: a frame of sparse columns keeps the zeros that a CSR stored,
# as a whole and in slices of rows, but rows chosen by a list or a mask lose them, and so does every
# fold of a cross-validation.
#
# Seen: of 50 stored zeros, 25 are in the first 20 rows of the matrix and of frame.iloc[:20], and none
# in frame.iloc[list(range(20))] or frame[mask]. No warning is given.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pandas==3.1.1" "scipy==1.17.1" "numpy==2.4.6"
"$folder/venv/bin/python" -W error - <<'END'
import sys

import numpy as np
import pandas as pd
import scipy.sparse as sp

rng = np.random.default_rng(0)
X = sp.csr_array(sp.random(40, 30, 0.2, random_state=0))
X.data = rng.integers(1, 5, X.nnz).astype(float)
X.data[rng.permutation(X.nnz)[:50]] = 0
frame = pd.DataFrame.sparse.from_spmatrix(X)
chosen = frame, frame.iloc[:20], frame.iloc[list(range(20))], frame[np.arange(40) < 20]
zeros = [int(np.sum(part.sparse.to_coo().data == 0)) for part in chosen]
print(f"pandas {pd.__version__}: all, slice, list, mask: {zeros}; CSR: {np.sum(X[:20].data == 0)}")
sys.exit(zeros != [50, 25, 0, 0])
END
