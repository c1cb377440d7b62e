"""The only door to ``torch.ops.veturboio``: calls its operators and gives errors their class.

An operator can raise RuntimeError, ValueError and NotImplementedError only. What a failure
really was the core tells when asked, on the same thread: ``FileNotFoundError`` and the other
children of ``OSError`` are made here, with the errno.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch

from veturboio import (
    _checkpoint,
    _interrupts,
    _library,  # noqa: F401  (registers the operators)
)
from veturboio._handle import Handle, told
from veturboio.errors import ArgumentError, FormatError, UnknownNameError

_interrupts.install()


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
    file = shown(file)
    raise FormatError(f"read {file}: {reason}", file, None, reason)


def described(
    file: str, **options: Any
) -> tuple[dict[str, Any], list[torch.Tensor], _checkpoint.Structure]:
    """Load a file: its tensors by name; or by position, and how its values hold them."""
    named, tensors, structure, values = _call("_load_values", file, _path(file), **options)
    return named, tensors, _checkpoint.Structure(structure, values)


def names(file: str, **options: Any) -> list[str]:
    """Tell which tensors a load would return, by the names that lead to them."""
    return list(_call("load", file, _path(file), map_location=torch.device("meta"), **options))


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
    return told(file, _call("explain", file, _path(file), **options))


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
    text, reason = told(file, text), told(file, reason)
    # Raised out here, and kept in no variable: an exception that its own traceback reaches
    # would keep the caller's tensors alive until the next garbage collection.
    raise _exception(kind, errno, tensor, reason, text, file)


def _path(file: str) -> str | bytes:
    """The path as an operator takes it: bytes where it is not UTF-8, which pybind passes on."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return os.fsencode(file)
    return str(file)


def shown(file: str) -> str:
    """The name that messages have, without what may be secret in the address of a web server."""
    if isinstance(file, Handle):
        return file.shown
    if not file.startswith(("http://", "https://")):
        return file
    scheme, _, rest = file.partition("://")
    host, slash, path = rest.split("?")[0].split("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


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
