"""Every hostile PyTorch file is refused in the same words by every door, and runs nothing."""

from __future__ import annotations

import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.pytorch import Case, all_cases
from attacks.pytorch import archive as zips
from attacks.pytorch import program as p
from attacks.pytorch.bombs import BOMBS, PICKLES, chained
from attacks.pytorch.builder import good, zipped
from attacks.pytorch.unknown_names import MARKER
from conftest import Run
from forked import Child
from probe import maps_of, open_files

import veturboio

CASES = list(all_cases())

#: Memory that a refusal may take beyond the size of the file.
BOUND = 512 << 20


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def attack(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file, in a working directory that must hold nothing else when the test ends."""
    path = tmp_path / "model.pt"
    path.write_bytes(case.data)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield path
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every call of torch.load."""
    calls, load = [], torch.load

    def watched(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    return calls


def test_refused(case: Case, attack: Path, asked: list[dict[str, Any]]) -> None:
    files = open_files()
    with pytest.raises(veturboio.FormatError) as refusal:
        veturboio.load(attack)
    error = refusal.value
    assert case.reason in error.reason
    assert str(error.file) == str(attack)
    assert str(error).startswith(f"read {attack}: ")
    assert error.reason in str(error)
    assert len(str(error)) < 10_000
    assert isinstance(error, ValueError)
    # torch is asked about what is well formed only, and never to run what it reads.
    assert [options["weights_only"] for options in asked] == [True] * case.unknown
    del refusal, error
    assert open_files() == files
    assert maps_of(attack) == []


def test_refused_by_every_other_door(case: Case, attack: Path, asked: list) -> None:
    with pytest.raises(veturboio.FormatError) as first:
        veturboio.load(attack)
    text = str(first.value).partition("; torch.load refuses it too")[0]
    # No tensor's bytes are read for the meta device.
    headers = [] if case.in_bytes else [torch.device("meta")]
    for load in (
        *(partial(veturboio.load, attack, map_location=meta) for meta in headers),
        lambda: veturboio.load(attack, enable_fast_mode=False),
    ):
        with pytest.raises(veturboio.FormatError) as refusal:
            load()
        assert text in str(refusal.value)
    asked.clear()
    for load in (
        lambda: torch.ops.veturboio.load(str(attack)),
        *(partial(torch.ops.veturboio.load, str(attack), map_location=meta) for meta in headers),
    ):
        with pytest.raises(ValueError) as refusal:
            load()
        assert text in str(refusal.value)
    assert asked == []


def test_torch_agrees_or_is_known_to_differ(case: Case, attack: Path) -> None:
    """Where torch takes what we refuse the case says so: it returns garbage, or looks away."""
    try:
        torch.load(attack, weights_only=True, map_location="cpu")
        refuses = False
    except Exception:
        refuses = True
    assert refuses == case.torch


@torch.jit.script
def scripted_load(file: str) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file)


def test_torchscript_says_the_same(tmp_path: Path) -> None:
    """One case of each kind: TorchScript keeps the text, if not the class."""
    path = tmp_path / "model.pt"
    for case in {case.name.partition("/")[0]: case for case in CASES}.values():
        path.write_bytes(case.data)
        with pytest.raises(ValueError) as eager:
            torch.ops.veturboio.load(str(path))
        with pytest.raises((torch.jit.Error, RuntimeError)) as scripted:
            scripted_load(str(path))
        text = str(eager.value).partition("\n")[0]
        assert text in str(scripted.value), case.name


def test_the_marker_would_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing is proved by its absence: run for real, the payload does leave its mark."""
    payload = p.call(p.name("os", "system"), p.text(f"touch {MARKER}"))
    monkeypatch.chdir(tmp_path)
    pickle.loads(p.program(payload))
    assert (tmp_path / MARKER).exists()


def test_a_good_file_loads_after_all_attacks(tmp_path: Path) -> None:
    """Nothing is left behind: no descriptor, no map, no lock, no poisoned state."""
    files, attacked = open_files(), tmp_path / "attacked.pt"
    for case in CASES:
        attacked.write_bytes(case.data)
        with pytest.raises(ValueError):
            torch.ops.veturboio.load(str(attacked))
    path = tmp_path / "good.pt"
    path.write_bytes(zips.archive(good()))
    assert veturboio.load(path)["a"].tolist() == [1, 2, 3, 4]
    assert open_files() == files
    assert maps_of(attacked) == []


IMPOSSIBLE = {
    "a list for a key": p.EMPTY_DICT + p.EMPTY_LIST + p.NONE + p.SETITEM,
    "a dict in a set": p.call(p.name("builtins", "set"), p.listed(p.EMPTY_DICT)),
    "a set in itself": b"\x8f" + p.put(0) + p.MARK + p.get(0) + b"\x90",
    "no device": p.call(p.name("torch", "device"), p.text("nowhere")),
    "device minus one": p.call(p.name("torch", "device"), p.text("cpu"), p.integer(-1)),
    "no latin": p.call(p.name("_codecs", "encode"), p.text("\u0100"), p.text("latin1")),
    "a number for attributes": p.ordered() + p.integer(1) + p.BUILD,
    "a list for attributes": p.ordered() + p.listed(p.integer(1)) + p.BUILD,
    "a parameter of a list": p.call(
        p.name("torch._utils", "_rebuild_parameter"), p.EMPTY_LIST, p.TRUE, p.ordered()
    ),
    "a parameter of integers": p.call(
        p.name("torch._utils", "_rebuild_parameter"),
        p.tensor(p.storage("IntStorage")),
        p.TRUE,
        p.ordered(),
    ),
}

#: Those that torch.load is asked about, since what it would make of them is its own affair.
LEFT_TO_TORCH = {
    "no latin",
    "a number for attributes",
    "a list for attributes",
    "a parameter of a list",
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_values_that_cannot_be_built_are_refused(tmp_path: Path, name: str, asked: list) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(zipped(IMPOSSIBLE[name]))
    with pytest.raises(veturboio.FormatError) as refusal:
        veturboio.load(path)
    assert str(refusal.value).startswith(f"read {path}: ")
    assert bool(asked) == (name in LEFT_TO_TORCH)


def test_a_small_stack_is_enough(tmp_path: Path) -> None:
    """Nesting far deeper than the stack, on a thread with little of it."""
    path, outcomes = tmp_path / "model.pt", []

    def load() -> None:
        loaded, depth = veturboio.load(path), 0
        while loaded:
            loaded, depth = loaded[0], depth + 1
        outcomes.append(depth)

    for value in (chained(50_000), chained(50_000, b"", p.TUPLE1)):
        path.write_bytes(zipped(value))
        size = threading.stack_size(128 << 10)
        thread = threading.Thread(target=load)
        thread.start()
        threading.stack_size(size)
        thread.join()
    assert outcomes == [50_000, 50_000]


WATCH = """
import json, pathlib, sys, warnings
import torch, veturboio
warnings.simplefilter("ignore")
path, door = sys.argv[1:]
def high():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
pathlib.Path("/proc/self/clear_refs").write_text("5")
before, reason = high(), None
try:
    loaded = veturboio.load(path) if door == "python" else torch.ops.veturboio.load(path)
    del loaded
except ValueError as error:
    reason = str(error)
    assert reason.startswith(f"read {path}: "), reason[:1000]
print(json.dumps([high() - before, reason]))
"""


@pytest.mark.parametrize(
    ("name", "door"),
    [(name, door) for name in BOMBS for door in ("python", "operator")]
    + [(name, "operator") for name in PICKLES],
)
def test_bombs_are_met_within_bounds(tmp_path: Path, name: str, door: str) -> None:
    bomb, path = {**BOMBS, **PICKLES}[name], tmp_path / "bomb.pt"
    path.write_bytes(bomb.make())
    done = Child(WATCH, path, door, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    taken, reason = json.loads(done.stdout)
    assert taken < path.stat().st_size + BOUND
    if bomb.reason is not None:
        assert reason is not None
        assert bomb.reason in reason
    assert len(reason or "") < 10_000
    path.unlink()


FUZZ = "import sys, mutations; mutations.run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(tmp_path: Path, seed: int, run: Run) -> None:
    """What both readers take they take for the same; what ours refuses it refuses in words."""
    outcomes = json.loads(run(FUZZ, tmp_path, seed, 1000))
    assert sum(outcomes.values()) == 1000
    assert outcomes["both"] > 100
    assert outcomes["none"] > 100
