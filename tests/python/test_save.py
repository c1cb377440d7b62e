"""Saving: the bytes of the reference, from every kind of tensor, refusing what has no bytes."""

from __future__ import annotations

import os
from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from conftest import Run
from probe import assert_same, bits, header_of, random_tensor, same
from safetensors.torch import load_file, save_file

import veturboio


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


STATES = {
    "nothing": {},
    "one": {"a": torch.arange(3)},
    "odd sizes": {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5, dtype=torch.int16)},
    "scalars": {"a": torch.tensor(1.0), "b": torch.tensor(True), "c": torch.tensor(2)},
    "zero sizes": {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "c": torch.ones(1)},
    "names": {
        "": torch.ones(1),
        "b": torch.ones(1),
        "B": torch.ones(1),
        "\U0001f600": torch.ones(1),
    },
    "escapes": {'"\\/\b\f\n\r\t\x00\x1f\x7f\u2028é': torch.ones(2)},
    "name order": {f"layer.{i}": torch.tensor(i) for i in (10, 9, 100, 1, 2)},
}


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": "né\n\0\U0001f600"}], ids=repr
)
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_bytes_are_those_of_the_reference(
    target: Path, tmp_path: Path, state: dict, metadata: dict | None
) -> None:
    reference = tmp_path / "reference.safetensors"
    save_file(state, reference, metadata=metadata)
    veturboio.save_file(state, target, metadata=metadata)
    assert target.read_bytes() == reference.read_bytes()
    assert_same(veturboio.load(target), state)


def test_many_metadata_keys_are_written_sorted(target: Path) -> None:
    metadata = {key: key.upper() for key in "qwertyuiopasdfghjkl"}
    veturboio.save_file({}, target, metadata=metadata)
    written = header_of(target)["__metadata__"]
    assert list(written) == sorted({*metadata, "format"})
    assert written == {**metadata, "format": "pt"} == veturboio.metadata(target)


def test_a_format_of_the_users_own_is_kept(target: Path) -> None:
    veturboio.save_file({"a": torch.ones(1)}, target, metadata={"format": "mlx", "é\n": "\0"})
    assert header_of(target)["__metadata__"] == {"format": "mlx", "é\n": "\0"}


def test_empty_metadata_is_no_metadata(target: Path) -> None:
    veturboio.save_file({"a": torch.ones(1)}, target, metadata={})
    assert "__metadata__" not in header_of(target)


BASE = torch.arange(24.0).reshape(4, 6)
COMPLEX = torch.complex(torch.arange(6.0), -torch.arange(6.0)).reshape(2, 3)

