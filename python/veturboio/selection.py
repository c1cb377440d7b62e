"""``names`` and ``slices``: which part of a checkpoint is wanted."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from veturboio._ops import printable
from veturboio.errors import ArgumentError

#: One index is for the first dimension; a tuple has one for each, and ``...`` for those between. An
#: index is a slice, or an integer, which takes its dimension away.
Slices = Mapping[str, Any]

#: No tensor reaches beyond.
_END = 1 << 62

#: In place of a stop: what stands for start is one element, or the step of the cut before.
INDEX, STEP = -(1 << 63), -(1 << 63) + 1


def as_options(path: str, names: Iterable[str] | None, slices: Slices | None) -> dict[str, Any]:
    """Return the arguments of the operator that loads a part of ``path``.

    Raises:
        TypeError: ``names`` is a single string, ``slices`` no dict of names, or an index no slice.
        ArgumentError: a step is not positive.
    """
    if isinstance(names, Iterable) and not isinstance(names, str):
        names = list(names)  # what a generator raises is its own
    try:
        return _checked(names, slices)
    except TypeError as error:
        refused: Exception = TypeError(f"load {printable(path)}: {error}")
    except ValueError as error:
        refused = ArgumentError(f"load {printable(path)}: {error}")
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
    """Return the numbers of each dimension that is cut, as the operator takes them."""
    parts = wanted if isinstance(wanted, tuple) else (wanted,)
    # By identity: an array would compare its elements.
    gaps = [position for position, part in enumerate(parts) if part is ...]
    if len(gaps) > 1:
        raise ValueError(f"slices[{name!r}] has more than one ...")
    cuts: list[int] = []
    for position, part in enumerate(parts):
        if part is ...:
            continue
        # Dimensions after an ellipsis are counted from the end.
        dim = position - len(parts) if gaps and gaps[0] < position else position
        if isinstance(part, slice):
            cuts += [dim, _end(name, part.start, 0), _end(name, part.stop, _END)]
            step = 1 if part.step is None else _integer(name, "step", part.step)
            if step < 1:
                text = f"slices[{name!r}] has the step {step}, and only positive ones can be read"
                raise ValueError(f"{text}: load it whole and flip it")
            cuts += [dim, min(step, _END), STEP] if step > 1 else []
        else:
            cuts += [dim, _index(name, part), INDEX]
    return cuts


def _index(name: str, part: Any) -> int:
    """Return an index that is one integer, as far as torch takes it for one."""
    # A list of one element, True and None would each make a dimension of their own.
    is_scalar = getattr(part, "ndim", 0) == 0 and not isinstance(part, bool)
    if is_scalar and "bool" not in str(getattr(part, "dtype", "")):
        try:
            return min(max(operator.index(part), -_END), _END)
        except TypeError:
            pass
    what = "None" if part is None else f"a {type(part).__name__}"
    raise TypeError(
        f"slices[{name!r}] has {what}, and only slices, integers and ... can be read: "
        "load it whole and index it"
    )


def _end(name: str, end: Any, default: int) -> int:
    """Return an end of a slice in 64 bits, which no tensor reaches beyond."""
    return default if end is None else _integer(name, "end", end)


def _integer(name: str, what: str, number: Any) -> int:
    try:
        return min(max(operator.index(number), -_END), _END)
    except TypeError:
        text = f"slices[{name!r}] has the {what} {number!r}"
        raise TypeError(f"{text}, which is no integer") from None
