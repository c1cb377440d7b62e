"""How often a file is opened, as the kernel tells."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

_OPENED = 0x20


def opens_of(path: Path, act: Callable[[], object]) -> int:
    """How often ``act`` opens the file at ``path``."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(path), _OPENED) < 0:
        pytest.skip("files cannot be watched")
    try:
        act()
        opened = 0
        while True:
            try:
                events = os.read(watch, 1 << 16)
            except BlockingIOError:
                return opened
            while events:
                _, mask, _, length = struct.unpack_from("iIII", events)
                opened += bool(mask & _OPENED)
                events = events[16 + length :]
    finally:
        os.close(watch)
