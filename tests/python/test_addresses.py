"""Addresses: never taken for paths, refused by name where nobody can reach them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import veturboio

STATE = {"a": torch.ones(3)}

#: What reaches nobody, at once.
NOBODY = {
    "aws_endpoint_url": "http://127.0.0.1:9",
    "aws_access_key_id": "key",
    "aws_secret_access_key": "very-secret",
    "retry_timeout": "0.1",
}

CALLS: dict[str, Callable[..., Any]] = {
    "load": veturboio.load,
    "explain": veturboio.explain,
    "metadata": veturboio.metadata,
    "fill": lambda file, **options: veturboio.load(file, state_dict=STATE, **options),
    "save": lambda file, **options: veturboio.save_file(STATE, file, **options),
    "save in the background": lambda file, **options: veturboio.save_file(
        STATE, file, wait=False, **options
    ).result(),
    "operator": torch.ops.veturboio.load,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_address_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        (OSError, RuntimeError), match="s3://bucket/model: Connection refused"
    ) as at:
        call("s3://bucket/model", storage_options=NOBODY)
    assert "very-secret" not in str(at.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_store_that_is_not_known_is_named(call: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match="hdfs://"):
        call("hdfs://host/model")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_address_without_an_object_is_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="an address names a bucket and an object"):
        call("s3://bucket/")


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/a%20b"
    veturboio.save_file(STATE, address)
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]
    assert veturboio.load(address)["a"].sum() == 3
    assert "map" in veturboio.explain(address)
    with pytest.raises(ValueError, match="absolute path of this machine"):
        veturboio.load("file://elsewhere/model")


def test_sfcs_without_its_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    veturboio.save_file(STATE, tmp_path / "model")
    monkeypatch.setenv("LIBCFS_PATH", "/none/libcloudfs.so")
    monkeypatch.setenv("LIBCLOUDFS_CONF", "/none/conf.xml")
    monkeypatch.setenv("VETURBOIO_USE_SFCS_SDK", "1")
    for call in (veturboio.load, lambda file: veturboio.save_file(STATE, file)):
        for file in (tmp_path / "model", "sfcs://model"):
            with pytest.raises(FileNotFoundError, match="SFCS client library /none/libcloudfs"):
                call(file)
    monkeypatch.delenv("VETURBOIO_USE_SFCS_SDK")
    shmem = veturboio.load_to_shmem(tmp_path / "model")
    try:
        monkeypatch.setenv("VETURBOIO_USE_SFCS_SDK", "1")
        assert veturboio.load(f"/dev/shm/{shmem.name}")["a"].sum() == 3
    finally:
        shmem.close()
        shmem.unlink()
