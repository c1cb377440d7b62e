"""``slices`` take the indices that torch takes, or say what else to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from circumstances import needs_disk
from indices import some_index
from probe import read_from_disk, same

import veturboio

State = dict[str, torch.Tensor]


def old(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


REFUSED = [
    (None, "None"),
    (True, "bool"),
    (numpy.True_, "bool"),
    (torch.tensor(True), "Tensor"),
    ([0], "list"),
    ([slice(1)], "list"),
    (range(2), "range"),
    (1.0, "float"),
    (numpy.array([0]), "ndarray"),
    (torch.tensor([0]), "Tensor"),
    (torch.tensor(1.0), "Tensor"),
    ("0", "str"),
    ((slice(1), None), "None"),
    ((0, [0]), "list"),
    ((..., torch.tensor([0, 1])), "Tensor"),
    ((torch.tensor([0, 1]), ...), "Tensor"),
]


@pytest.mark.parametrize(("index", "words"), REFUSED, ids=lambda it: repr(it)[:30])
def test_what_is_no_range_is_refused_with_a_way_out(
    tmp_path: Path, index: object, words: str
) -> None:
    veturboio.save_file({"weight": torch.ones(3, 4)}, tmp_path / "model")
    for act in (veturboio.load, veturboio.explain):
        pattern = f"model: .*'weight'.* has .*{words}.*: load it whole and index it"
        with pytest.raises(TypeError, match=pattern):
            act(tmp_path / "model", slices={"weight": index})


@pytest.mark.parametrize("write", [torch.save, old], ids=["zip", "old"])
def test_parts_of_views_are_what_torch_makes_of_them(
    tmp_path: Path, write: Callable[[State, Path], None]
) -> None:
    """Transposed, stepped, expanded and shifted views of one storage."""
    for seed in range(40):
        chance = random.Random(seed)
        base = torch.arange(7 * 6 * 5).view(7, 6, 5)
        views = {
            "turned": base.permute(chance.sample(range(3), 3)),
            "stepped": base[chance.randrange(3) :: 2, ::3],
            "wide": base[:, :1].expand(7, 4, 5),
            "shifted": base[chance.randrange(1, 7) :].transpose(0, 2),
        }
        write(views, tmp_path / "model")
        slices = {name: some_index(chance, view.shape) for name, view in views.items()}
        loaded = veturboio.load(tmp_path / "model", slices=slices)
        for name, view in views.items():
            assert same(loaded[name], view[slices[name]]), (seed, name, slices[name])
            assert loaded[name].is_contiguous()


def test_only_the_rows_of_a_step_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    veturboio.save_file({"a": torch.arange(2.0**22).view(64, -1)}, path)  # rows of 256 KiB
    needs_disk(path)
    slices = {"a": slice(1, None, 8)}
    read = read_from_disk(lambda: veturboio.load(path, slices=slices, way="direct"))
    assert read <= 2**21 + 2**20
