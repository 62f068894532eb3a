#!/usr/bin/env bash
# Numba does not read a cache of compiled code beside the source if that folder cannot be written to.
#
# With numba 0.68.1, a function with cache=True that was compiled into __pycache__ is loaded from there in the next
# process; once the file system is read-only, as in many images of containers, the same files are not read, but the
# function is compiled again, into the user's cache folder; and if that cannot be written to either, `njit` raises
# "cannot cache function" while the module is imported.
#
# Needs a kernel that lets users mount in a namespace of their own (unshare). Exits with 0 if that is still so, prints
# what it saw.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
mkdir "$folder/module" "$folder/home"
cat > "$folder/module/twice.py" <<'END'
from numba import njit


@njit(cache=True)
def twice(x):
    return 2 * x
END
cat > "$folder/use.py" <<'END'
import sys

sys.path.insert(0, sys.argv[1])
try:
    from twice import twice
except RuntimeError as error:
    print("import fails:", str(error).split(" for file")[0])
else:
    twice(1)
    print("loaded" if twice.stats.cache_hits else "compiled")
END
use="env -u NUMBA_CACHE_DIR -u XDG_CACHE_HOME HOME=$folder/home $folder/venv/bin/python -B $folder/use.py $folder/module"
read_only() { unshare --mount --map-root-user sh -ec "mount --bind $1 $1; mount -o remount,ro,bind $1; $use"; }
"$folder/venv/bin/python" -c "import numba; print('numba', numba.__version__)"
first=$($use)
second=$($use)
third=$(read_only "$folder/module")
fourth=$(read_only "$folder")
printf 'first: %s\nagain: %s\nits folder is read-only: %s\nthe home folder, too: %s\n' "$first" "$second" "$third" "$fourth"
[ "$first" = compiled ]
[ "$second" = loaded ]
[ "$third" = compiled ]
[ "$fourth" = "import fails: cannot cache function 'twice': no locator available" ]
