"""Finds the state_dict in what a checkpoint holds, and tells what lies beside it.

A checkpoint of a training run keeps its state_dict among other things::

    {"epoch": 3, "state_dict": {"weight": ..., "bias": ...}, "optimizer": {"state": {0: ...}}}

A dict is taken for a state_dict if it has weights as values: tensors of more than one element that
no key says to be something else. The outermost one is chosen. Where several lie equally deep, or
the choice would leave the larger part of the weights out, the user has to say which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from veturboio._contents import Counter, Group, Keys, flattened, groups, is_tensor, items
from veturboio._standins import Attributes, ModuleState, OddTensor, type_name

#: Names that hold a state_dict, and no part of one: the tensors beside them are no weights.
_USUAL_NAMES = ("state_dict", "model_state_dict", "model")

#: Characters of all names, at most, where every tensor is named by all keys that lead to it: a
#: safetensors header can have no more.
_MAX_NAMES = 100_000_000

#: Names that a message lists, at most.
_MAX_LISTED = 5

#: How to convert a checkpoint without having to choose.
FLATTEN = "--flatten keeps all tensors, named by the keys that lead to them"


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
        hides_tensors: whether there are tensors of more than one element in ``others``.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    others: list[str]
    beside: list[str]
    hides_tensors: bool = False


def choose(checkpoint: object, key: str | None, flatten: bool = False) -> Choice:
    """Choose the state_dict of a checkpoint.

    Args:
        checkpoint: what the file holds.
        key: the keys that lead to the state_dict, joined by dots, the empty string for the
            checkpoint itself; None finds it.
        flatten: take all tensors at ``key``, or in the checkpoint, however deep they lie.

    Raises:
        ChoiceError: it is not there, or cannot be told from others, or has no tensors where the
            checkpoint has some.
    """
    if flatten:
        return _flatten(checkpoint, () if key is None else _follow(checkpoint, key))
    keys = _find(checkpoint) if key is None else _follow(checkpoint, key)
    chosen = _at(checkpoint, keys)
    if not isinstance(chosen, Mapping):
        raise ChoiceError(
            f"holds no dict of tensors at {key!r} but a value of type {type_name(chosen)}"
        )
    unnamed = [repr(name) for name, value in chosen.items() if _is_unnamed(name, value)]
    if unnamed:
        named = f"holds tensors whose names are no strings: {listed(unnamed)}"
        raise ChoiceError(f"{named}; {FLATTEN}")
    _refuse_odd(((*keys, name), value) for name, value in chosen.items())
    tensors = {name: value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    if key is not None:
        _refuse_without_weights(checkpoint, key, tensors)
    counter = Counter([chosen, *tensors.values()])
    others, hidden = _described(
        counter, (((*keys, name), chosen[name]) for name in chosen if name not in tensors)
    )
    beside = _beside(counter, checkpoint, keys)
    if isinstance(chosen, ModuleState):
        for name, value in chosen.left_out.items():
            tensors_in, _ = counter.count(value)
            if tensors_in:
                beside.append(_shown((*keys, name), value, tensors_in))
        beside.append(f"the code and the attributes of the module {chosen.class_name}")
    return Choice(_joined(keys), tensors, others, beside, hidden > 0)


def listed(names: list[str], count: int | None = None) -> str:
    """Join names for a message, the first few of ``count`` or of all."""
    count = len(names) if count is None else count
    more = f" and {count - _MAX_LISTED} more" if count > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _find(checkpoint: object) -> Keys:
    found = groups(checkpoint)
    dicts = [group for group in found if group.is_dict]
    weights = [group for group in dicts if group.holds_weights and not group.is_object]
    if not weights:
        # Scalars alone, or what an optimizer keeps: only if there is nothing else.
        if len(found) == 1 and dicts:
            return dicts[0].keys
        if dicts:
            raise ChoiceError(f"holds {_places(found)}")
        is_dict = isinstance(checkpoint, Mapping) and not isinstance(checkpoint, Attributes)
        if found or not is_dict or checkpoint:
            raise ChoiceError(_none(checkpoint, found))
        return ()
    outermost = [group for group in weights if group.depth == weights[0].depth]
    inner = [group for group in weights if group.depth == 1]
    if outermost[0].depth == 0 and any(group.place.key in _USUAL_NAMES for group in inner):
        outermost = inner
    if len(outermost) > 1:
        raise ChoiceError(f"holds {_places(outermost)}")
    chosen = outermost[0]
    rivals = [group for group in found if group.holds_weights and _rivals(group, chosen)]
    if rivals:
        raise ChoiceError(f"holds {_places([chosen, *rivals])}")
    return chosen.keys


def _rivals(group: Group, chosen: Group) -> bool:
    """Whether it cannot be told if another group of weights is the state_dict."""
    if group is chosen or chosen.place.key in _USUAL_NAMES:
        return False
    if chosen.depth == 0 and not chosen.has_parameters and group.is_dict and not group.is_object:
        return True
    return group.outweighs(chosen)


def _refuse_odd(values: Iterable[tuple[Keys, object]]) -> None:
    odd = [_shown(keys, value) for keys, value in values if isinstance(value, OddTensor)]
    if odd:
        raise ChoiceError(
            f"holds tensors that cannot be read beside unknown classes: {listed(odd)}"
        )


def _refuse_without_weights(
    checkpoint: object, key: str, tensors: Mapping[str, torch.Tensor]
) -> None:
    if any(tensor.numel() > 1 for tensor in tensors.values()):
        return
    found = groups(checkpoint)
    weights = [group for group in found if group.holds_weights] or ([] if tensors else found)
    if weights:
        what = "only tensors of one element" if tensors else "no tensors"
        raise ChoiceError(f"holds {what} at {key!r}, and elsewhere {_places(weights)}")
    if not tensors:
        raise ChoiceError(f"holds no tensors at {key!r} but {_held(checkpoint)}")


def _places(found: list[Group]) -> str:
    """What a checkpoint holds of tensors, and how to choose among it."""
    first = [
        f"{_joined(group.keys)!r} ({_counted(group.count)})" for group in found[: _MAX_LISTED + 1]
    ]
    names = listed(first, len(found))
    if not all(group.is_dict for group in found):
        return f"tensors in {names}; --key chooses a dict of them, {FLATTEN}"
    dicts = "several dicts of tensors" if len(found) > 1 else "a dict of tensors"
    return f"{dicts}, --key chooses one: {names}; {FLATTEN}"


def _none(checkpoint: object, found: list[Group]) -> str:
    held = _held(checkpoint) if isinstance(checkpoint, Mapping) else ""
    hint = f"; {FLATTEN}" if found else ""
    return (
        f"holds no dict of tensors but {held or 'a value of type ' + type_name(checkpoint)}{hint}"
    )


def _held(checkpoint: object) -> str:
    return listed([_shown((key,), value) for key, value in items(checkpoint)])


def _flatten(checkpoint: object, keys: Keys) -> Choice:
    chosen = _at(checkpoint, keys)
    found, others = flattened(chosen)
    _refuse_odd((keys + place.keys(), value) for place, value in found if not _is_made(value))
    tensors: dict[str, torch.Tensor] = {}
    length = 0
    for place, tensor in found:
        if place.above is None:
            raise ChoiceError("holds a single tensor, which has no name")
        length += place.depth
        name = _joined(place.keys()) if length < _MAX_NAMES else ""
        length += len(name)
        if length >= _MAX_NAMES:
            raise ChoiceError("holds tensors in more containers than their names have a place for")
        if tensors.setdefault(name, tensor) is not tensor:
            raise ChoiceError(f"holds two tensors whose keys are both joined to {name!r}")
    if not tensors:
        raise ChoiceError("holds no tensors")
    counter = Counter([chosen, *tensors.values()])
    described, _ = _described(counter, ((keys + place.keys(), value) for place, value in others))
    return Choice(_joined(keys), tensors, described, _beside(counter, checkpoint, keys))


def _follow(checkpoint: object, key: str) -> Keys:
    """Take ``a.b`` for the key ``a.b``, or else for ``b`` in ``a``; the empty one for all."""
    waiting: list[tuple[Keys, Any, str]] = [((), checkpoint, key)]
    while waiting:
        keys, value, rest = waiting.pop()
        children = {str(name): name for name, _ in items(value) if not isinstance(name, str)}
        children |= {name: name for name, _ in items(value) if isinstance(name, str)}
        if rest in children:
            return (*keys, children[rest])
        words = rest.split(".")
        for count in range(1, len(words)):
            first = ".".join(words[:count])
            if first in children:
                step = children[first]
                below = _at(value, (step,))
                waiting.append(((*keys, step), below, ".".join(words[count:])))
    if key == "":
        return ()
    names = [repr(str(name)) for name, value in items(checkpoint) if [*items(value)]]
    there = f"the dicts in it are {listed(names)}" if names else "there is no dict in it"
    raise ChoiceError(f"has no key {key!r}: {there}")


def _at(checkpoint: object, keys: Keys) -> Any:
    value: Any = checkpoint
    for key in keys:
        value = value[key] if isinstance(value, Mapping) else [*value][key]
    return value


def _beside(counter: Counter, checkpoint: object, keys: Keys) -> list[str]:
    """What the containers around the chosen one hold beside it."""
    beside: list[str] = []
    value = checkpoint
    for depth, step in enumerate(keys):
        others = (((*keys[:depth], key), other) for key, other in items(value) if key != step)
        beside += _described(counter, others)[0]
        value = _at(value, (step,))
    return beside


def _described(counter: Counter, values: Iterable[tuple[Keys, object]]) -> tuple[list[str], int]:
    """Name values with the tensors in them, and count those of more than one element."""
    texts = []
    hidden = 0
    for keys, value in values:
        tensors, large = counter.count(value)
        texts.append(_shown(keys, value, tensors))
        hidden += large
    return texts, hidden


def _is_made(value: object) -> bool:
    return not isinstance(value, OddTensor)


def _is_unnamed(name: object, value: object) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(name, str)


def _counted(tensors: int) -> str:
    return f"{tensors} tensor" if tensors == 1 else f"{tensors} tensors"


def _joined(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


def _shown(keys: Keys, value: object, tensors: int = 0) -> str:
    name = repr(keys[0]) if len(keys) == 1 else repr(_joined(keys))
    within = f" with {_counted(tensors)}" if tensors and not is_tensor(value) else ""
    return f"{name} ({type_name(value)}){within}"
