"""``names`` and ``slices`` of tensors that are loaded already, as the core takes them of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from veturboio._moved import is_plain
from veturboio._nested import quoted
from veturboio._ops import shown
from veturboio.errors import ArgumentError


def part(
    file: str,
    tensors: Mapping[str, torch.Tensor],
    names: Sequence[str] | None,
    slices: Mapping[str, Sequence[int]] | None,
) -> dict[str, torch.Tensor]:
    """Select tensors by name, and cut some of them.

    What is cut is contiguous and has a storage of its own. What is not shares storages as before.

    Args:
        file: what messages name.
        tensors: all there are.
        names: those wanted, in the order in which they are returned; None for all.
        slices: dimension, start and stop of each cut, by name.

    Raises:
        ArgumentError: a name that is not there, and a dimension that a tensor does not have.
    """
    wanted = list(tensors) if names is None else list(dict.fromkeys(names))
    asked = set(wanted)
    slices = slices or {}
    for name in wanted:
        if name not in tensors:
            raise _refused(file, f"the file has no tensor {quoted(name)}, which is asked for")
    for name in slices:
        if names is not None and name not in asked:
            raise _refused(file, f"slices has {quoted(name)}, which is not among names")
        if name not in tensors:
            raise _refused(file, f"the file has no tensor {quoted(name)}, which is asked for")
    whole: dict[int, torch.Tensor] = {}
    selected: dict[str, torch.Tensor] = {}
    for name in wanted:
        tensor = tensors[name]
        if name in slices:
            selected[name] = _cut(file, name, tensor, slices[name])
        else:
            selected[name] = whole.setdefault(id(tensor), _bare(tensor))
    return selected


def _refused(file: str, reason: str) -> ArgumentError:
    return ArgumentError(f"load {shown(file)}: {reason}")


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter as a tensor that needs a gradient, which is what the core returns by name."""
    if type(tensor) is not torch.nn.Parameter:
        return tensor
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _cut(file: str, name: str, tensor: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    try:
        with torch.no_grad():
            cut = tensor.detach()
            for dim, start, stop in _ranges(tensor, cuts):
                cut = _narrowed(cut, dim, start, stop)
            row_major = {"memory_format": torch.contiguous_format} if is_plain(cut) else {}
            made = cut.clone(**row_major)
            return made.requires_grad_(tensor.requires_grad)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
    raise _refused(file, f"tensor {quoted(name)}: {reason}")


def _narrowed(tensor: torch.Tensor, dim: int, start: int, stop: int) -> torch.Tensor:
    if tensor.layout is torch.sparse_coo:  # of which there are no views
        return torch.narrow_copy(tensor, dim, start, stop - start)
    return tensor.narrow(dim, start, stop - start)


def _ranges(tensor: torch.Tensor, cuts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Dimension, start and stop of each cut, counted from the beginning.

    Raises:
        ValueError: a dimension that the tensor does not have, or that is cut twice.
    """
    dims = tensor.dim()
    ranges: dict[int, tuple[int, int]] = {}
    for asked, *ends in zip(cuts[::3], cuts[1::3], cuts[2::3], strict=True):
        dim = asked + dims if asked < 0 else asked
        if not 0 <= dim < dims:
            raise ValueError(f"has {dims} dimensions, and none of number {asked}")
        if dim in ranges:
            raise ValueError(f"dimension {dim} of {dims} is cut twice")
        size = tensor.size(dim)
        start, stop = (min(max(end + size if end < 0 else end, 0), size) for end in ends)
        ranges[dim] = start, max(start, stop)
    return [(dim, *ends) for dim, ends in ranges.items()]
