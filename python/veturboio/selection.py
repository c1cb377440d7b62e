"""``names`` and ``slices``: which part of a checkpoint is wanted."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from veturboio._ops import shown
from veturboio.errors import ArgumentError

#: One slice is for the first dimension; a tuple has one for each, and ``...`` for those between.
Slices = Mapping[str, "slice | tuple[Any, ...]"]

_END = (1 << 63) - 1


def as_options(path: str, names: Iterable[str] | None, slices: Slices | None) -> dict[str, Any]:
    """Return the arguments of the operator that loads a part of ``path``.

    Raises:
        TypeError: ``names`` is a single string, ``slices`` no dict of names, or a slice no slice.
        ArgumentError: a slice has a step.
    """
    if isinstance(names, Iterable) and not isinstance(names, str):
        names = list(names)  # what a generator raises is its own
    try:
        return _checked(names, slices)
    except TypeError as error:
        refused: Exception = TypeError(f"load {shown(path)}: {error}")
    except ValueError as error:
        refused = ArgumentError(f"load {shown(path)}: {error}")
    raise refused


def _checked(names: Iterable[str] | None, slices: Slices | None) -> dict[str, Any]:
    if isinstance(names, str):
        raise TypeError(f"names is not a list of names but the string {names!r}")
    options: dict[str, Any] = {}
    if names is not None:
        if not isinstance(names, list):
            raise TypeError(f"names is not a list of names but a {type(names).__name__}")
        options["names"] = names
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"name {name!r} in names is not a str")
    if slices is not None:
        if not isinstance(slices, Mapping):
            raise TypeError(f"slices is not a dict but a {type(slices).__name__}")
        for name in slices:
            if not isinstance(name, str):
                raise TypeError(f"name {name!r} in slices is not a str")
        options["slices"] = {name: _cuts(name, wanted) for name, wanted in slices.items()}
    return options


def _cuts(name: str, wanted: object) -> list[int]:
    """Return dimension, start and stop of each dimension that is cut."""
    parts = wanted if isinstance(wanted, tuple) else (wanted,)
    if parts.count(...) > 1:
        raise ValueError(f"slices[{name!r}] has more than one ...")
    cuts: list[int] = []
    for position, part in enumerate(parts):
        if part is ...:
            continue
        if not isinstance(part, slice):
            raise TypeError(f"slices[{name!r}] has no slice but a {type(part).__name__}")
        if part.step not in (None, 1):
            raise ValueError(f"slices[{name!r}] has the step {part.step}, and only 1 can be read")
        # Dimensions after an ellipsis are counted from the end.
        dim = position - len(parts) if ... in parts[:position] else position
        cuts += [dim, _end(name, part.start, 0), _end(name, part.stop, _END)]
    return cuts


def _end(name: str, end: Any, default: int) -> int:
    """Return an end of a slice in 64 bits, which no tensor reaches beyond."""
    if end is None:
        return default
    try:
        return min(max(operator.index(end), -_END), _END)
    except TypeError:
        raise TypeError(f"slices[{name!r}] has the end {end!r}, which is no integer") from None
