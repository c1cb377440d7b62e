"""``state_dict=``: tensors that are already there are filled, or nothing is written at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from opens import opens_of
from probe import DTYPES, assert_same, maps_of, random_tensor, same

import veturboio

State = dict[str, torch.Tensor]

STATE = {
    "weight": torch.randn(300, 70),
    "half": torch.randn(33).bfloat16(),
    "step": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "large": torch.arange(3_000_000),
}


def legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.fixture(params=[veturboio.save_file, torch.save, legacy], ids=["safetensors", "zip", "old"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(STATE, tmp_path / "model")
    return tmp_path / "model"


def targets() -> State:
    return {name: torch.full_like(tensor, 3) for name, tensor in STATE.items()}


@pytest.mark.parametrize("threads", [1, 32])
def test_tensors_are_filled_where_they_are(model: Path, threads: int) -> None:
    given = targets()
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    loaded = veturboio.load(model, state_dict=given, num_thread=threads)
    assert_same(loaded, STATE)
    assert all(loaded[name] is tensor for name, tensor in given.items())
    assert {name: tensor.data_ptr() for name, tensor in given.items()} == addresses
    assert maps_of(model) == []


def test_larger_tensors_keep_their_tails(model: Path) -> None:
    given = targets()
    given["weight"] = torch.full((400, 70), 3.0)
    veturboio.load(model, state_dict=given)
    assert torch.equal(given["weight"][:300], STATE["weight"])
    assert torch.equal(given["weight"][300:], torch.full((100, 70), 3.0))


def test_filling_counts_as_a_change(model: Path) -> None:
    """Or autograd would compute with saved tensors that are no longer what it saved."""
    given = targets()
    parameter = torch.ones(300, 70, requires_grad=True)
    product = (parameter * given["weight"]).sum()
    veturboio.load(model, state_dict=given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_parameters_of_a_module_are_filled(tmp_path: Path) -> None:
    wanted, module = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    veturboio.save_file(wanted.state_dict(), tmp_path / "model")
    veturboio.load(tmp_path / "model", state_dict=dict(module.named_parameters()))
    assert torch.equal(module.weight, wanted.weight)
    assert module.weight.requires_grad


def test_tied_targets_are_filled_once(tmp_path: Path) -> None:
    tensor = torch.randn(100)
    tied = {"a": tensor, "b": tensor}
    veturboio.save_file(tied, tmp_path / "model", force_save_shared_tensor=True)
    target = torch.zeros(100)
    veturboio.load(tmp_path / "model", state_dict={"a": target, "b": target})
    assert torch.equal(target, tensor)


def test_views_in_a_pytorch_file_are_filled(tmp_path: Path) -> None:
    """Neither is row-major at the start of its storage."""
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"turned": base.t(), "part": base[1:3]}
    torch.save(saved, tmp_path / "model.pt")
    given = {"turned": torch.zeros(6, 4), "part": torch.zeros(2, 6)}
    veturboio.load(tmp_path / "model.pt", state_dict=given)
    assert same(given["turned"], base.t()) and same(given["part"], base[1:3])


def test_strides_along_which_nobody_steps_do_not_matter(tmp_path: Path) -> None:
    saved = torch.arange(8.0).as_strided((1, 4, 1), (2**62, 1, 77), 3)
    torch.save({"a": saved}, tmp_path / "model.pt")
    given = {"a": torch.zeros(4).as_strided((1, 4, 1), (99, 1, 2**63 - 1))}
    veturboio.load(tmp_path / "model.pt", state_dict=given)
    assert given["a"].flatten().tolist() == [3, 4, 5, 6]


def test_an_expanded_tensor_of_more_bytes_than_can_be_counted_fits_nowhere(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1, dtype=torch.int64).expand(2**61)}, tmp_path / "model.pt")
    given = {"a": torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(ValueError, match='"a": allocated tensor size not enough: 8 bytes'):
        veturboio.load(tmp_path / "model.pt", state_dict=given)
    assert given["a"].tolist() == [0]


def test_tensors_at_odd_places_are_filled(tmp_path: Path) -> None:
    """A misaligned foreign header: the bytes are where they are, aligned or not."""
    content = b'{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}} '
    assert (8 + len(content)) % 4 != 0
    data = torch.tensor([5, -6], dtype=torch.int32).numpy().tobytes()
    (tmp_path / "model").write_bytes(len(content).to_bytes(8, "little") + content + data)
    given = {"a": torch.zeros(2, dtype=torch.int32)}
    veturboio.load(tmp_path / "model", state_dict=given)
    assert given["a"].tolist() == [5, -6]


def overlapping(given: State) -> None:
    given["large"] = torch.full((3_000_001,), 3)
    given["step"] = given["large"][5]


MISFITS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda given: given.pop("half"), '"half" is not in state_dict'),
    "unexpected": (lambda given: given.update(x=torch.ones(1)), '"x": is in state_dict but not'),
    "dtype": (
        lambda given: given.update(half=torch.ones(33)),
        '"half": allocated tensor dtype not match',
    ),
    "too small": (
        lambda given: given.update(weight=torch.ones(9)),
        '"weight": allocated tensor size not enough: 36 bytes, not 84000',
    ),
    "strided": (
        lambda given: given.update(weight=torch.ones(70, 300).t()),
        '"weight": allocated tensor not contiguous',
    ),
    "meta": (lambda given: given.update(weight=torch.ones(300, 70, device="meta")), "meta device"),
    "overlapping": (overlapping, "to be filled share memory"),
}


@pytest.mark.parametrize(("spoil", "reason"), MISFITS.values(), ids=MISFITS)
def test_nothing_is_written_unless_all_fit(
    model: Path, spoil: Callable[[State], object], reason: str
) -> None:
    given = targets()
    spoil(given)
    before = {name: tensor.clone() for name, tensor in given.items() if not tensor.is_meta}
    with pytest.raises(veturboio.ArgumentError, match=reason):
        veturboio.load(model, state_dict=given)
    assert_same({name: given[name] for name in before}, before)


def test_what_is_no_dict_of_tensors_is_refused(model: Path) -> None:
    for wrong in ([], {"weight": 3}, {1: torch.ones(1)}):
        with pytest.raises(TypeError):
            veturboio.load(model, state_dict=wrong)


def test_script_and_operator_fill_too(model: Path) -> None:
    @torch.jit.script
    def fill(path: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return torch.ops.veturboio.load(path, state_dict=given)

    for act in (fill, lambda path, given: torch.ops.veturboio.load(path, state_dict=given)):
        given = targets()
        assert_same(act(str(model), given), STATE)
        assert_same(given, STATE)


def test_conjugated_and_negated_targets_are_filled(tmp_path: Path) -> None:
    """Their bytes are not what they mean."""
    source = {
        "conj": torch.randn(6, dtype=torch.complex64),
        "neg": torch.randn(6),
        "plain": torch.randn(6, dtype=torch.complex64),
    }
    for write in (veturboio.save_file, torch.save, legacy):
        write(source, tmp_path / "model")
        given = {
            "conj": torch.zeros(6, dtype=torch.complex64).conj(),
            "neg": torch._neg_view(torch.zeros(6)),
            "plain": torch.zeros(6, dtype=torch.complex64),
        }
        assert given["conj"].is_conj() and given["neg"].is_neg()
        veturboio.load(tmp_path / "model", state_dict=given)
        assert all(torch.equal(given[name], source[name]) for name in source)


@pytest.mark.parametrize("name", DTYPES)
def test_views_of_every_dtype_are_filled_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Torch has no copy for some of them; nothing is converted on the way."""
    base = random_tensor(DTYPES[name], 6, 4)
    saved = {"turned": base.t(), "part": base[1:3]}
    torch.save(saved, tmp_path / "model.pt")
    given = {part: random_tensor(DTYPES[name], *view.shape) for part, view in saved.items()}
    veturboio.load(tmp_path / "model.pt", state_dict=given)
    for part, view in saved.items():
        assert same(given[part], view)


