"""Memory that the process may not take is not taken: limits of groups and of the process itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attacks.builder import tensor
from circumstances import forget, needs_disk
from conftest import Run

import veturboio

V1 = Path("/sys/fs/cgroup/memory")

SIZE = 128 << 20

LOOK = """
import os, sys, veturboio
for path in sys.argv[1:]:
    with open(f"{path}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
print(veturboio.explain("model"))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    veturboio.save_file({"a": torch.zeros(SIZE // 4)}, path)
    needs_disk(path)
    return path


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of version 1 with an odd name, and one in it that has no limit of its own."""
    path = V1 / f"veturboio: \\040 {os.getpid()}"
    try:
        (path / "inner").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    yield path
    for directory in (path / "inner", path):
        for _ in range(100):
            try:
                directory.rmdir()
                break
            except OSError:  # the last process is still about to leave
                time.sleep(0.1)


def test_without_a_limit_the_disk_is_read_past_the_cache(model: Path, run: Run) -> None:
    assert run(LOOK).startswith("model: direct, ")


@pytest.mark.parametrize("where", [".", "inner"])
def test_the_limit_of_a_group_is_heeded(model: Path, run: Run, group: Path, where: str) -> None:
    limit = group / "memory.limit_in_bytes"
    used = int((group / "memory.usage_in_bytes").read_text())
    for room, way in ((SIZE, "map"), (1 << 40, "direct")):
        limit.write_text(str(used + room))
        forget(model)
        said = run(LOOK, group / where)
        assert said.startswith(f"model: {way}, "), said
        assert ("memory is short" in said) == (way == "map")


def test_a_limit_of_the_process_is_heeded(model: Path, run: Run) -> None:
    code = """
import resource, veturboio
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(getattr(resource, "RLIMIT_AS"), (used + 200 * 2**20, resource.RLIM_INFINITY))
print(veturboio.explain("model"))
veturboio.load("model")
"""
    assert "memory is short" in run(code)


@pytest.mark.parametrize("index", [slice(0, None, 2), slice(0, 24 << 20)], ids=["step", "part"])
def test_a_part_heeds_it_too(model: Path, run: Run, index: slice) -> None:
    """Or less than all of a file would get the process killed where all of it does not."""
    code = f"""
import resource, veturboio
slices = {{"a": {index!r}}}
print(veturboio.explain("model", slices=slices))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 120 * 2**20, resource.RLIM_INFINITY))
print(veturboio.explain("model", slices=slices))
"""
    free, limited = run(code).splitlines()
    assert free.startswith("model: direct, ")
    assert limited.startswith("model: map, ") and "memory is short" in limited


@pytest.mark.parametrize("way", ["auto", "map", "read", "direct", "uring"])
def test_a_part_needs_no_addresses_for_the_whole(tmp_path: Path, run: Run, way: str) -> None:
    """Of a file that is longer than all addresses that the process may have."""
    length = 64 << 30
    tensors = {
        "whole": tensor("U8", [length], 0, length),
        "last": tensor("I32", [3], length, length + 12),
        "odd": tensor("I32", [3], length + 12, length + 24),
    }
    header = json.dumps(tensors)
    header += " " * (-len(header) % 8)
    with (tmp_path / "model").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(file.tell() + length)
        file.seek(0, os.SEEK_END)
        file.write(torch.arange(6, dtype=torch.int32).numpy().tobytes())
    code = """
import resource, sys, torch, veturboio
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
wanted = {"names": ["last", "odd"], "slices": {"odd": slice(1, 3)}}
loaded = veturboio.load("model", way=sys.argv[1], **wanted)
print(loaded["last"].tolist(), loaded["odd"].tolist())
"""
    assert run(code, way) == "[0, 1, 2] [4, 5]\n"
