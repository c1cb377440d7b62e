"""Builds safetensors files byte by byte and checks nothing, so that any fault can be put in."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One file and the refusal that it must meet.

    ``reason`` is a part of the reason's text. ``tensor`` is the name the refusal must carry,
    ``None`` where the fault belongs to no tensor. ``reference`` tells whether the safetensors
    package refuses the file too, when it is opened and each tensor is read.
    """

    name: str
    data: bytes
    reason: str
    tensor: str | None = None
    reference: bool = True


def tensor(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    """One entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file(
    header: dict[str, Any] | str | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """A whole file: ``length`` (or the header's true length), the header, the tensors' bytes."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return prefix(len(header) if length is None else length) + header + data


def prefix(length: int) -> bytes:
    """The eight bytes that a file starts with."""
    return length.to_bytes(8, "little")
