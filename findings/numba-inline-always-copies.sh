#!/usr/bin/env bash
# Numba's inline="always" copies the inlined function's variables once for each of its blocks.
#
# Each block is deep-copied by itself, with the scope that holds all variables of the function: with numba 0.68.1,
# twice as many blocks take four times as many copies of variables, and functions that inline functions that inline
# others take minutes to compile, where calls left to LLVM's inliner take seconds.
#
# Exits with 0 if the number of copies still grows with the square, prints what it counted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import numba
from numba import njit
from numba.core import ir

print("numba", numba.__version__)
copies = 0
original = ir.Var.__deepcopy__


def counted(self, memo):
    global copies
    copies += 1
    return original(self, memo)


ir.Var.__deepcopy__ = counted


def count(n_blocks):
    """Return how many variables are copied to inline a function of so many branches once."""
    global copies
    lines = ["def branches(x):", "    y = 0.0"]
    for i in range(n_blocks):
        lines += [f"    if x > {i}:", f"        y += x * {i}"]
    names = {}
    exec("\n".join([*lines, "    return y"]), names)
    branches = njit(inline="always")(names["branches"])
    copies = 0
    njit(lambda x: branches(x))(1.0)
    return copies


few, many = count(30), count(60)
print(f"30 branches: {few} copies, 60 branches: {many} copies, {many / few:.2f} times as many")
if not 3.5 < many / few < 4.5:
    raise SystemExit("changed: the number of copies does not grow with the square")
END
