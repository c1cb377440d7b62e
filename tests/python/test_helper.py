"""``init_io_helper``: memory that is kept from one call to the next, and never mixed up."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from probe import assert_same

import veturboio

#: The size of one of the helper's buffers; a save that writes on one thread needs one.
BUFFER = 8 << 20

STATE = {
    "small": torch.rand(3, 5),
    "turned": torch.arange(3_000_000).view(1000, 3000).t(),
    "half": torch.randn(33).bfloat16(),
}
PINMEM = "use_pinmem attribute of an exising IOHelper should not be changed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def save(state: dict[str, torch.Tensor], path: Path, helper: Any) -> None:
    torch.ops.veturboio.save(state, str(path), num_thread=1, helper=helper)


def test_a_save_leaves_its_memory_for_the_next(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper()
    assert (helper.nbytes(), helper.capacity()) == (0, 256 << 20)
    for _ in range(3):
        veturboio.save_file(STATE, tmp_path / "model", helper=helper)
        assert 0 < helper.nbytes() <= helper.capacity()
        assert_same(veturboio.load(tmp_path / "model", helper=helper), STATE)
    helper.close()
    assert helper.nbytes() == 0


def test_one_thread_needs_one_buffer_again_and_again(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper()
    held = []
    for _ in range(3):
        save(STATE, tmp_path / "model", helper)
        held.append(helper.nbytes())
    assert held == [BUFFER] * 3


def test_files_of_any_size_get_nothing_of_each_other(tmp_path: Path) -> None:
    """Buffers come back with old bytes in them: each file must be as if its buffer were new."""
    helper = veturboio.init_io_helper()
    for size in (5_000_000, 7, 0, 1_048_576, 1, 3_000_000):
        state = {"a": torch.full((2, size), float(size + 1)).t(), "b": torch.ones(size % 10)}
        veturboio.save_file(state, tmp_path / "kept", helper=helper)
        veturboio.save_file(state, tmp_path / "new")
        assert (tmp_path / "kept").read_bytes() == (tmp_path / "new").read_bytes(), size


@pytest.mark.parametrize(("nbytes", "kept"), [(0, 0), (BUFFER - 1, 0), (BUFFER, BUFFER)])
def test_no_more_is_kept_than_asked_for(tmp_path: Path, nbytes: int, kept: int) -> None:
    helper = veturboio.init_io_helper(nbytes)
    assert helper.capacity() == nbytes
    veturboio.save_file(STATE, tmp_path / "model", helper=helper)
    assert helper.nbytes() == kept
    assert_same(veturboio.load(tmp_path / "model"), STATE)


def test_a_closed_helper_serves_and_keeps_nothing(model: Path, tmp_path: Path) -> None:
    with contextlib.closing(veturboio.init_io_helper()) as helper:
        veturboio.save_file(STATE, tmp_path / "first", helper=helper)
    for _ in range(2):
        veturboio.save_file(STATE, tmp_path / "second", helper=helper)
        assert helper.nbytes() == 0
        helper.close()
    assert (tmp_path / "second").read_bytes() == model.read_bytes()
    assert_same(veturboio.load(model, helper=helper), STATE)


def test_where_there_is_no_memory_the_save_is_refused(run: Run) -> None:
    """And the helper does not count what it did not get."""
    code = """
import pathlib, resource, torch, veturboio
state, helper = {"a": torch.rand(4, 3).t()}, veturboio.init_io_helper()
def save():
    torch.ops.veturboio.save(state, "model", num_thread=1, helper=helper)
try:
    veturboio.load("missing")  # what a failure needs is imported
except FileNotFoundError:
    pass
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**22, resource.RLIM_INFINITY))
try:
    veturboio.save_file(state, "model", helper=helper)
    refused = None
