"""PyTorch files of every kind come back as torch.load gives them: tensor by tensor, bit by bit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from probe import random_tensor
from pytorch_files import (
    ALL_DTYPES,
    Tied,
    check,
    check_saved,
    load_by_torch,
    load_natively,
    tensors_by_name,
)
from values import assert_alike

import veturboio

#: Those whose storages have a class: torch can read no others from the old format.
OLD_DTYPES = ["float32", "float64", "float16", "bfloat16", "complex64", "complex128"]
OLD_DTYPES += ["uint8", "int8", "int16", "int32", "int64", "bool"]

SHAPES = [(), (1,), (7,), (0,), (3, 5), (2, 0, 3), (1, 2, 3, 2, 2)]

BASE = torch.arange(120.0).view(2, 3, 4, 5)

VIEWS = {
    "transposed": BASE.transpose(0, 2),
    "permuted": BASE.permute(3, 1, 0, 2),
    "sliced": BASE[1, 1:, ::2, 2:],
    "one row": BASE[1, 2, 3],
    "one number": BASE[1, 2, 3, 4],
    "nothing at an offset": BASE[1, 2, 3, 5:],
    "nothing": BASE[:, :0],
    "expanded": torch.arange(3.0)[:, None].expand(3, 1000),
    "expanded scalar": torch.tensor(2.0).expand(2, 3),
    "channels last": BASE.contiguous(memory_format=torch.channels_last),
    "diagonal": BASE[0, 0].diagonal(),
    "overlapping": torch.arange(12.0).as_strided((4, 4), (2, 1), 1),
    "odd strides of one": torch.arange(10.0).as_strided((1, 3, 1), (77, 2, 99), 2),
    "odd strides of none": torch.arange(10.0).as_strided((0, 3), (77, 99), 2),
    "huge strides of one": torch.arange(10.0).as_strided((1, 3, 1), (2**63 - 1, 2, 2**62), 2),
    "huge strides of none": torch.arange(10.0).as_strided((3, 0), (2**62, 2**63 - 1)),
    "no strides of one": torch.arange(10.0).as_strided((1, 3, 1), (0, 2, 0), 2),
    "unfolded": torch.arange(10.0).unfold(0, 4, 2),
    "real part": torch.view_as_complex(torch.rand(4, 2)).real,
    "other dtype": torch.arange(6).view(torch.float32)[1:],
}

VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "integers": [0, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63 - 1, -(2**63)],
    "big integers": [2**63, -(2**63) - 1, 2**64, 2**100, -(2**1000), 2**2000],
    "floats": [0.0, -0.0, 1e300, 5e-324, float("inf"), float("-inf"), float("nan"), 0.1],
    "complex": [1 + 2j, -0.0j, complex("nan+infj")],
    "strings": ["", "a", "é\U0001f600\u2028", "\0\x7f", "x" * 300, "\n'\"\\", "漢" * 100],
    "bytes": [b"abc", bytes(range(256)), bytearray(b"\0\xff"), bytearray()],
    "lists": [[], [[]], [1, [2, [3, [4]]]]],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1, ()), ())),
    "sets": [set(), {1, 2, "a", (1, 2)}],
    "dicts": {"": {}, "a": {"b": {"c": {}}}},
    "other keys": {1: "a", -1: "b", 1.5: "c", None: "d", False: "e", (1, "x"): "f", b"k": "g"},
    "ordered": OrderedDict([("b", 1), ("a", OrderedDict())]),
    "sizes": [torch.Size([]), torch.Size([1, 2, 3])],
    "dtypes": [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn],
    "more dtypes": [torch.uint16, torch.complex128, torch.float4_e2m1fn_x2],
    "devices": [torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")],
    "ten thousand": list(range(10_000)),
    "ten thousand keys": {f"key {i}": i for i in range(10_000)},
    "deep": None,
}
VALUES["deep"] = "bottom"
for _ in range(200):
    VALUES["deep"] = [VALUES["deep"], {"deeper": None}]

both_formats = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.mark.parametrize("name", ALL_DTYPES)
def test_every_dtype_and_shape(file: Path, name: str) -> None:
    shapes = {str(shape): random_tensor(ALL_DTYPES[name], *shape) for shape in SHAPES}
    loaded = check_saved(shapes, file)
    assert all(tensor.dtype == ALL_DTYPES[name] for tensor in loaded.values())
    assert_alike(torch.ops.veturboio.load(str(file)), loaded)


@pytest.mark.parametrize("name", OLD_DTYPES)
def test_every_dtype_and_shape_of_the_old_format(file: Path, name: str) -> None:
    shapes = {str(shape): random_tensor(ALL_DTYPES[name], *shape) for shape in SHAPES}
    loaded = check_saved(shapes, file, _use_new_zipfile_serialization=False)
    assert_alike(torch.ops.veturboio.load(str(file)), loaded)


@both_formats
@pytest.mark.parametrize("name", VIEWS)
def test_views_keep_their_strides_and_offset(file: Path, name: str, new: bool) -> None:
    view = VIEWS[name]
    loaded = check_saved({"v": view}, file, _use_new_zipfile_serialization=new)["v"]
    assert loaded.stride() == view.stride()
    assert loaded.storage_offset() == view.storage_offset()
    assert torch.equal(loaded, view)


@both_formats
@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_no_tensors(file: Path, name: str, new: bool) -> None:
    check_saved({"v": VALUES[name]}, file, _use_new_zipfile_serialization=new)
    check_saved(VALUES[name], file, _use_new_zipfile_serialization=new)


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(file: Path, protocol: int, new: bool) -> None:
    """torch.load reads protocols over 3 only without weights_only; these files are our own."""
    everything = {"values": {**VALUES}, "views": {**VIEWS}, "module": module().state_dict()}
    everything["values"].pop("dtypes")
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}
    check_saved(everything, file, weights_only=False, **options)


@both_formats
def test_storages_are_shared_again(file: Path, new: bool) -> None:
    base = torch.arange(12.0)
    same = torch.rand(3)
    saved = {
        "whole": base,
        "matrix": base.view(3, 4),
        "columns": base.view(3, 4).t(),
        "tail": base[5:],
        "twice": [same, same],
        "other object": same.view(3),
        "alone": torch.arange(12.0),
    }
    loaded = check_saved(saved, file, _use_new_zipfile_serialization=new)
    assert loaded["twice"][0] is loaded["twice"][1]
    assert loaded["other object"] is not loaded["twice"][0]
    loaded["matrix"].zero_()
    assert loaded["tail"].sum() == 0
    assert torch.equal(loaded["alone"], base)
    flat = torch.ops.veturboio.load(str(file))
    assert_alike(flat, tensors_by_name(load_by_torch(file)))


def test_one_object_twice_is_one_object(file: Path) -> None:
    inner, key = {"t": torch.ones(2)}, "a key that is used twice"
    own: list = [inner]
    own.append(own)
    loaded = check_saved({"a": inner, "b": [inner, inner], key: {key: own}}, file)
    assert loaded["a"] is loaded["b"][0] is loaded["b"][1]
    assert loaded[key][key][1] is loaded[key][key]


@both_formats
def test_gradients_and_parameters(file: Path, new: bool) -> None:
    weight = torch.nn.Parameter(torch.rand(3, 2))
    saved = {
        "leaf": torch.rand(3, requires_grad=True),
        "parameter": weight,
        "the same": weight,
        "frozen": torch.nn.Parameter(torch.arange(3), requires_grad=False),
        "double": torch.rand(2, dtype=torch.complex128, requires_grad=True),
        "parameter of a view": torch.nn.Parameter(torch.rand(4, 5).t()[1:]),
        "tied": torch.nn.Parameter(weight.data),
    }
    loaded = check_saved(saved, file, _use_new_zipfile_serialization=new)
    assert isinstance(loaded["parameter"], torch.nn.Parameter)
    assert loaded["parameter"] is loaded["the same"]
    (loaded["parameter"].sum() + loaded["leaf"].sum()).backward()
    assert torch.equal(loaded["parameter"].grad, torch.ones(3, 2))
    with torch.no_grad():
        loaded["frozen"].add_(1)
    flat = torch.ops.veturboio.load(str(file))
    assert flat["leaf"].requires_grad
    assert flat["parameter"].requires_grad
    assert not flat["frozen"].requires_grad


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return Tied()


@both_formats
def test_state_dicts(file: Path, new: bool) -> None:
    model = module()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    model.layers(torch.rand(3, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
    }
    loaded = check_saved(saved, file, _use_new_zipfile_serialization=new)
    assert loaded["model"]._metadata == model.state_dict()._metadata
    assert loaded["model"]._metadata["layers.1"] == {"version": 2}
    fresh = Tied()
    fresh.load_state_dict(loaded["model"])
    torch.optim.Adam(fresh.parameters()).load_state_dict(loaded["optimizer"])
    assert torch.equal(fresh.head.weight, model.embedding.weight)


@both_formats
def test_thousands_of_tensors_and_a_large_pickle(file: Path, new: bool) -> None:
    shared = torch.arange(1000.0)
    saved = {f"layer.{i}": shared[i : i + 3] for i in range(1000)}
    saved |= {f"own.{i}": torch.full((i % 5,), i) for i in range(3000)}
    saved["notes"] = ["note " * 10_000, {f"entry {i}": i for i in range(10_000)}]
    check_saved(saved, file, _use_new_zipfile_serialization=new)
    flat = torch.ops.veturboio.load(str(file))
    assert len(flat) == 4000


@both_formats
def test_the_old_format_with_pickles_over_a_mebibyte(file: Path, new: bool) -> None:
    """More than is read at first."""
    saved = {"note": "x" * 3_000_000, "a": torch.rand(5), "b": torch.arange(3)}
    check_saved(saved, file, _use_new_zipfile_serialization=new)


@both_formats
def test_a_tensor_alone_and_things_without_tensors(file: Path, new: bool) -> None:
    options = {"_use_new_zipfile_serialization": new}
    check_saved(torch.arange(3), file, **options)
    with pytest.raises(ValueError, match="one tensor without a name"):
        torch.ops.veturboio.load(str(file))
    for value in ({}, [], {"a": 1}, [{"b": None}]):
        check_saved(value, file, **options)
        assert torch.ops.veturboio.load(str(file)) == {}


def test_names_of_the_operator(file: Path) -> None:
    saved = {
        "a": {"b": {"c": torch.ones(1)}, "d.e": torch.ones(2)},
        "list": [torch.ones(3), (torch.ones(4), {"x": torch.ones(5)}), 7, None, "text"],
        3: {-1: torch.ones(6)},
        "": {"empty": torch.ones(7)},
        "number": 1,
    }
    loaded = check_saved(saved, file)
    flat = torch.ops.veturboio.load(str(file))
    assert_alike(flat, tensors_by_name(loaded))
    assert {"a.b.c", "a.d.e", "list.0", "list.1.1.x", "3.-1", ".empty"} < flat.keys()
    torch.save([torch.ones(1), [torch.ones(2)]], file)
    assert sorted(torch.ops.veturboio.load(str(file))) == ["0", "1.0"]


@pytest.mark.parametrize(
    "saved",
    [
        {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
        {"1": torch.ones(1), 1: torch.ones(2)},
        {"a": {"0": torch.ones(1), 0: torch.ones(1)}},
    ],
    ids=["dots", "numbers", "nested"],
)
def test_two_tensors_of_one_name_are_refused_by_the_operator(file: Path, saved: dict) -> None:
    check_saved(saved, file)
    with pytest.raises(ValueError, match="two tensors have this name") as refusal:
        torch.ops.veturboio.load(str(file))
    assert str(refusal.value).startswith(f"read {file}: ")


@both_formats
def test_meta(file: Path, new: bool) -> None:
    saved = {**VIEWS, "p": torch.nn.Parameter(torch.rand(2, 3).t()), "n": [1, torch.ones(2)]}
    torch.save(saved, file, _use_new_zipfile_serialization=new)
    ours = load_natively(file, map_location="meta")
    flat = torch.ops.veturboio.load(str(file), map_location="meta")
    for name, tensor in tensors_by_name(load_by_torch(file)).items():
        assert tensors_by_name(ours)[name].requires_grad == tensor.requires_grad
        for meta in (tensors_by_name(ours)[name], flat[name]):
            assert meta.device.type == "meta"
            assert (meta.dtype, meta.shape) == (tensor.dtype, tensor.shape), name
            assert meta.stride() == tensor.stride(), name
    if new:  # torch.load cannot do this with the old format
        theirs = load_by_torch(file, map_location="meta")
        assert_alike(ours, theirs, storages=False)


def test_parameters_that_say_how_to_load(file: Path) -> None:
    torch.save({"a": BASE, "b": [VIEWS["sliced"]]}, file)
    theirs = load_by_torch(file)
    for options in (
        {"num_thread": 1},
        {"enable_fast_mode": False},
        {"map_location": None},
        {"map_location": torch.device("cpu")},
        {"use_pinmem": True} if not torch.accelerator.is_available() else {},
    ):
        assert_alike(load_natively(file, **options), theirs)
    assert_alike(veturboio.load(str(file)), theirs)
    assert_alike(veturboio.load(str(file).encode()), theirs)
    with pytest.raises(ValueError, match="num_thread must be at least 1"):
        veturboio.load(file, num_thread=0)


def test_what_is_saved_again_is_the_same(file: Path, tmp_path: Path) -> None:
    """At its own size: no tensor drags the file along, and none that were shared are doubled."""
    base = torch.rand(50_000)
    saved = {"a": torch.rand(100), "b": base, "c": base[10:20], "m": module().state_dict()}
    loaded = check_saved(saved, file)
    again = tmp_path / "again.pt"
    torch.save(loaded, again)
    assert abs(again.stat().st_size - file.stat().st_size) < 4096
    check(again)
    torch.save(loaded["a"], again)
    assert again.stat().st_size < 4096
    torch.save(loaded, again)
    again.replace(file)  # the very file that is mapped
    assert_alike(load_natively(file), loaded)
    assert torch.equal(loaded["b"], base)
