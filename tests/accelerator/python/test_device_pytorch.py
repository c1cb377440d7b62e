"""PyTorch files to devices: nested values, what they share, and what their tensors are."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import stats
from checkpoints import SEGMENT, assert_on, devices, host, in_use
from probe import DTYPES, assert_same, random_tensor, same
from pytorch_files import Tied, entries_of, load_natively, rewrite

import veturboio

BASE = torch.arange(24.0).reshape(4, 6)

NESTED: dict[str, Any] = {
    "model": OrderedDict(weight=torch.rand(30, 4), bias=torch.arange(5)),
    "steps": [torch.tensor(3), {"deep": (torch.ones(2), "text", None)}],
    "turned": BASE.t(),
    "part": BASE[1:3, ::2],
    "rows": BASE[2:],
    "nothing": torch.empty(0, 2),
    "large": torch.arange(SEGMENT // 4),
    "lr": 0.5,
}

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
PINNED = pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])


def write(value: Any, path: Path, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(path: Path, location: Any = "sim:1", **options: Any) -> Any:
    """By our own reader, not by torch's."""
    return load_natively(path, map_location=location, **options)


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@LEGACY
@PINNED
@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_nested_values_come_as_they_were(
    tmp_path: Path, legacy: bool, pinned: bool, one: bool
) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    loaded = load(path, use_pinmem=pinned, one_allocation=one)
    assert list(loaded) == list(NESTED)
    assert type(loaded["model"]) is OrderedDict and loaded["lr"] == 0.5
    assert loaded["steps"][1]["deep"][1:] == ("text", None)
    flat = {"deep": loaded["steps"][1]["deep"][0], "step": loaded["steps"][0], **loaded["model"]}
    flat |= {name: loaded[name] for name in ("turned", "part", "rows", "nothing", "large")}
    expected = {"deep": torch.ones(2), "step": torch.tensor(3), **NESTED["model"]}
    expected |= {name: NESTED[name] for name in ("turned", "part", "rows", "nothing", "large")}
    assert_on("sim:1", flat, expected)
    for name in ("turned", "part", "rows"):
        assert flat[name].stride() == NESTED[name].stride()
        assert flat[name].storage_offset() == NESTED[name].storage_offset()
        assert storage_of(flat[name]) == storage_of(flat["turned"])
        assert flat[name].untyped_storage().nbytes() == BASE.nbytes


@LEGACY
def test_what_shares_a_storage_shares_it_on_the_device(tmp_path: Path, legacy: bool) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    before = in_use()[1]
    loaded = load(path)
    loaded["rows"].zero_()
    assert loaded["turned"].cpu()[:, 2:].count_nonzero() == 0
    held = in_use()[1]
    del loaded["turned"], loaded["part"]
    assert in_use()[1] == held
    del loaded["rows"]
    assert in_use()[1] == held - BASE.nbytes
    del loaded
    assert in_use()[1] == before


@LEGACY
def test_every_dtype_of_torch_arrives(tmp_path: Path, legacy: bool) -> None:
    dtypes = [*DTYPES.values(), torch.complex32, torch.complex128]
    state = {str(dtype): random_tensor(dtype, 7, 4) for dtype in dtypes}
    path = write(state, tmp_path / "model.pt", legacy)
    assert_on("sim:1", load(path, use_pinmem=True), state)


