"""``state_dict=`` with tensors on devices: they are filled where they are, or left as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import configured, stats
from checkpoints import MIB, SCRATCH, SEGMENT, State, bytes_of, host, in_use, saved, with_odd_header
from probe import assert_same

import veturboio

STATE = {
    "large": torch.arange(SEGMENT // 4 + 5),
    "weight": torch.rand(300, 70),
    "half": torch.rand(33).bfloat16(),
    "step": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "flags": torch.tensor([True, False, True]),
}

PINNED = pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])


def legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def odd(state: State, path: Path) -> None:
    with_odd_header(saved(path, state))


@pytest.fixture(
    params=[veturboio.save_file, odd, torch.save, legacy],
    ids=["safetensors", "odd", "zip", "legacy"],
)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(STATE, tmp_path / "model")
    return tmp_path / "model"


def targets() -> State:
    """Tensors to be filled: on the second device, one on the first, and some on the CPU."""
    places = {"weight": "sim:0", "half": "cpu", "flags": "cpu"}
    return {
        name: torch.ones_like(tensor, device=places.get(name, "sim:1"))
        for name, tensor in STATE.items()
    }


@PINNED
@pytest.mark.parametrize("threads", [1, 32])
def test_tensors_are_filled_where_they_are(model: Path, pinned: bool, threads: int) -> None:
    given = targets()
    before = {name: (tensor.data_ptr(), tensor._version) for name, tensor in given.items()}
    there = in_use()[:2]
    accelerator.reset_stats()
    loaded = veturboio.load(model, state_dict=given, use_pinmem=pinned, num_thread=threads)
    assert_same(host(loaded), STATE)
    for name, tensor in given.items():
        assert loaded[name] is tensor and tensor.data_ptr() == before[name][0]
        assert tensor._version > before[name][1] or tensor.numel() == 0
    assert in_use()[:2] == there
    for device in (0, 1):
        assert stats()["device"][device]["peak"] <= there[device] + SCRATCH


@PINNED
def test_views_are_filled_and_what_is_around_them_is_not(model: Path, pinned: bool) -> None:
    given = targets()
    block = torch.ones(500, 70, device="sim:0")
    given["weight"] = block[100:400]
    base = torch.ones(STATE["large"].numel() + 10, dtype=torch.int64, device="sim:1")
    given["large"] = base[5:-5]
    assert_same(host(veturboio.load(model, state_dict=given, use_pinmem=pinned)), STATE)
    assert block[:100].cpu().unique().tolist() == block[400:].cpu().unique().tolist() == [1]
    assert base[:5].cpu().tolist() == base[-5:].cpu().tolist() == [1] * 5


def test_larger_tensors_keep_their_tails(model: Path) -> None:
    given = targets()
    given["weight"] = torch.ones(400, 70, device="sim:1")
    veturboio.load(model, state_dict=given, use_pinmem=True)
    assert torch.equal(given["weight"][:300].cpu(), STATE["weight"])
    assert given["weight"][300:].cpu().unique().tolist() == [1]


def _too_small(given: State) -> None:
    given["large"] = given["large"][:-1]


def _another_dtype(given: State) -> None:
    given["step"] = given["step"].float()


def _not_contiguous(given: State) -> None:
    given["weight"] = torch.ones(70, 300, device="sim:0").t()


def _missing(given: State) -> None:
    del given["step"]


def _unknown(given: State) -> None:
    given["more"] = torch.ones(1, device="sim:0")


def _overlapping(given: State) -> None:
    block = torch.ones(STATE["large"].numel() * 2, dtype=torch.int64, device="sim:1")
    given["large"], given["step"] = block[: STATE["large"].numel()], block[3]


@pytest.mark.parametrize(
    "spoil", [_too_small, _another_dtype, _not_contiguous, _missing, _unknown, _overlapping]
)
def test_nothing_is_written_unless_all_fit(model: Path, spoil: Any) -> None:
    given = targets()
    spoil(given)
    before = host(given)
    versions = {name: tensor._version for name, tensor in given.items()}
    accelerator.reset_stats()
    with pytest.raises(veturboio.ArgumentError, match=str(model)):
        veturboio.load(model, state_dict=given, use_pinmem=True)
    assert stats()["h2d"]["copies"] == 0
    assert_same(host(given), before)
    assert {name: tensor._version for name, tensor in given.items()} == versions


def test_filling_comes_after_work_on_the_callers_stream(model: Path) -> None:
    given = targets()
    with configured(bandwidth=40 * MIB), accelerator.pooled_stream(1):
        source = torch.zeros_like(STATE["large"]).pin_memory()
        given["large"].copy_(source, non_blocking=True)
        veturboio.load(model, state_dict=given, use_pinmem=True)
        copy = given["large"].clone()
        assert torch.equal(copy.cpu(), STATE["large"])
    accelerator.synchronize()
    assert_same(host(given), STATE)


def test_tied_tensors_are_filled_once(tmp_path: Path) -> None:
    weight = torch.rand(1000, 30)
    path = tmp_path / "model"
    veturboio.save_file({"a": weight, "b": weight}, path, force_save_shared_tensor=True)
    given = torch.zeros(1000, 30, device="sim:0")
    accelerator.reset_stats()
    loaded = veturboio.load(path, state_dict={"a": given, "b": given.view(1000, 30)})
    assert_same(host(loaded), {"a": weight, "b": weight})
    assert stats()["h2d"]["bytes"] == weight.nbytes


def test_a_model_on_a_device_is_filled(tmp_path: Path) -> None:
    trained, fresh = torch.nn.Linear(300, 20), torch.nn.Linear(300, 20).to("sim:0")
    path = saved(tmp_path / "model", trained.state_dict())
    veturboio.load(path, state_dict=fresh.state_dict(), use_pinmem=True)
    assert_same(host(fresh.state_dict()), trained.state_dict())
    wanting = dict(fresh.named_parameters())
    for parameter in wanting.values():
        parameter.data.zero_()
    veturboio.load(path, state_dict=wanting)
    assert_same({n: p.detach().cpu() for n, p in wanting.items()}, trained.state_dict())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in wanting.values())


def test_strided_tensors_of_a_pytorch_file_fill_contiguous_ones(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"turned": base.t(), "part": base[1:3, ::2], "rows": base[2:]}
    torch.save(state, tmp_path / "model.pt")
    given = {name: torch.zeros(tensor.shape, device="sim:1") for name, tensor in state.items()}
    loaded = veturboio.load(tmp_path / "model.pt", state_dict=given, use_pinmem=True)
    assert_same(host(loaded), {name: tensor.contiguous() for name, tensor in state.items()})


def test_the_operator_fills_tensors_and_a_helper_serves_it(model: Path) -> None:
    helper = veturboio.init_io_helper()
    given = targets()
    ever = []
    for _ in range(3):
        loaded = torch.ops.veturboio.load(
            str(model), state_dict=given, use_pinmem=True, helper=helper
        )
        assert_same(host(loaded), STATE)
        ever.append(stats()["pinned"]["ever"])
        for tensor in given.values():
            tensor.zero_()
    assert ever == ever[:1] * 3 and helper.nbytes() > 0


def test_progress_counts_devices_and_the_host(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    veturboio.load(
        model, state_dict=targets(), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] <= bytes_of(STATE)
