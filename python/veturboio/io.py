"""``load`` and ``save_file``: the interface of the published library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch

from veturboio import _ops
from veturboio.errors import FormatError, UnknownNameError

#: Whether this process has been told of a file that only torch.load could read.
_warned = False

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def load(
    file: FilePath,
    map_location: str | torch.device | None = "cpu",
    enable_fast_mode: bool = True,
    num_thread: int = 32,
    helper: Any = None,
    use_pinmem: bool = False,
    use_direct_io: bool = False,
    use_cipher: bool | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Load a safetensors or PyTorch file.

    The pickle of a PyTorch file is read without being run. Where it imports a name that the
    reader does not know, ``torch.load(weights_only=True)`` is tried instead, and a warning says so
    once.

    On the CPU the tensors lie in a private map of the file: nothing is copied, writing to one
    does not touch the file, and the memory goes with the last of them. Each tensor has a storage
    of its own, except those that were saved as sharing one.

    Args:
        file: path of the file.
        map_location: device of the tensors. ``"meta"`` reads the header alone.
        enable_fast_mode: False reads on the caller's thread alone. The result is the same.
        num_thread: upper bound of reader threads, at least 1.
        helper: not implemented yet.
        use_pinmem: a normal load where there is no accelerator; otherwise not implemented yet.
        use_direct_io: read past the page cache into memory of the load's own, instead of mapping
            the file; where the file system refuses that, through the page cache.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``.
        state_dict: tensors to be filled in place, wherever they are: the names of the file, the
            same dtypes, contiguous and at least as large. Nothing is written unless all fit.
            Their memory is not aligned for ``use_direct_io``, which then does nothing.

    Returns:
        The tensors of a safetensors file by name, in the order of the file. What torch.load
        returns for a PyTorch file; of a TorchScript archive, its tensors by name.

    Raises:
        FormatError: the file is malformed, holds a dtype that torch does not have, or is a
            PyTorch file that torch.load refuses too.
        OSError: the system refuses the file; the class follows the errno.
        ValueError: ``num_thread`` is less than 1, or ``state_dict`` does not fit the file; the
            message names the tensor.
        NotImplementedError: a parameter asks for what does not exist yet.
    """
    _refuse("helper", helper is not None)
    _refuse("use_pinmem", use_pinmem and torch.accelerator.is_available())
    _refuse("use_cipher", _wants_cipher(use_cipher))
    device = torch.device("cpu" if map_location is None else map_location)
    threads = num_thread if enable_fast_mode else min(num_thread, 1)
    path = os.fsdecode(file)
    if state_dict is not None:
        _check_mapping(path, "state_dict", state_dict, torch.Tensor, action="load")
        _ops.fill(path, state_dict, threads)
        return dict(state_dict)
    try:
        loaded = _ops.load(
            path, map_location=device, num_thread=threads, use_direct_io=use_direct_io
        )
        return cast("dict[str, torch.Tensor]", loaded)
    except UnknownNameError as error:
        refused = str(error), error.reason
    return _load_by_torch(path, device, *refused)


def _load_by_torch(
    path: str, device: torch.device, text: str, reason: str
) -> dict[str, torch.Tensor]:
    """Try torch's own reader, which knows more names, and as little executes what it reads."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"{text}; trying torch.load(weights_only=True) instead", stacklevel=3)
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
        return cast("dict[str, torch.Tensor]", loaded)
    except OSError:
        raise
    except Exception:  # whatever it stumbles over; its words advise to load without weights_only
        pass
    raise FormatError(f"{text}; torch.load refuses it too", path, None, reason)


def save_file(
    state_dict: Mapping[str, torch.Tensor],
    file: FilePath,
    force_contiguous: bool = True,
    force_save_shared_tensor: bool = False,
    force_clone_shared_tensor: bool = False,
    metadata: Mapping[str, str] | None = None,
    use_cipher: bool | None = False,
    helper: Any = None,
    enable_fast_mode: bool = False,
) -> None:
    """Save a state_dict as a safetensors file.

    The bytes go to a temporary sibling that takes the file's place once it is whole and on the
    disk: whatever fails, the old file stays as it was. The caller's dict is not changed.

    Args:
        state_dict: tensors by name.
        file: path of the file.
        force_contiguous: False refuses tensors that are not contiguous.
        force_save_shared_tensor: tensors that are the same view of the same memory are stored
            once, and the other names as aliases that ``load`` restores. Tensors that overlap
            otherwise are each stored in full.
        force_clone_shared_tensor: tensors that share memory are each stored in full.
        metadata: free-form strings to keep in the file.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``, and
            so does False, since a plain file is not what that variable asks for.
        helper: not implemented yet.
        enable_fast_mode: there is one mode, and it is fast; both values do the same.

    Raises:
        ValueError: tensors share memory and neither force is set, or a tensor cannot be stored;
            the message names them.
        TypeError: a value is not a tensor.
        OSError: the system refuses the file; the class follows the errno.
        NotImplementedError: a parameter asks for what does not exist yet.
    """
    _refuse("helper", helper is not None)
    _refuse("use_cipher", _wants_cipher(use_cipher or None))
    path = os.fsdecode(file)
    _check_mapping(path, "state_dict", state_dict, torch.Tensor)
    if metadata is not None:
        _check_mapping(path, "metadata", metadata, str)
    _ops.save(
        state_dict,
        path,
        metadata=metadata,
        force_contiguous=force_contiguous,
        force_save_shared_tensor=force_save_shared_tensor,
        force_clone_shared_tensor=force_clone_shared_tensor,
    )


def metadata(file: FilePath) -> dict[str, str]:
    """Read the free-form strings that were saved with a safetensors file.

    Raises:
        FormatError: the file is malformed.
        OSError: the system refuses the file; the class follows the errno.
    """
    return _ops.metadata(os.fsdecode(file))


def _check_mapping(
    path: str, what: str, mapping: object, values: type, action: str = "save"
) -> None:
    """Say which entry is wrong, where torch would only say that the dict is."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{action} {path}: {what} is not a dict but a {type(mapping).__name__}")
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise TypeError(f"{action} {path}: name {name!r} in {what} is not a str")
        if not isinstance(value, values):
            found, wanted = type(value).__name__, values.__name__
            raise TypeError(f"{action} {path}: {what}[{name!r}] is not a {wanted} but a {found}")


def _wants_cipher(use_cipher: bool | None) -> bool:
    if use_cipher is None:
        return os.environ.get("VETURBOIO_USE_CIPHER", "0") == "1"
    return use_cipher


def _refuse(parameter: str, asked_for: bool) -> None:
    if asked_for:
        raise NotImplementedError(f"{parameter} is not implemented yet")
