"""map_location as torch.load means it: by the device that a tensor was saved from."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_files import load_natively
from values import assert_alike

import veturboio

BASE = torch.arange(12.0)
VALUE = {
    "a": BASE,
    "tail": BASE[4:].view(2, 4),
    "list": [torch.ones(3), {"p": torch.nn.Parameter(torch.arange(4.0), requires_grad=False)}],
    "half": torch.ones(2, dtype=torch.float16),
    (1, 2): torch.zeros(5),
    "none": torch.zeros(0),
}

both_formats = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


def saved(
    path: Path, monkeypatch: pytest.MonkeyPatch, *tags: str, value: Any = None, new: bool = True
) -> Path:
    """A file whose storages were saved from these devices; the last is that of the rest."""
    rest = list(tags)
    given: dict[int, str] = {}

    def tag(storage: torch.UntypedStorage) -> str:
        if storage._cdata not in given:
            given[storage._cdata] = rest.pop(0) if len(rest) > 1 else rest[0]
        return given[storage._cdata]

    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", tag)
        torch.save(VALUE if value is None else value, path, _use_new_zipfile_serialization=new)
    return path


def calls_of(load: Callable[..., Any], path: Path, answer: Callable[..., Any]) -> Counter[Any]:
    """What a function is asked, by location and bytes."""
    asked: Counter[Any] = Counter()

    def function(storage: torch.UntypedStorage, location: str) -> Any:
        assert isinstance(storage, torch.UntypedStorage) and storage.device.type == "cpu"
        asked[location, bytes(storage.tolist())] += 1
        return answer(storage, location)

    load(path, map_location=function)
    return asked


@both_formats
def test_a_function_is_asked_as_torch_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    """Of each storage once, with the device it was saved from; torch asks of empty ones at will."""
    tags = ("cuda:0", "cpu", "cuda:1", "xla:3", "cpu")
    path = saved(tmp_path / "model.pt", monkeypatch, *tags, new=new)
    ours = calls_of(load_natively, path, lambda storage, _location: storage)
    theirs = calls_of(torch.load, path, lambda storage, _location: storage)
    if new:  # of the old format torch asks before it has read the bytes
        assert {key for key in ours if key[1]} == {key for key in theirs if key[1]}
    assert Counter(key[0] for key in ours if key[1]) == Counter(key[0] for key in theirs if key[1])
    assert all(count == 1 for key, count in ours.items() if key[1])


@both_formats
def test_the_usual_functions_and_dicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    path = saved(tmp_path / "model.pt", monkeypatch, "cuda:0", new=new)
    expected = torch.load(path, map_location="cpu", weights_only=True)

    class Same:
        def __call__(self, storage: object, location: str) -> object:
            return storage

    def optional(storage: object, location: str, *, extra: int = 0) -> object:
        return storage

    for where in (
        lambda storage, loc: storage,
        lambda storage, loc: "cpu",
        lambda *_: "cpu",
        lambda storage, loc: torch.TypedStorage(wrap_storage=storage, dtype=torch.uint8),
        lambda storage, loc: storage.clone(),
        Same(),
        optional,
        functools.partial(lambda device, storage, loc: storage, None),
        {"cuda:0": "cpu"},
        {"cuda:0": torch.device("cpu"), "cuda:1": "cuda:0"},
    ):
        assert_alike(load_natively(path, map_location=where), expected)
        loaded = load_natively(path, map_location=where, names=["tail", "list.1.p", "a"])
        assert list(loaded) == ["tail", "list.1.p", "a"]
        assert torch.equal(loaded["a"], BASE)
        loaded["a"].zero_()
        assert loaded["tail"].sum() == 0
        loaded = load_natively(path, map_location=where, slices={"a": slice(2, 4)})
        assert loaded["a"].tolist() == [2, 3]
        assert load_natively(path, map_location=where, dtype=torch.half)["a"].dtype == torch.half


def test_functions_of_a_name_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    veturboio.save_file({"a": torch.ones(2), "b.c": torch.ones(1)}, path)
    asked: list[str] = []

    def named(name: str, device: str = "cpu") -> str:
        asked.append(name)
        return device

    for where in (named, functools.partial(named, device="cpu"), {"a": "cpu"}.get):
        assert veturboio.load(path, map_location=where).keys() == {"a", "b.c"}
    assert asked == ["a", "b.c"] * 2


@both_formats
def test_meta_for_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    path = saved(tmp_path / "model.pt", monkeypatch, "cuda:0", "cuda:1", new=new)
    loaded = load_natively(path, map_location={"cuda:0": "cpu", "cuda:1": "meta"})
    assert torch.equal(loaded["a"], BASE)
    assert loaded["tail"].device.type == "cpu" and loaded["list"][0].is_meta
    assert loaded["list"][1]["p"].is_meta and loaded[1, 2].shape == (5,)
    assert isinstance(loaded["list"][1]["p"], torch.nn.Parameter)
    loaded = load_natively(
        path, map_location={"cuda:0": "cpu", "cuda:1": "meta"}, names=["half", "tail"]
    )
    assert loaded["half"].is_meta and torch.equal(loaded["tail"], BASE[4:].view(2, 4))
    loaded = load_natively(path, map_location={"cuda:0": "meta", "cuda:1": "meta"})
    assert loaded["a"].is_meta and loaded["half"].is_meta


def test_what_stays_where_it_was_saved_needs_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model.pt", monkeypatch, "cpu", "cuda:0", "cpu")
    for where in ({"cpu": "cpu"}, lambda storage, loc: None, lambda storage, loc: "cuda:5"):
        with pytest.raises(RuntimeError, match=r"(?i)cuda|nvidia"):
            veturboio.load(path, map_location=where)
    path = saved(tmp_path / "model.pt", monkeypatch, "martian:0")
    with pytest.raises(RuntimeError, match=r"martian|device"):
        veturboio.load(path, map_location={"cpu": "cpu"})
    assert torch.equal(veturboio.load(path, map_location=lambda storage, loc: storage)["a"], BASE)


def test_a_tensor_of_a_devices_name_is_meant_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"cpu": {"w": torch.ones(2)}, "cuda": torch.ones(3)}
    path = saved(tmp_path / "model.pt", monkeypatch, "cuda:0", value=value)
    loaded = veturboio.load(path, map_location={"cpu": "cpu", "cuda": "cpu"})
    assert loaded["cpu"]["w"].device.type == "cpu"
    with pytest.raises(ValueError, match='"cuda": map_location names no device for it'):
        veturboio.load(path, map_location={"cpu": "cpu"})
    assert veturboio.load(path, map_location={"cpu": "cpu"}, names=["cpu.w"])
    with pytest.raises(ValueError, match="names no device for it"):
        veturboio.load(path, map_location={})


@pytest.mark.parametrize("save", [torch.save, veturboio.save_file], ids=["pt", "safetensors"])
def test_names_and_tensors_are_of_one_version(tmp_path: Path, save: Callable[..., Any]) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    save({"a": torch.ones(2), "b": torch.ones(3)}, path)
    save({"a": torch.zeros(2), "c": torch.zeros(3)}, other)

    def replacing(_name: str) -> str:
        if other.exists():
            other.replace(path)
        return "cpu"

    loaded = veturboio.load(path, map_location=replacing)
    assert list(loaded) == ["a", "b"] and loaded["a"].tolist() == [1, 1]
    assert list(veturboio.load(path)) == ["a", "c"]


def test_files_that_tell_no_locations(tmp_path: Path) -> None:
    veturboio.save_file({"a": BASE}, tmp_path / "model.safetensors")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        path = tmp_path / name
        theirs = veturboio.load(path)
        for where in ({"cuda:0": "cpu"}, {"cpu": "cpu"}, lambda storage, loc: storage):
            assert_alike(veturboio.load(path, map_location=where), theirs)
        loaded = veturboio.load(path, map_location={"cpu": "meta"})
        assert all(tensor.is_meta for tensor in loaded.values())
        asked = calls_of(load_natively, path, lambda storage, loc: None)
        assert {location for location, _ in asked} == {"cpu"}


def test_one_bare_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model.pt", monkeypatch, "cuda:0", value=BASE)
    for where in ({"cuda:0": "cpu"}, lambda storage, loc: storage):
        assert torch.equal(load_natively(path, map_location=where), BASE)
    path = saved(tmp_path / "model.pt", monkeypatch, "cuda:0", value=[])
    assert load_natively(path, map_location={"cuda:0": "cpu"}) == []


@both_formats
def test_by_torchs_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    value = {**VALUE, "c": Counter("a")}
    tags = ("cuda:0", "cpu", "cuda:1", "cpu")
    path = saved(tmp_path / "model.pt", monkeypatch, *tags, value=value, new=new)
    expected = torch.load(path, map_location="cpu", weights_only=True)
    for where in ({"cuda:0": "cpu", "cuda:1": "cpu"}, lambda storage, loc: storage):
        assert_alike(veturboio.load(path, map_location=where), expected)
        assert veturboio.load(path, map_location=where, names=["a"])["a"].tolist() == BASE.tolist()
    with pytest.raises(RuntimeError, match=r"(?i)cuda|nvidia"):
        veturboio.load(path, map_location={"cuda:0": "cpu"})


def test_what_is_no_answer(tmp_path: Path) -> None:
    torch.save(VALUE, tmp_path / "model.pt")
    with pytest.raises(TypeError, match="map_location returned no storage but a int"):
        veturboio.load(tmp_path / "model.pt", map_location=lambda storage, loc: 5)
    with pytest.raises(ValueError, match=r"map_location returned \d+ bytes for a storage of"):
        veturboio.load(tmp_path / "model.pt", map_location=lambda storage, loc: storage[:1])
    with pytest.raises(TypeError, match="name 5 in map_location is not a str"):
        veturboio.load(tmp_path / "model.pt", map_location={5: "cpu"})


def test_torchs_own_parameters(tmp_path: Path) -> None:
    torch.save(VALUE, tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    for options in (
        {"weights_only": True},
        {"weights_only": None},
        {"mmap": True},
        {"mmap": False},
        {"mmap": None},
        {"mmap": True, "way": "auto"},
        {"mmap": False, "use_direct_io": True},
        {"mmap": False, "way": "uring"},
        {"mmap": True, "weights_only": True, "map_location": lambda storage, loc: storage},
    ):
        for source in (tmp_path / "model.pt", io.BytesIO(content)):
            assert_alike(load_natively(source, **options), VALUE, storages=False)
    for options, words in (
        ({"weights_only": False}, "weights_only=False would run the file's pickle"),
        ({"mmap": True, "use_direct_io": True}, "mmap=True cannot be combined with 'direct'"),
        ({"mmap": False, "way": "map"}, "mmap=False cannot be combined with 'map'"),
    ):
        with pytest.raises(veturboio.ArgumentError, match=words):
            veturboio.load(tmp_path / "model.pt", **options)
    with pytest.raises(TypeError, match="pickle_module"):
        veturboio.load(tmp_path / "model.pt", pickle_module=None)  # type: ignore[call-arg]


@pytest.mark.parametrize("wanted", ["cpu:7", torch.device("cpu", 7), {"": "cpu:7"}, {"a": "cpu:7"}])
def test_there_is_one_cpu(tmp_path: Path, wanted: Any) -> None:
    veturboio.save_file({"a": torch.ones(2)}, tmp_path / "saved")
    with pytest.raises(RuntimeError, match=r"^map_location names cpu:7, and there is one cpu$"):
        veturboio.load(tmp_path / "saved", map_location=wanted)
    assert veturboio.load(tmp_path / "saved", map_location="cpu:0")["a"].device.type == "cpu"
