"""Several saves to one target: the last one that was called remains, whichever ends last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from test_background import begin_later

import veturboio
from veturboio import background, io
from veturboio.background import Save

State = dict[str, torch.Tensor]


def step(number: int) -> State:
    return {"step": torch.tensor([number])}


def step_of(path: Path | str) -> int:
    return int(veturboio.load(path)["step"])


def begun(state: State, path: Any, **options: Any) -> Save:
    save = veturboio.save_file(state, path, wait=False, **options)
    assert isinstance(save, Save)
    return save


LATER: dict[str, Callable[[State, Any], Any]] = {
    "save_file": veturboio.save_file,
    "in the background": lambda state, path: begun(state, path).result(),
    "save_pt": veturboio.save_pt,
    "operator": lambda state, path: torch.ops.veturboio.save(state, os.fspath(path)),
    "helper": lambda state, path: veturboio.save_file(
        state, path, helper=veturboio.init_io_helper()
    ),
}


def held(
    monkeypatch: pytest.MonkeyPatch, state: State, path: Any, **options: Any
) -> Callable[[], Save]:
    """Calls a save in the background, and returns what lets it begin."""
    with monkeypatch.context() as patch:
        begin = begin_later(patch)
        veturboio.save_file(state, path, wait=False, **options)
    return begin


@pytest.mark.parametrize("later", LATER)
def test_an_earlier_save_does_not_replace_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    path = tmp_path / "model"
    begin = held(monkeypatch, step(1), path)
    LATER[later](step(2), path)
    begin().result()
    assert step_of(path) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_scripted_save_is_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.jit.script
    def save(state: dict[str, torch.Tensor], file: str) -> None:
        torch.ops.veturboio.save(state, file)

    begin = held(monkeypatch, step(1), tmp_path / "model")
    save(step(2), str(tmp_path / "model"))
    begin().result()
    assert step_of(tmp_path / "model") == 2


def test_a_module_is_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    begin = held(monkeypatch, step(1), tmp_path / "model")
    veturboio.save_model(model, tmp_path / "model")
    begin().result()
    assert sorted(veturboio.load(tmp_path / "model")) == ["bias", "weight"]


def test_many_in_the_background_that_end_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    begins = [held(monkeypatch, step(number), path) for number in range(6)]
    for number, last in [(2, 2), (0, 2), (5, 5), (1, 5), (4, 5), (3, 5)]:
        begins[number]().result()
        assert step_of(path) == last


SPELLINGS = ["model", "./model", "sub/../model", "link", "chain", "sub/model", "//absolute", "file"]


@pytest.mark.parametrize("earlier", SPELLINGS)
@pytest.mark.parametrize("later", ["model", "link", "file"])
def test_a_file_is_one_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str, later: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "chain").symlink_to("sub/model")
    (tmp_path / "sub/model").symlink_to("../model")

    def spelt(name: str) -> str:
        spelling = {"//absolute": f"/{tmp_path}/model", "file": f"file://{tmp_path}/model"}
        return spelling.get(name, name)

    begin = held(monkeypatch, step(1), spelt(earlier))
    veturboio.save_file(step(2), spelt(later))
    begin().result()
    assert step_of(tmp_path / "model") == 2
    assert (tmp_path / "link").is_symlink()


def test_other_files_are_not_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    begin = held(monkeypatch, step(1), tmp_path / "model")
    veturboio.save_file(step(2), tmp_path / "sub/model")
    veturboio.save_file(step(3), tmp_path / "model2")
    begin().result()
    assert step_of(tmp_path / "model") == 1


@pytest.mark.parametrize("later", ["refused", "fails"])
def test_a_later_save_that_fails_overtakes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    path = tmp_path / "model"
    begin = held(monkeypatch, step(1), path)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        if later == "refused":
            veturboio.save_file({"step": torch.empty(3, device="meta")}, path)
        else:
            veturboio.save_pt({"step": Unpicklable()}, path)
    begin().result()
    assert step_of(path) == 1


class Unpicklable:
    def __reduce__(self) -> tuple:
        raise TypeError("not me")


def test_save_pt_is_called_before_it_pickles(tmp_path: Path) -> None:
    path = tmp_path / "model"

    class Saving(dict[str, int]):
        """A value that saves to the same file, later, while it is being saved."""

        def __reduce__(self) -> tuple[type[dict[str, int]], tuple[()]]:
            veturboio.save_file(step(2), path)
            return dict, ()

    veturboio.save_pt({"saving": Saving()}, path)
    assert step_of(path) == 2
    veturboio.save_pt(step(3), path)
    assert step_of(path) == 3


def test_an_overtaken_save_that_may_not_replace_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    begin = held(monkeypatch, step(1), path, overwrite=False)
    veturboio.save_file(step(2), path)
    with pytest.raises(FileExistsError, match="model: File exists"):
        begin().result()
    assert step_of(path) == 2


def test_an_overtaken_save_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    begin = held(monkeypatch, step(1), path)
    veturboio.save_file(step(2), path)
    before = path.stat()
    begin().result()
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_real_saves_in_the_background(tmp_path: Path) -> None:
    """The first is the slowest."""
    path = tmp_path / "model"
    for size in (2**22, 1):
        saves = [begun({"w": torch.zeros(size // (n + 1) + 1), **step(n)}, path) for n in range(4)]
        veturboio.save_file(step(9), path)
        for save in saves:
            save.result()
        assert step_of(path) == 9


def test_threads_that_save_at_once(tmp_path: Path) -> None:
    """What a thread saved and waited for is replaced by later calls alone."""
    path = tmp_path / "model"
    found: list[tuple[int, int]] = []
    turn = threading.Lock()

    def work(thread: int) -> None:
        for number in range(1, 11):
            with turn:
                # Earlier than the save of this round, and perhaps later in coming to its end.
                early = begun({"w": torch.zeros(2**18), **step(-1)}, path)
                veturboio.save_file(step(thread * 100 + number), path)
            early.result()
            with turn:
                veturboio.save_file(step(thread * 100 + number), path)
                found.append((thread * 100 + number, step_of(path)))

    threads = [threading.Thread(target=work, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(saved == read for saved, read in found)


def test_a_forked_child_has_an_order_of_its_own(tmp_path: Path, run: Run) -> None:
    """Saves that go on in the parent are neither waited for nor known."""
    code = """
import os, torch, veturboio
big = torch.zeros(2**24)
saves = [veturboio.save_file({"w": big}, "model", wait=False) for _ in range(3)]
pid = os.fork()
if pid == 0:
    first = veturboio.save_file({"step": torch.tensor([1])}, "child", wait=False)
    veturboio.save_file({"step": torch.tensor([2])}, "child")
    first.result()
    os._exit(int(veturboio.load("child")["step"]))
status = os.waitpid(pid, 0)[1]
assert os.waitstatus_to_exitcode(status) == 2, status
for save in saves:
    save.result()
"""
    run(code)


def test_a_thread_is_not_needed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that is begun while the interpreter ends, which starts no thread any more."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(background.threading.Thread, "start", refuse)
    save = begun(step(1), tmp_path / "model")
    assert save.done()
    assert step_of(tmp_path / "model") == 1
    failed = begun(step(1), tmp_path / "nothing/model")
    assert isinstance(failed.exception(), FileNotFoundError)


def test_a_thread_starts_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper of these tests holds the save back, and nothing else."""
    begin = held(monkeypatch, step(1), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert io.start is background.start
    begin().result()
    assert step_of(tmp_path / "model") == 1
