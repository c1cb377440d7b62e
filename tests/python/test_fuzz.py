"""Random files against the reference: what it accepts we accept with the same bits, and so back."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from probe import DTYPES, assert_same, random_tensor
from safetensors import safe_open
from safetensors.torch import save_file

import veturboio

#: Values that header fields are replaced with.
VALUES = [0, 1, 2, 3, 7, 8, -1, 2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64]
VALUES += [None, True, "", "U8", "F4", "F6_E2M3", 0.0, 1.5, [], [0], {}, {"U8": None}]

Outcome = dict[str, torch.Tensor] | Exception


def reference_load(path: Path) -> Outcome:
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:
        return error


def our_load(path: Path) -> Outcome:
    try:
        return veturboio.load(path)
    except veturboio.FormatError as error:
        return error


def compare(path: Path, data: bytes) -> bool:
    """Asserts that both readers agree on ``data``; whether they accept it."""
    path.write_bytes(data)
    theirs, ours = reference_load(path), our_load(path)
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), (data, theirs)
        return False
    if isinstance(ours, Exception):
        assert "stands twice" in str(ours) or "strides of shape" in str(ours), (data, ours)
        return False
    assert_same(ours, theirs)
    return True


def whole_file(chance: random.Random) -> tuple[dict, bytes]:
    header, end = {}, 0
    if chance.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    for number in range(chance.randrange(4)):
        dtype = chance.choice(["U8", "F32", "F4", "BOOL", "I64"])
        shape = [chance.choice([0, 1, 2, 3]) for _ in range(chance.randrange(3))]
        if dtype == "F4":
            shape = [*shape, 2]
        width = {"U8": 8, "F32": 32, "F4": 4, "BOOL": 8, "I64": 64}[dtype]
        size = torch.Size(shape).numel() * width // 8
        header[f"t{number}"] = tensor(dtype, shape, end, end + size)
        end += size
    return header, bytes(chance.randrange(2) for _ in range(end))


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside a header."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        found += places(child, (*path, key))
    return found


def replace(header: dict, path: tuple, value: object) -> dict:
    header = json.loads(json.dumps(header))
    parent = header
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return header


@pytest.mark.parametrize("seed", range(4))
def test_headers_with_one_or_two_values_replaced(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    accepted = 0
    for _ in range(500):
        header, data = whole_file(chance)
        for _ in range(chance.randrange(3)):
            if everywhere := places(header):
                header = replace(header, chance.choice(everywhere), chance.choice(VALUES))
        accepted += compare(tmp_path / "m.safetensors", file(header, data))
    assert 50 < accepted < 450


@pytest.mark.parametrize("seed", range(4))
def test_files_with_bytes_changed_cut_and_repeated(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    accepted = 0
    for _ in range(500):
        data = bytearray(file(*whole_file(chance)))
        place = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.choice(b'{}[]:,"\\0123456789eE.+- \n\0\xff')
            case 2:
                del data[place:]
            case 3:
                data[place:place] = data[place : place + chance.randrange(1, 9)]
            case 4:
                pass
        accepted += compare(tmp_path / "m.safetensors", bytes(data))
    assert 50 < accepted < 450


def random_name(chance: random.Random) -> str:
    letters = string.printable + "é\u0301\U0001f600\u2028\x00\x7f漢"
    return "".join(chance.choice(letters) for _ in range(chance.randrange(12)))


@pytest.mark.parametrize("seed", range(40))
def test_random_dictionaries_are_written_byte_for_byte_alike(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    state = {}
    for number in range(chance.randrange(20)):
        shape = [chance.choice([0, 1, 2, 3, 5]) for _ in range(chance.randrange(4))]
        dtype = chance.choice([*DTYPES.values()])
        if dtype == torch.float4_e2m1fn_x2:
            shape = [*shape, 2]  # the reference cannot write a scalar pair
        state[random_name(chance)] = random_tensor(dtype, *shape, seed=number)
    # Of two entries or more the reference writes any first; ours always has `format` among them.
    metadata = chance.choice([None, {"format": random_name(chance)}])
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    veturboio.save_file(state, ours, metadata=metadata)
    save_file(state, theirs, metadata=metadata)
    assert ours.read_bytes() == theirs.read_bytes()
    assert_same(veturboio.load(ours), state)
