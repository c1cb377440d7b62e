"""Devices that fail in the middle: one clear error, nothing lost, and the next load works."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import FAULTS, configured, stats
from checkpoints import MIB, SEGMENT, State, assert_on, at_once, devices, host, in_use, saved

import veturboio

#: A handful of segments for one or two threads: a segment takes 1 MiB of a small file.
STATE = {
    "large": torch.arange(3 * MIB // 8),
    "half": torch.rand(MIB // 3),
    **{f"small.{i}": torch.full((i,), i, dtype=torch.int16) for i in range(6)},
}

#: More calls of a kind than any of the loads here makes.
ENOUGH = 60

WAYS: dict[str, dict[str, Any]] = {
    "pageable": {"use_pinmem": False},
    "pinned": {"use_pinmem": True},
    "one-thread": {"use_pinmem": True, "num_thread": 1},
    "converted": {"use_pinmem": True, "dtype": torch.bfloat16},
    "converted-pageable": {"dtype": torch.float64},
    "one-allocation": {"use_pinmem": True, "one_allocation": True},
    "two-devices": {"use_pinmem": True, "map_location": {"": "sim:1", "large": "sim:0"}},
    "with-the-cpu": {"use_pinmem": True, "map_location": {"": "cpu", "half": "sim:0"}},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors", STATE)


def until_it_succeeds(kind: str, path: Path, act: Callable[[], State]) -> int:
    """Makes ever later calls of a kind fail; returns how many times that ended the load."""
    before = in_use()
    for calls in itertools.count(1):
        assert calls < ENOUGH
        with configured(fail_after={kind: calls}, latency_us=200):
            error = _error_of(act)
        if error is None:
            return calls - 1
        assert path.name in error, error
        assert f"simulated {kind} failure" in error, error
        assert "[Errno" not in error, "it is the device that failed, not the system"
        assert in_use() == before, (kind, calls)
        assert _error_of(act) is None, (kind, calls)
        assert stats()["messages"] == [], (kind, calls)
    raise AssertionError


def _error_of(act: Callable[[], State]) -> str | None:
    """What went wrong; the tensors and the traceback are gone then."""
    try:
        act()
    except (RuntimeError, OSError, veturboio.FormatError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whichever_call_fails_the_load_says_so_and_loses_nothing(
    model: Path, kind: str, way: dict[str, Any]
) -> None:
    def load() -> State:
        arguments = {"map_location": "sim:0", "num_thread": 2, **way}
        return veturboio.load(model, **arguments)

    failed = until_it_succeeds(kind, model, load)
    pinned = way.get("use_pinmem", False)
    assert failed > 0 or (kind in ("pin", "record") and not pinned)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("capacity", [0, SEGMENT, 2 * SEGMENT])
def test_whichever_call_fails_a_helper_serves_the_next_load(
    model: Path, kind: str, capacity: int
) -> None:
    """And no tensor is wrong, though the memory of the helper is used by load after load."""
    before = in_use()
    helper = veturboio.init_io_helper(capacity)
    for calls in itertools.count(1):
        assert calls < ENOUGH
        loaded: State = {}
        with configured(fail_after={kind: calls}, random_delay_us=1000):
            try:
                loaded = veturboio.load(
                    model, map_location="sim:0", use_pinmem=True, helper=helper, num_thread=2
                )
            except (RuntimeError, OSError) as error:
                assert model.name in str(error)
        if loaded:
            assert_on("sim:0", loaded, STATE)
        again = veturboio.load(model, map_location="sim:1", use_pinmem=True, helper=helper)
        assert_on("sim:1", again, STATE)
        assert stats()["messages"] == [], (kind, calls)
        # What is in the helper already need not be pinned again.
        if loaded and calls > 15:
            break
    del loaded, again
    helper.close()
    assert in_use() == before


@pytest.mark.parametrize("kind", FAULTS)
def test_whichever_call_fails_tensors_that_were_to_be_filled_can_be_filled(
    model: Path, kind: str
) -> None:
    given = {name: torch.zeros_like(tensor, device="sim:1") for name, tensor in STATE.items()}
    given["half"] = torch.zeros_like(STATE["half"])

    def fill() -> State:
        return veturboio.load(model, state_dict=given, use_pinmem=True, num_thread=2)

    until_it_succeeds(kind, model, fill)
    assert set(devices(given).values()) == {"cpu", "sim:1"}
    for name, tensor in host(given).items():
        assert torch.equal(tensor, STATE[name])


@pytest.mark.parametrize("first", FAULTS)
def test_a_device_that_fails_while_a_failure_is_cleaned_up_loses_nothing(
    model: Path, first: str
) -> None:
    """It is no longer possible then to wait for the device by the calls that fail."""
    before = in_use()
    for calls in range(1, 8, 2):
        for waits in range(1, 4):
            with configured(fail_after={first: calls, "synchronize": waits}, bandwidth=2000 * MIB):
                error = _error_of(
                    lambda: veturboio.load(
                        model, map_location="sim:0", use_pinmem=True, num_thread=2
                    )
                )
            assert error is None or model.name in error
            assert in_use() == before
            assert stats()["messages"] == [], (first, calls, waits)


def test_a_late_failure_is_found_before_the_load_returns(model: Path) -> None:
    with configured(fail_after={"late": 1}, bandwidth=100 * MIB):
        with pytest.raises(RuntimeError, match="simulated late failure"):
            veturboio.load(model, map_location="sim:0", use_pinmem=True)
        # The device stays broken, and every load says so.
        with pytest.raises(RuntimeError, match=f"{model.name}.*simulated late failure"):
            veturboio.load(model, map_location="sim:0")
        assert_on("sim:1", veturboio.load(model, map_location="sim:1", use_pinmem=True), STATE)
    assert_on("sim:0", veturboio.load(model, map_location="sim:0", use_pinmem=True), STATE)


@pytest.mark.parametrize("kind", FAULTS)
def test_one_of_two_loads_with_a_helper_may_fail(model: Path, kind: str) -> None:
    """The other one is right, or says that the device failed."""
    helper = veturboio.init_io_helper(2 * SEGMENT)

    def load(device: str) -> State | str:
        try:
            return veturboio.load(
                model, map_location=device, use_pinmem=True, helper=helper, num_thread=2
            )
        except (RuntimeError, OSError) as error:
            return str(error)

    for calls in range(1, 12):
        with configured(fail_after={kind: calls}, bandwidth=2000 * MIB, random_delay_us=2000):
            results = at_once([partial(load, f"sim:{at}") for at in (0, 1)])
        for device, result in enumerate(results):
            if isinstance(result, str):
                assert model.name in result and f"simulated {kind} failure" in result
            else:
                assert_on(f"sim:{device}", result, STATE)
        assert stats()["messages"] == []


def test_a_file_that_ends_in_the_middle_of_a_load_leaves_nothing(tmp_path: Path) -> None:
    """It is cut while the device copies what was read of it."""
    state = {"a": torch.arange(12 * SEGMENT // 8)}
    path = saved(tmp_path / "model", state)
    before = in_use()
    content = path.read_bytes()
    with configured(bandwidth=400 * MIB):
        cut = threading.Timer(0.1, lambda: path.open("r+b").truncate(4 * SEGMENT))
        cut.start()
        helper = veturboio.init_io_helper(2 * SEGMENT)
        error = _error_of(
            lambda: veturboio.load(
                path, map_location="sim:0", use_pinmem=True, way="read", helper=helper
            )
        )
        cut.join()
    assert error is not None and path.name in error
    helper.close()
    assert in_use() == before
    path.write_bytes(content)
    assert_on("sim:0", veturboio.load(path, map_location="sim:0"), state)


def test_control_c_ends_a_load_to_a_slow_device(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", {"a": torch.arange(16 * SEGMENT // 8)})
    before = in_use()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with configured(bandwidth=40 * MIB):
            helper = veturboio.init_io_helper(2 * SEGMENT)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)
            copied = stats()["h2d"]["bytes"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert copied < 10 * SEGMENT
    helper.close()
    assert in_use() == before
    accelerator.drain()
