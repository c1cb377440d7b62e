"""Checkpoints with objects of unknown classes: convert takes their tensors, and runs nothing."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from probe import assert_same, header_of
from test_convert import convert, refused

import veturboio
from veturboio._standins import replaced
from veturboio.unknown import Unknown

NET = {"weight": torch.rand(3, 2), "bias": torch.rand(3)}
numpy = pytest.importorskip("numpy")


class Config:
    def __init__(self) -> None:
        self.sizes = [3, 2]
        self.prior = torch.rand(5)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.LSTM(4, 4))
        self.head = torch.nn.Linear(4, 4)
        self.head.weight = self.first.weight
        self.register_buffer("mask", torch.ones(4), persistent=False)
        self.anchors = [torch.rand(2), torch.rand(2)]
        self.config = argparse.Namespace(a=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


BESIDE = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a")),
    "pathlib.PurePosixPath": pathlib.PurePosixPath("/a/b"),
    "datetime.datetime": datetime.datetime(2024, 5, 6, tzinfo=datetime.timezone.utc),
    "collections.defaultdict": collections.defaultdict(list, a=[1]),
    "numpy": {"best": numpy.float64(0.5), "rng": numpy.random.default_rng(0).bit_generator.state},
    "Config": Config(),
    "random": {"python": random.getstate(), "numpy": numpy.random.RandomState(1).get_state()},
}


@pytest.mark.parametrize("name", BESIDE)
def test_weights_beside_them(source: Path, target: Path, name: str) -> None:
    torch.save({"net": NET, "acc": torch.tensor(0.5), "other": BESIDE[name]}, source)
    said = convert("-i", source, "--validate-result").stdout
    assert_same(veturboio.load(target), NET)
    assert "'other' (" in said
    if name != "random":
        assert "only their tensors are taken: " in said
        assert name.rpartition(".")[2] in said
    if name == "Config":
        assert "with 1 tensor" in said
    dry = convert("-i", source, "--dry-run", "--overwrite").stdout
    assert dry.splitlines()[:-1] == said.splitlines()[:-1]


def test_a_module_that_was_pickled_whole(source: Path, target: Path) -> None:
    model = Net()
    for checkpoint in (model, {"model": model, "epoch": 3}, [{"net": model}]):
        torch.save(checkpoint, source)
        said = convert("-i", source, "--validate-result", "--overwrite").stdout
        assert_same(veturboio.load(target), dict(model.state_dict()))
        assert header_of(target)["__metadata__"]["head.weight"] == "first.weight"
        assert "the code and the attributes of the module" in said
        assert "mask' (Tensor)" in said
        assert "anchors' (list) with 2 tensors" in said
        assert "_flat_weights" not in said
        assert "torch.nn.modules.linear.Linear" in said


def test_dataparallel_keeps_its_prefix(source: Path, target: Path) -> None:
    model = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    torch.save(model, source)
    convert("-i", source)
    assert list(veturboio.load(target)) == ["module.bias", "module.weight"]


def test_a_module_flattened(source: Path, target: Path) -> None:
    """Also what is in no state_dict."""
    model = Net()
    torch.save({"net": model, "config": Config()}, source)
    convert("-i", source, "--flatten", "--enable-to-valid-state-dict")
    names = set(veturboio.load(target))
    assert {f"net.{name}" for name in model.state_dict()} < names
    assert {"net.mask", "net.anchors.0", "net.anchors.1", "config.prior"} <= names


def test_state_dicts_that_are_of_an_unknown_class(source: Path, target: Path) -> None:
    torch.save(collections.defaultdict(list, NET), source)
    convert("-i", source)
    assert_same(veturboio.load(target), NET)


def test_inside_they_are_refused_or_left_out_by_name(source: Path, target: Path) -> None:
    torch.save({**NET, "args": argparse.Namespace(a=1)}, source)
    reason = refused("-i", source)
    assert "'args' (argparse.Namespace); --enable-to-valid-state-dict" in reason
    said = convert("-i", source, "--enable-to-valid-state-dict").stdout
    assert f"leaving out of {source}: 'args' (argparse.Namespace)" in said
    assert_same(veturboio.load(target), NET)


@pytest.mark.parametrize("options", [[], ["--enable-to-valid-state-dict"], ["--flatten"]])
def test_tensors_that_are_not_made_are_not_lost(
    source: Path, target: Path, options: list[str]
) -> None:
    """A sparse tensor is one of torch.load's; where that refuses the file, nobody makes it."""
    torch.save({"w": NET["weight"], "s": torch.eye(3).to_sparse(), "a": Config()}, source)
    reason = refused("-i", source, *options)
    assert "'s' (torch._utils._rebuild_sparse_tensor)" in reason or "sparse" in reason
    assert not target.exists()


def test_without_tensors(source: Path, target: Path) -> None:
    for content in (argparse.Namespace(a=1), {"a": pathlib.PurePosixPath("x")}):
        torch.save(content, source)
        assert "no dict of tensors" in refused("-i", source)
    assert not target.exists()


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def test_nothing_is_run(source: Path, target: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"net": NET, "evil": Evil()}, source)
    said = convert("-i", source).stdout
    assert "'evil' (posix.system)" in said
    assert_same(veturboio.load(target), NET)
    assert not (tmp_path / "pwned").exists()


def module(**modules: object) -> Unknown:
    unknown = Unknown("a.Module")
    parameters = {"w": torch.rand(2)}
    unknown.state = {"_parameters": parameters, "_buffers": {}, "_modules": modules}
    return unknown


def endless() -> Iterator[Unknown]:
    circle = module()
    circle.state["_modules"]["self"] = circle
    yield circle
    nested = module()
    for _ in range(60):
        nested = module(a=nested, b=nested)
    yield nested
    wide = module()
    wide.state["_parameters"] = {f"{i}": torch.rand(1) for i in range(1000)}
    yield module(**{f"{i}": module(**{f"{j}": wide for j in range(300)}) for i in range(300)})


@pytest.mark.parametrize("content", endless())
def test_modules_without_end(content: Unknown) -> None:
    with pytest.raises(Exception, match="too many modules"):
        replaced(content)
