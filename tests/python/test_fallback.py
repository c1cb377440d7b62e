"""What only torch.load(weights_only=True) knows loads with every parameter."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.pytorch import program as p
from attacks.pytorch.builder import zipped
from fallback_values import KINDS, C, W, allowed, assert_equal, quantized, value_of
from probe import open_files
from pytorch_files import tensors_by_name

import veturboio

both_formats = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    files = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert open_files() == files


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with allowed(request.param):
        yield request.param


def saved(path: Path, kind: str, new: bool = True) -> tuple[Path, Any]:
    """A file of such a value, and what torch makes of it."""
    torch.save(value_of(kind), path, _use_new_zipfile_serialization=new)
    try:
        return path, torch.load(path, weights_only=True, map_location="cpu")
    except Exception:
        if new:
            raise
        pytest.skip("torch itself cannot read it from the old format")


#: Parameters that change nothing in what is returned.
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no device": {"map_location": None},
    "a device": {"map_location": torch.device("cpu")},
    "devices by name": {"map_location": {"": "cpu", "model": "cpu:0", "w": "cpu"}},
    "devices by location": {"map_location": {"cuda:0": "cpu"}},
    "a function of a name": {"map_location": lambda name: "cpu" if name == "w" else None},
    "a function of a storage": {"map_location": lambda storage, loc: storage},
    "a function of no storage": {"map_location": lambda storage, loc: None},
    "one thread": {"num_thread": 1},
    "no fast mode": {"enable_fast_mode": False},
    "direct": {"use_direct_io": True},
    "mapped": {"way": "map"},
    "read": {"way": "read"},
    "uring": {"way": "uring"},
    "mmap": {"mmap": True},
    "no mmap": {"mmap": False},
    "weights only": {"weights_only": True},
    "one allocation": {"one_allocation": True},
    "progress": {"progress": lambda done, total: None},
    "helper": {"helper": veturboio.init_io_helper()},
}


@both_formats
def test_with_every_parameter(tmp_path: Path, kind: str, new: bool) -> None:
    path, theirs = saved(tmp_path / "model.pt", kind, new)
    for name, options in WAYS.items():
        assert_equal(veturboio.load(path, **options), theirs, name)


@both_formats
def test_from_every_source(tmp_path: Path, kind: str, new: bool) -> None:
    path, theirs = saved(tmp_path / "model.pt", kind, new)
    content = path.read_bytes()
    for source in (os.fsencode(path), content, io.BytesIO(content), f"file://{path}"):
        assert_equal(veturboio.load(source), theirs)
    with path.open("rb") as file:
        assert_equal(veturboio.load(file, names=["w"]), {"w": W})


@both_formats
def test_parts(tmp_path: Path, kind: str, new: bool) -> None:
    path, theirs = saved(tmp_path / "model.pt", kind, new)
    every = tensors_by_name(theirs)
    assert list(veturboio.load(path, names=every)) == list(every)
    loaded = veturboio.load(path, names=["list.1.0", "w", "w"])
    assert_equal(loaded, {"list.1.0": every["list.1.0"], "w": W})
    slices = {"w": (slice(1, 3), slice(-2, None)), "model.n": slice(2, 100)}
    loaded = veturboio.load(path, names=["w", "model.n", "model.p"], slices=slices)
    assert_equal(loaded["w"], W[1:3, -2:])
    assert_equal(loaded["model.n"], torch.arange(2, 5))
    assert loaded["w"].is_contiguous()
    assert loaded["w"].untyped_storage().nbytes() == loaded["w"].nbytes
    assert type(loaded["model.p"]) is torch.Tensor
    assert loaded["model.p"].requires_grad and loaded["model.p"].is_leaf
    loaded["w"].zero_()
    assert list(veturboio.load(path, slices=slices)) == list(every)
    assert torch.equal(veturboio.load(path, names=["w"])["w"], W)


@both_formats
def test_dtype(tmp_path: Path, kind: str, new: bool) -> None:
    path, theirs = saved(tmp_path / "model.pt", kind, new)
    loaded = veturboio.load(path, dtype=torch.bfloat16)
    assert loaded["w"].dtype == loaded["model"]["p"].dtype == torch.bfloat16
    assert torch.equal(loaded["w"], W.to(torch.bfloat16))
    assert isinstance(loaded["model"]["p"], torch.nn.Parameter)
    assert loaded["list"][1][0].dtype == torch.bfloat16
    assert torch.equal(loaded["model"]["n"], torch.arange(5))
    own, its = tensors_by_name(loaded), tensors_by_name(theirs)
    assert list(own) == list(its)
    for name, tensor in its.items():
        is_converted = tensor.dtype.is_floating_point
        assert own[name].dtype == (torch.bfloat16 if is_converted else tensor.dtype), name
        assert own[name].requires_grad == tensor.requires_grad


def test_meta(tmp_path: Path, kind: str) -> None:
    path, _ = saved(tmp_path / "model.pt", kind)
    try:
        torch.load(path, weights_only=True, map_location="meta")
    except Exception:
        with pytest.raises(veturboio.FormatError, match="refuses it too"):
            veturboio.load(path, map_location="meta")
        return
    loaded = veturboio.load(path, map_location="meta")
    assert loaded["w"].is_meta and loaded["w"].shape == W.shape


def test_meta_of_the_old_format(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "model.pt", "Counter", new=False)
    loaded = veturboio.load(path, map_location="meta")
    assert loaded["w"].is_meta and loaded["model"]["p"].is_meta and loaded["list"][1][0].is_meta
    assert loaded["x"] == collections.Counter("aab")


def is_filled(tensor: torch.Tensor) -> bool:
    """Whether a tensor of its kind can be written in place by what a file has."""
    is_dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return is_dense and type(tensor) in PLAIN


def test_filling(tmp_path: Path, kind: str) -> None:
    path, theirs = saved(tmp_path / "model.pt", kind)
    every = tensors_by_name(theirs)
    others = tensors_by_name(value_of(kind))
    targets = {
        name: others[name] if tensor.is_quantized else tensor.detach().clone()
        for name, tensor in every.items()
    }
    dense = {name for name, tensor in every.items() if is_filled(tensor)}
    for name in dense:
        if not targets[name].is_quantized:
            targets[name] = targets[name].resolve_conj().resolve_neg().contiguous()
            targets[name].untyped_storage().fill_(0)
    if dense != every.keys():
        with pytest.raises(veturboio.ArgumentError, match='tensor "x'):
            veturboio.load(path, state_dict=targets)
        assert not targets["w"].any()
        return
    if any(not target.is_contiguous() for target in targets.values()):
        with pytest.raises(veturboio.ArgumentError, match="not contiguous"):
            veturboio.load(path, state_dict=targets)
        return
    assert veturboio.load(path, state_dict=targets)["w"] is targets["w"]
    for name, tensor in every.items():
        if tensor.is_quantized:
            assert repr(targets[name]) == repr(tensor), name
        elif str(tensor.dtype).startswith("torch.bits"):
            own, its = targets[name].untyped_storage(), tensor.untyped_storage()
            assert own.tolist() == its.tolist()
        else:
            assert torch.equal(targets[name], tensor), name


PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.pt", "Counter")[0]


NAMES = {"w": W, "model.p": torch.ones(3), "model.n": torch.arange(5)}
NAMES |= {"list.0": torch.full((2, 2), 0.5), "list.1.0": torch.ones(1, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": None}, 'the file\'s tensor "w" is not in state_dict'),
        ({"more": torch.ones(1)}, 'tensor "more": is in state_dict but not in the file'),
        ({"w": torch.zeros(6, 4).half()}, 'tensor "w": allocated tensor dtype not match'),
        ({"w": torch.zeros(5, 4)}, 'tensor "w": allocated tensor size not enough: 80 bytes'),
        ({"w": torch.zeros(4, 6).t()}, 'tensor "w": allocated tensor not contiguous'),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    plain: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    targets = {name: torch.zeros_like(tensor) for name, tensor in NAMES.items()}
    asked = {name: target for name, target in {**targets, **change}.items() if target is not None}
    with pytest.raises(veturboio.ArgumentError) as refused:
        veturboio.load(plain, state_dict=asked)
    assert str(refused.value).startswith(f"load {plain}: ")
    assert words in str(refused.value)
    assert all(not target.any() for target in targets.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["wieght"]}, 'the file has no tensor "wieght", which is asked for'),
        ({"slices": {"wieght": slice(1)}}, 'the file has no tensor "wieght", which is asked for'),
        ({"names": ["w"], "slices": {"model.p": slice(1)}}, "which is not among names"),
        ({"slices": {"model.n": (slice(1), slice(1))}}, 'tensor "model.n": has 1 dimensions'),
        ({"map_location": {"w": "cpu"}}, "map_location names no device for it"),
        ({"map_location": {"": "meta"}}, "the meta device is for all tensors or none"),
        ({"dtype": torch.int8}, "dtype must be one of floating point"),
        ({"num_thread": 0}, "num_thread must be at least 1"),
        ({"weights_only": False}, "weights_only=False"),
        ({"mmap": True, "way": "direct"}, "mmap=True cannot be combined with 'direct'"),
    ],
)
def test_what_is_refused_in_the_words_of_the_core(
    plain: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    torch.save(NAMES, tmp_path / "known.pt")
    for path in (plain, tmp_path / "known.pt"):
        with pytest.raises(ValueError, match=r".") as refused:
            veturboio.load(path, **options)
        assert words in str(refused.value)


def test_a_device_that_is_not_there_is_no_fault_of_the_file(plain: Path) -> None:
    for where in ("xpu:0", {"": "xpu:0"}, {"cpu": "xpu:0"}, lambda _name: "xpu:0"):
        with pytest.raises(RuntimeError) as refused:
            veturboio.load(plain, map_location=where)
        assert not isinstance(refused.value, ValueError)


def test_what_a_callers_function_raises_is_its_own(plain: Path) -> None:
    def storages(_storage: torch.UntypedStorage, _location: str) -> None:
        raise KeyError("mine")

    def names(_name: str) -> None:
        raise KeyError("mine")

    for function in (storages, names):
        with pytest.raises(KeyError, match="mine"):
            veturboio.load(plain, map_location=function)
    with pytest.raises(TypeError, match="returned no storage but a int"):
        veturboio.load(plain, map_location=lambda storage, location: 5)


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    inner = {"again": base}
    value = {
        "c": collections.Counter(),
        "base": base,
        "tail": base[5:],
        "turned": base.view(3, 4).t(),
    }
    value |= {"one": inner, "other": [inner, (base, {"deep": base})]}
    torch.save(value, tmp_path / "model.pt")
    for options in (
        {},
        {"dtype": torch.half},
        {"map_location": {"": "cpu"}},
        {"way": "map", "dtype": torch.float64},
    ):
        loaded = veturboio.load(tmp_path / "model.pt", **options)
        assert loaded["one"] is loaded["other"][0]
        assert loaded["base"] is loaded["one"]["again"] is loaded["other"][1][0]
        assert loaded["base"] is loaded["other"][1][1]["deep"]
        loaded["base"].fill_(7)
        assert loaded["tail"].tolist() == [7.0] * 7
        assert loaded["turned"].shape == (4, 3) and loaded["turned"].sum() == 84
    part = veturboio.load(tmp_path / "model.pt", names=["tail", "base", "one.again"])
    part["base"].fill_(3)
    assert part["tail"].tolist() == [3.0] * 7 and part["one.again"] is part["base"]


def test_tensors_where_no_name_leads(tmp_path: Path) -> None:
    """In attributes, tuples, keys and sets they are converted like all others."""
    hidden = {(1, 2): torch.ones(2), "args": argparse.Namespace(t=torch.ones(3))}
    hidden |= {"tuple": (torch.ones(1), [(torch.ones(4),)]), None: torch.ones(1)}
    ordered = collections.OrderedDict(a=torch.ones(2))
    ordered.kept = {"b": torch.ones(2)}  # type: ignore[attr-defined]
    torch.save({"c": collections.Counter(), "h": hidden, "o": ordered}, tmp_path / "model.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = veturboio.load(tmp_path / "model.pt", dtype=torch.half)
    found = [loaded["h"][1, 2], loaded["h"]["args"].t, loaded["h"]["tuple"][0], loaded["h"][None]]
    found += [loaded["h"]["tuple"][1][0][0], loaded["o"]["a"], loaded["o"].kept["b"]]
    assert {tensor.dtype for tensor in found} == {torch.half}
    assert type(loaded["o"]) is collections.OrderedDict


def test_names_of_what_has_none(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(C.conj(), path)
    assert_equal(veturboio.load(path), C.conj())
    with pytest.raises(veturboio.FormatError, match="one tensor without a name"):
        veturboio.load(path, names=["a"])
    torch.save({"a.b": C.conj(), "a": {"b": torch.ones(1)}}, path)
    assert_equal(veturboio.load(path)["a.b"], C.conj())
    with pytest.raises(veturboio.FormatError, match=r'"a\.b": two tensors have this name'):
        veturboio.load(path, names=["a.b"])
    own: list[Any] = [C.conj()]
    own.append(own)
    torch.save({"own": own, "t": torch.ones(2)}, path)
    assert torch.equal(veturboio.load(path)["t"], torch.ones(2))
    assert veturboio.load(path, dtype=torch.half)["t"].dtype == torch.half
    with pytest.raises(veturboio.FormatError, match="a container holds itself"):
        veturboio.load(path, names=["t"])
    torch.save({True: torch.ones(1), 2**70: torch.ones(1), -3: C.conj()}, path)
    assert list(veturboio.load(path, slices={"-3": slice(1)})) == ["-3"]


@pytest.mark.parametrize("elements", [1, -1, 1 << 62])
@pytest.mark.parametrize("is_first", [True, False])
def test_no_fallback_for_storages_that_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int, is_first: bool
) -> None:
    """A name that only torch knows does not excuse two lengths of one storage, used or not."""
    unread = p.storage(elements=elements) + b"0"
    value = p.mapping(w=p.tensor(p.storage()), odd=p.name("torch", "per_tensor_affine"))
    path = tmp_path / "model.pt"
    path.write_bytes(zipped(unread + value if is_first else value + unread, {"0": bytes(16)}))

    def load(*_: Any, **__: Any) -> None:
        pytest.fail("torch was asked")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(veturboio.FormatError, match='storage "0"'):
        veturboio.load(path)


@pytest.mark.parametrize("mode", [torch.device("meta"), contextlib.nullcontext()])
def test_the_callers_device_is_not_asked(tmp_path: Path, mode: Any) -> None:
    """Neither where torch reads, nor for what is content or a part."""
    path = tmp_path / "model.pt"
    torch.save({"w": W, "q": quantized(torch.quint8)}, path)
    for options in (
        {},
        {"names": ["w"]},
        {"names": ["w"], "slices": {"w": slice(0, 1)}},
        {"dtype": torch.half},
        {"map_location": lambda _: "cpu"},
        {"map_location": {"cpu": "cpu"}},
    ):
        for file in (path, io.BytesIO(path.read_bytes())):
            with mode:
                loaded = veturboio.load(file, **options)["w"]
            assert loaded.device.type == "cpu"
            assert torch.equal(loaded, W[: len(loaded)].to(loaded.dtype))
