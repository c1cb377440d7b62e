"""What needs an accelerator: the tests in ``tests/accelerator/python``, in their own process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import accelerator
import pytest
import torch
from accelerator import ROOT, unavailable

needs_compiler = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

#: Seconds after which the tests count as hanging.
PATIENCE = 900


@needs_compiler
def test_what_needs_an_accelerator_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(
        [*command, "tests/accelerator/python"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout


@needs_compiler
def test_the_accelerator_is_compiled_once() -> None:
    library = accelerator.build()
    before = library.stat().st_mtime_ns
    accelerator.build.cache_clear()
    assert accelerator.build() == library
    assert library.stat().st_mtime_ns == before


def test_this_process_has_no_simulated_accelerator() -> None:
    assert not hasattr(torch, accelerator.NAME)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --option")
    assert unavailable.__wrapped__() == "no-such-compiler is not on PATH"


def test_sources_that_do_not_compile_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = shutil.which("false")
    if false is None:
        pytest.skip("there is no program that fails")
    monkeypatch.setenv("CXX", os.fspath(false))
    monkeypatch.setattr(accelerator, "BUILT", tmp_path)
    with pytest.raises(RuntimeError, match="build the simulated accelerator"):
        accelerator.build.__wrapped__()
