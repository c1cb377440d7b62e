"""What stands beside the weights and is of an unknown class: a stand-in takes its place."""

from __future__ import annotations

import argparse
import copy
import datetime
import pathlib
import pickle
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from attacks.pytorch import program as p
from attacks.pytorch.builder import zipped
from attacks.pytorch.unknown_names import HARMFUL, MARKER

import veturboio
from veturboio.unknown import left_out


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(4)])
        self.register_buffer("table", torch.arange(4))
        self.path = pathlib.PurePosixPath("/data/set")


class Hashable:
    """An instance of a class that nobody imports, as a key."""


WEIGHT = torch.arange(6.0).reshape(2, 3)

BESIDE: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, names=["a", "b"]),
    "datetime.datetime": datetime.datetime(2024, 1, 2, 3, 4),
    "collections.defaultdict": defaultdict(list, a=[1], b=[torch.ones(2)]),
    "random state": __import__("random").getstate(),
    "a class": Net,
    "a path": pathlib.PurePosixPath("a/b"),
    "an object as a key": {Hashable(): 1},
    "in a set": {Hashable()},
    "in a tuple": (Hashable(), [Hashable()]),
    "a counter": Counter("hello"),
}


@pytest.fixture(params=[True, False], ids=["zip", "old"])
def new(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("kind", BESIDE)
def test_the_weights_are_loaded(tmp_path: pathlib.Path, kind: str, new: bool) -> None:
    path = tmp_path / "model.pt"
    state = {"w": WEIGHT, "beside": BESIDE[kind], "epoch": 3, "inner": {"w": WEIGHT.double()}}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    loaded: Any = veturboio.load(path, skip_unknown=True)
    assert list(loaded) == list(state)
    assert torch.equal(loaded["w"], WEIGHT)
    assert loaded["epoch"] == 3
    only = veturboio.load(path, skip_unknown=True, names=["inner.w"])
    assert torch.equal(only["inner.w"], WEIGHT.double())
    part = veturboio.load(path, skip_unknown=True, slices={"w": slice(1, 2)}, names=["w"])
    assert torch.equal(part["w"], WEIGHT[1:2])
    filled = {name: torch.zeros_like(value) for name, value in _named(path).items()}
    veturboio.load(path, skip_unknown=True, state_dict=filled)
    assert torch.equal(filled["w"], WEIGHT)


def _named(path: pathlib.Path) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(str(path), skip_unknown=True)


def test_a_stand_in_holds_what_the_object_was_to_be_made_of(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    state = {"args": BESIDE["argparse.Namespace"], "path": pathlib.PurePosixPath("a/b")}
    state["default"] = BESIDE["collections.defaultdict"]
    torch.save({"w": WEIGHT, **state}, path)
    loaded: Any = veturboio.load(path, skip_unknown=True)
    args, place, default = loaded["args"], loaded["path"], loaded["default"]
    assert isinstance(args, veturboio.Unknown)
    assert args.name == "argparse.Namespace"
    assert args.state == {"lr": 0.1, "names": ["a", "b"]}
    assert repr(args) == "<Unknown argparse.Namespace(lr=0.1)>"
    assert (place.name, place.args) == ("pathlib.PurePosixPath", ("a", "b"))
    assert repr(place) == "<Unknown pathlib.PurePosixPath('a', 'b')>"
    assert [key for key, _ in default.items] == ["a", "b"]
    assert torch.equal(default.items[1][1][0], torch.ones(2))
    assert [unknown.name for unknown in default.args] == ["builtins.list"]
    assert left_out(loaded) == {
        "args": "argparse.Namespace",
        "path": "pathlib.PurePosixPath",
        "default": "collections.defaultdict",
        "default.0": "builtins.list",
    }
    for twin in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert (twin.name, twin.state) == (args.name, args.state)


def test_a_pickled_module_has_the_names_of_its_state_dict(
    tmp_path: pathlib.Path, new: bool
) -> None:
    path, net = tmp_path / "model.pt", Net()
    torch.save(net, path, _use_new_zipfile_serialization=new)
    loaded = _named(path)
    expected = net.state_dict()
    assert sorted(loaded) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(loaded[name], value)
    whole: Any = veturboio.load(path, skip_unknown=True)
    assert isinstance(whole, veturboio.Unknown)
    assert whole.name.endswith(".Net")
    assert left_out(whole)["path"].startswith("pathlib")
    torch.save({"model": net, "w": WEIGHT}, path, _use_new_zipfile_serialization=new)
    assert "model.blocks.1.running_mean" in _named(path)


def test_the_same_object_stays_the_same(tmp_path: pathlib.Path) -> None:
    path, space = tmp_path / "model.pt", argparse.Namespace()
    space.me, space.w = space, WEIGHT
    torch.save({"a": space, "b": [space], "c": (space,)}, path)
    loaded: Any = veturboio.load(path, skip_unknown=True)
    assert loaded["a"] is loaded["b"][0] is loaded["c"][0]
    assert loaded["a"].state["me"] is loaded["a"]
    assert torch.equal(loaded["a"].state["w"], WEIGHT)


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_is_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: tuple[str, str]
) -> None:
    path = tmp_path / "model.pt"
    called = p.call(p.name(*name), *HARMFUL[name])
    path.write_bytes(zipped(p.mapping(a=p.tensor(p.storage()), b=called)))
    monkeypatch.chdir(tmp_path)
    loaded: Any = veturboio.load(path, skip_unknown=True)
    assert loaded["a"].tolist() == [1, 2, 3, 4]
    module = {"__builtin__": "builtins"}.get(name[0], name[0])
    assert loaded["b"].name == f"{module}.{name[1]}"
    assert not (tmp_path / MARKER).exists()


def test_what_lies_is_refused_all_the_same(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    unknown = p.call(p.name("nobody", "Nothing"))
    path.write_bytes(zipped(p.mapping(a=p.tensor(p.storage(elements=5)), b=unknown)))
    with pytest.raises(veturboio.FormatError, match="has 16 bytes, not 20"):
        veturboio.load(path, skip_unknown=True)


def test_deep_stand_ins_need_no_deep_stack(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    one = p.call(p.name("nobody", "Nothing")) + p.put(0) + p.POP
    for build in (b"%b" + p.BUILD, p.TUPLE1 + p.REDUCE):
        depth = 100_000
        if build.startswith(b"%b"):
            made = p.call(p.name("n", "N")) * depth + p.NONE + p.BUILD * depth
        else:
            made = p.name("n", "N") * depth + p.NONE + build * depth
        path.write_bytes(zipped(one + p.mapping(a=made, w=p.tensor(p.storage()))))
        loaded: Any = veturboio.load(path, skip_unknown=True)
        assert loaded["w"].tolist() == [1, 2, 3, 4]
        value, count = loaded.pop("a"), 0
        while isinstance(value, veturboio.Unknown):
            value = value.state if value.state is not None else (value.args or (None,))[0]
            count += 1
        assert count == depth


def test_scripted_archives_give_their_plain_tensors(tmp_path: pathlib.Path) -> None:
    """Quantized tensors beside them are left out."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("plain", torch.arange(3.0))
            quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
            self.register_buffer("quantized", quantized)

        def forward(self) -> torch.Tensor:
            return self.plain

    path = tmp_path / "model.pt"
    torch.jit.script(Mixed()).save(str(path))
    loaded = veturboio.load(path)
    assert list(loaded) == ["plain"]
    assert torch.equal(loaded["plain"], torch.arange(3.0))


def test_ordered_dicts_keep_their_attributes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    state = OrderedDict(w=WEIGHT)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save({"s": state, "n": argparse.Namespace(), "t": (state, state)}, path)
    loaded: Any = veturboio.load(path, skip_unknown=True)
    assert loaded["s"]._metadata == {"": {"version": 1}}
    assert loaded["t"][0] is loaded["s"]


def test_what_nothing_reaches_describes_no_storage_otherwise(tmp_path: pathlib.Path) -> None:
    """An id that the pickle discards says that the storage is longer than the tensor's does."""
    unread = p.storage(elements=4) + b"0"
    few = p.tensor(p.storage(elements=1), shape=p.numbers(1))
    odd = p.call(p.name("somewhere", "Odd"))
    path = tmp_path / "model.pt"
    path.write_bytes(zipped(unread + p.mapping(w=few, odd=odd), {"0": bytes(16)}))
    with pytest.raises(veturboio.FormatError, match='storage "0" is described in two ways'):
        veturboio.load(path, skip_unknown=True)
