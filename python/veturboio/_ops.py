"""The only door to ``torch.ops.veturboio``: calls its operators and gives errors their class.

An operator can raise RuntimeError, ValueError and NotImplementedError only. What a failure
really was the core tells when asked, on the same thread: ``FileNotFoundError`` and the other
children of ``OSError`` are made here, with the errno.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from typing import Any

import torch

from veturboio import (
    _checkpoint,
    _interrupts,
    _library,  # noqa: F401  (registers the operators)
)
from veturboio.errors import ArgumentError, FormatError, UnknownNameError

_interrupts.install()

#: Addresses of stores, which are UTF-8; those of files are paths.
_TEXTS = ("s3://", "tos://", "gs://", "az://", "http://", "https://")


def load(file: str, **options: Any) -> Any:
    """Load a file: the tensors of a safetensors file by name, the values of a PyTorch file."""
    named, tensors, structure = _call("_load_values", file, _path(file), **options)
    if not structure:
        return named
    try:
        return _checkpoint.build(structure, tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"its values cannot be built: {error}"
    raise FormatError(f"read {printable(file)}: {reason}", shown(file), None, reason)


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
    _call("save", file, state_dict, _path(file), **options)


def send(source: str, file: str, **options: Any) -> None:
    """Send a file of this machine, as it is, to where an address says."""
    _call("_send", file, _path(source), _path(file), **options)


def explain(file: str, **options: Any) -> str:
    """Say which way a load would take, and why."""
    return _call("explain", file, _path(file), **options)  # type: ignore[no-any-return]


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
    if options.get("cache_dir") is not None:
        options["cache_dir"] = _path(options["cache_dir"])
    _interrupts.take()  # what ended a scripted call, which could not raise it
    try:
        return getattr(torch.ops.veturboio, name)(*arguments, **options)
    except (RuntimeError, ValueError) as error:
        if (
            torch._C._get_tracing_state() is not None
        ):  # which knows no operator that returns strings
            raise
        text = str(error).split("\nException raised from ", maxsplit=1)[0]
        kind, errno, tensor, reason = torch.ops.veturboio._take_failure()
        if text.startswith(f"veturboio::{name}() "):  # torch's own check of the arguments
            raise TypeError(text.split("\nDeclaration:", maxsplit=1)[0]) from None
        if kind == "interrupted":
            raise _interrupts.take() or RuntimeError(text) from None
        if _interrupts.is_waiting():  # something else failed first; the signal counts all the same
            raise (_interrupts.take() or RuntimeError(text)) from error
        if not kind or reason not in text:  # an error of torch; the failure, if any, is older
            raise
    # Raised out here, and kept in no variable: an exception that its own traceback reaches
    # would keep the caller's tensors alive until the next garbage collection.
    raise _exception(kind, errno, tensor, reason, text, file)


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
    """The name without what may be secret in the address of a web server."""
    if not file.startswith(("http://", "https://")):
        return file
    scheme, _, rest = file.partition("://")
    host, slash, path = rest.split("?")[0].split("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


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
