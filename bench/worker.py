"""One timed run in a process of its own: ``python -m bench.worker`` prints one JSON object.

The clock starts after every import and after one untimed call on a file of one tensor, so
that what a library, or the reading of pages, brings in on first use is not counted. It stops
when the library has returned and, where the case says so, a byte of every page of every
tensor has been read. Peak memory is the growth of VmHWM over what the process held before.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import bare, devices, files, memory
from bench.cases import CHECKPOINT
from bench.libraries import LIBRARIES, Library, Program, Shard

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]
    Load = Callable[[Path], StateDict]

SECTOR = 512


def touch(state_dict: StateDict) -> int:
    """Read a byte of every page of every tensor; the sum proves that all saw the same bytes."""
    look = bare.touch().touch
    total = 0
    for tensor in state_dict.values():
        if not tensor.is_cpu or not tensor.is_contiguous():
            tensor = tensor.cpu().contiguous()
        total += look(tensor.data_ptr(), tensor.nbytes)
    return total


def peak_memory() -> int:
    """The most memory this process ever held (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("read the peak memory: /proc/self/status has no VmHWM")


def forget_peak() -> int:
    """Start VmHWM anew, where the kernel allows it; else the peak of the imports stays."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def disk_bytes(folder: Path) -> int | None:
    """Bytes that the disk below ``folder`` has read so far; None for tmpfs and the like."""
    device = folder.stat().st_dev
    try:
        stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text()
    except OSError:
        return None
    return int(stat.split()[2]) * SECTOR


def disk_bytes_since(before: int | None, folder: Path) -> int | None:
    """What the disk has read since ``before``."""
    after = disk_bytes(folder)
    return None if before is None or after is None else after - before


def measure_load(load: Load, path: Path, touched: bool) -> dict[str, Any]:
    """Time one load, with or without the reading of every page."""
    before = disk_bytes(path.parent)
    used = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    state_dict = load(path)
    loaded = time.perf_counter()
    checksum = touch(state_dict) if touched else None
    stopped = time.perf_counter()
    used_after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": stopped - start,
        "call_seconds": loaded - start,
        "cpu_seconds": cpu_seconds(used_after) - cpu_seconds(used),
        "minor_faults": used_after.ru_minflt - used.ru_minflt,
        "disk_read_bytes": disk_bytes_since(before, path.parent),
        "checksum": touch(state_dict) if checksum is None else checksum,
        **extent(state_dict),
    }


def measure_save(
    library: Library, path: Path, state_dict: StateDict, durable: bool
) -> dict[str, Any]:
    """Time one save, where it is to be durable until the file and its name are."""
    assert library.save is not None
    used = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    library.save(state_dict, path, durable)
    stopped = time.perf_counter()
    used_after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": stopped - start,
        "cpu_seconds": cpu_seconds(used_after) - cpu_seconds(used),
        "minor_faults": used_after.ru_minflt - used.ru_minflt,
        "file_bytes": path.stat().st_size,
        **extent(state_dict),
    }


def read_back(path: Path, state_dict: StateDict) -> int:
    """Read a saved file with the library whose format it is; returns its checksum."""
    reader = LIBRARIES["torch" if path.suffix == ".pt" else "safetensors"]
    assert reader.load is not None
    checksum = touch(reader.load(path, None))
    if checksum != touch(state_dict):
        raise ValueError(f"read {path.name} back: its bytes are not those that were saved")
    return checksum


def cpu_seconds(usage: resource.struct_rusage) -> float:
    """User and system time together."""
    return usage.ru_utime + usage.ru_stime


def extent(state_dict: StateDict) -> dict[str, Any]:
    """How many tensors of how many bytes there are."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    return {"tensors": len(state_dict), "tensor_bytes": size}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line says."""
    library = LIBRARIES[arguments.library]
    if library.program is not None:
        return run_program(library.program, arguments)
    result = (run_load if arguments.operation == "load" else run_save)(library, arguments)
    return {**result, "version": importlib.metadata.version(library.module)}


def run_load(library: Library, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, reset the peak, load."""
    if arguments.bandwidth is not None:
        devices.load(arguments.bandwidth)
    load = loader(library, arguments)
    touch(load(arguments.tiny.with_suffix(library.suffix)))
    provided = provide_for_load(arguments)
    base = forget_peak()
    result = measure_load(load, arguments.path, arguments.touch)
    return {**result, "provide_seconds": provided, "peak_bytes": peak_memory() - base}


def run_save(library: Library, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, reset the peak, save, and look at what was saved."""
    assert library.save is not None
    state_dict = made(arguments)
    tiny = arguments.tiny.with_suffix(library.suffix)
    scratch = tiny.with_name("scratch-" + tiny.name)
    library.save(files.tensors(files.CONTENTS["one"]), scratch, arguments.durable)
    scratch.unlink()
    provided = memory.provide(extent(state_dict)["tensor_bytes"])
    base = forget_peak()
    result = measure_save(library, arguments.path, state_dict, arguments.durable)
    result |= {"provide_seconds": provided, "peak_bytes": peak_memory() - base}
    return {**result, "checksum": read_back(arguments.path, state_dict)}


def run_program(program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the program what the libraries get, and run it."""
    if arguments.operation == "load":
        length = arguments.path.stat().st_size
        provided = provide_for_load(arguments)
    else:
        length = files.size(files.CONTENTS[arguments.content])
        provided = memory.provide(2 * length)  # for what it writes, and for the page cache
    before = disk_bytes(arguments.path.parent)
    result = bare.run(arguments.bare, program, arguments.path, length)
    read = disk_bytes_since(before, arguments.path.parent)
    return {**result, "disk_read_bytes": read, "provide_seconds": provided}


def loader(library: Library, arguments: argparse.Namespace) -> Load:
    """The function that loads a whole file, or the part of it that is asked for."""
    if arguments.shard is not None:
        load_part, shard = library.shard, Shard(*arguments.shard)
        assert load_part is not None
        return lambda path: load_part(path, shard)
    load = library.load
    assert load is not None
    return lambda path: load(path, arguments.threads)


def provide_for_load(arguments: argparse.Namespace) -> float:
    """Have the memory of a load backed, and a cached file at hand."""
    provided = memory.provide(arguments.path.stat().st_size)
    if arguments.cached:
        memory.revisit(arguments.path)
    return provided


def made(arguments: argparse.Namespace) -> StateDict:
    """The tensors to save, made and therefore touched before the clock starts."""
    if arguments.content == CHECKPOINT:
        return files.from_checkpoint(arguments.checkpoint)
    return files.tensors(files.CONTENTS[arguments.content])


def main() -> None:
    """Run what the command line says and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--operation", choices=("load", "save"), required=True)
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--tiny", type=Path, required=True, help="file of one tensor, no suffix")
    parser.add_argument("--content", help="what to save")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int, help="how many may read")
    parser.add_argument("--bandwidth", type=int, help="bytes a second of a simulated device's bus")
    parser.add_argument("--shard", type=int, nargs=2, metavar=("INDEX", "COUNT"))
    parser.add_argument("--durable", action="store_true", help="save to the disk, not the cache")
    parser.add_argument("--bare", type=Path, help="the compiled bare.c")
    parser.add_argument("--touch", action="store_true", help="read a byte of every page")
    parser.add_argument("--cached", action="store_true", help="the file lies in the page cache")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
