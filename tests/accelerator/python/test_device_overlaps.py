"""Tensors that share bytes of a file: tied weights of which overlapping slices are wanted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from checkpoints import State, assert_on, host
from probe import assert_same

import veturboio

#: Elements of the tensors, so that parts travel alone and together, and through several segments.
SIZES = [7, 300, 5_000, 30_000, 3_000_000]


def tied(path: Path, state: State, names: int) -> State:
    """Saves each tensor under several names, which is stored once."""
    whole = {f"{name}.{at}": value for name, value in state.items() for at in range(names)}
    veturboio.save_file(whole, path, force_save_shared_tensor=True)
    return whole


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    "slices",
    [
        {"a.0": slice(0, 5000), "a.1": slice(100, 200)},  # the first to begin is the last to end
        {"a.0": slice(0, 5000), "a.1": slice(0, 1)},
        {"a.0": slice(4000, 5000), "a.1": slice(0, 4999), "a.2": slice(1, 2)},
    ],
)
def test_the_last_part_need_not_end_last(
    tmp_path: Path, slices: dict[str, slice], pinned: bool
) -> None:
    whole = tied(tmp_path / "model", {"a": torch.arange(5000)}, names=3)
    wanted = {name: whole[name][cut] for name, cut in slices.items()}
    for dtype in (None, torch.float64):
        loaded = veturboio.load(
            tmp_path / "model",
            "sim:0",
            names=list(slices),
            slices=slices,
            use_pinmem=pinned,
            dtype=dtype,
        )
        assert_on("sim:0", loaded, wanted)


def test_any_slices_of_tied_weights(tmp_path: Path) -> None:
    chance = random.Random(14)
    state = {f"{at}": torch.arange(size).remainder(241).float() for at, size in enumerate(SIZES)}
    whole = tied(tmp_path / "model", state, names=4)
    for _ in range(60):
        names = [name for name in whole if chance.random() < 0.7]
        slices = {}
        for name in names:
            if chance.random() < 0.9:
                ends = sorted(chance.randrange(len(whole[name]) + 1) for _ in range(2))
                slices[name] = slice(*ends)
        dtype = chance.choice([None, None, torch.float16, torch.float64])
        wanted = {name: whole[name][slices.get(name, slice(None))] for name in names}
        devices = {"": "sim:0", **{name: "sim:1" for name in names if chance.random() < 0.3}}
        loaded = veturboio.load(
            tmp_path / "model",
            devices if chance.random() < 0.5 else "sim:0",
            names=names,
            slices=slices,
            num_thread=chance.choice([1, 2, 5]),
            use_pinmem=chance.random() < 0.7,
            way=chance.choice(["read", "direct", "map"]),
            dtype=dtype,
        )
        assert_same(
            host(loaded),
            {name: value if dtype is None else value.to(dtype) for name, value in wanted.items()},
        )
