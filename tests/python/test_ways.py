"""``way``: the same tensors whichever is taken, the right one where none is named, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from circumstances import WAYS, every_way, forget, needs_disk
from conftest import Run
from probe import assert_same, maps_of

import veturboio

Mount = Callable[[str], Path]

STATE = {
    "large": torch.arange(2_500_000),  # over two segments, and no whole number of pages
    "odd": torch.randn(1237),
    "half": torch.randn(300, 7).bfloat16(),
    "turned": torch.arange(600_000).view(600, 1000).t(),
    "nothing": torch.empty(0, 3),
}


def old(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


every_format = pytest.mark.parametrize(
    "write", [veturboio.save_file, torch.save, old], ids=["safetensors", "zip", "old"]
)
Write = Callable[[dict[str, torch.Tensor], Path], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """Large enough to be read past the page cache, which holds nothing of it."""
    path = tmp_path / "cold"
    veturboio.save_file({"a": torch.zeros(2**26, dtype=torch.uint8)}, path)
    needs_disk(path)
    return path


def explained(file: Path, **options: Any) -> tuple[str, int, int, str]:
    """Way, bytes, reads at once and reason, as ``explain`` says them."""
    sentence = veturboio.explain(file, **options)
    if "slices" not in options:
        assert sentence == torch.ops.veturboio.explain(str(file), **options)
    found = re.fullmatch(
        rf"{re.escape(str(file))}: (\w+), (\d+) bytes .+, (\d+) at a time, because (.+)", sentence
    )
    assert found, sentence
    return found[1], int(found[2]), int(found[3]), found[4]


@every_format
@every_way
@pytest.mark.parametrize("threads", [1, 5])
def test_every_way_loads_the_same(tmp_path: Path, write: Write, way: str, threads: int) -> None:
    write(STATE, tmp_path / "model")
    forget(tmp_path / "model")
    for _ in range(2):  # cold, and then as the first load left it
        loaded = veturboio.load(tmp_path / "model", way=way, num_thread=threads)
        assert_same(loaded, STATE)
    assert_same(torch.ops.veturboio.load(str(tmp_path / "model"), way=way), STATE)
    assert explained(tmp_path / "model", way=way)[::3] == (way, f"{way} was asked for")


@every_way
def test_every_way_loads_the_same_from_memory(mount: Mount, way: str) -> None:
    point = mount("size=64m")
    for write in (veturboio.save_file, torch.save):
        write(STATE, point / "model")
        assert_same(veturboio.load(point / "model", way=way), STATE)


@every_way
def test_every_way_fills_tensors_that_are_there(model: Path, way: str) -> None:
    targets = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in STATE.items()}
    forget(model)
    veturboio.load(model, state_dict=targets, way=way, num_thread=3)
    assert_same(targets, STATE)


@every_way
def test_only_a_map_maps(model: Path, way: str) -> None:
    loaded = veturboio.load(model, way=way)
    mapped = f"{model}\n" in Path("/proc/self/smaps").read_text()
    assert mapped == (way == "map")
    loaded["large"].add_(1)
    assert_same(veturboio.load(model), STATE)
    del loaded
    assert maps_of(model) == []


def test_what_is_cached_is_mapped(model: Path) -> None:
    veturboio.load(model, way="read")
    way, size, threads, reason = explained(model)
    assert (way, reason) == ("map", "the page cache holds 100% of it")
    assert 0 < model.stat().st_size - size < 1000
    assert threads <= len(os.sched_getaffinity(0))


def test_what_is_cold_and_large_is_read_past_the_cache(cold: Path) -> None:
    for _ in range(2):  # being asked changes nothing
        way, size, threads, reason = explained(cold)
        assert (way, size) == ("direct", 2**26)
        assert re.fullmatch(r"the page cache holds [0-4]% of it, and \w+ is faster past it", reason)
        veturboio.load(cold, map_location="meta")
    assert threads >= 2
    assert explained(cold, num_thread=1)[2] == 1
    loaded = veturboio.load(cold)
    assert maps_of(cold) == []
    assert loaded["a"].sum() == 0


def test_what_is_loaded_again_is_kept_by_the_cache(cold: Path) -> None:
    """The first load leaves little in the cache, by which the second one knows of it."""
    veturboio.load(cold)
    way, _, threads, reason = explained(cold)
    assert way == "map"
    assert reason.endswith("and it was read before: the cache shall keep it now")
    assert threads <= len(os.sched_getaffinity(0))
    loaded = veturboio.load(cold)
    assert maps_of(cold) != []
    assert explained(cold)[3] == "the page cache holds 100% of it"
    del loaded


def test_what_is_small_is_mapped(model: Path) -> None:
    needs_disk(model)
    way, _, _, reason = explained(model)
    assert way == "map"
    assert reason.endswith("and it is small")


def test_a_part_of_what_is_cold_is_read_past_the_cache(cold: Path) -> None:
    way, size, _, reason = explained(cold, slices={"a": slice(2**20, 2**21)})
    assert (way, size) == ("direct", 2**20)
    assert reason.endswith("reading ahead would bring in what is not wanted")
    veturboio.load(cold, slices={"a": slice(2**20, 2**21)})
    assert maps_of(cold) == []


def test_a_small_part_of_a_large_file_is_told_of_as_such(cold: Path) -> None:
    assert explained(cold, slices={"a": slice(2**20, 2**21)})[1] == 2**20
    with pytest.raises(TypeError):
        veturboio.explain(cold, names="a")
    assert veturboio.explain(cold, names=["a"]) == veturboio.explain(cold)


def test_what_lies_in_memory_is_mapped(mount: Mount) -> None:
    path = mount("size=64m") / "model"
    veturboio.save_file(STATE, path)
    way, _, _, reason = explained(path)
    assert (way, reason) == ("map", "tmpfs has it in memory")


@every_way
def test_the_caller_has_the_last_word(model: Path, way: str) -> None:
    assert explained(model, way=way)[::3] == (way, f"{way} was asked for")
    assert explained(model, use_direct_io=True, way=way)[0] == way
    assert explained(model, use_direct_io=True)[::3] == ("direct", "direct was asked for")


@every_way
def test_the_environment_is_asked_where_he_says_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("VETURBOIO_WAY", way)
    assert explained(model)[::3] == (way, f"{way} was asked for")
    loaded = veturboio.load(model)
    assert_same(loaded, STATE)
    assert bool(maps_of(model)) == (way == "map")
    assert explained(model, use_direct_io=True)[0] == "direct"
    assert explained(model, way="auto")[0] == "map"
    for other in WAYS:
        assert explained(model, way=other)[0] == other
    monkeypatch.setenv("VETURBOIO_WAY", "auto")
    assert explained(model)[3] != f"{way} was asked for"


@pytest.mark.parametrize("way", ["fast", "MAP", "map ", "\N{SNOWMAN}"])
def test_ways_that_do_not_exist(model: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    words = "way is auto, map, read, direct, uring, and not "
    operator = torch.ops.veturboio
    for act in (veturboio.load, veturboio.explain):
        with pytest.raises(veturboio.ArgumentError, match=words):
            act(model, way=way)
    target = {"a": torch.zeros(3)}
    monkeypatch.setenv("VETURBOIO_WAY", way)
    acts: list[Callable[[], object]] = [
        lambda: veturboio.load(model),
        lambda: veturboio.load(model, state_dict=target),
        lambda: veturboio.explain(model),
        lambda: operator.load(str(model)),
        lambda: operator.explain(str(model)),
    ]
    for refused in acts:
        with pytest.raises(ValueError, match=words):
            refused()
    assert_same(veturboio.load(model, way="map"), STATE)
    veturboio.save_file({"a": torch.ones(3)}, model)


def test_explaining_reads_nothing_but_the_header(cold: Path) -> None:
    with cold.open("r+b") as file:
        file.truncate(9)
    with pytest.raises(veturboio.FormatError):
        veturboio.explain(cold)
    with pytest.raises(FileNotFoundError):
        veturboio.explain(cold.parent / "nothing")
    with pytest.raises(ValueError, match="num_thread"):
        veturboio.explain(cold, num_thread=0)


REFUSE_URING = """
import ctypes, errno, os, struct, sys, torch, veturboio
libc = ctypes.CDLL(None, use_errno=True)
IO_URING_SETUP = 425
def setup():
    ring = libc.syscall(IO_URING_SETUP, 2, ctypes.create_string_buffer(120))
    return 0 if ring >= 0 else ctypes.get_errno()
