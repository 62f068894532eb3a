"""Threads that come to help, and that nobody waits for if they come late.

A loop that `prange` shares ends when the last of its threads has begun and ended. On a machine that
others use as well, who has done all there was to do then waits for a thread that the machine has
not let begin, and spins meanwhile: two threads take up to forty times as long as one. Here the
caller takes shards as all others do, calls off who has not begun when none is left, and waits,
asleep, for who has.

A *team* is the caller and its helpers, Python threads that never leave compiled code. It is known
by the address of a record in memory: the code and data of the job, the number of helpers that are
wanted, and the addresses of what acquires and releases one of Python's locks, without the GIL;
after these, a line for each helper: its state, and the two locks that it and the caller sleep on.
"""

import ctypes
import threading

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .cache import keep
from .compile import LINE, jit

_WORD = ir.IntType(64)
#: Words of a cache line, two of which processors may fetch together.
_LINE = 2 * LINE // 8
_CODE, _DATA, _HELPERS, _ACQUIRE, _RELEASE = range(5)
_STATE, _WAKE, _DONE = range(3)
#: What a helper does: looks whether there is work; sleeps on its lock; is about to begin; works;
#: works while the caller sleeps on the other lock.
_AWAKE, _ASLEEP, _POSTED, _WORKING, _AWAITED = range(5)
#: How often the caller looks whether a helper is done before it sleeps: some 50 microseconds. A
#: helper that did so between two jobs would gain nothing on a quiet machine, and lose its turn on
#: others.
_PATIENCE = 1000


def _address(builder, record, at):
    words = builder.inttoptr(record, _WORD.as_pointer())
    return builder.gep(words, [at])


@intrinsic
def _get(typingctx, record, at):
    """Return a word of a record."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_address(builder, *args), "seq_cst", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _set(typingctx, record, at, value):
    """Set a word of a record, and return what it was."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("xchg", _address(builder, *args[:2]), args[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def _change(typingctx, record, at, before, after):
    """Set a word of a record if it is what it was; return whether it was."""

    def codegen(context, builder, signature, args):
        place = _address(builder, *args[:2])
        changed = builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(changed, 1)

    return types.boolean(*[types.int64] * 4), codegen


@intrinsic
def _call(typingctx, code, data):
    """Call the code at an address, with the address of data."""

    def codegen(context, builder, signature, args):
        address = ir.IntType(8).as_pointer()
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [address]).as_pointer())
        builder.call(function, [builder.inttoptr(args[1], address)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _pause(typingctx):
    """Tell the processor that this waits for another."""

    def codegen(context, builder, signature, args):
        if builder.module.triple.startswith(("x86", "i386", "i686", "amd64")):
            function_type = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(builder.module.declare_intrinsic(name, (), function_type), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _lock(typingctx, function, lock):
    """Call what acquires a lock of Python, and waits for it, or what releases it."""

    def codegen(context, builder, signature, args):
        address, wait = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(wait, [address, wait]).as_pointer()
        function = builder.inttoptr(args[0], function_type)
        builder.call(function, [builder.inttoptr(args[1], address), wait(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@jit
def in_threads(team, code, data):
    """Call the code, with the data, in this thread and all of its team that come in time."""
    release, acquire = _get(team, _RELEASE), _get(team, _ACQUIRE)
    helpers = range(1, _get(team, _HELPERS) + 1)
    _set(team, _CODE, code)
    _set(team, _DATA, data)
    for h in helpers:
        if _set(team, h * _LINE + _STATE, _POSTED) == _ASLEEP:
            _lock(release, _get(team, h * _LINE + _WAKE))
    _call(code, data)
    for h in helpers:
        state = h * _LINE + _STATE
        if _change(team, state, _POSTED, _AWAKE):  # called off
            continue
        for _ in range(_PATIENCE):
            if _get(team, state) != _WORKING:
                break
            _pause()
        if _change(team, state, _WORKING, _AWAITED):
            _lock(acquire, _get(team, h * _LINE + _DONE))


@keep
@njit(nogil=True, no_cfunc_wrapper=True)
def help_out(team, helper):
    """Be a helper of a team, as long as it wants any: for ever."""
    release, acquire = _get(team, _RELEASE), _get(team, _ACQUIRE)
    state = helper * _LINE + _STATE
    while _get(team, _HELPERS) >= 0:
        if _change(team, state, _AWAKE, _ASLEEP):
            _lock(acquire, _get(team, helper * _LINE + _WAKE))
        if _change(team, state, _POSTED, _WORKING):
            _call(_get(team, _CODE), _get(team, _DATA))
            if _set(team, state, _AWAKE) == _AWAITED:
                _lock(release, _get(team, helper * _LINE + _DONE))


def compile_helpers():
    """Compile, where that is waited for, what each helper is to call."""
    if hasattr(help_out, "compile"):  # not with NUMBA_DISABLE_JIT
        help_out.compile((types.int64, types.int64))


class Team:
    """The helpers of a process; as they never end, neither does the memory of their record.

    Parameters
    ----------
    most : int
        How many threads there may be, the caller included.
    """

    def __init__(self, most):
        python = ctypes.pythonapi
        self._record = np.zeros((most + 1, _LINE), np.int64)
        python.Py_IncRef(ctypes.py_object(self._record))
        first = -self._record.ctypes.data % (8 * _LINE) // 8  # from here on, lines are whole
        record = self._record.reshape(-1)[first:]
        self._words = record[: most * _LINE].reshape(most, _LINE)
        allocate = python.PyThread_allocate_lock
        acquire, release = python.PyThread_acquire_lock, python.PyThread_release_lock
        allocate.restype, acquire.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]
        self._words[0, [_ACQUIRE, _RELEASE]] = [
            ctypes.cast(function, ctypes.c_void_p).value for function in (acquire, release)
        ]
        for helper in self._words[1:]:
            helper[[_WAKE, _DONE]] = allocate(), allocate()
            for lock in (_WAKE, _DONE):
                acquire(int(helper[lock]), 1)
        self._n_started = 0

    def ask(self, n_threads):
        """Start helpers for so many threads, and return how many there can be."""
        n_helpers = min(n_threads, len(self._words)) - 1
        if n_helpers and not self._n_started:
            compile_helpers()
        while self._n_started < n_helpers:
            args = self._words.ctypes.data, self._n_started + 1
            helper = threading.Thread(target=help_out, args=args, name="wals", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # the system has no more threads
                return self._n_started + 1
            self._n_started += 1
        return n_helpers + 1

    def of(self, n_threads):
        """Return how a kernel knows this team, of which it is to use so many threads."""
        self._words[0, _HELPERS] = n_threads - 1
        return self._words.ctypes.data
