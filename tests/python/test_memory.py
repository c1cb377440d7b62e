"""Whose memory a loaded tensor is: private to the process, and freed with the last."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from conftest import Run
from probe import bits, maps_of, open_files
from safetensors.torch import save_file

import veturboio

STATE = {"a": torch.arange(100_000), "b": torch.rand(1000), "c": torch.tensor(3.0)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return path


def test_writing_to_a_tensor_leaves_the_file_alone(model: Path) -> None:
    before = model.read_bytes()
    loaded = veturboio.load(model)
    for value in loaded.values():
        value.zero_()
    assert model.read_bytes() == before
    assert torch.equal(veturboio.load(model)["a"], STATE["a"])
    assert loaded["a"].sum() == 0


def test_two_loads_do_not_see_each_other(model: Path) -> None:
    one, two = veturboio.load(model), veturboio.load(model)
    one["a"].fill_(9)
    assert torch.equal(two["a"], STATE["a"])


def test_writing_to_one_tensor_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {f"{i:03}": torch.full((i,), i % 100, dtype=torch.uint8) for i in range(200)}
    save_file(state, path)
    loaded = veturboio.load(path)
    for i in range(0, 200, 2):
        loaded[f"{i:03}"].fill_(255)
    for i in range(1, 200, 2):
        assert torch.equal(loaded[f"{i:03}"], state[f"{i:03}"])


def test_memory_goes_with_the_last_tensor(model: Path) -> None:
    loaded = veturboio.load(model)
    last = loaded["c"].view(1)
    del loaded
    gc.collect()
    assert last.item() == 3.0
    del last
    gc.collect()
    assert maps_of(model) == []


def test_no_descriptor_stays_open(model: Path) -> None:
    files = open_files()
    loaded = veturboio.load(model)
    assert open_files() == files
    veturboio.load(model, map_location="meta")
    veturboio.metadata(model)
    veturboio.save_file(loaded, model)
    assert open_files() == files


def test_a_descriptor_is_not_given_to_children(model: Path, run: Run) -> None:
    """Nothing that a save opens survives exec: looked at from a child that starts meanwhile."""
    code = """
import os, subprocess, sys, threading, torch, veturboio
state = {"a": torch.zeros(2**24)}
done = threading.Event()
def saves():
    for _ in range(5):
        veturboio.save_file(state, "model.safetensors")
    done.set()
thread = threading.Thread(target=saves)
thread.start()
leaked = set()
while not done.is_set():
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True)
    leaked |= {line for line in listing.stdout.decode().splitlines() if os.getcwd() in line}
thread.join()
assert not leaked, leaked
"""
    run(code)


def test_memory_is_given_back(tmp_path: Path, run: Run) -> None:
    """Forty loads of 32 MiB and as many refused ones must not add up."""
    save_file({"a": torch.ones(2**23)}, tmp_path / "model.safetensors")
    (tmp_path / "bad").write_bytes((tmp_path / "model.safetensors").read_bytes() + b"x")
    code = """
import pathlib, veturboio
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
def cycle():
    loaded = veturboio.load("model.safetensors")
    assert loaded["a"].sum() == 2**23
    veturboio.save_file(loaded, "again.safetensors")
    try:
        veturboio.load("bad")
    except veturboio.FormatError:
        pass
cycle()
before = resident()
for _ in range(20):
    cycle()
print(resident() - before)
"""
    assert int(run(code)) < 64 * 2**20


PEAK = """
import pathlib, sys, torch, veturboio
def peak_of(story):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    def status(key):
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.split(key + ":")[1].split()[0]) * 1024
    before = status("VmRSS")
    kept = story()
    return status("VmHWM") - before
"""


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_peak_of_a_load_is_the_file(tmp_path: Path, run: Run, device: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"{i}": torch.ones(2**22) for i in range(16)}, path)
    code = f"""{PEAK}
def story():
    loaded = veturboio.load("model.safetensors", map_location="{device}")
    assert all(tensor.sum() == 2**22 for tensor in loaded.values())
    return loaded
veturboio.load("model.safetensors", map_location="meta")
print(peak_of(story))
"""
    assert int(run(code)) < path.stat().st_size + 48 * 2**20


def test_peak_of_a_load_though_all_is_misaligned(tmp_path: Path, run: Run) -> None:
    """Old writers did not pad headers: what is copied need not be mapped into memory as well."""
    size = 2**27
    header = {"b": tensor("U8", [1], 0, 1), "a": tensor("F64", [size // 8], 1, 1 + size)}
    (tmp_path / "model.safetensors").write_bytes(file(header, bytes(1 + size)))
    code = f"""{PEAK}
def story():
    loaded = veturboio.load("model.safetensors")
    assert loaded["a"].sum() == 0
    return loaded
veturboio.load("model.safetensors", map_location="meta")
print(peak_of(story))
"""
    assert int(run(code)) < size + 48 * 2**20


@pytest.mark.parametrize(
    "shape", ["4096, 1024", "1024, 4096).t(", "4096, 2048)[:, ::2].view(4096, 1024"]
)
def test_peak_of_a_save_does_not_grow_with_the_file(run: Run, shape: str) -> None:
    """Neither contiguous nor transposed tensors are all copied at once: 256 MiB in 16 tensors."""
    code = f"""{PEAK}
state = {{f"{{i}}": torch.ones({shape}) for i in range(16)}}
veturboio.save_file({{"a": torch.ones(5, 3).t()}}, "warm.safetensors")
print(peak_of(lambda: veturboio.save_file(state, "model.safetensors")))
"""
    assert int(run(code)) < 96 * 2**20


def test_tensors_travel_by_pickle_and_by_deepcopy(model: Path) -> None:
    import copy

    loaded = veturboio.load(model)
    again = pickle.loads(pickle.dumps(loaded))
    deep = copy.deepcopy(loaded)
    for name, value in STATE.items():
        assert torch.equal(again[name], value)
        assert torch.equal(deep[name], value)
        assert deep[name].data_ptr() != loaded[name].data_ptr()


def test_tensors_can_move_to_shared_memory(model: Path) -> None:
    loaded = veturboio.load(model)
    loaded["a"].share_memory_()
    assert loaded["a"].is_shared()
    assert torch.equal(loaded["a"], STATE["a"])
    assert torch.equal(loaded["b"], STATE["b"])


def test_a_tensor_can_be_resized_away(model: Path) -> None:
    """resize_ must not write beyond the tensor into its neighbours, nor free the common bytes."""
    loaded = veturboio.load(model)
    loaded["c"].resize_(1)
    grown = loaded["b"]
    try:
        grown.resize_(2000)
    except RuntimeError as error:
        assert "resiz" in str(error)  # a storage of fixed size may say so
    else:
        grown[1000:].fill_(7)
        assert torch.equal(grown[:1000], STATE["b"])
    assert torch.equal(loaded["a"], STATE["a"])
    assert loaded["c"].item() == 3.0


def test_the_numpy_view_of_a_tensor_keeps_it_alive(model: Path) -> None:
    pytest.importorskip("numpy")
    array = veturboio.load(model)["a"].numpy()
    gc.collect()
    assert bytes(array.tobytes()) == bits(STATE["a"])
