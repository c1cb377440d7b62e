"""``map_location``: which device a tensor is wanted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from veturboio import _ops

Device = str | int | torch.device

#: One device for all; devices by name, or by what names begin with up to a dot; or a function of a
#: tensor's name.
MapLocation = Device | Mapping[str, Device] | Callable[[str], Device | None]


def as_options(path: str, map_location: MapLocation | None, **described: Any) -> dict[str, Any]:
    """Return the arguments of the operator.

    A function is asked for every tensor of the file, whose header is read for that, as
    ``described``. What it says is good for the version of the file that had these tensors, and the
    operator refuses any other with ``ESTALE``.

    Raises:
        TypeError, RuntimeError: something is no device.
    """
    if map_location is None:
        return {"map_location": torch.device("cpu")}
    if isinstance(map_location, Mapping):
        return {"devices": {_key(path, key): _device(map_location[key]) for key in map_location}}
    if callable(map_location) and not isinstance(map_location, torch.device):
        names, version = _ops.names(path, **described)
        devices = {name: _device(map_location(name)) for name in names}
        return {"devices": devices, "version": version}
    return {"map_location": _device(map_location)}


def _device(device: Device | None) -> torch.device:
    return torch.device("cpu" if device is None else device)


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"load {_ops.printable(path)}: name {key!r} in map_location is not a str")
    return key