def code(operation, true, false, number):
    return struct.pack("HBBI", operation, true, false, number)
LOAD, IS, RETURN, ALLOW, ERROR = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
number = int(sys.argv[1])
filter = b"".join([
    code(LOAD, 0, 0, 0),
    code(IS, 0, 1, IO_URING_SETUP),
    code(RETURN, 0, 0, ERROR | number),
    code(RETURN, 0, 0, ALLOW),
])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
if setup() == 0:
    assert "with io_uring" in veturboio.explain("model", way="uring")
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
if libc.prctl(SECCOMP, FILTER, ctypes.byref(Program(4, filter))) != 0:
    raise SystemExit(print("no seccomp"))
assert setup() == number
sentence = veturboio.explain("model", way="uring")
assert sentence.startswith("model: uring, ") and "io_uring is refused" in sentence, sentence
loaded = veturboio.load("model", way="uring")
whole = veturboio.load("model", way="map")
assert loaded.keys() == whole.keys()
assert all(torch.equal(loaded[name], whole[name]) for name in whole)
assert veturboio.load("model", way="uring", names=["odd"])["odd"].equal(whole["odd"])
print("refused")
"""


@pytest.mark.parametrize("number", [1, 38], ids=["EPERM", "ENOSYS"])
def test_where_io_uring_is_refused_there_are_other_ways(model: Path, run: Run, number: int) -> None:
    if "no seccomp" in (said := run(REFUSE_URING, number)):
        pytest.skip("there is no seccomp")
    assert "refused" in said


@every_way
def test_a_child_can_load_what_its_parent_has_loaded(model: Path, run: Run, way: str) -> None:
    code = f"""
