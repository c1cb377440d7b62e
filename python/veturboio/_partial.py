"""``names`` and ``slices`` of tensors that are loaded already, as the core takes them of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from veturboio._moved import is_plain
from veturboio._nested import quoted
from veturboio._ops import printable
from veturboio.errors import ArgumentError
from veturboio.selection import INDEX, STEP


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
        slices: the numbers of each cut, by name, as the operator takes them.

    Raises:
        ArgumentError: a name that is not there, a dimension that a tensor does not have, an index
            that is out of range.
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
    return ArgumentError(f"load {printable(file)}: {reason}")


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter as a tensor that needs a gradient, which is what the core returns by name."""
    if type(tensor) is not torch.nn.Parameter:
        return tensor
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _cut(file: str, name: str, tensor: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    try:
        with torch.no_grad():
            cut = tensor.detach()
            axes = _axes(tensor, cuts)
            for dim, axis in axes.items():
                cut = _narrowed(cut, dim, axis)
            for dim in sorted((dim for dim in axes if axes[dim].is_dropped), reverse=True):
                cut = cut.select(dim, 0)
            row_major = {"memory_format": torch.contiguous_format} if is_plain(cut) else {}
            made = cut.clone(**row_major)
            return made.requires_grad_(tensor.requires_grad)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
    raise _refused(file, f"tensor {quoted(name)}: {reason}")


def _narrowed(tensor: torch.Tensor, dim: int, axis: _Axis) -> torch.Tensor:
    """What is left along a dimension, which stays there."""
    if tensor.layout is not torch.strided:  # of which there are no views
        cut = torch.narrow_copy(tensor, dim, axis.start, axis.stop - axis.start)
        if axis.step == 1:
            return cut
        picked = torch.arange(0, cut.size(dim), axis.step, device=cut.device)
        return cut.index_select(dim, picked)
    cut = tensor.narrow(dim, axis.start, axis.stop - axis.start)
    if axis.step == 1:
        return cut
    return cut[(slice(None),) * dim + (slice(None, None, axis.step),)]


@dataclass(frozen=True)
class _Axis:
    """What is left of a dimension; a dropped one has a single element, and goes."""

    start: int
    stop: int
    step: int = 1
    is_dropped: bool = False


def _axes(tensor: torch.Tensor, cuts: Sequence[int]) -> dict[int, _Axis]:
    """What the numbers of the operator leave of each dimension that is cut.

    Raises:
        ValueError: a dimension that the tensor does not have, or that is cut twice; an index that
            is out of range.
    """
    dims = tensor.dim()
    axes: dict[int, _Axis] = {}
    dim = -1
    for asked, first, second in zip(cuts[::3], cuts[1::3], cuts[2::3], strict=True):
        if second == STEP and dim in axes:  # of the cut before
            axes[dim] = replace(axes[dim], step=first)
            continue
        dim = asked + dims if asked < 0 else asked
        if not 0 <= dim < dims:
            raise ValueError(f"has {dims} dimensions, and none of number {asked}")
        if dim in axes:
            raise ValueError(f"dimension {dim} of {dims} is cut twice")
        size = tensor.size(dim)
        if second == INDEX:
            at = first + size if first < 0 else first
            if not 0 <= at < size:
                reason = f"index {first} is out of range for the {size} elements"
                raise ValueError(f"{reason} of dimension {dim}")
            axes[dim] = _Axis(at, at + 1, is_dropped=True)
            continue
        start, stop = (min(max(end + size if end < 0 else end, 0), size) for end in (first, second))
        axes[dim] = _Axis(start, max(start, stop))
    return axes
