"""Tensors that share memory: refused, or written once under an alias, or written in full."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from attacks.builder import file, tensor
from probe import assert_same, bits, header_of
from safetensors.torch import load_file, load_model
from safetensors.torch import save_model as reference_save_model

import veturboio

BASE = torch.arange(24.0)
SQUARE = torch.arange(9.0).reshape(3, 3)
COMPLEX = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1)


def share(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()


#: What stores tensors that share memory each in full.
CLONED = {"force_save_shared_tensor": True, "force_clone_shared_tensor": True}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


SHARING = {
    "the same object": (BASE, BASE),
    "the same view twice": (BASE.view(4, 6), BASE.view(4, 6)),
    "two shapes of one memory": (BASE.view(4, 6), BASE.view(6, 4)),
    "transposed square": (SQUARE, SQUARE.t()),
    "whole and head": (BASE, BASE[:5]),
    "whole and tail": (BASE, BASE[20:]),
    "whole and middle": (BASE, BASE[7:9]),
    "overlapping halves": (BASE[:13], BASE[11:]),
    "another dtype": (BASE, BASE.view(torch.int32)),
    "another width": (BASE, BASE.view(torch.uint8)),
    "conjugate": (COMPLEX, COMPLEX.conj()),
    "negative": (COMPLEX.imag, COMPLEX.conj().imag),
    "real part": (COMPLEX, COMPLEX.real),
    "expanded": (BASE[:3], BASE[:3].expand(4, 3)),
    "one element": (BASE, BASE[3]),
    "detached": (torch.nn.Parameter(BASE.clone()), None),
}
SHARING["detached"] = (SHARING["detached"][0], SHARING["detached"][0].detach())


@pytest.fixture(params=SHARING.values(), ids=SHARING)
def pair(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    one, two = request.param
    return {"solo": torch.ones(2), "one": one, "two": two}


@pytest.mark.parametrize("clone", [False, True])
def test_refused_with_their_names(target: Path, pair: dict[str, torch.Tensor], clone: bool) -> None:
    """force_clone_shared_tensor says how they are to be saved, not that they are."""
    with pytest.raises(ValueError, match=r"one.*two|two.*one") as refusal:
        veturboio.save_file(pair, target, force_clone_shared_tensor=clone)
    assert "solo" not in str(refusal.value)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("force", [{"force_save_shared_tensor": True}, CLONED])
def test_forced_they_all_come_back_right(
    target: Path, pair: dict[str, torch.Tensor], force: dict[str, bool]
) -> None:
    before = {name: (value, bits(value)) for name, value in pair.items()}
    veturboio.save_file(pair, target, **force)
    loaded = veturboio.load(target)
    assert sorted(loaded) == ["one", "solo", "two"]
    for name, (value, raw) in before.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert bits(loaded[name]) == raw
        assert pair[name] is value
        assert bits(value) == raw
    assert list(pair) == ["solo", "one", "two"]


def test_cloned_they_are_whole_tensors_for_every_reader(
    target: Path, pair: dict[str, torch.Tensor]
) -> None:
    veturboio.save_file(pair, target, **CLONED)
    assert "__metadata__" not in header_of(target)
    assert_same(load_file(target), veturboio.load(target))
    loaded = veturboio.load(target)
    assert not share(loaded["one"], loaded["two"])


@pytest.mark.parametrize("modes", [{"enable_fast_mode": True}, {"enable_fast_mode": False}])
def test_identical_views_are_written_once_and_come_back_as_one(target: Path, modes: dict) -> None:
    weight = torch.rand(100, 10)
    state = {"embed": weight, "head": weight, "third": weight.view(100, 10), "other": BASE}
    veturboio.save_file(state, target, force_save_shared_tensor=True)
    header = header_of(target)
    written = [name for name in header if name != "__metadata__"]
    assert len(written) == 2
    (kept,) = set(written) - {"other"}
    removed = {"embed", "head", "third"} - {kept}
    assert all(header["__metadata__"][name] == kept for name in removed)

    loaded = veturboio.load(target, **modes)
    assert_same(loaded, state)
    tied = [loaded[name] for name in ("embed", "head", "third")]
    assert all(share(one, two) for one, two in pairwise(tied))
    tied[0].fill_(5)
    assert all(bool((each == 5).all()) for each in tied)
    assert torch.equal(loaded["other"], BASE)


def test_aliases_on_meta(target: Path) -> None:
    veturboio.save_file({"a": BASE, "b": BASE}, target, force_save_shared_tensor=True)
    loaded = veturboio.load(target, map_location="meta")
    assert {name: value.shape for name, value in loaded.items()} == dict.fromkeys("ab", (24,))


def test_aliases_do_not_show_in_the_metadata(target: Path) -> None:
    state, metadata = {"a": BASE, "b": BASE}, {"format": "pt", "a": "note on a"}
    veturboio.save_file(state, target, force_save_shared_tensor=True, metadata=metadata)
    assert veturboio.metadata(target) == metadata


def test_tied_names_survive_load_and_save(target: Path) -> None:
    veturboio.save_file({"a": BASE, "b": BASE}, target, force_save_shared_tensor=True)
    first = target.read_bytes()
    loaded = veturboio.load(target)
    with pytest.raises(ValueError, match="force_save_shared_tensor"):
        veturboio.save_file(loaded, target)
    veturboio.save_file(loaded, target, force_save_shared_tensor=True)
    assert target.read_bytes() == first


def test_metadata_that_is_in_an_aliass_way(target: Path) -> None:
    """The user's entry under a removed name: both are kept, or it is refused; none is lost."""
    state, metadata = {"a": BASE, "b": BASE}, {"a": "mine", "b": "mine"}
    try:
        veturboio.save_file(state, target, force_save_shared_tensor=True, metadata=metadata)
    except ValueError as error:
        assert "mine" in str(error) or "metadata" in str(error)
        assert list(target.parent.iterdir()) == []
        return
    assert_same(veturboio.load(target), state)
    assert veturboio.metadata(target) == metadata


