"""map_location as torch.load means it, and torch's own reader, with tensors on devices."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import stats

import veturboio

BASE = torch.arange(12.0)

NATIVE = {"a": BASE, "tail": BASE[4:], "list": [torch.ones(3), torch.ones(2).half()]}
#: What only torch's reader knows.
FOREIGN = {**NATIVE, "c": Counter("aab"), "conj": torch.ones(2, dtype=torch.complex64).conj()}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["native", "foreign", "legacy native", "legacy foreign"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base was saved from ``sim:1``, all others from the CPU."""
    value = FOREIGN if "foreign" in request.param else NATIVE
    base = BASE.untyped_storage()._cdata

    def tag(storage: torch.UntypedStorage) -> str:
        return "sim:1" if storage._cdata == base else "cpu"

    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", tag)
        new = "legacy" not in request.param
        torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    return tmp_path / "model.pt"


def where(loaded: dict[str, Any]) -> list[str]:
    listed = loaded.get("list", [])
    tensors = [loaded["a"], loaded["tail"], *listed]
    return [str(tensor.device) for tensor in tensors]


CASES: dict[str, tuple[Any, list[str]]] = {
    "dict": ({"sim:1": "sim:0"}, ["sim:0", "sim:0", "cpu", "cpu"]),
    "dict to the CPU": ({"sim:1": "cpu"}, ["cpu"] * 4),
    "dict from the CPU": ({"cpu": "sim:0"}, ["sim:1", "sim:1", "sim:0", "sim:0"]),
    "dict to one device": ({"cpu": "sim:1"}, ["sim:1"] * 4),
    "stay": (lambda storage, location: storage, ["cpu"] * 4),
    "as saved": (lambda storage, location: None, ["sim:1", "sim:1", "cpu", "cpu"]),
    "by name": ({"a": "sim:0", "": "cpu"}, ["sim:0", "cpu", "cpu", "cpu"]),
    "by names": ({"list.0": "sim:1", "": "sim:0"}, ["sim:0", "sim:0", "sim:1", "sim:0"]),
    "by function": (
        lambda name: "sim:1" if name.startswith("list") else "sim:0",
        ["sim:0", "sim:0", "sim:1", "sim:1"],
    ),
    "one device": ("sim:1", ["sim:1"] * 4),
    "an index": (0, ["sim:0"] * 4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_whole(path: Path, case: str, dtype: torch.dtype | None) -> None:
    map_location, expected = CASES[case]
    loaded = veturboio.load(path, map_location=map_location, dtype=dtype)
    assert where(loaded) == expected
    if dtype is not None:
        assert loaded["a"].dtype == loaded["list"][1].dtype == dtype
    assert torch.equal(loaded["a"].cpu().float(), BASE)
    assert torch.equal(loaded["list"][0].cpu().float(), torch.ones(3))
    if expected[0] == expected[1]:
        loaded["a"].fill_(5)
        assert torch.equal(loaded["tail"].cpu().float(), torch.full((8,), 5.0))
    if "c" in loaded:
        assert loaded["c"]["a"] == 2
        assert torch.equal(loaded["conj"].cpu().resolve_conj(), FOREIGN["conj"].resolve_conj())


@pytest.mark.parametrize("case", CASES)
def test_parts(path: Path, case: str) -> None:
    map_location, expected = CASES[case]
    loaded = veturboio.load(
        path, map_location=map_location, names=["tail", "list.0"], slices={"list.0": slice(1, 3)}
    )
    assert list(loaded) == ["tail", "list.0"]
    assert [str(tensor.device) for tensor in loaded.values()] == expected[1:3]
    assert loaded["list.0"].cpu().tolist() == [1, 1]
    assert torch.equal(loaded["tail"].cpu(), BASE[4:])


def test_filling(path: Path) -> None:
    flat = {"a": BASE, "tail": BASE[4:], "list.0": torch.ones(3), "list.1": torch.ones(2).half()}
    if "c" in veturboio.load(path):
        flat["conj"] = torch.ones(2, dtype=torch.complex64)
    targets = {name: torch.zeros_like(tensor, device="sim:1") for name, tensor in flat.items()}
    veturboio.load(path, state_dict=targets, use_pinmem=True)
    for name, tensor in flat.items():
        assert torch.equal(targets[name].cpu(), tensor), name


def test_nothing_is_left_on_a_device(path: Path) -> None:
    before = [device["now"] for device in stats()["device"]]
    for map_location, _ in CASES.values():
        veturboio.load(path, map_location=map_location)
    assert [device["now"] for device in stats()["device"]] == before
