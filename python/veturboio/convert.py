"""Converts a PyTorch checkpoint to safetensors: ``python -m veturboio.convert -i model.pt``.

The checkpoint is read without executing its pickle (``torch.load(weights_only=True)``), mapped
rather than read where its format allows, and written by the core. A checkpoint that holds
anything but tensors is refused: what a safetensors file cannot keep is not dropped silently.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from veturboio import _ops
from veturboio.progress import Bar

#: Keys that a refusal lists, at most.
_MAX_LISTED = 5


class ConvertError(Exception):
    """A checkpoint cannot be converted; the text says why."""


def read_checkpoint(source: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a PyTorch checkpoint.

    Returns:
        The tensors by name; those of a zip checkpoint are mapped, not read.

    Raises:
        ConvertError: the file is no checkpoint, or holds anything but named tensors.
        OSError: the system refuses the file.
    """
    checkpoint = _torch_load(source)
    if not isinstance(checkpoint, Mapping):
        raise ConvertError(f"holds no dict of tensors but a value of type {_type(checkpoint)}")
    others = [
        f"{key!r} ({_type(value)})"
        for key, value in checkpoint.items()
        if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        more = f" and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
        listed = ", ".join(others[:_MAX_LISTED])
        raise ConvertError(f"holds what is no tensor by name: {listed}{more}")
    return {name: tensor.detach() for name, tensor in checkpoint.items()}


def _torch_load(source: Path) -> Any:
    # Only the zip format of torch 1.6 and later can be mapped.
    mapped = zipfile.is_zipfile(source)
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ConvertError(f"torch.load refuses it: {reason or type(error).__name__}") from error


def _type(value: object) -> str:
    return type(value).__qualname__


def write(tensors: Mapping[str, torch.Tensor], target: Path) -> None:
    """Save the tensors, with a progress bar where standard error is a terminal."""
    progress = torch.zeros(2, dtype=torch.int64)
    saved = threading.Event()
    bar = threading.Thread(target=Bar(progress, sys.stderr).draw_until, args=(saved,))
    if sys.stderr.isatty():
        bar.start()
    try:
        _ops.save(tensors, str(target), force_save_shared_tensor=True, progress=progress)
    finally:
        saved.set()
        if bar.ident is not None:
            bar.join()


def validate(tensors: Mapping[str, torch.Tensor], target: Path) -> None:
    """Load the file again and compare it with the tensors, bit for bit.

    Raises:
        ConvertError: they differ; the text names the tensors.
    """
    written = _ops.load(str(target), torch.device("cpu"), num_thread=32)
    differing = sorted(
        name
        for name in tensors.keys() | written.keys()
        if not _identical(tensors.get(name), written.get(name))
    )
    if differing:
        raise ConvertError(f"{target} differs from it in {differing[:_MAX_LISTED]}")


def _identical(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


def convert(
    source: Path,
    target: Path,
    overwrite: bool = False,
    dry_run: bool = False,
    validate_result: bool = False,
) -> str:
    """Convert one checkpoint.

    Returns:
        A sentence that says what was done, or would be.

    Raises:
        ConvertError: the checkpoint cannot be converted, or the target is there already.
        OSError, ValueError: as ``save_file`` says.
    """
    if source.exists() and target.exists() and target.samefile(source):
        raise ConvertError("input and output are the same file")
    if target.exists() and not overwrite:
        raise ConvertError(f"{target} exists already, --overwrite replaces it")
    tensors = read_checkpoint(source)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    what = f"{len(tensors)} tensors, {size} bytes"
    if dry_run:
        return f"would convert {source} to {target}: {what}"
    write(tensors, target)
    if validate_result:
        validate(tensors, target)
        what += ", compared bit for bit"
    return f"converted {source} to {target}: {what}"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m veturboio.convert", description="Convert a PyTorch file to safetensors."
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="the PyTorch file")
    parser.add_argument(
        "-o", "--output", type=Path, help="the safetensors file; beside the input by default"
    )
    parser.add_argument(
        "-d", "--dry-run", action="store_true", help="say what would be done, and write nothing"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output if it is there already"
    )
    parser.add_argument(
        "--validate-result", action="store_true", help="load the output and compare every bit"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 is returned, with the reason on standard error, where it fails."""
    asked = _arguments(arguments)
    target = asked.output or asked.input.with_suffix(".safetensors")
    try:
        done = convert(asked.input, target, asked.overwrite, asked.dry_run, asked.validate_result)
    except (ConvertError, OSError, ValueError, RuntimeError) as error:
        print(f"convert {asked.input}: {error}", file=sys.stderr)
        return 1
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
