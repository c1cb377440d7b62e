"""What a store does wrong: every load is right or a clear error, and nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudserver
import pytest
import torch
from cloudserver import Store

import veturboio

MIB = 1 << 20

#: Loads under random faults.
LOADS = int(os.environ.get("VETURBOIO_FAULTY_LOADS", "200"))

PASSING = [
    {"status": 500},
    {"status": 503},
    {"status": 429},
    "reset",
    "lose",
    "cut",
    "stall",
    "short",
    "wrong_range",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if reason := cloudserver.unavailable():
        pytest.skip(reason)
    with cloudserver.serving(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    server.behave()
    yield server
    server.behave()
    assert server.uploads() == []


def state(seed: int = 0, mib: int = 40) -> dict[str, torch.Tensor]:
    numbers = torch.arange(seed, seed + mib * MIB // 8)
    return {"a": numbers[: len(numbers) // 2], "b": numbers[len(numbers) // 2 :]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save(store: Store, key: str, saved: dict[str, torch.Tensor], **options: Any) -> None:
    given = {**store.options, **options.pop("storage_options", {})}
    veturboio.save_file(saved, f"s3://bucket/{key}", storage_options=given, **options)


def load(store: Store, key: str, **options: Any) -> dict[str, torch.Tensor]:
    given = {**store.options, **options.pop("storage_options", {})}
    return veturboio.load(f"s3://bucket/{key}", storage_options=given, **options)


def test_few_requests_and_only_what_is_wanted(store: Store) -> None:
    saved = state(mib=100)
    save(store, "few", saved)
    before = store.stats()
    assert same(load(store, "few"), saved)
    made = store.stats()["requests"] - before["requests"]
    assert made <= 100 * MIB / (8 * MIB) + 2
    before = store.stats()
    part = load(store, "few", slices={"b": slice(0, 1000)}, names=["b"])
    assert torch.equal(part["b"], saved["b"][:1000])
    after = store.stats()
    assert after["requests"] - before["requests"] <= 2
    assert after["bytes"] - before["bytes"] < MIB


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_a_pytorch_file_of_many_tensors_takes_few_requests(
    store: Store, tmp_path: Path, new: bool
) -> None:
    """Each of them has a few bytes of its own before it."""
    saved = {str(index): torch.full((999,), index) for index in range(1000)}
    torch.save(saved, tmp_path / "pt", _use_new_zipfile_serialization=new)
    store.request("PUT", "many.pt", (tmp_path / "pt").read_bytes())
    before = store.stats()
    veturboio.explain("s3://bucket/many.pt", storage_options=store.options)
    assert store.stats()["requests"] - before["requests"] <= 30
    assert same(load(store, "many.pt"), saved)


def test_describing_a_pytorch_file_does_not_read_it(store: Store, tmp_path: Path) -> None:
    saved = {str(index): torch.zeros(100_000, dtype=torch.uint8) for index in range(200)}
    torch.save(saved, tmp_path / "pt")
    store.request("PUT", "some.pt", (tmp_path / "pt").read_bytes())
    before = store.stats()
    veturboio.load("s3://bucket/some.pt", "meta", storage_options=store.options)
    assert store.stats()["bytes"] - before["bytes"] < 3 * MIB


def test_a_function_of_names_reads_with_the_options_of_the_load(store: Store) -> None:
    save(store, "asked", state(mib=1))
    asked: list[str] = []

    def place(name: str) -> str:
        asked.append(name)
        return "cpu"

    assert same(load(store, "asked", map_location=place), state(mib=1))
    assert asked == ["a", "b"]


def test_the_speed_of_many_connections(store: Store) -> None:
    save(store, "speed", state(mib=100))
    store.behave(rate=5 * MIB, delay_ms=30)
    before = time.monotonic()
    assert same(load(store, "speed", num_thread=12), state(mib=100))
    # One connection takes 20 s; two rounds of 8 MiB and the first request take 4.8 s where
    # nothing else goes on.
    assert time.monotonic() - before < 15


def test_several_shards_at_once(store: Store) -> None:
    shards = {f"shard-{index}": state(index, mib=24) for index in range(4)}
    for key, saved in shards.items():
        save(store, key, saved)
    store.behave(rate=10 * MIB, delay_ms=50)
    most = 0
    with ThreadPoolExecutor(len(shards)) as pool:
        loads = {key: pool.submit(load, store, key, num_thread=3) for key in shards}
        while not all(each.done() for each in loads.values()):
            most = max(most, store.stats()["open"])
            time.sleep(0.02)
    assert all(same(loads[key].result(), saved) for key, saved in shards.items())
    # One load by itself has three, and the question how many there are is another.
    assert most > 4


@pytest.mark.parametrize("fault", PASSING, ids=str)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_what_passes_is_tried_again(store: Store, fault: Any, method: str) -> None:
    saved = state(7)
    options = {"read_timeout": "1s"}
    if method != "GET":
        if fault == "lose" and method == "POST":
            pytest.skip("an upload whose name is lost cannot be aborted, see the README")
        store.behave(faults=[fault], chance=1, count=3, methods=[method])
        save(store, "again", saved, storage_options=options)
        store.behave()
        assert same(load(store, "again"), saved)
        return
    save(store, "again", saved)
    store.behave(faults=[fault], chance=1, count=4, methods=["GET"])
    assert same(load(store, "again", storage_options=options), saved)


def test_an_answer_that_never_comes(store: Store) -> None:
    save(store, "hang", state(1))
    store.behave(faults=["hang"], chance=1, count=2)
    assert same(load(store, "hang", storage_options={"read_timeout": "1s"}), state(1))
    store.behave(faults=["hang"], chance=1)
    options = {"read_timeout": "1s", "retry_timeout": "2"}
    with pytest.raises(TimeoutError, match=r"open s3://bucket/hang: .*timed out.*last of \d tries"):
        load(store, "hang", storage_options=options)


def test_retry_after_is_kept(store: Store) -> None:
    save(store, "later", {"a": torch.ones(3)})
    store.behave(faults=[{"status": 503}], chance=1, count=1, retry_after=2)
    before = time.monotonic()
    load(store, "later")
    assert time.monotonic() - before >= 2


@pytest.mark.parametrize("fault", [{"status": 500}, "reset", "cut", "short"], ids=str)
def test_patience_ends_with_one_clear_error(store: Store, fault: Any) -> None:
    save(store, "never", state(1))
    store.behave(faults=[fault], chance=1, methods=["GET"])
    with pytest.raises(OSError, match=r"s3://bucket/never: .*the last of \d+ tries in") as failed:
        load(store, "never", storage_options={"retry_timeout": "1"})
    assert store.secret not in str(failed.value)


@pytest.mark.parametrize("fault", ["long", "wrong_length"])
def test_what_a_server_lies_about(store: Store, fault: str) -> None:
    save(store, "lies", state(3))
    store.behave(faults=[fault], chance=0.5, methods=["GET"])
    for _ in range(5):
        try:
            assert same(load(store, "lies", storage_options={"retry_timeout": "1"}), state(3))
        except (OSError, veturboio.FormatError) as error:
            assert "s3://bucket/lies" in str(error)


def test_a_server_that_ignores_ranges(store: Store) -> None:
    small = {"a": torch.arange(1000)}
    save(store, "small", small)
    save(store, "large", state())
    store.behave(faults=["ignore_range"], chance=1, anonymous=True)
    assert same(veturboio.load(f"{store.endpoint}/bucket/small"), small)
    before = store.stats()["gets"]
    assert same(veturboio.load(f"{store.endpoint}/bucket/large"), state())
    assert store.stats()["gets"] == before + 1


def test_a_web_server(store: Store) -> None:
    save(store, "web", state(5))
    store.behave(anonymous=True)
    address = f"{store.endpoint.replace('//', '//me:password@')}/bucket/web?X-Signature=secret"
    assert same(veturboio.load(address), state(5))
    with pytest.raises(FileNotFoundError) as refused:
        veturboio.load(address.replace("/web", "/none"))
    told = str(refused.value) + repr(refused.value) + str(refused.value.filename)
    assert "password" not in told and "secret" not in told and "/bucket/none" in told
    with pytest.raises(NotImplementedError, match="writing to a web server"):
        veturboio.save_file(state(5), address)


def test_an_object_that_changes_is_never_mixed(store: Store) -> None:
    # Four ranges, one after the other; it changes during the first or the second.
    one, other = state(0, mib=200), state(1_000_000, mib=200)
    save(store, "change", one)
    store.behave(rate=50 * MIB)
    changed = threading.Timer(0.15, lambda: save(store, "change", other))
    changed.start()
    with pytest.raises(
        OSError, match="s3://bucket/change: the object was changed while it was read"
    ):
        load(store, "change", num_thread=1)
    changed.join()
    store.behave()
    assert same(load(store, "change"), other)


def test_a_save_that_fails_aborts_its_parts(store: Store) -> None:
    save(store, "kept", state(1))
    store.behave(faults=[{"status": 403}], chance=1, methods=["PUT"])
    with pytest.raises(PermissionError, match="save s3://bucket/kept"):
        save(store, "kept", state(2))
    store.behave()
    assert same(load(store, "kept"), state(1))
    # The fixture looks for what is left of uploads.


def test_nobody_is_replaced_who_came_first(store: Store) -> None:
    done: list[int] = []

    def attempt(number: int) -> None:
        try:
            save(store, "race", state(number, mib=20), overwrite=False)
            done.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done
    assert same(load(store, "race"), state(done[-1], mib=20)) or len(done) > 1


@pytest.mark.parametrize("call", ["load", "save_file"])
@pytest.mark.parametrize("fault", ["hang", "rate"])
def test_an_interrupt_ends_it(store: Store, call: str, fault: str) -> None:
    save(store, "slow", state(1))
    if fault == "hang":
        methods = ["GET" if call == "load" else "PUT"]
        store.behave(faults=["hang"], chance=1, methods=methods)
    else:
        store.behave(rate=MIB // 4, delay_ms=300)
    code = (
        "import json, signal, sys, time, torch, veturboio\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "options = json.loads(sys.argv[1])\n"
        "state = {'a': torch.zeros(40 << 20, dtype=torch.uint8)}\n"
        "arguments = [state] if sys.argv[2] == 'save_file' else []\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    call = getattr(veturboio, sys.argv[2])\n"
        "    call(*arguments, 's3://bucket/slow', storage_options=options)\n"
        "except KeyboardInterrupt:\n"
        "    print(time.monotonic(), flush=True)\n"
        "    sys.exit(42)\n"
    )
    given = json.dumps({**store.options, "read_timeout": "60s"})
    before = store.stats()["requests"]
    with subprocess.Popen([sys.executable, "-c", code, given, call], stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while store.stats()["requests"] == before and time.monotonic() < deadline:
            time.sleep(0.01)
        struck = time.monotonic()
        process.send_signal(signal.SIGINT)
        # A second, and more on a machine that does much beside it; the call itself takes a minute.
        assert float(process.stdout.readline()) - struck < 10
        assert process.wait(60) == 42
    store.behave()
    deadline = time.monotonic() + 5
    while store.uploads() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_memory_stays_near_what_the_tensors_take(store: Store) -> None:
    save(store, "memory", state(mib=240))
    given = {**store.options, "read_timeout": "60s"}  # making one object of many takes long
    code = (
        "import json, resource, sys, torch, veturboio\n"
        "options = json.loads(sys.argv[1])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "veturboio.load('s3://bucket/memory', names=['a'], slices={'a': slice(0, 9)},"
        " storage_options=options)\n"
        "before = peak()\n"
        "loaded = veturboio.load('s3://bucket/memory', storage_options=options)\n"
        "print(peak() - before)\n"
        "before = peak()\n"
        "veturboio.save_file(loaded, 's3://bucket/memory', storage_options=options)\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loading, saving = map(int, done.stdout.split())
    assert loading <= 240 + 128
    assert saving <= 128


def test_random_faults(store: Store) -> None:
    """Every load and save is right, or one clear error; a variable says how many there are."""
    sizes = [1, 9, 20]
    objects = {f"random-{mib}": state(mib, mib) for mib in sizes}
    for key, saved in objects.items():
        save(store, key, saved)
    faults = [fault for fault in PASSING if fault != "stall"]
    faults += ["long", "wrong_length", {"status": 403}, {"status": 404}]
    generator = random.Random(7)
    options = {"retry_timeout": "3", "read_timeout": "1s"}
    wrong, refused = [], 0
    before = sockets()
    for number, (key, saved) in zip(range(LOADS), itertools.cycle(objects.items())):
        kinds = generator.sample(faults, 3)
        if "lose" in kinds:
            kinds.remove("lose")
        store.behave(faults=kinds, chance=generator.choice([0.05, 0.2, 0.5]))
        try:
            if number % 10 == 9:
                save(store, key, saved, storage_options=options)
            elif not same(load(store, key, storage_options=options), saved):
                wrong.append((number, kinds))
        except (OSError, veturboio.FormatError) as error:
            refused += 1
            assert f"s3://bucket/{key}: " in str(error), error
            assert store.secret not in str(error)
    store.behave()
    assert wrong == []
    print(f"{LOADS} loads and saves, {refused} refused")
    for key, saved in objects.items():
        assert same(load(store, key), saved)
    tasks = list(Path("/proc/self/task").iterdir())
    names = [(task / "comm").read_text() for task in tasks]
    assert not [name for name in names if name.startswith(("veturboio", "tokio"))]
    assert sockets() == before


def sockets() -> int:
    """Connections of this process."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link.readlink()).startswith("socket:") for link in links)


