"""Real CUDA devices, where there are some; and what a machine without one says.

``tests/accelerator`` tests the same on a device that is simulated, and much more.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from probe import DTYPES, assert_same, random_tensor

import veturboio

State = dict[str, torch.Tensor]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices"
)
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

PINNED = pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])

MIB = 1 << 20

#: Allocators of CUDA round up, and keep blocks for small tensors.
SLACK = 24 * MIB

STATE = {
    **{name: random_tensor(dtype, 3, 10, seed=3) for name, dtype in DTYPES.items()},
    "scalar": torch.tensor(7.5),
    "nothing": torch.empty(0, 3),
    "large": torch.arange(5 * MIB),
    **{f"small.{i}": torch.full((i,), float(i)) for i in range(50)},
}

FLOATS = {"large": torch.rand(20 * MIB), "small": torch.rand(30), "count": torch.arange(4)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def host(loaded: State) -> State:
    return {name: tensor.detach().cpu() for name, tensor in loaded.items()}


def assert_on(device: str, loaded: State, state: State) -> None:
    assert {str(tensor.device) for tensor in loaded.values()} == {device}
    assert_same(host(loaded), state)


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated(0)


@needs_cuda
@PINNED
@pytest.mark.parametrize("threads", [1, 32])
@pytest.mark.parametrize("way", ["read", "direct", "uring", "map", "auto"])
def test_every_dtype_arrives_by_every_way(
    model: Path, pinned: bool, threads: int, way: str
) -> None:
    loaded = veturboio.load(
        model, map_location="cuda:0", use_pinmem=pinned, num_thread=threads, way=way
    )
    assert_on("cuda:0", loaded, STATE)


@needs_cuda
def test_loads_on_a_stream_of_the_callers_own(model: Path) -> None:
    mine = torch.cuda.Stream()
    with torch.cuda.stream(mine):
        busy = torch.zeros(64 * MIB, device="cuda:0")
        for _ in range(20):
            busy.add_(1)
        del busy  # its memory may be given to the load while the stream still writes to it
        loaded = veturboio.load(model, map_location="cuda:0", use_pinmem=True)
        copies = {name: tensor.clone() for name, tensor in loaded.items()}
    mine.synchronize()
    assert_on("cuda:0", copies, STATE)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@needs_cuda
@PINNED
def test_loads_from_several_threads_share_a_helper(tmp_path: Path, pinned: bool) -> None:
    helper = veturboio.init_io_helper(32 * MIB)

    def there_and_back(turn: int) -> None:
        state = {"a": torch.full((3 * MIB,), float(turn)), "b": torch.arange(turn)}
        path = tmp_path / str(turn)
        veturboio.save_file(state, path, helper=helper, durable=False)
        loaded = veturboio.load(path, map_location="cuda:0", use_pinmem=pinned, helper=helper)
        assert_on("cuda:0", loaded, state)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(there_and_back, range(12)))
    assert 0 < helper.nbytes() <= helper.capacity()
    helper.close()
    assert helper.nbytes() == 0


@needs_cuda
def test_a_helper_keeps_its_memory_from_load_to_load(model: Path) -> None:
    helper, held = veturboio.init_io_helper(), []
    for _ in range(3):
        loaded = veturboio.load(model, map_location="cuda", use_pinmem=True, helper=helper)
        assert_on("cuda:0", loaded, STATE)
        held.append(helper.nbytes())
    assert held[0] > 0 and held == held[:1] * 3
    with pytest.raises(veturboio.ArgumentError, match="use_pinmem attribute of an exising"):
        veturboio.load(model, map_location="cuda", helper=helper)


@needs_cuda
def test_dropping_a_tensor_frees_its_memory(tmp_path: Path) -> None:
    veturboio.save_file(FLOATS, tmp_path / "model")
    before = allocated()
    loaded = veturboio.load(tmp_path / "model", map_location="cuda:0", use_pinmem=True)
    assert allocated() - before >= FLOATS["large"].nbytes
    del loaded["large"]
    assert allocated() - before < MIB
    together = veturboio.load(tmp_path / "model", map_location="cuda:0", one_allocation=True)
    del together["large"]
    assert allocated() - before >= FLOATS["large"].nbytes


@needs_cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_a_device_has_room_for_the_tensors_and_little_more(
    tmp_path: Path, dtype: torch.dtype | None
) -> None:
    veturboio.save_file(FLOATS, tmp_path / "model")
    before = allocated()
    torch.cuda.reset_peak_memory_stats(0)
    loaded = veturboio.load(tmp_path / "model", map_location="cuda:0", use_pinmem=True, dtype=dtype)
    needed = sum(tensor.nbytes for tensor in loaded.values())
    assert torch.cuda.max_memory_allocated(0) - before <= needed + SLACK
    for name, tensor in loaded.items():
        wanted = FLOATS[name]
        if dtype is not None and wanted.is_floating_point():
            wanted = wanted.to(dtype)
        assert torch.equal(tensor.cpu(), wanted)


@needs_cuda
def test_what_there_is_no_memory_for_is_named(tmp_path: Path) -> None:
    veturboio.save_file(FLOATS, tmp_path / "model")
    before = allocated()
    torch.cuda.empty_cache()
    everything = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 30 * MIB) / everything)
    try:
        with pytest.raises(torch.OutOfMemoryError, match='tensor "large"') as raised:
            veturboio.load(tmp_path / "model", map_location="cuda:0", use_pinmem=True)
        assert str(tmp_path / "model") in str(raised.value)
        del raised
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert allocated() == before


@needs_cuda
def test_tensors_go_to_devices_by_name(model: Path) -> None:
    location: dict[str, Any] = {"": "cpu", "small": "cuda:0", "small.7": "cpu"}
    location["large"] = torch.device("cuda", 0)
    loaded = veturboio.load(model, map_location=location, use_pinmem=True)
    assert_same(host(loaded), STATE)
    assert loaded["small.8"].is_cuda and loaded["small.7"].is_cpu and loaded["F64"].is_cpu
    by_name = veturboio.load(model, map_location={"large": "cuda:0"}.get, use_pinmem=True)
    assert_same(host(by_name), STATE)
    assert [name for name, tensor in by_name.items() if tensor.is_cuda] == ["large"]
    with pytest.raises(veturboio.ArgumentError, match="map_location names no device"):
        veturboio.load(model, map_location={"small": "cuda:0"})


@needs_two
def test_two_devices_are_filled_in_one_pass(model: Path) -> None:
    loaded = veturboio.load(model, map_location={"": "cuda:0", "small": "cuda:1"}, use_pinmem=True)
    assert_same(host(loaded), STATE)
    assert loaded["small.9"].device.index == 1 and loaded["large"].device.index == 0


@needs_cuda
@PINNED
def test_tensors_on_a_device_are_filled_in_place(model: Path, pinned: bool) -> None:
    given = {name: torch.empty_like(tensor, device="cuda:0") for name, tensor in STATE.items()}
    given["scalar"] = torch.zeros(())
    before = {name: (tensor.data_ptr(), tensor._version) for name, tensor in given.items()}
    loaded = veturboio.load(model, state_dict=given, use_pinmem=pinned)
    assert_same(host(loaded), STATE)
    for name, tensor in given.items():
        assert tensor.data_ptr() == before[name][0]
        assert tensor._version > before[name][1] or tensor.numel() == 0


@needs_cuda
def test_pytorch_files_come_to_a_device(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {"p": torch.nn.Parameter(torch.rand(3)), "l": [base.t(), base[1:, ::2]], "n": 1}
    torch.save(value, tmp_path / "model.pt")
    loaded: Any = veturboio.load(tmp_path / "model.pt", map_location="cuda:0", use_pinmem=True)
    assert isinstance(loaded["p"], torch.nn.Parameter) and loaded["p"].is_cuda
    turned, part = loaded["l"]
    assert turned.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
    assert torch.equal(turned.cpu(), base.t()) and torch.equal(part.cpu(), base[1:, ::2])


@needs_cuda
@pytest.mark.parametrize("wait", [False, True])
def test_tensors_on_a_device_are_saved_as_they_are_now(tmp_path: Path, wait: bool) -> None:
    mine = torch.cuda.Stream()
    with torch.cuda.stream(mine):
        there = torch.zeros(16 * MIB, device="cuda:0")
        for _ in range(20):
            there.add_(1)
        state = {"a": there, "t": there[:600].view(20, 30).t(), "c": torch.ones(3)}
        future = veturboio.save_file(
            state, tmp_path / "model", force_save_shared_tensor=True, wait=wait
        )
        if future is not None:
            there.zero_()
            future.result()
    loaded = veturboio.load(tmp_path / "model")
    assert loaded["a"].unique().tolist() == loaded["t"].unique().tolist() == [20]


@needs_cuda
def test_a_script_loads_to_a_device(model: Path) -> None:
    loaded = torch.jit.script(_scripted)(str(model), torch.device("cuda:0"))
    assert_on("cuda:0", loaded, STATE)


def _scripted(file: str, device: torch.device) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.ops.veturboio.load(
        file, map_location=device, use_pinmem=True
    )
    return loaded


ENTRIES: dict[str, Callable[[Path], object]] = {
    "device": lambda path: veturboio.load(path, map_location="cuda:0"),
    "device-object": lambda path: veturboio.load(path, map_location=torch.device("cuda", 0)),
    "pinned": lambda path: veturboio.load(path, map_location="cuda:0", use_pinmem=True),
    "helper": lambda path: veturboio.load(
        path, map_location="cuda:0", use_pinmem=True, helper=veturboio.init_io_helper()
    ),
    "dtype": lambda path: veturboio.load(path, map_location="cuda:0", dtype=torch.bfloat16),
    "one": lambda path: veturboio.load(path, map_location="cuda:0", one_allocation=True),
    "dict": lambda path: veturboio.load(path, map_location={"": "cpu", "large": "cuda:0"}),
    "function": lambda path: veturboio.load(path, map_location=lambda name: "cuda:0"),
    "names": lambda path: veturboio.load(path, map_location="cuda:0", names=["large"]),
    "operator": lambda path: torch.ops.veturboio.load(
        str(path), map_location=torch.device("cuda:0")
    ),
    "operator-devices": lambda path: torch.ops.veturboio.load(
        str(path), devices={"": torch.device("cuda:0")}, use_pinmem=True
    ),
    "script": lambda path: torch.jit.script(_scripted)(str(path), torch.device("cuda:0")),
}


@needs_none
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("save", [veturboio.save_file, torch.save], ids=["safetensors", "pt"])
def test_without_a_device_the_file_and_the_device_are_named(
    tmp_path: Path, entry: Callable[[Path], object], save: Callable[..., object]
) -> None:
    path = tmp_path / "model"
    save({"large": torch.ones(9), "b": torch.ones(2)}, path)
    with pytest.raises(RuntimeError) as raised:
        entry(path)
    # A script tells its own lines after that.
    assert f"load {path}: " in str(raised.value)
    assert "there is no device cuda:0" in str(raised.value)
    assert veturboio.load(path, use_pinmem=True)["b"].tolist() == [1, 1]


@needs_none
def test_without_a_device_use_pinmem_changes_nothing_in_host_memory(model: Path) -> None:
    given = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    for pinned in (False, True):
        assert_same(veturboio.load(model, state_dict=given, use_pinmem=pinned), STATE)
        assert_same(veturboio.load(model, map_location="cpu", use_pinmem=pinned), STATE)


def test_the_library_needs_nothing_of_cuda() -> None:
    """One binary is for machines with and without it."""
    library = Path(veturboio.__file__).parent / "libveturboio.so"
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not on PATH")
    command = [readelf, "--dynamic", "--dyn-syms", "--wide", str(library)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = [line for line in told.splitlines() if "(NEEDED)" in line]
    assert needed and not any("cuda" in line or "nvidia" in line for line in needed), needed
    undefined = [line for line in told.splitlines() if " UND " in line]
    assert undefined
    assert [line for line in undefined if " cuda" in line or " cuM" in line] == []
