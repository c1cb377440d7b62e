"""Mounts directories as slowly as cloud storage: the file system itself is ``tests/slowfs``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Seconds after which the file system counts as hanging.
PATIENCE = 10

_CAP_SYS_ADMIN = 21


@dataclass(frozen=True)
class Mount:
    """A mounted file system, and the process that serves it."""

    path: Path
    process: subprocess.Popen[str]

    def stats(self) -> dict[str, int]:
        """What was counted so far: ``reads``, ``bytes``, ``max_in_flight``, ``largest_read``."""
        stats: dict[str, int] = json.loads((self.path / ".slowfs-stats").read_text())
        return stats


@functools.cache
def unavailable() -> str | None:
    """Why the file system cannot be built or mounted here, in words; ``None`` if it can."""
    if shutil.which("cargo") is None:
        return "cargo is not on PATH"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse to open"
    if not _may_mount() and shutil.which("fusermount3") is None:
        return "mounting is not permitted, and there is no fusermount3"
    return None


@functools.cache
def build() -> Path:
    """Builds the program, once per process, and returns its path."""
    manifest, target = ROOT / "tests/slowfs/Cargo.toml", ROOT / "target/slowfs"
    command = ["cargo", "build", "--locked", "--release", "--quiet"]
    done = subprocess.run(
        [*command, "--manifest-path", str(manifest), "--target-dir", str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"build slowfs: {done.stderr.strip()}")
    return target / "release" / "slowfs"


@contextlib.contextmanager
def mounted(source: Path, mount_point: Path, **options: int | str | Path) -> Iterator[Mount]:
    """Mirrors ``source`` at ``mount_point``, an empty directory, until the end of the block.

    ``delay_ms=50`` is the program's ``--delay-ms 50``, ``direct_io=True`` its ``--direct-io``;
    ``slowfs --help`` lists them all.
    """
    command = [str(build()), str(source), str(mount_point), "--exit-on-eof", *_flags(options)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # its end tells the program that this process is no more
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(process.stderr.read().strip())
            yield Mount(mount_point, process)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if is_mounted(mount_point):
                subprocess.run(["umount", "-l", str(mount_point)], check=False)


def is_mounted(path: Path) -> bool:
    """Whether anything is mounted at ``path``, alive or not: a dead mount answers no ``stat``."""
    # Resolved by its parent, for the same reason.
    real = path.parent.resolve() / path.name
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split(" ")[4]
        if where.encode().decode("unicode_escape").encode("latin-1") == os.fsencode(real):
            return True
    return False


def _flags(options: dict[str, int | str | Path]) -> Iterator[str]:
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value is not False:
            yield from (flag, str(value))


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)
