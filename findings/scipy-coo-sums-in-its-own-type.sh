#!/usr/bin/env bash
# SciPy 1.16.3, NumPy 2.3.5: a COO matrix sums duplicates in its own type, however narrow, when it is
# converted; converted to float first, the same entries have another sum.
#
# Seen: 44.0 for 200 + 100 at one place, given as uint8 in coordinates, where the CSR matrix with the
# same entries, given as rows, has 300.0 once its values are floats:
#     coo_array(...).tocsr().astype(float) -> 44.0
#     coo_array(...).astype(float).tocsr() -> 300.0
# So which of the two a library does decides what a count is, and nothing warns.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scipy==1.16.3" "numpy==2.3.5"
"$folder/venv/bin/python" - <<'END'
import sys

import numpy as np
import scipy
from scipy.sparse import coo_array

counts = np.array([200, 100], np.uint8)
matrix = coo_array((counts, ([0, 0], [0, 0])), shape=(1, 1))
late = float(matrix.tocsr().astype(float).sum())
early = float(matrix.astype(float).tocsr().sum())
print(f"SciPy {scipy.__version__}: converted after the sum {late}, before it {early}")
sys.exit((late, early) != (44.0, 300.0))
END
