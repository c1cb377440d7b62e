"""What torch knows of a PyTorch file and this reader does not: ``torch.load(weights_only=True)``.

The core has found the file well formed before, and its pickle imports a name that is none of its
own: a Counter, a quantized or sparse tensor, a class that the user allowed. torch's reader, which
runs none of what it reads but those, makes the values; which of them are wanted, where and how, is
up to this module. Files that are malformed never come here: given one, torch.load may return
garbage without an error.
"""

from __future__ import annotations

import mmap
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from veturboio import _filled, _nested
from veturboio import placement as place
from veturboio._handle import Handle
from veturboio._moved import Moved, Restore, restored
from veturboio._ops import printable, shown
from veturboio._partial import part
from veturboio.errors import ArgumentError, FormatError, UnknownNameError
from veturboio.placement import MapLocation

_CPU = torch.device("cpu")

#: Where torch.load puts storages: on one device, on one for each they were saved from, or where a
#: function says.
At = torch.device | dict[str, str] | Restore

#: What torch.load says of a device that is not there.
_MISSING_DEVICE = re.compile("(Attempting to deserialize object on|don't know how to restore).*")

#: Holds one value until this process is told of a file that only torch.load can read.
_untold = [True]

_ZIP = b"PK\x03\x04"

#: What precedes an entry of an archive; of its fields, the lengths of a name and of extra fields.
_LOCAL_HEADER = struct.Struct("<26xHH")

#: Where the bytes of a storage must begin to be used as they are mapped: at a multiple of the
#: largest element.
_ALIGN = 16

#: What torch.load raises over a file that it cannot read. Anything else is not about the file, such
#: as what a handler of signals raises.
_OF_THE_FILE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

#: What may be among them and is not about the file either.
_OF_THE_MACHINE = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)

#: Characters of torch's own words that are passed on.
_MAX_WORDS = 300


