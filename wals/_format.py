"""One file of named arrays and what is to be known about them, written whole or not at all.

The layout is that of safetensors, so that others can read the arrays: the length of the header, the
header in JSON, the data. It is narrower, so that every byte is checked and arrays can be mapped:

- The header begins with its own BLAKE2b digest, which covers its length and all of it that follows.
- All else that is ours is text in JSON under ``__metadata__``: the version of the format, the kind
  of the file, the CRC-32 of every array, the content. JSON is nested in JSON since safetensors has
  only strings there.
- Arrays begin at multiples of 64 bytes. Since nothing may lie between arrays in that format, what
  does is an array of zeros, ``padding.0`` and so on.

Nothing here knows of estimators.
"""

import errno
import json
import math
import mmap as mmap_
import os
import re
import secrets
import stat
import zlib
from contextlib import contextmanager, suppress
from glob import escape, iglob
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open cannot be removed
    fcntl = None

VERSION = 1
#: What array data start at multiples of: the lines of caches, and the registers of processors.
ALIGNMENT = 64
#: With `mmap`, arrays of fewer bytes are read and checked all the same.
SMALL = 2**20
#: What others accept, too.
_LONGEST_HEADER = 10**8
_CHUNK = 2**20
_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "F16": "<f2",
        "U32": "<u4",
        "I32": "<i4",
        "F32": "<f4",
        "U64": "<u8",
        "I64": "<i8",
        "F64": "<f8",
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PADDING = re.compile(r"padding\.\d+")
#: How a header begins, but for the digest in hexadecimal digits.
_START, _N_DIGITS = b'{"__metadata__":{"blake2b":"', 32


def write(path, arrays, content, *, kind):
    """Write arrays and content into a file, atomically.

    Whatever happens, `path` is afterwards the file that it was or the new one, whole. What a
    process that was killed left behind is removed by the next call for the same path.

    Parameters
    ----------
    path : str or path-like
        A symbolic link is followed.
    arrays : dict of str to ndarray
        Of numbers or bools, in any order in memory; they are stored in C order.
    content : object
        What JSON can say.
    kind : str
        What `read` has to be told.

    Raises
    ------
    ValueError
        If an array or the content is none of the above; nothing is written then.
    OSError
        If the file cannot be written.
    """
    placed = _lay_out(arrays)
    about = {"version": VERSION, "kind": kind, "arrays": dict.fromkeys(placed, "0" * 8)}
    about["content"] = content
    header = _header(placed, about)  # as long as the final one
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"What is not in arrays takes {len(header)} bytes, more than {_LONGEST_HEADER}: "
            "pass long lists as arrays."
        )
    with replacing(path) as file:
        file.write(header)
        for name, array in placed.items():
            data, crc = _bytes_of(np.ascontiguousarray(array)), 0
            for begin in range(0, data.size, _CHUNK):
                chunk = data[begin : begin + _CHUNK]
                crc = zlib.crc32(chunk, crc)
                file.write(chunk)
            about["arrays"][name] = f"{crc:08x}"
        file.seek(0)
        file.write(_header(placed, about))


def read(path, *, kind, mmap=False):
    """Read what `write` wrote.

    Parameters
    ----------
    path : str or path-like
    kind : str
    mmap : bool, default=False
        Whether to map arrays of `SMALL` bytes or more, instead of reading them. What they hold is
        not checked then; all else is. All arrays are read-only then.

    Returns
    -------
    content : object
    arrays : dict of str to ndarray

    Raises
    ------
    ValueError
        If the file is not a sound one, or one of another kind or a newer version. No more memory is
        taken than the file has bytes, but for what JSON makes of its header.
    OSError
        If it cannot be read.
    """
    path = os.fsdecode(path)
    # To open a pipe would be to wait for a writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a file.")
    with open(path, "rb", buffering=0) as file:
        kind_of_file, content, places = _read_header(file, path)
        if kind_of_file != kind:
            raise ValueError(f"{path} holds a {kind_of_file}, not a {kind}.")
        whole = mmap_.mmap(file.fileno(), 0, access=mmap_.ACCESS_READ) if mmap else None
        arrays = {}
        for name, place in places.items():
            if mmap and place.n_bytes >= SMALL:
                data = np.frombuffer(whole, np.uint8, place.n_bytes, place.begin)
            else:
                data = _read_data(file, place, name, path)
                data.flags.writeable = not mmap
            if not _PADDING.fullmatch(name):
                arrays[name] = data.view(place.dtype).reshape(place.shape)
    return content, arrays


# ------------------------------------------------------------------------------------------ layout


class _Place(NamedTuple):
    """Where an array is in a file."""

    dtype: np.dtype
    shape: list
    begin: int
    n_bytes: int
    crc: str


def _lay_out(arrays):
    """Return the arrays as they are stored, in their order, with what fills the gaps."""
    placed, end = {}, 0
    for name, array in arrays.items():
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype not in _NAMES:
            raise ValueError(f"{name} has the type {array.dtype}, which a file cannot hold.")
        if gap := -end % ALIGNMENT:
            placed[f"padding.{len(placed)}"] = np.zeros(gap, np.uint8)
        placed[name] = array
        end += gap + array.nbytes
    return placed


