"""What handlers of signals raise and do while the core works: nothing is lost, nothing waits."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cloudserver
import pytest
import slowfs
import torch
from cloudserver import Store
from probe import assert_same

import veturboio
from veturboio import _interrupts, _ops

BIG = {f"{i}": torch.full((2**20,), i, dtype=torch.int32) for i in range(16)}

needs_slowfs = pytest.mark.skipif(
    slowfs.unavailable() is not None, reason=str(slowfs.unavailable())
)


class Raised(Exception):  # noqa: N818 - raised by a handler, and no error
    pass


def raising(number: int, _: FrameType | None) -> None:
    raise Raised(number)


@contextlib.contextmanager
def handled(handlers: dict[int, Callable[[int, FrameType | None], object]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Strike:
    """Sends this process signals as soon as bytes are said to move."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def __call__(self, done: int, total: int) -> None:
        while total and self.numbers:
            os.kill(os.getpid(), self.numbers.pop(0))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of 64 MiB on a mount that takes seconds for it."""
    source, point = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    point.mkdir()
    veturboio.save_file(BIG, source / "model")
    with slowfs.mounted(source, point, delay_ms=100, no_async_dio=True):
        yield point / "model"


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """No exception is left to come out of a later call, be it of a test of another file."""
    while _interrupts.count():
        with pytest.raises(BaseException):  # noqa: B017 - whatever it is
            _interrupts.raise_above(0)
    yield
    left = _interrupts.count()
    while _interrupts.count():
        with pytest.raises(BaseException):  # noqa: B017 - whatever it is
            _interrupts.raise_above(0)
    assert left == 0


def chain(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *chain(error.__cause__ or error.__context__)]


@torch.jit.script
def load_by_script(file: str, threads: int) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file, num_thread=threads)


def interrupt_a_script(path: Path, number: int = signal.SIGUSR1) -> None:
    """Leaves behind what a handler raised: of an exception, a script keeps only the text."""
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(RuntimeError, match="interrupted"):
        load_by_script(str(path), 1)
    timer.join()
    assert _interrupts.count() == 1


def on_another_thread(act: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(act()))
    thread.start()
    thread.join()
    return results[0]


@needs_slowfs
def test_another_thread_neither_raises_nor_clears_it(slow: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    def act() -> type:
        assert _interrupts.count() == 0
        _interrupts.raise_above(0)
        assert len(veturboio.load(slow, names=["1"])) == 1
        try:
            veturboio.load(missing)
        except BaseException as error:
            return type(error)
        return object

    with handled({signal.SIGUSR1: raising}):
        interrupt_a_script(slow)
    assert on_another_thread(act) is FileNotFoundError
    assert _interrupts.count() == 1
    with pytest.raises(FileNotFoundError):  # nor does a later call of its own
        veturboio.load(missing)
    with pytest.raises(Raised):
        _interrupts.raise_above(0)


@needs_slowfs
def test_calls_of_other_threads_take_no_control_c(slow: Path, tmp_path: Path) -> None:
    """One that calls all the time, and fails, while the main thread is interrupted."""
    over, wrong = threading.Event(), []

    def call() -> None:
        while not over.is_set():
            try:
                veturboio.load(tmp_path / "missing")
            except FileNotFoundError:
                continue
            except BaseException as error:
                wrong.append(error)

    thread = threading.Thread(target=call)
    with handled({signal.SIGINT: signal.default_int_handler}):
        thread.start()
        try:
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    veturboio.load(slow, num_thread=2, progress=Strike(signal.SIGINT))
        finally:
            over.set()
            thread.join()
    assert wrong == []


@needs_slowfs
def test_two_handlers_that_raise_at_once(slow: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both are seen, and signals go on being asked for."""
    numbers = [signal.SIGUSR1, signal.SIGUSR2]
    with handled(dict.fromkeys(numbers, raising)):
        for _ in range(2):
            seen: list[int] = []
            try:
                veturboio.load(slow, num_thread=1, progress=Strike(*numbers))
            except Raised as raised:
                errors = [error for error in chain(raised) if isinstance(error, Raised)]
                seen = sorted(error.args[0] for error in errors)
            assert seen == numbers
    assert capfd.readouterr().err == ""