@LEGACY
def test_parameters_stay_parameters_and_tied_ones_the_same(tmp_path: Path, legacy: bool) -> None:
    model = Tied()
    path = write(dict(model.named_parameters(remove_duplicate=False)), tmp_path / "p.pt", legacy)
    loaded = load(path, "sim:0", use_pinmem=True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert isinstance(loaded[name], torch.nn.Parameter) and loaded[name].requires_grad
        assert loaded[name].is_leaf and str(loaded[name].device) == "sim:0"
        assert same(loaded[name].detach().cpu(), parameter)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    path = write(model.state_dict(), tmp_path / "state.pt", legacy)
    there = Tied().to("sim:0")
    there.load_state_dict(load(path, "sim:0"))
    assert_same(host(there.state_dict()), model.state_dict())


@LEGACY
def test_tensors_go_by_the_names_that_lead_to_them(tmp_path: Path, legacy: bool) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    location = {"": "cpu", "model": "sim:0", "model.bias": "sim:1", "steps.1": "sim:1"}
    for given in (location, lambda name: {"model.weight": "sim:0"}.get(name)):
        loaded = load(path, given)
        is_dict = given is location
        assert str(loaded["model"]["weight"].device) == "sim:0"
        assert str(loaded["model"]["bias"].device) == ("sim:1" if is_dict else "cpu")
        assert str(loaded["steps"][0].device) == "cpu"
        assert str(loaded["steps"][1]["deep"][0].device) == ("sim:1" if is_dict else "cpu")
        assert same(loaded["model"]["weight"].cpu(), NESTED["model"]["weight"])
        assert same(loaded["model"]["bias"].cpu(), NESTED["model"]["bias"])
        assert same(loaded["turned"], NESTED["turned"])


@LEGACY
def test_a_storage_is_there_once_on_each_device_that_wants_it(tmp_path: Path, legacy: bool) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    loaded = load(path, {"": "cpu", "turned": "sim:0", "part": "sim:1", "rows": "sim:0"})
    for name in ("turned", "part", "rows"):
        assert same(loaded[name].cpu(), NESTED[name])
    assert storage_of(loaded["turned"]) == storage_of(loaded["rows"])
    assert devices({"part": loaded["part"]}) == {"part": "sim:1"}


@LEGACY
def test_names_and_slices_of_a_pytorch_file(tmp_path: Path, legacy: bool) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    names = ["model.weight", "turned", "steps.1.deep.0"]
    slices = {"model.weight": slice(3, 9), "turned": (slice(1, 4), slice(0, 2))}
    loaded = load(path, "sim:0", names=names, slices=slices, use_pinmem=True)
    expected = {
        "model.weight": NESTED["model"]["weight"][3:9],
        "turned": NESTED["turned"][1:4, :2],
        "steps.1.deep.0": torch.ones(2),
    }
    assert list(loaded) == names
    assert_on("sim:0", loaded, expected)


@PINNED
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_a_file_of_the_other_byte_order_arrives(
    tmp_path: Path, pinned: bool, dtype: torch.dtype | None
) -> None:
    state = {
        "large": torch.arange(SEGMENT // 3),
        "float": torch.linspace(-4, 4, 77),
        "half": torch.linspace(-4, 4, 31).half(),
        "complex": torch.tensor([1 + 2j, -3j]),
        "byte": torch.arange(5).to(torch.uint8),
        "turned": BASE.t(),
    }
    swapped = {name: swap(tensor) for name, tensor in state.items()}
    path = tmp_path / "model.pt"
    torch.save(swapped, path)
    entries = entries_of(path)
    (order,) = [number for number, entry in enumerate(entries) if entry.data == b"little"]
    entries[order] = entries[order]._replace(data=b"big")
    rewrite(path, entries)
    loaded = load(path, "sim:0", use_pinmem=pinned, dtype=dtype)
    expected = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    assert_on("sim:0", loaded, expected)


def swap(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose elements have their bytes turned around, with the same strides."""
    size = tensor.element_size() // (2 if tensor.is_complex() else 1)
    storage = tensor.untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8).set_(storage).clone()
    raw = raw.view(-1, size).flip(1).contiguous().view(-1)
    return torch.empty(0, dtype=tensor.dtype).set_(
        raw.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def test_a_scripted_module_gives_its_tensors_by_name(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = tmp_path / "module.pt"
    torch.jit.save(torch.jit.script(module), path)
    loaded = veturboio.load(path, map_location={"": "sim:0", "1": "sim:1"}, use_pinmem=True)
    assert_same(host(loaded), module.state_dict())
    assert devices(loaded) == {name: f"sim:{name[0]}" for name in module.state_dict()}


@LEGACY
def test_the_operator_loads_pytorch_files_to_devices(tmp_path: Path, legacy: bool) -> None:
    path = write(NESTED, tmp_path / "model.pt", legacy)
    rules = {"": torch.device("sim:0"), "model": torch.device("sim:1")}
    loaded = torch.ops.veturboio.load(str(path), devices=rules, use_pinmem=True)
    assert {str(loaded[name].device) for name in ("model.weight", "model.bias")} == {"sim:1"}
    assert same(loaded["turned"].cpu(), NESTED["turned"])
    assert stats()["pinned"]["now"] == 0
