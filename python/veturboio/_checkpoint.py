"""Builds the values of a PyTorch file, as ``torch.load`` would give them.

The core reads the pickle without running it and describes what it would have built: a node for
each value, told by one letter and the ids of the nodes it holds. Two places that held one object
hold one object again, and a list may hold itself.

======  ==============================  ======  ==============================
letter  value                           letter  value
======  ==============================  ======  ==============================
N       None                            d       dict, pairs
b i f   bool, int, float                o       OrderedDict, pairs, attributes
I       int over 64 bits, hexadecimal   S F     set, frozenset
c       complex                         z       torch.Size
s       str                             D V     torch.dtype, torch.device
B A     bytes, bytearray, hexadecimal   T       tensor, by position
l t     list, tuple                     P       Parameter over a node
=       the very object of a node
======  ==============================  ======  ==============================
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

_LEAVES: dict[str, Callable[..., Any]] = {
    "N": lambda: None,
    "b": lambda value: value,
    "i": lambda value: value,
    "f": float,
    "I": lambda text: int.from_bytes(bytes.fromhex(text), "little", signed=True),
    "c": lambda real, imaginary: complex(float(real), float(imaginary)),
    "s": lambda text: text,
    "B": bytes.fromhex,
    "A": bytearray.fromhex,
    "z": torch.Size,
    "D": lambda name: getattr(torch, name),
    "V": lambda kind, index: torch.device(kind) if index is None else torch.device(kind, index),
}

#: Containers that are made empty and filled once everything is made.
_FILLED: dict[str, Callable[[], Any]] = {"l": list, "d": dict, "o": OrderedDict, "S": set}


def build(structure: str, tensors: Sequence[torch.Tensor]) -> Any:
    """Build the values that the core described.

    Args:
        structure: the core's description, JSON.
        tensors: the file's tensors, by position.

    Raises:
        TypeError, ValueError, RuntimeError: a value cannot be what the file wants it to be, such
            as a dict whose key is a list.
    """
    described = json.loads(structure)
    made: dict[int, Any] = {}
    containers: list[list[Any]] = []
    holders: dict[int, list[Any]] = {}
    for node in described["nodes"]:
        node_id, kind = node[:2]
        if kind == "T":
            made[node_id] = tensors[node[2]]
        elif kind in _LEAVES:
            made[node_id] = _LEAVES[kind](*node[2:])
        elif kind in _FILLED:
            made[node_id] = _FILLED[kind]()
            containers.append(node)
        else:
            holders[node_id] = node[1:]
    for node_id in holders:
        _make(node_id, holders, made)
    for node_id, kind, items, *_ in containers:
        _fill(made[node_id], kind, items, made)
    for node_id, kind, _, *attributes in containers:
        if kind == "o" and attributes[0] is not None:
            # A module's state_dict keeps the versions of its modules there, as `_metadata`.
            made[node_id].__dict__.update(made[attributes[0]])
    return made[described["root"]]


def _make(wanted: int, holders: dict[int, list[Any]], made: dict[int, Any]) -> None:
    """Make a value that cannot be made before what it holds, and so that first."""
    waiting = [wanted]
    while waiting:
        node_id = waiting[-1]
        if node_id in made:
            waiting.pop()
            continue
        kind, *rest = holders[node_id]
        held = rest[0] if kind in "tF" else [rest[0]]
        missing = [child for child in held if child not in made]
        if missing:
            waiting.extend(missing)
            continue
        if kind == "t":
            made[node_id] = tuple(made[child] for child in held)
        elif kind == "F":
            made[node_id] = frozenset(made[child] for child in held)
        elif kind == "P":
            made[node_id] = torch.nn.Parameter(made[held[0]], rest[1])
        else:
            made[node_id] = made[held[0]]


def _fill(container: Any, kind: str, items: list[Any], made: dict[int, Any]) -> None:
    if kind == "l":
        container.extend(made[item] for item in items)
    elif kind == "S":
        container.update(made[item] for item in items)
    else:
        for key, value in items:
            container[made[key]] = made[value]
