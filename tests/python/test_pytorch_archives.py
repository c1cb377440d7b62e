"""The containers that PyTorch files come in: how they are laid out, marked, named and mapped."""

from __future__ import annotations

import gc
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from attacks.pytorch import program as p
from attacks.pytorch.archive import MOVED_32, Entry, archive, extra_64
from attacks.pytorch.builder import entries, good, legacy, zipped
from conftest import Run
from probe import assert_same, maps_of, open_files, random_tensor
from pytorch_files import ALL_DTYPES, Tied, check, entries_of, load_by_torch, load_natively, rewrite
from values import assert_alike

import veturboio

STATE = {name: random_tensor(dtype, 5, seed=1) for name, dtype in ALL_DTYPES.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    return path


def test_what_the_builders_make_is_sound_where_nothing_lies(file: Path) -> None:
    """Else the attacks would be refused for faults of their own."""
    for data in (
        archive(good()),
        archive(good(), zip64={}),
        archive(good(), comment=b"a comment"),
        zipped(p.mapping(a=p.tensor(p.storage()))),
        legacy(),
    ):
        file.write_bytes(data)
        assert torch.equal(check(file)["a"], torch.arange(1.0, 5.0))


@pytest.mark.parametrize("shift", range(1, 64, 7))
def test_storages_at_any_address(file: Path, shift: int) -> None:
    """Archives of torch before 1.12 and of other writers: a tensor's elements must be aligned."""
    moved = [
        entry._replace(local={"extra": struct.pack("<2s", b"FB") + struct.pack("<H", n) + bytes(n)})
        for n, entry in enumerate(entries_of(file), start=shift)
    ]
    rewrite(file, moved)
    loaded = check(file)
    for tensor in loaded.values():
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_alignments_that_torch_can_write(file: Path) -> None:
    for alignment in (8, 64, 4096):
        with torch.utils.serialization.config.patch("save.storage_alignment", alignment):
            torch.save(STATE, file)
        check(file)


def test_without_checksums(file: Path) -> None:
    computes = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, file)
    finally:
        torch.serialization.set_crc32_options(computes)
    check(file)


@pytest.mark.parametrize("order", ["little", "big", None])
def test_byte_orders(file: Path, order: str | None) -> None:
    marked = [entry for entry in entries_of(file) if not entry.name.endswith("/byteorder")]
    if order is not None:
        marked.insert(1, Entry("model/byteorder", order.encode()))
    rewrite(file, marked)
    loaded = check(file)
    ours, theirs = loaded["int32"].numpy(), STATE["int32"].numpy()
    assert (ours == (theirs.byteswap() if order == "big" else theirs)).all()
    meta = load_natively(file, map_location="meta")
    assert meta["int32"].dtype == torch.int32


MARKS: dict[str, list[bytes | None]] = {
    "version": [b"1\n", b"2", b"3\n\n", b"10\n"],
    ".data/serialization_id": [None, b"", b"9" * 10_000],
    ".format_version": [None, b"", b"2"],
    ".storage_alignment": [None, b"1", b"4096"],
}


@pytest.mark.parametrize("name", MARKS)
def test_what_else_an_archive_says_of_itself(file: Path, name: str) -> None:
    """It varies with the writer, and no tensor depends on it."""
    there = entries_of(file)
    others = [entry for entry in there if entry.name != f"model/{name}"]
    assert len(others) == len(there) - 1
    for content in MARKS[name]:
        marks = [] if content is None else [Entry(f"model/{name}", content)]
        rewrite(file, [*others, *marks])
        check(file)


def test_byte_order_of_the_old_format(file: Path) -> None:
    """Its storages are little-endian whoever wrote them; torch ignores what the file says."""
    for little in (p.TRUE, p.FALSE):
        file.write_bytes(legacy(facts=p.mapping(little_endian=little)))
        assert torch.equal(check(file)["a"], torch.arange(1.0, 5.0))


@pytest.mark.parametrize("name", ["model", "a b.c.pt", "é漢", "archive.zip", "x" * 200])
def test_any_name(tmp_path: Path, name: str) -> None:
    """torch names the directory in the archive after the file, which may be renamed after."""
    path = tmp_path / name
    torch.save(STATE, path)
    check(path)
    path.rename(tmp_path / "other.bin")
    loaded = check(tmp_path / "other.bin")
    (tmp_path / "other.bin").rename(tmp_path / "other.safetensors")  # the name decides nothing
    assert_alike(load_natively(tmp_path / "other.safetensors"), loaded)


def test_orders_of_entries(file: Path) -> None:
    """Neither the directory nor the records need the order of the pickle."""
    there = entries_of(file)
    for order in (there[::-1], sorted(there), sorted(there, key=lambda entry: len(entry.data))):
        rewrite(file, order)
        assert_alike(load_natively(file), STATE, storages=False)


