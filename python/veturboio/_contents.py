"""Walks the values of a checkpoint and counts the tensors in them.

Lists, tuples, sets and dicts are walked, each object once however many places hold it: a file may
have a dict that holds itself, or forty dicts that each hold the next one twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from veturboio._standins import ModuleState, OddTensor

#: The keys and indices that lead to a value, outermost first.
Keys = tuple[Any, ...]

#: Keys under which a training run keeps tensors that are no weights.
_NO_WEIGHTS = re.compile(
    r"optim(izers?)?(_.*)?|(.*_)?optimizers?(_.*)?|(.*_)?schedulers?(_.*)?|(.*_)?scaler(_.*)?"
    r"|callbacks?|loops|hyper_?parameters|hparams|metrics?|.*_metrics?|(.*_)?rng(_.*)?",
    re.IGNORECASE,
)

#: The last words of names that parameters and buffers of modules usually have.
_PARAMETER = re.compile(r"(.*\.)?(weight|bias|kernel|gamma|beta|running_(mean|var))|.+\..+")


@dataclass(frozen=True)
class Group:
    """A container that has tensors among its own values.

    Attributes:
        keys: what leads to it.
        is_dict: whether the tensors have names.
        count: its own tensors, whatever their size and their names.
        tensors: those of more than one element whose names are not known to be no weights'.
        elements: of these tensors, all together.
        is_aside: whether its keys say that it holds no weights.
        has_parameters: whether some of the tensors are named as parameters usually are.
    """

    keys: Keys
    is_dict: bool
    count: int
    tensors: int
    elements: int
    is_aside: bool
    has_parameters: bool

    @property
    def holds_weights(self) -> bool:
        """Whether the tensors may be weights: a lone scalar is a loss or a step."""
        return self.tensors > 0 and not self.is_aside

    def outweighs(self, other: Group) -> bool:
        """Whether taking the other one for the state_dict would leave the larger part out."""
        return self.tensors > other.tensors or self.elements > other.elements


def items(value: object) -> Iterable[tuple[Any, Any]]:
    """The keys or indices of a container with its values; none of any other value."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset) and not isinstance(value, torch.Size):
        return enumerate(value)
    return ()


def _all_items(value: object) -> list[tuple[Any, Any]]:
    """The same with what a state_dict leaves out of its module."""
    left_out = value.left_out.items() if isinstance(value, ModuleState) else ()
    return [*items(value), *left_out]


def is_container(value: object) -> bool:
    """Whether the values in it are walked."""
    return isinstance(value, Mapping | list | tuple | set | frozenset)


def is_tensor(value: object) -> bool:
    """Whether it is a tensor, or stands for one that is not made."""
    return isinstance(value, torch.Tensor | OddTensor)


def is_large(value: object) -> bool:
    """Whether it is a tensor of more than one element, as far as that is known."""
    return isinstance(value, OddTensor) or (isinstance(value, torch.Tensor) and value.numel() > 1)


def groups(checkpoint: object) -> list[Group]:
    """Find the containers that have tensors among their own values, the outermost first."""
    found = []
    for keys, container, is_aside in _containers(checkpoint):
        tensors = [(key, value) for key, value in items(container) if is_tensor(value)]
        weights = [
            (key, value) for key, value in tensors if is_large(value) and not _is_no_weight(key)
        ]
        if tensors:
            found.append(
                Group(
                    keys,
                    isinstance(container, Mapping),
                    len(tensors),
                    len(weights),
                    sum(value.numel() for _, value in weights if isinstance(value, torch.Tensor)),
                    is_aside,
                    any(isinstance(key, str) and _PARAMETER.fullmatch(key) for key, _ in weights),
                )
            )
    return found


def _containers(checkpoint: object) -> Iterator[tuple[Keys, Any, bool]]:
    """Every container once, by the shortest keys, and whether these say it holds no weights."""
    level: list[tuple[Keys, Any, bool]] = [((), checkpoint, False)]
    seen = {id(checkpoint)}
    while level:
        inner = []
        for keys, container, is_aside in level:
            is_aside = is_aside or _is_optimizer(container)
            yield keys, container, is_aside
            for key, value in items(container):
                if is_container(value) and id(value) not in seen:
                    seen.add(id(value))
                    inner.append(((*keys, key), value, is_aside or _is_no_weight(key)))
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
            if not (is_tensor(value) or is_container(value)) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            if is_tensor(value):
                tensors += 1
                large += is_large(value)
            else:
                waiting.extend(child for _, child in _all_items(value))
        return tensors, large


def flattened(checkpoint: object) -> tuple[list[tuple[Keys, Any]], list[tuple[Keys, Any]]]:
    """All tensors by the keys that lead to them, and the values that hold none.

    A container that no tensor is in is one value.
    """
    tensors: list[tuple[Keys, Any]] = []
    containers: list[tuple[Keys, Any]] = []
    parents: dict[int, int | None] = {}
    with_tensors: set[int] = set()
    waiting: list[tuple[Keys, Any, int | None]] = [((), checkpoint, None)]
    while waiting:
        keys, value, parent = waiting.pop()
        if is_tensor(value):
            tensors.append((keys, value))
            while parent is not None and parent not in with_tensors:
                with_tensors.add(parent)
                parent = parents[parent]
        elif is_container(value) and id(value) not in parents:
            parents[id(value)] = parent
            containers.append((keys, value))
            children = [((*keys, key), child, id(value)) for key, child in _all_items(value)]
            waiting.extend(reversed(children))
    others = [
        ((*keys, key), child)
        for keys, value in containers
        if id(value) in with_tensors
        for key, child in items(value)
        if not is_tensor(child) and id(child) not in with_tensors
    ]
    return tensors, others