def test_metadata_invents_no_alias(target: Path) -> None:
    for metadata in (
        {"format": "pt"},
        {"other": "pt", "pt": "pt", "x": "missing", "": "pt"},
        {"pt": "other"},
    ):
        veturboio.save_file({"pt": BASE}, target, metadata=metadata)
        assert list(veturboio.load(target)) == ["pt"]
        assert veturboio.metadata(target) == {**metadata, "format": "pt"}


def test_a_mark_copied_from_another_file_invents_nothing(target: Path, tmp_path: Path) -> None:
    """Whatever marks our aliases, a file that has the mark but not the tensors must not lie."""
    veturboio.save_file({"a": BASE, "b": BASE}, target, force_save_shared_tensor=True)
    metadata = header_of(target)["__metadata__"]
    forged = tmp_path / "forged.safetensors"
    one = tensor("U8", [1], 0, 1)
    for header, names in [
        ({"other": one}, ["other"]),
        ({"a": one, "b": tensor("U8", [1], 1, 2)}, ["a", "b"]),
    ]:
        data = bytes(range(len(header)))
        forged.write_bytes(file({"__metadata__": metadata, **header}, data))
        loaded = veturboio.load(forged)
        assert sorted(loaded) == names
        assert [value.item() for _, value in sorted(loaded.items())] == list(data)


def test_a_mark_that_lies(target: Path, tmp_path: Path) -> None:
    """Marks of every wrong kind, chains and circles: ignored or refused, never a crash."""
    veturboio.save_file({"a": BASE, "b": BASE}, target, force_save_shared_tensor=True)
    metadata = header_of(target)["__metadata__"]
    marks = [key for key in metadata if key not in ("a", "b")]
    lies = ["", "[", "null", "{}", '["a","b","c"]', '["c","d"]', "[1]", '[""]', '["__metadata__"]']
    forged = tmp_path / "forged.safetensors"
    for mark in marks:
        for lie in lies:
            chain = {"b": "a", "c": "d", "d": "c", "e": "b", "__metadata__": "a", "": "zz"}
            header = {"__metadata__": {**chain, mark: lie}, "a": tensor("U8", [1], 0, 1)}
            forged.write_bytes(file(header, b"x"))
            loaded = veturboio.load(forged)
            assert loaded["a"].item() == ord("x")
            assert set(loaded) <= {"a", "b", "e", "__metadata__"}