except OSError as error:
    refused = str(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert refused and refused.endswith("save model: Cannot allocate memory: 'model'"), refused
assert helper.nbytes() == 0
assert not list(pathlib.Path().iterdir())
save()
print(helper.nbytes())
"""
    assert int(run(code)) == BUFFER


def test_several_threads_share_one_helper(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper(3 * BUFFER)

    def there_and_back(number: int) -> None:
        path = tmp_path / str(number)
        state = {name: tensor + number for name, tensor in STATE.items()}
        veturboio.save_file(state, path, helper=helper)
        assert_same(veturboio.load(path, helper=helper), state)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(there_and_back, range(18)))
    assert 0 < helper.nbytes() <= helper.capacity()
    helper.close()
    assert helper.nbytes() == 0


def test_the_memory_goes_with_the_last_reference(run: Run) -> None:
    code = """
import pathlib, torch, veturboio
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
state = {"a": torch.ones(4096, 1024).t()}
def save(helper):
    torch.ops.veturboio.save(state, "model", num_thread=1, helper=helper)
save(None)
before = resident()
helpers = [veturboio.init_io_helper() for _ in range(8)]
for helper in helpers:
    save(helper)
held = resident() - before
del helper, helpers
print(held, resident() - before)
"""
    held, left = map(int, run(code).split())
    assert held > 7 * BUFFER
    assert left < BUFFER


@pytest.mark.parametrize("nbytes", [-1, -(2**63)])
def test_a_negative_size_is_refused(nbytes: int) -> None:
    for make in (veturboio.init_io_helper, torch.classes.veturboio.IOHelper):
        with pytest.raises(ValueError, match="make IOHelper: nbytes must not be negative"):
            make(nbytes)


@pytest.mark.parametrize("pinned", [False, True])
def test_use_pinmem_may_not_change(model: Path, pinned: bool) -> None:
    helper = veturboio.init_io_helper()
    given = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    given["turned"] = given["turned"].contiguous()
    for _ in range(2):
        assert_same(veturboio.load(model, helper=helper, use_pinmem=pinned), STATE)
    for more in ({}, {"state_dict": given}, {"map_location": "meta"}):
        with pytest.raises(veturboio.ArgumentError, match=PINMEM):
            veturboio.load(model, helper=helper, use_pinmem=not pinned, **more)
    assert not any(tensor.any() for tensor in given.values())
    with pytest.raises((ValueError, RuntimeError), match=PINMEM):
        torch.ops.veturboio.load(str(model), helper=helper, use_pinmem=not pinned)
    veturboio.save_file(STATE, model, helper=helper)  # to which it does not matter
    helper.close()
    veturboio.load(model, helper=helper, use_pinmem=not pinned)


def test_filling_decides_about_use_pinmem_too(model: Path) -> None:
    helper = veturboio.init_io_helper()
    given = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in STATE.items()}
    assert_same(veturboio.load(model, helper=helper, state_dict=given), STATE)
    with pytest.raises(RuntimeError, match=PINMEM):
        veturboio.load(model, helper=helper, use_pinmem=True)


def test_load_to_shmem_takes_a_helper(model: Path) -> None:
    helper = veturboio.init_io_helper()
    for _ in range(2):
        shmem = veturboio.load_to_shmem(model, helper=helper)
        try:
            assert bytes(shmem.buf) == model.read_bytes()
        finally:
            shmem.close()
            shmem.unlink()
        helper.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_is_a_helper_of_its_own(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    helper = veturboio.init_io_helper(2 * BUFFER)
    save(STATE, tmp_path / "model", helper)
    twin = copied(helper)
    assert (twin.nbytes(), twin.capacity()) == (0, 2 * BUFFER)
    save(STATE, tmp_path / "model", twin)
    helper.close()
    assert twin.nbytes() == BUFFER


@torch.jit.script
def made_inside(weight: torch.Tensor, file: str, nbytes: int) -> list[int]:
    helper = torch.classes.veturboio.IOHelper(nbytes)
    held = [helper.capacity(), helper.nbytes()]
    torch.ops.veturboio.save({"w": weight}, file, helper=helper)
    held.append(helper.nbytes())
    torch.ops.veturboio.save({"w": weight + 1}, file, helper=helper)
    held.append(helper.nbytes())
    helper.close()
    held.append(helper.nbytes())
    return held


@torch.jit.script
def passed_in(
    weight: torch.Tensor, file: str, helper: torch.classes.veturboio.IOHelper
) -> dict[str, torch.Tensor]:
    torch.ops.veturboio.save({"w": weight}, file, helper=helper)
    loaded: dict[str, torch.Tensor] = torch.ops.veturboio.load(file, helper=helper)
    return loaded


class Keeps(torch.nn.Module):
    """Saves and loads with a helper of its own, and says what that held before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = torch.classes.veturboio.IOHelper(nbytes=3 * BUFFER)

    def forward(self, weight: torch.Tensor, file: str) -> tuple[torch.Tensor, list[int]]:
        before = self.helper.nbytes()
        torch.ops.veturboio.save({"w": weight}, file, helper=self.helper)
        loaded: dict[str, torch.Tensor] = torch.ops.veturboio.load(file, helper=self.helper)
        return loaded["w"], [before, self.helper.nbytes()]


def test_a_script_makes_one(tmp_path: Path) -> None:
    weight = torch.rand(5, 3).t()
    held = made_inside(weight, str(tmp_path / "model"), 2 * BUFFER)
    assert held == [2 * BUFFER, 0, BUFFER, BUFFER, 0]
    assert torch.equal(veturboio.load(tmp_path / "model")["w"], weight + 1)


def test_a_script_is_given_one(tmp_path: Path) -> None:
    helper, weight = veturboio.init_io_helper(), torch.rand(5, 3).t()
    for number in range(3):
        loaded = passed_in(weight + number, str(tmp_path / "model"), helper)
        assert torch.equal(loaded["w"], weight + number)
        assert helper.nbytes() == BUFFER
    with pytest.raises(veturboio.ArgumentError, match=PINMEM):  # of which the script's load said
        veturboio.load(tmp_path / "model", helper=helper, use_pinmem=True)


def test_a_saved_module_comes_back_with_an_empty_one(tmp_path: Path) -> None:
    weight, file = torch.rand(5, 3).t(), str(tmp_path / "model")
    for module in (
        torch.jit.script(Keeps()),
        torch.jit.freeze(torch.jit.script(Keeps().eval())),
    ):
        assert module(weight, file)[1] == [0, BUFFER]
        assert module(weight, file)[1] == [BUFFER, BUFFER]
        torch.jit.save(module, tmp_path / "script.pt")
        again = torch.jit.load(tmp_path / "script.pt")
        loaded, held = again(weight, file)
        assert torch.equal(loaded, weight)
        assert held == [0, BUFFER]


def test_a_saved_module_keeps_the_size_of_its_helper(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Keeps()), tmp_path / "script.pt")
    assert torch.jit.load(tmp_path / "script.pt").helper.capacity() == 3 * BUFFER
