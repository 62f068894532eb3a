#!/usr/bin/env bash
# Dask takes SciPy's sparse arrays for objects of a few bytes.
#
# dask 2026.8.0 with SciPy 1.17.1: `sizeof` knows the older csr_matrix alone. A csr_array, of whatever size, counts as
# what the bare Python object takes, so that a worker neither spills it nor tells the scheduler what it would cost to
# move it.
#
# Seen: a csr_matrix of a million entries 12.0 MB, the same csr_array 56 bytes.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dask==2026.8.0 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'END'
import dask
import numpy as np
import scipy
import scipy.sparse as sp
from dask.sizeof import sizeof

print("dask", dask.__version__, "SciPy", scipy.__version__)
n = 1_000_000
parts = np.ones(n), np.arange(n, dtype=np.int32), np.arange(0, n + 1, 1000, dtype=np.int32)
older, newer = sp.csr_matrix(parts), sp.csr_array(parts)
print("csr_matrix:", sizeof(older), "bytes")
print("csr_array:", sizeof(newer), "bytes")
raise SystemExit(not (sizeof(older) > 1e7 and sizeof(newer) < 1000))
END
