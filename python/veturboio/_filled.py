"""``state_dict=`` from tensors that torch's reader has made, with the checks of the core.

The tensors are written to a file in memory that the core reads, and so it is the core that fills
the caller's tensors from it, or refuses before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from veturboio import _ops
from veturboio._handle import Handle
from veturboio._moved import is_plain
from veturboio._nested import quoted
from veturboio._sources import in_memory
from veturboio.errors import ArgumentError

#: Options of the operator that concern the file itself, which is another one here.
_OF_THE_FILE = {"storage_options", "cache_dir", "way", "use_direct_io", "names", "slices"}


def fill(
    file: str,
    tensors: Mapping[str, torch.Tensor],
    state_dict: Mapping[str, torch.Tensor],
    progress: torch.Tensor | None,
    options: Mapping[str, Any],
) -> None:
    """Fill the tensors of ``state_dict`` with those of the same names.

    Args:
        file: what messages name.
        tensors: those of the file.
        state_dict: those that are filled.
        progress: int64[2], told the bytes done and in all.
        options: those of the operator.

    Raises:
        ArgumentError: as ``load`` says, before anything is written.
    """
    plain = {name: _dense(tensor) for name, tensor in tensors.items() if _is_known(tensor)}
    others = {name: tensor for name, tensor in tensors.items() if name not in plain}
    for name, tensor in others.items():
        _check(file, name, tensor, state_dict)
    targets = {name: target for name, target in state_dict.items() if name not in others}
    with in_memory() as memory:
        torch.save(plain, memory)
        kept = {name: options[name] for name in options.keys() - _OF_THE_FILE}
        _ops.fill(Handle(memory.fileno(), _ops.shown(file)), targets, progress=progress, **kept)
    with torch.no_grad():
        for name, tensor in others.items():
            state_dict[name].copy_(tensor)


def _is_known(tensor: torch.Tensor) -> bool:
    """Whether the core has the dtype, and nothing but elements makes up the tensor."""
    name = str(tensor.dtype).removeprefix("torch.")
    is_narrow = name.startswith("bits") or _is_narrow(name)
    return is_plain(tensor) and not tensor.is_meta and not is_narrow


def _is_dense(tensor: torch.Tensor) -> bool:
    is_whole = type(tensor) is torch.Tensor and not tensor.is_nested
    return is_whole and tensor.layout is torch.strided


def _is_narrow(dtype: str) -> bool:
    """Whether it is an integer of less than eight bits."""
    return dtype.lstrip("u") in {f"int{bits}" for bits in range(1, 8)}


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a file has it: conjugated and negated already."""
    return tensor.detach().resolve_conj().resolve_neg()


def _check(
    file: str, name: str, tensor: torch.Tensor, state_dict: Mapping[str, torch.Tensor]
) -> None:
    """Check what the core cannot have in a file."""
    path = _ops.printable(file)
    target = state_dict.get(name)
    if target is None:
        raise ArgumentError(f"load {path}: the file's tensor {quoted(name)} is not in state_dict")
    if target.dtype != tensor.dtype:
        reason = "allocated tensor dtype not match"
    elif tensor.is_meta:
        reason = "is on the meta device in the file and has no data"
    elif not _is_dense(tensor) or not _is_dense(target):
        reason = f"a {type(tensor).__name__} of layout {tensor.layout} cannot be filled in place"
    elif target.shape != tensor.shape:
        reason = "only a tensor of its shape can take it"
    elif not target.is_contiguous():
        reason = "allocated tensor not contiguous"
    else:
        return
    raise ArgumentError(f"load {path}: tensor {quoted(name)}: {reason}")
