"""Web servers: what they ignore, leave out and tell wrong, and what they must not learn."""

from __future__ import annotations

import base64
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from webserver import NOW, THEN, Answer, File, Request, Server, serving

import veturboio

MIB = 1 << 20


def state(seed: int, mib: int = 6) -> dict[str, torch.Tensor]:
    """What is the same for all seeds comes first in a file."""
    return {
        "a": torch.arange(mib * MIB // 16, dtype=torch.int64),
        "b": torch.arange(seed, seed + mib * MIB // 8, dtype=torch.int32).view(-1, 1024),
        "c": torch.tensor([5], dtype=torch.int64),
    }


def same(loaded: Any, saved: dict[str, torch.Tensor]) -> bool:
    return loaded.keys() == saved.keys() and all(
        torch.equal(loaded[name], tensor) for name, tensor in saved.items()
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return bytes_of(tmp_path, 1)


def bytes_of(folder: Path, seed: int, mib: int = 6) -> bytes:
    veturboio.save_file(state(seed, mib), folder / "saved", metadata={"seed": "any"})
    return (folder / "saved").read_bytes()


def load(server: Server, **arguments: Any) -> Any:
    options = {"retry_timeout": "5", "read_timeout": "5s"}
    return veturboio.load(f"{server.address}/model", storage_options=options, **arguments)


NO_RANGES = {
    "tag": {"tag": '"one"'},
    "weak tag": {"tag": 'W/"one"'},
    "time": {"modified": THEN},
    "nothing": {},
    "nothing, in chunks": {"has_length": False},
    "Accept-Ranges": {"headers": {"Accept-Ranges": "none"}},
}


@pytest.mark.parametrize("told", NO_RANGES.values(), ids=NO_RANGES)
def test_a_server_that_ignores_ranges(
    server: Server, content: bytes, told: dict[str, Any], tmp_path: Path
) -> None:
    server.answer = File(content, ranges=False, **told)
    assert same(load(server), state(1))
    assert len(server.requests) == 1
    filled = {name: torch.zeros_like(tensor) for name, tensor in state(1).items()}
    assert same(load(server, state_dict=filled), state(1))
    assert same(load(server, names=["c", "a"]), {name: state(1)[name] for name in "ca"})
    cut = load(server, names=["b"], slices={"b": (slice(3, 9), slice(5, 6))})
    assert torch.equal(cut["b"], state(1)["b"][3:9, 5:6])
    assert same(load(server, map_location=lambda name: "cpu", one_allocation=True), state(1))
    assert load(server, map_location="meta")["b"].shape == state(1)["b"].shape
    assert veturboio.metadata(f"{server.address}/model")["seed"] == "any"
    shmem = veturboio.load_to_shmem(f"{server.address}/model")
    try:
        assert same(veturboio.load(f"/dev/shm/{shmem.name}"), state(1))
    finally:
        shmem.close()
        shmem.unlink()
    assert same(load(server, cache_dir=tmp_path / "cache"), state(1))


def test_an_answer_that_ends_with_its_connection(server: Server, content: bytes) -> None:
    """As servers of HTTP/1.0 send what they make as they go."""
    server.answer = lambda request: Answer(200, body=content, endless=True)
    assert same(load(server), state(1))
    assert same(load(server, names=["c"]), {"c": state(1)["c"]})
    server.answer = lambda request: Answer(200, body=content[:-1], endless=True)
    with pytest.raises(veturboio.FormatError):
        load(server)


def test_a_store_that_ignores_ranges(server: Server, content: bytes) -> None:
    options = {
        "aws_endpoint_url": server.address,
        "aws_access_key_id": "key",
        "aws_secret_access_key": "very-secret",
        "retry_timeout": "3",
    }
    server.answer = File(content, tag='"one"', modified=THEN, ranges=False)
    assert same(veturboio.load("s3://bucket/model", storage_options=options), state(1))
    assert len(server.requests) == 2
    part = veturboio.load("s3://bucket/model", names=["b"], storage_options=options)
    assert same(part, {"b": state(1)["b"]})


def test_why_one_answer_is_read(server: Server, content: bytes) -> None:
    address = f"{server.address}/model"
    server.answer = File(content, ranges=False)
    told = veturboio.explain(address)
    assert "read out of one answer, 1 at a time, because the server sends no ranges" in told
    server.answer = File(content, tag='"one"')
    assert "read by range" in veturboio.explain(address)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("has_length", [True, False])
def test_a_pytorch_file_without_ranges(
    server: Server, tmp_path: Path, new: bool, has_length: bool
) -> None:
    saved = {str(index): torch.full((9_999,), index) for index in range(100)}
    torch.save(saved, tmp_path / "pt", _use_new_zipfile_serialization=new)
    server.answer = File((tmp_path / "pt").read_bytes(), ranges=False, has_length=has_length)
    assert same(load(server), saved)
    assert len(server.requests) <= 5
    assert same(load(server, names=["7", "90"]), {name: saved[name] for name in ("7", "90")})


def test_a_zip_that_was_zipped_again_without_ranges(server: Server, tmp_path: Path) -> None:
    """What is inflated is read in one passage too, not by as many threads as there may be."""
    saved = {str(index): torch.randperm(99_999) for index in range(50)}
    torch.save(saved, tmp_path / "pt")
    with (
        zipfile.ZipFile(tmp_path / "pt") as archive,
        zipfile.ZipFile(tmp_path / "again", "w", zipfile.ZIP_DEFLATED) as again,
    ):
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    server.answer = File((tmp_path / "again").read_bytes(), ranges=False)
    assert same(load(server), saved)
    assert len(server.requests) <= 5


def test_tied_weights_without_ranges(server: Server, tmp_path: Path) -> None:
    weight = torch.arange(MIB)
    model = {"a": weight, "b": weight, "c": torch.ones(3)}
    veturboio.save_file(model, tmp_path / "tied", force_save_shared_tensor=True)
    server.answer = File((tmp_path / "tied").read_bytes(), ranges=False)
    assert same(load(server), model)
    filled = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    assert same(load(server, state_dict=filled), model)


def test_memory_without_ranges(server: Server, tmp_path: Path) -> None:
    server.answer = File(bytes_of(tmp_path, 1, 160), ranges=False)
    code = (
        "import resource, sys, torch, veturboio\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "veturboio.load(sys.argv[1], names=['c'])\n"
        "before = peak()\n"
        "loaded = veturboio.load(sys.argv[1])\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, f"{server.address}/model"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160 + 48


@pytest.mark.parametrize("told", [{"tag": '"one"'}, {"modified": THEN}, {}], ids=str)
@pytest.mark.parametrize("names", [None, ["b"]], ids=str)
def test_a_connection_that_ends_too_early(
    server: Server, content: bytes, told: dict[str, Any], names: list[str] | None
) -> None:
    file = File(content, ranges=False, **told)
    cuts = iter([MIB // 2, 2 * MIB, 5 * MIB])

    def answer(request: Request) -> Answer:
        answer = file(request)
        answer.cut = next(cuts, None)
        return answer

    server.answer = answer
    wanted = {name: state(1)[name] for name in names or "abc"}
    assert same(load(server, names=names), wanted)
    assert len(server.requests) == 4


@pytest.mark.parametrize("told", ["tag", "modified", "nothing"])
def test_an_object_that_changes_between_answers(
    server: Server, content: bytes, tmp_path: Path, told: str
) -> None:
    """Without a version that would tell, all comes out of the answer that is whole."""
    versions = {"tag": ['"one"', '"two"'], "modified": [THEN, NOW], "nothing": [None, None]}[told]
    name = "tag" if told == "nothing" else told
    later = "Wed, 03 Jan 2024 00:00:00 GMT"
    one, two = (
        File(bytes_of(tmp_path, seed), ranges=False, date=later, **{name: version})  # type: ignore[arg-type]
        for seed, version in zip((1, 2), versions, strict=True)
    )

    def answer(request: Request) -> Answer:
        if len(server.requests) > 1:
            return two(request)
        answer = one(request)
        answer.cut = 5 * MIB
        return answer

    server.answer = answer
    if told == "nothing":
        assert same(load(server), state(2))
    else:
        with pytest.raises(OSError, match="the object was changed while it was read"):
            load(server)


WEAK: dict[str, dict[str, Any]] = {
    "weak tag": {"tag": 'W/"one"'},
    "weak tag, just changed": {"tag": 'W/"one"', "modified": NOW},
    "just changed": {"modified": NOW},
    "no time to compare with": {"modified": THEN, "date": None},
    "nothing": {},
}


@pytest.mark.parametrize("told", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("names", [None, ["b"]], ids=str)
def test_versions_that_cannot_be_held_are_not_mixed(
    server: Server, tmp_path: Path, told: dict[str, Any], names: list[str] | None
) -> None:
    """The object changes with every answer, and only its first bytes stay the same."""
    files = [File(bytes_of(tmp_path, seed), **told) for seed in (1, 2, 3, 4)]

    def answer(request: Request) -> Answer:
        return files[min(len(server.requests), 4) - 1](request)

    server.answer = answer
    loaded = load(server, names=names)
    states = ({name: state(seed)[name] for name in names or "abc"} for seed in (1, 2, 3, 4))
    assert any(same(loaded, one) for one in states)
    assert not any("if-match" in request.headers for request in server.requests)


def test_weak_tags_count_together_with_the_time(server: Server, tmp_path: Path) -> None:
    later = "Wed, 03 Jan 2024 00:00:00 GMT"
    one, two = (
        File(bytes_of(tmp_path, seed), tag='W/"one"', modified=modified, date=later)
        for seed, modified in ((1, THEN), (2, NOW))
    )
    server.answer = one
    assert same(load(server), state(1))
    assert all("if-match" not in request.headers for request in server.requests)
    assert len([request for request in server.requests if request.range is not None]) > 1
    count = len(server.requests)
    server.answer = lambda request: (two if len(server.requests) > count + 1 else one)(request)
    with pytest.raises(OSError, match="the object was changed while it was read"):
        load(server)


def test_strong_tags_are_held(server: Server, content: bytes) -> None:
    server.answer = File(content, tag='"one"')
    assert same(load(server), state(1))
    assert all(request.headers["if-match"] == '"one"' for request in server.since(1))
    assert same(load(server, names=["c"]), {"c": state(1)["c"]})
    # A server that sends less than it is asked for is asked for the rest.
    file = File(content, tag='"one"')

    def shorter(request: Request) -> Answer:
        assert request.range is not None
        first, end = request.range
        end = min(end, first + MIB // 2)
        return file(Request("GET", "/model", {"range": f"bytes={first}-{end - 1}"}))

    server.answer = shorter
    assert same(load(server), state(1))


def test_answers_to_ranges_that_cannot_be_used(server: Server, content: bytes) -> None:
    file = File(content, tag='"one"', ranges=False)
    several = {"Content-Type": "multipart/byteranges; boundary=x", "ETag": '"one"'}
    unusable = [
        Answer(416),
        Answer(206, several, b"--x--"),
        Answer(206, {"Content-Range": "bytes 0-9/*"}, b"0123456789"),
        Answer(206, {"Content-Range": "nonsense"}, b"0123456789"),
    ]
    for answer in unusable:
        server.answer = lambda request, answer=answer: (  # type: ignore[misc]
            answer if request.range is not None else file(request)
        )
        assert same(load(server), state(1))
    server.answer = File(b"")
    with pytest.raises(veturboio.FormatError):
        load(server)
    for status in (204, 304, 302, 500):
        server.answer = lambda request, status=status: Answer(status)  # type: ignore[misc]
        with pytest.raises(OSError, match=f"the server answered {status}"):
            veturboio.load(f"{server.address}/model", storage_options={"retry_timeout": "0.1"})


def test_what_is_encoded_is_not_asked_for_and_refused(server: Server, content: bytes) -> None:
    server.answer = File(content, tag='"one"', headers={"Content-Encoding": "gzip"})
    with pytest.raises(OSError, match="sends it encoded, although it was asked not to"):
        load(server)
    assert server.requests[0].headers["accept-encoding"] == "identity"
    server.answer = File(content, tag='"one"', headers={"Content-Encoding": "identity"})
    assert same(load(server), state(1))


def test_redirects_tell_nothing(server: Server, content: bytes) -> None:
    with serving(File(content, tag='"one"')) as other:
        target = f"{other.address}/elsewhere?X-Signature=other-secret"
        server.answer = lambda request: Answer(302, {"Location": target, "Set-Cookie": "a=b"})
        address = f"{server.address.replace('//', '//me:pass%40word@')}/model?sig=my-secret"
        assert same(veturboio.load(address), state(1))
        for request in server.requests:
            assert request.headers["authorization"] == basic("me:pass@word")
        assert len(other.requests) > 1
        for request in other.requests:
            assert request.path == "/elsewhere?X-Signature=other-secret"
            told = {"referer", "authorization", "cookie"} & request.headers.keys()
            assert not told and "secret" not in str(request.headers)
        other.answer = lambda request: Answer(403)
        with pytest.raises(PermissionError) as refused:
            veturboio.load(address)
        text = str(refused.value) + repr(refused.value)
        assert "secret" not in text and "word" not in text
        # To the same server, all goes along.
        server.answer = lambda request: (
            Answer(307, {"Location": "/there"})
            if request.path != "/there"
            else File(content, tag='"one"')(request)
        )
        count = len(server.requests)
        assert same(veturboio.load(address), state(1))
        assert all("authorization" in request.headers for request in server.since(count))
        assert all("referer" not in request.headers for request in server.since(count))


def test_redirects_that_lead_nowhere(server: Server) -> None:
    refused = {
        "/model": "the server redirects in a circle",
        "ftp://host/a": "the server redirects to what is no web server",
        "http://[": "the server redirects to what is no address",
    }
    for location, words in refused.items():
        server.answer = lambda request, to=location: Answer(302, {"Location": to})  # type: ignore[misc]
        with pytest.raises(OSError, match=words):
            load(server)


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("user:p%40ss", "user:p@ss"),
        ("us%2Fer:a%3Ab%25", "us/er:a:b%"),
        ("user:%C3%A9", "user:é"),
        ("token", "token:"),
        ("user:100%", "user:100%"),
    ],
)
def test_user_and_password_are_decoded(
    server: Server, content: bytes, written: str, meant: str
) -> None:
    server.answer = File(content, tag='"one"')
    veturboio.load(f"{server.address.replace('//', f'//{written}@')}/model", map_location="meta")
    assert server.requests[0].headers["authorization"] == basic(meant)
    with pytest.raises(ValueError, match="a user's name cannot have a colon") as refused:
        veturboio.load("http://a%3Ab:very-secret@host/model")
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:pa?very-secret@host/model",
        "http://user:pa#very-secret@host/model",
        "http://user:very-secret\\@host/model",
        "http://user:very-secret@host:nonsense/model",
        "http://user:very-secret@/model",
        "http://user:very-secret",
    ],
)
def test_an_address_that_is_none_is_not_shown_with_its_password(address: str) -> None:
    for call in (veturboio.load, veturboio.metadata, veturboio.explain):
        with pytest.raises((ValueError, OSError)) as refused:
            call(address)
        text = str(refused.value) + repr(refused.value)
        assert "very-secret" not in text and ":pa" not in text


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a%2Fb", "/a%2Fb"),
        ("/a b/é", "/a%20b/%C3%A9"),
        ("/x//a//b", "/x//a//b"),
        ("/a?x=%2F#part", "/a?x=%2F"),
        ("/a/", "/a/"),
        ("/a+b~c", "/a+b~c"),
    ],
)
def test_an_address_is_asked_for_as_it_is_written(
    server: Server, content: bytes, written: str, sent: str
) -> None:
    server.answer = File(content, tag='"one"')
    veturboio.load(server.address + written, map_location="meta")
    assert [request.path for request in server.requests] == [sent]