@needs_slowfs
def test_a_handler_that_is_interrupted_itself(slow: Path) -> None:
    """A second signal stops what the handler of the first one does, which may go on after that."""
    stopped: list[type] = []

    def handler(number: int, _: FrameType | None) -> None:
        try:
            veturboio.load(slow, num_thread=1, progress=Strike(signal.SIGUSR2))
        except Raised as raised:
            stopped.append(type(raised))

    with handled({signal.SIGUSR1: handler, signal.SIGUSR2: raising}):
        loaded = veturboio.load(slow, num_thread=2, progress=Strike(signal.SIGUSR1))
    assert stopped == [Raised]
    assert_same(loaded, BIG)


@needs_slowfs
def test_what_was_raised_comes_out_of_a_call_that_succeeds(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_too_late() -> str:
        interrupt_a_script(slow)
        return "done all the same"

    monkeypatch.setattr(torch.ops.veturboio, "_stopped", stopped_too_late, raising=False)
    with handled({signal.SIGUSR1: raising}), pytest.raises(Raised):
        _ops._call("_stopped", "file")


@needs_slowfs
def test_a_handler_between_a_failure_and_its_exception(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls the core, which remembers what it was that failed before."""
    with handled({signal.SIGUSR1: raising}):
        interrupt_a_script(slow)
    operator = torch.ops.veturboio.load

    def failing(*arguments: Any, **options: Any) -> Any:
        try:
            return operator(*arguments, **options)
        except RuntimeError:
            monkeypatch.undo()
            assert len(veturboio.load(slow, names=["1"])) == 1
            with pytest.raises(IsADirectoryError):
                veturboio.load(tmp_path)
            raise

    for missing in (tmp_path / "missing", tmp_path / "other"):
        monkeypatch.setattr(torch.ops.veturboio, "load", failing)
        with pytest.raises(FileNotFoundError) as refusal:
            _ops.names(str(missing))
        assert refusal.value.filename == str(missing)
    with pytest.raises(Raised):
        _interrupts.raise_above(0)


@needs_slowfs
def test_a_process_that_is_forked_meanwhile(slow: Path) -> None:
    """By a handler, and by another thread while a handler runs: the child can be stopped too."""
    children: list[int] = []

    def child() -> int:
        if pid := os.fork():
            return pid
        status = 1
        try:
            signal.signal(signal.SIGUSR2, raising)
            veturboio.load(slow, num_thread=1, progress=Strike(signal.SIGUSR2))
        except Raised:
            status = 0
        finally:
            os._exit(status)

    def handler(*_: object) -> None:
        children.append(child())
        children.append(on_another_thread(child))

    with handled({signal.SIGUSR1: handler}):
        loaded = veturboio.load(slow, num_thread=2, progress=Strike(signal.SIGUSR1))
    assert_same(loaded, BIG)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]


def test_no_operator_takes_an_address() -> None:
    """Any program in TorchScript may call operators with any numbers."""
    schemas = [
        schema
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("veturboio::")
    ]
    assert len(schemas) > 5
    numbers = {
        argument.name
        for schema in schemas
        for argument in schema.arguments
        if str(argument.type) in ("int", "Optional[int]")
    }
    assert numbers == {"num_thread", "nbytes", "dtype"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if reason := cloudserver.unavailable():
        pytest.skip(reason)
    with cloudserver.serving(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.mark.parametrize("threads", [1, 2, 32])
def test_a_handler_uses_the_store_of_the_load_it_interrupts(server: Store, threads: int) -> None:
    """The loop that requests run in can neither be started nor ended inside of itself."""
    options = server.options
    name = itertools.count()
    veturboio.save_file(BIG, "s3://bucket/model", storage_options=options)
    handled_loads: list[dict[str, torch.Tensor]] = []

    def handler(*_: object) -> None:
        last = f"s3://bucket/last{next(name)}"
        veturboio.save_file({"last": BIG["3"]}, last, storage_options=options)
        handled_loads.append(veturboio.load(last, num_thread=threads, storage_options=options))

    server.behave(delay_ms=150)
    try:
        with handled({signal.SIGALRM: handler}):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            loaded = veturboio.load(
                "s3://bucket/model", num_thread=threads, storage_options=options
            )
            veturboio.save_file(loaded, "s3://bucket/again", storage_options=options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        server.behave()
    assert_same(loaded, BIG)
    assert len(handled_loads) == 1
    assert_same(handled_loads[0], {"last": BIG["3"]})