@dataclass
class Wanted:
    """What a load is asked for, as ``load`` says; ``options`` are those of the operators."""

    map_location: MapLocation | None = _CPU
    state_dict: Mapping[str, torch.Tensor] | None = None
    dtype: torch.dtype | None = None
    one_allocation: bool = False
    progress: torch.Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether only some tensors are wanted."""
        return "names" in self.options or "slices" in self.options

    @property
    def is_mapped(self) -> bool:
        """Whether the file had better be mapped: what is read of it is dropped, or not wanted."""
        takes_some = self.is_partial or self.state_dict is not None or self.dtype is not None
        return takes_some or self.options.get("way") == "map"


def load(file: Handle, wanted: Wanted, refused: UnknownNameError) -> Any:
    """Load a file by torch's reader.

    Args:
        file: the very file that was refused, by the descriptor it was read from.
        wanted: what of it, where, and how.
        refused: why the core does not know it.

    Raises:
        UnknownNameError: torch.load refuses it too.
        ArgumentError: what is wanted does not fit what the file holds.
    """
    _warn(f"{refused}; trying torch.load(weights_only=True) instead")
    # Mapped, what is in memory already is not copied.
    reader = _Reader(file, refused, wanted.is_mapped or file.is_in_memory)
    if wanted.state_dict is None:
        return _placed(file, reader, wanted)
    tensors = _nested.named(reader.read(_CPU), file)
    _filled.fill(file, tensors, wanted.state_dict, wanted.progress, wanted.options)
    return dict(wanted.state_dict)


def explained(file: str, refused: UnknownNameError) -> str:
    """Say how such a file would be loaded, and why."""
    return f"{printable(file)}: torch.load(weights_only=True), because {refused.reason}"


def _placed(file: Handle, reader: _Reader, wanted: Wanted) -> Any:
    """What is wanted of the values, where and as it is wanted."""

    def read(at: At) -> Any:
        values = reader.read(at)
        if not wanted.is_partial:
            return values
        names, slices = wanted.options.get("names"), wanted.options.get("slices")
        return part(file, _nested.named(values, file), names, slices)

    at = _location(file, wanted.map_location)
    values = read(_CPU if at is None else at)
    devices = None
    if not isinstance(at, torch.device):
        meant = place.meaning(
            file,
            wanted.map_location,
            lambda: values if wanted.is_partial else _nested.named(values, file),
        )
        if isinstance(meant, dict):
            devices = meant
            if at is not None:  # a tensor has the name of a device
                values = read(_CPU)
    values = _moved(file, values, wanted, devices)
    if wanted.progress is not None:
        wanted.progress.fill_(_byte_len(values))
    return values


def _location(file: str, map_location: MapLocation | None) -> At | None:
    """What torch.load can do about the devices; None if they go by names."""
    if isinstance(map_location, Mapping):
        is_by_location = place.is_by_location(map_location)
        return place.locations(map_location) if is_by_location else None
    if callable(map_location) and not isinstance(map_location, torch.device):
        return map_location if place.is_of_storage(map_location) else None
    return cast("torch.device", place.meaning(file, map_location, list))


def _moved(file: str, values: Any, wanted: Wanted, devices: dict[str, torch.device] | None) -> Any:
    """The values with every tensor on its device, if they go by names, and in its dtype."""
    if devices is None and wanted.dtype is None:
        return values
    for device in set((devices or {}).values()):
        if device.type == "meta":
            text = f"load {printable(file)}: the meta device is for all tensors or none"
            raise ArgumentError(text)
        _check_device(file, device)
    names = _first_names(file, values, devices)
    moved = Moved(wanted.dtype)
    rules = place.Rules(devices or {})

    def move(tensor: torch.Tensor, name: str | None) -> torch.Tensor:
        device = tensor.device
        try:
            if devices is not None and name is not None:
                key = rules.deciding(name)
                if key is None:
                    raise ValueError("map_location names no device for it")
                device = devices[key]
            return moved(tensor, device)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
        tensor_name = "" if name is None else f"tensor {_nested.quoted(name)}: "
        raise ArgumentError(f"load {printable(file)}: {tensor_name}{reason}")

    if wanted.is_partial:
        return {name: move(tensor, name) for name, tensor in values.items()}
    return _nested.replaced(values, lambda tensor: move(tensor, names.get(id(tensor))))


def _first_names(file: str, values: Any, devices: dict[str, torch.device] | None) -> dict[int, str]:
    """The first name of each tensor, by the tensor's id."""
    names: dict[int, str] = {}
    try:
        for name, tensor in _nested.named(values, file).items():
            names.setdefault(id(tensor), name)
    except FormatError as error:
        if devices is not None and _byte_len(values) > 0:
            reason = "its tensors have no names of their own that map_location could mean"
            raise ArgumentError(f"load {printable(file)}: {reason}: {error.reason}") from None
    return names


def _byte_len(values: Any) -> int:
    """Bytes of all tensors, of which none is looked at."""
    found: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        with suppress(RuntimeError, NotImplementedError):  # layouts that cannot tell
            found.append(tensor.numel() * tensor.element_size())
        return tensor

    _nested.replaced(values, count)
    return sum(found)


