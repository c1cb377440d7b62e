"""What users of the published library rely on, parameter by parameter, as they would write it.

Each test fails if its parameter is ignored. How well each one is done is told elsewhere.
"""

from __future__ import annotations

import functools
import inspect
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from forked import Child, Done
from probe import assert_same, has_help, header_of, maps_of, read_from_disk, threads_of

import veturboio
import veturboio.convert

State = dict[str, torch.Tensor]

#: Mixed dtypes, one tensor that is not contiguous, and enough bytes for several threads.
STATE: State = {
    "large": torch.arange(4_000_000),
    "turned": torch.arange(12.0).reshape(3, 4).t(),
    "half": torch.randn(33).bfloat16(),
    "flag": torch.tensor([True]),
}
SHARED = torch.arange(100.0)
TIED: State = {"a": SHARED, "b": SHARED}
SHARE = {"force_save_shared_tensor": True}
PINMEM = "use_pinmem attribute of an exising IOHelper should not be changed"

#: The published parameters, in their order.
SIGNATURES = {
    "load": "file, map_location='cpu', enable_fast_mode=True, num_thread=32, helper=None, "
    "use_pinmem=False, use_direct_io=False, use_cipher=None, state_dict=None",
    "load_to_shmem": "file, num_thread=32, helper=None, use_direct_io=False, use_cipher=None",
    "save_file": "state_dict, file, force_contiguous=True, force_save_shared_tensor=False, "
    "force_clone_shared_tensor=False, metadata=None, use_cipher=False, helper=None, "
    "enable_fast_mode=False",
    "save_model": "model, file, use_cipher=False",
    "save_pt": "state_dict, file, use_cipher=False",
    "init_io_helper": "",
}


@pytest.mark.parametrize(("name", "text"), SIGNATURES.items(), ids=SIGNATURES)
def test_names_order_and_defaults(name: str, text: str) -> None:
    """There may be more parameters behind these, if nobody has to give them."""
    published = list(inspect.signature(eval(f"lambda {text}: None")).parameters.values())
    ours = list(inspect.signature(getattr(veturboio, name)).parameters.values())
    plain = [each.replace(annotation=each.empty) for each in ours]
    assert plain[: len(published)] == published
    assert all(each.default is not each.empty for each in plain[len(published) :])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    veturboio.save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


class BytesPath:
    """A PathLike of bytes, as the standard library has none."""

    def __init__(self, path: Path) -> None:
        self._path = bytes(path)

    def __fspath__(self) -> bytes:
        return self._path


PATHS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "bytes": bytes,
    "PathLike": lambda path: path,
    "PathLike of bytes": BytesPath,
    "no text": lambda path: bytes(path) + b"\xff",
}


@pytest.mark.parametrize("kind", PATHS.values(), ids=PATHS)
def test_file(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    file, module = kind(tmp_path / "a"), torch.nn.Linear(2, 2)
    veturboio.save_file(STATE, file)
    assert_same(veturboio.load(file), STATE)
    shmem = veturboio.load_to_shmem(file)
    assert shmem.size == os.stat(file).st_size  # noqa: PTH116 - of any kind of path
    shmem.close()
    shmem.unlink()
    veturboio.save_model(module, file)
    assert_same(veturboio.load(file), dict(module.state_dict()))
    veturboio.save_pt(TIED, file)
    assert_same(veturboio.load(file), TIED)


def test_file_of_either_format(tmp_path: Path) -> None:
    """What does not begin with a brace is tried as a PyTorch file; the name decides nothing."""
    torch.save(STATE, tmp_path / "new.safetensors")
    torch.save(STATE, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": SHARED}, tmp_path / "model.pt")
    assert_same(veturboio.load(tmp_path / "new.safetensors"), STATE)
    assert_same(veturboio.load(tmp_path / "old.safetensors"), STATE)
    assert_same(veturboio.load(tmp_path / "model.pt"), {"a": SHARED})
    (tmp_path / "short").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="short: "):
        veturboio.load(tmp_path / "short")


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_map_location(model: Path, device: str | torch.device) -> None:
    loaded = veturboio.load(model, device)
    assert {name: (value.device.type, value.shape) for name, value in loaded.items()} == {
        name: ("meta", value.shape) for name, value in STATE.items()
    }
    for unknown in ("npu", "cuda:99"):  # there is none: tensors on the CPU are no answer
        with pytest.raises(RuntimeError):
            veturboio.load(model, unknown)


def zeros() -> State:
    return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in STATE.items()}


