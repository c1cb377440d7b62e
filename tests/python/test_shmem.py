"""``load_to_shmem``: a segment that other processes load from, gone when it should be gone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import Run
from probe import assert_same, maps_of

import veturboio

STATE = {"weight": torch.arange(3_000_000), "half": torch.randn(33).bfloat16()}
SEGMENTS = Path("/dev/shm")


@pytest.fixture(params=[veturboio.save_file, torch.save], ids=["safetensors", "zip"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(STATE, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Callable[[], None]:
    before = set(SEGMENTS.iterdir())
    yield
    assert set(SEGMENTS.iterdir()) <= before


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("threads", [1, 32])
def test_the_segment_is_the_file(model: Path, direct: bool, threads: int) -> None:
    shmem = veturboio.load_to_shmem(model, num_thread=threads, use_direct_io=direct)
    try:
        assert bytes(shmem.buf) == model.read_bytes()
        loaded = veturboio.load(SEGMENTS / shmem.name)
        assert_same(loaded, STATE)
        assert maps_of(SEGMENTS / shmem.name) != []
    finally:
        shmem.close()
        shmem.unlink()
    assert_same(loaded, STATE)


def test_other_processes_load_it_by_name(model: Path, run: Run) -> None:
    code = """
import sys, veturboio
loaded = veturboio.load("/dev/shm/" + sys.argv[1])
loaded["weight"].add_(1)
print(int(loaded["weight"].sum()))
"""
    wanted = str(int((STATE["weight"] + 1).sum()))
    shmem = veturboio.load_to_shmem(model)
    try:
        with ThreadPoolExecutor() as pool:
            sums = list(pool.map(lambda _: run(code, shmem.name).strip(), range(3)))
        assert sums == [wanted] * 3
        assert_same(veturboio.load(SEGMENTS / shmem.name), STATE)
    finally:
        shmem.close()
        shmem.unlink()


def test_several_at_once(model: Path) -> None:
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: veturboio.load_to_shmem(model), range(4)))
    assert len({shmem.name for shmem in made}) == 4
    for shmem in made:
        assert_same(veturboio.load(SEGMENTS / shmem.name), STATE)
        shmem.close()
        shmem.unlink()


def test_a_refused_file_leaves_nothing(tmp_path: Path) -> None:
    for content in (b"", b"short", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 100):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(veturboio.FormatError):
            veturboio.load_to_shmem(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        veturboio.load_to_shmem(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        veturboio.load_to_shmem(tmp_path)


def test_other_arguments_that_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_thread"):
        veturboio.load_to_shmem(model, num_thread=0)
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load_to_shmem(model, use_cipher=True)
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    with pytest.raises(NotImplementedError, match="use_cipher"):
        veturboio.load_to_shmem(model)