def _check_device(file: str, device: torch.device) -> None:
    """Say that a device is not there before torch.load is asked for what is to lie on it."""
    try:
        torch.empty(0, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    else:
        return
    raise RuntimeError(f"load {printable(file)}: {reason}")


class _Reader:
    """torch's reader for one file."""

    def __init__(self, file: Handle, refused: UnknownNameError, may_map: bool) -> None:
        self._file = file
        self._refused = refused
        with Path(file.path).open("rb") as opened:
            self._is_zip = opened.read(len(_ZIP)) == _ZIP
        self._may_map = may_map and self._is_zip and _can_be_mapped(file)

    def read(self, at: At) -> Any:
        """Make the file's values, with their storages on a device or where a function puts them.

        Raises:
            UnknownNameError: torch.load refuses the file.
            RuntimeError: there is no such device.
        """
        if isinstance(at, dict):
            for device in at.values():
                _check_device(self._file, torch.device(device))
        if not isinstance(at, torch.device):
            return self._load(at, mapped=self._may_map)
        if at.type == "meta":
            if self._is_zip:
                return self._load(at, mapped=False)
            moved = Moved(None)  # torch.load cannot do that with the old format
            values = self._load(_CPU, mapped=False)
            return _nested.replaced(values, lambda tensor: moved(tensor, at))
        _check_device(self._file, at)
        return self._load(at, mapped=self._may_map)

    def _load(self, at: At, mapped: bool) -> Any:
        raised: list[BaseException] = []

        def put(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
            try:
                return restored(cast("Restore", at), storage, location)
            except BaseException as error:  # the caller's own, which torch.load must not reword
                raised.append(error)
                raise

        # Tensors that wrap others, such as a DTensor, do not take a function.
        where: Any = at if isinstance(at, (torch.device, dict)) else put
        try:
            return torch.load(self._file.path, map_location=where, weights_only=True, mmap=mapped)
        except _OF_THE_MACHINE:
            raise
        except _OF_THE_FILE as error:
            if raised:
                raise
            missing = _MISSING_DEVICE.match(str(error))
            words = _words(error)
        finally:
            raised.clear()
        if missing is not None:
            raise RuntimeError(f"load {printable(self._file)}: {missing[0]}")
        text = f"{self._refused}; torch.load refuses it too{words}"
        reason = f"{self._refused.reason}; torch.load refuses it too{words}"
        raise UnknownNameError(text, shown(self._file), None, reason)


def _can_be_mapped(file: Handle) -> bool:
    """Whether the file has every storage as it is, and a map of it is the load's own."""
    if torch.serialization.get_default_mmap_options() != mmap.MAP_PRIVATE:
        return False
    try:
        with Path(file.path).open("rb") as opened, zipfile.ZipFile(opened) as archive:
            entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
            return all(
                entry.compress_type == zipfile.ZIP_STORED
                and (entry.file_size == 0 or _start(opened, entry) % _ALIGN == 0)
                for entry in entries
            )
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError):
        return False  # torch's reader is of another mind, and reads entry by entry


def _start(opened: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind its header, name and extra fields."""
    opened.seek(entry.header_offset)
    header = opened.read(_LOCAL_HEADER.size)
    name_len, extra_len = _LOCAL_HEADER.unpack(header)
    return entry.header_offset + len(header) + int(name_len) + int(extra_len)


def _words(error: Exception) -> str:
    """What torch.load says, without its advice to run the pickle."""
    text = str(error)
    unknown = re.search(r"GLOBAL (\S+) was not an allowed global", text)
    if unknown is not None:
        name = _in_one_line(unknown[1])
        return (
            f", because it does not know {name} either: torch.serialization.add_safe_globals("
            f"[{name}]) allows a class that you trust, and skip_unknown=True loads the rest"
        )
    said = re.search(r"(``.*`` must be imported to load [^\n]*)", text)
    said = said or re.search(r"WeightsUnpickler error:\s*([^\n]*)", text)
    line = said[1] if said is not None else text.strip().partition("\n")[0]
    if "TorchScript archive" in text:
        line = "it is a TorchScript archive"
    elif "weights_only" in line or "Weights only load failed" in line:
        blocked = re.search(r"(\S+ whose module \S+ is blocked)", text)
        line = blocked[1] if blocked is not None else type(error).__name__
    return f": {_in_one_line(line)}; skip_unknown=True loads what is known"


def _in_one_line(text: str) -> str:
    """Words that may quote a file, on one line and of bounded length."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MAX_WORDS])


def _warn(text: str) -> None:
    try:
        # In one step and without a lock, which the handler of a signal would wait for in vain.
        _untold.pop()
    except IndexError:
        return
    package = str(Path(__file__).parent)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
