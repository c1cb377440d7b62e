"""What goes wrong is said once, in the same words, by a fitting exception."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import json
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor

import veturboio

STATE = {"a": torch.ones(2)}


@torch.jit.script
def scripted_load(path: str) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(path)


@torch.jit.script
def scripted_save(state: dict[str, torch.Tensor], path: str) -> None:
    torch.ops.veturboio.save(state, path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    veturboio.save_file(STATE, path)
    return path


OS_ERRORS = {
    "missing": ("missing", FileNotFoundError, errno.ENOENT, "No such file or directory"),
    "missing directory": ("no/file", FileNotFoundError, errno.ENOENT, "No such file or directory"),
    "directory": ("directory", IsADirectoryError, errno.EISDIR, "Is a directory"),
    "file as directory": (
        "model.safetensors/x",
        NotADirectoryError,
        errno.ENOTDIR,
        "Not a directory",
    ),
    "endless name": ("n" * 300, OSError, errno.ENAMETOOLONG, "File name too long"),
    "empty name": ("", FileNotFoundError, errno.ENOENT, "No such file or directory"),
}


@pytest.fixture(params=OS_ERRORS.values(), ids=OS_ERRORS)
def os_error(
    request: pytest.FixtureRequest, model: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, type, int, str]:
    monkeypatch.chdir(model.parent)
    Path("directory").mkdir()
    return request.param


def test_os_errors_of_a_load(os_error: tuple[str, type, int, str]) -> None:
    path, kind, number, words = os_error
    for load in (
        lambda: veturboio.load(path),
        lambda: veturboio.load(path, map_location="meta"),
        lambda: veturboio.load(path, enable_fast_mode=False),
        lambda: veturboio.metadata(path),
    ):
        with pytest.raises(kind) as failure:
            load()
        assert failure.value.errno == number
        assert failure.value.filename == path
        assert f"open {path}: {words}" in str(failure.value)
        assert not isinstance(failure.value, veturboio.FormatError)
    text = f"open {path}: {words}"
    with pytest.raises(RuntimeError) as failure:
        torch.ops.veturboio.load(path)
    assert text in str(failure.value)
    with pytest.raises((torch.jit.Error, RuntimeError)) as failure:
        scripted_load(path)
    assert text in str(failure.value)


def test_os_errors_of_a_save(os_error: tuple[str, type, int, str]) -> None:
    path, kind, number, words = os_error
    if path == "missing":
        pytest.skip("a save makes a missing file")
    with pytest.raises(kind) as failure:
        veturboio.save_file(STATE, path)
    assert failure.value.errno == number
    assert failure.value.filename == path
    text = f"{path}: {words}"
    assert text in str(failure.value)
    with pytest.raises(RuntimeError) as failure:
        torch.ops.veturboio.save(STATE, path)
    assert text in str(failure.value)
    with pytest.raises((torch.jit.Error, RuntimeError)) as failure:
        scripted_save(STATE, path)
    assert text in str(failure.value)


def test_the_exception_alone_is_raised(tmp_path: Path) -> None:
    """No C++ backtrace in the text, and no RuntimeError shown as the cause of the OSError."""
    with pytest.raises(FileNotFoundError) as failure:
        veturboio.load(tmp_path / "missing")
    assert "\n" not in str(failure.value)
    assert "Exception raised from" not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


def test_filename_is_what_the_caller_gave(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", str(tmp_path / "missing")):
        with pytest.raises(FileNotFoundError) as failure:
            veturboio.load(path)
        assert str(failure.value.filename) == str(path)


NAMES = [
    "",
    "a",
    'a": reason',
    "a: b",
    "\n",
    "\x00\x1b[31m",
    "é\u0301\U0001f600",
    "%s{}",
    "n" * 5000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_format_errors_carry_the_very_name(tmp_path: Path, name: str) -> None:
    """Names are the attacker's: they must neither confuse nor garble what is said."""
    path = tmp_path / "né %s.safetensors"
    path.write_bytes(file({name: tensor("U8", [1], 0, 2)}, b"xy"))
    with pytest.raises(veturboio.FormatError) as failure:
        veturboio.load(path)
    error = failure.value
    assert error.tensor == name
    assert error.reason == "bytes 0..2 do not hold shape [1] of U8, which takes 1"
    assert str(error).startswith(f'read {path}: tensor "')
    assert str(error).endswith(f": {error.reason}")
    assert not any(ord(letter) < 32 for letter in str(error))
    with pytest.raises(ValueError) as eager:
        torch.ops.veturboio.load(str(path))
    assert str(error) in str(eager.value)


