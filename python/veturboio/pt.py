"""``save_pt``: PyTorch files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from veturboio import _ops
from veturboio.errors import ArgumentError
from veturboio.io import FilePath, _is_local, _options, _refuse, _wants_cipher

#: What a new file is created with; the process's umask takes from it.
_MODE = 0o666

#: Of linux/fcntl.h and linux/fs.h: paths as they are, and a rename that replaces nothing.
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1

#: Symbolic links followed before a chain of them is taken for a circle, as Linux does.
_MAX_LINKS = 40


def save_pt(
    state_dict: Mapping[str, Any],
    file: FilePath,
    use_cipher: bool | None = False,
    *,
    overwrite: bool = True,
    storage_options: Mapping[str, str] | None = None,
) -> None:
    """Save a state_dict as a PyTorch file, as ``torch.save`` writes it.

    The bytes go to a temporary sibling that takes the file's place once it is whole and on the
    disk: whatever fails, the old file stays as it was. What goes to a store is written to a
    temporary file of this machine first (``TMPDIR`` says where), and sent from there.

    Args:
        state_dict: tensors by name, and whatever else torch.save takes.
        file: path or address of the file.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``, and
            so does False, since a plain file is not what that variable asks for.
        overwrite: False refuses to replace a file or an object, whoever makes it meanwhile.
        storage_options: of the store, by the names of its own tools' variables in lower case.

    Raises:
        TypeError: ``state_dict`` is not a dict.
        ArgumentError: a ValueError: the path names what is no regular file.
        OSError: the system refuses the file; the class follows the errno.
        NotImplementedError: encryption is asked for.
    """
    _refuse("use_cipher", _wants_cipher(use_cipher or None))
    path = os.fsdecode(file)
    options = _options(storage_options)
    if not isinstance(state_dict, Mapping):
        found = type(state_dict).__name__
        raise TypeError(f"save {_ops.shown(path)}: state_dict is not a dict but a {found}")
    if not _is_local(path):
        with _temporary(state_dict, path) as whole:
            source = f"/proc/self/fd/{whole.fileno()}"
            _ops.send(source, path, overwrite=overwrite, storage_options=options)
        return
    try:
        target = _follow_links(path)
        _check_target(path, target)
        _write(state_dict, target, overwrite)
    except OSError as error:
        number = error.errno or errno.EIO
    else:
        return
    # Raised out here, so that it does not drag the traceback of the first along.
    refused = OSError(number, f"save {path}: {os.strerror(number)}")
    refused.filename = path
    raise refused


def _temporary(state_dict: Mapping[str, Any], path: str) -> IO[bytes]:
    """A file without a name that holds what ``path`` is to have."""
    with contextlib.ExitStack() as stack:
        try:
            whole = stack.enter_context(tempfile.TemporaryFile())
            _pickle(state_dict, whole)
            whole.flush()
        except OSError as error:
            number = error.errno or errno.EIO
        else:
            stack.pop_all()
            return whole
    # Out here for the same reason as above.
    refused = OSError(number, f"save {_ops.shown(path)}: a temporary file: {os.strerror(number)}")
    refused.filename = _ops.shown(path)
    raise refused


def _follow_links(path: str) -> str:
    """The file that a symbolic link names, there or not, so that the link stays."""
    if "\0" in path:
        shown = path.replace("\0", "\\0")
        raise ArgumentError(f"save {shown}: file name contained an unexpected NUL byte")
    target = path
    for _ in range(_MAX_LINKS):
        try:
            link = os.readlink(target)  # noqa: PTH115 - a Path forgets a slash at the end
        except OSError:  # what is no link, or not there, is where the file goes
            return target
        target = os.path.join(os.path.dirname(target), link)  # noqa: PTH118, PTH120
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_target(path: str, target: str) -> None:
    """Refuse what renaming would replace but opening for writing would not."""
    if target.endswith("/"):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    try:
        mode = os.stat(target).st_mode  # noqa: PTH116 - a Path takes "" for "."
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise ArgumentError(f"save {path}: not a regular file")
    # Not to wait for a reader, should it have become a pipe meanwhile.
    os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _write(state_dict: Mapping[str, Any], target: str, overwrite: bool) -> None:
    directory = Path(target).parent
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    temporary = directory / f".veturboio-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - it is a descriptor
            _pickle(state_dict, file)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(target)
        else:
            _put_new(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_new(temporary: Path, target: str) -> None:
    """Give the file its name in one step as well: whoever was faster is not replaced."""
    number = _rename_new(os.fsencode(temporary), os.fsencode(target))
    if number in (errno.EINVAL, errno.ENOSYS):  # not on this file system, or not in this kernel
        os.link(temporary, target)
        temporary.unlink()
    elif number:
        raise OSError(number, os.strerror(number))


def _rename_new(source: bytes, target: bytes) -> int:
    """Rename to what is not there; returns the errno, 0 for success."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # a C library from before 2018
        return errno.ENOSYS
    refused = rename(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
    return ctypes.get_errno() if refused else 0


def _pickle(state_dict: Mapping[str, Any], file: IO[bytes]) -> None:
    remembering = _Remembering(file)
    try:
        torch.save(state_dict, cast("IO[bytes]", remembering))
    except RuntimeError:
        if remembering.failure is None:
            raise
    if remembering.failure is not None:
        raise remembering.failure


class _Remembering:
    """A file that remembers why it refused a write: torch.save ends in another error then."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: BaseException | None = None

    def write(self, data: memoryview | bytes) -> int:
        try:
            return self._file.write(data)
        except BaseException as failure:
            self.failure = self.failure or failure
            raise

    def flush(self) -> None:
        self._file.flush()
