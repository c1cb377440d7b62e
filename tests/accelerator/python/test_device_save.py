"""Saving tensors that are on devices: the file is that of the same tensors in host memory."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import FAULTS, configured, stats
from checkpoints import MIB, SCRATCH, SEGMENT, STATE, State, assert_on, at_once, host, in_use, saved
from probe import assert_same

import veturboio

#: More calls of a kind than any of the saves here makes.
ENOUGH = 60

SMALL = {
    "large": torch.arange(2 * SEGMENT // 8 + 3),
    "turned": torch.rand(300, 70).t(),
    "half": torch.rand(33).bfloat16(),
}


def on(device: str, state: State) -> State:
    return {name: tensor.to(device) for name, tensor in state.items()}


def mixed(state: State) -> State:
    """Every third tensor on the CPU, the others on one device each."""
    places = itertools.cycle(["sim:0", "cpu", "sim:1"])
    named = zip(state.items(), places, strict=False)
    return {name: tensor.to(place, copy=True) for (name, tensor), place in named}


def as_in_host_memory(state: State, path: Path, **options: Any) -> bytes:
    veturboio.save_file(state, path, **options)
    return path.read_bytes()


@pytest.fixture(params=[None, False, True], ids=["alone", "pageable", "pinned"])
def helper(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """None, or a helper whose memory is of that kind."""
    if request.param is None:
        return None
    kept = veturboio.init_io_helper()
    path = saved(tmp_path / "first", {"a": torch.arange(3 * SEGMENT // 8)})
    veturboio.load(path, map_location="sim:0", use_pinmem=request.param, helper=kept)
    accelerator.reset_stats()
    return kept


@pytest.mark.parametrize("place", [mixed, lambda state: on("sim:1", state)], ids=["mixed", "one"])
@pytest.mark.parametrize("durable", [False, True])
def test_the_file_is_that_of_tensors_in_host_memory(
    tmp_path: Path, helper: Any, place: Any, durable: bool
) -> None:
    state = place(STATE)
    path = tmp_path / "model"
    veturboio.save_file(state, path, helper=helper, durable=durable, metadata={"k": "v"})
    assert path.read_bytes() == as_in_host_memory(STATE, tmp_path / "host", metadata={"k": "v"})
    assert_on("sim:0", veturboio.load(path, map_location="sim:0"), STATE)


def test_a_large_file_is_that_of_tensors_in_host_memory(tmp_path: Path, helper: Any) -> None:
    """Which is written past the page cache, from pages that begin where a disk wants them."""
    state = {
        "a": torch.arange(70 * MIB // 8),
        "b": torch.rand(5, 3),
        "c": torch.arange(9 * MIB // 8).view(1024, -1).t(),
    }
    veturboio.save_file(mixed(state), tmp_path / "model", helper=helper, durable=False)
    assert (tmp_path / "model").read_bytes() == as_in_host_memory(
        state, tmp_path / "host", durable=False
    )


def test_a_save_passes_through_the_pinned_memory_of_a_helper(tmp_path: Path) -> None:
    state = on("sim:0", {"a": torch.arange(5 * SEGMENT // 8), "b": torch.rand(9)})
    helper = veturboio.init_io_helper(2 * SEGMENT)
    path = saved(tmp_path / "model", state)
    assert stats()["pinned"]["ever"] == 0, "without a helper nothing is pinned"
    veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)
    pinned = stats()["pinned"]
    for _ in range(2):
        veturboio.save_file(state, path, helper=helper)
    assert stats()["pinned"] == pinned
    assert helper.nbytes() == pinned["now"] <= helper.capacity()
    assert_on("sim:0", veturboio.load(path, map_location="sim:0"), host(state))


def test_views_of_every_kind_are_saved_as_their_elements(tmp_path: Path, helper: Any) -> None:
    base = torch.arange(60_000.0).view(200, 300)
    numbers = torch.randn(500, 6, dtype=torch.complex64)
    views = {
        "turned": lambda t, n: t.t(),
        "rows": lambda t, n: t[3:170:2],
        "columns": lambda t, n: t[:, 5::7],
        "expanded": lambda t, n: t[:1].expand(40, 300),
        "element": lambda t, n: t[3, 4],
        "window": lambda t, n: t.as_strided((30, 40), (7, 300), 11),
        "conjugate": lambda t, n: n.conj(),
        "negative": lambda t, n: n.conj().imag,
        "conjugate-turned": lambda t, n: n.t().conj(),
        "empty": lambda t, n: t[:0],
    }
    there, conjugated = base.to("sim:1"), numbers.to("sim:1")
    for name, view in views.items():
        path = saved(tmp_path / name, {"a": view(there, conjugated)}, helper=helper)
        expected = view(base, numbers).resolve_conj().resolve_neg().contiguous()
        assert_same(veturboio.load(path), {"a": expected})


def test_tensors_that_share_memory_on_a_device_are_refused_or_stored_once(tmp_path: Path) -> None:
    weight = torch.arange(3000.0).to("sim:0")
    state = {"a": weight, "b": weight, "c": torch.ones(2, device="sim:0")}
    path = tmp_path / "model"
    with pytest.raises(veturboio.ArgumentError, match="share memory"):
        veturboio.save_file(state, path)
    assert not path.exists()
    veturboio.save_file(state, path, force_save_shared_tensor=True)
    assert path.stat().st_size < 2 * weight.nbytes
    loaded = veturboio.load(path, map_location="sim:1")
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    assert torch.equal(loaded["b"].cpu(), weight.cpu())
    veturboio.save_file(state, path, force_save_shared_tensor=True, force_clone_shared_tensor=True)
    assert path.stat().st_size > 2 * weight.nbytes


@pytest.mark.parametrize("wait", [False, True])
def test_a_save_comes_after_work_on_the_callers_stream(tmp_path: Path, wait: bool) -> None:
    wanted = {"a": torch.arange(MIB), "b": torch.rand(700, 300)}
    state = {name: torch.zeros_like(tensor, device="sim:1") for name, tensor in wanted.items()}
    sources = {name: tensor.pin_memory() for name, tensor in wanted.items()}
    with configured(h2d_bandwidth=40 * MIB), accelerator.pooled_stream(1):
        for name, tensor in state.items():
            tensor.copy_(sources[name], non_blocking=True)
        if future := veturboio.save_file(state, tmp_path / "model", wait=wait):
            future.result()
    assert_same(veturboio.load(tmp_path / "model"), wanted)


def test_what_follows_a_save_in_the_background_does_not_change_the_file(tmp_path: Path) -> None:
    with configured(d2h_bandwidth=300 * MIB), accelerator.pooled_stream(1):
        state = mixed(SMALL)
        future = veturboio.save_file(state, tmp_path / "model", wait=False)
        for tensor in state.values():
            tensor.zero_()
        accelerator.synchronize()
        del state, tensor
        assert future is not None
        future.result()
    assert_same(veturboio.load(tmp_path / "model"), {n: t.contiguous() for n, t in SMALL.items()})


def test_a_save_in_the_background_takes_a_helper_and_host_memory_alone(tmp_path: Path) -> None:
    state = on("sim:0", SMALL)
    before = in_use()[0]
    accelerator.reset_stats()
    future = veturboio.save_file(
        state, tmp_path / "model", wait=False, helper=veturboio.init_io_helper()
    )
    assert future is not None
    future.result()
    assert stats()["device"][0]["peak"] <= before + SMALL["turned"].nbytes


def test_a_device_needs_little_memory_to_be_saved(tmp_path: Path) -> None:
    state = on("sim:0", {"a": torch.arange(3 * SEGMENT // 8), "b": torch.rand(1000)})
    before = in_use()[0]
    accelerator.reset_stats()
    saved(tmp_path / "model", state)
    assert stats()["device"][0]["peak"] <= before + SCRATCH


def test_saves_and_loads_at_once_share_a_helper(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper(3 * SEGMENT)
    states = [{"a": torch.full((SEGMENT // 3,), float(i)), "b": torch.ones(i)} for i in range(4)]

    def there_and_back(turn: int) -> State:
        state, path = on(f"sim:{turn % 2}", states[turn % 4]), tmp_path / str(turn)
        with accelerator.pooled_stream(turn % 2):
            veturboio.save_file(state, path, helper=helper, durable=False)
            device = f"sim:{(turn + 1) % 2}"
            loaded = veturboio.load(path, map_location=device, use_pinmem=True, helper=helper)
            return host(loaded)

    results = at_once([partial(there_and_back, turn) for turn in range(8)])
    for turn, result in enumerate(results):
        assert_same(result, states[turn % 4])
    assert helper.nbytes() <= helper.capacity()
    helper.close()
    assert stats()["pinned"]["now"] == 0


def _error_of(state: State, path: Path, **options: Any) -> str | None:
    try:
        if future := veturboio.save_file(state, path, **options):
            future.result()
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind != "pin"])
@pytest.mark.parametrize("pinned", [None, False, True], ids=["alone", "pageable", "pinned"])
def test_whichever_call_fails_the_old_file_stays(
    tmp_path: Path, kind: str, pinned: bool | None
) -> None:
    path = saved(tmp_path / "model", {"old": torch.ones(3)})
    old = path.read_bytes()
    state, helper = mixed(SMALL), None
    if pinned is not None:
        helper = veturboio.init_io_helper(SEGMENT)
        veturboio.load(path, map_location="sim:0", use_pinmem=pinned, helper=helper)
    before = in_use()
    for calls in itertools.count(1):
        assert calls < ENOUGH
        with configured(fail_after={kind: calls}):
            error = _error_of(state, path, helper=helper)
        assert stats()["messages"] == []
        assert list(tmp_path.iterdir()) == [path]
        assert in_use() == before
        if error is None:
            break
        assert str(path) in error and f"simulated {kind} failure" in error
        assert "[Errno" not in error, "it is the device that failed, not the system"
        assert path.read_bytes() == old
    assert_same(veturboio.load(path), {n: t.contiguous() for n, t in SMALL.items()})


def test_memory_that_cannot_be_pinned_is_an_error(tmp_path: Path) -> None:
    """The helper has to pin some again: what was there has been given back."""
    path = saved(tmp_path / "model", {"old": torch.ones(3)})
    helper = veturboio.init_io_helper(0)
    veturboio.load(path, map_location="sim:0", use_pinmem=True, helper=helper)
    with configured(fail_after={"pin": 1}):
        error = _error_of(mixed(SMALL), path, helper=helper)
    assert error is not None and str(path) in error and "simulated pin failure" in error
    assert "[Errno" not in error, "it is the device that failed, not the system"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["copy", "late"])
def test_a_failing_device_ends_a_save_in_the_background(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "model", {"old": torch.ones(3)})
    old = path.read_bytes()
    state = on("sim:1", SMALL)
    with configured(fail_after={kind: 2}):
        error = _error_of(state, path, wait=False)
    assert error is not None and f"simulated {kind} failure" in error
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    assert _error_of(state, path, wait=False) is None


def test_tensors_of_the_meta_device_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.ones(2, device="sim:0"), "b": torch.ones(2, device="meta")}
    with pytest.raises(veturboio.ArgumentError, match=r'"b".*meta device'):
        saved(tmp_path / "model", state)
    assert list(tmp_path.iterdir()) == []
