"""The simulated devices themselves: their tensors, their memory, and what can be made to fail."""

from __future__ import annotations

import ctypes
import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import accelerator
import pytest
import torch
from accelerator import configured, stats

DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
]

PREFIX = f"""
import ctypes, os, sys
sys.path.insert(0, {str(Path(accelerator.__file__).parent)!r})
import accelerator, torch
accelerator.load()
"""


def script(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREFIX + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def some(dtype: torch.dtype, *sizes: int) -> torch.Tensor:
    """Bits of which every one counts; of a bool, only two values do."""
    count = torch.Size(sizes).numel() * dtype.itemsize
    numbers = torch.arange(count, dtype=torch.int64).mul(73).add(5).to(torch.uint8)
    if dtype == torch.bool:
        numbers %= 2
    return numbers.view(dtype).reshape(sizes)


def bits(tensor: torch.Tensor) -> list[int]:
    result: list[int] = tensor.contiguous().flatten().view(torch.uint8).tolist()
    return result


def test_torch_finds_an_accelerator_with_two_devices() -> None:
    assert torch.accelerator.is_available()
    assert str(torch.accelerator.current_accelerator()) == "sim"
    assert torch.accelerator.device_count() == 2
    assert torch.empty(3, device="sim").device == torch.device("sim:0")
    with torch.accelerator.device_index(1):
        assert torch.empty(3, device="sim").device == torch.device("sim:1")
    seen = []
    torch.accelerator.set_device_index(1)
    thread = threading.Thread(target=lambda: seen.append(torch.accelerator.current_device_index()))
    thread.start()
    thread.join()
    torch.accelerator.set_device_index(0)
    assert seen == [0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 4), (7,), (), (0, 2)], ids=str)
