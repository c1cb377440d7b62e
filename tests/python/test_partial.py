"""``names`` and ``slices``: a part of a checkpoint is what the whole has there, and no more."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.builder import file, tensor
from circumstances import WAYS, every_way, needs_disk
from indices import some_index
from probe import DTYPES, assert_same, bits, random_tensor, read_from_disk, same
from pytorch_files import entries_of, rewrite, tensors_by_name

import veturboio

State = dict[str, torch.Tensor]

STATE = {
    "weight": torch.randn(12, 5, 7),
    "bias": torch.arange(12),
    "half": torch.randn(9, 4).bfloat16(),
    "step": torch.tensor(7),
    "none": torch.empty(3, 0, 2),
}


def misaligned(state: State, path: Path) -> None:
    """As safetensors, behind a header of odd length, as others write it."""
    veturboio.save_file(state, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip() + b" " * 3
    path.write_bytes(file(header + b" " * (len(header) % 2 == 0), content[end:]))


def old(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def big_endian(state: State, path: Path) -> None:
    """Whatever the numbers then are, loads of the whole and of parts must agree."""
    torch.save(state, path)
    entries = entries_of(path)
    at = next(n for n, entry in enumerate(entries) if entry.name.endswith("/byteorder"))
    rewrite(path, [*entries[:at], entries[at]._replace(data=b"big"), *entries[at + 1 :]])


WRITERS = [veturboio.save_file, misaligned, torch.save, old, big_endian]
IDS = ["safetensors", "misaligned", "zip", "old", "big"]
every_format = pytest.mark.parametrize("write", WRITERS, ids=IDS)
Write = Callable[[State, Path], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model")
    return tmp_path / "model"


def part_of(whole: torch.Tensor, index: Any) -> torch.Tensor:
    """What torch makes of an index; it cannot copy float4, but its bytes."""
    if whole.dtype == torch.float4_e2m1fn_x2:
        return whole.view(torch.uint8)[index].contiguous().view(whole.dtype)
    return whole[index]


def some_state(chance: random.Random) -> State:
    state = {}
    for number in range(8):
        shape = [chance.randrange(8) for _ in range(chance.randrange(1, 5))]
        dtype = chance.choice(list(DTYPES.values()))
        state[f"{number}"] = random_tensor(dtype, *shape, seed=number)
    return state | {"scalar": torch.tensor(chance.random())}


@every_format
@every_way
def test_parts_are_what_torch_makes_of_the_whole(tmp_path: Path, write: Write, way: str) -> None:
    for seed in range(12):
        chance = random.Random(seed)
        state = some_state(chance)
        write(state, tmp_path / "model")
        whole = tensors_by_name(veturboio.load(tmp_path / "model"))
        names = chance.sample(list(state), chance.randint(1, len(state)))
        cut = chance.sample(names, chance.randint(0, len(names)))
        slices = {name: some_index(chance, whole[name].shape) for name in cut}
        part = veturboio.load(tmp_path / "model", names=names, slices=slices, way=way)
        assert list(part) == names
        for name in names:
            expected = part_of(whole[name], slices.get(name, ...))
            assert same(part[name], expected), (seed, name, slices.get(name))
            assert part[name].is_contiguous()
        meta = veturboio.load(tmp_path / "model", "meta", names=names, slices=slices)
        for name, value in part.items():
            there = meta[name]
            assert there.is_meta
            assert (there.dtype, there.shape) == (value.dtype, value.shape)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("write", WRITERS[:2], ids=IDS[:2])
def test_every_dtype_along_every_dimension(tmp_path: Path, name: str, write: Write) -> None:
    """Elements are torch's: two float4 are one of them."""
    source = random_tensor(DTYPES[name], 4, 3, 6)
    write({"odd": random_tensor(torch.uint8, 1), "a": source}, tmp_path / "model")
    for index in [slice(1, 3), (slice(None), slice(2, 3)), (..., slice(1, 5)), (..., slice(-1, 9))]:
        loaded = veturboio.load(tmp_path / "model", slices={"a": index})
        assert same(loaded["a"], part_of(source, index)), index
        assert loaded["a"].data_ptr() % loaded["a"].element_size() == 0
        assert loaded["odd"].numel() == 1


@every_format
def test_what_is_not_sliced_is_whole(tmp_path: Path, write: Write) -> None:
    write(STATE, tmp_path / "model")
    whole = tensors_by_name(veturboio.load(tmp_path / "model"))
    loaded = veturboio.load(tmp_path / "model", slices={"weight": slice(2, 4)})
    assert list(loaded) == list(whole)
    assert_same(loaded, {**whole, "weight": whole["weight"][2:4]})