def test_what_was_downloaded_is_kept_by_version(store: Store, tmp_path: Path) -> None:
    save(store, "kept", state(1))
    cache = tmp_path / "cache"
    assert same(load(store, "kept", cache_dir=cache), state(1))
    (copy,) = cache.iterdir()
    before = store.stats()
    assert same(load(store, "kept", cache_dir=cache), state(1))
    after = store.stats()
    assert after["requests"] - before["requests"] == 1
    assert [path.name for path in cache.iterdir()] == [copy.name]
    save(store, "kept", state(2))
    assert same(load(store, "kept", cache_dir=cache), state(2))
    assert len(list(cache.iterdir())) == 2
    # A part is not worth downloading the whole, but is taken from what is there.
    save(store, "other", state(3))
    load(store, "other", names=["a"], cache_dir=cache)
    assert len(list(cache.iterdir())) == 2
    bound = {"cache_max_bytes": str(100 * MIB)}
    assert same(load(store, "other", cache_dir=cache, storage_options=bound), state(3))
    held = [path.stat().st_size for path in cache.iterdir()]
    assert len(held) == 2 and sum(held) <= 100 * MIB
    assert not copy.exists()
    with pytest.raises(FileNotFoundError, match="s3://bucket/none"):
        load(store, "none", cache_dir=cache)


def test_a_download_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    save(store, "failing", state(1))
    store.behave(faults=[{"status": 403}], chance=0.5, methods=["GET"])
    for _ in range(5):
        try:
            load(store, "failing", cache_dir=tmp_path)
        except PermissionError:
            assert list(tmp_path.iterdir()) == []
        else:
            break