def test_what_is_left_to_torch_comes_from_the_same_open_file(tmp_path: Path) -> None:
    """Opened again by its name it might be another file by now."""
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"turned": base.t(), "part": base[1:3], "whole": base.clone()}
    given = {name: torch.zeros(*value.shape) for name, value in saved.items()}
    path = tmp_path / "model.pt"
    for write in (torch.save, legacy):
        write(saved, path)
        opened = opens_of(path, lambda: veturboio.load(path, state_dict=given, way="read"))
        assert opened == 1
        assert_same(given, {name: value.contiguous() for name, value in saved.items()})


def test_progress_counts_what_is_left_to_torch_too(tmp_path: Path) -> None:
    base = torch.arange(2.0**20).view(1024, 1024)
    torch.save({"turned": base.t()}, tmp_path / "model.pt")
    seen: list[tuple[int, int]] = []
    given = {"turned": torch.zeros(1024, 1024)}
    progress = lambda done, of: seen.append((done, of))  # noqa: E731
    veturboio.load(tmp_path / "model.pt", state_dict=given, progress=progress)
    assert seen[-1] == (base.nbytes, base.nbytes)


@pytest.mark.parametrize("wrong", [torch.half, torch.double, torch.int32, torch.complex64])
def test_nothing_is_converted_without_a_word(tmp_path: Path, wrong: torch.dtype) -> None:
    """Neither what is read into place nor what torch copies."""
    base = torch.arange(24.0).reshape(4, 6)
    for name, saved in {"turned": base.t(), "part": base[1:3], "whole": base.clone()}.items():
        for write in (torch.save, legacy):
            write({name: saved, "other": torch.ones(3)}, tmp_path / "model.pt")
            given = {name: torch.zeros(24, dtype=wrong), "other": torch.zeros(3)}
            words = f'"{name}": allocated tensor dtype not match: the file has Float, not '
            with pytest.raises(veturboio.ArgumentError, match=words):
                veturboio.load(tmp_path / "model.pt", state_dict=given)
            assert not given[name].any() and not given["other"].any()
