"""``save_pt``: PyTorch files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping
from typing import IO, Any, cast

import torch

from veturboio import _ops
from veturboio._arguments import refuse, storage_options_of, wants_cipher
from veturboio._sources import FilePath, is_local


def save_pt(
    state_dict: Mapping[str, Any],
    file: FilePath,
    use_cipher: bool | None = False,
    *,
    overwrite: bool = True,
    storage_options: Mapping[str, str] | None = None,
) -> None:
    """Save a state_dict as a PyTorch file, as ``torch.save`` writes it.

    The file takes its place as one of ``save_file`` does: once it is whole and on the disk, with
    the mode, owner and attributes of the file that it replaces, and in the order of the calls. What
    goes to a store is written to a temporary file of this machine first (``TMPDIR`` says where),
    and sent from there. Values that torch.save takes are taken as it takes them, parameters
    without a shape (``LazyLinear``) among them.

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
    refuse("use_cipher", wants_cipher(use_cipher or None))
    path = os.fsdecode(file)
    options = storage_options_of(storage_options)
    if not isinstance(state_dict, Mapping):
        found = type(state_dict).__name__
        raise TypeError(f"save {_ops.printable(path)}: state_dict is not a dict but a {found}")
    if not is_local(path):
        ticket = _ops.save_ticket()
        with _temporary(state_dict, path) as whole:
            source = f"/proc/self/fd/{whole.fileno()}"
            told = {"overwrite": overwrite, "storage_options": options, "ticket": ticket}
            _ops.send(source, path, **told)
        return
    new = _ops.NewFile(path, overwrite)
    try:
        _pickle(state_dict, open(new.fileno(), "wb", closefd=False))  # noqa: SIM115
    except _RefusedError as error:
        new.abort()
        number = error.number
    except BaseException:
        new.abort()
        raise
    else:
        new.commit()
        return
    # Raised out here, so that it does not drag the traceback of the first along.
    refused = OSError(number, f"save {_ops.printable(path)}: {os.strerror(number)}")
    refused.filename = path
    raise refused


def _temporary(state_dict: Mapping[str, Any], path: str) -> IO[bytes]:
    """A file without a name that holds what ``path`` is to have."""
    try:
        whole = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError as error:
        number = error.errno or errno.EIO
    else:
        try:
            _pickle(state_dict, open(whole.fileno(), "wb", closefd=False))  # noqa: SIM115
            return whole
        except _RefusedError as error:
            whole.close()
            number = error.number
        except BaseException:
            whole.close()
            raise
    # Out here for the same reason as above.
    reason = f"a temporary file: {os.strerror(number)}"
    refused = OSError(number, f"save {_ops.printable(path)}: {reason}")
    refused.filename = _ops.shown(path)
    raise refused


class _RefusedError(Exception):
    """The system refuses to take bytes; ``number`` is its errno."""

    def __init__(self, refusal: OSError) -> None:
        super().__init__(str(refusal))
        self.number = refusal.errno or errno.EIO


def _pickle(state_dict: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write what torch.save makes, and close the file.

    Raises:
        _RefusedError: the system refuses the bytes.
        Exception: what values raise that are pickled. An OSError of theirs is not about the file.
    """
    remembering = _Remembering(file)
    try:
        torch.save(state_dict, cast("IO[bytes]", remembering))
        remembering.flush()
    except BaseException as error:
        failure = remembering.failure
        if failure is None or not isinstance(error, (RuntimeError, OSError)):
            raise
    else:
        failure = remembering.failure
    finally:
        # What it could not write is written no more.
        with contextlib.suppress(OSError):
            file.close()
    if isinstance(failure, OSError):
        raise _RefusedError(failure)
    if failure is not None:
        raise failure


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
        try:
            self._file.flush()
        except BaseException as failure:
            self.failure = self.failure or failure
            raise
