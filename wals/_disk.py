"""Files of numbers, and folders that are there wholly or not at all."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class Numbers:
    """A file of numbers without a name, which is gone when it is closed.

    Parameters
    ----------
    folder : str
        Where it lies; where that is read-only, it is where temporary files are.
    dtype : dtype
    length : int, default=0
        Numbers that room is reserved for. A map of a file that cannot grow would kill the process.
    """

    def __init__(self, folder, dtype, length=0):
        self.dtype, self.reserved, self.length = np.dtype(dtype), int(length), 0
        self.file = self._open(folder)
        try:
            if self.reserved:
                _allocate(self.file.fileno(), self.reserved * self.dtype.itemsize)
        except BaseException:
            self.file.close()
            raise

    def _open(self, folder):
        try:
            return tempfile.TemporaryFile(dir=folder)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return tempfile.TemporaryFile()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, numbers):
        """Append numbers to those that were written."""
        self.put(self.length, numbers)
        self.length += numbers.size

    def put(self, place, numbers):
        """Set the numbers from a place on."""
        self.file.seek(place * self.dtype.itemsize)
        self.file.write(np.ascontiguousarray(numbers, self.dtype).view(np.uint8))

    def read(self, start, stop):
        """Return the numbers from one place to another."""
        self.file.flush()
        self.file.seek(start * self.dtype.itemsize)
        return np.fromfile(self.file, self.dtype, stop - start)

    def mapped(self):
        """Return the numbers that room was reserved for, as an array that is on disk."""
        if not self.reserved:
            return np.empty(0, self.dtype)
        return np.asarray(np.memmap(self.file, self.dtype, "r+", shape=(self.reserved,)))


class Output(Numbers):
    """A file of numbers with a name, and a checksum of what is written in order.

    It is on disk when its context ends without an error, and told of in `files`.
    """

    def __init__(self, folder, name, dtype, files, length=0):
        self.name, self.files, self.digest = name, files, hashlib.sha256()
        super().__init__(folder, dtype, length)

    def _open(self, folder):
        return open(os.path.join(folder, self.name), "w+b")

    def __exit__(self, kind, *_):
        with self.file:
            if kind is None:
                _sync(self.file)
        about = {"dtype": self.dtype.str, "length": self.length, "sha256": self.digest.hexdigest()}
        self.files[self.name] = about

    def write(self, numbers):
        numbers = np.ascontiguousarray(numbers, self.dtype)
        self.digest.update(numbers.view(np.uint8))
        super().write(numbers)


def _allocate(descriptor, size):
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


@contextlib.contextmanager
def new_directory(path):
    """Give a folder to write to, which becomes the directory at `path` if no error is raised.

    What killed processes have left of the same path is removed.
    """
    path = os.path.abspath(os.fspath(path))
    parent, name = os.path.split(path)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists: remove it, or choose another path.")
    if not os.path.isdir(parent):
        raise ValueError(f"{path}: there is no folder {parent}.")
    folder, lock = _make_locked(parent, f".{name}.partial-")
    try:
        yield folder
        _sync_folder(folder)
        os.rename(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _sync_folder(parent)


def _make_locked(parent, prefix):
    """Make a folder that is locked, after removing those whose lock went with their process."""
    folder = os.path.join(parent, prefix + secrets.token_hex(4))
    if fcntl is None:
        os.mkdir(folder)
        return folder, None
    with _descriptor(parent) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no other process looks before the new one is locked
        for name in os.listdir(parent):
            if name.startswith(prefix):
                _remove_if_stale(os.path.join(parent, name))
        os.mkdir(folder)
        lock_of_folder = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock_of_folder, fcntl.LOCK_EX)
    return folder, lock_of_folder


def _remove_if_stale(folder):
    with contextlib.suppress(OSError), _descriptor(folder) as lock:  # of others, or in use
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _descriptor(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_text(folder, name, text):
    """Write a short file, and have it on disk."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)
        _sync(file)


def _sync(file):
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder):
    if fcntl is not None:  # Windows does not open folders
        with _descriptor(folder) as descriptor:
            os.fsync(descriptor)
