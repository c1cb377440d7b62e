"""Runs the cases: prepares files and page cache, starts the workers in turn, keeps the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import bare, cache, devices, files, machine, mounts
from bench.cache import Condition, State
from bench.cases import CHECKPOINT, Case
from bench.libraries import LIBRARIES, Library

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 600  # seconds for one worker; a rival that hangs must not hang the harness


@dataclass(frozen=True)
class Settings:
    """What holds for all cases of one call."""

    runs: int
    warm_ups: int
    data: Path
    checkpoint: Path | None = None
    libraries: tuple[str, ...] = tuple(LIBRARIES)


class CaseSkippedError(RuntimeError):
    """A case cannot be run on this machine; the text says why."""


class CaseRefusedError(RuntimeError):
    """The figures of a case are worth nothing; the text says why."""


class WorkerError(RuntimeError):
    """A worker ended without figures; the text is the last thing that it said."""


def run_case(case: Case, settings: Settings) -> dict[str, Any]:
    """Run one case for each of its libraries, A B A B, and return what was measured."""
    if case.delay_ms is not None and (reason := mounts.unavailable()) is not None:
        raise CaseSkippedError(reason)
    if case.bandwidth is not None and (reason := devices.unavailable()) is not None:
        raise CaseSkippedError(reason)
    folder = _folder(case, settings)
    folder.mkdir(parents=True, exist_ok=True)
    present, missing = _available(case, settings)
    paths = _data_files(case, settings, folder, present)
    runs: dict[str, list[dict[str, Any]]] = {library.name: [] for library in present}
    try:
        for turn in range(-settings.warm_ups, settings.runs):
            for library in list(present):
                if not _takes_part(case, library, turn):
                    continue
                try:
                    result = _one_run(case, settings, library, paths[library.suffix])
                except WorkerError as failure:
                    print(f"  {library.name}: failed: {failure}", file=sys.stderr)
                    missing[library.name] = f"failed: {failure}"
                    present.remove(library)
                    runs[library.name].clear()
                    continue
                _say(case, library, result, counted=turn >= 0)
                if turn >= 0:
                    runs[library.name].append(result)
    finally:
        _clear(case, paths)
    _compare_bytes(case, runs)
    return {
        "case": case.name,
        "title": case.title,
        "operation": case.operation,
        "ours": case.libraries[0],
        "state": case.state.value,
        "touch": case.touch,
        "durable": case.durable,
        "shard": case.shard and asdict(case.shard),
        "threads": case.threads,
        "delay_ms": case.delay_ms,
        "bandwidth": case.bandwidth,
        "published": case.published,
        "command": "python -m bench " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(folder),
        "missing": missing,
        "runs": {name: figures for name, figures in runs.items() if figures},
    }


def _folder(case: Case, settings: Settings) -> Path:
    """Where the files of a case lie; those of a mount lie apart, since it mirrors a folder."""
    if case.delay_ms is not None:
        return settings.data / "mounted"
    return case.folder or settings.data


def _takes_part(case: Case, library: Library, turn: int) -> bool:
    """Turns before 0 warm up. Who is limited to a few runs takes part in no more than those."""
    limit = case.limits.get(library.name)
    return limit is None or 0 <= turn < limit


def _available(case: Case, settings: Settings) -> tuple[list[Library], dict[str, str]]:
    """Split the libraries of a case into those that can be run and those that cannot."""
    present: list[Library] = []
    missing: dict[str, str] = {}
    for name in case.libraries:
        if name not in settings.libraries:
            continue
        reason = _unavailable(LIBRARIES[name], settings)
        if reason is None:
            present.append(LIBRARIES[name])
        else:
            missing[name] = reason
            print(f"  {name}: skipped, {reason}", file=sys.stderr)
    return present, missing


def _unavailable(library: Library, settings: Settings) -> str | None:
    if library.program is not None:
        try:
            bare.build(settings.data)
        except bare.BuildError as failure:
            return str(failure)
        return None
    find = f"import importlib.util as u; assert u.find_spec({library.module!r})"
    try:
        command = [library.interpreter(), "-c", find]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{library.module} is not installed"
    return None


def _data_files(
    case: Case, settings: Settings, folder: Path, present: list[Library]
) -> dict[str, Path]:
    """Make the files that a load reads, or name those that a save writes."""
    suffixes = {library.suffix for library in present}
    if case.operation == "save":
        return {suffix: folder / f"saved{suffix}" for suffix in suffixes}
    paths = {suffix: folder / f"{case.content}{suffix}" for suffix in suffixes}
    absent = [p for p in paths.values() if case.content == CHECKPOINT or not p.exists()]
    if absent:
        state_dict = _tensors(case, settings)
        for path in absent:
            files.write(state_dict, path)
    return paths


def _tensors(case: Case, settings: Settings) -> dict[str, torch.Tensor]:
    if case.content != CHECKPOINT:
        return files.tensors(files.CONTENTS[case.content])
    if settings.checkpoint is None:
        raise SystemExit(f"run {case.name}: name the file with --checkpoint")
    return files.from_checkpoint(settings.checkpoint)


def _one_run(case: Case, settings: Settings, library: Library, path: Path) -> dict[str, Any]:
    """Bring the page cache into its state, run one worker, keep what both of them saw."""
    with _placed(case, settings, path) as (place, mount):
        condition = None
        if case.operation == "save":
            place.unlink(missing_ok=True)
            os.sync()  # no earlier write shares the disk with this one
        else:
            condition = _bring(place, case.state)
        result = _work(_command(case, settings, library, place), library)
        result["cache"] = condition and asdict(condition)
        if mount is not None:
            result["mount"] = mount.stats()
    return result


@contextmanager
def _placed(case: Case, settings: Settings, path: Path) -> Iterator[tuple[Path, Any]]:
    """The path by which a worker finds the file, and the mount that it leads through, if any."""
    if case.delay_ms is None:
        yield path, None
        return
    # What lies behind the mount is cached: the delay alone makes it slow.
    cache.bring(path, State.LARGE)
    mount_point = settings.data / "mount"
    with mounts.mounted(path.parent, mount_point, case.delay_ms, case.bandwidth) as mount:
        yield mount.path / path.name, mount


def _command(case: Case, settings: Settings, library: Library, path: Path) -> list[str]:
    """The command line of a worker."""
    tiny = settings.data / "one"
    if not tiny.with_suffix(library.suffix).exists():
        files.write(files.tensors(files.CONTENTS["one"]), tiny.with_suffix(library.suffix))
    command = [library.interpreter(), "-m", "bench.worker"]
    command += ["--operation", case.operation, "--library", library.name]
    command += ["--path", str(path), "--tiny", str(tiny), "--content", case.content]
    command += ["--touch"] * case.touch + ["--cached"] * (case.state is not State.COLD)
    command += ["--durable"] * case.durable
    if case.shard is not None:
        command += ["--shard", str(case.shard.index), str(case.shard.count)]
    if case.bandwidth is not None:
        command += ["--bandwidth", str(case.bandwidth)]
    if case.threads is not None:
        command += ["--threads", str(case.threads)]
    if library.program is not None:
        command += ["--bare", str(bare.build(settings.data))]
    if settings.checkpoint is not None:
        command += ["--checkpoint", str(settings.checkpoint)]
    return command


def _work(command: list[str], library: Library) -> dict[str, Any]:
    """Run a worker; its figures are the last line of what it says."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env={**os.environ, **library.settings},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as late:
        raise WorkerError(f"no result after {TIME_LIMIT} s") from late
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise WorkerError(lines[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _bring(path: Path, state: State) -> Condition:
    condition = cache.bring(path, state)
    if not condition.reached(state):
        print(f"  {path.name}: wanted {state.value}, found {condition}", file=sys.stderr)
    return condition


def _clear(case: Case, paths: dict[str, Path]) -> None:
    """Remove what a save wrote, and files in a foreign folder such as tmpfs."""
    for path in paths.values():
        if case.operation == "save" or case.folder is not None:
            path.unlink(missing_ok=True)


def _compare_bytes(case: Case, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse figures of libraries that did not deliver the same bytes."""
    keys = ("tensors", "tensor_bytes", "checksum")
    seen = {
        tuple(run.get(key) for key in keys)
        for name, figures in runs.items()
        for run in figures
        if LIBRARIES[name].program is None  # that knows bytes, and no tensors
    }
    if len(seen) > 1:
        raise CaseRefusedError(f"the libraries delivered different tensors: {seen}")


def _say(case: Case, library: Library, result: dict[str, Any], *, counted: bool) -> None:
    note = "" if counted else " (warm-up)"
    print(f"  {case.name} {library.name}: {result['seconds']:.4f} s{note}", file=sys.stderr)
