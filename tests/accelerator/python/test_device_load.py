"""Loads to devices: the bytes are right, whatever the file and however they travel."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import configured, stats
from checkpoints import (
    MIB,
    SEGMENT,
    STATE,
    State,
    assert_on,
    at_once,
    bytes_of,
    devices,
    host,
    saved,
    with_odd_header,
)
from probe import assert_same

import veturboio

SMALL = {"w": torch.arange(1000.0), "b": torch.arange(7)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors")


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("way", ["read", "direct", "uring", "map", "auto"])
@pytest.mark.parametrize("threads", [1, 32])
def test_every_dtype_and_shape_arrives_by_every_way(
    model: Path, pinned: bool, way: str, threads: int
) -> None:
    loaded = veturboio.load(
        model, map_location="sim:1", use_pinmem=pinned, way=way, num_thread=threads
    )
    assert list(loaded) == list(veturboio.load(model))
    assert_on("sim:1", loaded)
    assert stats()["device"][0]["ever"] == 0


@pytest.mark.parametrize("arguments", [{"enable_fast_mode": False}, {"use_direct_io": True}])
def test_modes_differ_in_nothing_that_can_be_seen(model: Path, arguments: dict[str, Any]) -> None:
    assert_on("sim:0", veturboio.load(model, map_location="sim", use_pinmem=True, **arguments))


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_a_file_in_which_nothing_is_aligned_arrives(model: Path, pinned: bool) -> None:
    with_odd_header(model)
    assert_on("sim:0", veturboio.load(model, map_location="sim:0", use_pinmem=pinned))


def test_a_file_without_tensors_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "empty", {})
    assert veturboio.load(path, map_location="sim:0", use_pinmem=True) == {}
    nothing = saved(tmp_path / "nothing", {"a": torch.empty(0, 2), "b": torch.empty(3, 0)})
    loaded = veturboio.load(nothing, map_location="sim:1", use_pinmem=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        "a": (0, 2),
        "b": (3, 0),
    }
    assert set(devices(loaded).values()) == {"sim:1"}


@pytest.mark.parametrize("size", [SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 4095])
def test_tensors_around_the_size_of_a_segment_arrive(tmp_path: Path, size: int) -> None:
    state = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.arange(size).to(torch.uint8)}
    path = saved(tmp_path / "model", state)
    for pinned in (False, True):
        loaded = veturboio.load(path, map_location="sim", use_pinmem=pinned, num_thread=3)
        assert_on("sim:0", loaded, state)


def test_segments_are_used_again_only_when_they_are_copied(tmp_path: Path) -> None:
    """With a slow device and a ring of two, readers must wait for it."""
    state = {"a": torch.arange(10 * SEGMENT // 8)}
    path = saved(tmp_path / "model", state)
    helper = veturboio.init_io_helper(2 * SEGMENT)
    with configured(bandwidth=200 * MIB, random_delay_us=5000):
        loaded = veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)
    assert_on("sim:0", loaded, state)
    assert stats()["pinned"]["peak"] <= 2 * SEGMENT


def test_pinned_memory_is_copied_without_blocking_and_on_a_stream_of_its_own(model: Path) -> None:
    loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True)
    counted = stats()
    assert counted["h2d"]["sync"] == 0 < counted["h2d"]["async"]
    assert counted["h2d"]["bytes"] >= bytes_of(STATE)
    assert counted["streams"] == [2, 0], "the caller's stream, and one of the load's own"
    assert counted["pinned"]["ever"] > 0
    assert_on("sim:0", loaded)


def test_without_use_pinmem_no_memory_is_pinned(model: Path) -> None:
    veturboio.load(model, map_location="sim:0")
    counted = stats()
    assert (counted["pinned"]["ever"], counted["h2d"]["async"]) == (0, 0)
    veturboio.load(model, use_pinmem=True)
    assert stats()["pinned"]["ever"] == 0, "nor where nothing goes to a device"


def test_reading_and_copying_overlap(tmp_path: Path) -> None:
    """Many copies are under way while the file is still being read."""
    path = saved(tmp_path / "model", {"a": torch.arange(8 * SEGMENT // 8)})
    with configured(bandwidth=100 * MIB):
        accelerator.reset_stats()
        veturboio.load(path, map_location="sim:0", use_pinmem=True)
    assert stats()["max_queue"] > 4


def test_many_tiny_tensors_travel_together(tmp_path: Path) -> None:
    state = {f"layers.{i}": torch.full((i % 9,), float(i)) for i in range(1000)}
    path = saved(tmp_path / "model", state)
    for pinned in (False, True):
        accelerator.reset_stats()
        loaded = veturboio.load(path, map_location="sim:0", use_pinmem=pinned)
        assert stats()["h2d"]["copies"] <= 4
        assert_on("sim:0", loaded, state)


def test_tiny_tensors_that_are_not_aligned_travel_together_too(tmp_path: Path) -> None:
    state = {f"layers.{i}": torch.full((i % 9,), float(i)) for i in range(1000)}
    path = with_odd_header(saved(tmp_path / "model", state))
    loaded = veturboio.load(path, map_location="sim:0", use_pinmem=True)
    assert_on("sim:0", loaded, state)
    assert stats()["h2d"]["copies"] <= 40


def test_a_hundred_thousand_tensors_arrive(tmp_path: Path) -> None:
    state = {str(i): torch.tensor([i]) for i in range(100_000)}
    path = saved(tmp_path / "model", state)
    loaded = veturboio.load(path, map_location="sim:0", use_pinmem=True, one_allocation=True)
    assert stats()["h2d"]["copies"] <= 40
    assert len(loaded) == len(state)
    together = torch.cat([loaded[str(i)].unsqueeze(0) for i in range(0, 100_000, 997)]).cpu()
    assert together.flatten().tolist() == list(range(0, 100_000, 997))


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_work_queued_before_a_load_does_not_harm_it(model: Path, pinned: bool) -> None:
    """The load may get memory that such work still uses, as it may in torch's own allocators."""
    mine = accelerator.pooled_stream(0)
    with configured(bandwidth=50 * MIB, latency_us=2000), mine:
        source = torch.ones(MIB, pin_memory=True)
        busy = torch.empty(MIB, device="sim:0")
        for _ in range(3):
            busy.copy_(source, non_blocking=True)
        loaded = veturboio.load(model, map_location="sim:0", use_pinmem=pinned)
        assert_on("sim:0", loaded)
        assert torch.equal(busy.cpu(), source)


