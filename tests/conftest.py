"""Puts this directory on the import path, so that tests find ``attacks``; fixtures for all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import PATIENCE, Child

Run = Callable[..., str]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "download: fetches real weights with pip")
    # torch says of whole features that they are old or new; tests use them on purpose.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.*:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:.*(beta|prototype|deprecated|experimental)")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python code in a forked process, which must end well, and returns what it prints."""

    def run_code(code: str, *arguments: object, **environment: str) -> str:
        done = Child(code, *arguments, cwd=tmp_path, environment=environment).wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_code


@pytest.fixture
def run_anew(tmp_path: Path) -> Run:
    """As ``run``, but in a new interpreter that has imported nothing yet."""

    def run_code(code: str, *arguments: object, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **environment},
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_code


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small tmpfs file systems; skips the test where mounting is not permitted."""
    mounted = []

    def mount_tmpfs(options: str) -> Path:
        point = tmp_path / f"mount{len(mounted)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(point)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        mounted.append(point)
        return point

    yield mount_tmpfs
    for point in mounted:
        subprocess.run(["umount", "--lazy", str(point)], check=True)
