"""Every malformed file is refused in the same words by every door, and harms nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from attacks import Case, all_cases, write_all
from attacks.builder import file
from probe import maps_of, open_files
from safetensors import safe_open

import veturboio

CASES = list(all_cases())


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def attack(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(case.data)
    return path


def test_refused(case: Case, attack: Path) -> None:
    files = open_files()
    with pytest.raises(veturboio.FormatError) as refusal:
        veturboio.load(attack)
    error = refusal.value
    assert case.reason in error.reason
    assert error.tensor == case.tensor
    assert str(error.file) == str(attack)
    assert str(error).startswith(f"read {attack}: ")
    assert error.reason in str(error)
    assert len(str(error)) < 10_000
    assert isinstance(error, ValueError)
    del refusal, error
    assert open_files() == files
    assert maps_of(attack) == []


def test_refused_by_every_other_door(case: Case, attack: Path) -> None:
    with pytest.raises(veturboio.FormatError) as first:
        veturboio.load(attack)
    text = str(first.value)
    for load in (
        lambda: veturboio.load(attack, map_location="meta"),
        lambda: veturboio.load(attack, enable_fast_mode=False),
        lambda: torch.ops.veturboio.load(str(attack)),
        lambda: torch.ops.veturboio.load(str(attack), map_location="meta"),
    ):
        with pytest.raises(ValueError) as refusal:
            load()
        assert text in str(refusal.value)


def test_the_reference_agrees(case: Case, attack: Path) -> None:
    try:
        with safe_open(attack, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                opened.get_tensor(name)
        refuses = False
    except Exception:
        refuses = True
    assert refuses == case.reference


@torch.jit.script
def scripted_load(file: str) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file)


def test_torchscript_says_the_same(tmp_path: Path) -> None:
    """One case of each kind: TorchScript keeps the text, if not the class."""
    kinds = {case.name.partition("/")[0]: case for case in CASES}
    for case in kinds.values():
        path = tmp_path / "model.safetensors"
        path.write_bytes(case.data)
        with pytest.raises(veturboio.FormatError) as eager:
            veturboio.load(path)
        with pytest.raises((torch.jit.Error, RuntimeError)) as scripted:
            scripted_load(str(path))
        assert str(eager.value) in str(scripted.value), case.name


def test_metadata_alone_is_refused_too(tmp_path: Path) -> None:
    """Reading only the metadata makes the same checks on the header as reading the tensors."""
    skipped = "beyond_torch"  # a fault of torch's, not of the file's
    for case in CASES:
        if case.name.startswith(skipped):
            continue
        path = tmp_path / "model.safetensors"
        path.write_bytes(case.data)
        with pytest.raises(veturboio.FormatError) as refusal:
            veturboio.metadata(path)
        assert case.reason in refusal.value.reason, case.name


def test_a_small_stack_is_enough(tmp_path: Path) -> None:
    """Nesting as deep as the parser allows, and deeper, on a thread with little stack."""
    path, outcomes = tmp_path / "model.safetensors", []

    def load() -> None:
        try:
            outcomes.append(veturboio.load(path)["a"].item())
        except veturboio.FormatError as error:
            outcomes.append(error.reason)

    for depth in (100, 100_000):
        nested = '{"a":' * depth + "1" + "}" * depth
        entry = f'{{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":{nested}}}'
        path.write_bytes(file(f'{{"a":{entry}}}', b"x"))
        size = threading.stack_size(128 << 10)
        thread = threading.Thread(target=load)
        thread.start()
        threading.stack_size(size)
        thread.join()
    assert outcomes[0] == ord("x")
    assert "header is not valid" in outcomes[1]


def test_a_good_file_loads_after_all_attacks(tmp_path: Path) -> None:
    """Nothing is left behind: no descriptor, no map, no lock, no poisoned state."""
    files = open_files()
    for path in write_all(tmp_path / "attacks"):
        with pytest.raises(veturboio.FormatError):
            veturboio.load(path)
    good = tmp_path / "good.safetensors"
    veturboio.save_file({"a": torch.arange(5)}, good)
    assert torch.equal(veturboio.load(good)["a"], torch.arange(5))
    assert open_files() == files
    assert maps_of(tmp_path / "attacks") == []