def test_work_queued_after_a_load_sees_its_tensors_on_any_stream(model: Path) -> None:
    mine, other = accelerator.pooled_stream(1), accelerator.pooled_stream(1)
    with configured(bandwidth=200 * MIB, latency_us=3000):
        with mine:
            loaded = veturboio.load(model, map_location="sim:1", use_pinmem=True)
            copies = {name: tensor.clone() for name, tensor in loaded.items()}
        with other:
            others = {name: tensor.clone() for name, tensor in loaded.items()}
        default = host(loaded)
        accelerator.synchronize()
    for result in (host(copies), host(others), default):
        assert_same(result, STATE)
    assert torch.accelerator.current_stream("sim:1").stream_id == 0


def test_tensors_may_be_dropped_at_once(model: Path) -> None:
    with configured(bandwidth=200 * MIB, random_delay_us=3000), accelerator.pooled_stream(0):
        for _ in range(5):
            veturboio.load(model, map_location="sim:0", use_pinmem=True)
    assert stats()["violations"] == 0


def test_a_load_leaves_the_current_device_and_stream_alone(model: Path) -> None:
    torch.accelerator.set_device_index(1)
    try:
        with accelerator.pooled_stream(1) as mine:
            loaded = veturboio.load(model, map_location="sim", use_pinmem=True)
            assert torch.accelerator.current_stream() == mine
            veturboio.load(model, map_location="sim:0", use_pinmem=True)
            assert torch.accelerator.current_device_index() == 1
            assert torch.accelerator.current_stream() == mine
        assert_on("sim:1", loaded)
    finally:
        torch.accelerator.set_device_index(0)


@pytest.mark.parametrize("with_helper", [False, True])
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_loads_at_once_do_not_mix(tmp_path: Path, with_helper: bool, pinned: bool) -> None:
    helper = veturboio.init_io_helper(4 * SEGMENT) if with_helper else None
    states: list[State] = [
        {"a": torch.full((SEGMENT // 3,), float(i)), "b": torch.arange(i * 1000)} for i in range(4)
    ]
    paths = [saved(tmp_path / str(i), state) for i, state in enumerate(states)]

    def load(turn: int) -> State:
        device = f"sim:{turn % 2}"
        with accelerator.pooled_stream(turn % 2):
            path = paths[turn % 4]
            loaded = veturboio.load(path, map_location=device, use_pinmem=pinned, helper=helper)
            assert set(devices(loaded).values()) == {device}
            return host(loaded)

    results = at_once([partial(load, turn) for turn in range(8)])
    for turn, result in enumerate(results):
        assert_same(result, states[turn % 4])
    if helper is not None and pinned:
        assert stats()["pinned"]["peak"] <= 4 * SEGMENT


def test_no_thread_is_left(model: Path) -> None:
    veturboio.load(model, map_location="sim:0", use_pinmem=True)
    assert [thread for thread in threading.enumerate() if "veturboio" in thread.name] == []


def test_what_the_caller_has_switched_on_changes_nothing(model: Path) -> None:
    for context in (torch.device("meta"), torch.no_grad(), torch.inference_mode()):
        with context:
            loaded = veturboio.load(model, map_location="sim:0", use_pinmem=True)
        assert_on("sim:0", loaded)
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_progress_counts_to_the_end(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    veturboio.load(
        model, map_location="sim:0", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (bytes_of(STATE), bytes_of(STATE))


@pytest.mark.parametrize("device", ["sim:2", "sim:9", "cuda:0", "xpu", "no-such-device"])
def test_a_device_that_is_not_there_is_named(model: Path, device: str) -> None:
    for location in (device, {"": "cpu", "large": device}):
        with pytest.raises(RuntimeError, match=device):
            veturboio.load(model, map_location=location, use_pinmem=True)
    if device != "no-such-device":  # which torch itself refuses, before it knows of a file
        with pytest.raises(RuntimeError, match=str(model)):
            veturboio.load(model, map_location=device)


@pytest.mark.parametrize("keep", [100, 5000, 10 * MIB])
def test_a_file_that_is_cut_is_refused(model: Path, keep: int) -> None:
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises((veturboio.FormatError, OSError), match=str(model)):
        veturboio.load(model, map_location="sim:0", use_pinmem=True)
    assert stats()["device"][0]["now"] == 0