import os, torch, veturboio
before = veturboio.load("model", way={way!r}, num_thread=4)
torch.set_num_threads(1)
child = os.fork()
if child == 0:
    try:
        again = veturboio.load("model", way={way!r}, num_thread=4)
        assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
        before["large"].zero_()
        again["odd"].zero_()
        veturboio.save_file(again, "child")
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(before["large"], torch.arange(2_500_000))
assert torch.equal(veturboio.load("child")["half"], before["half"])
"""
    run(code)


def test_workers_that_are_forked_load(model: Path, run: Run) -> None:
    code = """
import multiprocessing, torch, veturboio
torch.set_num_threads(1)
fork = multiprocessing.get_context("fork")
def work(number):
    way = ["map", "read", "direct", "uring"][number % 4]
    return int(veturboio.load("model", way=way, num_thread=3)["large"].sum())
total, sums = work(0), fork.SimpleQueue()
for _ in range(2):
    workers = [fork.Process(target=lambda n=n: sums.put(work(n))) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert [sums.get() for _ in workers] == [total] * 4
"""
    run(code)


def test_one_processor_has_one_thread(model: Path, run: Run) -> None:
    code = """
import os, veturboio
veturboio.load("model", way="read")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(veturboio.explain("model"))
print(veturboio.explain("model", way="read"))
veturboio.load("model")
"""
    lines = run(code).splitlines()
    assert len(lines) == 2
    assert all(", 1 at a time, because " in line for line in lines), lines
