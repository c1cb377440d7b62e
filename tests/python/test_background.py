"""``save_file(wait=False)``: the file has what the tensors were, and nobody loses it silently."""

from __future__ import annotations

import errno
import gc
import re
import weakref
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from circumstances import nothing_left
from conftest import Run
from forked import Child
from probe import DTYPES, assert_same, bits, random_tensor

import veturboio
from veturboio import background, io
from veturboio.background import Save

State = dict[str, torch.Tensor]


def begun(state: Any, path: Path, **options: Any) -> Save:
    save = veturboio.save_file(state, path, wait=False, **options)
    assert isinstance(save, Save)
    return save


def begin_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Save]:
    """Keeps saves from starting before they are told to: whatever comes between would be seen."""
    waiting: list[Callable[[], None]] = []

    def hold(save: Callable[[], None]) -> Future[None]:
        waiting.append(save)
        return Future()

    monkeypatch.setattr(io, "start", hold)
    return lambda: background.start(waiting.pop())


def test_the_file_has_what_the_tensors_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = begin_later(monkeypatch)
    state = {
        "a": torch.rand(1000, 300),
        "turned": torch.rand(50, 30).t(),
        "part": torch.arange(100)[20:70:3],
        "parameter": torch.nn.Parameter(torch.rand(7)),
        "expanded": torch.ones(1).expand(1000),
        "nothing": torch.empty(0, 3),
    }
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    veturboio.save_file(state, tmp_path / "model", wait=False)
    with torch.no_grad():
        for tensor in state.values():
            tensor.fill_(7)
    state["a"].resize_(3)
    state["more"] = state.pop("part")
    begin().result()
    assert_same(veturboio.load(tmp_path / "model"), before)


def test_the_file_has_the_metadata_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = begin_later(monkeypatch)
    metadata = {"step": "1"}
    veturboio.save_file({}, tmp_path / "model", metadata=metadata, wait=False)
    metadata["step"] = "2"
    begin().result()
    assert veturboio.metadata(tmp_path / "model") == {"step": "1", "format": "pt"}


