"""What ``load`` takes for a file: a path, an address, a file's content, or an object that reads it.

The core reads paths and addresses. An open file that has a descriptor is given to it as the path of
that descriptor, which is mapped like any other file. Everything else is copied into a file in
memory (memfd): the tensors lie in its pages, so there is one copy, and none of the caller's.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from veturboio import _ops
from veturboio._handle import Handle


class Readable(Protocol):
    """An object that ``read(size)`` gives bytes of, from where it stands to its end."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""
        ...


FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: Whatever has the bytes of a checkpoint.
File = FilePath | bytearray | memoryview | Readable

_SCHEMES = {"s3", "tos", "gs", "az", "http", "https", "file", "sfcs", "hdfs"}

#: What the system has no longer path than, with the NUL at its end.
_PATH_MAX = 4096

#: How a PyTorch file begins: a zip archive, or the pickle of the number that marks the old format.
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0a"

#: How a path is opened, without waiting for whoever writes to a pipe.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

#: Bytes that are read of an object at a time.
_CHUNK = 16 << 20

#: Refuses to run what is in memory, which a system may insist on. Python 3.11 has no name for it.
_MFD_NOEXEC_SEAL = 8


def is_address(path: str) -> bool:
    """Whether it names an object of a store rather than a path."""
    scheme, colon, _ = path.partition("://")
    return bool(colon) and scheme in _SCHEMES


def opened(file: File) -> AbstractContextManager[str]:
    """Give the core's name for ``file``, valid within the context.

    Args:
        file: a path or an address; a checkpoint's content as ``bytes``, or in anything that has the
            buffer protocol; or a binary file, which is read from where it stands to its end.
            ``bytes`` are a path too: they are taken for content if they contain a NUL, begin
            as a PyTorch file, or are longer than any path.

    Raises:
        TypeError: it is none of these, or a file that is open as text.
        io.UnsupportedOperation: an OSError: the file is not open for reading.
    """
    if isinstance(file, (str, Path)) or (isinstance(file, bytes) and not _is_content(file)):
        return nullcontext(os.fsdecode(file))
    fsspec = sys.modules.get("fsspec.core")
    if fsspec is not None and isinstance(file, fsspec.OpenFile):  # which is not open yet
        return _opened_first(file)
    is_open = hasattr(file, "read")
    if isinstance(file, os.PathLike) and not is_open:
        return nullcontext(os.fsdecode(file))
    name = _name_of(file)
    if is_open:
        return _read(file, name)
    try:
        content = memoryview(cast("Any", file))
    except TypeError:
        pass
    else:
        return _content(content, name)
    raise TypeError(
        _refusal(
            name,
            "expected str, bytes or os.PathLike object, a buffer or an open binary file, not "
            f"{type(file).__name__}",
        )
    )


@contextmanager
def _opened_first(file: AbstractContextManager[Readable]) -> Iterator[str]:
    with file as inner, opened(inner) as path:
        yield path


@contextmanager
def _content(content: memoryview, name: str) -> Iterator[Handle]:
    with content, _in_memory(_parts(content), name) as handle:
        yield handle


@contextmanager
def pinned(path: str, options: dict[str, Any]) -> Iterator[Handle]:
    """Hold on to one version of what ``path`` names, however often it is read.

    A file of this machine is opened. An object of a store is read into memory.

    Args:
        path: as the core takes it.
        options: those of ``load`` that say how to read and of what store.

    Raises:
        OSError: it cannot be opened or read.
        FormatError: the object is malformed.
    """
    if isinstance(path, Handle):
        yield path
        return
    is_file = is_local(path)
    fd = os.open(path, _OPEN) if is_file else _memfd()
    try:
        if not is_file:
            _download(path, fd, options)
        yield Handle(fd, _ops.shown(path), is_in_memory=not is_file)
    finally:
        os.close(fd)


@contextmanager
def held(path: str) -> Iterator[str]:
    """Hold on to one version of a file of this machine; what else is named stays as it is."""
    if isinstance(path, Handle) or not is_local(path):
        yield path
        return
    try:
        fd = os.open(path, _OPEN)
    except OSError:
        yield path  # whoever opens it says so
        return
    try:
        yield Handle(fd, path)
    finally:
        os.close(fd)


def in_memory() -> io.FileIO:
    """An empty file in memory, to be written, and given to the core as a ``Handle``."""
    return io.FileIO(_memfd(), "w+b")


def is_local(path: str) -> bool:
    """Whether a path is one of this machine to the core."""
    if is_address(path):
        return False
    sdk = os.environ.get("VETURBOIO_USE_SFCS_SDK") == "1"
    return not sdk or path.startswith("/dev/shm/")


def _is_content(file: bytes) -> bool:
    """Whether bytes are a checkpoint rather than the path of one."""
    if b"\0" in file or file.startswith((_ZIP, _LEGACY)):
        return True  # no path contains a NUL, and every header of a safetensors file does
    return len(file) >= _PATH_MAX and not is_address(os.fsdecode(file[:16]))


