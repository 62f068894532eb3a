"""Where the machine code of kernels is kept, and what is said when it has to be made."""

import inspect
import logging
import os
import threading
import time
import warnings

from numba import config
from numba.core import caching

_log = logging.getLogger("wals")
#: Seconds of compilation after which it is told: who waits longer wonders.
_PATIENCE = 2.0
#: Newer releases of Numba have given the class a public name.
_InTree = next(
    locator
    for locator in caching.CompileResultCacheImpl._locator_classes
    if locator.__name__.lstrip("_") == "InTreeCacheLocator"
)


class _Baked(_InTree):
    """The folder beside the source, as it is: an image may have filled it and be read-only now."""

    def ensure_cache_path(self):
        if not os.path.isdir(self.get_cache_path()):
            raise OSError("There is no such folder.")


class _BakedImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Baked]  # noqa: RUF012


class _BakedFiles(caching.Cache):
    _impl_class = _BakedImpl


class KernelCache:
    """The machine code of one kernel on disk, as Numba's dispatchers ask for it.

    Numba's own cache, with NUMBA_CACHE_DIR and all, but for four things. It is no error if no
    folder can be written to, or a disk is full: each process compiles then, and says so. Files that
    cannot be read, as those that a full disk has cut short, are made anew. A folder that can only
    be read is read. And long compilations are told of.

    Parameters
    ----------
    function : function
        What is compiled.
    """

    def __init__(self, function):
        chosen = _open(caching.FunctionCache, function)
        self.writable = chosen is not None
        self.places = [chosen] if self.writable else []  # to read; all is written to the last
        if not (self.writable and (config.CACHE_DIR or _is_beside_source(chosen, function))):
            baked = _open(_BakedFiles, function)
            self.places[:0] = [] if baked is None else [baked]

    @property
    def cache_path(self):
        """The folder that is written to, None if there is none."""
        return self.places[-1].cache_path if self.writable else None

    def load_overload(self, signature, target):
        for place in self.places:
            try:
                loaded = place.load_overload(signature, target)
            except Exception:  # of whatever kind: a file that is cut short can raise anything
                loaded = None
                _try(place.flush)
            if loaded is not None:
                return loaded
        _compilation.begin(self)
        return None

    def save_overload(self, signature, compiled):
        _compilation.end(self)
        if self.writable:
            error = _try(self.places[-1].save_overload, signature, compiled)
            if error is not None:
                self.writable = False
                _compilation.warn(f"Its machine code could not be kept ({error})")

    def flush(self):
        if self.writable:
            _try(self.places[-1].flush)

    def enable(self):
        pass

    def disable(self):
        pass


def _open(kind, function):
    """Return a cache of Numba's for a function, or None if there is no folder for it."""
    try:
        return kind(function)
    except (RuntimeError, OSError, ValueError):
        return None


def _is_beside_source(cache, function):
    folder = os.path.dirname(inspect.getfile(function))
    return os.path.dirname(cache.cache_path) == folder


def _try(function, *args):
    """Return the OSError that a function raises, or None."""
    try:
        function(*args)
    except OSError as error:
        return error
    return None


class _Compilation:
    """What this process has compiled so far."""

    def __init__(self):
        self.local = threading.local()
        self.seconds, self.told, self.warned = 0.0, False, False

    def begin(self, cache):
        self.local.started = getattr(self.local, "started", [])
        self.local.started.append(time.perf_counter())
        if not cache.writable:
            self.warn("wals found no folder for machine code that can be written to")
        if self.seconds > _PATIENCE and not self.told:
            self.told = True
            _log.warning(
                "wals compiles for this processor: half a minute or less, and only once%s.",
                f" for all that use {cache.cache_path}" if cache.writable else " for this process",
            )

    def end(self, cache):
        if getattr(self.local, "started", None):
            seconds = time.perf_counter() - self.local.started.pop()
            if not self.local.started:  # a kernel that is compiled inside another counts there
                self.seconds += seconds

    def warn(self, problem):
        """Warn once that what is compiled will be compiled again by the next process."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"{problem}, so that every process compiles for itself, for half a minute or less. "
                "Set the environment variable NUMBA_CACHE_DIR to a folder that can be written to, "
                "or run `python -m wals --compile` once where the package can be.",
                RuntimeWarning,
                stacklevel=2,
            )


_compilation = _Compilation()


def compiled_seconds():
    """Return the seconds that this process has spent on compiling kernels."""
    return _compilation.seconds


def keep(dispatcher):
    """Keep what a Numba dispatcher compiles, and return the dispatcher."""
    if hasattr(dispatcher, "enable_caching"):  # not with NUMBA_DISABLE_JIT
        dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher
