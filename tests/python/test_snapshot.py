"""What a save in the background copies, and what it refuses, as one that is waited for does."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from probe import assert_same
from test_background import COMPLEX, UNFIT, State, begin_later, begun

import veturboio
from veturboio import background, io

LAZY: dict[str, Callable[[], State]] = {
    "parameter": lambda: torch.nn.LazyLinear(3).state_dict(),
    "buffer": lambda: torch.nn.LazyBatchNorm1d().state_dict(),
    "module": lambda: dict(torch.nn.LazyConv2d(3, 2).named_parameters()),
    "in a dtype": lambda: torch.nn.LazyLinear(3, dtype=torch.bfloat16).state_dict(),
    "in part": lambda: torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.LazyLinear(3)
    ).state_dict(),
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.filterwarnings("ignore:Lazy")
def test_parameters_without_a_shape_are_refused_by_name(tmp_path: Path, name: str) -> None:
    refusals = []
    for options in ({}, {"wait": False}, {"force_save_shared_tensor": True}):
        with pytest.raises(
            veturboio.ArgumentError, match=r'tensor ".*(weight|running_mean)": has no shape before'
        ) as refusal:
            veturboio.save_file(LAZY[name](), tmp_path / "model", **options)
        refusals.append(str(refusal.value))
    assert len(set(refusals)) == 1
    with pytest.raises(veturboio.ArgumentError, match=r'tensor "weight": has no shape'):
        veturboio.save_model(torch.nn.LazyLinear(3), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_copied_is_judged_when_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not when a thread comes to it, by which time it may be something else."""
    if name == "complex128":  # it can be copied, and is refused then
        return
    monkeypatch.setattr(io, "start", lambda save: pytest.fail("a thread was to judge it"))
    save = begun({"unfit": UNFIT[name]()}, tmp_path / "model")
    assert save.done()
    assert isinstance(save.exception(), veturboio.ArgumentError)


STAND_INS = {
    "emptied storage": "torch.ones(3); tensor.untyped_storage().resize_(0)",
    "fake": "torch._subclasses.FakeTensorMode().from_tensor(torch.ones(3))",
    "functional": "torch._to_functional_tensor(torch.ones(3))",
    "batched": "torch._C._functorch._add_batch_dim(torch.ones(3, 2), 0, 1)",
    "wrapper": "TwoTensor(torch.ones(3), torch.zeros(3))",
}


