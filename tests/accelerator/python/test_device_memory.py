"""The memory of loads to devices: how much there is, who owns it, and when it is given back."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import configured, stats
from checkpoints import (
    MIB,
    SCRATCH,
    SEGMENT,
    STATE,
    State,
    assert_on,
    at_once,
    bytes_of,
    in_use,
    saved,
)

import veturboio

PINMEM = "use_pinmem attribute of an exising IOHelper should not be changed"

FLOATS = {"large": torch.rand(3 * SEGMENT // 4), "small": torch.rand(30), "odd": torch.rand(700, 3)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


def peak(device: int) -> int:
    """The most bytes of a device that there were beside those that were there before."""
    return int(stats()["device"][device]["peak"])


def test_a_load_gives_its_pinned_memory_back(model: Path) -> None:
    before = in_use()
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True)
    assert in_use() == (before[0] + bytes_of(STATE), *before[1:])
    del loaded
    assert in_use() == before


@pytest.mark.parametrize("count", [1, 5])
def test_dropping_a_tensor_frees_its_bytes_on_the_device(model: Path, count: int) -> None:
    before = in_use()[0]
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True)
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == len(loaded)
    left = bytes_of(STATE)
    assert in_use()[0] - before == left
    for name in sorted(STATE)[:count]:
        assert loaded[name].untyped_storage().nbytes() == STATE[name].nbytes
        left -= loaded.pop(name).nbytes
        assert in_use()[0] - before == left


def test_one_allocation_is_one_until_the_last_tensor_is_dropped(model: Path) -> None:
    before = in_use()
    accelerator.reset_stats()
    location = {"": "sim:0", "large": "sim:1", "scalar": "cpu"}
    loaded = veturboio.load(model, map_location=location, one_allocation=True)
    counted = stats()["device"]
    assert counted[1]["ever"] == 1
    assert STATE["large"].nbytes <= counted[1]["now"] - before[1] < STATE["large"].nbytes + 512
    assert counted[0]["ever"] <= 2, "the tensors, and what small ones pass through"
    assert before[0] < in_use()[0] < before[0] + bytes_of(STATE)
    for name, tensor in loaded.items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.numel() == 0 or tensor.data_ptr() % 512 == 0 or name == "scalar"
        assert torch.equal(tensor.cpu().view(-1).view(torch.uint8), _bytes(STATE[name]))
    last = loaded["F32"]
    del tensor, loaded
    assert in_use()[0] > before[0] + last.nbytes
    assert torch.equal(last.cpu().view(torch.int32), STATE["F32"].view(torch.int32))
    del last
    assert in_use() == before


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_what_shares_an_allocation_is_not_overwritten_by_its_neighbour(tmp_path: Path) -> None:
    state = {f"{i:03}": torch.full((i,), i, dtype=torch.uint8) for i in range(200)}
    path = saved(tmp_path / "model", state)
    loaded = veturboio.load(path, map_location="sim:0", one_allocation=True, use_pinmem=True)
    assert_on("sim:0", loaded, state)
    loaded["100"].zero_()
    assert_on("sim:0", loaded, state | {"100": torch.zeros(100, dtype=torch.uint8)})


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_a_device_has_room_for_the_tensors_and_little_more(
    tmp_path: Path, pinned: bool, dtype: torch.dtype | None, one: bool
) -> None:
    path = saved(tmp_path / "model", FLOATS)
    before = in_use()[1]
    accelerator.reset_stats()
    loaded = veturboio.load(
        path, map_location="sim:1", use_pinmem=pinned, dtype=dtype, one_allocation=one
    )
    alignment = 512 * len(FLOATS) if one else 0
    assert peak(1) - before <= bytes_of(loaded) + SCRATCH + alignment
    assert bytes_of(loaded) <= in_use()[1] - before <= bytes_of(loaded) + alignment


@pytest.mark.parametrize("capacity", [None, SEGMENT, 3 * SEGMENT + 5, 64 * SEGMENT])
@pytest.mark.parametrize("threads", [1, 32])
def test_pinned_memory_has_a_limit_whatever_the_size_of_the_file(
    tmp_path: Path, capacity: int | None, threads: int
) -> None:
    path = tmp_path / "model"
    saved(path, {"a": torch.zeros(300 * MIB, dtype=torch.uint8)}, durable=False)
    helper = None if capacity is None else veturboio.init_io_helper(capacity)
    accelerator.reset_stats()
    with configured(h2d_bandwidth=1000 * MIB, random_delay_us=0):
        veturboio.load(
            path, map_location="sim:0", use_pinmem=True, helper=helper, num_thread=threads
        )
    assert 0 < stats()["pinned"]["peak"] <= (capacity or 256 * MIB)
    if helper is not None:
        assert helper.nbytes() <= helper.capacity()
    path.unlink()


def test_a_helper_too_small_for_a_segment_costs_one_segment_at_a_time(model: Path) -> None:
    helper = veturboio.init_io_helper(100)
    for _ in range(2):
        loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True, helper=helper)
        assert_on("sim:0", loaded)
        assert stats()["pinned"]["peak"] == SEGMENT
        assert helper.nbytes() == stats()["pinned"]["now"] == 0


def test_a_helper_keeps_pinned_memory_for_whatever_comes_next(tmp_path: Path, model: Path) -> None:
    large = {"a": torch.arange(5 * SEGMENT // 8), "b": torch.ones(3)}
    path = saved(tmp_path / "large", large)
    small = saved(tmp_path / "small", {"a": torch.ones(1)})
    helper = veturboio.init_io_helper()
    veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)
    pinned = stats()["pinned"]
    assert helper.nbytes() == pinned["now"] > 0
    for device in ("sim:0", "sim:1", {"": "sim:1", "b": "sim:0", "small": "cpu"}):
        for file in (path, model, small, path):
            veturboio.load(file, map_location=device, use_pinmem=True, helper=helper)
            assert stats()["pinned"]["ever"] == pinned["ever"]
    loaded = veturboio.load(path, map_location="sim:1", use_pinmem=True, helper=helper)
    assert_on("sim:1", loaded, large)
    assert stats()["pinned"] == pinned


def test_closing_a_helper_gives_its_memory_back(model: Path) -> None:
    with contextlib.closing(veturboio.init_io_helper()) as helper:
        veturboio.load(model, map_location="sim:0", use_pinmem=True, helper=helper)
        assert stats()["pinned"]["now"] == helper.nbytes() > 0
    assert stats()["pinned"]["now"] == helper.nbytes() == 0
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True, helper=helper)
    assert_on("sim:0", loaded)
    assert stats()["pinned"]["now"] == helper.nbytes() == 0


def test_dropping_a_helper_gives_its_memory_back(model: Path) -> None:
    helper = veturboio.init_io_helper()
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True, helper=helper)
    assert stats()["pinned"]["now"] > 0
    del helper
    gc.collect()
    assert stats()["pinned"]["now"] == 0
    assert_on("sim:0", loaded)


def test_a_helper_may_be_closed_while_it_is_used(tmp_path: Path) -> None:
    state = {"a": torch.arange(6 * SEGMENT // 8)}
    path = saved(tmp_path / "model", state)
    helper = veturboio.init_io_helper(2 * SEGMENT)

    def load() -> State:
        return veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)

    with configured(bandwidth=500 * MIB):
        for loaded in at_once([load, helper.close, load, helper.close])[::2]:
            assert_on("sim:0", loaded, state)
    helper.close()
    assert stats()["pinned"]["now"] == 0


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_use_pinmem_may_not_change(model: Path, pinned: bool) -> None:
    helper = veturboio.init_io_helper()
    given = {name: torch.empty_like(tensor, device="sim:0") for name, tensor in STATE.items()}
    veturboio.load(model, map_location="sim:0", helper=helper, use_pinmem=pinned)
    others: list[dict[str, Any]] = [
        {"map_location": "sim:1"},
        {"map_location": "cpu"},
        {"state_dict": given},
        {},
    ]
    for more in others:
        with pytest.raises(veturboio.ArgumentError, match=PINMEM):
            veturboio.load(model, helper=helper, use_pinmem=not pinned, **more)
    with pytest.raises((ValueError, RuntimeError), match=PINMEM):
        torch.ops.veturboio.load(
            str(model), map_location="sim:0", helper=helper, use_pinmem=not pinned
        )
    loaded = veturboio.load(model, map_location="sim:0", helper=helper, use_pinmem=pinned)
    assert_on("sim:0", loaded)
    helper.close()
    veturboio.load(model, map_location="sim:0", helper=helper, use_pinmem=not pinned)


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_what_a_device_has_no_memory_for_is_named(model: Path, pinned: bool, one: bool) -> None:
    before = in_use()
    limit = before[0] + STATE["large"].nbytes - 1
    with configured(memory_limit=limit):
        for location in ("sim:0", {"": "cpu", "large": "sim:0"}):
            with pytest.raises(torch.OutOfMemoryError) as raised:
                veturboio.load(model, map_location=location, use_pinmem=pinned, one_allocation=one)
            assert str(model) in str(raised.value)
            assert one or '"large"' in str(raised.value)
            del raised
            assert in_use() == before
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.ops.veturboio.load(str(model), map_location="sim:0")
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=pinned)
    assert_on("sim:0", loaded)


def test_a_limit_of_one_device_is_none_of_the_other(model: Path) -> None:
    accelerator.set_memory_limit(stats()["device"][0]["now"] + 100, 0)
    assert_on("sim:1", veturboio.load(model, map_location="sim:1", use_pinmem=True))
    with pytest.raises(torch.OutOfMemoryError):
        veturboio.load(model, map_location={"": "sim:1", "F64": "sim:0"}, use_pinmem=True)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_a_device_without_room_for_what_tensors_pass_through_says_so(
    tmp_path: Path, dtype: torch.dtype | None, pinned: bool
) -> None:
    """Either the load does without, or it is the device's memory that the error tells of."""
    state = {f"{i}": torch.rand(100) for i in range(50)}
    path = saved(tmp_path / "model", state)
    before = in_use()
    with configured(memory_limit=before[0] + bytes_of(state) + 1000):
        try:
            loaded = veturboio.load(path, map_location="sim:0", use_pinmem=pinned, dtype=dtype)
        except torch.OutOfMemoryError as error:
            assert str(path) in str(error)
        else:
            expected = {name: tensor.to(dtype or torch.float32) for name, tensor in state.items()}
            assert_on("sim:0", loaded, expected)
            del loaded
    assert in_use() == before