def test_a_name_of_megabytes_does_not_flood_the_message(tmp_path: Path) -> None:
    name = "n" * 5_000_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(json.dumps({name: tensor("U8", [1], 0, 2)}), b"xy"))
    with pytest.raises(veturboio.FormatError) as failure:
        veturboio.load(path)
    assert failure.value.tensor == name
    assert len(str(failure.value)) < 10_000


def test_format_error_survives_pickle_and_copy(tmp_path: Path) -> None:
    """Worker processes send their exceptions to the parent."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({"a": tensor("U8", [1], 0, 2)}, b"xy"))
    with pytest.raises(veturboio.FormatError) as failure:
        veturboio.load(path)
    error = failure.value
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is veturboio.FormatError
        assert str(twin) == str(error)
        assert (str(twin.file), twin.tensor, twin.reason) == (str(path), "a", error.reason)


class Canary:
    """Something large that happens to live in the frame that calls ``load``."""


def test_a_failure_keeps_nothing_alive(tmp_path: Path) -> None:
    """An exception that is part of a circle keeps its callers' variables until a collection."""
    short = tmp_path / "short"
    short.write_bytes(b"short")

    def fail(act: Callable[[], object], kind: type[Exception]) -> weakref.ref[Canary]:
        canary = Canary()
        with contextlib.suppress(kind):
            act()
            raise AssertionError("it was not refused")
        return weakref.ref(canary)

    failures = [
        (lambda: veturboio.load(tmp_path / "missing"), FileNotFoundError),
        (lambda: veturboio.load(short), veturboio.FormatError),
        (lambda: veturboio.metadata(short), veturboio.FormatError),
        (lambda: veturboio.load(short, num_thread=0), ValueError),
        (lambda: veturboio.save_file(STATE, tmp_path), IsADirectoryError),
        (lambda: veturboio.save_file({"a": 3}, short), TypeError),
    ]
    gc.disable()
    try:
        alive = [fail(act, kind)() is not None for act, kind in failures]
    finally:
        gc.enable()
    assert alive == [False] * len(failures)


def test_an_old_failure_is_not_reported_again(model: Path, tmp_path: Path) -> None:
    """A failure that nobody asked about, then one that has nothing to do with it."""
    stale = str(tmp_path / "stale-and-missing")
    for act in (
        lambda: veturboio.save_file({"a": 3}, tmp_path / "new"),
        lambda: veturboio.save_file({1: torch.ones(1)}, tmp_path / "new"),
        lambda: veturboio.load(model, num_thread=2**70),
        lambda: veturboio.load(model, num_thread="many"),
        lambda: veturboio.load(model, map_location="no-such-device"),
        lambda: veturboio.load(model, map_location="cuda:99"),
        lambda: veturboio.save_file(STATE, tmp_path / "new", metadata={"a": 1}),
        lambda: veturboio.load(None),
    ):
        for fail in (torch.ops.veturboio.load, scripted_load):
            with pytest.raises(RuntimeError):
                fail(stale)
        with pytest.raises(Exception) as failure:
            act()
        assert stale not in str(failure.value)
        assert not isinstance(failure.value, OSError)


