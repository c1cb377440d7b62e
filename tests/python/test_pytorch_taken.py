"""PyTorch files of unusual make that ``torch.load(weights_only=True)`` takes: so does ``load``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.pytorch import program as p
from attacks.pytorch.archive import Entry, archive
from attacks.pytorch.builder import FOUR, counted, entries, good_pickle, legacy, zipped
from pytorch_files import load_by_torch
from values import assert_alike

import veturboio
from veturboio.errors import UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore:.*trying torch.load")


def _stored_twice(first: str, then: str, is_new: bool) -> bytes:
    """Two tensors of four elements in one storage of 16 bytes, which has two classes."""
    value = p.mapping(
        **{kind: p.tensor(p.storage(kind, legacy=not is_new)) for kind in (first, then)}
    )
    return zipped(value) if is_new else legacy(value, counted(FOUR, 4))


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(
    "kinds", [("FloatStorage", "IntStorage"), ("IntStorage", "FloatStorage")], ids="-".join
)
def test_a_storage_has_the_dtype_that_is_named_first(
    tmp_path: Path, kinds: tuple[str, str], is_new: bool
) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(_stored_twice(*kinds, is_new))
    loaded = veturboio.load(file)
    assert_alike(loaded, load_by_torch(file))
    assert loaded[kinds[0]].data_ptr() == loaded[kinds[1]].data_ptr()
    for how in ({"names": [kinds[1]]}, {"slices": {kinds[1]: slice(1, 3)}}, {"skip_unknown": True}):
        some: Any = veturboio.load(file, **how)
        assert some[kinds[1]].dtype is loaded[kinds[0]].dtype


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "old"])
def test_a_storage_of_two_lengths_is_refused(tmp_path: Path, is_new: bool) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(_stored_twice("FloatStorage", "DoubleStorage", is_new))
    with pytest.raises(veturboio.FormatError, match="described in two ways") as refused:
        veturboio.load(file)
    assert not isinstance(refused.value, UnknownNameError)


ORDERED = p.name("collections", "OrderedDict")
UNUSUAL = {
    "shape-a-list": p.tensor(p.storage(), shape=p.listed(p.integer(4))),
    "shape-a-size": p.tensor(
        p.storage(), shape=p.call(p.name("torch", "Size"), p.items(p.integer(4)))
    ),
    "parameter-of-a-parameter": p.call(
        p.name("torch._utils", "_rebuild_parameter"),
        p.call(
            p.name("torch._utils", "_rebuild_parameter"),
            p.tensor(p.storage()),
            p.FALSE,
            p.ordered(),
        ),
        p.TRUE,
        p.ordered(),
    ),
    "complex-of-integers": p.call(p.name("builtins", "complex"), p.integer(1), p.integer(2)),
    "size-of-a-list": p.call(p.name("torch", "Size"), p.listed(p.integer(1))),
    "attributes-in-an-ordered-dict": p.ordered() + ORDERED + p.EMPTY_TUPLE + b"R" + b"b",
    "letters-as-utf-8": p.call(p.name("_codecs", "encode"), p.text("é"), p.text("utf-8")),
    "bytearray-of-letters": p.call(p.name("builtins", "bytearray"), p.text("é"), p.text("latin-1")),
    "bytearray-of-numbers": p.call(p.name("builtins", "bytearray"), p.listed(p.integer(7))),
    "set-of-a-string": p.call(p.name("builtins", "set"), p.text("ab")),
    "device-by-number": p.call(p.name("torch", "device"), p.text("cpu"), p.integer(0)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_calls_with_unusual_arguments(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(zipped(p.mapping(value=UNUSUAL[name], a=p.tensor(p.storage()))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = load_by_torch(file)
        ours = veturboio.load(file)
    assert type(ours["value"]) is type(theirs["value"])
    assert_alike(ours, theirs, storages=False)


def test_a_bytearray_of_a_length_is_refused(tmp_path: Path) -> None:
    """Nobody is asked to make zeros that no byte of the file stands for."""
    file = tmp_path / "a.pt"
    zeros = p.call(p.name("builtins", "bytearray"), p.integer(2**45))
    file.write_bytes(zipped(p.mapping(value=zeros)))
    with pytest.raises(veturboio.FormatError, match="is given a length"):
        veturboio.load(file)


def test_the_version_where_packages_have_it(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    found = [entry for entry in entries(good_pickle()) if not entry.name.endswith("version")]
    file.write_bytes(archive([*found, Entry("archive/.data/version", b"3\n")]))
    assert_alike(veturboio.load(file), load_by_torch(file))


class Named:
    """An instance that is made with arguments by name."""

    def __new__(cls, **_: Any) -> Named:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        return (), {"inner": torch.ones(3)}


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "old"])
def test_skip_unknown_reads_every_way_to_make_an_object(
    tmp_path: Path, protocol: int, is_new: bool
) -> None:
    file = tmp_path / "a.pt"
    weight = torch.arange(6.0)
    state = {
        "w": weight,
        "named": Named(),
        "tagged": torch.arange(4.0).as_subclass(Tagged),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    }
    torch.save(state, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_new)
    loaded: Any = veturboio.load(file, skip_unknown=True)
    assert torch.equal(loaded["w"], weight)
    assert type(loaded["named"]) is veturboio.Unknown
    assert type(loaded["tagged"]) is torch.Tensor
    assert torch.equal(loaded["tagged"], torch.arange(4.0))
    some = veturboio.load(file, skip_unknown=True, names=["w", "tagged"])
    assert torch.equal(some["tagged"], torch.arange(4.0))