def _name_of(file: object) -> str:
    name = getattr(file, "name", None)
    if name is None or isinstance(name, int):
        name = getattr(file, "path", None)
    if isinstance(name, (str, bytes, os.PathLike)):
        return _ops.shown(os.fsdecode(name))
    return f"<{type(file).__name__}>"


def _refusal(name: str, reason: object) -> str:
    return f"load {_ops.printable(name)}: {reason}"


@contextmanager
def _read(file: Any, name: str) -> Iterator[Handle]:
    if isinstance(file, io.TextIOBase):
        raise TypeError(_refusal(name, "file is open as text; open it with mode 'rb'"))
    try:
        is_readable = file.readable() if hasattr(file, "readable") else True
    except ValueError as error:  # as of a file that is closed
        raise ValueError(_refusal(name, error)) from error
    if not is_readable:
        raise io.UnsupportedOperation(_refusal(name, "file is not open for reading"))
    inner = _unwrapped(file)
    fd = _descriptor(inner)
    if fd is not None:
        try:
            yield Handle(fd, name)
            inner.seek(0, os.SEEK_END)
        finally:
            os.close(fd)
        return
    if type(inner) is io.BytesIO:
        with inner.getbuffer() as content, content[inner.tell() :] as rest:
            memory = _in_memory(_parts(rest), name)
            handle = memory.__enter__()
        try:
            yield handle
            inner.seek(0, os.SEEK_END)
        finally:
            memory.__exit__(None, None, None)
        return
    with _in_memory(_chunks(file, name), name) as handle:
        yield handle


def _unwrapped(file: Any) -> Any:
    """The file that a wrapper passes everything on to."""
    if isinstance(file, tempfile._TemporaryFileWrapper):
        return file.file
    if isinstance(file, tempfile.SpooledTemporaryFile):
        return file._file
    local = sys.modules.get("fsspec.implementations.local")
    if local is not None and type(file) is local.LocalFileOpener and not file.compression:
        return file.f
    return file


def _descriptor(file: Any) -> int | None:
    """A descriptor of its own for a regular file of the system that stands at its beginning.

    A gzip.GzipFile has a descriptor too, and so has a connection: only Python's own files are
    taken at their word, and none of a class that may read otherwise.
    """
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return None
    if file.tell() != 0:
        return None
    if file.writable():
        file.flush()
    try:
        # A description of its own: the caller may read and close theirs meanwhile.
        return os.open(f"/proc/self/fd/{raw.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # read, then, through the descriptor that was opened with other rights


def _chunks(file: Any, name: str) -> Iterator[memoryview]:
    while True:
        try:
            chunk = file.read(_CHUNK)
        except ValueError as error:  # such as of a file that is closed
            raise ValueError(_refusal(name, error)) from error
        if chunk is None:
            raise BlockingIOError(errno.EAGAIN, _refusal(name, "no bytes are there yet"))
        if isinstance(chunk, str):
            raise TypeError(_refusal(name, "file is open as text; open it with mode 'rb'"))
        if not len(chunk):
            return
        yield memoryview(chunk)


def _parts(content: memoryview) -> Iterator[memoryview]:
    """The bytes of a buffer of any shape."""
    if content.nbytes == 0:
        return
    try:
        flat = content.cast("B")
    except (TypeError, ValueError):  # with gaps, or of elements that Python has no letter for
        flat = memoryview(content.tobytes())
    for at in range(0, len(flat), _CHUNK):
        yield flat[at : at + _CHUNK]


@contextmanager
def _in_memory(parts: Iterable[memoryview], name: str) -> Iterator[Handle]:
    fd = _memfd()
    try:
        for part in parts:
            rest = part
            while len(rest):
                rest = rest[os.write(fd, rest) :]
        yield Handle(fd, name, is_in_memory=True)
    finally:
        os.close(fd)


def _memfd() -> int:
    try:
        return os.memfd_create("veturboio", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a system that does not know the flag
            raise
    return os.memfd_create("veturboio", os.MFD_CLOEXEC)


def _download(path: str, fd: int, options: dict[str, Any]) -> None:
    """Read an object as it is, once it has been found well formed."""
    store = {name: options[name] for name in ("storage_options", "cache_dir") if name in options}
    how = {name: options[name] for name in ("num_thread", "helper") if name in options}
    size = _ops.byte_len(path, **store)
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as memory:
        with torch._C.DisableTorchFunction():  # whatever modes the caller has
            content = torch.frombuffer(memory, dtype=torch.uint8)
        try:
            _ops.load_bytes(path, content, **how, **store)
        finally:
            # The map cannot be closed while a tensor looks at it, and a traceback may hold this
            # one for long.
            content.set_(torch.UntypedStorage())