def test_entries_that_nobody_asks_for(file: Path) -> None:
    """Compressed, empty or large: TorchScript and other writers add their own."""
    packed = {"method": 8, "size": 1 << 30}
    more = [
        Entry("model/code/a.py", b"\x03\0", packed, packed),
        Entry("model/data/", b""),
        Entry("model/data/1000", bytes(1000)),
        Entry("model/extra/notes.txt", b"hello"),
    ]
    rewrite(file, [*entries_of(file), *more])
    check(file)


def test_comments(file: Path) -> None:
    there = entries_of(file)
    for comment in (b"x", b"PK\x05\x06", b"PK\x05\x06" * 1000, bytes(65_535)):
        rewrite(file, there, comment=comment)
        assert_alike(load_natively(file), STATE, storages=False)
        rewrite(file, there, comment=comment, zip64={})
        assert_alike(load_natively(file), STATE, storages=False)


def test_other_devices(file: Path) -> None:
    """Tensors that were saved on a device come to the CPU."""
    for location in ("cuda:0", "cuda:7", "mps", "meta?"):
        value = p.mapping(a=p.tensor(p.storage(location=location)))
        file.write_bytes(zipped(value))
        assert torch.equal(load_natively(file)["a"], torch.arange(1.0, 5.0))


def test_wide_fields_in_small_archives(file: Path) -> None:
    """zip64 where it is not needed: sizes and place of each entry in its extra field."""
    widened, at = [], 0
    for entry in entries_of(file):
        size = len(entry.data)
        local = {"packed": MOVED_32, "size": MOVED_32, "extra": extra_64(size, size)}
        listed = {**local, "local": MOVED_32, "extra": extra_64(size, size, at)}
        widened.append(entry._replace(local=local, listed=listed))
        at += 30 + len(entry.name) + 20 + size
    rewrite(file, widened, zip64={})
    check(file)


