"""Writes what a conversion makes, and checks it before or after."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from veturboio import _ops
from veturboio._address import Place
from veturboio._state_dict import listed
from veturboio.errors import FormatError
from veturboio.io import load
from veturboio.progress import watched

#: An integer type of each size: its comparison is one of bits.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


#: What readers of model directories ask of a file: transformers 4 refuses one that does not say it.
METADATA = {"format": "pt"}

#: The dtypes that a safetensors file can hold, as far as this torch has them.
DTYPES = {
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn"),
        *("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        "float4_e2m1fn_x2",
    )
    if hasattr(torch, name)
}


class ConvertError(Exception):
    """A checkpoint cannot be converted; the text says why."""


def write(tensors: Mapping[str, torch.Tensor], target: Place) -> None:
    """Save the tensors, with a progress bar where standard error is a terminal."""
    options = {"force_save_shared_tensor": True, "metadata": METADATA}
    with watched(sys.stderr.isatty()) as counters:
        _ops.save(tensors, str(target), progress=counters, **options)


def check(tensors: Mapping[str, torch.Tensor], target: Place, makes_directory: bool) -> None:
    """Check what a dry run can of what would be written.

    Raises:
        ConvertError: safetensors cannot hold a tensor, or there is no directory for the target.
    """
    for name, tensor in tensors.items():
        refusal = ""
        if tensor.layout != torch.strided or tensor.is_nested:
            refusal = f"layout {tensor.layout}"
        elif tensor.dtype not in DTYPES:
            refusal = f"dtype {tensor.dtype}"
        if refusal:
            raise ConvertError(f"tensor {name!r}: safetensors cannot hold {refusal}")
        if name == "__metadata__":
            raise ConvertError(f"tensor {name!r}: this name is reserved for metadata")
    if isinstance(target, Path):
        directory = target.parent
        if makes_directory and not directory.exists():
            directory = directory.parent
        if not directory.is_dir():
            raise ConvertError(f"save {target}: no such directory as {directory}")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConvertError(f"save {target}: directory {directory} cannot be written to")


def validate(tensors: Mapping[str, torch.Tensor], target: Place) -> None:
    """Load the file again and compare it with the tensors, bit for bit.

    Raises:
        ConvertError: they differ; the text names the tensors. The file is removed.
    """
    try:
        compare(tensors, target)
    except (ConvertError, FormatError) as error:
        if not isinstance(target, Path):
            raise
        try:
            target.unlink()
        except OSError as kept:
            raise ConvertError(f"{error}; it is still there: {kept}") from None
        raise ConvertError(f"{error}; it has been removed") from None


def compare(tensors: Mapping[str, torch.Tensor], target: Place) -> None:
    """Load a file and compare it with the tensors, bit for bit.

    Raises:
        ConvertError: they differ; the text names the tensors.
        FormatError, OSError: as :func:`veturboio.load` says.
    """
    written = load(target, way="map")
    differing = sorted(
        name
        for name in tensors.keys() | written.keys()
        if not _identical(tensors.get(name), written.get(name))
    )
    if differing:
        raise ConvertError(f"{target} differs from it in {listed([*map(repr, differing)])}")


def _identical(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, without a copy unless it is conjugated or negated."""
    return tensor.resolve_conj().resolve_neg().view(_INTEGERS[tensor.element_size()])