def test_every_dtype_comes_back_as_it_went(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    tensor = some(dtype, *sizes)
    for pin in (False, True):
        there = (tensor.pin_memory() if pin else tensor).to("sim:1")
        other = there.to("sim:0").clone()
        for copy in (there, other):
            back = copy.cpu()
            assert (back.dtype, back.shape) == (dtype, tensor.shape)
            if sizes:
                assert bits(back) == bits(tensor)
            else:
                assert bits(back.reshape(1)) == bits(tensor.reshape(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_copied_element_by_element(dtype: torch.dtype) -> None:
    tensor = some(dtype, 4, 6)
    there = tensor.to("sim")
    assert there[1:3].data_ptr() == there.data_ptr() + 6 * dtype.itemsize
    for view in (
        lambda t: t.t(),
        lambda t: t[1:, ::2],
        lambda t: t.as_strided((2, 3), (1, 6), 2),
        lambda t: t.view(2, 12)[:, 3:7],
        lambda t: t[2, 3],
        lambda t: t[:1].expand(5, 6),
    ):
        expected = view(tensor).contiguous().reshape(-1)
        assert bits(view(there).cpu().reshape(-1)) == bits(expected)
        assert bits(view(tensor).to("sim").contiguous().cpu().reshape(-1)) == bits(expected)
    target = torch.empty(6, 4, dtype=dtype, device="sim")
    target.t().copy_(tensor)
    assert bits(target.t().cpu()) == bits(tensor)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64, torch.int32, torch.float8_e5m2])
def test_a_device_converts_dtypes(other: torch.dtype) -> None:
    tensor = torch.arange(-4.0, 20.0).reshape(4, 6)
    there = tensor.to("sim")
    assert torch.equal(there.to(other).cpu().float(), tensor.to(other).float())
    assert torch.equal(there.t().to(other).cpu().float(), tensor.t().to(other).float())
    target = torch.empty(4, 6, dtype=other, device="sim:1")
    for source in (tensor, there):
        assert torch.equal(target.copy_(source).cpu().float(), tensor.to(other).float())
    back = torch.empty(4, 6, dtype=other)
    assert torch.equal(back.copy_(there).float(), tensor.to(other).float())


def test_a_device_knows_conjugates_and_fills() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert torch.equal(tensor.to("sim").conj().cpu(), tensor.conj())
    assert torch.equal(tensor.to("sim").conj().imag.cpu(), tensor.conj().imag)
    assert torch.equal(tensor.conj().to("sim").clone().cpu(), tensor.conj().resolve_conj())
    there = torch.empty(4, 4, device="sim").fill_(2)
    there[:, 1].zero_()
    assert there.sum().item() == 24


def test_storages_are_shared_set_and_resized() -> None:
    tensor = torch.arange(12.0)
    there = tensor.to("sim:1")
    whole = torch.empty(0, device="sim:1").set_(there.untyped_storage())
    part = torch.empty(0, device="sim:1").set_(there.untyped_storage(), 2, (2, 3), (4, 1))
    assert whole.is_set_to(there) and not part.is_set_to(there)
    assert torch.equal(part.cpu(), tensor.as_strided((2, 3), (4, 1), 2))
    same = torch.empty(0, device="sim:1").set_(part)  # type: ignore[call-overload]
    assert torch.equal(same.cpu(), part.cpu())
    there.resize_(20)
    assert torch.equal(there[:12].cpu(), tensor)
    assert there.set_().numel() == 0  # type: ignore[call-overload]
    storage = torch.UntypedStorage(16, device="sim:1")
    assert storage.device == torch.device("sim:1") and storage.nbytes() == 16


def test_models_train_and_checkpoints_load() -> None:
    model = torch.nn.Linear(3, 2).to("sim:1")
    model(torch.ones(4, 3, device="sim:1")).sum().backward()
    gradient = model.weight.grad
    assert gradient is not None and gradient.device == torch.device("sim:1")
    assert torch.equal(gradient.cpu(), torch.full((2, 3), 4.0))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for location in ("sim:0", "sim:1", "cpu"):
        file.seek(0)
        loaded = torch.load(file, map_location=location)["weight"]
        assert loaded.device == torch.device(location)
        assert torch.equal(loaded.cpu(), model.weight.detach().cpu())


def test_the_host_dies_when_it_touches_the_memory_of_a_device() -> None:
    done = script("ctypes.string_at(torch.zeros(4, device='sim').data_ptr(), 1)")
    assert done.returncode == -signal.SIGSEGV, done.stderr
    done = script("ctypes.memset(torch.zeros(4, device='sim:1').data_ptr(), 0, 1)")
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_a_process_ends_at_once_though_a_copy_takes_for_ever() -> None:
    done = script("""
accelerator.set_bandwidth(1)
source, target = torch.zeros(10**6, pin_memory=True), torch.empty(10**6, device="sim")
target.copy_(source, non_blocking=True)
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_process_is_told_that_it_has_no_device() -> None:
    done = script("""
there = torch.zeros(4, device="sim")
child = os.fork()
if child == 0:
    try:
        torch.zeros(4, device="sim")
    except RuntimeError as error:
        sys.exit(7 if "forked" in str(error) else 8)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert done.returncode == 7, done.stderr


def test_new_memory_is_not_zero() -> None:
    assert torch.empty(100, device="sim").cpu().count_nonzero() == 100
    assert torch.empty(100, pin_memory=True).count_nonzero() == 100


def test_memory_of_devices_is_counted() -> None:
    before = stats()["device"]
    tensors = [torch.empty(100, dtype=torch.uint8, device="sim:1") for _ in range(3)]
    del tensors[0]
    now = stats()["device"]
    assert now[0] == before[0]
    assert now[1]["now"] - before[1]["now"] == 200
    assert now[1]["live"] - before[1]["live"] == 2
    assert now[1]["peak"] - before[1]["now"] == 300
    assert now[1]["ever"] == 3
    assert torch.accelerator.memory_allocated(1) == now[1]["now"]
    accelerator.reset_stats()
    assert stats()["device"][1] == {**now[1], "peak": now[1]["now"], "ever": 0}


def test_pinned_memory_is_counted_and_known() -> None:
    before = stats()["pinned"]
    tensor = torch.empty(100, dtype=torch.uint8, pin_memory=True)
    assert tensor.is_pinned() and tensor[99:].is_pinned()
    assert not torch.empty(100).is_pinned()
    other = torch.ones(50, dtype=torch.uint8).pin_memory()
    assert other.is_pinned() and other.sum() == 50
    now = stats()["pinned"]
    assert (now["now"] - before["now"], now["live"] - before["live"]) == (150, 2)
    del tensor
    now = stats()["pinned"]
    assert (now["now"] - before["now"], now["peak"] - before["now"], now["ever"]) == (50, 150, 2)


def test_a_device_runs_out_of_memory_at_its_limit() -> None:
    used = stats()["device"][1]["now"]
    with configured(memory_limit=(-1, used + 1000)):
        tensor = torch.empty(1000, dtype=torch.uint8, device="sim:1")
        with pytest.raises(torch.OutOfMemoryError, match="device 1 is out of memory"):
            torch.empty(1, device="sim:1")
        torch.empty(10**6, device="sim:0")
        assert torch.accelerator.get_memory_info(1) == (0, used + 1000)
        del tensor
        torch.empty(250, device="sim:1")
    torch.empty(1000, device="sim:1")


def test_the_nth_call_of_a_kind_fails() -> None:
    there, event = torch.zeros(4, device="sim"), torch.Event("sim")
    event.record()
    calls = {
        "alloc": lambda: torch.empty(4, device="sim"),
        "pin": lambda: torch.empty(4, pin_memory=True),
        "copy": lambda: there.copy_(torch.ones(4)),
        "record": lambda: torch.Event("sim").record(),
        "synchronize": lambda: event.synchronize(),
    }
    for kind, call in calls.items():
        with configured(fail_after={kind: 2}):
            call()
            with pytest.raises(RuntimeError, match=f"simulated {kind} failure"):
                call()
            call()
        accelerator.fail_after(kind, 1)
        accelerator.fail_after(kind, -1)
        call()
    with pytest.raises(ValueError, match="nothing called"):
        accelerator.fail_after("nothing", 1)


def test_a_late_failure_is_told_to_whoever_waits_until_it_is_reset() -> None:
    there, event = torch.zeros(4, device="sim"), torch.Event("sim")
    source = torch.ones(4).pin_memory()
    accelerator.fail_after("late", 2)
    there[:2].copy_(source[:2], non_blocking=True)
    there[2:].copy_(source[2:], non_blocking=True)
    event.record()
    for wait in (
        event.synchronize,
        accelerator.synchronize,
        torch.accelerator.current_stream("sim:0").synchronize,
        there.cpu,
        event.query,
    ):
        with pytest.raises(RuntimeError, match="simulated late failure"):
            wait()
    torch.accelerator.synchronize(1)
    accelerator.reset()
    event.synchronize()
    assert there.tolist() == [1, 1, 0, 0]


def test_settings_are_restored() -> None:
    accelerator.set_bandwidth(1e12, 2e12)
    accelerator.fail_after("copy", 1)
    before = accelerator.settings()
    with (
        pytest.raises(KeyError),
        configured(bandwidth=5e11, latency_us=3, random_delay_us=4, seed=9),
    ):
        assert accelerator.settings() == (5e11, 5e11, 3, 4, 9, (-1, -1))
        with configured(memory_limit=10**9, d2h_bandwidth=0):
            assert accelerator.settings() == (5e11, 0, 3, 4, 9, (10**9, 10**9))
        raise KeyError
    assert accelerator.settings() == before
    with pytest.raises(RuntimeError, match="simulated copy failure"):
        torch.zeros(1).to("sim")
    with pytest.raises(ValueError, match="unexpected field"), configured(speed=1):
        pass


@pytest.mark.violates
def test_what_is_freed_cannot_be_used() -> None:
    there = torch.zeros(8, dtype=torch.uint8, device="sim")
    storage = torch._C._construct_storage_from_data_pointer(there.data_ptr(), there.device, 8)
    alias = torch.empty(0, dtype=torch.uint8, device="sim").set_(storage)
    assert alias.cpu().sum() == 0
    del there
    with pytest.raises(RuntimeError, match="illegal access"):
        alias.cpu()
    with pytest.raises(RuntimeError, match="illegal access"):
        alias.zero_()
    assert stats()["use_of_freed"] == stats()["violations"] == 2
    assert "not allocated" in stats()["messages"][0]


def test_a_pointer_tells_its_device() -> None:
    address = torch.zeros(8, device="sim:1").data_ptr()
    assert address % 512 == 0
    assert ctypes.c_void_p(address).value == address
