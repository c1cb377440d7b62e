"""A segment of shared memory that lives until ``unlink()``, whichever process ends before.

Python's ``SharedMemory`` before 3.13 tells a resource tracker of each segment that a process makes
or opens, and the tracker removes the segment when that process ends. A segment that one process
fills so that others can load from it must outlive them all, so no tracker hears of this one.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import sys
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

#: Where the system keeps segments as files.
_DIRECTORY = "/dev/shm"

#: As many bytes of a name as Python's own segments have.
_NAME_BYTES = 4


#: What says that a file without a name cannot be made, or not be given one.
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EXDEV}


class Segment(SharedMemory):
    """A ``SharedMemory`` of which no resource tracker knows.

    It can be pickled: another process gets one of the same segment, which that process may close
    or leave to its end. Only ``unlink()`` removes the segment.

    Args:
        name: of a segment that exists.
        create: False: ``load_to_shmem`` makes segments.
        size: ignored; the segment has its own.

    Raises:
        OSError: the segment cannot be opened or mapped.
        ValueError: it has no name, or is to be created.
    """

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0) -> None:
        if create or name is None:
            raise ValueError("open a segment: load_to_shmem makes one, and then it has a name")
        name = name.removeprefix("/")
        if sys.version_info >= (3, 13):
            super().__init__(name, track=False)
            return
        # What the constructor does, but without the tracker: between telling it and taking that
        # back, another process with the same tracker may do the same.
        self._fd = os.open(_path(name), os.O_RDWR | os.O_NOFOLLOW)
        self._name = "/" + name
        self._size = os.fstat(self._fd).st_size
        self._mmap = mmap.mmap(self._fd, self._size)
        self._buf = memoryview(self._mmap)

    def unlink(self) -> None:
        """Remove the segment. Whoever has it mapped keeps the memory until that is closed.

        Raises:
            FileNotFoundError: it has been removed before.
        """
        os.unlink(_path(self.name))  # noqa: PTH108 - a path of the system's


def filled(size: int, fill: Callable[[mmap.mmap], None]) -> Segment:
    """Make a segment that appears under its name once ``fill`` has filled it, or never.

    Args:
        size: bytes of the segment, at least 1. They are reserved before ``fill`` is called.
        fill: gets the memory, all zero, and keeps nothing of it.

    Raises:
        OSError: the system has not so much memory, or refuses the segment.
        Exception: what ``fill`` raises.
    """
    file = _unnamed()
    if file is None:
        return _filled_by_name(size, fill)
    try:
        _fill(file, size, fill)
        while True:
            name = _new_name()
            try:
                _give_name(file, name)
                return Segment(name)
            except FileExistsError:
                continue
            except BaseException:
                _remove(file, name)
                raise
    finally:
        os.close(file)


def _filled_by_name(size: int, fill: Callable[[mmap.mmap], None]) -> Segment:
    """Do the same where a file has a name from the beginning: it stays if the process is killed."""
    while True:
        name = _new_name()
        try:
            file = os.open(_path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            break
        except FileExistsError:
            continue
    try:
        _fill(file, size, fill)
        return Segment(name)
    except BaseException:
        _remove(file, name)
        raise
    finally:
        os.close(file)


def _fill(file: int, size: int, fill: Callable[[mmap.mmap], None]) -> None:
    # Reserved now: a full file system would otherwise fault in the middle of a write.
    os.posix_fallocate(file, 0, size)
    with mmap.mmap(file, size) as memory:
        fill(memory)


def _unnamed() -> int | None:
    """Return a new file without a name, which goes with its last descriptor, if there are such."""
    try:
        file = os.open(_DIRECTORY, os.O_RDWR | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return None
        raise
    # A name is given to it by way of this path.
    if os.path.exists(_descriptor(file)):  # noqa: PTH110 - of a descriptor
        return file
    os.close(file)
    return None


def _give_name(file: int, name: str) -> None:
    directory = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # With a directory, since otherwise Python links the symlink and not the file.
        os.link(_descriptor(file), name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def _remove(file: int, name: str) -> None:
    """Remove a segment that has been given this name, if it has."""
    try:
        if os.path.samestat(os.stat(_path(name)), os.fstat(file)):  # noqa: PTH116
            os.unlink(_path(name))  # noqa: PTH108
    except FileNotFoundError:
        pass


def _new_name() -> str:
    return "psm_" + secrets.token_hex(_NAME_BYTES)


def _path(name: str) -> str:
    return f"{_DIRECTORY}/{name}"


def _descriptor(file: int) -> str:
    return f"/proc/self/fd/{file}"
