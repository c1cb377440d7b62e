"""Converts PyTorch checkpoints to safetensors: ``python -m veturboio.convert -i model.pt``.

A checkpoint is read without running its pickle and mapped rather than read where its format
allows, so that a conversion needs little memory of its own. What a safetensors file cannot keep
is never dropped silently: it is refused, or said to be left out. A result that has none of the
checkpoint's weights is never written.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veturboio._address import Address, Place, place
from veturboio._result import ConvertError, check, validate, write
from veturboio._standins import TooManyModulesError, replaced
from veturboio._state_dict import FLATTEN, Choice, ChoiceError, choose, listed
from veturboio.errors import FormatError, UnknownNameError
from veturboio.io import load, metadata

#: The files of a directory that are converted.
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Options:
    """What the command was asked for; :func:`_arguments` says what each means."""

    key: str | None = None
    flatten: bool = False
    overwrite: bool = False
    dry_run: bool = False
    enable_to_valid_state_dict: bool = False
    validate_result: bool = False
    use_direct_io: bool = False
    #: Whether the directory of the target is made if it is not there.
    makes_directory: bool = False


def read_checkpoint(source: Place, options: Options) -> tuple[Choice, list[str]]:
    """Read the state_dict of a PyTorch checkpoint, on the device meta for a dry run.

    Returns:
        The state_dict, and the names of classes and functions that the file uses and that nobody
        knows. Of what they would have made only the tensors are taken.

    Raises:
        ConvertError: the file is no PyTorch file, or what is asked for is not in it, or it holds
            more than can be kept.
        FormatError, OSError: as :func:`veturboio.load` says.
    """
    if _is_safetensors(source):
        raise ConvertError("is a safetensors file already")
    try:
        checkpoint, unknown = _load(source, options)
        choice = choose(checkpoint, options.key, options.flatten)
    except (ChoiceError, TooManyModulesError) as error:
        raise ConvertError(str(error)) from None
    if choice.others and not options.enable_to_valid_state_dict:
        way_out = "--enable-to-valid-state-dict leaves it out"
        if choice.hides_tensors:
            way_out = FLATTEN
        raise ConvertError(f"holds what is no tensor by name: {listed(choice.others)}; {way_out}")
    return choice, unknown


def _load(source: Place, options: Options) -> tuple[object, list[str]]:
    """What a file holds, and the names of the classes that are not known of what it holds."""
    # Mapped, a file larger than the memory can be converted too.
    direct = options.use_direct_io
    how: dict[str, Any] = {"use_direct_io": direct, "way": None if direct else "map"}
    devices = ["meta", "cpu"] if options.dry_run else ["cpu"]
    with warnings.catch_warnings(record=True) as caught:
        for device in devices:  # torch.load does not know every kind of tensor on meta
            try:
                checkpoint = load(source, map_location=device, **how)
            except UnknownNameError:
                continue
            for warning in caught:
                print(f"convert: {warning.message}".partition("\n")[0], file=sys.stderr)
            return checkpoint, []
    return replaced(load(source, map_location=devices[0], skip_unknown=True, **how))


def _is_safetensors(source: Place) -> bool:
    try:
        metadata(source)
    except FormatError:
        return False
    return True


def _is_torchscript(source: Place) -> bool:
    if isinstance(source, Address):
        return False
    if not zipfile.is_zipfile(source):
        return False
    try:
        with zipfile.ZipFile(source) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _is_same(source: Place, target: Place) -> bool:
    if isinstance(source, Path) and isinstance(target, Path):
        return source.exists() and target.exists() and target.samefile(source)
    return str(source) == str(target)


def convert(source: Place, target: Place, options: Options) -> Iterator[str]:
    """Convert one checkpoint.

    Yields:
        Sentences that say what is left out, and what was done or would be.

    Raises:
        ConvertError: the checkpoint cannot be converted, or the target is there already.
        OSError, ValueError, RuntimeError: as ``load`` and ``save_file`` say.
    """
    if _is_same(source, target):
        raise ConvertError("input and output are the same file")
    if target.exists() and not options.overwrite:
        raise ConvertError(f"{target} exists already, --overwrite replaces it")
    choice, unknown = read_checkpoint(source, options)
    if unknown:
        classes = ", ".join(unknown)
        yield f"{source} has objects of unknown classes, only their tensors are taken: {classes}"
    if choice.name:
        yield f"converting {choice.name!r} of {source}"
    left_out = choice.others + choice.beside
    if _is_torchscript(source):
        left_out.append("the code and the attributes of its TorchScript module")
    if left_out:
        yield f"leaving out of {source}: {', '.join(left_out)}"
    tensors = {name: tensor.detach() for name, tensor in choice.tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    what = f"{len(tensors)} tensors, {size} bytes"
    if options.dry_run:
        check(tensors, target, options.makes_directory)
        yield f"would convert {source} to {target}: {what}"
        return
    write(tensors, target)
    if options.validate_result:
        validate(tensors, target)
        what += ", compared bit for bit"
    yield f"converted {source} to {target}: {what}"


def sources_in(inputs: list[Place]) -> list[Place]:
    """The files to convert: each input once, and for a directory the checkpoints in it.

    Raises:
        ConvertError: a directory has none.
        OSError: a directory cannot be read.
    """
    sources: dict[str, Place] = {}
    for path in inputs:
        inside: list[Place] = [path]
        if isinstance(path, Path) and path.is_dir():
            files = (p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            inside = [*sorted(files)]
            if not inside:
                raise ConvertError(f"{path} holds no file named {', '.join(SUFFIXES)}")
        for source in inside:
            sources.setdefault(_identity(source), source)
    return list(sources.values())


def output_directory(inputs: list[Place], output: str | None) -> Place | None:
    """The directory that the results go to, if ``output`` names one and no file.

    Raises:
        ConvertError: it is a file and should be a directory.
    """
    if output is None:
        return None
    several = len(inputs) > 1 or any(path.is_dir() for path in inputs)
    if not several and not output.endswith("/"):
        return None
    directory = place(output)
    if isinstance(directory, Path) and directory.exists() and not directory.is_dir():
        raise ConvertError(f"{directory} is no directory, which the output has to be")
    return directory


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m veturboio.convert", description="Convert PyTorch files to safetensors."
    )
    add = parser.add_argument
    suffixes = ", ".join(SUFFIXES)
    add(
        *("-i", "--input"),
        type=_path,
        nargs="+",
        action="extend",
        required=True,
        help=f"PyTorch files, or directories whose files named {suffixes} are taken",
    )
    add(
        *("-o", "--output"),
        help="the safetensors file, or for several inputs the directory of their results; "
        "beside the input by default",
    )
    add("-d", "--dry-run", action="store_true", help="say what would be done, and write nothing")
    add("--overwrite", action="store_true", help="replace an output that is there already")
    add(
        "--key",
        help="the keys that lead to the state_dict, joined by dots, or '' for the outermost dict; "
        "found by default",
    )
    add(
        "--flatten",
        action="store_true",
        help="keep all tensors of the checkpoint, or of what --key leads to, however deep they "
        "lie, named by the keys that lead to them, joined by dots",
    )
    add(
        "--enable-to-valid-state-dict",
        action="store_true",
        help="leave out what is no tensor, and say so, instead of refusing it",
    )
    add("--validate-result", action="store_true", help="load the output and compare every bit")
    add(
        "--use-direct-io",
        action="store_true",
        help="read past the page cache, into memory as large as the input",
    )
    return parser.parse_args(arguments)


def _identity(source: Place) -> str:
    if isinstance(source, Address):
        return str(source)
    return os.path.abspath(source)  # noqa: PTH100 - links stay


def _path(text: str) -> Place:
    if not text:
        raise argparse.ArgumentTypeError("an empty name names no file")
    return place(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 1 if a file could not be converted; the reason is on standard error, and the
        other files are converted.
    """
    asked = vars(_arguments(arguments))
    inputs, output = asked.pop("input"), asked.pop("output")
    options = Options(**asked)
    try:
        sources = sources_in(inputs)
        directory = output_directory(inputs, output)
        options = replace(options, makes_directory=directory is not None)
        if directory is not None and not options.dry_run:
            directory.mkdir(exist_ok=True)
    except (ConvertError, OSError) as error:
        print(f"convert {', '.join(map(str, inputs))}: {error}", file=sys.stderr)
        return 1
    return _convert_all(sources, output, directory, options)


def _convert_all(
    sources: list[Place], output: str | None, directory: Place | None, options: Options
) -> int:
    taken: dict[str, Place] = {}
    failed = 0
    for source in sources:
        target = source.with_suffix(".safetensors")
        if output is not None:
            target = place(output) if directory is None else directory / target.name
        try:
            written = str(target)
            if isinstance(target, Path):
                written = str(target.parent.resolve() / target.name)
            other = taken.setdefault(written, source)
            if other is not source:
                raise ConvertError(f"{target} is the output of {other}")
            for sentence in convert(source, target, options):
                print(sentence, flush=True)
        except (ConvertError, OSError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error) or type(error).__name__
            print(f"convert {source}: {reason}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that are not text
    sys.exit(main())
