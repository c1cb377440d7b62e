"""Addresses of stores that cannot be reached yet: refused by name, never taken for paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import veturboio

STATE = {"a": torch.ones(3)}

CALLS: dict[str, Callable[[str], Any]] = {
    "load": veturboio.load,
    "explain": veturboio.explain,
    "metadata": veturboio.metadata,
    "fill": lambda file: veturboio.load(file, state_dict=STATE),
    "save": lambda file: veturboio.save_file(STATE, file),
    "save in the background": lambda file: veturboio.save_file(STATE, file, wait=False).result(),
    "operator": torch.ops.veturboio.load,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("scheme", ["sfcs", "s3", "tos", "gs", "az", "http", "https"])
def test_an_address_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], Any], scheme: str
) -> None:
    (tmp_path / f"{scheme}:" / "bucket").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotImplementedError, match=f"{scheme}://"):
        call(f"{scheme}://bucket/model")
    assert sorted(tmp_path.rglob("*")) == before


def test_plain_paths_that_shall_be_sfcs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    veturboio.save_file(STATE, tmp_path / "model")
    monkeypatch.setenv("VETURBOIO_USE_SFCS_SDK", "1")
    for call in (veturboio.load, lambda file: veturboio.save_file(STATE, file)):
        with pytest.raises(NotImplementedError, match="VETURBOIO_USE_SFCS_SDK"):
            call(tmp_path / "model")
    monkeypatch.delenv("VETURBOIO_USE_SFCS_SDK")
    shmem = veturboio.load_to_shmem(tmp_path / "model")
    try:
        monkeypatch.setenv("VETURBOIO_USE_SFCS_SDK", "1")
        assert veturboio.load(f"/dev/shm/{shmem.name}")["a"].sum() == 3
    finally:
        shmem.close()
        shmem.unlink()
