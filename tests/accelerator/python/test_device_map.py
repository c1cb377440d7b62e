"""``map_location``: one device, devices by name, or a function of the name."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import stats
from checkpoints import MIB, State, assert_on, bytes_of, devices, host, saved
from probe import assert_same, same

import veturboio

STATE = {
    "embed": torch.rand(50, 7),
    "layers.1.w": torch.arange(3 * MIB // 8),
    "layers.1.b": torch.rand(3).bfloat16(),
    "layers.10.w": torch.arange(100),
    "layers.2.norm.scale": torch.rand(9),
    "layers": torch.tensor(3),
    "head.": torch.ones(4),
    "": torch.zeros(2),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.safetensors", STATE)


def load(path: Path, location: Any, **options: Any) -> State:
    return veturboio.load(path, map_location=location, use_pinmem=True, **options)


@pytest.mark.parametrize(
    "location", ["sim:1", torch.device("sim:1"), torch.device("sim", 1), 1], ids=repr
)
def test_one_device_in_every_form(model: Path, location: Any) -> None:
    assert_on("sim:1", load(model, location), STATE)


def test_a_device_without_a_number_is_the_current_one(model: Path) -> None:
    assert_on("sim:0", load(model, "sim"), STATE)
    with torch.accelerator.device_index(1):
        assert_on("sim:1", load(model, "sim"), STATE)
        mixed = load(model, {"": "sim", "embed": "sim:1", "layers": "sim:0"})
    assert devices(mixed)["embed"] == devices(mixed)["head."] == "sim:1"


def test_none_is_the_cpu(model: Path) -> None:
    assert_on("cpu", load(model, None), STATE)


@pytest.mark.parametrize("one", [False, True], ids=["each", "one"])
def test_the_longest_beginning_up_to_a_dot_decides(model: Path, one: bool) -> None:
    location = {
        "": "cpu",
        "layers": "sim:0",
        "layers.1": "sim:1",
        "layers.1.b": torch.device("cpu"),
        "layers.2.norm": 1,
        "lay": "sim:1",
        "head": "sim:0",
        "nobody": "sim:1",
    }
    loaded = load(model, location, one_allocation=one)
    assert list(loaded) == list(veturboio.load(model))
    assert_same(host(loaded), STATE)
    assert devices(loaded) == {
        "": "cpu",
        "embed": "cpu",
        "head.": "sim:0",
        "layers": "sim:0",
        "layers.1.w": "sim:1",
        "layers.1.b": "cpu",
        "layers.10.w": "sim:0",
        "layers.2.norm.scale": "sim:1",
    }


def test_a_file_is_read_once_for_all_devices(model: Path) -> None:
    loaded = load(model, {"": "sim:0", "layers.1": "sim:1", "embed": "cpu"})
    away = bytes_of({name: tensor for name, tensor in loaded.items() if not tensor.is_cpu})
    assert away <= stats()["h2d"]["bytes"] < away + 4096


@pytest.mark.parametrize("location", [{}, {"layers": "sim:0", "embed": "cpu"}], ids=["none", "few"])
def test_a_tensor_without_a_device_is_named(model: Path, location: dict[str, str]) -> None:
    gc.collect()  # what an earlier failure holds
    match = r'tensor ".*": map_location names no device for it'
    with pytest.raises(veturboio.ArgumentError, match=match) as raised:
        load(model, location)
    assert str(model) in str(raised.value)
    assert stats()["device"][0]["now"] == 0
    loaded = load(model, {"embed": "sim:0"}, names=["embed"])
    assert_on("sim:0", loaded, {"embed": STATE["embed"]})


def test_a_function_is_asked_for_every_name_once(model: Path) -> None:
    asked = []

    def location(name: str) -> Any:
        asked.append(name)
        return {"embed": "sim:1", "layers": torch.device("sim:0"), "head.": 1}.get(name)

    loaded = load(model, location)
    assert sorted(asked) == sorted(STATE)
    assert_same(host(loaded), STATE)
    away = {"embed": "sim:1", "layers": "sim:0", "head.": "sim:1"}
    assert devices(loaded) == {name: away.get(name, "cpu") for name in STATE}


def test_a_function_is_asked_for_wanted_names_only(model: Path) -> None:
    asked = []

    def location(name: str) -> str:
        asked.append(name)
        return "sim:0"

    loaded = load(model, location, names=["embed", "layers"], slices={"embed": slice(3, 9)})
    assert sorted(asked) == ["embed", "layers"]
    expected = {"embed": STATE["embed"][3:9], "layers": STATE["layers"]}
    assert_on("sim:0", loaded, expected)


def test_a_function_does_not_decide_by_beginnings(model: Path) -> None:
    loaded = load(model, lambda name: "sim:0" if name in ("", "layers") else None)
    assert {name for name, device in devices(loaded).items() if device == "sim:0"} == {"", "layers"}


def test_what_a_function_raises_is_raised(model: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load(model, lambda name: 1 // 0)
    with pytest.raises((TypeError, RuntimeError)):
        load(model, lambda name: [])
    with pytest.raises(RuntimeError, match="nowhere"):
        load(model, lambda name: "nowhere")


@pytest.mark.parametrize("location", [{1: "sim:0"}, {"a": 1.5}, 2.5, ["sim:0"], {"": []}], ids=repr)
def test_what_is_no_device_is_refused(model: Path, location: Any) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        load(model, location)


def test_meta_is_for_all_or_none(model: Path) -> None:
    assert set(devices(load(model, "meta")).values()) == {"meta"}
    with pytest.raises(ValueError, match="meta device"):
        load(model, {"": "sim:0", "embed": "meta"})


def test_a_tied_tensor_is_on_each_of_its_devices_once(tmp_path: Path) -> None:
    weight = torch.rand(300, 5)
    state = dict.fromkeys(("a.w", "b.w", "c.w", "d.w", "e.w", "f.w"), weight)
    path = tmp_path / "model"
    veturboio.save_file(state, path, force_save_shared_tensor=True)
    for order in (list(state), list(reversed(state))):
        location = {"a": "sim:0", "b": "sim:1", "c": "sim:0", "d": "cpu", "e": "cpu", "f": "sim:1"}
        loaded = load(path, {name: location[name] for name in sorted(location)}, names=order)
        assert list(loaded) == order
        assert devices(loaded) == {name: location[name[0]] for name in order}
        assert_same(host(loaded), state)
        for one, other in (("a.w", "c.w"), ("b.w", "f.w"), ("d.w", "e.w")):
            assert loaded[one].data_ptr() == loaded[other].data_ptr()
        assert len({tensor.data_ptr() for tensor in loaded.values()}) == 3


def test_names_and_slices_go_to_devices(model: Path) -> None:
    slices = {
        "embed": (slice(10, 20), slice(2, 5)),
        "layers.1.w": slice(1000, 300_000),
        "layers.10.w": slice(0, 0),
    }
    location = {"": "sim:0", "layers": "sim:1"}
    names = ["layers.1.w", "embed", "layers.10.w", "head."]
    loaded = load(model, location, names=names, slices=slices)
    assert list(loaded) == names
    expected = {
        "layers.1.w": STATE["layers.1.w"][1000:300_000],
        "embed": STATE["embed"][10:20, 2:5],
        "layers.10.w": STATE["layers.10.w"][:0],
        "head.": STATE["head."],
    }
    assert_same(host(loaded), expected)
    assert [str(loaded[name].device) for name in names] == ["sim:1", "sim:0", "sim:1", "sim:0"]
    assert all(tensor.is_contiguous() for tensor in loaded.values())
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in loaded.values())


def test_what_is_not_wanted_does_not_travel(model: Path) -> None:
    load(model, "sim:0", names=["embed"])
    assert stats()["h2d"]["bytes"] == STATE["embed"].nbytes


@torch.jit.script
def scripted(
    file: str, device: torch.device, devices: dict[str, torch.device], dtype: torch.dtype
) -> list[dict[str, torch.Tensor]]:
    helper = torch.classes.veturboio.IOHelper(64 * 1024 * 1024)
    return [
        torch.ops.veturboio.load(file, map_location=device, use_pinmem=True, helper=helper),
        torch.ops.veturboio.load(file, devices=devices, use_pinmem=True, helper=helper),
        torch.ops.veturboio.load(
            file, map_location=device, devices=devices, dtype=dtype, one_allocation=True
        ),
    ]


def test_a_script_loads_to_devices(model: Path) -> None:
    cpu, first, second = (torch.device(name) for name in ("cpu", "sim:0", "sim:1"))
    rules = {"": cpu, "layers": first, "layers.1": second}
    whole, spread, converted = scripted(str(model), first, rules, torch.float16)
    assert_on("sim:0", whole, STATE)
    assert_same(host(spread), STATE)
    assert devices(spread) == devices(load(model, rules))
    for name, tensor in converted.items():
        wanted = STATE[name].half() if STATE[name].is_floating_point() else STATE[name]
        assert same(tensor.cpu(), wanted)
    accelerator.synchronize()


def test_the_operator_knows_a_device_for_the_rest(model: Path) -> None:
    operator: Callable[..., State] = torch.ops.veturboio.load
    loaded = operator(
        str(model), map_location=torch.device("sim:1"), devices={"embed": torch.device("cpu")}
    )
    assert devices(loaded) == {name: "cpu" if name == "embed" else "sim:1" for name in STATE}
    loaded = operator(str(model), devices={"": torch.device("sim:0")}, map_location=None)
    assert_on("sim:0", loaded, STATE)
    with pytest.raises((ValueError, RuntimeError), match=r'"embed".*no device'):
        operator(str(model), devices={"layers": torch.device("sim:0")}, names=["embed"])
