"""``map_location``: which device a tensor is wanted on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from veturboio import _checkpoint, _nested, _ops
from veturboio._checkpoint import Structure
from veturboio._moved import Restore, Restored
from veturboio.errors import FormatError, UnknownNameError

Device = str | int | torch.device

#: One device for all; devices by name, or by what names begin with up to a dot; a function of a
#: tensor's name; or, as torch.load has them, devices by the location that a tensor was saved from,
#: and a function of a storage and its location.
MapLocation = Device | Mapping[str, Device] | Callable[..., Any]


def as_options(path: str, map_location: MapLocation | None, **described: Any) -> dict[str, Any]:
    """Return the arguments of ``_ops.load``.

    A function of a name is asked for every tensor of the file, whose header is read for that, as
    ``described``. What goes by locations needs the header too, and tensors that it has to move go
    through host memory. What was decided by a header is good for the version of the file that had
    it, and the operator refuses any other with ``ESTALE``.

    Raises:
        TypeError, RuntimeError: something is no device.
    """
    if isinstance(map_location, (str, int, torch.device)):
        return {"map_location": _device(map_location)}
    version: dict[str, str] = {}

    def names() -> list[str]:
        found, version["version"] = _ops.names(path, **described)
        return found

    meant = meaning(path, map_location, names)
    if isinstance(meant, torch.device):
        return {"map_location": meant, **version}
    if isinstance(meant, dict):
        return {"devices": meant, **version}
    # The values of a PyTorch file as a whole come with the locations of its tensors.
    is_whole = not {"names", "slices"} & described.keys()
    if is_whole and not isinstance(map_location, Mapping):
        return {"map_location": torch.device("cpu"), "restore": _Restoring(meant, {})}
    header = {name: described[name] for name in described.keys() - {"names", "slices"}}
    meta = torch.device("meta")
    _, tensors, structure = _ops.described(path, map_location=meta, **header)
    saved_from = structure.locations()
    if isinstance(map_location, Mapping):
        every = set(saved_from) or {"cpu"}
        devices = {_device(map_location.get(location, location)) for location in every}
        if len(devices) == 1:
            return {"map_location": devices.pop(), **version}
    by_name = {} if is_whole else _by_name(path, tensors, structure)
    restoring = _Restoring(meant, by_name)
    return {"map_location": torch.device("cpu"), "restore": restoring, **version}


def needs_header(map_location: MapLocation | None) -> bool:
    """Whether ``as_options`` may read the file's header before the load does."""
    if map_location is None or isinstance(map_location, (str, int, torch.device)):
        return False
    if isinstance(map_location, Mapping):
        return is_by_location(map_location)
    return callable(map_location)


def meaning(
    path: str, map_location: MapLocation | None, names: Callable[[], Iterable[str]]
) -> torch.device | dict[str, torch.device] | Restore:
    """Say what is meant: one device, devices by name, or what torch.load does with a storage.

    A dict whose keys are all devices is one of locations, unless a tensor's name is one of them, or
    begins with one and a dot. A function that takes two arguments is torch's.

    Args:
        path: what messages name.
        map_location: as ``load`` takes it.
        names: tells the names of the tensors that are loaded; asked only if that matters.
    """
    if map_location is None:
        return torch.device("cpu")
    if isinstance(map_location, Mapping):
        if is_by_location(map_location) and not _fits_names(map_location, names):
            return by_location(map_location)
        return {_key(path, key): _device(map_location[key]) for key in map_location}
    if callable(map_location) and not isinstance(map_location, torch.device):
        if is_of_storage(map_location):
            return map_location
        return {name: _device(map_location(name)) for name in names()}
    return _device(map_location)


def is_by_location(map_location: Mapping[str, Device]) -> bool:
    """Whether every key is the name of a device."""
    return bool(map_location) and all(_is_location(key) for key in map_location)