def to_shmem(file: Path, **options: Any) -> None:
    shmem = veturboio.load_to_shmem(file, **options)
    shmem.close()
    shmem.unlink()


def test_num_thread(model: Path) -> None:
    """Each of these would use more, if it might: the file has four pieces."""
    given = zeros()
    acts = (
        lambda count: veturboio.load(model, num_thread=count, use_direct_io=True),
        lambda count: veturboio.load(model, num_thread=count, state_dict=given),
        lambda count: to_shmem(model, num_thread=count),
    )
    for act in acts:
        assert threads_of(functools.partial(act, 2), enough=3) <= 2
        assert has_help(functools.partial(act, 2))
        assert not has_help(functools.partial(act, 1))
        with pytest.raises(ValueError, match="num_thread must be at least 1"):
            act(0)


def test_enable_fast_mode_of_load(model: Path, tmp_path: Path) -> None:
    """Without it the caller's thread is the only one; the result is the same, aliases and all."""
    slow = {"enable_fast_mode": False}
    assert_same(veturboio.load(model, **slow), STATE)
    assert_same(veturboio.load(model, **slow, state_dict=zeros()), STATE)
    veturboio.save_file(TIED, tmp_path / "tied", **SHARE)
    assert_same(veturboio.load(tmp_path / "tied", **slow), TIED)
    given = zeros()
    for fast in (True, False):
        load = functools.partial(veturboio.load, model, enable_fast_mode=fast, state_dict=given)
        assert has_help(load) == fast


def test_helper_and_use_pinmem_of_load(model: Path) -> None:
    """As the documentation has it: one helper for load after load, and its use never changes."""
    for pinned in (False, True):
        helper = veturboio.init_io_helper()
        for device in ("cpu", "cpu", "meta"):
            veturboio.load(model, map_location=device, use_pinmem=pinned, helper=helper)
        loaded = veturboio.load(model, use_pinmem=pinned, helper=helper)
        assert_same(loaded, STATE)
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match=PINMEM):
                veturboio.load(model, use_pinmem=not pinned, helper=helper)


def test_use_direct_io_of_load(model: Path) -> None:
    """The tensors lie in memory of their own, not in a map of the file."""
    loaded = veturboio.load(model, use_direct_io=True)
    assert_same(loaded, STATE)
    assert maps_of(model) == []


@pytest.fixture
def needs_direct_io(model: Path) -> None:
    """Asked without the library, which must not take its own failure for the disk's."""
    try:
        file = os.open(model, os.O_RDONLY | os.O_DIRECT)
        found = read_from_disk(lambda: os.preadv(file, [mmap.mmap(-1, mmap.PAGESIZE)], 0))
        os.close(file)
    except OSError:
        found = 0
    if found == 0:
        pytest.skip("this file system has no O_DIRECT, or no disk under it")


def convert_here(file: Path, use_direct_io: bool = False) -> None:
    flags = ["--overwrite", *(["--use-direct-io"] if use_direct_io else [])]
    torch.save(STATE, file.with_name("model.pt"))
    assert veturboio.convert.main(["-i", str(file.with_name("model.pt")), *flags]) == 0


@pytest.mark.usefixtures("needs_direct_io")
@pytest.mark.parametrize("act", [veturboio.load, to_shmem, convert_here])
def test_use_direct_io_reads_from_the_disk(model: Path, act: Callable[..., object]) -> None:
    """What is in the page cache is not read again, unless it is gone past."""
    assert len(model.read_bytes()) > 32_000_000
    assert read_from_disk(lambda: act(model)) < 1_000_000
    assert read_from_disk(lambda: act(model, use_direct_io=True)) > 31_000_000