VIEWS = {
    "transposed": BASE.t(),
    "column": BASE[:, 2],
    "row": BASE[2],
    "every other": BASE[::2, 1::3],
    "expanded": torch.arange(3.0).expand(4, 3),
    "expanded scalar": torch.tensor(2.5).expand(3, 3),
    "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "channels last 3d": torch.rand(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
    "flipped": BASE.flip(1),
    "strided by hand": BASE.as_strided((3, 2), (1, 7), 2),
    "overlapping itself": BASE.as_strided((5, 4), (1, 2)),
    "huge strides of one": BASE.as_strided((1, 3, 1), (2**63 - 1, 2, 2**62)),
    "huge strides of none": BASE.as_strided((3, 0), (2**62, 2**63 - 1)),
    "zero-size slice": BASE[4:],
    "one-element dimension": BASE[:, :1],
    "diagonal": BASE.diagonal(),
    "unfolded": torch.arange(10).unfold(0, 4, 2),
    "offset": BASE.flatten()[5:],
    "real part": COMPLEX.real,
    "imaginary part": COMPLEX.imag,
    "conjugate": COMPLEX.conj(),
    "conjugate transpose": COMPLEX.mH,
    "resolved conjugate": COMPLEX.conj().resolve_conj(),
    "negative": COMPLEX.conj().imag,
    "negative column": COMPLEX.conj().imag[:, 1],
    "complex twice": COMPLEX.conj().conj(),
    "8-bit transposed": random_tensor(torch.uint8, 301, 7).t(),
    "bool transposed": random_tensor(torch.bool, 13, 7).t(),
    "bfloat16 slice": random_tensor(torch.bfloat16, 13, 7)[1::2],
    "large transposed": random_tensor(torch.int16, 1500, 1100).t(),
    "float8 transposed": random_tensor(torch.float8_e4m3fn, 6, 4).t(),
    "uint64 slice": random_tensor(torch.uint64, 6, 4)[:, 1:3],
    "float4 rows": random_tensor(torch.float4_e2m1fn_x2, 6, 4)[1:3],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_are_written_as_they_read(target: Path, view: torch.Tensor) -> None:
    expected, before = bits(view), (view.stride(), view.is_conj(), view.is_neg())
    veturboio.save_file({"a": view, "b": torch.ones(3)}, target)
    for loaded in (veturboio.load(target)["a"], load_file(target)["a"]):
        assert loaded.shape == view.shape
        assert loaded.is_contiguous()
        assert bits(loaded) == expected
    assert (view.stride(), view.is_conj(), view.is_neg()) == before


LARGE = {
    "bytes permuted": lambda: random_tensor(torch.uint8, 37, 211, 2500).permute(2, 0, 1),
    "int16 transposed": lambda: random_tensor(torch.int16, 3001, 4003).t(),
    "one long row": lambda: random_tensor(torch.int32, 2, 5_000_003)[:, 1::2],
    "one long column": lambda: random_tensor(torch.int64, 3_000_001, 2)[:, 1],
    "few rows of rows": lambda: random_tensor(torch.float32, 3, 5, 7, 30_011).transpose(1, 3),
    "conjugate transpose": lambda: random_tensor(torch.complex64, 1201, 1301).nan_to_num().mH,
    "expanded row": lambda: random_tensor(torch.int16, 4001).expand(3000, 4001),
    "expanded column": lambda: random_tensor(torch.int16, 3001, 1).expand(3001, 4001),
    "bool strided": lambda: random_tensor(torch.bool, 4001, 5003)[::2, ::2].t(),
    "float8 permuted": lambda: random_tensor(torch.float8_e5m2, 37, 211, 2500).permute(1, 2, 0),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_views_that_are_gathered_in_pieces(target: Path, make: Callable) -> None:
    """Larger than what one thread writes at a time, so rows are cut at any place."""
    view = make()
    veturboio.save_file({"a": view, "before": random_tensor(torch.int64, 99_999)}, target)
    assert bits(veturboio.load(target)["a"]) == bits(view)


def test_non_contiguous_tensors_can_be_refused(target: Path) -> None:
    with pytest.raises(ValueError, match="crooked"):
        veturboio.save_file({"straight": BASE, "crooked": BASE.clone().t()}, target, False)
    assert list(target.parent.iterdir()) == []
    veturboio.save_file({"straight": BASE}, target, force_contiguous=False)
    assert torch.equal(veturboio.load(target)["straight"], BASE)


def test_parameters_and_gradients(target: Path) -> None:
    model = torch.nn.Linear(4, 3)
    model(torch.ones(2, 4)).sum().backward()
    veturboio.save_file(dict(model.named_parameters()), target)
    loaded = veturboio.load(target)
    assert_same(loaded, {name: value.detach() for name, value in model.named_parameters()})
    assert not any(tensor.requires_grad for tensor in loaded.values())
    inside_graph = model.weight * 2
    veturboio.save_file({"a": inside_graph}, target)
    assert torch.equal(veturboio.load(target)["a"], inside_graph.detach())


def test_inference_tensors_and_subclasses(target: Path) -> None:
    class Named(torch.Tensor):
        pass

    with torch.inference_mode():
        made_in_inference = torch.ones(3) * 2
    state = {"inference": made_in_inference, "subclass": torch.ones(2).as_subclass(Named)}
    state["buffer"] = torch.nn.Buffer(torch.ones(4))
    veturboio.save_file(state, target)
    loaded = veturboio.load(target)
    assert torch.equal(loaded["inference"], torch.full((3,), 2.0))
    assert type(loaded["subclass"]) is torch.Tensor
    assert torch.equal(loaded["buffer"], torch.ones(4))
    with torch.inference_mode():
        again = veturboio.load(target)
        veturboio.save_file(again, target)
    assert_same(veturboio.load(target), loaded)


def test_kinds_of_dictionary_and_path(tmp_path: Path) -> None:
    state = OrderedDict(b=torch.ones(2), a=torch.zeros(2))
    for number, kind in enumerate([str, os.fsencode, Path]):
        path = tmp_path / f"{number}"
        veturboio.save_file(state, kind(path))
        assert_same(load_file(path), state)
    assert list(state) == ["b", "a"]
    for wrap in (MappingProxyType, UserDict, ChainMap):
        path = tmp_path / wrap.__name__
        veturboio.save_file(wrap(state), path)
        assert_same(load_file(path), state)


def test_the_callers_dictionary_is_left_alone(target: Path) -> None:
    state = {"t": BASE.t(), "z": COMPLEX.conj(), "p": torch.nn.Parameter(torch.ones(2))}
    metadata = {"k": "v"}
    before = list(state.items())
    veturboio.save_file(state, target, metadata=metadata)
    assert len(state) == len(before)
    for (name, value), (old_name, old_value) in zip(state.items(), before, strict=True):
        assert name == old_name
        assert value is old_value
    assert metadata == {"k": "v"}


def test_save_model(target: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    veturboio.save_model(model, target)
    assert_same(veturboio.load(target), model.state_dict())
    twin = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    twin.load_state_dict(veturboio.load(target), strict=True)
    assert_same(dict(twin.state_dict()), dict(model.state_dict()))


REFUSED = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "mkldnn": lambda: torch.ones(2, 2).to_mkldnn(),
    "meta": lambda: torch.ones(3, device="meta"),
    "meta without elements": lambda: torch.ones(0, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "quantized uint8": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "complex128": lambda: torch.ones(3, dtype=torch.complex128),
    "complex32": lambda: torch.ones(3, dtype=torch.complex32),
    "bits8": lambda: torch.empty(3, dtype=torch.bits8),
    "uint4": lambda: torch.empty(3, dtype=torch.uint4),
    "int4": lambda: torch.empty(3, dtype=torch.int4),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_tensors_without_plain_bytes_are_refused_by_name(target: Path, make: object) -> None:
    target.write_bytes(b"old")
    with pytest.raises((ValueError, TypeError), match="the culprit"):
        veturboio.save_file({"fine": torch.ones(2), "the culprit": make()}, target)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


HOLLOW = {
    "emptied storage": "torch.ones(3); tensor.untyped_storage().resize_(0)",
    "cut storage": "torch.ones(3000); tensor.untyped_storage().resize_(4096)",
    "emptied storage of a view": "torch.ones(3, 4).t(); tensor.untyped_storage().resize_(0)",
    "fake": "torch._subclasses.FakeTensorMode().from_tensor(torch.ones(3))",
    "functional": "torch._to_functional_tensor(torch.ones(3))",
    "batched": "torch._C._functorch._add_batch_dim(torch.ones(3, 2), 0, 1)",
}


@pytest.mark.parametrize("make", HOLLOW.values(), ids=HOLLOW)
def test_tensors_that_claim_bytes_they_have_not(target: Path, run: Run, make: str) -> None:
    """As FSDP leaves parameters, or tracing sees them; a crash would be this child's."""
    code = f"""
import sys, torch, veturboio
tensor = {make}
for state in ({{"fine": torch.ones(2), "the culprit": tensor}}, {{"the culprit": tensor}}):
    try:
        veturboio.save_file(state, sys.argv[1])
    except (ValueError, TypeError, RuntimeError) as error:
        assert "the culprit" in str(error), error
    else:
        raise SystemExit("it was not refused")
"""
    run(code, target)
    assert list(target.parent.iterdir()) == []


def test_wrappers_of_other_tensors_are_refused(target: Path) -> None:
    """Their own storages are stand-ins at no address, which must not pass for shared memory."""
    from torch.testing._internal.two_tensor import TwoTensor

    state = {name: TwoTensor(torch.ones(3), torch.zeros(3)) for name in ("a", "b")}
    for options in ({}, {"force_save_shared_tensor": True}, {"force_clone_shared_tensor": True}):
        with pytest.raises(ValueError, match='"a": has no memory of its own'):
            veturboio.save_file(state, target, **options)
    assert list(target.parent.iterdir()) == []


VALUES = {"number": 3, "list": [1.0], "none": None, "string": "x", "dict": {}, "dtype": torch.int8}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_that_are_no_tensors_are_refused_by_name(target: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match="the culprit"):
        veturboio.save_file({"fine": torch.ones(2), "the culprit": value}, target)
    assert list(target.parent.iterdir()) == []


ARGUMENTS = {
    "no dictionary": ([torch.ones(1)], None),
    "none": (None, None),
    "a tensor": (torch.ones(1), None),
    "a number as a name": ({1: torch.ones(1)}, None),
    "bytes as a name": ({b"a": torch.ones(1)}, None),
    "none as a name": ({None: torch.ones(1)}, None),
    "a lone surrogate in a name": ({"\ud800": torch.ones(1)}, None),
    "the reserved name": ({"__metadata__": torch.ones(1)}, None),
    "metadata of numbers": ({"a": torch.ones(1)}, {"epoch": 3}),
    "metadata of none": ({"a": torch.ones(1)}, {"note": None}),
    "metadata with a number as key": ({"a": torch.ones(1)}, {1: "x"}),
    "metadata as a string": ({"a": torch.ones(1)}, "ab"),
    "a lone surrogate in the metadata": ({"a": torch.ones(1)}, {"k": "\udfff"}),
}


@pytest.mark.parametrize(("state", "metadata"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_the_wrong_kind(target: Path, state: object, metadata: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        veturboio.save_file(state, target, metadata=metadata)
    assert list(target.parent.iterdir()) == []


def test_header_over_the_limit(target: Path) -> None:
    with pytest.raises(ValueError, match="100000000"):
        veturboio.save_file({"a": torch.ones(1)}, target, metadata={"k": "v" * 100_000_000})
    assert list(target.parent.iterdir()) == []


SIZES = {"bytes": 2**59, "bits": 2**61, "elements": 2**62}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_sizes_that_overflow(target: Path, size: int) -> None:
    """An expanded scalar claims more bytes than a number can count."""
    with pytest.raises((ValueError, OSError), match="the giant"):
        veturboio.save_file({"the giant": torch.ones(1).expand(size)}, target)
    with pytest.raises((ValueError, OSError)):
        state = {name: torch.ones(1).expand(2**57) for name in "abcdefghijklmnopq"}
        veturboio.save_file(state, target)
    assert list(target.parent.iterdir()) == []


def test_a_loaded_dictionary_is_saved_at_its_own_size(target: Path, tmp_path: Path) -> None:
    state = {f"{i}": random_tensor(torch.float16, 64, i + 1, seed=i) for i in range(20)}
    veturboio.save_file(state, target)
    loaded = veturboio.load(target)
    ours, theirs, torchs = tmp_path / "ours", tmp_path / "theirs", tmp_path / "torchs"
    veturboio.save_file(loaded, ours)
    save_file(loaded, theirs)
    torch.save(loaded, torchs)
    assert ours.read_bytes() == theirs.read_bytes() == target.read_bytes()
    assert torchs.stat().st_size < target.stat().st_size + 20 * 1024
    assert_same(torch.load(torchs, weights_only=True), state)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("megabytes", [1, 9, 70])
def test_sizes_that_are_written_in_pieces(target: Path, megabytes: int, fast: bool) -> None:
    state = {
        "wide": random_tensor(torch.int32, megabytes * 2**18 - 1),
        "bytes": random_tensor(torch.uint8, 3),
        "crooked": random_tensor(torch.int16, 1023, megabytes).t(),
        "last": random_tensor(torch.bool, megabytes),
    }
    veturboio.save_file(state, target, enable_fast_mode=fast)
    assert_same(veturboio.load(target), state)
    assert_same(load_file(target), state)


def test_tensors_changed_after_the_save_stay_as_they_were(target: Path) -> None:
    tensor = torch.ones(2**20)
    veturboio.save_file({"a": tensor}, target)
    tensor.zero_()
    assert veturboio.load(target)["a"].sum() == 2**20
    assert same(load_file(target)["a"], torch.ones(2**20))


def test_large_files_have_their_bytes_wherever_they_lie_in_memory(tmp_path: Path) -> None:
    # Past the page cache, in pages that tensors share.
    generator = torch.Generator().manual_seed(5)
    pool = torch.randint(0, 256, (90 << 20,), dtype=torch.uint8, generator=generator)
    assert pool.data_ptr() % 64 == 0
    rest = -pool.data_ptr() % 512
    sizes = [9 << 20, 1, 4096, (20 << 20) + 8, 300 << 10, 511, 24 << 20, (12 << 20) - 24]
    offsets = [rest + 64, 17, rest + 8, rest + 64, rest, 3, rest + 40, rest + 448]
    state: dict[str, torch.Tensor] = {}
    for index, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        state[f"{index}"] = pool[offset : offset + size].clone() if index % 2 else pool[:size] + 1
    base = rest + 64
    for index, size in enumerate(sizes):  # side by side in memory as in the file, and not quite
        state[f"view.{index}"] = pool[base : base + size]
        base += size + (64 if index % 3 == 0 else 0)
    path = tmp_path / "large.safetensors"
    for threads in (1, 4):
        torch.ops.veturboio.save(state, str(path), num_thread=threads)
        loaded = load_file(path)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
