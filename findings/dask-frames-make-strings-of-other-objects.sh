#!/usr/bin/env bash
# A data frame of Dask makes strings of whatever objects are in a column.
#
# dask 2026.8.0 with pandas 3.1.1 and pyarrow 26.0.1: columns of objects become strings of Arrow, also where the objects
# are numbers, dates, tuples or UUIDs (the setting dataframe.convert-string, which is on). So an id 1 and an id "1" are
# the same afterwards, nothing is said, and groups and joins by such ids are of others than in pandas.
#
# Seen: the column [1, "1", (1, 2)] has 3 values in pandas, and 2 in Dask, all of them strings.
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dask==2026.8.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import dask
import dask.dataframe as dd
import pandas as pd

print("dask", dask.__version__, "pandas", pd.__version__)
frame = pd.DataFrame({"id": pd.Series([1, "1", (1, 2)], dtype=object)})
there = dd.from_pandas(frame, npartitions=1).compute(scheduler="sync")["id"]
print("pandas:", frame["id"].tolist(), frame["id"].nunique())
print("Dask:", there.tolist(), there.nunique())
raise SystemExit(not (frame["id"].nunique() == 3 and there.tolist() == ["1", "1", "(1, 2)"]))
END
