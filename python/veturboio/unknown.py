"""What stands in a loaded file where it has an object of a class that is not loaded."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

#: The dicts in which a pickled ``torch.nn.Module`` keeps its tensors and modules. They are no part
#: of a tensor's name.
OF_MODULES = ("_parameters", "_buffers", "_modules")

#: Plain values of a stand-in that its repr shows.
_SHOWN = (str, bytes, int, float, bool, type(None))


class Unknown:
    """Stands for an object that ``load(file, skip_unknown=True)`` has not made.

    Its class or function is none that is known: nothing was imported and nothing was called. What
    the file would have made the object of is here, tensors and all.

    Attributes:
        name: class or function in the file's words, ``module.qualname``.
        args: tuple of what it would have been called with.
        state: what it would have been given for its attributes, a dict as a rule; None if nothing.
        items: list of pairs of key and value that would have been set, as in a dict.
        appended: list of what would have been appended, as to a list.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.args: tuple[Any, ...] = ()
        self.state: Any = None
        self.items: list[tuple[Any, Any]] = []
        self.appended: list[Any] = []

    def __reduce__(self) -> tuple[Any, ...]:
        flat = [part for pair in self.items for part in pair]
        return type(self), (self.name,), (self.args, self.state, flat, self.appended)

    def __setstate__(self, state: tuple[Any, Any, list[Any], list[Any]]) -> None:
        self.args, self.state, flat, self.appended = state
        self.items = list(zip(flat[::2], flat[1::2], strict=True))

    @reprlib.recursive_repr("...")
    def __repr__(self) -> str:
        known = [reprlib.repr(arg) for arg in self.args if isinstance(arg, _SHOWN)]
        if isinstance(self.state, Mapping):
            known += [
                f"{key}={reprlib.repr(value)}"
                for key, value in list(self.state.items())[:10]
                if isinstance(key, str) and isinstance(value, _SHOWN)
            ]
        return f"<Unknown {self.name}({', '.join(known[:10])})>"

    def children(self) -> Iterator[tuple[str | int, Any]]:
        """Iterate over what it holds: its items, what was appended, its state and its arguments.

        Each comes with the key, position or attribute that names it. The parameters, buffers and
        modules of a ``torch.nn.Module`` have the names that they have in its state_dict.
        """
        yield from (pair for pair in self.items if isinstance(pair[0], (str, int)))
        yield from enumerate(self.appended)
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        for state in states:
            if not isinstance(state, Mapping):
                continue
            for key, value in state.items():
                if key in OF_MODULES and isinstance(value, Mapping):
                    yield from value.items()
                elif isinstance(key, (str, int)):
                    yield key, value
        if isinstance(self.state, list):
            yield from enumerate(self.state)
        elif isinstance(self.state, Unknown):
            yield from self.state.children()
        yield from enumerate(self.args)


def left_out(values: object) -> dict[str, str]:
    """Tell what stands in for what in loaded values: the name of each class by where it stands.

    A place is the keys and positions that lead there, joined by dots, ``""`` for the whole; a
    stand-in in several places is told once. Sets and keys are not looked into.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", values)]
    while waiting:
        place, value = waiting.pop()
        if not isinstance(value, (Unknown, Mapping, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        children: list[tuple[Any, Any]]
        if isinstance(value, Unknown):
            found[place] = value.name
            children = list(value.children())
        elif isinstance(value, Mapping):
            children = list(value.items())
        else:
            children = list(enumerate(value))
        prefix = f"{place}." if place else ""
        waiting += [
            (f"{prefix}{key}", child)
            for key, child in reversed(children)
            if isinstance(key, (str, int)) and isinstance(child, (Unknown, Mapping, list, tuple))
        ]
    return found
