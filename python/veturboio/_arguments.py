"""What the functions of the package make of their arguments, and refuse of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from veturboio import _ops
from veturboio._nested import quoted
from veturboio.errors import ArgumentError


def storage_options_of(options: Mapping[str, str] | None) -> dict[str, str] | None:
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise TypeError(f"storage_options is not a dict but a {type(options).__name__}")
    for name, value in options.items():
        if not isinstance(name, str) or not isinstance(value, str):
            # Its value may be a secret.
            raise TypeError(f"storage_options[{name!r}] is not a str but a {type(value).__name__}")
    return dict(options)


def check_mapping(
    path: str, what: str, mapping: object, values: type, action: str = "save"
) -> None:
    """Say which entry is wrong, where torch would only say that the dict is."""
    path = _ops.printable(path)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{action} {path}: {what} is not a dict but a {type(mapping).__name__}")
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise TypeError(f"{action} {path}: name {name!r} in {what} is not a str")
        if not (name.isascii() or _is_text(name)):
            raise ArgumentError(f"{action} {path}: name {name!r} in {what} is not text")
        if not isinstance(value, values):
            found, wanted = type(value).__name__, values.__name__
            raise TypeError(f"{action} {path}: {what}[{name!r}] is not a {wanted} but a {found}")
        if isinstance(value, str) and not _is_text(value):
            raise ArgumentError(f"{action} {path}: {what}[{name!r}] is not text: {value!r}")


def _is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair, as surrogateescape makes it, is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_uninitialized(path: str, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Refuse parameters and buffers of lazy modules: to the core they are empty tensors."""
    lazy = (torch.nn.parameter.UninitializedParameter, torch.nn.parameter.UninitializedBuffer)
    # A state_dict has many tensors, and few classes of them.
    if not any(issubclass(kind, lazy) for kind in set(map(type, state_dict.values()))):
        return
    for name, tensor in state_dict.items():
        if isinstance(tensor, lazy):
            raise ArgumentError(
                f"save {_ops.printable(path)}: tensor {quoted(name)}: has no shape before its lazy "
                "module is called"
            )


def wants_cipher(use_cipher: bool | None) -> bool:
    if use_cipher is None:
        return os.environ.get("VETURBOIO_USE_CIPHER", "0") == "1"
    return use_cipher


def refuse(parameter: str, asked_for: bool) -> None:
    if asked_for:
        raise NotImplementedError(f"{parameter} is not implemented yet")


def check_weights_only(path: str, weights_only: bool | None) -> None:
    if weights_only is not None and not weights_only:
        raise ArgumentError(
            f"load {_ops.printable(path)}: weights_only=False would run the file's pickle, which "
            "is never done; torch.load does, and skip_unknown=True loads what needs no running"
        )


def way_of(path: str, way: str | None, mmap: bool | None, use_direct_io: bool) -> str | None:
    """What ``mmap`` asks for, in the words of ``way``."""
    if mmap is None:
        return way
    asked = "direct" if use_direct_io and way is None else way
    fits = asked in (None, "auto", "map") if mmap else asked != "map"
    if not fits:
        reason = f"mmap={bool(mmap)} cannot be combined with {asked!r}"
        raise ArgumentError(f"load {_ops.printable(path)}: {reason}")
    if mmap:
        return "map"
    return "read" if asked in (None, "auto") else way
