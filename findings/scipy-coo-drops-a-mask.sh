#!/usr/bin/env bash
# SciPy 1.16.3, NumPy 2.3.5: a COO matrix made from a masked array of values stores what is masked, as
# if it were not, and keeps no trace of the mask.
#
# Seen: of the values 1, 2 (masked) and 3 on a diagonal, coo_array stores 3 entries that sum to 6.0;
# the masked array itself sums to 4.0. No warning is given, not by csr_array(masked) of a dense masked
# array either, which stores the masked element as well: 3 entries.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scipy==1.16.3" "numpy==2.3.5"
"$folder/venv/bin/python" -W error - <<'END'
import sys

import numpy as np
import scipy
from scipy.sparse import coo_array, csr_array

values = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
stored = coo_array((values, (range(3), range(3))), shape=(3, 3))
dense = csr_array(np.ma.array(np.diag([1.0, 2.0, 3.0]), mask=np.diag([False, True, False])))
seen = stored.nnz, float(stored.sum()), float(values.sum()), dense.nnz, type(stored.data).__name__
print(f"SciPy {scipy.__version__}: {seen}")
sys.exit(seen != (3, 6.0, 4.0, 3, "ndarray"))
END
