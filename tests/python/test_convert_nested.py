"""Checkpoints that keep a state_dict among other things: which is taken, what is left out."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from probe import assert_same, header_of
from test_convert import convert, refused

import veturboio

WEIGHTS = OrderedDict(weight=torch.rand(3, 4), bias=torch.rand(3).bfloat16())
EMA = {name: value + 1 for name, value in WEIGHTS.items()}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.rand(3, 4)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


FOUND = {
    "state_dict": {"state_dict": WEIGHTS},
    "model": {"model": WEIGHTS},
    "any name": {"generator": WEIGHTS},
    "beside an optimizer": {"model": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 3},
    "beside loose tensors": {
        "state_dict": WEIGHTS,
        "best_acc1": torch.tensor(0.7),
        "rng_state": torch.get_rng_state(),
    },
    "beside other values": {"epoch": 3, "model": WEIGHTS, "args": {"lr": 0.1}, "names": ["x"]},
    "deeper": {"checkpoint": {"model": WEIGHTS, "step": 5}, "config": {}},
    "twice the same": {"model": WEIGHTS, "state_dict": WEIGHTS},
}


@pytest.mark.parametrize("checkpoint", FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("dry", [False, True])
def test_the_only_state_dict_is_found(
    source: Path, target: Path, checkpoint: dict, dry: bool
) -> None:
    """What it is called is said, and so is by name everything that is left out."""
    torch.save(checkpoint, source)
    said = convert("-i", source, "--validate-result", *["-d"] * dry).stdout
    if dry:
        assert not target.exists()
    else:
        assert_same(veturboio.load(target), WEIGHTS)
    (key,) = [name for name, value in checkpoint.items() if value is WEIGHTS][:1] or ["checkpoint"]
    chosen = "checkpoint.model" if key == "checkpoint" else key
    assert f"converting '{chosen}' of {source}\n" in said
    beside = set(checkpoint) - {key} | ({"checkpoint.step"} if key == "checkpoint" else set())
    assert all(f"'{name}' (" in said for name in beside)
    assert ("leaving out" in said) == bool(beside)


def test_a_plain_state_dict_is_silent(source: Path) -> None:
    torch.save(WEIGHTS, source)
    assert convert("-i", source).stdout.count("\n") == 1


def test_everything_left_out_is_said(source: Path) -> None:
    torch.save({"model": WEIGHTS, **{f"extra{i}": i for i in range(50)}}, source)
    said = convert("-i", source).stdout
    assert all(f"'extra{i}' (int)" in said for i in range(50))


SEVERAL = {
    "two": {"model": WEIGHTS, "ema": EMA},
    "both usual": {"model": WEIGHTS, "state_dict": EMA},
    "deeper": {"a": {"model": WEIGHTS}, "b": {"model": EMA}},
    "beside loose tensors": {"model": WEIGHTS, "ema": EMA, "loss": torch.tensor(1.0)},
}


@pytest.mark.parametrize("checkpoint", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("options", [[], ["--enable-to-valid-state-dict"]])
def test_of_several_one_has_to_be_chosen(
    source: Path, target: Path, checkpoint: dict, options: list[str]
) -> None:
    torch.save(checkpoint, source)
    reason = refused("-i", source, *options)
    assert "--key" in reason
    inner = "a.model" if "a" in checkpoint else "model"
    assert f"'{inner}'" in reason
    assert not target.exists()
    convert("-i", source, *options, "--key", inner)
    assert_same(veturboio.load(target), WEIGHTS)


KEYS = {
    "model": {"model": WEIGHTS, "ema": EMA},
    "a.b.c": {"a": {"b": {"c": WEIGHTS, "d": EMA}}},
    "a.b": {"a.b": WEIGHTS, "a": EMA},
    "x.y.z": {"x": {"y.z": WEIGHTS}, "x.y": {"w": EMA}},
    "optimizer.state": {"model": EMA, "optimizer": {"state": WEIGHTS}},
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_chooses(source: Path, target: Path, key: str) -> None:
    torch.save(KEYS[key], source)
    said = convert("-i", source, "--key", key).stdout
    assert f"converting '{key}' of" in said
    assert_same(veturboio.load(target), WEIGHTS)


@pytest.mark.parametrize("key", ["missing", "model.missing", "model.weight", "epoch", "", ".", "0"])
def test_a_key_that_leads_to_no_state_dict(source: Path, target: Path, key: str) -> None:
    torch.save({"model": WEIGHTS, "epoch": 3}, source)
    reason = refused("-i", source, "--key", key)
    assert repr(key) in reason
    assert "'model'" in reason or "value of type" in reason
    assert not target.exists()


@pytest.mark.parametrize("options", [[], ["--key", "model"]])
def test_what_is_no_tensor_inside_is_refused_or_left_out_by_name(
    source: Path, target: Path, options: list[str]
) -> None:
    inside = {**WEIGHTS, "version": 3, "nested": {"w": torch.ones(1)}, "none": None}
    torch.save({"model": inside, "epoch": 3}, source)
    names = ("'model.version' (int)", "'model.nested' (dict)", "'model.none' (NoneType)")
    reason = refused("-i", source, *options)
    assert all(name in reason for name in names)
    assert "--enable-to-valid-state-dict" in reason
    assert not target.exists()
    said = convert("-i", source, *options, "--enable-to-valid-state-dict").stdout
    assert all(name in said for name in (*names, "'epoch' (int)"))
    assert_same(veturboio.load(target), WEIGHTS)


def test_what_is_no_tensor_at_the_top_is_left_out_by_name(source: Path, target: Path) -> None:
    torch.save({**WEIGHTS, "epoch": 3, "nested": EMA}, source)
    reason = refused("-i", source)
    assert "'epoch' (int)" in reason
    assert "'nested' (dict)" in reason
    said = convert("-i", source, "--enable-to-valid-state-dict").stdout
    assert "'epoch' (int), 'nested' (dict)" in said
    assert_same(veturboio.load(target), WEIGHTS)


def test_a_tensor_is_never_left_out_of_a_state_dict(source: Path, target: Path) -> None:
    torch.save({**WEIGHTS, 1: torch.ones(1)}, source)
    assert "no strings: 1" in refused("-i", source, "--enable-to-valid-state-dict")
    assert not target.exists()


def test_incomplete_views_that_share_are_stored_on_their_own(source: Path, target: Path) -> None:
    big = torch.rand(100_000)
    state = {"a": big[:10], "b": big[5:15], "c": big[:10]}
    torch.save(state, source)
    convert("-i", source, "--enable-to-valid-state-dict", "--validate-result")
    assert_same(veturboio.load(target), state)
    assert header_of(target)["__metadata__"]["c"] == "a"
    assert target.stat().st_size < 1000


def test_checkpoints_without_any_tensor(source: Path, target: Path) -> None:
    for checkpoint in ({"epoch": 3}, {"model": {}}, {"a": {"b": {"c": 5}}}, {"x": [torch.ones(1)]}):
        torch.save(checkpoint, source)
        reason = refused("-i", source, "--enable-to-valid-state-dict")
        assert "no dict of tensors" in reason
        assert f"'{next(iter(checkpoint))}'" in reason
    assert not target.exists()
    torch.save({}, source)
    convert("-i", source)
    assert veturboio.load(target) == {}


def test_a_torchscript_module_leaves_its_code_out(source: Path, target: Path) -> None:
    module = torch.nn.Linear(2, 3)
    torch.jit.script(module).save(source)
    said = convert("-i", source, "--validate-result").stdout
    assert f"leaving out of {source}: the code and the attributes" in said
    assert_same(veturboio.load(target), dict(module.state_dict()))


def test_dicts_that_hold_themselves(source: Path, target: Path) -> None:
    """And dicts that hold one another twice, which are two to the power of forty paths."""
    circle: dict = {"epoch": 3}
    circle["self"] = circle
    torch.save(circle, source)
    refused("-i", source)
    inner: dict = {"w": torch.ones(2)}
    for _ in range(40):
        inner = {"x": inner, "y": inner}
    torch.save(inner, source)
    convert("-i", source)
    assert_same(veturboio.load(target), {"w": torch.ones(2)})