NOT_SHARING = {
    "two halves": {"a": BASE[:12], "b": BASE[12:]},
    "three pieces out of order": {"a": BASE[16:], "b": BASE[:8], "c": BASE[8:16]},
    "chunks": dict(zip("abcd", BASE.view(4, 6).chunk(4), strict=True)),
    "nothing at all": {"a": torch.empty(0), "b": torch.empty(0), "c": torch.empty(0, 3)},
    "zero-size views": {"a": BASE[3:3], "b": BASE[3:3], "c": BASE},
    "a zero-size view inside": {"a": BASE, "b": BASE.view(4, 6)[2:2]},
    "gaps between": {"a": BASE[:3], "b": BASE[10:12]},
}


@pytest.mark.parametrize("state", NOT_SHARING.values(), ids=NOT_SHARING)
def test_neighbours_in_one_storage_do_not_share(target: Path, state: dict) -> None:
    veturboio.save_file(state, target)
    assert_same(veturboio.load(target), state)
    size = sum(value.nbytes for value in state.values())
    header = int.from_bytes(target.read_bytes()[:8], "little")
    assert target.stat().st_size == 8 + header + size


def test_interleaved_views_are_refused_or_right(target: Path) -> None:
    for state in (
        {"even": BASE[::2], "odd": BASE[1::2]},
        {"left": BASE.view(4, 6)[:, :3], "right": BASE.view(4, 6)[:, 3:]},
    ):
        veturboio.save_file(state, target, force_save_shared_tensor=True)
        assert_same(veturboio.load(target), state)
        try:
            veturboio.save_file(state, target)
        except ValueError as error:
            assert all(name in str(error) for name in state)
        else:
            assert_same(veturboio.load(target), state)


def test_a_view_inside_another_hides_no_third(target: Path) -> None:
    """Sorted by address, the second lies inside the first, the third too, but not the second."""
    state = {"whole": BASE, "head": BASE[:2], "later": BASE[5:7]}
    with pytest.raises(ValueError, match="later"):
        veturboio.save_file(state, target)


def test_groups_are_told_apart(target: Path) -> None:
    one, two = torch.rand(5), torch.rand(5)
    state = {"a": one, "b": two, "c": one, "d": two, "e": torch.rand(5)}
    veturboio.save_file(state, target, force_save_shared_tensor=True)
    loaded = veturboio.load(target)
    assert_same(loaded, state)
    assert share(loaded["a"], loaded["c"])
    assert share(loaded["b"], loaded["d"])
    assert not share(loaded["a"], loaded["b"])


def test_memory_shared_through_numpy(target: Path) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(5.0)
    state = {"a": torch.from_numpy(array), "b": torch.from_numpy(array)}
    veturboio.save_file(state, target, **CLONED)
    assert_same(veturboio.load(target), state)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(1))


def test_save_model_with_tied_weights(target: Path, tmp_path: Path) -> None:
    model, twin, third = Tied(), Tied(), Tied()
    veturboio.save_model(model, target)
    loaded = veturboio.load(target)
    assert share(loaded["embed.weight"], loaded["head.weight"])
    twin.load_state_dict(loaded, strict=True)
    assert torch.equal(twin.head.weight, model.head.weight)
    assert twin.head.weight is twin.embed.weight
    assert load_model(third, target) == (set(), [])
    assert torch.equal(third.head.weight, model.head.weight)
    reference = tmp_path / "reference.safetensors"
    reference_save_model(model, str(reference))
    assert [name for name in header_of(reference) if name != "__metadata__"] == [
        name for name in header_of(target) if name != "__metadata__"
    ]


def test_through_the_operator(target: Path) -> None:
    state = {"a": BASE, "b": BASE}
    for clone in (False, True):
        with pytest.raises(ValueError, match=r"a.*b") as refusal:
            torch.ops.veturboio.save(state, str(target), force_clone_shared_tensor=clone)
        assert "force_save_shared_tensor" in str(refusal.value)
    torch.ops.veturboio.save(state, str(target), force_save_shared_tensor=True)
    loaded = torch.ops.veturboio.load(str(target))
    assert share(loaded["a"], loaded["b"])
    torch.ops.veturboio.save(state, str(target), **CLONED)
    loaded = torch.ops.veturboio.load(str(target))
    assert not share(loaded["a"], loaded["b"])
