"""What files of models are tested by: models by formula, damage, and processes that are killed.

    python tests/persistence_scenarios.py write FOLDER     # the files of the present version
    python tests/persistence_scenarios.py kill FILE 5      # kill as many processes that save

Files of older versions are kept: they must load forever.
"""

import json
import os
import re
import signal
import sys
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from pathlib import Path
from uuid import UUID

import numpy as np
import scipy.sparse as sp

import wals
from wals import WALS, Recommender, _format
from wals.weights import power_law


def wals_by_formula(n, m, k, dtype, **params):
    """Return a WALS whose fitted attributes are simple numbers."""
    model = WALS(k, **params)
    vars(model).update(
        components_=np.sin(np.arange(m * k)).astype(dtype).reshape(m, k).T,
        row_factors_=np.cos(np.arange(n * k)).astype(dtype).reshape(n, k),
        row_weights_=1 / np.arange(1.0, n + 1),
        col_weights_=np.arange(m) / 4,
        _row_mass=np.arange(n) + 0.5,
        _col_mass=np.arange(m) + 0.25,
        loss_curve_=np.array([3.0, 2.0, 1.5]),
        rwse_curve_=np.array([0.75, 0.5, 0.25]),
        seconds_=np.array([0.125, 0.25, 0.5]),
        loss_=1.5,
        rwse_=np.float64(0.25),
        n_iter_=1,
        n_features_in_=m,
    )
    return model


def models():
    """Return models by the names of their files."""
    first = wals_by_formula(
        5,
        7,
        3,
        np.float64,
        col_weights=np.arange(7.0),
        init=np.arange(21.0).reshape(3, 7).T,
        random_state=np.random.RandomState(5),
        tol=np.float32(0.1),
        regularization=1 / 3,
    )
    first.feature_names_in_ = np.array(["à", "", "\ud800", "c\0", "d" * 40, "e", "f"], dtype=object)
    first.row_ids_ = np.array(["", "b", "ü", "𝄞d", "eee"])
    first.col_ids_ = np.arange(7, dtype=np.uint64) + 2**63
    second = Recommender(
        WALS(2, col_weights=power_law(-0.5)), user="who", row_weights=power_law(0.25)
    )
    day = datetime(2020, 2, 29, 12, 30, 1, 7, timezone(timedelta(hours=-5)))
    vars(second).update(
        users_=np.array([b"x", b"", b"long"]),
        items_=np.fromiter(
            [UUID(int=2**100), day, (1, "a", (2.5, None)), Decimal("1.10"), date(1999, 1, 1)],
            object,
            5,
        ),
        interactions_=sp.csr_array(
            (np.arange(4, dtype=np.float32), [0, 2, 4, 1], [0, 3, 3, 4]), shape=(3, 5)
        ),
        estimator_=wals_by_formula(3, 5, 2, np.float32),
        mean_=0.1,
        user_biases_=np.arange(3.0),
        item_biases_=-np.arange(5.0),
        n_features_in_=2,
        feature_names_in_=np.array(["who", "what"], dtype=object),
        _by_y=False,
        _library=None,
        _names=("who", "what"),
    )
    return {"wals": first, "recommender": second}


def reseal(content, edit):
    """Return a file whose header was edited, with the digest of what it says then."""
    n = int.from_bytes(content[:8], "little")
    header, first = edit(content[8 : 8 + n]), len(_format._START) + _format._N_DIGITS
    header += b" " * (-(8 + len(header)) % _format.ALIGNMENT)
    length = len(header).to_bytes(8, "little")
    digest = _format._digest(length, header[first:])
    return length + _format._START + digest + header[first:] + content[8 + n :]


def damage(content, rng):
    """Return a file with some random damage, and whether its checksums were made to agree."""
    where, other = sorted(rng.integers(0, len(content), 2).tolist())
    if rng.random() < 0.5:  # most of the file may be data
        where = int(rng.integers(0, min(other + 1, 8 + int.from_bytes(content[:8], "little"))))
    some = rng.bytes(int(rng.integers(1, 40)))
    odd = int(rng.choice([-1, 0, 1, 7, 8, 63, 64, 2**31, 2**32, 2**53, 2**63 - 1, 10**30]))

    def flip(text):
        at = int(rng.integers(0, len(text)))
        return text[:at] + bytes([text[at] ^ 1 << int(rng.integers(0, 8))]) + text[at + 1 :]

    def change_number(text):
        numbers = [*re.finditer(rb"\d+", text)]
        number = numbers[rng.integers(0, len(numbers))]
        return text[: number.start()] + str(odd).encode() + text[number.end() :]

    def change_entry(text):
        entries = json.loads(text)
        names = [name for name in entries if name != "__metadata__"]
        one, two = (entries[name] for name in rng.choice(names, 2))
        what = str(rng.choice([*one]))
        one[what] = [two[what], one[what][::-1], "F64", [odd], [], None, [odd] * 70][
            rng.integers(0, 7)
        ]
        return json.dumps(entries, separators=(",", ":")).encode()

    def double(text):
        name = rng.choice([name for name in json.loads(text) if name != "__metadata__"])
        entry = json.dumps({str(name): json.loads(text)[name]})[1:-1].encode()
        return text.rstrip()[:-1] + b"," + entry + b"}"

    ways = (
        lambda: content[:where],
        lambda: content + some,
        lambda: flip(content),
        lambda: content[:where] + some + content[where:],
        lambda: content[:where] + some + content[where + len(some) :],
        lambda: content[:where] + content[where + len(some) :],
        lambda: content[other:] + content[:other],
        lambda: content[:where] + bytes(other - where) + content[other:],
        lambda: (odd % 2**64).to_bytes(8, "little") + content[8:],
        lambda: some[:8].ljust(8, b"\0") + content[8:],
    )
    forged = (flip, change_number, change_number, change_entry, change_entry, double)
    way = rng.integers(0, len(ways) + len(forged))
    if way < len(ways):
        return ways[way](), False
    return reseal(content, forged[way - len(ways)]), True


def save_for_ever(path, tell):
    """Save models of ones, of twos, and so on, and tell how far it got."""
    model = wals_by_formula(50_000, 10, 8, np.float32)
    for number in count(1):
        model.row_factors_[:] = model.components_[:] = number
        model.save(path)
        os.write(tell, b"%d\n" % number)


def kill(path, n_kills, seed=0):
    """Kill processes that save, at random instants, and assert what is there afterwards.

    Returns
    -------
    n_leftovers : int
        After how many there was an unfinished file.
    """
    rng, n_leftovers, folder = np.random.default_rng(seed), 0, Path(path).parent
    for _ in range(n_kills):
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            save_for_ever(path, tell)
        os.close(tell)
        with open(told, "rb") as file:
            assert file.readline() == b"1\n"
            time.sleep(rng.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            last = int([b"1\n", *file.readlines()][-1])
        n_leftovers += len(list(folder.iterdir())) - 1
        model = wals.load(path)
        (number,) = {*model.row_factors_.flat, *model.components_.flat}
        assert number in (last, last + 1)
        model.save(path)
        assert list(folder.iterdir()) == [Path(path)]
    return n_leftovers


def main(what, path, n="0"):
    if what == "write":
        for name, model in models().items():
            model.save(Path(path) / f"{name}-{_format.VERSION}.wals")
    else:
        print(kill(path, int(n)))


if __name__ == "__main__":
    main(*sys.argv[1:])
