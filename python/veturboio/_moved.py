"""Tensors over other storages: on a device, or in another dtype, sharing what they shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: What torch.load asks where a storage belongs: it is in host memory and was saved from a location
#: such as ``cuda:0``; None leaves it to the location.
Restore = Callable[[torch.UntypedStorage, str], Any]


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of one storage and nothing more."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def over(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    """A tensor over ``storage`` as ``like`` is one over its own."""
    bare = torch.empty(0, dtype=like.dtype, device=storage.device)
    bare = bare.set_(storage, like.storage_offset(), like.size(), like.stride())
    return _as(bare, like)


def _as(bare: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The bits that a tensor has beside its view of a storage."""
    if like.is_conj():
        bare = bare.conj()
    if like.is_neg():
        bare = torch._neg_view(bare)
    made = bare.detach()
    if type(like) is torch.nn.Parameter:
        made = torch.nn.Parameter(made, like.requires_grad)
    else:
        made.requires_grad_(like.requires_grad)
    made.__dict__.update(getattr(like, "__dict__", {}))
    return made


class Restored:
    """Tensors whose storages are where ``restore`` puts them; a storage is asked for once."""

    def __init__(self, restore: Restore) -> None:
        self._restore = restore
        self._made: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __call__(self, tensor: torch.Tensor, location: str) -> torch.Tensor:
        """The tensor, which was saved from ``location``, over the storage that it belongs to."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._made:
            self._made[storage._cdata] = storage, restored(self._restore, storage, location)
        made = self._made[storage._cdata][1]
        return tensor if made._cdata == storage._cdata else over(made, tensor)


def restored(
    restore: Restore, storage: torch.UntypedStorage, location: str
) -> torch.UntypedStorage:
    """The storage that ``restore`` returns, or means by naming a device.

    Raises:
        TypeError: it returns something else.
        ValueError: it returns a storage of another length.
        RuntimeError: the location is of a device that is not there.
    """
    made = restore(storage, location)
    if isinstance(made, (str, torch.device)):
        made = torch.serialization.default_restore_location(storage, str(torch.device(made)))
    if made is None:
        made = torch.serialization.default_restore_location(storage, location)
    if isinstance(made, torch.TypedStorage):
        made = made._untyped_storage
    if not isinstance(made, torch.UntypedStorage):
        raise TypeError(f"map_location returned no storage but a {type(made).__name__}")
    if made.nbytes() != storage.nbytes():
        raise ValueError(
            f"map_location returned {made.nbytes()} bytes for a storage of {storage.nbytes()}"
        )
    return made


class Moved:
    """Tensors on other devices and in another dtype.

    Tensors that share a storage share one again, unless they are wanted on different devices.

    Args:
        dtype: what tensors of floating point are converted to; None leaves them.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._tensors: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        self._storages: dict[tuple[int, torch.device], _Move] = {}

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The tensor where it is wanted; itself, if it is there.

        Raises:
            ValueError: it shares a storage with a tensor that is converted differently.
            RuntimeError: the device is not there, or cannot have such a tensor.
        """
        key = id(tensor), device
        if key not in self._tensors:
            self._tensors[key] = tensor, self._moved(tensor, device)
        return self._tensors[key][1]

    def _moved(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        device = tensor.device if tensor.is_meta else device  # it has no elements to be moved
        dtype = tensor.dtype
        if self._dtype is not None and dtype.is_floating_point and not tensor.is_quantized:
            dtype = self._dtype
        is_there = tensor.device.type == device.type and device.index in (None, tensor.device.index)
        is_there |= device.type == tensor.device.type == "cpu"
        if not is_plain(tensor):
            if is_there and dtype == tensor.dtype:
                return tensor
            with torch.no_grad():
                made = tensor.to(device=device, dtype=dtype)
            return made.requires_grad_(tensor.requires_grad)
        if is_there and self._dtype is None:
            return tensor
        storage = self._storage(tensor, device, dtype)
        if storage._cdata == tensor.untyped_storage()._cdata:
            return tensor
        bare = torch.empty(0, dtype=dtype, device=storage.device)
        bare.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        return _as(bare, tensor)

    def _storage(
        self, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> torch.UntypedStorage:
        """A tensor's storage where and as it is wanted; its own, if it is so already."""
        storage = tensor.untyped_storage()
        known = self._storages.get((storage._cdata, device))
        if known is None:
            # What is not converted moves as bytes, of which there may be a part of an element.
            unit = torch.uint8 if dtype == tensor.dtype else tensor.dtype
            flat = torch.empty(0, dtype=unit, device=storage.device)
            flat.set_(storage, 0, (storage.nbytes() // flat.element_size(),), (1,))
            made = flat.to(device=device, dtype=unit if dtype == tensor.dtype else dtype)
            known = _Move(storage, tensor.dtype, dtype, made.untyped_storage())
            self._storages[storage._cdata, device] = known
        # One conversion for all of a storage, or none.
        if known.was != tensor.dtype and (known.became != known.was or dtype != tensor.dtype):
            raise ValueError("shares a storage with a tensor of another dtype: neither can change")
        return known.made


@dataclass(frozen=True)
class _Move:
    storage: torch.UntypedStorage
    was: torch.dtype
    became: torch.dtype
    made: torch.UntypedStorage