def test_use_cipher(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no encryption yet: asked for in any way, plain bytes are not taken for it."""
    target, module = model.with_name("new"), torch.nn.Linear(2, 2)
    saves = (
        lambda **options: veturboio.save_file(STATE, target, **options),
        lambda **options: veturboio.save_model(module, target, **options),
        lambda **options: veturboio.save_pt(STATE, target, **options),
    )
    loads = (
        lambda **options: veturboio.load(model, **options),
        lambda **options: veturboio.load(model, **options, state_dict=zeros()),
        lambda **options: to_shmem(model, **options),
    )
    for act in (*saves, *loads):
        with pytest.raises(NotImplementedError, match="use_cipher"):
            act(use_cipher=True)
    monkeypatch.setenv("VETURBOIO_USE_CIPHER", "1")
    for act in (*saves, *loads):
        with pytest.raises(NotImplementedError, match="use_cipher"):
            act()
    assert not target.exists()
    for act in loads:
        act(use_cipher=False)


def test_state_dict_of_load(model: Path) -> None:
    given = zeros()
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    loaded = veturboio.load(model, state_dict=given)
    assert {name: tensor.data_ptr() for name, tensor in loaded.items()} == addresses
    assert_same(given, STATE)


REFUSED = {
    "allocated tensor not contiguous": lambda it: torch.zeros(*it.shape[::-1], dtype=it.dtype).t(),
    "allocated tensor dtype not match": lambda it: torch.zeros(it.shape, dtype=torch.int32),
    "allocated tensor size not enough": lambda it: torch.zeros(it.numel() - 1, dtype=it.dtype),
}


@pytest.mark.parametrize(("text", "wrong"), REFUSED.items(), ids=REFUSED)
def test_state_dict_that_does_not_fit(model: Path, text: str, wrong: Callable) -> None:
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=text):
            veturboio.load(model, state_dict={**zeros(), "turned": wrong(STATE["turned"])})


def test_load_to_shmem_and_its_helper(model: Path) -> None:
    shmem = veturboio.load_to_shmem(model, helper=veturboio.init_io_helper())
    try:
        assert bytes(shmem.buf) == model.read_bytes()
        for direct in (False, True):
            assert_same(veturboio.load(f"/dev/shm/{shmem.name}", use_direct_io=direct), STATE)
    finally:
        shmem.close()
        shmem.unlink()
    with pytest.raises(TypeError, match="helper"):
        veturboio.load_to_shmem(model, helper=object())


def test_save_file_and_other_readers(model: Path) -> None:
    assert_same(safetensors.torch.load_file(model), STATE)


def test_force_contiguous(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"turned"'):
        veturboio.save_file(STATE, tmp_path / "new", force_contiguous=False)
    assert list(tmp_path.iterdir()) == []


def test_shared_tensors(tmp_path: Path) -> None:
    """Refused, or stored once under a name that the metadata tell, or stored in full."""
    before, file = dict(TIED), tmp_path / "new"
    for clone in (False, True):
        with pytest.raises(ValueError, match=r'"a", "b" share memory'):
            veturboio.save_file(TIED, file, force_clone_shared_tensor=clone)
    veturboio.save_file(TIED, file, **SHARE)
    header = header_of(file)
    assert header.keys() - {"__metadata__"} == {"a"} and header["__metadata__"]["b"] == "a"
    loaded = veturboio.load(file)
    assert_same(loaded, TIED)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    veturboio.save_file(TIED, file, **SHARE, force_clone_shared_tensor=True)
    assert header_of(file).keys() == {"a", "b"}
    assert all(TIED[name] is tensor for name, tensor in before.items()) and len(TIED) == 2


@pytest.mark.parametrize("given", [None, {}, {"format": "pt", "b": "2", "a": "1"}])
def test_metadata(tmp_path: Path, given: dict[str, str] | None) -> None:
    veturboio.save_file(STATE, tmp_path / "new", metadata=given)
    assert header_of(tmp_path / "new").get("__metadata__", {}) == (given or {})
    assert ("__metadata__" in header_of(tmp_path / "new")) == bool(given)


def test_helper_of_save_file(tmp_path: Path) -> None:
    helper = veturboio.init_io_helper()
    veturboio.save_file(STATE, tmp_path / "new", helper=helper)
    assert helper.nbytes() > 0
    assert_same(veturboio.load(tmp_path / "new"), STATE)


def test_enable_fast_mode_of_save_file(model: Path) -> None:
    """It may change the time and nothing else: no dtype misaligned, nothing written raw."""
    veturboio.save_file(STATE, model.with_name("new"), enable_fast_mode=True)
    assert model.with_name("new").read_bytes() == model.read_bytes()


def test_save_model(tmp_path: Path) -> None:
    module = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))
    module[1].weight = module[0].weight
    veturboio.save_model(module, tmp_path / "new")
    loaded = veturboio.load(tmp_path / "new")
    assert_same(loaded, dict(module.state_dict()))
    assert loaded["0.weight"].data_ptr() == loaded["1.weight"].data_ptr()


def test_save_pt(tmp_path: Path) -> None:
    veturboio.save_pt(TIED, tmp_path / "new")
    assert_same(torch.load(tmp_path / "new", weights_only=True), TIED)


CONVERT = """
import runpy
runpy.run_module("veturboio.convert", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Done]:
    torch.save(STATE, tmp_path / "model.pt")
    return lambda *words: Child(CONVERT, *words, cwd=tmp_path).wait()


def test_convert_input_and_output(convert: Callable[..., Done], tmp_path: Path) -> None:
    for words in (
        ["-i", "model.pt"],
        ["-i", "model.pt", "-o", "short.safetensors"],
        ["--input", "model.pt", "--output", "long.safetensors"],
    ):
        assert convert(*words).returncode == 0
    for name in ("model", "short", "long"):
        assert_same(safetensors.torch.load_file(tmp_path / f"{name}.safetensors"), STATE)
    failed = convert("-i", "missing.pt")
    assert failed.returncode == 1 and "No such file" in failed.stderr


@pytest.mark.parametrize("flag", ["-d", "--dry-run"])
def test_convert_dry_run(convert: Callable[..., Done], tmp_path: Path, flag: str) -> None:
    assert convert("-i", "model.pt", flag).returncode == 0
    assert not (tmp_path / "model.safetensors").exists()


def test_convert_overwrite(convert: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    assert convert("-i", "model.pt").returncode == 1
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"
    assert convert("-i", "model.pt", "--overwrite").returncode == 0
    assert_same(veturboio.load(tmp_path / "model.safetensors"), STATE)


def test_convert_enable_to_valid_state_dict(convert: Callable[..., Done], tmp_path: Path) -> None:
    views = {"head": SHARED[:7], "tail": SHARED[5:]}
    torch.save({**views, "epoch": 3}, tmp_path / "model.pt")
    refused = convert("-i", "model.pt")
    assert refused.returncode == 1 and "epoch" in refused.stderr
    assert convert("-i", "model.pt", "--enable-to-valid-state-dict").returncode == 0
    assert_same(safetensors.torch.load_file(tmp_path / "model.safetensors"), views)


def test_convert_validate_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that gives back other bytes, only the validation tells."""
    torch.save({"a": SHARED}, tmp_path / "model.pt")
    words = ["-i", str(tmp_path / "model.pt"), "--overwrite"]
    assert veturboio.convert.main([*words, "--validate-result"]) == 0
    other = {"a": SHARED + 1}
    monkeypatch.setattr(
        veturboio.convert, "write", lambda _, target: veturboio.save_file(other, target)
    )
    assert veturboio.convert.main(words) == 0
    assert veturboio.convert.main([*words, "--validate-result"]) == 1
