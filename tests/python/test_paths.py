"""File names are the bytes of ``os.fsencode``, whatever the locale and whatever the bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

import veturboio

CODE = """
import errno, os, subprocess, sys, torch, veturboio, warnings

class Names(os.PathLike):
    def __init__(self, path):
        self.path = path
    def __fspath__(self):
        return self.path

print(sys.getfilesystemencoding())
state = {"a": torch.arange(5.0)}
folder = os.getcwdb()
module = torch.nn.Linear(2, 2)

lazy = {"a": torch.nn.LazyLinear(2).weight}
sparse = torch.zeros(2, 2).to_sparse()
warnings.simplefilter("ignore")

class Unknown:
    pass

class Named:
    def __init__(self, name):
        self.name = name

def write(values, path):
    with open(path, "wb") as file:
        torch.save(values, file)

def refused(call, path, *classes):
    try:
        call()
    except classes as error:
        str(error).encode()
        assert "\\n" not in str(error) and "\\x01" not in str(error), error
        assert "\\n" not in path or "\\\\n" in str(error), error
    else:
        raise AssertionError("it was not refused")

def same(loaded):
    return torch.equal(loaded["a"], state["a"])

def names():
    return set(os.listdir(folder))

for name in (b"plain", b"caf\\xe9", b"\\xc3\\xa9", b"\\xff \\xc3\\xa9\\n\\x01", b"\\xed\\xb2\\x80"):
    path = folder + b"/" + name
    text = os.fsdecode(path)
    for given in (path, text, Names(path), Names(text)):
        for save in (
            lambda: veturboio.save_file(state, given),
            lambda: veturboio.save_file(state, given, wait=False).result(),
            lambda: veturboio.save_pt(state, given),
        ):
            save()
            assert names() == {name}, names()
            assert same(veturboio.load(given))
            assert same(veturboio.load(given, names=["a"]))
            assert same(veturboio.load(given, map_location=lambda name: "cpu"))
            assert same(veturboio.load(given, state_dict={"a": torch.zeros(5)}))
            veturboio.explain(given)
            segment = veturboio.load_to_shmem(given)
            segment.close()
            segment.unlink()
            os.remove(path)
        veturboio.save_model(module, given)
        assert names() == {name}
        veturboio.load_model(module, given)
        veturboio.metadata(given)
        os.remove(path)
        calls = [
            veturboio.load,
            veturboio.metadata,
            veturboio.explain,
            veturboio.load_to_shmem,
            lambda file: veturboio.load(file, state_dict={}),
            lambda file: veturboio.load(file, map_location=lambda name: "cpu"),
        ]
        for call in calls:
            try:
                call(given)
            except FileNotFoundError as error:
                assert error.errno == errno.ENOENT
                assert os.fsencode(error.filename) == path, error
                str(error).encode()
                assert "\\n" not in str(error)
            else:
                raise AssertionError("it was not refused")
        with open(path, "wb") as file:
            file.write(b"GGUF" + bytes(20))
        for call in calls:
            try:
                call(given)
            except veturboio.FormatError as error:
                assert os.fsencode(error.file) == path, error
                str(error).encode()
                assert "is a GGUF file" in str(error) and "\\n" not in str(error)
            else:
                raise AssertionError("it was not refused")
        os.remove(path)
        for call in (
            lambda: veturboio.load(given, names="a"),
            lambda: veturboio.load(given, slices={"a": [1]}),
            lambda: veturboio.load(given, map_location={5: "cpu"}),
            lambda: veturboio.load(given, state_dict=5),
            lambda: veturboio.save_file(5, given),
            lambda: veturboio.save_pt(5, given),
            lambda: veturboio.load(given, state_dict={}, dtype=torch.half),
            lambda: veturboio.load(given, mmap=True, way="read"),
            lambda: veturboio.load(given, weights_only=False),
            lambda: veturboio.save_file(lazy, given),
            lambda: veturboio.save_file(lazy, given, wait=False),
            lambda: veturboio.load(Named(text)),
        ):
            refused(call, text, TypeError, ValueError)
        write({"a": torch.zeros(2), "b": Unknown()}, path)
        for call in (
            lambda: veturboio.load(given),
            lambda: veturboio.load(given, names=["a"]),
        ):
            refused(call, text, veturboio.FormatError)
        write({"\\ud800\\n": sparse}, path)
        for call in (
            lambda: veturboio.load(given, names=["x"]),
            lambda: veturboio.load(given, map_location={"": "cpu", "a": "meta"}),
            lambda: veturboio.load(given, state_dict={}),
        ):
            refused(call, text, ValueError)
        assert veturboio.explain(given).isprintable()
        write(sparse, path)
        refused(lambda: veturboio.load(given, names=["x"]), text, veturboio.FormatError)
        os.remove(path)
    write(state, path)
    command = [sys.executable, "-m", "veturboio.convert", "-i", path, "-o", path + b".safetensors"]
    subprocess.run(command, check=True, capture_output=True)
    assert names() == {name, name + b".safetensors"}
    assert same(veturboio.load(path + b".safetensors"))
    os.remove(path)
    os.remove(path + b".safetensors")
"""

C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A locale in which file names are ISO-8859-1, if it can be made."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE")]
    try:
        made = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("no locale can be made")
    return {**C, "LC_ALL": "de_DE", "LOCPATH": str(folder)}


def test_names_in_utf_8(run_anew: Run) -> None:
    assert run_anew(CODE, LC_ALL="C.UTF-8").strip() == "utf-8"


def test_names_in_ascii(run_anew: Run) -> None:
    assert run_anew(CODE, **C).strip() == "ascii"


def test_names_in_latin(run_anew: Run, latin: dict[str, str]) -> None:
    assert run_anew(CODE, **latin).strip() == "iso8859-1"


def test_an_address_is_utf_8_in_every_locale(run_anew: Run, latin: dict[str, str]) -> None:
    code = """
import torch, veturboio
options = {"aws_endpoint_url": "http://127.0.0.1:9", "retry_timeout": "0.1",
           "aws_access_key_id": "a", "aws_secret_access_key": "b"}
try:
    veturboio.load("s3://bucket/\\xe9", storage_options=options)
except OSError as error:
    print(ascii(str(error)))
"""
    assert "s3://bucket/\\xe9: " in run_anew(code, **latin)


def test_a_cache_may_be_anywhere(run_anew: Run, latin: dict[str, str]) -> None:
    """Its name reaches the core as it is; an address without an object is refused behind that."""
    code = """
import os, veturboio
for cache in (b"caf\\xe9", os.fsdecode(b"\\xff\\xc3\\xa9")):
    try:
        veturboio.load("s3://bucket", cache_dir=cache)
    except ValueError as error:
        print(error)
"""
    for locale in ({"LC_ALL": "C.UTF-8"}, C, latin):
        assert run_anew(code, **locale).count("an address names a bucket") == 2


@pytest.mark.parametrize(
    "call",
    [
        veturboio.load,
        veturboio.metadata,
        lambda file: veturboio.save_file({}, file),
        lambda file: veturboio.load(file, state_dict={}),
    ],
)
def test_a_nul_in_a_name_is_refused(tmp_path: Path, call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"a\\0b: "):
        call(f"{tmp_path}/a\0b")