def test_failures_of_two_threads_are_not_mixed_up(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"short")
    wrong = []

    def fail(path: Path, kind: type[Exception]) -> None:
        for _ in range(300):
            try:
                veturboio.load(path)
            except kind as error:
                if str(path) not in str(error):
                    wrong.append(error)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=fail, args=[bad, veturboio.FormatError]) for _ in range(3)]
    threads += [
        threading.Thread(target=fail, args=[tmp_path / f"missing{i}", FileNotFoundError])
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


PANICS = ["plain", "", "né \U0001f600", "{} {0} %s %n", "two\nlines", "x" * 100_000]


@pytest.mark.parametrize("text", PANICS, ids=range(len(PANICS)))
def test_a_panic_is_an_error(model: Path, text: str) -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.ops.veturboio._provoke_panic(text)
    assert text in str(failure.value)
    assert torch.equal(veturboio.load(model)["a"], STATE["a"])


def test_panics_of_many_threads_and_of_torchscript(model: Path) -> None:
    @torch.jit.script
    def scripted(text: str) -> None:
        torch.ops.veturboio._provoke_panic(text)

    caught = []

    def panic(number: int) -> None:
        try:
            torch.ops.veturboio._provoke_panic(f"panic {number}")
        except RuntimeError as error:
            caught.append(f"panic {number}" in str(error))

    threads = [threading.Thread(target=panic, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caught == [True] * 20
    with pytest.raises((torch.jit.Error, RuntimeError), match="in a script"):
        scripted("in a script")
    assert torch.equal(veturboio.load(model)["a"], STATE["a"])


def test_encryption_is_for_later_and_says_so(model: Path) -> None:
    target = model.with_name("other.safetensors")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load(model, use_cipher=True)
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.save_file(STATE, target, use_cipher=True)
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.save_model(torch.nn.Linear(2, 2), target, use_cipher=True)
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize(
    "helper", [object(), 3, {}, torch.ones(1)], ids=lambda it: type(it).__name__
)
def test_helpers_of_the_wrong_kind(model: Path, helper: object) -> None:
    for act in (
        lambda: veturboio.load(model, helper=helper),
        lambda: veturboio.load(model, helper=helper, state_dict={"a": STATE["a"].clone()}),
        lambda: veturboio.load_to_shmem(model, helper=helper),
        lambda: veturboio.save_file(STATE, model, helper=helper),
    ):
        with pytest.raises(TypeError, match="'helper'"):
            act()


def test_encryption_asked_for_by_the_environment(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever turns encryption on must not get plain files."""
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load(model)
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.save_file(STATE, tmp_path / "new")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.save_model(torch.nn.Linear(2, 2), tmp_path / "new")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        torch.ops.veturboio.save(STATE, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert torch.equal(veturboio.load(model, use_cipher=False)["a"], STATE["a"])
    for off in ("0", ""):
        monkeypatch.setenv("VETURBOIO_USE_CIPHER", off)
        assert torch.equal(veturboio.load(model)["a"], STATE["a"])


@pytest.mark.parametrize("threads", [0, -1, -(2**63)])
def test_number_of_threads_below_one(model: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="num_thread"):
        veturboio.load(model, num_thread=threads)
    for act in (
        lambda: torch.ops.veturboio.load(str(model), num_thread=threads),
        lambda: torch.ops.veturboio.save(STATE, str(model), num_thread=threads),
    ):
        with pytest.raises(ValueError, match="num_thread"):
            act()


@pytest.mark.parametrize("path", [None, 3, 3.5, ["a"], object()], ids=repr)
def test_paths_of_the_wrong_kind(path: object) -> None:
    for act in (
        veturboio.load,
        veturboio.metadata,
        lambda path: veturboio.save_file(STATE, path),
        lambda path: veturboio.save_model(torch.nn.Linear(1, 1), path),
    ):
        with pytest.raises(TypeError):
            act(path)


def test_progress_of_the_wrong_kind(tmp_path: Path) -> None:
    for progress in (
        torch.zeros(2),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int64, device="meta"),
        torch.zeros(4, dtype=torch.int64)[::2],
        torch.zeros(1, dtype=torch.int64).expand(2),
        torch.zeros(2, dtype=torch.int64).to_sparse(),
    ):
        with pytest.raises((ValueError, RuntimeError), match="progress"):
            torch.ops.veturboio.save(STATE, str(tmp_path / "new"), progress=progress)
    assert list(tmp_path.iterdir()) == []