@every_format
def test_a_slice_along_rows_that_are_far_apart(tmp_path: Path, write: Write) -> None:
    """Longer and further apart than what is read at once, and no multiple of a page."""
    state = {"a": torch.arange(40 * 100_003, dtype=torch.int32).view(40, 100_003)}
    write(state, tmp_path / "model")
    whole = veturboio.load(tmp_path / "model")["a"]
    for index in [(slice(3, 39), slice(70_001, 99_999)), (slice(None), slice(0, 1)), slice(1, 39)]:
        for way in WAYS:
            loaded = veturboio.load(tmp_path / "model", slices={"a": index}, way=way)
            assert same(loaded["a"], whole[index]), (index, way)


@every_way
def test_slices_are_private_to_the_load(model: Path, way: str) -> None:
    slices = {"weight": slice(3, 5), "half": (slice(None), slice(1, 2))}
    before = model.read_bytes()
    one, two = (veturboio.load(model, slices=slices, way=way) for _ in range(2))
    one["weight"].zero_()
    one["half"].zero_()
    assert same(two["weight"], STATE["weight"][3:5])
    assert one["weight"].untyped_storage().nbytes() == one["weight"].nbytes
    assert one["half"].untyped_storage().nbytes() == one["half"].nbytes
    assert_same({**one, **{name: STATE[name] for name in slices}}, STATE)
    assert model.read_bytes() == before


STRIDED = {
    "turned": torch.randn(5, 4).t(),
    "permuted": torch.arange(60).view(3, 4, 5).permute(2, 0, 1),
    "every other": torch.arange(40).view(4, 10)[:, ::2],
    "later": torch.arange(40)[7:31].view(6, 4),
    "expanded": torch.arange(4).expand(3, 4),
}


@pytest.mark.parametrize("write", WRITERS[2:], ids=IDS[2:])
def test_tensors_that_are_not_in_row_major_order(tmp_path: Path, write: Write) -> None:
    write(STRIDED, tmp_path / "model")
    whole = veturboio.load(tmp_path / "model")
    for index in [slice(1, 3), (slice(1, 2), slice(0, 2)), (..., slice(-2, None)), slice(2, 1)]:
        loaded = veturboio.load(tmp_path / "model", slices=dict.fromkeys(STRIDED, index))
        assert_same(loaded, {name: value[index] for name, value in whole.items()})
    loaded = veturboio.load(tmp_path / "model", names=["permuted", "turned"])
    assert_same(loaded, {name: whole[name] for name in ("permuted", "turned")})
    assert loaded["turned"].stride() == whole["turned"].stride()


def test_every_slice_is_contiguous_and_has_a_storage_of_its_own(tmp_path: Path) -> None:
    torch.save(STRIDED, tmp_path / "model")
    loaded = veturboio.load(tmp_path / "model", slices=dict.fromkeys(STRIDED, slice(1, 3)))
    for name, value in loaded.items():
        assert value.is_contiguous(), name
        assert value.untyped_storage().nbytes() == value.nbytes, name


@pytest.mark.parametrize("write", WRITERS[2:4], ids=IDS[2:4])
def test_shared_storages_of_a_pytorch_file(tmp_path: Path, write: Write) -> None:
    base = torch.arange(48.0).view(8, 6)
    state = {"base": base, "rows": base[2:5], "turned": base.t(), "other": torch.arange(3)}
    write(state, tmp_path / "model")
    names = ["rows", "turned"]
    loaded = veturboio.load(tmp_path / "model", names=names)
    assert_same(loaded, {name: state[name] for name in names})
    loaded["rows"].zero_()
    assert loaded["turned"][:, 2:5].sum() == 0
    loaded = veturboio.load(tmp_path / "model", slices={"rows": slice(1, 2)})
    assert_same(loaded, {**state, "rows": base[3:4]})
    assert loaded["turned"].data_ptr() == loaded["base"].data_ptr()


def test_nested_values_go_by_the_names_that_lead_to_them(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    torch.save({"model": {"layers": [parameter, torch.ones(2)]}, "epoch": 3}, tmp_path / "model")
    loaded = veturboio.load(
        tmp_path / "model", names=["model.layers.0"], slices={"model.layers.0": slice(1, 3)}
    )
    assert list(loaded) == ["model.layers.0"]
    assert torch.equal(loaded["model.layers.0"], parameter[1:3])
    assert loaded["model.layers.0"].requires_grad
    assert loaded["model.layers.0"].is_leaf


@pytest.mark.parametrize("slices", [{"a": slice(4), "b": slice(2, 6)}, {"b": slice(2, 6)}])
def test_parts_of_one_tensor_do_not_share_memory(tmp_path: Path, slices: dict[str, slice]) -> None:
    tied = torch.arange(8.0)
    state = {"a": tied, "b": tied}
    veturboio.save_file(state, tmp_path / "model", force_save_shared_tensor=True)
    torch.save({"a": tied, "b": tied}, tmp_path / "model.pt")
    for name in ("model", "model.pt"):
        loaded = veturboio.load(tmp_path / name, slices=slices)
        loaded["a"].fill_(-1)
        assert loaded["b"].tolist() == [2, 3, 4, 5]


def test_aliases_go_by_either_name(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    state = {"embed": base, "head": base, "other": torch.ones(2)}
    veturboio.save_file(state, tmp_path / "model", force_save_shared_tensor=True)
    for names in (["head"], ["embed"], ["head", "embed"], ["other", "head"]):
        assert_same(
            veturboio.load(tmp_path / "model", names=names), {name: state[name] for name in names}
        )
    both = veturboio.load(tmp_path / "model", names=["head", "embed"])
    assert both["head"].data_ptr() == both["embed"].data_ptr()
    slices = {"head": slice(1, 3), "embed": (slice(None), slice(0, 2))}
    loaded = veturboio.load(tmp_path / "model", slices=slices)
    assert_same(loaded, {**state, "head": base[1:3], "embed": base[:, :2]})
    loaded = veturboio.load(tmp_path / "model", slices={"head": slice(1, 3)})
    assert_same(loaded, {**state, "head": base[1:3]})


@every_format
def test_names_come_in_the_order_in_which_they_are_asked_for(tmp_path: Path, write: Write) -> None:
    write(STATE, tmp_path / "model")
    names = ["step", "weight", "none", "step", "half", "weight"]
    for asked in (names, tuple(names), iter(names)):
        assert list(veturboio.load(tmp_path / "model", names=asked)) == [*names[:3], "half"]
    assert veturboio.load(tmp_path / "model", names=[]) == {}
    operator = torch.ops.veturboio.load(str(tmp_path / "model"), names=names)
    assert list(operator) == [*names[:3], "half"]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown name": ({"names": ["bias", "wieght"]}, ValueError, "wieght"),
    "unknown slice": ({"slices": {"wieght": slice(1)}}, ValueError, "wieght"),
    "unknown slice of nothing": ({"slices": {"wieght": ()}}, ValueError, "wieght"),
    "slice of what is not asked for": (
        {"names": ["bias"], "slices": {"weight": slice(1)}},
        ValueError,
        "weight",
    ),
    "too many dimensions": ({"slices": {"bias": (slice(1), slice(1))}}, ValueError, '"bias"'),
    "too many around ...": ({"slices": {"bias": (slice(9), ..., slice(9))}}, ValueError, "bias"),
    "slice of a scalar": ({"slices": {"step": slice(1)}}, ValueError, '"step"'),
    "backwards": (
        {"slices": {"bias": slice(None, None, -1)}},
        ValueError,
        "'bias'.* step -1, .*: load it whole and flip it",
    ),
    "no step": ({"slices": {"bias": slice(None, None, 0)}}, ValueError, "'bias'.* step 0"),
    "step that is none": ({"slices": {"bias": slice(1, 2, 0.5)}}, TypeError, "'bias'.* step 0.5"),
    "two ellipses": ({"slices": {"weight": (..., slice(1), ...)}}, ValueError, "'weight'"),
    "index beyond": ({"slices": {"bias": 12}}, ValueError, '"bias": index 12 is out of range'),
    "index before": ({"slices": {"weight": (..., -8)}}, ValueError, '"weight": index -8 is out of'),
    "index of nothing": ({"slices": {"none": (0, 0)}}, ValueError, '"none": index 0 is out of'),
    "index of a scalar": ({"slices": {"step": 0}}, ValueError, '"step": has 0 dimensions'),
    "index too many": ({"slices": {"bias": (0, 0)}}, ValueError, '"bias": has 1 dimensions'),
    "huge index": ({"slices": {"bias": -(10**30)}}, ValueError, '"bias": index .* is out of'),
    "fraction": ({"slices": {"bias": slice(0.5, 2)}}, TypeError, "bias"),
    "one name": ({"names": "weight"}, TypeError, "string 'weight'"),
    "name that is none": ({"names": [5]}, TypeError, "name 5 in names is not a str"),
    "number of names": ({"names": 5}, TypeError, "names is not a list of names but a int"),
}


@pytest.mark.parametrize(("options", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    model: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    for act in (veturboio.load, veturboio.explain):
        with pytest.raises(kind, match=words) as refused:
            act(model, **options)
        assert str(model) in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"names": "a"},
        {"slices": {"a": [3]}},
        {"slices": {"a": slice(0, 4, -2)}},
        {"map_location": {5: "cpu"}},
        {"state_dict": {"a": 5}},
        {"state_dict": {}, "dtype": torch.half},
    ],
)
def test_no_refusal_tells_secrets_of_an_address(options: dict[str, Any]) -> None:
    address = "https://me:password@host.invalid/model?X-Signature=secret"
    with pytest.raises((TypeError, ValueError), match=r"https://host\.invalid/model: ") as refused:
        veturboio.load(address, **options)
    assert "password" not in str(refused.value) and "secret" not in str(refused.value)


def test_names_may_come_from_a_generator(model: Path) -> None:
    wanted = (name for name in ("bias", "half"))
    loaded = veturboio.load(model, names=wanted, map_location=lambda _name: "cpu")
    assert_same(loaded, {name: STATE[name] for name in ("bias", "half")})


def test_ends_beyond_what_a_machine_counts_to(model: Path) -> None:
    loaded = veturboio.load(model, slices={"bias": slice(-(10**30), 10**30)})
    assert_same(loaded, STATE)


def test_tensors_that_are_filled_are_whole(model: Path) -> None:
    for options in ({"names": ["bias"]}, {"slices": {"bias": slice(2)}}):
        target = torch.zeros(12, dtype=torch.int64)
        with pytest.raises(ValueError, match="state_dict cannot be combined"):
            veturboio.load(model, state_dict={"bias": target}, **options)
        assert target.sum() == 0


@pytest.mark.parametrize("cuts", [[0], [0, 1], [0, 1, 2, 3]])
def test_cuts_of_the_operator_are_threes(model: Path, cuts: list[int]) -> None:
    with pytest.raises(ValueError, match="dimension, start and stop"):
        torch.ops.veturboio.load(str(model), slices={"bias": cuts})


@torch.jit.script
def shard(file: str, name: str, dim: int, start: int, stop: int) -> dict[str, torch.Tensor]:
    return torch.ops.veturboio.load(file, names=[name], slices={name: [dim, start, stop]})


def test_in_torchscript(model: Path) -> None:
    loaded = shard(str(model), "weight", -1, 2, -1)
    assert_same(loaded, {"weight": STATE["weight"][..., 2:-1]})
    with pytest.raises(RuntimeError, match="weights"):
        shard(str(model), "weights", 0, 0, 1)


def test_a_slice_of_a_tensor_that_is_not_asked_for_is_told_as_such(model: Path) -> None:
    with pytest.raises(ValueError, match='slices has "weight", which is not among names'):
        veturboio.load(model, names=["bias"], slices={"weight": slice(1)})


def test_a_dimension_is_cut_once(model: Path) -> None:
    cuts = {"weight": [2, 1, 6, 0, 2, 10]}
    loaded = torch.ops.veturboio.load(str(model), slices=cuts)
    assert same(loaded["weight"], STATE["weight"][2:10, :, 1:6])
    for again in (0, -3):
        cuts = {"weight": [0, 2, 10, again, -3, -1]}
        with pytest.raises(ValueError, match='"weight": dimension 0 of 3 is cut twice'):
            torch.ops.veturboio.load(str(model), slices=cuts)


def test_a_malformed_file_is_refused_though_the_part_is_sound(tmp_path: Path) -> None:
    header = {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [9], 4, 8)}
    (tmp_path / "model").write_bytes(file(header, bytes(8)))
    with pytest.raises(veturboio.FormatError, match='"b"'):
        veturboio.load(tmp_path / "model", names=["a"])


@pytest.mark.parametrize("way", [None, "read", "direct", "uring"])
def test_only_the_bytes_of_a_shard_leave_the_disk(tmp_path: Path, way: str | None) -> None:
    """An eighth of every tensor is at most 1.3 eighths of the file, and a constant for its head."""
    state = {f"{i}": torch.zeros(1024, 4000 + i, dtype=torch.uint8) for i in range(16)}
    wide = {"wide": torch.zeros(16, 2**21, dtype=torch.uint8)}
    path = tmp_path / "model"
    rows = {name: slice(384, 512) for name in state}
    columns = {"wide": (slice(None), slice(2**18, 2**19))}
    for tensors, slices in ((state, rows), (wide, columns)):
        veturboio.save_file(tensors, path)
        needs_disk(path)
        read = read_from_disk(lambda slices=slices: veturboio.load(path, slices=slices, way=way))
        assert path.stat().st_size / 8 <= read <= 1.3 * path.stat().st_size / 8 + 2**20


def test_bits_of_a_part_are_not_those_of_its_neighbours(tmp_path: Path) -> None:
    """A tensor of counters: one element too far would show."""
    source = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(256, 256)
    misaligned({"a": source}, tmp_path / "model")
    for row in range(0, 256, 51):
        for column in range(0, 256, 51):
            index = (slice(row, row + 3), slice(column, column + 2))
            loaded = veturboio.load(tmp_path / "model", slices={"a": index})
            assert bits(loaded["a"]) == bits(source[index])
