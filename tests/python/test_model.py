"""``save_model`` and ``load_model``: modules with tied weights, buffers and odd dtypes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import torch
from probe import bits, same
from safetensors.torch import load_model as reference_load_model
from safetensors.torch import save_file, save_model

import veturboio


class Tied(torch.nn.Module):
    """Ties its head to its embedding, and keeps a buffer and a weight in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.small = torch.nn.Linear(5, 3, dtype=torch.bfloat16)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(7))


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = torch.nn.Parameter(torch.rand(11, 5))


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert same(value, theirs[name]), name


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_round_trip_keeps_the_tie(target: Path) -> None:
    model, twin = Tied(), Tied()
    model.norm.running_mean.copy_(torch.arange(5.0))
    veturboio.save_model(model, target)
    before = twin.embed.weight
    assert veturboio.load_model(twin, target) == ([], [])
    assert_equal(twin, model)
    assert twin.small.weight.dtype == torch.bfloat16
    assert twin.embed.weight is before
    assert twin.head.weight is twin.embed.weight
    with torch.no_grad():
        twin.embed.weight.fill_(3)
    assert bool((twin.head.weight == 3).all())
    assert not torch.equal(veturboio.load(target)["head.weight"], twin.head.weight)


def test_files_of_the_reference(target: Path) -> None:
    """They hold a tied weight under one of its names, and the others in their metadata."""
    model, twin, untied = Tied(), Tied(), Untied()
    save_model(model, str(target))
    loaded = veturboio.load(target)
    assert loaded["head.weight"] is loaded["embed.weight"]
    assert veturboio.load_model(twin, target) == ([], [])
    assert_equal(twin, model)
    assert veturboio.load_model(untied, target) == ([], [])
    assert_equal(untied, model)


def test_the_reference_reads_ours(target: Path) -> None:
    model, twin = Tied(), Tied()
    veturboio.save_model(model, target)
    missing, unexpected = reference_load_model(twin, target)
    assert not missing
    assert not unexpected
    assert_equal(twin, model)


def test_a_name_that_only_the_file_ties_is_missing(target: Path) -> None:
    """Where the module does not tie it, nothing has written to it."""
    state = Tied().state_dict()
    del state["head.weight"]
    save_file(state, target)
    with pytest.raises(RuntimeError, match=r"Missing key.*\"head\.weight\""):
        veturboio.load_model(Untied(), target)
    veturboio.save_model(Tied(), target)  # whose aliases `load` restores
    assert veturboio.load_model(Untied(), target) == ([], [])


