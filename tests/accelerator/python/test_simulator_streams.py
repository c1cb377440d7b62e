"""The simulated devices themselves: what happens when, and what is found out about the careless."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import accelerator
import pytest
import torch
from accelerator import configured, stats

#: Bytes of a copy that takes a third of a second where ``slow`` is in force.
SIZE = 1000


@pytest.fixture
def slow() -> Iterator[None]:
    """Makes copies to the devices take long, and those to the host short."""
    with configured(h2d_bandwidth=3 * SIZE, latency_us=0, random_delay_us=0):
        yield


def pinned(value: int, size: int = SIZE) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.uint8, pin_memory=True)


def on_device(device: str = "sim:0", size: int = SIZE) -> torch.Tensor:
    """Zeros that are there already."""
    tensor = torch.zeros(size, dtype=torch.uint8, device=device)
    accelerator.synchronize()
    return tensor


def value_of(tensor: torch.Tensor) -> int:
    (value,) = tensor.cpu().unique().tolist()
    return int(value)


def recorded() -> torch.Event:
    event = torch.Event("sim")
    event.record()
    return event


@pytest.mark.usefixtures("slow")
def test_a_source_is_read_late_so_it_must_not_be_changed_early() -> None:
    source, target = pinned(1), on_device()
    target.copy_(source, non_blocking=True)
    source.fill_(2)
    assert value_of(target) == 2
    target.copy_(source, non_blocking=True)
    recorded().synchronize()
    source.fill_(3)
    assert value_of(target) == 2


@pytest.mark.usefixtures("slow")
def test_what_is_copied_to_the_host_is_there_late() -> None:
    accelerator.set_bandwidth(0, 3 * SIZE)
    source, target = on_device().fill_(5), pinned(0)
    target.copy_(source, non_blocking=True)
    assert target.sum() == 0
    accelerator.synchronize()
    assert target.unique().tolist() == [5]


@pytest.mark.usefixtures("slow")
def test_only_copies_of_pinned_memory_that_may_not_block_do_not_block() -> None:
    target, event = on_device(), torch.Event("sim")
    cases = [
        (pinned(1), True, False),
        (pinned(2), False, True),
        (torch.full((SIZE,), 3, dtype=torch.uint8), True, True),
        (pinned(4, 2 * SIZE)[::2], True, True),
    ]
    for source, non_blocking, waits in cases:
        target.copy_(source, non_blocking=non_blocking)
        event.record()
        assert waits or not event.query()
        assert value_of(target) == source[0]
    counted = stats()["h2d"]
    assert (counted["async"], counted["sync"], counted["copies"]) == (1, 3, 4)
    assert counted["bytes"] == 4 * SIZE


@pytest.mark.usefixtures("slow")
def test_a_stream_keeps_the_order_and_others_wait_for_events_only() -> None:
    source, target = pinned(1), on_device()
    side = torch.Stream("sim:0")
    with side:
        target.copy_(source, non_blocking=True)
        copied = recorded()
        target.fill_(2)
        filled = recorded()
    assert value_of(target) == 0  # the default stream knows nothing of the other
    torch.accelerator.current_stream("sim:0").wait_event(filled)
    assert copied.query() == filled.query()
    assert value_of(target) == 2
    assert copied.query() and filled.query() and side.query()
    assert stats()["streams"] == [2, 0]


@pytest.mark.usefixtures("slow")
def test_an_event_stands_for_its_newest_record() -> None:
    source, target = pinned(1), on_device()
    side, event = torch.Stream("sim:0"), torch.Event("sim")
    assert event.query()
    event.record()
    side.wait_event(event)  # which is soon over, unlike what comes now
    target.copy_(source, non_blocking=True)
    event.record()
    side.synchronize()
    assert not event.query()
    event.synchronize()
    assert event.query() and value_of(target) == 1


def test_events_tell_the_time_between_them() -> None:
    with configured(h2d_bandwidth=10 * SIZE, latency_us=0):
        first, second = (torch.Event("sim", enable_timing=True) for _ in range(2))
        source, target = pinned(1), on_device()
        first.record()
        target.copy_(source, non_blocking=True)
        second.record()
        second.synchronize()
        assert first.elapsed_time(second) >= 99


def test_streams_of_a_device_share_its_wires() -> None:
    with configured(bandwidth=10 * SIZE, latency_us=20_000, random_delay_us=0):
        sources = [pinned(value) for value in (1, 2)]
        targets = [on_device() for _ in sources]
        accelerator.reset_stats()
        start = time.monotonic()
        for source, target in zip(sources, targets, strict=True):
            with torch.Stream("sim:0"):
                target.copy_(source, non_blocking=True)
        accelerator.synchronize()
        assert time.monotonic() - start >= 2 * (0.1 + 0.02) - 0.001
        assert stats()["h2d"]["busy"] == pytest.approx(0.24)
        assert [value_of(target) for target in targets] == [1, 2]


def test_random_delays_come_from_the_seed() -> None:
    # They lie before the time that a wire is held, so a wire that costs nothing shows them.
    source, target = pinned(1, 1), on_device(size=1)
    with configured(random_delay_us=100_000, latency_us=0, seed=3):
        first, second = (torch.Event("sim", enable_timing=True) for _ in range(2))
        times = []
        for _ in range(4):
            first.record()
            target.copy_(source, non_blocking=True)
            second.record()
            second.synchronize()
            times.append(first.elapsed_time(second))
        assert max(times) > min(times)
        assert max(times) >= 5


@pytest.mark.usefixtures("slow")
def test_a_copy_between_devices_waits_for_both() -> None:
    source, target = on_device("sim:0"), on_device("sim:1")
    seven, one = pinned(7), pinned(1)
    source.copy_(seven, non_blocking=True)
    target.copy_(one, non_blocking=True)
    target.copy_(source)
    source.fill_(8)
    assert value_of(target) == 7
    assert stats()["d2d"]["copies"] == 1


def test_pooled_streams_take_turns() -> None:
    streams = [accelerator.pooled_stream(1) for _ in range(9)]
    assert len(set(streams)) == 8 and streams[0] == streams[8]
    assert all(stream.device == torch.device("sim:1") for stream in streams)
    with streams[0]:
        source, target = pinned(4), torch.empty(SIZE, dtype=torch.uint8, device="sim:1")
        target.copy_(source, non_blocking=True)
        assert value_of(target) == 4


def test_each_thread_and_block_has_a_current_stream() -> None:
    before = torch.accelerator.current_stream("sim:1")
    first, second = torch.Stream("sim:1"), torch.Stream("sim:1")
    assert len({before.stream_id, first.stream_id, second.stream_id}) == 3
    with first:
        assert torch.accelerator.current_stream("sim:1") == first
        with second:
            assert torch.accelerator.current_stream("sim:1") == second
    assert torch.accelerator.current_stream("sim:1") == before


@pytest.mark.violates
@pytest.mark.usefixtures("slow")
def test_freeing_memory_that_another_stream_uses_is_a_violation() -> None:
    source, target = pinned(1), on_device()
    with torch.Stream("sim:0"):
        target.copy_(source, non_blocking=True)
    del target
    assert stats()["device_freed_in_use"] == stats()["violations"] == 1
    assert stats()["messages"] == [f"{SIZE} bytes of device 0 freed in use"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("how", ["wait", "record", "same", "synchronize"])
def test_freeing_memory_is_no_violation_where_torch_allows_it(how: str) -> None:
    source, target = pinned(1), on_device()
    side, mine = torch.Stream("sim:0"), torch.accelerator.current_stream("sim:0")
    with mine if how == "same" else side:
        target.copy_(source, non_blocking=True)
        copied = recorded()
    if how == "wait":
        mine.wait_event(copied)
    elif how == "record":
        target.record_stream(side)
    elif how == "synchronize":
        copied.synchronize()
    del target
    assert stats()["violations"] == 0
    accelerator.synchronize()  # the source goes after that


@pytest.mark.violates
@pytest.mark.usefixtures("slow")
def test_pinned_memory_that_is_freed_too_early_is_poisoned() -> None:
    source, target = pinned(1), on_device()
    target.copy_(source, non_blocking=True)
    del source
    assert stats()["pinned_freed_in_use"] == stats()["violations"] == 1
    assert value_of(target) == 0xDB


def test_copies_are_counted() -> None:
    target = on_device()
    accelerator.reset_stats()
    for size in (10, 300, 20):
        target[:size].copy_(pinned(1, size))
    target[:40].cpu()
    target.clone()
    counted = stats()
    assert counted["h2d"] == {
        "copies": 3,
        "bytes": 330,
        "async": 0,
        "sync": 3,
        "largest": 300,
        "smallest": 10,
        "busy": pytest.approx(30e-6),
    }
    assert (counted["d2h"]["copies"], counted["d2h"]["bytes"]) == (1, 40)
    assert (counted["d2d"]["copies"], counted["d2d"]["bytes"]) == (1, SIZE)


@pytest.mark.usefixtures("slow")
def test_the_longest_queue_is_counted() -> None:
    source, target = pinned(1), on_device()
    accelerator.reset_stats()
    target.copy_(source, non_blocking=True)
    for _ in range(9):
        target.zero_()
    assert stats()["max_queue"] == 10
    accelerator.synchronize()


def test_many_threads_use_both_devices_at_once() -> None:
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        device = f"sim:{number % 2}"
        with torch.Stream(device):
            for turn in range(20):
                source = pinned(number * 20 + turn)
                there = source.to(device, non_blocking=True)
                other = there.clone().to("sim:0").to(device)
                back = torch.empty(SIZE, dtype=torch.uint8, pin_memory=True)
                back.copy_(other, non_blocking=True)
                recorded_on(device).synchronize()
                if back.unique().tolist() != [number * 20 + turn]:
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def recorded_on(device: str) -> torch.Event:
    event = torch.Event(device)
    event.record(torch.accelerator.current_stream(device))
    return event
