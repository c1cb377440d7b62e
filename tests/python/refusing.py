"""Runs code where the system refuses some calls about files: see ``tests/syscalls/refuse.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def library(directory: Path) -> Path:
    """Builds the library that stands before the C library; skips the test without a compiler."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the library that refuses")
    made = directory / "refuse.so"
    flags = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror"]
    source = ROOT / "tests/syscalls/refuse.c"
    subprocess.run(
        ["cc", *flags, "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True
    )
    return made


def as_nobody(directory: Path, code: str) -> None:
    """Runs ``code`` in ``directory`` in a process without privileges; it must end well.

    The directory is reached by its descriptor: others may not enter those above it.
    """
    from forked import Child

    descriptor = os.open(directory, os.O_RDONLY)
    prologue = "import os\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
    try:
        # Imported before the privileges go.
        done = Child(
            "import torch, veturboio\n" + prologue + code,
            cwd=Path(f"/proc/{os.getpid()}/fd/{descriptor}"),
        ).wait()
    finally:
        os.close(descriptor)
    assert done.returncode == 0, done.stdout + done.stderr
