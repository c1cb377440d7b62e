"""Every dtype of the format that torch can name, bit for bit, both ways and with the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from probe import DTYPES, assert_same, bits, header_of, random_tensor, same
from safetensors.torch import load_file, save_file

import veturboio

ALL = pytest.mark.parametrize("name", DTYPES)

#: The order in which a writer sorts dtypes.
WRITTEN = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"]
WRITTEN += ["F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2"]
WRITTEN += ["I8", "U8", "F4", "BOOL"]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@ALL
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0, 3), (0,)], ids=str)
def test_round_trip(target: Path, name: str, shape: tuple[int, ...]) -> None:
    if name == "F4" and shape == ():
        shape = (2,)  # a pair has a dimension; see below for the scalar
    source = random_tensor(DTYPES[name], *shape, seed=len(shape))
    veturboio.save_file({"a": source}, target)
    assert same(veturboio.load(target)["a"], source)
    entry = header_of(target)["a"]
    assert entry["dtype"] == name
    factor = 2 if name == "F4" else 1
    assert entry["shape"] == [*shape[:-1], *(size * factor for size in shape[-1:])]
    meta = veturboio.load(target, map_location="meta")["a"]
    assert (meta.dtype, meta.shape) == (source.dtype, source.shape)


@ALL
def test_reference_reads_and_writes_the_same(target: Path, tmp_path: Path, name: str) -> None:
    state = {"a": random_tensor(DTYPES[name], 6, 4), "b": random_tensor(DTYPES[name], 2, seed=1)}
    reference = tmp_path / "reference.safetensors"
    save_file(state, reference)
    veturboio.save_file(state, target)
    assert target.read_bytes() == reference.read_bytes()
    assert_same(load_file(target), state)
    assert_same(veturboio.load(reference), state)


@ALL
def test_every_bit_pattern(target: Path, name: str) -> None:
    """All 65,536 pairs of bytes, so every value of the narrow dtypes: NaNs keep their payload."""
    dtype = DTYPES[name]
    if dtype == torch.bool:
        pytest.skip("only two patterns of bool are values")
    pairs = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    source = pairs.view(torch.uint8).view(dtype)
    veturboio.save_file({"a": source}, target)
    assert bits(veturboio.load(target)["a"]) == bits(pairs)


def test_all_dtypes_in_one_file(target: Path, tmp_path: Path) -> None:
    names = sorted(DTYPES, reverse=True)
    state = {f"{name}.{i}": random_tensor(DTYPES[name], 3, 2) for name in names for i in (1, 0)}
    reference = tmp_path / "reference.safetensors"
    save_file(state, reference)
    veturboio.save_file(state, target)
    assert target.read_bytes() == reference.read_bytes()
    assert_same(veturboio.load(target), state)
    assert list(header_of(target)) == [f"{name}.{i}" for name in WRITTEN for i in (0, 1)]


def test_scalars_of_every_dtype(target: Path) -> None:
    state = {
        name: random_tensor(dtype, 1).view(())
        for name, dtype in DTYPES.items()
        if dtype != torch.float4_e2m1fn_x2
    }
    veturboio.save_file(state, target)
    loaded = veturboio.load(target)
    assert_same(loaded, state)
    assert all(value.dim() == 0 for value in loaded.values())


def test_a_scalar_pair_of_f4(target: Path) -> None:
    """torch's 0-d float4 pair has no last dimension to double, so the format cannot say it."""
    source = torch.tensor(0x21, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(ValueError, match="pair"):
        veturboio.save_file({"the pair": source}, target)
    assert list(target.parent.iterdir()) == []


def test_f4_elements_keep_their_order(target: Path) -> None:
    path = target
    path.write_bytes(file({"a": tensor("F4", [2, 4], 0, 4)}, b"\x21\x43\x65\x87"))
    loaded = veturboio.load(path)["a"]
    assert loaded.dtype == torch.float4_e2m1fn_x2
    assert loaded.view(torch.uint8).tolist() == [[0x21, 0x43], [0x65, 0x87]]


def test_a_bool_that_is_neither_true_nor_false(target: Path) -> None:
    """The format lets any byte stand for a bool; a loaded one must not be undefined behaviour."""
    target.write_bytes(file({"a": tensor("BOOL", [4], 0, 4)}, bytes([0, 1, 2, 255])))
    loaded = veturboio.load(target)["a"]
    assert loaded.dtype == torch.bool
    assert loaded.tolist() == [False, True, True, True]
