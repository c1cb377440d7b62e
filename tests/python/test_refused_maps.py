"""What the system refuses to map is read, whoever wants it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from conftest import Run
from filters import needs_filters

import veturboio

NUMBERS = ["ENODEV", "EACCES", "EPERM", "ENOMEM", "EOPNOTSUPP", "EINVAL", "EAGAIN", "ENOSYS"]
NUMBERS += ["EFAULT", "EIO"]

CODE = """
import errno, sys, torch, veturboio
sys.path.insert(0, sys.argv[1])
import filters
state = {"a": torch.arange(3_000_000), "b": torch.arange(60.0).view(6, 10)}
views = {**state, "turned": state["b"].t()}
segment = veturboio.load_to_shmem("model")
getattr(filters, sys.argv[2])(getattr(errno, sys.argv[3]))

def check(loaded, wanted):
    assert list(loaded) == list(wanted)
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)

for way in (None, "auto", "map", "read", "direct", "uring"):
    for file, wanted in (("model", state), ("model.pt", views), ("old.pt", views)):
        seen = []
        progress = lambda done, of: seen.append((done, of))
        check(veturboio.load(file, way=way, progress=progress), wanted)
        assert seen[-1][0] == seen[-1][1] > 24_000_000, seen
        assert all(done <= of + 2**16 for done, of in seen), seen  # whole pages
        check(veturboio.load(file, way=way, names=["b"]), {"b": state["b"]})
        part = veturboio.load(file, way=way, slices={"a": slice(10, 2_000_000), "b": (..., 3)})
        assert torch.equal(part["a"], state["a"][10:2_000_000]), (way, file)
        assert torch.equal(part["b"], state["b"][:, 3])
        half = veturboio.load(file, way=way, dtype=torch.half)
        assert torch.equal(half["b"], state["b"].half()) and torch.equal(half["a"], state["a"])
        given = {name: torch.zeros_like(value) for name, value in wanted.items()}
        given = {name: value.contiguous() for name, value in given.items()}
        check(veturboio.load(file, way=way, state_dict=given), wanted)
        veturboio.explain(file, way=way)
check(veturboio.load("/dev/shm/" + segment.name), state)
segment.close()
segment.unlink()
loaded = veturboio.load("model")
loaded["a"].zero_()
check(veturboio.load("model"), state)
print("whole")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    state = {"a": torch.arange(3_000_000), "b": torch.arange(60.0).view(6, 10)}
    veturboio.save_file(state, tmp_path / "model")
    state["turned"] = state["b"].t()
    torch.save(state, tmp_path / "model.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return tmp_path


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("refuse", ["refuse_maps", "refuse_populating"])
def test_a_refused_map_is_read(files: Path, run: Run, refuse: str, number: str) -> None:
    needs_filters()
    if (refuse, number) == ("refuse_populating", "ENOMEM"):
        pytest.skip("no memory for the pages leaves none for a copy of them")
    said = run(CODE, Path(__file__).parent, refuse, number)
    if "no filter" in said:
        pytest.skip("no filter of system calls can be set")
    assert said.split() == ["whole"]


def test_where_not_even_a_copy_fits_the_error_says_so(files: Path, run: Run) -> None:
    code = """
import resource, veturboio
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, resource.RLIM_INFINITY))
try:
    veturboio.load("model", num_thread=1)
except OSError as error:
    print(error.errno, error)
"""
    number, _, text = run(code).partition(" ")
    assert int(number) == errno.ENOMEM
    assert "read model: Cannot allocate memory" in text
