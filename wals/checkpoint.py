"""The state of a fit on disk: where a rerun goes on from.

A fit has two files, named after whatever determines where it goes. The newer state replaces the
older one of the two, so that a sound one is left whatever happens, and is written while the next
iteration runs.
"""

import hashlib
import json
import os
import threading
import time
import warnings
from contextlib import suppress

import numpy as np

from ._alternate import Momentum, State, relative_decrease
from ._core.compile import empty_lines
from ._format import read, remove_leftovers, write
from ._stored import StoredMatrix

#: Changes with what a state consists of, and with what is made of it.
_VERSION = 1
_KIND = "checkpoint"


def digest(*arrays):
    """Return a digest of the shapes, types and values of arrays, or of matrices on disk."""
    total = hashlib.sha256()
    for array in arrays:
        if isinstance(array, StoredMatrix):
            total.update(array.checksum.encode())
            continue
        array = np.ascontiguousarray(array)
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def make_key(model, X, weights, start):
    """Return the name of all that determines where a fit goes, if not how far.

    Parameters
    ----------
    model : WALS
    X : CSR matrix, StoredMatrix or distributed.Matrix
    weights : sequence of ndarray, StoredMatrix or None
        Of rows, columns and entries.
    start : sequence of ndarray or None
        Of rows and columns; None for what is drawn anew each time.
    """
    if hasattr(X, "digests"):  # on a cluster, with the weights of rows and entries
        data = X.digests()
    else:
        data = digest(*([X] if isinstance(X, StoredMatrix) else [X.data, X.indices, X.indptr]))
    about = {
        "version": _VERSION,
        "n_components": int(model.n_components),
        "objective": model._objective(),
        "solver": model.solver,
        "init": model.init if isinstance(model.init, str) else None,
        "X": [X.shape, data],
        "weights": [None if array is None else digest(array) for array in weights],
        "start": [None if array is None else digest(array) for array in start],
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


class Checkpoints:
    """The two states of a fit on disk.

    Parameters
    ----------
    folder : str or path-like
        It is made if it is not there.
    every : int
        Iterations between two states.

    Attributes
    ----------
    beside : bool
        Whether states are copied, to be written beside the next iteration. What a matrix on disk
        keeps on disk, too, is not to be copied into memory.
    """

    beside = True

    def __init__(self, folder, every):
        self._folder, self._every = os.path.abspath(folder), every
        self._n_iter, self._writer, self._error = {}, None, None
        os.makedirs(self._folder, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"checkpoint_dir={self._folder!r} cannot be written to.")

    def find(self, key):
        """Look for the states of the fit of this name, see `make_key`."""
        for place in (0, 1):
            path = os.path.join(self._folder, f"{key}-{place}.checkpoint")
            remove_leftovers(path)
            self._n_iter[path] = -1  # without a sound one
            if os.path.exists(path):
                content, _ = self._read(path, mmap=True)
                self._n_iter[path] = content["n_iter"] if content else -1

    def resume(self, state, rows, cols, tasks, *, max_iter, tol):
        """Let a fit stand where the furthest state on its way was written.

        Returns
        -------
        ended : bool or None
            Whether the fit ended there; None if there is no such state.
        """
        for path in sorted(self._n_iter, key=self._n_iter.get, reverse=True):
            if not 0 < self._n_iter[path] <= max_iter:
                continue
            content, arrays = self._read(path)
            if content is None:
                self._n_iter[path] = -1
                continue
            losses = arrays["state.losses"]
            decreases = [relative_decrease(losses[:end]) for end in range(2, len(losses) + 1, 2)]
            if min(decreases[:-1], default=np.inf) < tol:
                continue  # this fit ends before
            _unpack("state", arrays, state)
            cols.factors = state.V
            for name, side in (("rows", rows), ("cols", cols)):
                prefix = f"{name}."
                parts = {part: array for part, array in arrays.items() if part.startswith(prefix)}
                side.keep(
                    content["start"],
                    {part.removeprefix(prefix): array for part, array in parts.items()},
                )
            kept = None
            if "kept.V" in arrays:
                kept = State(np.empty((0, 0)), 0.0, 0.0, 0)
                _unpack("kept", arrays, kept)
            if state.verbose:
                print(f"[WALS] goes on after iteration {state.n_iter}, from {path}")
            return tasks.recall(content["observers"], kept) or decreases[-1] < tol
        return None

    def save(self, state, rows, cols, tasks, *, last):
        """Begin to write a state, if it is due, after an iteration that may be the last one."""
        if not last and state.n_iter % self._every:
            return
        self.wait()
        arrays = _pack("state", state)
        for name, side in (("rows", rows), ("cols", cols)):
            for part, array in side.kept().items():
                arrays[f"{name}.{part}"] = array.copy() if self.beside else array
        arrays.pop("cols.factors", None)  # V
        if tasks.kept is not None:
            arrays |= _pack("kept", tasks.kept)
        content = {"n_iter": state.n_iter, "start": rows.start, "observers": tasks.remember()}
        path = min(self._n_iter, key=self._n_iter.get)
        self._n_iter[path] = state.n_iter
        writer = threading.Thread(target=self._write, args=(path, arrays, content))
        writer.start()  # what interrupts this leaves a thread that cannot be waited for
        self._writer = writer
        if not self.beside:
            self.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()

    def wait(self):
        """Wait for the state that is being written, and raise what that has raised."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise OSError(
                error.errno,
                f"A checkpoint could not be written ({error.strerror}); those before it are left",
                error.filename,
            ) from error

    def _write(self, path, arrays, content):
        try:
            write(path, arrays, content, kind=_KIND)
        except OSError as error:
            self._error = error

    def _read(self, path, *, mmap=False):
        """Return what a file holds, or None and None, and a warning, if it is not sound."""
        with suppress(FileNotFoundError):  # another fit of the same may have replaced it
            try:
                return read(path, kind=_KIND, mmap=mmap)
            except ValueError as error:
                warnings.warn(
                    f"A checkpoint is left out, and will be replaced: {error}",
                    RuntimeWarning,
                    stacklevel=6,
                )
        return None, None


def _pack(name, state):
    """Return arrays that a state consists of, which nothing changes any more."""
    momentum = state.momentum
    numbers = [momentum.theta, momentum.loss, state.sum_weights, state.least_data_loss]
    arrays = {
        "V": state.V,
        "frame": state.frame,
        "losses": state.losses,
        "rwses": state.rwses,
        "seconds": state.seconds,
        "penalties": list(state.penalties.values()),
        "n_singular": list(state.n_singular.values()),
        "numbers": numbers,
    }
    if momentum.previous is not None:
        arrays |= {"previous": momentum.previous, "previous_frame": momentum.frame}
    return {f"{name}.{part}": np.array(array) for part, array in arrays.items()}


def _unpack(name, arrays, state):
    """Set a state to what `_pack` made of one."""

    def get(part):
        array = arrays.get(f"{name}.{part}")
        if array is None:
            return None
        aligned = empty_lines(array.shape, array.dtype)
        aligned[...] = array
        return aligned

    state.V, state.frame = get("V"), get("frame")
    state.losses, state.rwses, state.seconds = (
        arrays[f"{name}.{part}"].tolist() for part in ("losses", "rwses", "seconds")
    )
    for part in ("penalties", "n_singular"):
        values = arrays[f"{name}.{part}"].tolist()
        setattr(state, part, dict(zip(("rows", "columns"), values, strict=True)))
    state.momentum = Momentum()
    theta, loss, state.sum_weights, state.least_data_loss = arrays[f"{name}.numbers"].tolist()
    state.momentum.theta, state.momentum.loss = theta, loss
    state.momentum.previous, state.momentum.frame = get("previous"), get("previous_frame")
    state.started = time.perf_counter() - state.seconds[-1]
