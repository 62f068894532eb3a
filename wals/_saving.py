"""What models do to be kept: the method that saves them, and what they give to picklers."""

from copy import copy
from mmap import mmap

import numpy as np
import scipy.sparse as sp


class SaveMixin:
    """Mixin class of models that `wals.load` knows."""

    def save(self, path):
        """Save the model, with its parameters, into a file that `wals.load` reads.

        Parameters
        ----------
        path : str or path-like
            ``.wals`` is the usual ending. A file that is there is replaced in one step: whoever
            has it open keeps the old one, and a failure leaves it as it was.

        Raises
        ------
        ValueError
            If something cannot be kept without pickle, as a function other than
            `wals.weights.power_law`: nothing is written then.

        OSError
            If the file cannot be written.

        See Also
        --------
        wals.load : Load the model, and what the file is like.
        """
        from .persistence import save  # which knows all models

        save(self, path)

    def __getstate__(self):
        # Picklers, and what builds on them, take maps of files for what they are not.
        return {name: _unmapped(value) for name, value in super().__getstate__().items()}


def is_mapped(array):
    """Return whether an array is, or is a view of, a map of a file."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap | mmap)


def _unmapped(value):
    """Return a view of a memory map that does not say so."""
    if isinstance(value, np.memmap):
        return np.asarray(value)
    if isinstance(value, sp.csr_array):
        value = copy(value)
        value.data, value.indices, value.indptr = map(
            np.asarray, (value.data, value.indices, value.indptr)
        )
    return value
