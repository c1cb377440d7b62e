"""Loading: whatever a valid file may look like, its tensors come out right and usable."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from conftest import Run
from probe import DTYPES, assert_same, bits, random_tensor, same
from safetensors.torch import load_file, save_file

import veturboio

STATE = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "nothing": torch.empty(0, 3),
}

NAMES = {
    "empty": "",
    "space": " ",
    "dot": "layers.0.weight",
    "slash": "a/b\\c",
    "quotes": '"it\'s"',
    "emoji": "\U0001f600\U0001f469\u200d\U0001f680",
    "combining": "e\u0301",
    "composed": "\u00e9",
    "right-to-left": "\u05e9\u05dc\u05d5\u05dd",
    "control": "\x00\x01\x1f\x7f\x80",
    "newlines": "a\nb\r\n\tc\u2028\u2029",
    "noncharacter": "\ufeff\uffff\U0010ffff",
    "json": '{"dtype":"U8"}',
    "percent": "%s %n {} {0}",
    "long": "n" * 70_000,
    "python": "__class__",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return path


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["str", "bytes", "Path"])
def test_kinds_of_path(model: Path, kind: type) -> None:
    assert_same(veturboio.load(kind(model)), STATE)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"], ids=repr)
def test_kinds_of_device(model: Path, device: object) -> None:
    loaded = veturboio.load(model, map_location=device)
    assert_same(loaded, STATE)
    assert {tensor.device.type for tensor in loaded.values()} == {"cpu"}


@pytest.mark.parametrize("arguments", [{"enable_fast_mode": False}, {"use_pinmem": True}])
def test_modes_differ_in_nothing_that_can_be_seen(model: Path, arguments: dict) -> None:
    if arguments.get("use_pinmem") and torch.accelerator.is_available():
        pytest.skip("pinned memory is for machines with an accelerator")
    assert_same(veturboio.load(model, **arguments), STATE)


@pytest.mark.parametrize("threads", [1, 2, 3, 32, 1000])
def test_number_of_threads(model: Path, threads: int) -> None:
    assert_same(veturboio.load(model, num_thread=threads), STATE)


def test_what_the_caller_has_switched_on_changes_nothing(model: Path) -> None:
    for context in (torch.device("meta"), torch.no_grad(), torch.inference_mode()):
        with context:
            loaded = veturboio.load(model)
        assert_same(loaded, STATE)
        assert {tensor.device.type for tensor in loaded.values()} == {"cpu"}


def test_device_that_is_not_there(model: Path) -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(RuntimeError):
        veturboio.load(model, map_location=missing)
    with pytest.raises(RuntimeError, match="no-such-device"):
        veturboio.load(model, map_location="no-such-device")


def test_no_tensor_at_all(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    path.write_bytes(file("{}"))
    assert veturboio.load(path) == {}
    assert veturboio.metadata(path) == {}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_tensor_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.ones(2), "other": torch.zeros(2)}, path)
    loaded = veturboio.load(path)
    assert set(loaded) == {name, "other"}
    assert torch.equal(loaded[name], torch.ones(2))


def test_names_that_look_alike_are_different(tmp_path: Path) -> None:
    names = ["\u00e9", "e\u0301", "E\u0301", "a\0b", "a\0c", "a", "a\0"]
    path = tmp_path / "model.safetensors"
    save_file({name: torch.tensor(i) for i, name in enumerate(names)}, path)
    loaded = veturboio.load(path)
    assert {name: int(value) for name, value in loaded.items()} == {
        name: i for i, name in enumerate(names)
    }


ODD_BUT_VALID = {
    "leading-spaces": '   {"a":ENTRY}',
    "leading-white-space-of-all-kinds": '\n\r\t {"a":ENTRY}',
    "trailing-spaces": '{"a":ENTRY}     ',
    "trailing-newline": '{"a":ENTRY}\n',
    "spaces-inside": '{ "a" : ENTRY }',
    "escaped-name": '{"\\u0061":ENTRY}',
    "null-metadata": '{"__metadata__":null,"a":ENTRY}',
    "escaped-metadata": '{"\\u005f_metadata__":{"k":"v"},"a":ENTRY}',
    "metadata-behind": '{"a":ENTRY,"__metadata__":{"k":"v"}}',
    "unknown-field": '{"a":{"dtype":"I16","x":{"y":[1,null]},"shape":[2],"data_offsets":[0,4]}}',
    "fields-in-another-order": '{"a":{"data_offsets":[0,4],"shape":[2],"dtype":"I16"}}',
    "entry-as-a-list": '{"a":["I16",[2],[0,4]]}',
    "dtype-as-a-variant": '{"a":{"dtype":{"I16":null},"shape":[2],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("header", ODD_BUT_VALID.values(), ids=ODD_BUT_VALID)
def test_odd_headers_that_the_reference_reads(tmp_path: Path, header: str) -> None:
    entry = json.dumps(tensor("I16", [2], 0, 4))
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(header.replace("ENTRY", entry), b"\1\0\2\0"))
    loaded = veturboio.load(path)
    assert_same(loaded, load_file(path))
    assert loaded["a"].tolist() == [1, 2]


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_data_that_starts_at_any_address(tmp_path: Path, dtype: torch.dtype, shift: int) -> None:
    """Foreign writers do not pad: the data may start at any byte of the file."""
    source = random_tensor(dtype, 4, 6)
    name = next(name for name, other in DTYPES.items() if other == dtype)
    shape = [4, 12] if name == "F4" else [4, 6]
    data = bits(source)
    text = json.dumps({"a": tensor(name, shape, 0, len(data))})
    text += " " * ((shift - len(text)) % 8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(text, data))
    loaded = veturboio.load(path)["a"]
    assert same(loaded, source)
    assert same(loaded.clone(), source)
    if dtype == torch.float64:
        assert torch.equal(loaded.nan_to_num() + 1, source.nan_to_num() + 1)
        loaded.add_(1)
        assert torch.equal(loaded.nan_to_num(), (source + 1).nan_to_num())


def test_tensors_that_a_foreign_writer_left_misaligned(tmp_path: Path) -> None:
    """An odd number of bytes before doubles: each must still compute like an aligned one."""
    values = torch.rand(1001, dtype=torch.float64)
    header = {"odd": tensor("U8", [3], 0, 3), "wide": tensor("F64", [1001], 3, 3 + 8008)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(header, b"abc" + bits(values)))
    loaded = veturboio.load(path)
    assert torch.equal(loaded["wide"], values)
    assert torch.equal(loaded["wide"] @ loaded["wide"], values @ values)
    assert torch.equal(loaded["wide"].sort().values, values.sort().values)
    assert bytes(loaded["odd"].tolist()) == b"abc"


@pytest.mark.parametrize("before", [0, 1, 7])
def test_large_files_of_a_foreign_writer(tmp_path: Path, before: int) -> None:
    """Several megabytes at odd addresses, among tensors that may stay where they are."""
    parts = {
        "bytes": random_tensor(torch.uint8, before),
        "wide": random_tensor(torch.int64, 1_500_001),
        "narrow": random_tensor(torch.int8, 9_000_001),
        "half": random_tensor(torch.int16, 4_000_001),
    }
    names, header, end = {"bytes": "U8", "wide": "I64", "narrow": "I8", "half": "I16"}, {}, 0
    for name, part in parts.items():
        header[name] = tensor(names[name], list(part.shape), end, end + part.nbytes)
        end += part.nbytes
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(header, b"".join(bits(part) for part in parts.values())))
    assert_same(veturboio.load(path), parts)
    assert_same(veturboio.load(path, num_thread=1), parts)


def test_data_in_an_order_of_its_own(tmp_path: Path) -> None:
    header = {
        "z": tensor("U8", [1], 0, 1),
        "a": tensor("U8", [2], 3, 5),
        "m": tensor("U8", [2], 1, 3),
        "between": tensor("F64", [0, 7], 3, 3),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(header, bytes(range(5))))
    loaded = veturboio.load(path)
    assert {name: value.tolist() for name, value in loaded.items()} == {
        "z": [0],
        "a": [3, 4],
        "m": [1, 2],
        "between": [],
    }
    assert loaded["between"].shape == (0, 7)


EXTREME = [
    [0],
    [2**63 - 1, 0],
    [0, 2**63 - 1],
    [2**62, 0, 1],
    [2, 0, 2**62],
    [4, 2**61, 0],
    [0, 2**31, 2**31],
    [1] * 64,
    [0] * 64,
]


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("shape", EXTREME, ids=str)
def test_shapes_at_the_edge(tmp_path: Path, shape: list[int], where: str) -> None:
    size = 8 * torch.Size(shape).numel() if 0 not in shape else 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({"a": tensor("F64", shape, 0, size)}, bytes(size)))
    assert list(veturboio.load(path, map_location=where)["a"].shape) == shape


def test_twenty_thousand_tensors(tmp_path: Path) -> None:
    state = {f"layer.{i}.weight": torch.tensor([i, i + 1]) for i in range(20_000)}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    loaded = veturboio.load(path)
    assert len(loaded) == len(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_header_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entry = json.dumps({"a": tensor("U8", [3], 0, 3)})
    path.write_bytes(file(entry.ljust(100_000_000), b"abc"))
    assert bytes(veturboio.load(path)["a"].tolist()) == b"abc"


def test_sizes_around_pages_and_segments(tmp_path: Path) -> None:
    for size in (4095, 4096, 4097, 2**21 - 1, 2**21, 2**21 + 1, 2**23 + 13):
        state = {"a": random_tensor(torch.uint8, size), "b": random_tensor(torch.int8, 5)}
        path = tmp_path / "model.safetensors"
        save_file(state, path)
        assert_same(veturboio.load(path), state)


def test_meta_reads_the_header_alone(tmp_path: Path) -> None:
    """A sparse file of 4 TiB: nothing but the header can have been read."""
    size = 2**42
    path = tmp_path / "huge.safetensors"
    header = {
        "big": tensor("BF16", [2**21, 2**20], 0, size),
        "four": tensor("F4", [6, 4], size, size + 12),
    }
    path.write_bytes(file(header))
    try:
        os.truncate(path, path.stat().st_size + size + 12)
    except OSError as error:
        pytest.skip(f"the file system takes no file of 4 TiB: {error}")
    loaded = veturboio.load(path, map_location="meta")
    assert {tensor.device.type for tensor in loaded.values()} == {"meta"}
    assert loaded["big"].shape == (2**21, 2**20)
    assert loaded["big"].dtype == torch.bfloat16
    assert loaded["four"].shape == (6, 2)
    assert loaded["four"].dtype == torch.float4_e2m1fn_x2


def test_metadata(tmp_path: Path) -> None:
    metadata = {"format": "pt", "": "empty", "né\n": "\U0001f600\x00", "json": '{"a":1}'}
    path = tmp_path / "model.safetensors"
    save_file(STATE, path, metadata=metadata)
    assert veturboio.metadata(path) == metadata
    assert veturboio.metadata(str(path)) == metadata
    assert torch.ops.veturboio.metadata(str(path)) == metadata
    assert_same(veturboio.load(path), STATE)


def test_loads_at_the_same_time(tmp_path: Path) -> None:
    states = [{"a": random_tensor(torch.int32, 100_003, seed=i)} for i in range(8)]
    for i, state in enumerate(states):
        save_file(state, tmp_path / f"{i}.safetensors")

    def check(i: int) -> bool:
        return same(veturboio.load(tmp_path / f"{i}.safetensors")["a"], states[i]["a"])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, [i % 8 for i in range(200)]))


def test_loads_in_a_forked_child(tmp_path: Path, run: Run) -> None:
    """DataLoader workers fork: the parent's threads are gone, and a load must not wait for them."""
    save_file(STATE, tmp_path / "model.safetensors")
    code = """
import os, torch, veturboio
before = veturboio.load("model.safetensors")
veturboio.save_file(before, "again.safetensors")
child = os.fork()
if child == 0:
    inside = veturboio.load("again.safetensors")
    veturboio.save_file(before, "child.safetensors")
    right = torch.equal(inside["weight"], before["weight"])
    os._exit(0 if right else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).strip() == "0"
    assert_same(veturboio.load(tmp_path / "child.safetensors"), STATE)


def test_paths_that_are_hard_to_spell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["né \U0001f600", "line\nfeed", "%s{}", "a" * 255, "-", "file:x", "C:\\x"]:
        save_file(STATE, tmp_path / "plain")
        (tmp_path / "plain").rename(tmp_path / name)
        assert_same(veturboio.load(tmp_path / name), STATE)
    monkeypatch.chdir(tmp_path)
    for spelling in ["-", "./-", f"../{tmp_path.name}/-", ".//-"]:
        assert_same(veturboio.load(spelling), STATE)


def test_path_that_is_not_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"
    save_file(STATE, tmp_path / "plain")
    os.rename(tmp_path / "plain", path)  # noqa: PTH104 - Path cannot take bytes
    assert_same(veturboio.load(path), STATE)
    assert_same(veturboio.load(os.fsdecode(path)), STATE)
    with pytest.raises(FileNotFoundError):
        veturboio.load(path + b"x")
