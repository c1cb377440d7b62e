"""Finds the state_dict in what a checkpoint holds, and tells what lies beside it.

A checkpoint of a training run keeps its state_dict among other things::

    {"epoch": 3, "state_dict": {"weight": ..., "bias": ...}, "optimizer": {"state": {0: ...}}}

A dict is taken for a state_dict if it has a tensor as a value. The outermost one is chosen;
where several lie equally deep, somebody has to say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Names that hold a state_dict, and no part of one: the tensors beside them are no weights.
_USUAL_NAMES = ("state_dict", "model_state_dict", "model")

#: Names that a message lists, at most.
_MAX_LISTED = 5

#: A dict by its name, outermost key first.
_Named = tuple[tuple[str, ...], Mapping[Any, Any]]


class ChoiceError(Exception):
    """A checkpoint has no state_dict, or several; the text says which."""


@dataclass(frozen=True)
class Choice:
    """A state_dict out of a checkpoint.

    Attributes:
        name: the keys that lead to it, joined by dots; empty for the checkpoint itself.
        tensors: what it holds, by name.
        others: what it holds that is no tensor, as ``'name' (type)``.
        beside: what the checkpoint holds beside it, as ``'name' (type)``.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    others: list[str]
    beside: list[str]


def choose(checkpoint: object, key: str | None) -> Choice:
    """Choose the state_dict of a checkpoint.

    Args:
        checkpoint: what the file holds.
        key: the keys that lead to the state_dict, joined by dots; None finds it.

    Raises:
        ChoiceError: it is not there, or cannot be told from others.
    """
    if not isinstance(checkpoint, Mapping):
        raise ChoiceError(f"holds no dict of tensors but a value of type {_type(checkpoint)}")
    keys = _find(checkpoint) if key is None else _follow(checkpoint, key)
    beside = []
    chosen: Any = checkpoint
    for depth, step in enumerate(keys):
        above = [*keys[:depth]]
        beside += [_shown((*above, other), chosen[other]) for other in chosen if other != step]
        chosen = chosen[step]
    if not isinstance(chosen, Mapping):
        raise ChoiceError(
            f"holds no dict of tensors at {key!r} but a value of type {_type(chosen)}"
        )
    unnamed = [repr(name) for name, value in chosen.items() if _is_unnamed(name, value)]
    if unnamed:
        raise ChoiceError(f"holds tensors whose names are no strings: {listed(unnamed)}")
    tensors = {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    others = [_shown((*keys, name), chosen[name]) for name in chosen if name not in tensors]
    return Choice(".".join(keys), tensors, others, beside)


def listed(names: list[str]) -> str:
    """Join names for a message, the first few of them."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _find(checkpoint: Mapping[Any, Any]) -> tuple[str, ...]:
    level: list[_Named] = [((), checkpoint)]
    seen = {id(checkpoint)}  # a dict may hold itself, or another one twice
    while level:
        inner: list[_Named] = []
        for keys, value in (child for named in level for child in _dicts_in(named)):
            if id(value) not in seen:
                seen.add(id(value))
                inner.append((keys, value))
        found = [keys for keys, value in level if _holds_tensors(value)]
        nested = [keys for keys, value in inner if _holds_tensors(value)]
        if level[0][0] == () and any(keys[-1] in _USUAL_NAMES for keys in nested):
            found = nested
        if len(found) > 1:
            names = listed([repr(".".join(keys)) for keys in found])
            raise ChoiceError(f"holds several dicts of tensors, --key chooses one: {names}")
        if found:
            return found[0]
        level = inner
    if checkpoint:
        held = [_shown((key,), value) for key, value in checkpoint.items()]
        raise ChoiceError(f"holds no dict of tensors but {listed(held)}")
    return ()


def _follow(checkpoint: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    """Take ``a.b`` for the key ``a.b``, or else for ``b`` in ``a``."""
    waiting: list[tuple[tuple[str, ...], Any, str]] = [((), checkpoint, key)]
    while waiting:
        keys, value, rest = waiting.pop()
        if not isinstance(value, Mapping):
            continue
        if rest in value:
            return (*keys, rest)
        words = rest.split(".")
        for count in range(1, len(words)):
            first = ".".join(words[:count])
            if first in value:
                waiting.append(((*keys, first), value[first], ".".join(words[count:])))
    names = [repr(".".join(keys)) for keys, _ in _dicts_in(((), checkpoint))]
    there = f"the dicts in it are {listed(names)}" if names else "there is no dict in it"
    raise ChoiceError(f"has no key {key!r}: {there}")


def _dicts_in(named: _Named) -> Iterator[_Named]:
    keys, value = named
    for key, child in value.items():
        if isinstance(key, str) and isinstance(child, Mapping):
            yield (*keys, key), child


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(child, torch.Tensor) for child in value.values())


def _is_unnamed(name: object, value: object) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(name, str)


def _shown(keys: tuple[Any, ...], value: object) -> str:
    name = repr(keys[0]) if len(keys) == 1 else repr(".".join(str(key) for key in keys))
    return f"{name} ({_type(value)})"


def _type(value: object) -> str:
    return type(value).__qualname__