@pytest.mark.parametrize("make", STAND_INS.values(), ids=STAND_INS)
def test_stand_ins_for_tensors_are_refused_in_the_same_words(
    tmp_path: Path, run: Run, make: str
) -> None:
    code = f"""
import sys, torch, veturboio
from torch.testing._internal.two_tensor import TwoTensor
tensor = {make}
told = []
for wait in (True, False):
    try:
        save = veturboio.save_file({{"a": torch.ones(2), "b": tensor}}, sys.argv[1], wait=wait)
        save.result()
    except (ValueError, TypeError, RuntimeError) as error:
        told.append((type(error), str(error)))
assert len(told) == 2 and told[0] == told[1] and "b" in told[0][1], told
"""
    run(code, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_empty_tensors_are_copied_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begin_later(monkeypatch)
    state = {"empty": torch.empty(0, 3), "half": torch.empty(2, 0, dtype=torch.float16)}
    veturboio.save_file(state, tmp_path / "model", wait=False)
    state["empty"].resize_(4, 3)
    begin().result()
    loaded = veturboio.load(tmp_path / "model")
    assert (loaded["empty"].shape, loaded["half"].shape) == ((0, 3), (2, 0))


class Elsewhere(torch.overrides.TorchFunctionMode):
    """What a caller may have around a save: everything is made on another device, and doubled."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = dict(options or {})
        if function in (torch.empty, torch.zeros, torch.tensor, torch.frombuffer):
            options["device"] = "meta"
        return function(*arguments, **options)


CIRCUMSTANCES: dict[str, Callable[[], Any]] = {
    "device": lambda: torch.device("meta"),
    "mode": Elsewhere,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("name", [*CIRCUMSTANCES, "default device", "default dtype"])
def test_the_copy_is_in_host_memory_whatever_the_caller_works_with(
    tmp_path: Path, name: str
) -> None:
    state = {
        "a": torch.rand(100, 30),
        "turned": torch.rand(5, 3).t(),
        "conjugated": COMPLEX.conj(),
        "empty": torch.empty(0, 2),
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "half": torch.rand(3).half(),
    }
    before = {key: value.detach().clone() for key, value in state.items()}
    seen: list[torch.device] = []

    def copied(tensors: State) -> State | None:
        copies = background.snapshot(tensors)
        assert copies is not None
        seen.extend(tensor.device for tensor in copies.values())
        return copies

    def save() -> None:
        told: list[tuple[int, int]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "snapshot", copied)
            begun(state, tmp_path / "a", progress=lambda *now: told.append(now)).result()
        veturboio.save_file(state, tmp_path / "b", progress=lambda *now: told.append(now))
        assert told
        shmem = veturboio.load_to_shmem(tmp_path / "a")
        shmem.close()
        shmem.unlink()

    if name in CIRCUMSTANCES:
        with CIRCUMSTANCES[name]():
            save()
    elif name == "default device":
        torch.set_default_device("meta")
        try:
            save()
        finally:
            torch.set_default_device(None)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            save()
        finally:
            torch.set_default_dtype(torch.float32)
    assert {device.type for device in seen} == {"cpu"}
    assert_same(veturboio.load(tmp_path / "a"), before)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Refusing(torch.Tensor):
    """A tensor with bytes, of which no operator of torch makes another."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError(f"{function} is refused")


@pytest.mark.parametrize("wait", [True, False])
def test_a_tensor_that_refuses_to_be_copied_is_saved_at_once(tmp_path: Path, wait: bool) -> None:
    tensor = torch.arange(3.0)
    made = torch.Tensor._make_subclass(Refusing, tensor)
    save = veturboio.save_file({"a": made}, tmp_path / "model", wait=wait)
    if save is not None:
        save.result()
    assert_same(veturboio.load(tmp_path / "model"), {"a": tensor})


@pytest.mark.parametrize("wait", [True, False])
def test_within_a_function_that_is_transformed(tmp_path: Path, wait: bool) -> None:
    state = {"a": torch.arange(3.0)}
    refusals = []

    def function(batched: torch.Tensor) -> torch.Tensor:
        for tensors in (state, {"a": batched}):
            try:
                save = veturboio.save_file(tensors, tmp_path / "model", wait=wait)
                if save is not None:
                    save.result()
            except veturboio.ArgumentError as refused:
                refusals.append(str(refused))
        return batched

    torch.vmap(function)(torch.ones(2, 3))
    torch.func.jvp(function, (torch.ones(2),), (torch.ones(2),))
    assert_same(veturboio.load(tmp_path / "model"), state)
    assert len(refusals) == 2
    assert all(text.endswith('tensor "a": has no memory of its own') for text in refusals)


@pytest.mark.parametrize("wait", [True, False])
def test_names_and_metadata_that_are_no_text(tmp_path: Path, wait: bool) -> None:
    state = {"a": torch.ones(1)}
    save = partial(veturboio.save_file, file=tmp_path / "model", wait=wait)
    with pytest.raises(veturboio.ArgumentError, match=r"name '\\udcff' in state_dict is not text"):
        save({"\udcff": state["a"]})
    with pytest.raises(veturboio.ArgumentError, match=r"name '\\udcff' in metadata is not text"):
        save(state, metadata={"\udcff": "b"})
    with pytest.raises(veturboio.ArgumentError, match=r"metadata\['b'\] is not text: '\\ud800'"):
        save(state, metadata={"b": "\ud800"})
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "lazy": torch.nn.parameter.UninitializedParameter,
}


NAMES = ["model", "./other/../model", "new\nline", "missing/model"]


@pytest.mark.parametrize(
    ("tensor", "name"),
    [("plain", "missing/model"), ("plain", "other/"), *itertools.product(REFUSED, NAMES)],
)
def test_a_relative_path_has_its_name_in_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, name: str
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    state = {"a": REFUSED.get(tensor, lambda: torch.ones(2))()}
    said = []
    for wait in (True, False):
        with pytest.raises((OSError, ValueError)) as refused:
            save = veturboio.save_file(state, name, wait=wait)
            assert save is not None
            save.result()
        error = refused.value
        said.append((type(error), str(error), getattr(error, "filename", None)))
    assert said[0] == said[1]


def test_a_warning_has_the_name_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    veturboio.save_file({}, "model")
    Path("other").hardlink_to("model")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        save = veturboio.save_file({}, "model", wait=False)
        assert save is not None
        save.result()
    assert [str(one.message).split(":")[0] for one in told] == ["save model"]
