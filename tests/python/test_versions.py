"""A file that is replaced while it is loaded: one version of it, or an error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from opens import opens_of

import veturboio

State = dict[str, torch.Tensor]


def legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS = {"safetensors": veturboio.save_file, "zip": torch.save, "old": legacy}


@pytest.fixture(params=WRITERS.values(), ids=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[State, Path], None]:
    return request.param


def replace(write: Callable[[State, Path], None], state: State, path: Path) -> None:
    write(state, path.with_name("next"))
    path.with_name("next").replace(path)


def write_over(write: Callable[[State, Path], None], state: State, path: Path) -> None:
    """The same file gets another content, as a program that does not rename gives it."""
    write(state, path.with_name("next"))
    path.write_bytes(path.with_name("next").read_bytes())


def test_a_function_is_asked_about_the_very_file_that_is_loaded(
    tmp_path: Path, write: Callable[[State, Path], None]
) -> None:
    path = tmp_path / "model"
    older = {"a": torch.zeros(3), "gone": torch.zeros(3)}
    write(older, path)
    asked = []

    def device(name: str) -> str:
        if not asked:
            replace(write, {"a": torch.ones(3), "a.b": torch.ones(4)}, path)
        asked.append(name)
        return "cpu"

    loaded = veturboio.load(path, map_location=device)
    assert asked == list(loaded) == ["a", "gone"]
    assert all(torch.equal(loaded[name], older[name]) for name in older)


def test_a_function_is_asked_again_about_another_content(
    tmp_path: Path, write: Callable[[State, Path], None]
) -> None:
    """Even where its answers for the old names could be taken for answers for the new ones."""
    path = tmp_path / "model"
    write({"a": torch.zeros(3), "gone": torch.zeros(3)}, path)
    newer = {"a": torch.ones(3), "a.b": torch.ones(4)}
    asked = []

    def device(name: str) -> str:
        if not asked:
            write_over(write, newer, path)
        asked.append(name)
        return "cpu"

    loaded = veturboio.load(path, map_location=device)
    assert list(loaded) == ["a", "a.b"]
    assert all(torch.equal(loaded[name], newer[name]) for name in newer)
    assert asked == ["a", "gone", "a", "a.b"]


def test_a_file_that_is_written_all_the_time_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    veturboio.save_file({"a": torch.zeros(3)}, path)
    asked = []

    def device(name: str) -> None:
        asked.append(name)
        write_over(veturboio.save_file, {"a": torch.ones(3 + len(asked))}, path)

    with pytest.raises(OSError, match=r"load .*model: Stale file handle") as refused:
        veturboio.load(path, map_location=device)
    assert refused.value.errno == errno.ESTALE
    assert refused.value.filename == str(path)
    assert len(asked) == 5


def test_errors_of_a_function_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model"
    veturboio.save_file({"a": torch.zeros(3)}, path)

    def device(_name: str) -> None:
        raise OSError(errno.ESTALE, "of my own")

    with pytest.raises(OSError, match="of my own"):
        veturboio.load(path, map_location=device)


def test_one_load_opens_a_file_once(tmp_path: Path, write: Callable[[State, Path], None]) -> None:
    path = tmp_path / "model"
    write({"a": torch.arange(9.0), "b": torch.ones(3, 4).t().contiguous()}, path)
    given = {"a": torch.zeros(9), "b": torch.zeros(4, 3)}
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: veturboio.load(path),
        "names": lambda: veturboio.load(path, names=["a"]),
        "slices": lambda: veturboio.load(path, slices={"a": 3}),
        "fill": lambda: veturboio.load(path, state_dict=given),
        "meta": lambda: veturboio.load(path, map_location="meta"),
        "explain": lambda: veturboio.explain(path),
    }
    for name, call in calls.items():
        assert opens_of(path, call) == 1, name
