"""Makes plain dicts of what stands in a checkpoint for objects of unknown classes.

``load(file, skip_unknown=True)`` puts an ``Unknown`` where the file has an object of a class that
is not known: nothing of it was run, and all that it would have been made of is there. A conversion
looks for tensors in it as in any dict. A module that was pickled whole has the parameters, buffers
and submodules of its state_dict among its attributes, and becomes that state_dict.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from veturboio.unknown import Unknown

#: Bytes that the tensors of a state_dict may take in a safetensors header, which can have no more.
#: A module that stands in many places is looked into at each, as ``state_dict`` does, so that a few
#: of them can stand for any number.
MAX_HEADER_LEN = 100_000_000

#: Bytes of a header that a tensor takes beside its name, at least.
_ENTRY_LEN = 50

#: What the names of the functions begin with that make tensors other than plain ones.
_TENSOR_MAKERS = ("torch._utils._rebuild_", "torch._tensor._rebuild_")


#: The attributes in which a module has what its state_dict is made of.
_OF_MODULES = ("_parameters", "_buffers", "_modules")

#: What an attribute is if it may have tensors.
_MAY_HOLD = (torch.Tensor, Unknown, Mapping, list, tuple, set, frozenset)


class TooManyModulesError(Exception):
    """A module stands in so many places that its state_dict would have no end."""


class Attributes(dict[Any, Any]):
    """What an object of an unknown class would have been made of.

    Attributes:
        class_name: that class.
        is_dict: whether the object would have been given items, as a dict.
    """

    class_name: str
    is_dict: bool


class ModuleState(OrderedDict[str, Any]):
    """The state_dict of a module that was pickled whole.

    Attributes:
        class_name: the class of the module.
        left_out: what else may have tensors: buffers that its state_dict does not have, and
            attributes that are no plain values, by name.
    """

    class_name: str
    left_out: dict[str, Any]


class OddTensor:
    """A tensor that is not made, such as a sparse one beside objects of unknown classes.

    Attributes:
        class_name: the function that makes it.
    """

    def __init__(self, class_name: str) -> None:
        """Stand for what the function would have returned."""
        self.class_name = class_name


class NamedList(list[Any]):
    """What a tuple holds, where it may be replaced.

    Attributes:
        class_name: the type that it had.
    """

    class_name: str


def type_name(value: object) -> str:
    """What messages call the type of a value, or of the object that it stands for."""
    if isinstance(value, Attributes | ModuleState | OddTensor | NamedList):
        return value.class_name
    return type(value).__qualname__


def replaced(checkpoint: object) -> tuple[object, list[str]]:
    """Replace the stand-ins in a checkpoint, the containers of which are changed.

    Returns:
        The checkpoint, and the names of the unknown classes and functions.

    Raises:
        TooManyModulesError: a module is contained in itself.
    """
    replacing = _Replacing()
    root = replacing.of(checkpoint)
    replacing.run()
    return root, sorted(replacing.names)


class _Replacing:
    def __init__(self) -> None:
        self.names: set[str] = set()
        self._made: dict[int, object] = {}
        self._waiting: list[Any] = []
        #: What was replaced lives on, since it is known by its address.
        self._old: list[object] = []

    def of(self, value: object) -> object:
        """What takes the place of a value; what it holds comes later."""
        if id(value) in self._made:
            return self._made[id(value)]
        new = value
        if isinstance(value, Unknown):
            self.names.add(value.name)
            new = self._of_unknown(value)
        elif isinstance(value, tuple) and not isinstance(value, torch.Size):
            new = NamedList(value)
            new.class_name = type(value).__qualname__
        if isinstance(new, dict | list):
            self._old.append(value)
            self._made[id(value)] = self._made[id(new)] = new
            self._waiting.append(new)
        if isinstance(new, ModuleState):
            self._waiting.append(new.left_out)
        return new

    def run(self) -> None:
        """Replace what the containers hold."""
        while self._waiting:
            container = self._waiting.pop()
            pairs = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in [*pairs]:
                new = self.of(value)
                if new is not value:
                    container[key] = new

    def _of_unknown(self, value: Unknown) -> object:
        if value.name.startswith(_TENSOR_MAKERS):
            return OddTensor(value.name)
        if _is_module(value):
            self.names.update(_names_in(value))
            return _state_dict(value)
        attributes = Attributes()
        attributes.class_name, attributes.is_dict = value.name, bool(value.items)
        attributes.update(value.items)
        for key, child in _parts(value):
            if value.items and not _may_hold(child):
                continue  # how a dict is made, as the factory of a defaultdict, is no item of it
            while key in attributes:
                key = f"{key}'"
            attributes[key] = child
        return attributes


def _parts(value: Unknown) -> Iterator[tuple[Any, Any]]:
    states = value.state if isinstance(value.state, tuple) else (value.state,)
    for state in states:
        if isinstance(state, Mapping):
            yield from state.items()
        elif state is not None:
            yield "state", state
    yield from enumerate(value.appended)
    yield from enumerate(value.args)


def _may_hold(part: object) -> bool:
    """Whether tensors may be in it."""
    if isinstance(part, Unknown):
        return bool(part.args or part.state or part.items or part.appended)
    return isinstance(part, _MAY_HOLD)


def _is_module(value: object) -> bool:
    if not isinstance(value, Unknown) or not isinstance(value.state, Mapping):
        return False
    return all(isinstance(value.state.get(name), Mapping) for name in _OF_MODULES)


def _state_dict(module: Unknown) -> ModuleState:
    state = ModuleState()
    state.class_name, state.left_out = module.name, {}
    for prefix, held in [*_submodules(module)]:
        hidden = held.get("_non_persistent_buffers_set")
        hidden = hidden if isinstance(hidden, set | frozenset | list) else ()
        for kind in ("_parameters", "_buffers"):
            for key, value in held[kind].items():
                is_kept = kind == "_parameters" or key not in hidden
                if value is not None:
                    (state if is_kept else state.left_out)[f"{prefix}{key}"] = value
        for key, value in held.items():
            if key not in _OF_MODULES and isinstance(value, _MAY_HOLD):
                state.left_out[f"{prefix}{key}"] = value
    return state


def _submodules(module: Unknown) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The attributes of a module and of those in it, each with what its names begin with.

    They come in the order of ``state_dict``.
    """
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", module.state)]
    header_len = 0
    while waiting:
        prefix, held = waiting.pop()
        count = sum(map(len, (held, held["_parameters"], held["_buffers"])))
        header_len += (1 + count) * (_ENTRY_LEN + len(prefix))
        inner: list[tuple[str, Mapping[Any, Any]]] = []
        for key, below in held["_modules"].items():
            if _is_module(below):
                inner.append((f"{prefix}{key}.", below.state))
                header_len += _ENTRY_LEN + len(inner[-1][0])
            if header_len > MAX_HEADER_LEN:
                break
        if header_len > MAX_HEADER_LEN:
            raise TooManyModulesError("holds too many modules, or one that is contained in itself")
        yield prefix, held
        waiting.extend(reversed(inner))


def _names_in(module: Unknown) -> set[str]:
    """The classes of a module and of those in it."""
    names: set[str] = set()
    waiting, seen = [module], set()
    while waiting:
        value = waiting.pop()
        names.add(value.name)
        seen.add(id(value))
        below = value.state["_modules"].values()
        waiting += [child for child in below if _is_module(child) and id(child) not in seen]
    return names
