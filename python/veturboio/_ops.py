"""The only door to ``torch.ops.veturboio``: calls its operators and gives errors their class.

An operator can raise RuntimeError, ValueError and NotImplementedError only. What a failure
really was the core tells when asked, on the same thread: ``FileNotFoundError`` and the other
children of ``OSError`` are made here, with the errno.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch

from veturboio import (
    _checkpoint,
    _interrupts,
    _library,  # noqa: F401  (registers the operators)
)
from veturboio._handle import Handle, Located
from veturboio.errors import ArgumentError, FormatError, UnknownNameError

_interrupts.install()

#: Addresses of stores, which are UTF-8; those of files are paths.
_TEXTS = ("s3://", "tos://", "gs://", "az://", "http://", "https://")


def load(file: str, restore: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Load a file: the tensors of a safetensors file by name, the values of a PyTorch file.

    ``restore`` is given what :func:`described` returns, and returns other tensors in their places.
    """
    named, tensors, structure = described(file, **options)
    if restore is not None:
        named, tensors = restore(named, tensors, structure)
    if not structure:
        return named
    try:
        return _checkpoint.build(structure, tensors)
    except (TypeError, ValueError, RuntimeError, UnpicklingError) as error:
        reason = f"its values cannot be built: {error}"
    raise FormatError(f"read {printable(file)}: {reason}", shown(file), None, reason)


def described(
    file: str, **options: Any
) -> tuple[dict[str, Any], list[torch.Tensor], _checkpoint.Structure]:
    """Load a file: its tensors by name; or by position, and how its values hold them."""
    named, tensors, structure, values = _call("_load_values", file, _path(file), **options)
    return named, tensors, _checkpoint.Structure(structure, values)


def names(file: str, **options: Any) -> tuple[list[str], str]:
    """Tell which tensors a load would return, by the names that lead to them, and of which version.

    Given that version, a load of any other fails with ``ESTALE``.
    """
    return _call("_names", file, _path(file), **options)  # type: ignore[no-any-return]


def fill(file: str, state_dict: Mapping[str, torch.Tensor], **options: Any) -> None:
    """Load a file into tensors that are already there."""
    _call("load", file, _path(file), state_dict=state_dict, **options)


def load_bytes(file: str, content: torch.Tensor, **options: Any) -> None:
    """Read a well-formed file, as it is, into a uint8 tensor of its length."""
    _call("_load_bytes", file, _path(file), content, **options)


def save(
    state_dict: Mapping[str, torch.Tensor],
    file: str,
    **options: Any,
) -> None:
    """Save a state_dict as a safetensors file; the options are the operator's."""
    # Within a function that torch.func transforms, no operator takes a dict of tensors.
    with torch._C._DisableFuncTorch():
        _call("_save", file, state_dict, _path(file), **options)
    _tell_notes(file)


def send(source: str, file: str, **options: Any) -> None:
    """Send a file of this machine, as it is, to where an address says."""
    _call("_send", file, _path(source), _path(file), **options)
    _tell_notes(file)


def save_ticket() -> Any:
    """Take the time of a call: of two saves to one target, the later ticket's remains."""
    return _call("_save_ticket", "a save")


class NewFile:
    """A file of this machine that takes the place of ``file`` once it is committed.

    Raises:
        OSError: the system refuses the file; the class follows the errno.
        ArgumentError: the path names what is no regular file.
    """

    def __init__(self, file: str, overwrite: bool) -> None:
        self._name = file
        self._sink = _call("_create_file", file, _path(file), overwrite=overwrite)

    def fileno(self) -> int:
        """Return the descriptor that its bytes are to be written to."""
        return _call("_file_descriptor", self._name, self._sink)  # type: ignore[no-any-return]

    def commit(self) -> None:
        """Put it in its place, synced, unless a save that was called later has done so."""
        _call("_commit_file", self._name, self._sink)
        _tell_notes(self._name)

    def abort(self) -> None:
        """Drop it; nothing happens after ``commit``."""
        _call("_abort_file", self._name, self._sink)


def explain(file: str, **options: Any) -> str:
    """Say which way a load would take, and why."""
    return _told(file, _call("explain", file, _path(file), **options))


def init_io_helper(nbytes: int) -> Any:
    """Make a helper, which the operators take."""
    return _call("init_io_helper", "IOHelper", nbytes)


def byte_len(file: str, **options: Any) -> int:
    """Say how long a file or an object is."""
    return _call("_byte_len", file, _path(file), **options)  # type: ignore[no-any-return]


def metadata(file: str, **options: Any) -> dict[str, str]:
    """Read the free-form strings that a safetensors file holds."""
    return _call("metadata", file, _path(file), **options)  # type: ignore[no-any-return]


