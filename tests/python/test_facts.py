"""Facts about torch that the design is built on, one test each, so that a new torch shows."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import save_file

import veturboio


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.rand(1000), "b": torch.rand(1000), "c": torch.rand(3)}, path)
    return path


def test_each_tensor_has_a_storage_of_its_own_size(model: Path) -> None:
    loaded = veturboio.load(model)
    storages = {name: value.untyped_storage() for name, value in loaded.items()}
    assert len({storage._cdata for storage in storages.values()}) == len(loaded)
    for name, value in loaded.items():
        assert storages[name].nbytes() == value.nbytes
        assert value.storage_offset() == 0
        assert value.is_leaf
        assert not value.requires_grad
        assert value._base is None


def test_torch_save_writes_one_tensor_at_its_own_size(model: Path) -> None:
    buffer = io.BytesIO()
    torch.save(veturboio.load(model)["c"], buffer)
    assert buffer.tell() < 2500


def test_version_counters_are_apart(model: Path) -> None:
    loaded = veturboio.load(model)
    before = loaded["b"]._version
    loaded["a"].add_(1)
    assert loaded["b"]._version == before


def test_writing_to_one_tensor_does_not_break_the_graph_of_another(model: Path) -> None:
    loaded = veturboio.load(model)
    a, b = loaded["a"], loaded["b"]
    weight = torch.ones(1000, requires_grad=True)
    result = (weight * a).sum()
    b.mul_(2)
    result.backward()
    assert torch.equal(weight.grad, a)


def test_loaded_tensors_train(model: Path) -> None:
    parameters = [value.requires_grad_() for value in veturboio.load(model).values()]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    before = [value.detach().clone() for value in parameters]
    sum(value.square().sum() for value in parameters).backward()
    optimizer.step()
    for old, new in zip(before, parameters, strict=True):
        assert torch.allclose(new, torch.zeros_like(new), atol=1e-6)
        assert not torch.equal(old, new)


def test_a_loaded_dictionary_goes_into_a_module(tmp_path: Path) -> None:
    model = torch.nn.Linear(5, 3)
    veturboio.save_model(model, tmp_path / "linear")
    for assign in (False, True):
        twin = torch.nn.Linear(5, 3)
        twin.load_state_dict(veturboio.load(tmp_path / "linear"), assign=assign)
        twin(torch.ones(2, 5)).sum().backward()
        assert twin.weight.grad is not None
        assert torch.equal(twin.weight, model.weight)


def test_eager_python_keeps_the_class_that_torchscript_flattens(tmp_path: Path) -> None:
    @torch.jit.script
    def load(file: str) -> dict[str, torch.Tensor]:
        return torch.ops.veturboio.load(file)

    path = tmp_path / "short"
    path.write_bytes(b"short")
    with pytest.raises(ValueError) as eager:
        torch.ops.veturboio.load(str(path))
    with pytest.raises(RuntimeError) as scripted:
        load(str(path))
    assert not isinstance(scripted.value, ValueError)
    text = "file of 5 bytes is too short for a header"
    assert text in str(eager.value)
    assert text in str(scripted.value)


def ran_meanwhile(work: Callable[[], object]) -> bool:
    """Whether another Python thread ran while ``work`` did.

    The interpreter is told never to take the lock from whoever holds it, so the other thread
    runs only if ``work`` gives the lock away by itself.
    """
    go, ready, ran = threading.Event(), threading.Event(), []

    def other() -> None:
        ready.set()
        go.wait()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        go.set()
        work()
        result = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    return result


def test_the_interpreter_is_free_while_bytes_move(tmp_path: Path) -> None:
    state = {f"{i}": torch.ones(2**20) for i in range(32)}
    state |= {f"small{i}": torch.tensor(i) for i in range(20_000)}
    path = str(tmp_path / "model.safetensors")
    assert not ran_meanwhile(lambda: sum(range(3_000_000)))
    assert ran_meanwhile(lambda: veturboio.save_file(state, path))
    assert ran_meanwhile(lambda: torch.ops.veturboio.save(state, path))
    assert ran_meanwhile(lambda: torch.ops.veturboio.load(path))
    assert ran_meanwhile(lambda: veturboio.load(path))


def test_progress_can_be_watched_from_another_thread(tmp_path: Path) -> None:
    """What is seen on the way never runs backwards, and the end is the file's size."""
    state = {f"{i}": torch.ones(2**22) for i in range(16)}
    path = tmp_path / "model.safetensors"
    progress = torch.zeros(2, dtype=torch.int64)
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(tuple(progress.tolist()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        torch.ops.veturboio.save(state, str(path), progress=progress)
    finally:
        done.set()
        thread.join()
    size = path.stat().st_size
    assert progress.tolist() == [size, size]
    parts = [part for part, _ in seen]
    assert parts == sorted(parts)
    assert {whole for _, whole in seen} <= {0, size}
    assert any(0 < part < size for part in parts)


def test_progress_starts_anew(tmp_path: Path) -> None:
    progress = torch.full((2,), 99, dtype=torch.int64)
    path = tmp_path / "model.safetensors"
    torch.ops.veturboio.save({}, str(path), progress=progress)
    assert progress.tolist() == [16, 16]
    torch.ops.veturboio.save({"a": torch.ones(3)}, str(path), progress=progress)
    assert progress.tolist() == [path.stat().st_size] * 2


def test_importing_needs_nothing_but_torch(run_anew: Run) -> None:
    """With every other package that is not torch's own forbidden, all of it works."""
    code = """
import sys
import torch
before = set(sys.modules)
class Forbid:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in ("safetensors", "numpy", "tqdm", "humanize", "packaging", "setuptools"):
            raise ImportError(f"{name} is forbidden")
sys.meta_path.insert(0, Forbid())
for name in [name for name in sys.modules if name.partition(".")[0] in ("safetensors", "tqdm")]:
    del sys.modules[name]
import veturboio, veturboio.convert
veturboio.save_file({"a": torch.ones(3)}, "model.safetensors", metadata={"k": "v"})
assert veturboio.load("model.safetensors")["a"].sum() == 3
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(roots - set(sys.stdlib_module_names)))
"""
    assert set(run_anew(code).split()) <= {"veturboio", "torch"}


def test_importing_starts_no_thread_and_needs_no_home(run_anew: Run) -> None:
    code = """
import os, torch
before = len(os.listdir("/proc/self/task"))
import veturboio
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert run_anew(code, HOME="/nonexistent").strip() == "0"


def test_no_thread_outlives_its_call(model: Path) -> None:
    state = {f"{i}": torch.ones(2**20) for i in range(16)}
    veturboio.save_file(state, model)
    veturboio.load(model)
    deadline = time.monotonic() + 30
    while own_threads():  # one that has ended may stay in the kernel's list for a moment
        assert time.monotonic() < deadline, own_threads()


def own_threads() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [name for name in names if name.startswith("veturboio")]


def test_what_the_package_offers() -> None:
    assert {"load", "save_file", "save_model", "metadata", "FormatError"} <= set(dir(veturboio))
    assert issubclass(veturboio.FormatError, ValueError)
    assert veturboio.__version__.count(".") == 2
    assert (Path(veturboio.__file__).parent / "py.typed").exists()
    for name in ("load", "save_file", "save_model", "metadata"):
        assert getattr(veturboio, name).__doc__
