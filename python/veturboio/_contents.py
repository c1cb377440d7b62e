"""Walks the values of a checkpoint and counts the tensors in them.

Lists, tuples, sets and dicts are walked, each object once however many places hold it: a file may
have a dict that holds itself, or forty dicts that each hold the next one twice.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from veturboio._standins import Attributes, ModuleState, OddTensor

#: The keys and indices that lead to a value, outermost first.
Keys = tuple[Any, ...]

#: Types that no tensor is in, which most values of a checkpoint have.
_PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device}

#: Types that are walked as they are told by, without asking what they derive from.
_DICTS = {dict, OrderedDict}
_LISTS = {list, tuple}

#: Keys under which a training run keeps tensors that are no weights.
_NO_WEIGHTS = re.compile(
    r"optim(izers?)?(_.*)?|(.*_)?optimizers?(_.*)?|(.*_)?schedulers?(_.*)?|(.*_)?scaler(_.*)?"
    r"|callbacks?|loops|hyper_?parameters|hparams|metrics?|.*_metrics?|(.*_)?rng(_.*)?",
    re.IGNORECASE,
)

#: The last words of names that parameters and buffers of modules usually have.
_PARAMETER = re.compile(r"(.*\.)?(weight|bias|kernel|gamma|beta|running_(mean|var))|.+\..+")


class Place:
    """Where a value stands in a checkpoint: below which other place, and by what key."""

    __slots__ = ("above", "depth", "is_aside", "key")

    def __init__(self, above: Place | None, key: Any, is_aside: bool) -> None:
        self.above = above
        self.key = key
        #: Whether a key on the way says that there are no weights.
        self.is_aside = is_aside
        self.depth: int = 0 if above is None else above.depth + 1

    def keys(self) -> Keys:
        """What leads there from the checkpoint."""
        keys = []
        place: Place | None = self
        while place is not None and place.above is not None:
            keys.append(place.key)
            place = place.above
        return tuple(reversed(keys))


@dataclass(frozen=True)
class Group:
    """A container that has tensors among its own values.

    Attributes:
        place: where it stands.
        is_dict: whether the tensors have names.
        is_object: whether they are attributes of an object of an unknown class, which is taken for
            a state_dict only if there is no other.
        count: its own tensors, whatever their size and their names.
        tensors: those of more than one element whose names are not known to be no weights'.
        elements: of these tensors, all together.
        has_parameters: whether some of the tensors are named as parameters usually are.
    """

    place: Place
    is_dict: bool
    is_object: bool
    count: int
    tensors: int
    elements: int
    has_parameters: bool

    @property
    def keys(self) -> Keys:
        """What leads to it."""
        return self.place.keys()

    @property
    def depth(self) -> int:
        """How many keys lead to it."""
        return self.place.depth

    @property
    def holds_weights(self) -> bool:
        """Whether the tensors may be weights: a lone scalar is a loss or a step."""
        return self.tensors > 0 and not self.place.is_aside

    def outweighs(self, other: Group) -> bool:
        """Whether taking the other one for the state_dict would leave the larger part out."""
        return self.tensors > other.tensors or self.elements > other.elements


def items(value: object) -> Iterable[tuple[Any, Any]]:
    """The keys or indices of a container with its values; none of any other value."""
    kind = type(value)
    if kind in _DICTS or isinstance(value, Mapping):
        return cast("Mapping[Any, Any]", value).items()
    if is_container(value):
        return enumerate(cast("list[Any]", value))
    return ()


def _all_items(value: object) -> list[tuple[Any, Any]]:
    """The same with what a state_dict leaves out of its module."""
    left_out = value.left_out.items() if isinstance(value, ModuleState) else ()
    return [*items(value), *left_out]


def is_container(value: object) -> bool:
    """Whether the values in it are walked."""
    kind = type(value)
    if kind in _PLAIN or kind in _DICTS or kind in _LISTS:
        return kind not in _PLAIN
    is_one = isinstance(value, Mapping | list | tuple | set | frozenset)
    return is_one and not isinstance(value, torch.Size)


def is_tensor(value: object) -> bool:
    """Whether it is a tensor, or stands for one that is not made."""
    return isinstance(value, torch.Tensor | OddTensor)


def is_large(value: object) -> bool:
    """Whether it is a tensor of more than one element, as far as that is known."""
    return isinstance(value, OddTensor) or (isinstance(value, torch.Tensor) and value.numel() > 1)


def groups(checkpoint: object) -> list[Group]:
    """Find the containers that have tensors among their own values, the outermost first."""
    found = []
    for place, container in _containers(checkpoint):
        tensors = [(key, value) for key, value in items(container) if is_tensor(value)]
        weights = [
            (key, value) for key, value in tensors if is_large(value) and not _is_no_weight(key)
        ]
        if tensors:
            found.append(
                Group(
                    place,
                    isinstance(container, Mapping),
                    isinstance(container, Attributes) and not container.is_dict,
                    len(tensors),
                    len(weights),
                    sum(value.numel() for _, value in weights if isinstance(value, torch.Tensor)),
                    any(isinstance(key, str) and _PARAMETER.fullmatch(key) for key, _ in weights),
                )
            )
    return found


def _containers(checkpoint: object) -> Iterator[tuple[Place, Any]]:
    """Every container once, where fewest keys lead to it."""
    level: list[tuple[Place, Any]] = [(Place(None, None, is_aside=False), checkpoint)]
    seen = {id(checkpoint)}
    while level:
        inner = []
        for place, container in level:
            place.is_aside = place.is_aside or _is_optimizer(container)
            yield place, container
            for key, value in items(container):
                if is_container(value) and id(value) not in seen:
                    seen.add(id(value))
                    is_aside = place.is_aside or _is_no_weight(key)
                    inner.append((Place(place, key, is_aside), value))
        level = inner


def _is_no_weight(key: object) -> bool:
    return isinstance(key, str) and _NO_WEIGHTS.fullmatch(key) is not None


def _is_optimizer(value: object) -> bool:
    """Whether it is what ``Optimizer.state_dict()`` returns."""
    return isinstance(value, Mapping) and "state" in value and "param_groups" in value


class Counter:
    """Counts tensors in values, each tensor and each container once in all."""

    def __init__(self, counted: Iterable[object]) -> None:
        """Begin with values that are counted already."""
        self._seen = {id(value) for value in counted}

    def count(self, value: object) -> tuple[int, int]:
        """Count the tensors in a value, and those among them of more than one element."""
        tensors = large = 0
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if type(value) in _PLAIN or id(value) in self._seen:
                continue
            if not (is_tensor(value) or is_container(value)):
                continue
            self._seen.add(id(value))
            if is_tensor(value):
                tensors += 1
                large += is_large(value)
            else:
                waiting.extend(child for _, child in _all_items(value))
        return tensors, large


def flattened(checkpoint: object) -> tuple[list[tuple[Place, Any]], list[tuple[Place, Any]]]:
    """All tensors with where they stand, and the values that hold none.

    A container that no tensor is in is one value.
    """
    tensors: list[tuple[Place, Any]] = []
    containers: list[tuple[Place, Any]] = []
    values: dict[Place, int] = {}
    seen: set[int] = set()
    with_tensors: set[int] = set()
    waiting: list[tuple[Place, Any]] = [(Place(None, None, is_aside=False), checkpoint)]
    while waiting:
        place, value = waiting.pop()
        if is_tensor(value):
            tensors.append((place, value))
            above = place.above
            while above is not None and values[above] not in with_tensors:
                with_tensors.add(values[above])
                above = above.above
        elif is_container(value) and id(value) not in seen:
            seen.add(id(value))
            values[place] = id(value)
            containers.append((place, value))
            children = [
                (Place(place, key, is_aside=False), child)
                for key, child in _all_items(value)
                if type(child) not in _PLAIN
            ]
            waiting.extend(reversed(children))
    others = [
        (Place(place, key, is_aside=False), child)
        for place, value in containers
        if id(value) in with_tensors
        for key, child in items(value)
        if not is_tensor(child) and id(child) not in with_tensors
    ]
    return tensors, others