def by_location(map_location: Mapping[str, Device]) -> Restore:
    """What torch.load does with a dict: locations that it does not have stay what they are."""
    devices = locations(map_location)
    return lambda _storage, location: devices.get(location, location)


def locations(map_location: Mapping[str, Device]) -> dict[str, str]:
    """The same dict as torch.load takes it."""
    return {location: str(_device(map_location[location])) for location in map_location}


def is_of_storage(function: Callable[..., Any]) -> bool:
    """Whether a function takes a storage and its location, rather than a tensor's name.

    One that could take either is a function of a name, except ``lambda *_: ...``, which names no
    argument.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin that does not tell
        return False
    if not _takes(signature, 2):
        return False
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    named = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return not _takes(signature, 1) or not named & set(kinds)


class Rules:
    """Which of some keys decides for a name: the longest that it is, or begins with up to a dot.

    A look-up takes one pass over the name, however many dots it has. The key ``""`` decides where
    no other does.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._steps: dict[tuple[int, str], int] = {}
        self._keys: list[str | None] = [None]
        self._otherwise: str | None = None
        for key in keys:
            if not key:
                self._otherwise = key
                continue
            node = 0
            for part in key.split("."):
                node = self._steps.setdefault((node, part), len(self._keys))
                if node == len(self._keys):
                    self._keys.append(None)
            self._keys[node] = key

    def deciding(self, name: str) -> str | None:
        """The key that decides for ``name``, if there is one."""
        found, node = self._otherwise, 0
        for part in name.split("."):
            step = self._steps.get((node, part))
            if step is None:
                break
            node = step
            found = found if self._keys[node] is None else self._keys[node]
        return found


class _Restoring:
    """Has torch's function put the tensors of a load where they belong.

    Args:
        restore: the function.
        by_name: where each tensor was saved from, unless the values of the file tell that.
    """

    def __init__(self, restore: Restore, by_name: Mapping[str, str]) -> None:
        self._restored = Restored(restore)
        self._by_name = by_name

    def __call__(
        self, named: Mapping[str, torch.Tensor], tensors: list[torch.Tensor], structure: Structure
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Return the tensors by name and by position over other storages."""
        made: dict[int, torch.Tensor] = {}
        for name, tensor in named.items():
            if id(tensor) not in made:
                made[id(tensor)] = self._restored(tensor, self._by_name.get(name, "cpu"))
        saved_from = structure.locations()
        return {name: made[id(tensor)] for name, tensor in named.items()}, [
            self._restored(*pair) for pair in zip(tensors, saved_from, strict=True)
        ]


def _by_name(path: str, tensors: list[torch.Tensor], structure: Structure) -> dict[str, str]:
    """Tell where each tensor was saved from; those of other files than PyTorch's are left out."""
    if not structure:
        return {}
    by_storage = {
        tensor.untyped_storage()._cdata: location
        for tensor, location in zip(tensors, structure.locations(), strict=True)
    }
    names = _nested.named(_checkpoint.build(structure, tensors), path)
    return {name: by_storage[names[name].untyped_storage()._cdata] for name in names}


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _is_location(key: object) -> bool:
    if not isinstance(key, str):
        return False
    try:
        torch.device(key)
    except RuntimeError:
        return False
    return True


def _fits_names(map_location: Mapping[str, Device], names: Callable[[], Iterable[str]]) -> bool:
    try:
        rules = Rules(map_location)
        return any(rules.deciding(name) is not None for name in names())
    except UnknownNameError:
        raise
    except FormatError:
        return False  # its tensors have no names; what else is wrong with it the load says


def _device(device: Device | bytes | None) -> torch.device:
    if isinstance(device, bytes):  # as torch.load takes them
        device = device.decode()
    meant = torch.device("cpu" if device is None else device)
    if meant.type == "cpu" and meant.index not in (None, 0):
        raise RuntimeError(f"map_location names {meant}, and there is one cpu")
    return meant


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"load {_ops.printable(path)}: name {key!r} in map_location is not a str")
    return key
