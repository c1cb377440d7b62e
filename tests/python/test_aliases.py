"""Names of tied weights: which one is kept, and which come back from ``__metadata__``."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from probe import assert_same, header_of
from safetensors.torch import save_file as reference_save_file
from safetensors.torch import save_model as reference_save_model

import veturboio

WEIGHT = torch.arange(12.0).view(4, 3)

#: A file as the published library and safetensors' save_model write them.
REMOVED = {"lm_head.weight": "wte.weight", "format": "pt"}


class Tied(torch.nn.Module):
    """Its names in the order of registration are not in that of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(4, 3)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
        self.blocks[1].weight = self.blocks[0].weight
        self.lm_head = torch.nn.Linear(3, 4, bias=False)
        self.lm_head.weight = self.wte.weight


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def foreign(target: Path) -> Path:
    state = {"wte.weight": WEIGHT, "bias": torch.ones(4)}
    reference_save_file(state, target, metadata=REMOVED)
    return target


def stored(path: Path) -> list[str]:
    return sorted(name for name in header_of(path) if name != "__metadata__")


def save_by_operator(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.ops.veturboio.save(state, str(path), force_save_shared_tensor=True)


def save_in_background(state: dict[str, torch.Tensor], path: Path) -> None:
    veturboio.save_file(state, path, force_save_shared_tensor=True, wait=False).result()


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    veturboio.save_file(state, path, force_save_shared_tensor=True)


@torch.jit.script
def save_scripted(state: dict[str, torch.Tensor], path: str) -> None:
    torch.ops.veturboio.save(state, path, force_save_shared_tensor=True)


ORDERS = {
    "not of the alphabet": (["z", "m", "a"], "z"),
    "of the alphabet": (["a", "m", "z"], "a"),
    "in the middle": (["m", "z", "a"], "m"),
}
SAVES = [save, save_by_operator, save_in_background, lambda s, p: save_scripted(s, str(p))]


@pytest.mark.parametrize(("order", "first"), ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("write", SAVES)
def test_the_first_name_is_kept(target: Path, order: list[str], first: str, write) -> None:
    state = {"b": torch.ones(2), **dict.fromkeys(order, WEIGHT), "y": torch.zeros(2)}
    write(state, target)
    assert stored(target) == sorted(["b", first, "y"])
    written = header_of(target)["__metadata__"]
    assert {name: written[name] for name in order[1:]} == dict.fromkeys(order[1:], first)
    assert written["format"] == "pt"
    loaded = veturboio.load(target)
    assert_same(loaded, state)
    assert [name for name in loaded if name in order[1:]] == order[1:]


def test_each_group_keeps_its_own_first_name(target: Path) -> None:
    """Also of views that are turned, and beside views that only overlap."""
    turned = torch.rand(5, 3).t()
    state = OrderedDict(
        part=WEIGHT[1:], z=turned, y=WEIGHT, b=WEIGHT.view(4, 3), a=turned.t().t(), flat=WEIGHT[1:]
    )
    save(state, target)
    assert stored(target) == ["part", "y", "z"]
    assert_same(veturboio.load(target), dict(state))


def test_models_keep_the_name_that_is_registered_first(target: Path, tmp_path: Path) -> None:
    model = Tied()
    veturboio.save_model(model, target)
    expected = ["blocks.0.bias", "blocks.0.weight", "blocks.1.bias", "wte.weight"]
    assert stored(target) == expected
    assert header_of(target)["__metadata__"]["format"] == "pt"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    convert = [sys.executable, "-m", "veturboio.convert", "-i", str(tmp_path / "model.pt")]
    subprocess.run([*convert, "-o", str(tmp_path / "converted")], check=True, capture_output=True)
    assert stored(tmp_path / "converted") == expected
    assert header_of(tmp_path / "converted")["__metadata__"]["format"] == "pt"


def test_a_tied_tensor_named_format(target: Path) -> None:
    """Metadata has another use for that key, so it is stored in full."""
    save({"w": WEIGHT, "format": WEIGHT, "v": WEIGHT}, target)
    assert stored(target) == ["format", "w"]
    assert header_of(target)["__metadata__"]["format"] == "pt"
    assert_same(veturboio.load(target), {"w": WEIGHT, "format": WEIGHT, "v": WEIGHT})


def test_removed_names_come_back(foreign: Path) -> None:
    loaded = veturboio.load(foreign)
    assert list(loaded) == ["bias", "wte.weight", "lm_head.weight"]
    assert loaded["lm_head.weight"] is loaded["wte.weight"]
    assert list(torch.ops.veturboio.load(str(foreign))) == list(loaded)
    assert veturboio.metadata(foreign) == REMOVED


def test_removed_names_of_a_model_come_back(target: Path) -> None:
    model = Tied()
    reference_save_model(model, str(target))
    assert len(stored(target)) == 4
    assert_same(veturboio.load(target), dict(model.state_dict()))


def test_they_can_be_switched_off(foreign: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    save({"wte.weight": WEIGHT, "bias": torch.ones(4), "lm_head.weight": WEIGHT}, ours)
    for path in (foreign, ours):
        off = {"restore_aliases": False}
        assert list(veturboio.load(path, **off)) == ["bias", "wte.weight"]
        assert list(torch.ops.veturboio.load(str(path), **off)) == ["bias", "wte.weight"]
        for call in (veturboio.load, veturboio.explain):
            call(path, names=["lm_head.weight"])
            with pytest.raises(ValueError, match=r"no tensor \"lm_head\.weight\""):
                call(path, names=["lm_head.weight"], **off)


def test_parts_by_removed_names(foreign: Path) -> None:
    loaded = veturboio.load(foreign, names=["lm_head.weight"])
    assert_same(loaded, {"lm_head.weight": WEIGHT})
    loaded = veturboio.load(foreign, slices={"lm_head.weight": slice(1, 3)})
    assert_same(
        loaded, {"bias": torch.ones(4), "wte.weight": WEIGHT, "lm_head.weight": WEIGHT[1:3]}
    )


@pytest.mark.parametrize("places", [{"lm_head": "meta", "": "cpu"}, None])
def test_removed_names_by_location(foreign: Path, places: dict | None) -> None:
    asked = []

    def place(name: str) -> None:
        asked.append(name)

    if places is None:
        loaded = veturboio.load(foreign, map_location=place)
        assert sorted(asked) == sorted(loaded) == ["bias", "lm_head.weight", "wte.weight"]
        asked.clear()
        veturboio.load(foreign, map_location=place, restore_aliases=False)
        assert sorted(asked) == ["bias", "wte.weight"]
    else:
        with pytest.raises(ValueError, match="meta"):
            veturboio.load(foreign, map_location=places)
        loaded = veturboio.load(foreign, map_location={"lm_head": "cpu", "": "cpu"})
        assert_same({"w": loaded["lm_head.weight"]}, {"w": WEIGHT})
    meta = veturboio.load(foreign, map_location="meta")
    assert meta["lm_head.weight"].shape == (4, 3)


FILLED = [
    ["wte.weight", "lm_head.weight"],
    ["wte.weight"],
    ["lm_head.weight"],
]


@pytest.mark.parametrize("names", FILLED)
def test_filling_by_any_of_the_names(foreign: Path, names: list[str]) -> None:
    """The file's tensor arrives under each of its names that there is a tensor for."""
    state = {name: torch.zeros(4, 3) for name in names} | {"bias": torch.zeros(4)}
    veturboio.load(foreign, state_dict=state)
    assert_same(state, {**dict.fromkeys(names, WEIGHT), "bias": torch.ones(4)})


def test_filling_without_any_of_the_names(foreign: Path) -> None:
    state = {"bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"wte\.weight"):
        veturboio.load(foreign, state_dict=state)
    state = {"bias": torch.zeros(4), "lm_head.weight": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match="wte"):
        veturboio.load(foreign, state_dict=state, restore_aliases=False)
    assert state["bias"].sum() == 0


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"format": "a"}, "ab"),
        ({"b": "a", "a": "a"}, "ab"),
        ({"c": "absent", "d": "c", "e": "d", "f": ""}, "ab"),
        ({"c": "a", "d": "c"}, "abc"),
        ({"__metadata__": "a", "c": "b"}, "abc"),
    ],
)
def test_entries_that_are_no_alias(target: Path, metadata: dict, names: str) -> None:
    """A key that is a tensor, a value that is none or an alias itself, and reserved keys."""
    header = {"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 1, 2)}
    target.write_bytes(file({"__metadata__": metadata, **header}, b"xy"))
    loaded = veturboio.load(target)
    assert sorted(loaded) == list(names)
    assert (loaded["a"].item(), loaded["b"].item()) == (ord("x"), ord("y"))
    assert veturboio.metadata(target) == metadata


def test_a_million_aliases_take_memory_for_their_names_alone(target: Path) -> None:
    count = 1_000_000
    header = {"w": tensor("U8", [2**20], 0, 2**20)}
    metadata = {f"alias.{i}": "w" for i in range(count)}
    target.write_bytes(file({"__metadata__": metadata, **header}, bytes(2**20)))
    code = f"""
import resource, veturboio
loaded = veturboio.load({str(target)!r})
assert len(loaded) == {count + 1}
assert len({{id(value) for value in loaded.values()}}) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < max(before, 500 * 1024) + 1024 * 1024