def _call(name: str, file: str, *arguments: Any, **options: Any) -> Any:
    """Call an operator.

    What the handler of a signal raised while it ran is raised here, on the thread that handles
    signals and nowhere else, whatever else has become of the call. Handlers may call operators
    too, before, during and after the call that they interrupt: each raises what is its own.
    """
    if options.get("cache_dir") is not None:
        options["cache_dir"] = _path(options["cache_dir"])
    before = _interrupts.count()
    try:
        result = getattr(torch.ops.veturboio, name)(*arguments, **options)
        _interrupts.raise_above(before)
        return result
    except BaseException as error:
        try:
            # The first thing to be called here, since a handler may raise in any other one.
            _interrupts.raise_above(before)
        except BaseException as raised:
            raise raised from (None if _was_stopped(error) else error)
        if (
            not isinstance(error, (RuntimeError, ValueError))
            # Tracing knows no operator that returns strings.
            or torch._C._get_tracing_state() is not None
        ):
            raise
        text = _text(error)
        kind, errno, tensor, reason = torch.ops.veturboio._take_failure(text)
        if text.startswith(f"veturboio::{name}() "):  # torch's own check of the arguments
            raise TypeError(text.split("\nDeclaration:", maxsplit=1)[0]) from None
        if not kind:  # an error of torch
            raise
    text, reason = _told(file, text), _told(file, reason)
    # Raised out here, and kept in no variable: an exception that its own traceback reaches
    # would keep the caller's tensors alive until the next garbage collection.
    raise _exception(kind, errno, tensor, reason, text, file)


def _told(file: str, text: str) -> str:
    """A message of the core about ``file``, with the name that its user gave it."""
    if isinstance(file, Handle):
        return text.replace(str(file), printable(file)).replace(file.path, printable(file))
    if isinstance(file, Located):
        return text.replace(printable(str(file)), printable(file))
    return text


def _tell_notes(file: str) -> None:
    """Warn of what a save that succeeded has to tell, at the line that called this package."""
    if torch._C._get_tracing_state() is not None:  # which knows no operator that returns strings
        return
    notes = torch.ops.veturboio._take_notes()
    if not notes:
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    for note in notes:
        warnings.warn(_told(file, note), stacklevel=level)


def _text(error: BaseException) -> str:
    return str(error).split("\nException raised from ", maxsplit=1)[0]


def _was_stopped(error: BaseException) -> bool:
    """Whether an operator failed because a handler raised, and for no other reason."""
    if not isinstance(error, RuntimeError) or torch._C._get_tracing_state() is not None:
        return False
    kind, *_ = torch.ops.veturboio._take_failure(_text(error))
    return bool(kind == "interrupted")


def _path(file: str) -> str | bytes:
    """The path as an operator takes it, which has the bytes of ``os.fsencode`` in every locale.

    pybind encodes a str as UTF-8 and passes bytes on. An address is text, whatever the locale.
    """
    is_text = file.startswith(_TEXTS)
    path = file.encode(errors="surrogateescape") if is_text else os.fsencode(file)
    try:
        return path.decode()
    except UnicodeDecodeError:
        return path


def shown(file: str) -> str:
    """The name that messages have, without what may be secret in the address of a web server."""
    if isinstance(file, (Handle, Located)):
        return file.shown
    if not file.startswith(("http://", "https://")):
        return file
    scheme, _, rest = file.partition("://")
    bare = rest.split("?")[0].split("#")[0]
    user, at, host = re.split(r"[/\\]", bare, maxsplit=1)[0].rpartition("@")
    # Where it is not clear which host is meant, neither is what a password is.
    if re.fullmatch(r"(\[[^]]*\]|[^:\]]+)(:[0-9]*)?", host) is None:
        return f"{scheme}://***"
    return f"{scheme}://{bare.removeprefix(user + at)}"


def printable(file: str) -> str:
    """The same for a message: in one line that every encoding of UTF-8 can write."""
    return "".join(map(_escaped, shown(file)))


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that the locale has no letter for
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if unicodedata.category(letter) in ("Cc", "Cs"):
        return letter.encode("unicode_escape").decode()
    return letter


def _exception(
    kind: str, errno: int, tensor: str | None, reason: str, text: str, file: str
) -> Exception:
    file = shown(file)
    if kind == "format":
        return FormatError(text, file, tensor, reason)
    if kind == "unsupported":
        return UnknownNameError(text, file, tensor, reason)
    if kind == "io":
        refused = OSError(errno, text)
        refused.filename = file
        return refused
    if kind == "not implemented":
        return NotImplementedError(text)
    if kind == "invalid argument":
        return ArgumentError(text)
    if kind == "out of memory":
        return torch.OutOfMemoryError(text)
    return RuntimeError(text)
