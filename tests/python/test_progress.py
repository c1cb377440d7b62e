"""``progress``: what is told of bytes that move, and drawn."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import slowfs
import torch
from circumstances import every_way, nothing_left
from probe import assert_same

import veturboio
from veturboio.progress import Bar

STATE = {
    "large": torch.arange(2_500_000),
    "odd": torch.randn(1237),
    "turned": torch.arange(600_000).view(600, 1000).t(),
}
SIZE = sum(tensor.nbytes for tensor in STATE.values())

Told = list[tuple[int, int]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model")
    return tmp_path / "model"


def targets() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in STATE.items()}


def telling(told: Told) -> Callable[[int, int], None]:
    return lambda done, total: told.append((done, total))


def assert_told_to_the_end(told: Told, total: int) -> None:
    assert told[-1] == (total, total)
    assert told == sorted(told)
    assert all(of in (0, total) for _, of in told)
    assert all(done <= of for done, of in told)


@every_way
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("save", [veturboio.save_file, torch.save], ids=["safetensors", "zip"])
def test_a_load_is_told_of_to_its_end(
    tmp_path: Path, save: Callable[..., object], way: str, threads: int
) -> None:
    save(STATE, tmp_path / "model")
    told: Told = []
    options: dict[str, Any] = {"way": way, "num_thread": threads, "progress": telling(told)}
    loaded = veturboio.load(tmp_path / "model", **options)
    assert_same(loaded, STATE)
    total = told[-1][1]
    assert SIZE <= total < SIZE + 5000  # what lies between the tensors counts too
    assert_told_to_the_end(told, total)
    told.clear()
    veturboio.load(tmp_path / "model", state_dict=targets(), **options)
    assert_told_to_the_end(told, told[-1][1])
    assert told[-1][1] >= STATE["large"].nbytes
    told.clear()
    veturboio.load(tmp_path / "model", slices={"large": slice(9)}, names=["large"], **options)
    assert_told_to_the_end(told, 72)


@every_way
def test_the_operator_counts(model: Path, way: str) -> None:
    for threads in (1, 4):
        counters = torch.tensor([5, 7])
        torch.ops.veturboio.load(str(model), way=way, num_thread=threads, progress=counters)
        done, total = counters.tolist()
        assert done == total
        assert SIZE <= total < SIZE + 5000


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("wait", [True, False])
def test_a_save_is_told_of_to_its_end(tmp_path: Path, durable: bool, wait: bool) -> None:
    told: Told = []
    path = tmp_path / "model"
    save = veturboio.save_file(STATE, path, durable=durable, wait=wait, progress=telling(told))
    if save is not None:
        save.result()
    assert_told_to_the_end(told, path.stat().st_size)
    counters = torch.zeros(2, dtype=torch.int64)
    for threads in (1, 4):
        torch.ops.veturboio.save(STATE, str(path), num_thread=threads, progress=counters)
        assert counters.tolist() == [path.stat().st_size] * 2


def test_what_is_empty_is_done_at_once(tmp_path: Path) -> None:
    told: Told = []
    veturboio.save_file({}, tmp_path / "model")
    veturboio.load(tmp_path / "model", progress=telling(told))
    veturboio.load(tmp_path / "model", map_location="meta", progress=telling(told))
    assert told == [(0, 0)] * 2


@pytest.mark.skipif(slowfs.unavailable() is not None, reason=str(slowfs.unavailable()))
@pytest.mark.parametrize("way", ["map", "read", "direct", "uring"])
def test_it_is_told_while_bytes_move_and_on_another_thread(tmp_path: Path, way: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "mount").mkdir()
    veturboio.save_file({"a": torch.zeros(2**25, dtype=torch.uint8)}, tmp_path / "source" / "model")
    told: Told = []
    threads = set()

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.current_thread())

    # The kernel asks for less at a time on the ways through the page cache.
    delay_ms = 10 if way in ("map", "read") else 150
    with (
        slowfs.mounted(tmp_path / "source", tmp_path / "mount", delay_ms=delay_ms) as mount,
        nothing_left(mount.path),
    ):
        veturboio.load(mount.path / "model", way=way, num_thread=1, progress=tell)
    assert_told_to_the_end(told, 2**25)
    assert any(0 < done < total for done, total in told)
    assert threading.main_thread() not in threads


class Broken(Exception):  # noqa: N818 - as a user may call it
    pass


@pytest.mark.parametrize("raised", [Broken, KeyboardInterrupt])
def test_what_the_callback_raises_comes_out(
    model: Path, tmp_path: Path, raised: type[BaseException]
) -> None:
    def tell(done: int, total: int) -> None:
        raise raised("from the callback")

    given = targets()
    acts: list[Callable[[], Any]] = [
        lambda: veturboio.load(model, progress=tell),
        lambda: veturboio.load(model, state_dict=given, progress=tell),
        lambda: veturboio.save_file(STATE, tmp_path / "new", progress=tell),
    ]
    for act in acts:
        with pytest.raises(raised, match="from the callback"):
            act()
    assert_same(given, STATE)
    assert_same(veturboio.load(tmp_path / "new"), STATE)
    save = veturboio.save_file(STATE, tmp_path / "later", wait=False, progress=tell)
    assert save is not None
    assert isinstance(save.exception(), raised)


def test_what_was_loaded_goes_though_the_callback_raises(model: Path) -> None:
    """At once, and not with the next garbage collection: it may be all the memory there is."""

    def tell(done: int, total: int) -> None:
        raise Broken

    with nothing_left(model), suppress(Broken):
        veturboio.load(model, progress=tell)


def test_a_failure_is_told_rather_than_what_the_callback_raises(tmp_path: Path) -> None:
    def tell(done: int, total: int) -> None:
        raise Broken

    with pytest.raises(FileNotFoundError):
        veturboio.load(tmp_path / "nothing", progress=tell)
    with pytest.raises(FileNotFoundError):
        veturboio.save_file(STATE, tmp_path / "nothing" / "model", progress=tell)


def test_it_is_no_matter_where_tensors_are_made_by_default(model: Path) -> None:
    told: Told = []
    with torch.device("meta"):
        loaded = veturboio.load(model, progress=telling(told))
    assert_same(loaded, STATE)
    assert told


@pytest.mark.parametrize("nobody", [None, False])
def test_nobody_is_told_who_does_not_ask(
    model: Path, capfd: pytest.CaptureFixture[str], nobody: bool | None
) -> None:
    veturboio.load(model, progress=nobody)
    veturboio.save_file(STATE, model, progress=nobody)
    assert capfd.readouterr() == ("", "")


def test_without_tqdm_a_bar_is_drawn(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    acts: list[Callable[[], object]] = [
        lambda: veturboio.load(model, progress=True),
        lambda: veturboio.save_file(STATE, model, progress=True),
    ]
    for act in acts:
        act()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        last = err.rstrip("\n").split("\r")[-1]
        assert re.fullmatch(r"\[#{30}\] 100%, 0\.02 of 0\.02 GB, \d+\.\d\d GB/s", last), last


def test_the_bar_ends_where_the_work_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(FileNotFoundError):
        veturboio.load(tmp_path / "nothing", progress=True)
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.parametrize(
    ("moved", "total", "line"),
    [
        (0, 0, f"[{'-' * 30}]   0%, 0.00 of 0.00 GB, 0.00 GB/s"),
        (10**9, 4 * 10**9, f"[{'#' * 7}{'-' * 23}]  25%, 1.00 of 4.00 GB, 0.50 GB/s"),
        (10**9, 10**9, f"[{'#' * 30}] 100%, 1.00 of 1.00 GB, 0.50 GB/s"),
    ],
)
def test_what_the_bar_says(moved: int, total: int, line: str) -> None:
    assert Bar(sys.stderr).line(moved, total, 2.0) == line


class FakeBar:
    """What tqdm has that is used."""

    made: list[FakeBar] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.total, self.is_open = options, 0, None, True
        self.steps: list[int] = []
        self.made.append(self)

    def update(self, step: int) -> None:
        assert self.is_open
        assert step >= 0
        self.n += step
        self.steps.append(step)

    def close(self) -> None:
        self.is_open = False


def test_with_tqdm_its_bar_is_drawn(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ModuleType("tqdm.auto")
    monkeypatch.setattr(auto, "tqdm", FakeBar, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(FakeBar, "made", [])
    veturboio.load(model, progress=True)
    veturboio.save_file(STATE, model, progress=True)
    with pytest.raises(FileNotFoundError):
        veturboio.load(model.parent / "nothing", progress=True)
    load, save, failed = FakeBar.made
    assert SIZE <= load.n == load.total < SIZE + 5000
    assert save.n == save.total == model.stat().st_size
    assert failed.n == failed.total == 0
    assert not (load.is_open or save.is_open or failed.is_open)
    assert load.options["unit"] == "B"
    assert load.options["unit_scale"] is True
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "counters",
    [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)[::2]],
    ids=["floats", "three", "apart"],
)
def test_counters_that_are_none(model: Path, counters: torch.Tensor) -> None:
    for act in (
        lambda: torch.ops.veturboio.load(str(model), progress=counters),
        lambda: torch.ops.veturboio.save(STATE, str(model), progress=counters),
    ):
        with pytest.raises(ValueError, match=r"int64\[2\]"):
            act()


def test_memory_that_a_tensor_no_longer_has(model: Path) -> None:
    """A storage may have been resized under its tensors."""
    counters = torch.zeros(2, dtype=torch.int64)
    counters.untyped_storage().resize_(8)
    load, save = torch.ops.veturboio.load, torch.ops.veturboio.save
    with pytest.raises(ValueError, match=r"^progress reaches past its storage"):
        load(str(model), progress=counters)
    with pytest.raises(ValueError, match=r"^progress reaches past its storage"):
        save(STATE, f"{model}.again", progress=counters)
    content = torch.zeros(model.stat().st_size, dtype=torch.uint8)
    content.untyped_storage().resize_(100)
    with pytest.raises(ValueError, match=r": bytes reaches past its storage$"):
        torch.ops.veturboio._load_bytes(str(model), content)