class Views(torch.nn.Module):
    """Buffers that lie in one another's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.rand(4, 6))
        self.register_buffer("again", self.whole.detach())
        self.register_buffer("turned", self.whole.t())
        self.register_buffer("part", self.whole[1:3])
        self.register_buffer("columns", self.whole[:, ::2])
        self.register_buffer("apart", torch.rand(24)[2:8])


@pytest.mark.parametrize(
    ("saved", "missing"),
    [
        ({"whole", "apart"}, []),
        ({"again", "apart"}, []),
        ({"turned", "apart"}, []),
        ({"whole"}, ["apart"]),
        ({"part", "apart"}, ["again", "columns", "turned", "whole"]),
        ({"columns", "apart"}, ["again", "part", "turned", "whole"]),
    ],
)
def test_views_that_were_written_through_others(
    target: Path, saved: set[str], missing: list[str]
) -> None:
    """A view is loaded when all of its memory is; not when its neighbours are."""
    views = Views()
    state = {name: torch.rand(value.shape) for name, value in views.state_dict().items()}
    save_file({name: state[name] for name in saved}, target)
    assert veturboio.load_model(views, target, strict=False) == (missing, [])
    for name in saved:
        assert bits(getattr(views, name)) == bits(state[name])


def test_views_that_the_reference_removed(target: Path) -> None:
    """It records a part of a tensor as an alias of the whole, and only the module knows better."""

    class Parts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("whole", torch.rand(4, 6))
            self.register_buffer("part", self.whole[1:3])

    model, twin = Parts(), Parts()
    save_model(model, str(target))
    assert veturboio.metadata(target)["part"] == "whole"
    assert veturboio.load_model(twin, target) == ([], [])
    assert_equal(twin, model)


def test_an_alias_that_the_module_has_no_name_for(target: Path, tmp_path: Path) -> None:
    """It is no tensor of the file; a PyTorch file in which two names hold one tensor has both."""
    weight, bias = torch.rand(3, 2), torch.rand(3)
    save_file({"weight": weight, "bias": bias}, target, metadata={"source": "weight"})
    model = torch.nn.Linear(2, 3)
    assert veturboio.load_model(model, target) == ([], [])
    assert veturboio.load_model(model, BytesIO(target.read_bytes())) == ([], [])
    assert bits(model.weight) == bits(weight)
    state = {"weight": weight, "bias": bias, "extra": weight}
    veturboio.save_file(state, target, force_save_shared_tensor=True)
    assert veturboio.load_model(model, target) == ([], [])
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"extra\""):
        veturboio.load_model(model, tmp_path / "model.pt")


def test_strict_names_what_is_missing_and_unexpected(target: Path) -> None:
    model = torch.nn.Linear(2, 3)
    weight = torch.rand(3, 2)
    veturboio.save_file({"weight": weight, "zeta": weight + 1, "extra": weight + 2}, target)
    for strict in ({}, {"strict": True}):
        with pytest.raises(RuntimeError) as refusal:
            veturboio.load_model(model, target, **strict)
        with pytest.raises(RuntimeError) as theirs:
            reference_load_model(model, target)
        assert str(refusal.value) == str(theirs.value)
        assert '"bias"' in str(refusal.value)
        assert '"extra", "zeta"' in str(refusal.value)
    missing, unexpected = veturboio.load_model(model, target, strict=False)
    assert (missing, sorted(unexpected)) == (["bias"], ["extra", "zeta"])
    assert torch.equal(model.weight, weight)


def test_another_shape_is_refused_even_if_not_strict(target: Path) -> None:
    veturboio.save_file({"weight": torch.ones(9, 9), "bias": torch.ones(3)}, target)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"weight.*\[9, 9\]"):
            veturboio.load_model(torch.nn.Linear(2, 3), target, strict=strict)


@pytest.mark.parametrize("name", ["map_location", "device"])
@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_the_device_to_read_to(target: Path, name: str, device: object) -> None:
    """On meta there are no values that could be copied into the module."""
    model = torch.nn.Linear(2, 3)
    veturboio.save_model(model, target)
    veturboio.load_model(model, target, **{name: "cpu"})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        veturboio.load_model(model, target, **{name: device})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        veturboio.load_model(model, target, True, device)
    with pytest.raises(TypeError, match=r"map_location.*device"):
        veturboio.load_model(model, target, map_location="cpu", device="cpu")


def test_a_module_on_meta_knows_its_ties(target: Path) -> None:
    """There, tied weights have no address in common, but are one object."""
    state = Tied().state_dict()
    del state["head.weight"]
    save_file(state, target)
    with torch.device("meta"):
        tied, untied = Tied(), Untied()
    assert veturboio.load_model(tied, target, map_location="meta", strict=False) == ([], [])
    missing, _ = veturboio.load_model(untied, target, map_location="meta", strict=False)
    assert missing == ["head.weight"]


def test_a_pytorch_file(tmp_path: Path) -> None:
    model, twin = Tied(), Tied()
    veturboio.save_pt(model.state_dict(), tmp_path / "model.pt")
    assert veturboio.load_model(twin, tmp_path / "model.pt") == ([], [])
    assert_equal(twin, model)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(TypeError, match="dict"):
        veturboio.load_model(twin, tmp_path / "list.pt")


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        veturboio.load_model(Tied(), tmp_path / "missing")
    (tmp_path / "text").write_bytes(b"no checkpoint at all")
    with pytest.raises(veturboio.FormatError):
        veturboio.load_model(Tied(), tmp_path / "text")
