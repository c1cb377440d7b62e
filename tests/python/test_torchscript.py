"""The operators in TorchScript: scripted, frozen, saved and loaded, with all their effects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run
from probe import assert_same

import veturboio

STATE = {"w": torch.rand(3, 4), "b": torch.arange(3), "h": torch.rand(5).bfloat16()}


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = str(tmp_path / "model.safetensors")
    veturboio.save_file(STATE, path, metadata={"k": "v"})
    return path


@torch.jit.script
def load(file: str) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file)


@torch.jit.script
def load_to(file: str, device: torch.device, threads: int) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file, map_location=device, num_thread=threads)


@torch.jit.script
def metadata(file: str) -> dict[str, str]:
    return torch.ops.veturboio.metadata(file)


@torch.jit.script
def save(state: dict[str, torch.Tensor], file: str, note: str) -> None:
    torch.ops.veturboio.save(state, file, metadata={"note": note}, num_thread=2)


class Checkpoint(torch.nn.Module):
    """Loads one file, doubles one tensor, writes another file and reads that."""

    def forward(self, source: str, target: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.ops.veturboio.load(source)
        state["w"] = state["w"] * 2
        torch.ops.veturboio.save(state, target)
        again: dict[str, torch.Tensor] = torch.ops.veturboio.load(target)
        return again


class Twice(torch.nn.Module):
    """Loads the same file twice and writes to what it got; saves twice to the same file."""

    def forward(self, source: str, target: str) -> list[torch.Tensor]:
        one: dict[str, torch.Tensor] = torch.ops.veturboio.load(source)
        two: dict[str, torch.Tensor] = torch.ops.veturboio.load(source)
        one["w"].zero_()
        torch.ops.veturboio.save(one, target)
        middle: dict[str, torch.Tensor] = torch.ops.veturboio.load(target)
        torch.ops.veturboio.save(two, target)
        last: dict[str, torch.Tensor] = torch.ops.veturboio.load(target)
        return [one["w"], two["w"], middle["w"], last["w"]]


class SavesOnly(torch.nn.Module):
    """Saves to two files and uses no result, as dead code looks."""

    def forward(self, weight: torch.Tensor, one: str, two: str) -> torch.Tensor:
        torch.ops.veturboio.save({"w": weight}, one)
        torch.ops.veturboio.save({"w": weight}, two)
        return weight + 1


class LoadsOnly(torch.nn.Module):
    """Loads and drops the result: it must still fail where there is nothing to load."""

    def forward(self, file: str) -> int:
        torch.ops.veturboio.load(file)
        return 1


def variants(module: torch.nn.Module, tmp_path: Path) -> dict[str, torch.nn.Module]:
    """The module as Python, scripted, frozen, optimised, and each after torch.jit.save and load."""
    scripted = torch.jit.script(module.eval())
    frozen = torch.jit.freeze(scripted)
    forms = {
        "eager": module,
        "scripted": scripted,
        "frozen": frozen,
        "optimised": torch.jit.optimize_for_inference(torch.jit.script(module.eval())),
    }
    for name in ("scripted", "frozen"):
        torch.jit.save(forms[name], tmp_path / f"{name}.pt")
        forms[f"{name} and loaded"] = torch.jit.load(tmp_path / f"{name}.pt")
    return forms


def test_scripted_functions(model: str, tmp_path: Path) -> None:
    assert_same(load(model), STATE)
    assert_same(load_to(model, torch.device("cpu"), 3), STATE)
    meta = load_to(model, torch.device("meta"), 1)
    assert {name: value.shape for name, value in meta.items()} == {
        name: value.shape for name, value in STATE.items()
    }
    assert metadata(model) == {"k": "v", "format": "pt"}
    target = str(tmp_path / "again.safetensors")
    save(STATE, target, "né\U0001f600")
    assert_same(veturboio.load(target), STATE)
    assert veturboio.metadata(target) == {"note": "né\U0001f600", "format": "pt"}


def test_a_module_in_every_form(model: str, tmp_path: Path) -> None:
    doubled = {**STATE, "w": STATE["w"] * 2}
    for name, module in variants(Checkpoint(), tmp_path).items():
        target = tmp_path / f"{name}.safetensors"
        assert_same(module(model, str(target)), doubled)
        assert_same(veturboio.load(target), doubled)


@pytest.mark.parametrize("runs", [1, 4])
def test_calling_twice_runs_twice(model: str, tmp_path: Path, runs: int) -> None:
    """Neither loads nor saves are merged, in the first run or once the profile is known."""
    zero = torch.zeros(3, 4)
    for name, module in variants(Twice(), tmp_path).items():
        for _ in range(runs):
            one, two, middle, last = module(model, str(tmp_path / "target"))
            assert torch.equal(one, zero), name
            assert torch.equal(two, STATE["w"]), name
            assert torch.equal(middle, zero), name
            assert torch.equal(last, STATE["w"]), name


def test_effects_without_a_result_are_kept(tmp_path: Path) -> None:
    for name, module in variants(SavesOnly(), tmp_path).items():
        files = [tmp_path / f"{name}{i}" for i in range(2)]
        module(STATE["w"], *map(str, files))
        for path in files:
            assert torch.equal(veturboio.load(path)["w"], STATE["w"]), name


def test_failures_without_a_result_are_kept(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.safetensors")
    for name, module in variants(LoadsOnly(), tmp_path).items():
        with pytest.raises((torch.jit.Error, RuntimeError)) as failure:
            module(missing)
        text = f"open {missing}: No such file or directory"
        assert text in str(failure.value), name


def test_graph_keeps_every_call(tmp_path: Path) -> None:
    for name, module in variants(Twice(), tmp_path).items():
        if name == "eager":
            continue
        graph = str(module.graph) if hasattr(module, "graph") else ""
        assert graph.count("veturboio::load") == 4, name
        assert graph.count("veturboio::save") == 2, name


def test_a_script_can_catch_nothing_but_callers_can(model: str) -> None:
    """After an error in a script the operators go on working."""
    for _ in range(3):
        with pytest.raises((torch.jit.Error, RuntimeError), match="No such file or directory"):
            load(model + ".missing")
        assert_same(load(model), STATE)


def test_schemas() -> None:
    schemas = {
        name: str(getattr(torch.ops.veturboio, name).default._schema)
        for name in ("load", "save", "metadata")
    }
    assert schemas == {
        "load": "veturboio::load(str file, *, Device? map_location=None, int num_thread=32,"
        " bool use_direct_io=False, Dict(str, Tensor)? state_dict=None, bool use_pinmem=False,"
        " __torch__.torch.classes.veturboio.IOHelper? helper=None, str? way=None,"
        " str[]? names=None, Dict(str, int[])? slices=None, Tensor? progress=None,"
        " Dict(str, Device)? devices=None, ScalarType? dtype=None, bool one_allocation=False,"
        " Dict(str, str)? storage_options=None, str? cache_dir=None, bool restore_aliases=True,"
        " bool skip_unknown=False) -> Dict(str, Tensor)",
        "save": "veturboio::save(Dict(str, Tensor) state_dict, str file, *,"
        " Dict(str, str)? metadata=None, bool force_contiguous=True,"
        " bool force_save_shared_tensor=False, bool force_clone_shared_tensor=False,"
        " int num_thread=32, Tensor? progress=None,"
        " __torch__.torch.classes.veturboio.IOHelper? helper=None, bool durable=True,"
        " bool overwrite=True, Dict(str, str)? storage_options=None) -> ()",
        "metadata": "veturboio::metadata(str file, *, Dict(str, str)? storage_options=None)"
        " -> Dict(str, str)",
    }


def test_a_saved_script_needs_the_operators_and_not_the_package(
    model: str, tmp_path: Path, run_anew: Run
) -> None:
    """torch.ops.load_library alone is enough for a module that was saved elsewhere."""
    torch.jit.save(torch.jit.script(Checkpoint()), tmp_path / "script.pt")
    (library,) = [path for path in torch.ops.loaded_libraries if "veturboio" in str(path)]
    code = """
import sys, torch
library, script, source, target = sys.argv[1:]
torch.ops.load_library(library)
state = torch.jit.load(script)(source, target)
assert sorted(state) == ["b", "h", "w"]
assert "veturboio" not in sys.modules
"""
    run_anew(code, library, tmp_path / "script.pt", model, tmp_path / "target.safetensors")
