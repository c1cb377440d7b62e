"""torch's reader behind every door: warnings, threads, races, addresses, modules, the command."""

from __future__ import annotations

import argparse
import collections
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudserver
import pytest
import torch
from attacks.pytorch.archive import Entry, archive
from cloudserver import Store
from conftest import Run
from fallback_values import C, W, quantized
from probe import maps_of, open_files

import veturboio
from veturboio import io as ours
from veturboio.convert import main

VALUE = {"w": W, "c": collections.Counter("aab"), "q": quantized(torch.quint8)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save(VALUE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


WARNED = """
import sys, threading, warnings, torch, veturboio
path, how = sys.argv[1:]
options = {"names": {"names": ["w"]}, "dtype": {"dtype": torch.half}, "none": {},
           "state_dict": {"names": ["w"], "slices": {"w": slice(1)}}}[how]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    if how == "none":
        model = torch.nn.Module()
        model.register_buffer("w", torch.zeros(6, 4))
        veturboio.load_model(model, path, strict=False)
    else:
        load = lambda: veturboio.load(path, **options)
        threads = [threading.Thread(target=load) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    ours = [one for one in said if "trying torch.load" in str(one.message)]
    assert len(ours) == 1, [str(one.message) for one in said]
    assert ours[0].filename == "<test>", ours[0].filename
    assert "_rebuild_qtensor" in str(ours[0].message)
"""


@pytest.mark.parametrize("how", ["names", "dtype", "none", "state_dict"])
def test_one_warning_that_points_at_the_caller(tmp_path: Path, run: Run, how: str) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": W, "q": quantized(torch.quint8)}, path)
    run(WARNED, path, how)


def test_a_class_that_nobody_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": W, "c": collections.Counter(), "a": argparse.Namespace(x=1)}, path)
    for options in ({}, {"names": ["w"]}, {"dtype": torch.half}):
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load(path, **options)
        text = str(refused.value)
        assert text.startswith(f"read {path}: its pickle uses ")
        assert "torch.serialization.add_safe_globals([argparse.Namespace])" in text
        assert "skip_unknown=True" in text
        assert "\n" not in text and "weights_only=False" not in text
        assert str(refused.value.file) == str(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert veturboio.load(path)["a"].x == 1


def test_what_is_not_about_the_file_is_raised_as_it_is(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    for raised in (StopError("now"), KeyboardInterrupt(), MemoryError(), OSError(5, "gone")):

        def load(*_: Any, raised: BaseException = raised, **__: Any) -> None:
            raise raised

        with monkeypatch.context() as patched, pytest.raises(type(raised)) as caught:
            patched.setattr(torch, "load", load)
            veturboio.load(plain, names=["w"])
        assert caught.value is raised


def test_what_torch_wants_imported_is_said(tmp_path: Path, run_anew: Run) -> None:
    path = tmp_path / "model.pt"
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    torch.save({"n": nested}, path)
    run_anew(
        "import sys, veturboio\n"
        "try: veturboio.load(sys.argv[1])\n"
        "except veturboio.FormatError as error: assert 'must be imported' in str(error), error\n"
        "else: raise SystemExit('was loaded')\n",
        path,
    )


def test_threads(plain: Path) -> None:
    loaded: list[Any] = []

    def load() -> None:
        loaded.append(veturboio.load(plain, names=["w"]))
        loaded.append(veturboio.load(plain, dtype=torch.float64))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 16
    assert all(torch.equal(one["w"].float(), W) for one in loaded)


@pytest.mark.parametrize("new", ["good", "malformed", "other"])
def test_a_file_replaced_meanwhile_is_looked_at_again(
    plain: Path, monkeypatch: pytest.MonkeyPatch, new: str
) -> None:
    """What torch reads is what the core found well formed, even if the name has moved on."""
    other = plain.with_name("other.pt")
    if new == "malformed":
        other.write_bytes(plain.read_bytes()[:-200])
    else:
        torch.save({"w": W + 1} if new == "good" else {**VALUE, "w": W + 1}, other)
    pinned = ours.pinned

    def replacing(path: str, options: dict[str, Any]) -> Any:
        other.replace(plain)
        return pinned(path, options)

    monkeypatch.setattr(ours, "pinned", replacing)
    if new == "malformed":
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load(plain)
        assert "refuses it too" not in str(refused.value)
    else:
        assert torch.equal(veturboio.load(plain)["w"], W + 1)


def test_a_lying_archive_is_never_shown_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    torch.save(VALUE, path)
    content = path.read_bytes()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was asked"))
    for damaged in (
        content[: len(content) // 2],
        content[:-30],
        content.replace(b"data/0", b"data/7"),
    ):
        for options in ({}, {"names": ["w"]}, {"dtype": torch.half}, {"map_location": {"": "cpu"}}):
            with pytest.raises(veturboio.FormatError) as refused:
                veturboio.load(damaged, **options)
            assert str(refused.value).startswith("read <bytes>: ")


def test_names_read_no_more_than_they_need(tmp_path: Path) -> None:
    """The file is mapped, and so is what is wanted of it; nothing else is held."""
    path = tmp_path / "model.pt"
    torch.save({"large": torch.ones(1 << 22), "w": W, "q": quantized(torch.quint8)}, path)
    files = open_files()
    loaded = veturboio.load(path, names=["w"])
    assert open_files() == files
    assert maps_of(path) != []
    before = path.read_bytes()
    loaded["w"].fill_(9)
    assert path.read_bytes() == before
    del loaded
    assert maps_of(path) == []
    whole = veturboio.load(path)
    assert maps_of(path) == [] and whole["large"].sum() == 1 << 22


def test_storages_at_odd_places(tmp_path: Path) -> None:
    """An archive that something else has packed again; mapped, its elements would lie anywhere."""
    path, odd = tmp_path / "model.pt", tmp_path / "odd.pt"
    torch.save({"w": W, "c": collections.Counter("a")}, path)
    with zipfile.ZipFile(path) as old:
        entries = [Entry(name, old.read(name)) for name in old.namelist()]
    odd.write_bytes(archive(entries))
    for options in ({"names": ["w"]}, {"way": "map"}, {}):
        loaded = veturboio.load(odd, **options)["w"]
        assert torch.equal(loaded, W)
        assert loaded.data_ptr() % 4 == 0


def test_load_model(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 6)
    value = {"weight": W, "bias": torch.arange(6.0)}
    torch.save(collections.Counter(value), tmp_path / "model.pt")  # type: ignore[arg-type]
    for where in (None, "cpu", {"": "cpu"}, {"cuda:0": "cpu"}, lambda storage, location: storage):
        torch.nn.init.zeros_(model.weight)
        assert veturboio.load_model(model, tmp_path / "model.pt", map_location=where) == ([], [])
        assert torch.equal(model.weight, W)


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": W, "c": C.conj()}, tmp_path / "model.pt")
    assert main(["-i", str(tmp_path / "model.pt"), "--validate-result"]) == 0
    loaded = veturboio.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded["w"], W) and torch.equal(loaded["c"], C.conj())


DISTRIBUTED = """
import os, sys, warnings, torch, veturboio
import torch.distributed as dist, torch.distributed.tensor as dt
warnings.simplefilter("ignore")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.init_device_mesh("cpu", (1,))
whole = torch.arange(6.0).view(3, 2)
torch.save({"w": whole, "d": dt.distribute_tensor(whole, mesh, [dt.Shard(0)])}, sys.argv[1])
for options in ({}, {"names": ["d", "w"]}, {"dtype": torch.half}, {"map_location": {"": "cpu"}},
                {"map_location": {"cuda:0": "cpu"}}, {"way": "map"}, {"mmap": True}):
    loaded = veturboio.load(sys.argv[1], **options)
    assert isinstance(loaded["d"], dt.DTensor), options
    assert torch.equal(loaded["d"].to_local().float(), whole), options
    assert loaded["d"].dtype == loaded["w"].dtype == options.get("dtype", torch.float32)
target = {"w": torch.zeros(3, 2), "d": torch.zeros(3, 2)}
try:
    veturboio.load(sys.argv[1], state_dict=target)
except veturboio.ArgumentError as error:
    assert "DTensor" in str(error) and not target["w"].any()
else:
    raise SystemExit("was filled")
dist.destroy_process_group()
"""


def test_tensors_that_wrap_others(tmp_path: Path, run_anew: Run) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    run_anew(DISTRIBUTED, tmp_path / "model.pt")


def test_explain(plain: Path) -> None:
    told = veturboio.explain(plain)
    assert told.startswith(f"{plain}: torch.load(weights_only=True), because ")
    assert "_rebuild_qtensor" in told


def test_shared_memory(plain: Path) -> None:
    shmem = veturboio.load_to_shmem(plain)
    try:
        assert bytes(shmem.buf[: plain.stat().st_size]) == plain.read_bytes()
        loaded = veturboio.load(f"/dev/shm/{shmem.name}")
        assert torch.equal(loaded["w"], W) and loaded["c"]["a"] == 2
    finally:
        shmem.close()
        shmem.unlink()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if reason := cloudserver.unavailable():
        pytest.skip(reason)
    with cloudserver.serving(tmp_path_factory.mktemp("served")) as store:
        yield store


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_addresses(tmp_path: Path, server: Store, form: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(VALUE, path, _use_new_zipfile_serialization=form == "zip")
    address = f"s3://bucket/{form}.pt"
    server.request("PUT", f"{form}.pt", path.read_bytes())
    files = open_files()
    for options in (
        {},
        {"map_location": {"": "cpu"}},
        {"map_location": lambda storage, location: storage},
        {"dtype": torch.float64},
        {"names": ["w"]},
        {"cache_dir": tmp_path / "cache"},
    ):
        loaded = veturboio.load(address, storage_options=server.options, **options)
        assert torch.equal(loaded["w"].float(), W)
        if "names" not in options:
            assert loaded["c"]["a"] == 2
    assert "torch.load" in veturboio.explain(address, storage_options=server.options)
    torch.save({"a": argparse.Namespace()}, path)
    server.request("PUT", "refused.pt", path.read_bytes())
    with pytest.raises(
        veturboio.FormatError, match=r"read s3://bucket/refused\.pt: .*safe_globals"
    ):
        veturboio.load("s3://bucket/refused.pt", storage_options=server.options)
    assert {file for file in open_files() if "memfd" in str(file)} == set()
    del files
