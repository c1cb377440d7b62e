"""``dtype=``: floating point is converted on its way, on the device where there is one."""

from __future__ import annotations

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
    State,
    assert_on,
    bytes_of,
    devices,
    host,
    in_use,
    saved,
    with_odd_header,
)
from probe import assert_same

import veturboio

TARGETS = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]

#: Tensors of floating point of every width, and some that are none.
STATE = {
    "large": torch.randn(SEGMENT // 4 + 3, generator=torch.Generator().manual_seed(1)),
    "small": torch.tensor([[0.5, -1.25], [448.0, 3e-3], [float("inf"), -0.0]]),
    "double": torch.linspace(-9, 9, 77, dtype=torch.float64),
    "half": torch.linspace(-2, 2, 33).half(),
    "brain": torch.linspace(-5, 5, 19).bfloat16(),
    "eight": torch.linspace(-5, 5, 21).to(torch.float8_e5m2),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "count": torch.arange(70),
    "flags": torch.tensor([True, False]),
    "bytes": torch.arange(9).to(torch.uint8),
    "complex": torch.tensor([1 + 2j, -3.5j]),
}


def converted(state: State, dtype: torch.dtype) -> State:
    """By torch, on the CPU."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors", STATE)


@pytest.mark.parametrize("dtype", TARGETS, ids=str)
@pytest.mark.parametrize("device", ["cpu", "sim:1"])
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_floating_point_is_converted_and_nothing_else(
    model: Path, dtype: torch.dtype, device: str, pinned: bool
) -> None:
    loaded = veturboio.load(model, map_location=device, use_pinmem=pinned, dtype=dtype)
    assert_on(device, loaded, converted(STATE, dtype))
    loaded = veturboio.load(
        model, map_location=device, use_pinmem=pinned, dtype=dtype, num_thread=1
    )
    assert_on(device, loaded, converted(STATE, dtype))


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
@pytest.mark.parametrize("way", ["read", "direct", "map", "uring"])
def test_a_file_in_which_nothing_is_aligned_is_converted(
    model: Path, device: str, way: str
) -> None:
    with_odd_header(model)
    loaded = veturboio.load(model, map_location=device, dtype=torch.float16, way=way)
    assert_on(device, loaded, converted(STATE, torch.float16))


@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_devices_and_the_cpu_are_served_in_one_pass(model: Path, one: bool) -> None:
    location = {"": "cpu", "large": "sim:0", "small": "sim:1", "double": "sim:0", "count": "sim:1"}
    loaded = veturboio.load(
        model, map_location=location, use_pinmem=True, dtype=torch.bfloat16, one_allocation=one
    )
    assert_same(host(loaded), converted(STATE, torch.bfloat16))
    assert devices(loaded) == {name: location.get(name, "cpu") for name in STATE}


def test_what_has_the_dtype_already_is_only_copied(tmp_path: Path) -> None:
    state = {"a": torch.rand(3 * MIB).bfloat16(), "b": torch.rand(100_000).bfloat16()}
    path = saved(tmp_path / "model", state)
    loaded = veturboio.load(path, map_location="sim:0", dtype=torch.bfloat16, use_pinmem=True)
    assert_on("sim:0", loaded, state)
    assert stats()["d2d"]["copies"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e5m2])
def test_a_device_needs_no_second_copy_of_the_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "model", {"a": torch.rand(2 * SEGMENT), "b": torch.rand(3 * MIB)})
    before = in_use()[0]
    accelerator.reset_stats()
    loaded = veturboio.load(path, map_location="sim:0", use_pinmem=True, dtype=dtype)
    assert stats()["device"][0]["peak"] - before <= bytes_of(loaded) + SCRATCH
    # The bytes of the file go over the wire, and are converted there.
    assert stats()["h2d"]["bytes"] == 2 * SEGMENT * 4 + 3 * MIB * 4


def test_a_conversion_that_waits_for_a_slow_device_is_right(tmp_path: Path) -> None:
    """What tensors pass through on the device is used by one after the other."""
    state = {f"{i}": torch.full((i * 50_000,), i + 0.5) for i in range(20)}
    path = saved(tmp_path / "model", state)
    with configured(bandwidth=300 * MIB, random_delay_us=3000), accelerator.pooled_stream(1):
        loaded = veturboio.load(path, map_location="sim:1", use_pinmem=True, dtype=torch.float64)
        copies = {name: tensor.clone() for name, tensor in loaded.items()}
    assert_on("sim:1", copies, converted(state, torch.float64))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("device", ["cpu", "sim:0", "meta"])
def test_a_dtype_that_is_not_of_floating_point_is_refused(
    model: Path, dtype: torch.dtype, device: str
) -> None:
    with pytest.raises(veturboio.ArgumentError, match=f"{model}: dtype must be one of floating"):
        veturboio.load(model, map_location=device, dtype=dtype)


def test_a_dtype_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(TypeError, match="dtype"):
        veturboio.load(model, map_location="sim:0", dtype="bfloat16")  # type: ignore[arg-type]


def test_filling_tensors_converts_nothing(model: Path) -> None:
    given = {name: torch.empty_like(tensor, device="sim:0") for name, tensor in STATE.items()}
    with pytest.raises(veturboio.ArgumentError, match="state_dict cannot be combined with dtype"):
        veturboio.load(model, state_dict=given, dtype=torch.float16)


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_names_and_slices_are_converted(model: Path, device: str) -> None:
    arguments: dict[str, Any] = {"map_location": device, "dtype": torch.bfloat16}
    names = ["small", "count", "large"]
    loaded = veturboio.load(model, names=names, use_pinmem=True, **arguments)
    assert list(loaded) == names
    assert_on(device, loaded, converted({name: STATE[name] for name in names}, torch.bfloat16))
    slices: dict[str, Any] = {"small": (slice(None), slice(1, 2)), "large": slice(5, 2_000_000)}
    loaded = veturboio.load(model, slices=slices, use_pinmem=True, **arguments)
    parts = STATE | {"small": STATE["small"][:, 1:2], "large": STATE["large"][5:2_000_000]}
    assert_on(device, loaded, converted(parts, torch.bfloat16))


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_tied_tensors_stay_tied(tmp_path: Path, device: str) -> None:
    weight = torch.rand(100, 3)
    path = tmp_path / "model"
    state = {"a": weight, "b": weight, "c": torch.ones(2)}
    veturboio.save_file(state, path, force_save_shared_tensor=True)
    loaded = veturboio.load(path, map_location=device, dtype=torch.float16, use_pinmem=True)
    assert_on(device, loaded, converted(state, torch.float16))
    assert loaded["a"] is loaded["b"] or loaded["a"].data_ptr() == loaded["b"].data_ptr()


@pytest.mark.parametrize("device", ["cpu", "sim:1"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_strided_tensors_of_a_pytorch_file_are_converted(
    tmp_path: Path, device: str, legacy: bool
) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"turned": base.t(), "part": base[1:3, ::2], "other": torch.rand(3), "n": torch.ones(1)}
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    loaded = veturboio.load(path, map_location=device, dtype=torch.float64, use_pinmem=True)
    assert_on(device, loaded, converted(state, torch.float64))
    assert loaded["turned"].stride() == (1, 6) and loaded["part"].stride() == (6, 2)
    assert (
        loaded["turned"].untyped_storage().data_ptr() == loaded["part"].untyped_storage().data_ptr()
    )
