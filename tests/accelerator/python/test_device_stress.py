"""Loads and saves at random, from several threads, on devices that are slow and fail.

``VETURBOIO_STRESS_LOADS`` sets how many there are, and ``VETURBOIO_STRESS_SEED`` which.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accelerator
import pytest
import torch
from accelerator import FAULTS, configured, stats
from checkpoints import MIB, SEGMENT, STATE, State, at_once, host, in_use, saved, with_odd_header
from probe import same

import veturboio

LOADS = int(os.environ.get("VETURBOIO_STRESS_LOADS", "2000"))
SEED = int(os.environ.get("VETURBOIO_STRESS_SEED", "0"))

THREADS = 3

#: What fails for the one who asks alone. A device that is broken is so for all.
OWN_FAULTS = [kind for kind in FAULTS if kind != "late"]

#: Loads between two looks at the memory.
ROUND = 60

PLACES = ["sim:0", "sim:1", "sim", "cpu"]

DTYPES = [None, None, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2]

WAYS = ["read", "direct", "uring", "map", "auto"]


class File(NamedTuple):
    path: Path
    state: State


def _states(chance: random.Random) -> list[State]:
    tiny = {f"layers.{i % 7}.{i}": torch.full((chance.randrange(40),), i / 8) for i in range(200)}
    sizes = [1, 100, 70_000, 300_000, 1_200_000]
    mixed = {
        f"{i}.{size}": torch.arange(size + i).remainder(251).to(dtype)
        for i, size in enumerate(sizes)
        for dtype in [chance.choice([torch.float32, torch.bfloat16, torch.int16, torch.uint8])]
    }
    return [
        {"a": torch.ones(3)},
        tiny,
        mixed,
        {**tiny, **mixed},
        {**STATE, "large": mixed["1.100"]},
    ]


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    made: list[File] = []
    for number, state in enumerate(_states(random.Random(SEED))):
        made.append(File(saved(tmp_path / f"{number}.safetensors", state), state))
        made.append(File(with_odd_header(saved(tmp_path / f"{number}.odd", state)), state))
        torch.save(state, tmp_path / f"{number}.pt")
        made.append(File(tmp_path / f"{number}.pt", state))
    return made


class Worker:
    """One thread's share: what it does follows from its seed."""

    def __init__(
        self, seed: int, files: list[File], helpers: list[Any], folder: Path, alone: bool
    ) -> None:
        self.chance = random.Random(seed)
        self.alone = alone
        self.files, self.helpers = files, helpers
        self.folder = folder / f"saved-{seed}"
        self.done: Counter[str] = Counter()

    def run(self, loads: int) -> Counter[str]:
        self.folder.mkdir(exist_ok=True)
        for _ in range(loads):
            if self.chance.random() < 0.15:
                kind = self.chance.choice(FAULTS if self.alone else OWN_FAULTS)
                accelerator.fail_after(kind, self.chance.randrange(1, 30))
            self.act()
        return self.done

    def act(self) -> None:
        file = self.chance.choice(self.files)
        pinned = self.chance.random() < 0.6
        kept = self.helpers[pinned] if self.chance.random() < 0.5 else None
        way = self.chance.choice([self.load, self.load, self.load, self.fill, self.save])
        device = self.chance.randrange(2)
        stream: Any = contextlib.nullcontext()
        if self.chance.random() < 0.5:
            stream = accelerator.pooled_stream(device)
        try:
            with stream:
                way(file, {"use_pinmem": pinned, "helper": kept})
        except (RuntimeError, OSError) as error:
            assert re.search("simulated .* failure", str(error)), error
            self.done["failed"] += 1
            if self.alone:  # nobody else must miss that the device is broken
                accelerator.drain()
                accelerator.reset()
        else:
            self.done[way.__name__] += 1

    def place(self, file: File) -> Any:
        if self.chance.random() < 0.6:
            return self.chance.choice(PLACES)
        names = [name.split(".")[0] for name in self.chance.sample(sorted(file.state), 1)]
        return {"": self.chance.choice(PLACES)} | {
            name: self.chance.choice(PLACES) for name in names
        }

    def load(self, file: File, options: dict[str, Any]) -> None:
        dtype = self.chance.choice(DTYPES)
        if dtype is not None and "F4" in file.state:
            dtype = None  # it has dtypes that torch does not convert
        options |= {
            "map_location": self.place(file),
            "dtype": dtype,
            "one_allocation": self.chance.random() < 0.3,
            "num_thread": self.chance.choice([1, 2, 5, 32]),
            "way": self.chance.choice(WAYS),
        }
        expected = file.state
        if self.chance.random() < 0.3:
            names = self.chance.sample(sorted(expected), min(3, len(expected)))
            options["names"], expected = names, {name: expected[name] for name in names}
        with self.naming(file.path):
            loaded = veturboio.load(file.path, **options)
        self.compare(loaded, expected, dtype)

    def fill(self, file: File, options: dict[str, Any]) -> None:
        places = {name: self.chance.choice(["sim:0", "sim:1", "cpu"]) for name in file.state}
        given = {
            name: torch.empty_like(tensor, device=places[name])
            for name, tensor in file.state.items()
        }
        with self.naming(file.path):
            veturboio.load(file.path, state_dict=given, **options)
        self.compare(given, file.state)

    def save(self, file: File, options: dict[str, Any]) -> None:
        state = {
            name: tensor.to(self.chance.choice(["sim:0", "sim:1", "cpu"]))
            for name, tensor in file.state.items()
        }
        path = self.folder / "model"
        with self.naming(path):
            veturboio.save_file(state, path, helper=options["helper"], durable=False)
        self.compare(veturboio.load(path), file.state)

    def compare(self, loaded: State, expected: State, dtype: torch.dtype | None = None) -> None:
        assert sorted(loaded) == sorted(expected)
        for name, tensor in host(loaded).items():
            wanted = expected[name]
            if dtype is not None and wanted.is_floating_point():
                wanted = wanted.to(dtype)
            assert same(tensor, wanted), (name, loaded[name].device)

    @contextlib.contextmanager
    def naming(self, path: Path) -> Any:
        try:
            yield
        except (RuntimeError, OSError) as error:
            assert str(path) in str(error), error
            raise


def test_loads_and_saves_at_random_are_right_or_say_what_failed(
    tmp_path: Path, files: list[File]
) -> None:
    before = in_use()
    chance = random.Random(SEED)
    done: Counter[str] = Counter()
    for turn in range(-(-LOADS // ROUND)):
        helpers = [veturboio.init_io_helper(chance.choice([1, 2, 5]) * SEGMENT) for _ in range(2)]
        threads = chance.choice([1, THREADS])
        seeds = [SEED * 1_000_000 + turn * THREADS + thread for thread in range(threads)]
        alone = threads == 1
        workers = [Worker(seed, files, helpers, tmp_path, alone) for seed in seeds]
        settings: dict[str, Any] = {
            "bandwidth": chance.choice([0, 0, 3000 * MIB]),
            "latency_us": chance.choice([0, 10, 100]),
            "random_delay_us": chance.choice([0, 100, 1000]),
            "seed": turn,
        }
        with configured(**settings):
            for counted in at_once([partial(w.run, ROUND // threads) for w in workers]):
                done += counted
        for helper in helpers:
            helper.close()
        assert stats()["messages"] == [], (turn, seeds)
        assert in_use() == before, (turn, seeds)
    print(dict(done))
    assert sum(done.values()) >= LOADS
    assert done["failed"] < 0.5 * LOADS
    assert min(done[kind] for kind in ("load", "fill", "save")) > LOADS // 20
