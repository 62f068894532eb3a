#!/usr/bin/env bash
# Numba does not type a call that is assigned in the condition of a while loop.
#
# With numba 0.68.1 on Python 3.11, `while (s := f(x)) < n:`, where f is an intrinsic, fails with "Type of variable
# '$...call...' cannot be determined"; the same loop with two assignments, one before it and one at its end, which
# is what CPython compiles the first to, works. Python itself runs both.
#
# Exits with 0 if that is still so, prints what it saw.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import numba
import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

print("numba", numba.__version__)


@intrinsic
def following(typingctx, x):
    return types.int64(types.int64), lambda context, builder, signature, args: builder.add(
        args[0], context.get_constant(types.int64, 1)
    )


@njit
def in_condition(n):
    s = 0
    while (s := following(s)) < n:
        pass
    return s


@njit
def assigned_twice(n):
    s = 0
    s = following(s)
    while s < n:
        s = following(s)
    return s


print("assigned twice:", assigned_twice(5))
assert assigned_twice(5) == 5
try:
    print("in the condition:", in_condition(5))
except TypingError as error:
    print("in the condition:", next(line for line in str(error).splitlines() if "cannot be" in line))
else:
    raise SystemExit("changed: the condition is typed now")
END
