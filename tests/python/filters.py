"""System calls that a process may not make, as a file system or a sandbox would refuse them."""

from __future__ import annotations

import ctypes
import os

import pytest

#: Numbers of mmap and madvise, and the audit architecture.
_MACHINES = {"x86_64": (9, 28), "aarch64": (222, 233)}

_MAP_ANONYMOUS, _MAP_NORESERVE, _POPULATE_READ = 0x20, 0x4000, 22

_LOAD, _IS, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Step(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("yes", ctypes.c_ubyte),
        ("no", ctypes.c_ubyte),
        ("operand", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step))]


def needs_filters() -> None:
    """Skips the test where the numbers of system calls are not known."""
    if os.uname().machine not in _MACHINES:
        pytest.skip("the numbers of system calls are not known here")


def refuse_maps(number: int) -> None:
    """Answer ``number`` to this process's maps of files, but to those of the dynamic loader."""
    mmap, _ = _MACHINES[os.uname().machine]
    _install(
        (_LOAD, 0, 0, 0),  # the number of the call
        (_IS, 0, 4, mmap),
        (_LOAD, 0, 0, 40),  # its flags
        (_HAS, 2, 0, _MAP_ANONYMOUS),
        (_HAS, 0, 1, _MAP_NORESERVE),  # which the dynamic loader does not use
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    )


def refuse_populating(number: int) -> None:
    """Answer ``number`` to advice that brings pages into memory."""
    _, madvise = _MACHINES[os.uname().machine]
    _install(
        (_LOAD, 0, 0, 0),
        (_IS, 0, 3, madvise),
        (_LOAD, 0, 0, 32),  # the advice
        (_IS, 0, 1, _POPULATE_READ),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    )


def _install(*steps: tuple[int, int, int, int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        print("no filter can be set")
        os._exit(0)
