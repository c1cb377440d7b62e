"""The only door to ``torch.ops.veturboio``: calls its operators and gives errors their class.

An operator can raise RuntimeError, ValueError and NotImplementedError only. What a failure
really was the core tells when asked, on the same thread: ``FileNotFoundError`` and the other
children of ``OSError`` are made here, with the errno.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from veturboio import _library  # noqa: F401  (registers the operators)
from veturboio.errors import FormatError


def load(file: str, map_location: torch.device, num_thread: int) -> dict[str, torch.Tensor]:
    """Load every tensor of a safetensors file."""
    return _call("load", file, map_location=map_location, num_thread=num_thread)  # type: ignore[no-any-return]


def save(
    state_dict: Mapping[str, torch.Tensor],
    file: str,
    **options: Any,
) -> None:
    """Save a state_dict as a safetensors file; the options are the operator's."""
    _call("save", file, state_dict, **options)


def metadata(file: str) -> dict[str, str]:
    """Read the free-form strings that a safetensors file holds."""
    return _call("metadata", file)  # type: ignore[no-any-return]


def _call(name: str, file: str, *before: Any, **options: Any) -> Any:
    try:
        return getattr(torch.ops.veturboio, name)(*before, _path(file), **options)
    except (RuntimeError, ValueError) as error:
        failure = _failure(str(error), file)
        if failure is None:
            raise
        raise failure from None


def _path(file: str) -> str | bytes:
    """The path as an operator takes it: bytes where it is not UTF-8, which pybind passes on."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return os.fsencode(file)
    return file


def _failure(text: str, file: str) -> Exception | None:
    kind, errno, tensor, reason = torch.ops.veturboio._take_failure()
    # The failure of an earlier call, if this error came from elsewhere: torch's own checks.
    if not kind or reason not in text:
        return None
    text = text.split("\nException raised from ", maxsplit=1)[0]
    if kind == "format":
        return FormatError(text, file, tensor, reason)
    if kind == "io":
        failure = OSError(errno, text)
        failure.filename = file
        return failure
    if kind == "invalid argument":
        return ValueError(text)
    return RuntimeError(text)
