"""The tensors of nested values: by their names, and how to put others in their places.

The names are those that the core gives to the tensors of a PyTorch file: the keys and positions
that lead to a tensor, joined by dots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from veturboio._ops import printable, shown
from veturboio.errors import FormatError
from veturboio.unknown import Unknown

#: Values entered on the way, for each there is and for any file at all: a file can hold one list a
#: thousand times over, and lists of such lists.
_ENTRIES_A_VALUE = 16
_FREE_ENTRIES = 1 << 20

#: The deepest nesting whose names are joined.
_MAX_DEPTH = 1000

#: Integers beyond are no part of a name.
_INT_BITS = 63


def named(values: object, file: str) -> dict[str, torch.Tensor]:
    """Tell every tensor by its name, in the order in which the values hold them.

    What is no tensor is left out, and so is what only a set, an attribute or a key that is neither
    str nor int leads to.

    Raises:
        FormatError: the values are one bare tensor, two tensors have one name, or containers hold
            themselves or one another without end.
    """
    if isinstance(values, torch.Tensor):
        raise _refused(file, None, "file holds one tensor without a name")
    found: dict[str, torch.Tensor] = {}
    entries, allowed = 0, _FREE_ENTRIES
    seen = {id(values)}
    way = [(id(values), _children(None, values))]
    on_the_way = {id(values)}
    while way:
        name, child = next(way[-1][1], (None, None))
        if name is None:
            on_the_way.discard(way.pop()[0])
            continue
        if isinstance(child, torch.Tensor):
            if name in found:
                reason = "two tensors have this name once their keys are joined"
                raise _refused(file, name, reason)
            found[name] = child
            continue
        if not isinstance(child, (Mapping, list, tuple, Unknown)):
            continue
        if id(child) in on_the_way:
            raise _refused(file, None, "a container holds itself")
        size = 1 + (len(list(child.children())) if isinstance(child, Unknown) else len(child))
        entries += size
        if id(child) not in seen:
            seen.add(id(child))
            allowed += _ENTRIES_A_VALUE * size
        if len(way) > _MAX_DEPTH or entries > allowed:
            raise _refused(file, None, "values are nested too much to be named")
        on_the_way.add(id(child))
        way.append((id(child), _children(name, child)))
    return found


def quoted(name: str) -> str:
    """A tensor's name as messages show it: in one line that every encoding of UTF-8 can write."""
    return json.dumps(name[:1000], ensure_ascii=False).encode(errors="backslashreplace").decode()


def _refused(file: str, name: str | None, reason: str) -> FormatError:
    tensor = "" if name is None else f"tensor {quoted(name)}: "
    text = f"read {printable(file)}: {tensor}{reason}"
    return FormatError(text, shown(file), name, reason)


def _children(name: str | None, value: object) -> Iterator[tuple[str, Any]]:
    prefix = "" if name is None else f"{name}."
    if isinstance(value, (Mapping, Unknown)):
        for key, child in value.items() if isinstance(value, Mapping) else value.children():
            if isinstance(key, str):
                yield prefix + key, child
            elif _is_number(key):
                yield f"{prefix}{key}", child
    elif isinstance(value, (list, tuple)):
        for at, child in enumerate(value):
            yield f"{prefix}{at}", child


def _is_number(key: object) -> bool:
    is_int = isinstance(key, int) and not isinstance(key, bool)
    return is_int and -(1 << _INT_BITS) <= key < 1 << _INT_BITS  # type: ignore[operator]


def replaced(values: Any, new: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Put another tensor in the place of each, wherever it is held.

    Containers that can change do; tuples and frozen sets that hold a tensor are made anew. What
    was one object is one object again.

    Args:
        values: what was just loaded; nobody else holds it.
        new: what comes in place of a tensor, asked once for each tensor.

    Returns:
        The values, or what stands in their place.
    """
    made: dict[int, Any] = {}
    kept: list[Any] = []  # alive, so that no id is used twice
    waiting: list[tuple[Any, bool]] = [(values, False)]
    while waiting:
        value, is_ready = waiting.pop()
        if is_ready:
            made[id(value)] = _rebuilt(value, made)
            continue
        if id(value) in made or not _may_hold(value):
            continue
        kept.append(value)
        if isinstance(value, torch.Tensor):
            made[id(value)] = new(value)
            kept.append(made[id(value)])
            continue
        if not isinstance(value, (tuple, frozenset)):
            made[id(value)] = value  # it may hold itself
        waiting.append((value, True))
        waiting.extend((part, False) for part in reversed(_parts(value)))
    return made.get(id(values), values)


_LEAVES = (str, int, float, complex, bytes, bytearray, type(None), torch.dtype, torch.device)


def _may_hold(value: object) -> bool:
    return not isinstance(value, (*_LEAVES, type, torch.Size))


def _parts(value: Any) -> list[Any]:
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += value.keys()
        parts += value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += value
    parts += getattr(value, "__dict__", {}).values()
    return [part for part in parts if _may_hold(part)]


def _rebuilt(value: Any, made: dict[int, Any]) -> Any:
    """The value with what was made in place of its parts."""

    def now(part: Any) -> Any:
        return made.get(id(part), part)

    if isinstance(value, dict):
        if any(now(key) is not key for key in value):
            items = [(now(key), now(part)) for key, part in value.items()]
            value.clear()
            value.update(items)
        else:
            for key, part in value.items():
                if now(part) is not part:
                    value[key] = now(part)
    elif isinstance(value, list):
        value[:] = [now(part) for part in value]
    elif isinstance(value, set):
        items = [now(part) for part in value]
        value.clear()
        value.update(items)
    elif isinstance(value, (tuple, frozenset)):
        items = [now(part) for part in value]
        if all(one is other for one, other in zip(items, value, strict=True)):
            return value
        kind: Any = type(value)
        return kind._make(items) if hasattr(kind, "_make") else kind(items)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for name, part in attributes.items():
            if now(part) is not part:
                attributes[name] = now(part)
    return value