def test_the_file_is_where_it_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begin_later(monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    veturboio.save_file({"a": torch.ones(3)}, "model", wait=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    begin().result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "model"]


def test_tensors_may_be_changed_at_once(tmp_path: Path) -> None:
    """As it is used: a loop of steps, each saved while the next is taken."""
    weight = torch.zeros(2**22)
    saves = []
    for step in range(4):
        weight.fill_(step)
        saves.append(begun({"a": weight, "step": torch.tensor(step)}, tmp_path / f"{step}"))
    for step, save in enumerate(saves):
        assert save.result() is None
        loaded = veturboio.load(tmp_path / f"{step}")
        assert loaded["a"].min() == loaded["a"].max() == loaded["step"] == step


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_as_it_is_saved_otherwise(tmp_path: Path, name: str) -> None:
    source = random_tensor(DTYPES[name], 4, 6)
    state = {"a": source, "b": source[:0].clone()}
    veturboio.save_file(state, tmp_path / "model")
    begun(state, tmp_path / "again").result()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


COMPLEX = torch.randn(4, 3, dtype=torch.complex64)

VIEWS: dict[str, torch.Tensor] = {
    "conjugated": COMPLEX.conj(),
    "conjugated and turned": COMPLEX.conj().t(),
    "negated": COMPLEX.conj().imag,
    "negated and cut": COMPLEX.conj().imag[1:3, ::2],
    "real part": COMPLEX.real,
    "turned": torch.rand(5, 4).t(),
    "every other": torch.arange(20)[::2],
    "expanded": torch.rand(3, 1).expand(3, 5),
    "overlapping itself": torch.arange(10).as_strided((4, 4), (1, 2)),
    "scalar": torch.tensor(3.5),
    "of a graph": torch.rand(3, requires_grad=True) * 2,
    "inferred": torch.inference_mode()(torch.ones)(3),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_every_kind(tmp_path: Path, name: str) -> None:
    source = VIEWS[name]
    begun({"a": source}, tmp_path / "model").result()
    loaded = veturboio.load(tmp_path / "model")["a"]
    assert loaded.shape == source.shape
    assert bits(loaded) == bits(source)


BASE = torch.arange(24.0)

ARRAY = torch.arange(10.0).numpy()

SHARED: dict[str, State] = {
    "twice": {"a": BASE, "b": BASE},
    "reshaped": {"a": BASE, "b": BASE.view(4, 6)},
    "turned": {"a": BASE.view(4, 6), "b": BASE.view(4, 6).t()},
    "overlapping": {"a": BASE[:10], "b": BASE[5:]},
    "parameter": {"a": torch.nn.Parameter(BASE), "b": BASE},
    "conjugated": {"a": COMPLEX, "b": COMPLEX.conj()},
    "one array": {"a": torch.from_numpy(ARRAY), "b": torch.from_numpy(ARRAY)},
    "part of an array": {"a": torch.from_numpy(ARRAY), "b": torch.from_numpy(ARRAY[:5])},
    "one part of an array": {"a": torch.from_numpy(ARRAY)[:5], "b": torch.from_numpy(ARRAY[:5])},
    "end of an array": {"a": torch.from_numpy(ARRAY), "b": torch.from_numpy(ARRAY[2:])},
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_tensors_are_refused_in_the_same_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(veturboio.ArgumentError) as refusal:
        veturboio.save_file(SHARED[name], tmp_path / "model")
    error = begun(SHARED[name], tmp_path / "model").exception()
    assert type(error) is veturboio.ArgumentError
    assert str(error) == str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SHARED)
def test_shared_tensors_are_saved_as_they_are_otherwise(tmp_path: Path, name: str) -> None:
    for clone in (False, True):
        force = {"force_save_shared_tensor": True, "force_clone_shared_tensor": clone}
        veturboio.save_file(SHARED[name], tmp_path / "model", **force)
        begun(SHARED[name], tmp_path / "again", **force).result()
        assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


def test_halves_of_one_storage_do_not_share(tmp_path: Path) -> None:
    state = {"a": BASE[:12], "b": BASE[12:]}
    begun(state, tmp_path / "model").result()
    assert_same(veturboio.load(tmp_path / "model"), state)


UNFIT: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
    "complex128": lambda: torch.ones(3, dtype=torch.complex128),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_saved_is_refused_in_the_same_words(tmp_path: Path, name: str) -> None:
    state = {"fine": torch.ones(2), "unfit": UNFIT[name]()}
    with pytest.raises(veturboio.ArgumentError, match="unfit") as refusal:
        veturboio.save_file(state, tmp_path / "model")
    error = begun(state, tmp_path / "model").exception()
    assert type(error) is veturboio.ArgumentError
    assert str(error) == str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_state_dict_is_refused_at_once(tmp_path: Path) -> None:
    for state in ([], {"a": 1}, {1: torch.ones(1)}):
        with pytest.raises(TypeError):
            begun(state, tmp_path / "model")
    with pytest.raises(TypeError):
        begun({}, tmp_path / "model", metadata={"a": 1})


def test_errors_come_through_the_future(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for path, number in [
        (tmp_path / "nothing" / "model", errno.ENOENT),
        (tmp_path / "full", errno.EISDIR),
    ]:
        save = begun({"a": torch.ones(3)}, path)
        error = save.exception(60)
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (number, str(path))
        with pytest.raises(type(error)) as raised:
            save.result()
        assert raised.value is error
        assert save.done()
        assert not save.running()


def test_it_is_a_future_as_others_are(tmp_path: Path) -> None:
    called: list[Any] = []
    with nothing_left(tmp_path):
        saves = [begun({"a": torch.rand(2**21)}, tmp_path / f"{i}") for i in range(4)]
        saves[0].add_done_callback(called.append)
        assert not any(save.cancel() for save in saves)
        done, not_done = wait(saves, timeout=60, return_when=FIRST_EXCEPTION)
    assert (done, not_done) == (set(saves), set())
    assert [save.exception() for save in saves] == [None] * 4
    assert called == saves[:1]
    assert len(list(tmp_path.iterdir())) == 4


def test_one_can_wait_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begin_later(monkeypatch)
    veturboio.save_file({"a": torch.ones(1).expand(2**26)}, tmp_path / "model", wait=False)
    save = begin()
    with pytest.raises(TimeoutError):
        save.result(0)
    save.result(60)
    assert (tmp_path / "model").stat().st_size > 2**28


def test_many_to_one_file_leave_one_of_them(tmp_path: Path) -> None:
    saves = [begun({"a": torch.full((2**20,), i)}, tmp_path / "model") for i in range(5)]
    for save in saves:
        save.result()
    loaded = veturboio.load(tmp_path / "model")["a"]
    assert loaded.min() == loaded.max()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_helper_serves_several_at_once(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper()
    state = {"turned": torch.rand(1000, 3000).t(), "small": torch.rand(3)}
    saves = [begun(state, tmp_path / f"{i}", helper=helper) for i in range(4)]
    for i, save in enumerate(saves):
        save.result()
        assert_same(veturboio.load(tmp_path / f"{i}"), state)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Neither the tensors nor their copies, though the future is."""
    copies: list[weakref.ref[torch.Tensor]] = []

    def seen(state: State) -> State:
        copied = background.snapshot(state)
        copies.extend(weakref.ref(tensor) for tensor in copied.values())
        return copied

    monkeypatch.setattr(io, "snapshot", seen)
    state = {"a": torch.rand(1000), "b": torch.rand(1000).conj()}
    sources = [weakref.ref(tensor) for tensor in state.values()]
    path = tmp_path / "nothing" / "model" if fails else tmp_path / "model"
    save = begun(state, path)
    assert isinstance(save.exception(), FileNotFoundError if fails else type(None))
    del state
    gc.collect()
    assert sum(source() is not None for source in sources) == 0
    assert sum(copy() is not None for copy in copies) == 0
    assert save.done()


def test_progress_is_told_of_a_save_in_the_background(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    save = begun(
        {"a": torch.ones(2**20)}, tmp_path / "model", progress=lambda *now: told.append(now)
    )
    save.result()
    size = (tmp_path / "model").stat().st_size
    assert told[-1] == (size, size)


def test_a_copy_takes_as_much_memory_as_the_tensors_have() -> None:
    """Whatever they are parts of, and however often they are there."""
    large = torch.zeros(2**20)
    state = {"row": large[5:10], "again": large[5:10], "expanded": torch.ones(1).expand(2**20)}
    copied = background.snapshot(state)
    storages = {tensor.data_ptr(): tensor.untyped_storage() for tensor in copied.values()}
    assert sum(storage.nbytes() for storage in storages.values()) < 1000


SAVE = """
import sys, torch, veturboio
path, size = sys.argv[1], int(sys.argv[2])
save = veturboio.save_file({"a": torch.ones(1).expand(size)}, path, wait=False)
"""


def test_the_interpreter_ends_after_the_file_is_whole(tmp_path: Path, run_anew: Run) -> None:
    run_anew(SAVE, tmp_path / "model", 2**26)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert veturboio.load(tmp_path / "model", map_location="meta")["a"].shape == (2**26,)


@pytest.mark.parametrize("end", ["sys.exit(3)", "del save; raise SystemExit(3)", "exit(3)"])
def test_it_may_end_in_any_way(tmp_path: Path, end: str) -> None:
    done = Child(f"{SAVE}{end}", tmp_path / "model", 2**26, cwd=tmp_path).wait()
    assert (done.returncode, done.stderr) == (3, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert veturboio.load(tmp_path / "model", map_location="meta")["a"].shape == (2**26,)


FAIL = """
import os, torch, veturboio
os.dup2(1, 2)
def fail(name):
    return veturboio.save_file({"a": torch.ones(3)}, f"nothing/{name}", wait=False)
kept = fail("kept")
fail("forgotten")
looked_at = fail("looked at")
while not looked_at.done():
    pass
looked_at.add_done_callback(lambda save: None)
asked = fail("result")
try:
    asked.result()
except FileNotFoundError:
    pass
assert fail("exception").exception().errno == 2
fail("called back").add_done_callback(lambda save: save.exception())
veturboio.save_file({"a": torch.ones(3)}, "fine", wait=False)
"""


def test_a_failure_that_nobody_asked_about_is_told_in_the_end(run_anew: Run) -> None:
    told = re.findall(
        r"^save in the background failed: \[Errno 2\] .*nothing/([\w ]+): No such file.*$",
        said := run_anew(FAIL),
        re.MULTILINE,
    )
    assert sorted(told) == ["forgotten", "kept", "looked at"]
    assert len(said.splitlines()) == len(told), said


@pytest.mark.parametrize("name", ["model", "missing/model"])
def test_a_save_that_begins_as_the_interpreter_ends(
    tmp_path: Path, run_anew: Run, name: str
) -> None:
    code = f"""
import atexit, os, torch, veturboio
os.dup2(1, 2)
atexit.register(lambda: veturboio.save_file({{"a": torch.arange(3)}}, {name!r}, wait=False))
"""
    said = run_anew(code)
    if name == "model":
        assert said == ""
        assert_same(veturboio.load(tmp_path / name), {"a": torch.arange(3)})
    else:
        assert said.startswith("save in the background failed: [Errno 2]")


def test_a_relative_name_in_a_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as waited:
        veturboio.save_file({"a": torch.ones(1)}, "model")
    refused = begun({"a": torch.ones(1)}, Path("model")).exception()
    assert isinstance(refused, FileNotFoundError)
    assert (str(refused), refused.filename) == (str(waited.value), waited.value.filename)
