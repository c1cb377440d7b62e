"""``save_model`` and ``load_model``: whole modules, with the weights they tie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy

import torch

from veturboio._sources import File, opened
from veturboio.io import FilePath, load, save_file
from veturboio.placement import MapLocation


def save_model(model: torch.nn.Module, file: FilePath, use_cipher: bool | None = False) -> None:
    """Save a module's state_dict as a safetensors file.

    Tied weights are stored once, under the name that the state_dict has first; ``load`` restores
    the others.

    Args:
        model: the module.
        file: path of the file.
        use_cipher: as in :func:`save_file`.

    Raises:
        ValueError, OSError, NotImplementedError: as :func:`save_file` says.
    """
    save_file(model.state_dict(), file, force_save_shared_tensor=True, use_cipher=use_cipher)


def load_model(
    model: torch.nn.Module,
    file: File,
    strict: bool = True,
    map_location: MapLocation | None = None,
    *,
    device: MapLocation | None = None,
) -> tuple[list[str], list[str]]:
    """Load a file into a module, whose parameters and buffers are written in place.

    Weights that the module ties stay tied, and need to be in the file under one of their names. An
    alias in the file that the module has no name for is not unexpected.

    Args:
        model: the module.
        file: a safetensors file, or a PyTorch file that holds a state_dict; as for :func:`load`.
        strict: whether names that are missing or unexpected are an error.
        map_location: device that the tensors are read to, on their way to the module, as for
            :func:`load`; "cpu" by default.
        device: the same, by the name that ``safetensors.torch.load_model`` gives it.

    Returns:
        The names of the module that the file does not have, and those of the file that the
        module does not have.

    Raises:
        RuntimeError: ``strict``, and names are missing or unexpected; or a tensor has another
            shape than the module's. The message names them; the other tensors are loaded.
        TypeError: both ``map_location`` and ``device`` are given.
        FormatError, OSError, NotImplementedError: as :func:`load` says.
    """
    if map_location is not None and device is not None:
        raise TypeError("load_model() takes map_location or device, not both")
    wanted = device if map_location is None else map_location
    with opened(file) as path:
        missing, unexpected = _load_into(model, path, "cpu" if wanted is None else wanted)
    if strict and (missing or unexpected):
        raise RuntimeError(_complaint(model, missing, unexpected))
    return missing, unexpected


def _load_into(
    model: torch.nn.Module, path: str, map_location: MapLocation
) -> tuple[list[str], list[str]]:
    loaded = load(path, map_location=map_location)
    repeated = _repeated(loaded)
    # What the module ties is written through another name. The file of another library may have
    # it as an alias although it is only a part of the tensor that is stored.
    tied = _tied(model, repeated, loaded.keys() - repeated) if repeated else set()
    if tied:
        loaded = copy(loaded)  # with the versions of modules that torch keeps beside the items
        for name in tied:
            del loaded[name]
    absent, unexpected = model.load_state_dict(loaded, strict=False)
    missing = sorted(set(absent) - tied - _tied(model, absent, loaded.keys()))
    if not repeated.isdisjoint(unexpected):
        stored = load(path, map_location="meta", restore_aliases=False)
        unexpected = [name for name in unexpected if name in stored]
    return missing, unexpected


def _repeated(loaded: Mapping[str, torch.Tensor]) -> set[str]:
    """The names that have the tensor of a name before them, as every alias does."""
    if not isinstance(loaded, Mapping):
        return set()
    seen: set[int] = set()
    names = set()
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor) and id(value) in seen:
            names.add(name)
        seen.add(id(value))
    return names


def _tied(model: torch.nn.Module, absent: Collection[str], loaded: Collection[str]) -> set[str]:
    """Those of the absent names whose elements all lie in tensors that were loaded by others."""
    if not absent:
        return set()
    tensors = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }
    objects = {id(value) for name, value in tensors.items() if name in loaded}
    ranges: dict[tuple[torch.device, int], list[tuple[int, int]]] = {}
    for name, value in tensors.items():
        if name in loaded and _is_dense(value):
            storage, extent = _place(value)
            ranges.setdefault(storage, []).append(extent)
    tied = set()
    for name in tensors.keys() & set(absent):
        value = tensors[name]
        storage, (begin, end) = _place(value)
        # Tensors without memory, as those on meta are, lie in no other.
        covering = ranges.get(storage, []) if storage[1] else []
        if id(value) in objects or any(b <= begin and end <= e for b, e in covering):
            tied.add(name)
    return tied


def _is_dense(tensor: torch.Tensor) -> bool:
    begin, end = _place(tensor)[1]
    return end - begin == tensor.numel() * tensor.element_size()


def _place(tensor: torch.Tensor) -> tuple[tuple[torch.device, int], tuple[int, int]]:
    """The storage of a tensor, and the bytes of it from its first element to its last."""
    if tensor.layout != torch.strided:
        return (tensor.device, 0), (0, 0)
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    steps = [(n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
    end = begin + (int(sum(steps)) + 1) * size if tensor.numel() else begin
    return (tensor.device, tensor.untyped_storage().data_ptr()), (begin, end)


def _complaint(model: torch.nn.Module, missing: list[str], unexpected: list[str]) -> str:
    """What torch says of the same."""
    text = f"Error(s) in loading state_dict for {type(model).__name__}:"
    for what, names in (("Missing", missing), ("Unexpected", unexpected)):
        if names:
            quoted = ", ".join(f'"{name}"' for name in sorted(names))
            text += f"\n    {what} key(s) in state_dict: {quoted}"
    return text