def test_beyond_four_gibibytes(file: Path) -> None:
    """The file is sparse, and what no tensor needs is neither read nor mapped into memory."""
    hole = 5 << 30
    there = entries(p.program(p.mapping(a=p.tensor(p.storage()))))
    wide = {"packed": MOVED_32, "size": MOVED_32, "extra": extra_64(hole, hole)}
    padding = Entry("archive/padding", b"", wide, wide)
    start = archive([padding])
    start = start[: start.index(b"PK\x01\x02")]
    at, rest = hole + len(start), archive(there)
    directory = rest.index(b"PK\x01\x02")
    listed, place = [], at
    for entry in there:
        listed.append(entry._replace(listed={"local": MOVED_32, "extra": extra_64(place)}))
        place += 30 + len(entry.name) + len(entry.data)
    whole = archive([padding, *listed], zip64={})
    tail = whole[whole.index(b"PK\x01\x02") :]
    end = tail.index(b"PK\x06\x06")
    closing = archive([padding, *listed], zip64={"start": place, "locator": {"at": place + end}})
    with file.open("wb") as opened:
        opened.write(start)
        opened.seek(at)
        opened.write(rest[:directory] + closing[whole.index(b"PK\x01\x02") :])
    assert file.stat().st_size > hole
    before = resident()
    assert torch.equal(check(file)["a"], torch.arange(1.0, 5.0))
    assert resident() - before < 100 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_meta_reads_no_storage(file: Path) -> None:
    """A storage of 5 GiB that is a hole: described at once."""
    hole = 5 << 30
    value = p.mapping(a=p.tensor(p.storage(elements=hole // 4), shape=p.numbers(hole // 4)))
    wide = {"packed": MOVED_32, "size": MOVED_32, "extra": extra_64(hole, hole)}
    there = entries(p.program(value), {})
    data = archive([*there, Entry("archive/data/0", b"", wide, wide)], zip64={})
    directory = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x06\x06") + hole
    said = {"start": directory + hole, "locator": {"at": end}}
    data = archive([*there, Entry("archive/data/0", b"", wide, wide)], zip64=said)
    with file.open("wb") as opened:
        opened.write(data[:directory])
        opened.seek(directory + hole)
        opened.write(data[directory:])
    before = resident()
    meta = load_natively(file, map_location="meta")["a"]
    assert (meta.shape, meta.dtype) == ((hole // 4,), torch.float32)
    assert resident() - before < 100 << 20


class Nested(torch.nn.Module):
    """Submodules, buffers of both kinds, a tied parameter and attributes that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = Tied()
        self.scale = torch.nn.Parameter(torch.rand(3, 4).t()[1:], requires_grad=False)
        self.register_buffer("count", torch.arange(6)[2:])
        self.name, self.sizes, self.flag = "nested", [1, 2, 3], True
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(12)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x * self.scale.sum() + self.count.sum() + len(self.sizes)


@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript_archives(file: Path, frozen: bool) -> None:
    scripted = torch.jit.script(Nested().eval())
    scripted = torch.jit.freeze(scripted, preserved_attrs=["scale"]) if frozen else scripted
    torch.jit.save(scripted, file)
    expected = {name: t.detach() for name, t in torch.jit.load(file).state_dict().items()}
    for loaded in (load_natively(file), torch.ops.veturboio.load(str(file))):
        assert type(loaded) is dict
        assert_same({name: tensor.detach() for name, tensor in loaded.items()}, expected)
        for name, tensor in loaded.items():
            assert tensor.stride() == expected[name].stride(), name
    if not frozen:
        assert "tied.layers.1.running_mean" in loaded
        shared = loaded["tied.embedding.weight"], loaded["tied.head.weight"]
        assert shared[0].data_ptr() == shared[1].data_ptr()


class Holder(torch.nn.Module):
    """Tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(2))
        self.register_buffer("unsaved", torch.rand(3), persistent=False)
        self.plain = torch.rand(4)
        self.listed = [torch.rand(2), self.plain]
        self.mapped = {"key": torch.rand(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.plain.sum() + self.listed[0].sum() + self.mapped["key"] + self.unsaved.sum()


def test_tensors_of_a_torchscript_archive_that_are_no_parameters(file: Path) -> None:
    holder = Holder()
    torch.jit.save(torch.jit.script(holder), file)
    expected = {name: getattr(holder, name).detach() for name in ("weight", "unsaved", "plain")}
    expected |= {"listed.0": holder.listed[0], "listed.1": holder.plain}
    expected |= {"mapped.key": holder.mapped["key"]}
    loaded = load_natively(file)
    assert_same({name: tensor.detach() for name, tensor in loaded.items()}, expected)
    assert loaded["listed.1"].data_ptr() == loaded["plain"].data_ptr()


def test_a_torchscript_archive_without_parameters(file: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)
    assert load_natively(file) == {}


def test_tensors_lie_in_a_map_of_the_file(file: Path) -> None:
    torch.save({"a": torch.rand(100_000), "b": torch.rand(10).t()}, file)
    before, files = file.read_bytes(), open_files()
    loaded = load_natively(file)
    assert open_files() == files
    places = [line.split()[0].split("-") for line in maps_of(file)]
    address = loaded["a"].data_ptr()
    assert any(int(start, 16) <= address < int(end, 16) for start, end in places)
    other = load_natively(file)
    for tensor in loaded.values():
        tensor.fill_(7)
    assert file.read_bytes() == before
    assert_alike(other, load_by_torch(file))
    last = loaded["a"][5:7]
    del loaded, other, tensor
    gc.collect()
    assert last.tolist() == [7, 7]
    assert maps_of(file)
    del last
    gc.collect()
    assert maps_of(file) == []


def test_tensors_of_one_file_have_versions_of_their_own(file: Path) -> None:
    base = torch.rand(4)
    torch.save({"a": base, "view": base[1:], "other": torch.rand(3)}, file)
    loaded = load_natively(file)
    weight = loaded["a"].requires_grad_()
    product = (weight * loaded["other"].sum()).sum()
    loaded["view"].detach()
    loaded["other"].add_(1)
    product.backward()
    assert weight.grad is not None


def test_resizing_takes_memory_of_its_own(file: Path) -> None:
    """A storage over a file cannot grow in place; what torch.load's can, ours must not corrupt."""
    before = file.read_bytes()
    tensor = load_natively(file)["float32"]
    try:
        tensor.resize_(1000)
        tensor.fill_(1)
    except RuntimeError as refusal:
        assert "resiz" in str(refusal)
    assert file.read_bytes() == before
    assert_alike(load_natively(file), STATE, storages=False)


FALLBACK = """
import sys, warnings, torch, veturboio
known, other = sys.argv[1:]
torch.ops.veturboio.load(known)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    veturboio.load(known)
    assert not said
    one = veturboio.load(other)
    assert len(said) == 1, said
    assert said[0].category is UserWarning
    assert said[0].filename == "<test>", said[0].filename
    text = str(said[0].message)
    assert text.startswith(f"read {other}: ") and "torch.load(weights_only=True)" in text, text
    assert "_get_layout" in text, text
    veturboio.load(other)
    assert len(said) == 1
assert one["c"] is torch.sparse_coo and torch.equal(one["t"], torch.ones(2))
"""


def test_what_only_torch_knows_is_left_to_torch_and_said_once(file: Path, run: Run) -> None:
    other = file.with_name("other.pt")
    torch.save({"c": torch.sparse_coo, "t": torch.ones(2)}, other)
    run(FALLBACK, file, other)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["sparse", "conjugated", "negated", "quantized", "bits"])
def test_tensors_that_only_torch_knows(file: Path, kind: str, new: bool) -> None:
    if kind == "bits" and not new:
        pytest.skip("torch cannot read these from the old format")
    numbers = torch.tensor([[1 + 2j, 0], [3, -1j]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "conjugated": lambda: numbers.conj(),
            "negated": lambda: numbers.conj().imag,
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8),
            "bits": lambda: torch.arange(4, dtype=torch.uint8).view(torch.bits8),
        }[kind]()
        torch.save({"a": tensor, "b": torch.ones(2)}, file, _use_new_zipfile_serialization=new)
        theirs = load_by_torch(file)
        assert_alike(veturboio.load(file), theirs, storages=False)
    with pytest.raises(ValueError, match="pickle uses"):
        torch.ops.veturboio.load(str(file))