def _header(placed, about):
    """Return the file up to its data."""
    entries, end = {}, 0
    for name, array in placed.items():
        begin, end = end, end + array.nbytes
        dtype, shape = _NAMES[array.dtype], list(array.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    ours = json.dumps(json.dumps(about, allow_nan=False))
    rest = f'","wals":{ours}}}{"," if entries else ""}{json.dumps(entries)[1:]}'.encode()
    rest += b" " * (-(8 + len(_START) + _N_DIGITS + len(rest)) % ALIGNMENT)
    length = (len(_START) + _N_DIGITS + len(rest)).to_bytes(8, "little")
    return length + _START + _digest(length, rest) + rest


def _digest(length, rest):
    return blake2b(length + rest, digest_size=_N_DIGITS // 2).hexdigest().encode()


def _read_header(file, path):
    """Return the kind of the file, its content, and the place of each array."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    n, first = int.from_bytes(length, "little"), len(_START) + _N_DIGITS
    if len(length) < 8 or not first < n <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"{path} is not a file of wals, or was cut short.")
    header = bytearray(n)
    _fill(file, header, path)
    if not header.startswith(_START):
        raise ValueError(f"{path} is not a file of wals.")
    if header[len(_START) : first] != _digest(length, header[first:]):
        raise ValueError(f"{path} is damaged: its header is not what was written.")
    try:
        entries = json.loads(header, object_pairs_hook=_without_duplicates)
        about = json.loads(entries.pop("__metadata__")["wals"])
        version = about["version"]
        places = _find(entries, about["arrays"], 8 + n, size) if version == VERSION else {}
        kind, content = about["kind"], about["content"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a wrong header, or was cut short: {error!r}") from None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version!r} of the format, but this version of wals reads "
            f"version {VERSION}: upgrade wals."
        )
    return kind, content, places


def _find(entries, checksums, begin_of_data, size):
    """Return the place of each array of a header, which leave nothing of the file over."""
    places, end = {}, 0
    for name, entry in entries.items():
        dtype, shape, crc = _DTYPES[entry["dtype"]], entry["shape"], checksums[name]
        begin, after = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in [begin, after, *shape]):
            raise ValueError(f"{name} has a size that is none")
        n_bytes = math.prod(shape) * dtype.itemsize
        if begin != end or after != begin + n_bytes:
            raise ValueError(f"{name} is not where it should be")
        places[name], end = _Place(dtype, shape, begin_of_data + begin, n_bytes, crc), after
    if begin_of_data + end != size:
        raise ValueError(f"{size - begin_of_data} bytes of data, where {end} belong")
    return places


def _without_duplicates(pairs):
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name is there twice")
    return unique


def _bytes_of(array):
    return array.reshape(-1).view(np.uint8)


def _read_data(file, place, name, path):
    """Return the bytes of an array, after a look at their checksum."""
    data, crc = np.empty(place.n_bytes, np.uint8), 0
    file.seek(place.begin)
    for begin in range(0, data.size, _CHUNK):
        chunk = data[begin : begin + _CHUNK]
        _fill(file, chunk, path)
        crc = zlib.crc32(chunk, crc)
    if place.crc != f"{crc:08x}":
        raise ValueError(f"{path} is damaged: {name} is not what was written.")
    return data


def _fill(file, buffer, path):
    """Read as many bytes as the buffer has."""
    rest = memoryview(buffer)
    while rest:
        n_read = file.readinto(rest)
        if not n_read:
            raise ValueError(f"{path} was cut short while it was read.")
        rest = rest[n_read:]


# --------------------------------------------------------------------------------------- atomicity


@contextmanager
def replacing(path):
    """Give a file to write to, which takes the place of `path` if nothing is raised."""
    path = os.path.realpath(os.fsdecode(path))
    folder, name = os.path.split(path)
    # A device or a pipe must not be replaced by a file.
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "not a file that can be replaced", path)
    remove_leftovers(path)
    file, temporary = _open_temporary(folder, name)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say whose
            error.filename = path
        raise
    file.close()
    # Not all systems can sync a folder; the file is whole in any case.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open_temporary(folder, name):
    """Return a new file beside that of this name, locked as long as it is open, and its path.

    Its mode is what the umask leaves, as that of any file.
    """
    while True:
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115
        # Before it was locked, another process may have taken it for a leftover.
        if _lock(file) is not False and os.path.exists(temporary):
            return file, temporary
        file.close()


def remove_leftovers(path):
    """Remove what processes left that died while they wrote this file: what nobody has locked."""
    folder, name = os.path.split(os.path.realpath(os.fspath(path)))
    digits = "[0-9a-f]" * 8
    for leftover in iglob(os.path.join(escape(folder), f".{escape(name)}.{digits}.tmp")):
        with suppress(OSError), open(leftover, "rb") as file:
            if fcntl is None:
                file.close()
            if fcntl is None or _lock(file):
                os.unlink(leftover)


def _lock(file):
    """Return whether the file is locked now, and not by others; None where files cannot be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None
    return True
