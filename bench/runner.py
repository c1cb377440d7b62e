"""Runs the cases: prepares files and page cache, starts the workers in turn, keeps the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cache, files, machine
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


class WorkerError(RuntimeError):
    """A worker ended without figures; the text is the last thing that it said."""


def run_case(case: Case, settings: Settings) -> dict[str, Any]:
    """Run one case for each of its libraries, A B A B, and return what was measured."""
    folder = case.folder or settings.data
    folder.mkdir(parents=True, exist_ok=True)
    present, missing = _available(case, settings)
    paths = _data_files(case, settings, folder, present)
    runs: dict[str, list[dict[str, Any]]] = {library.name: [] for library in present}
    try:
        for turn in range(settings.warm_ups + settings.runs):
            counted = turn >= settings.warm_ups
            for library in list(present):
                try:
                    result = _one_run(case, settings, library, paths[library.suffix])
                except WorkerError as failure:
                    print(f"  {library.name}: failed: {failure}", file=sys.stderr)
                    missing[library.name] = f"failed: {failure}"
                    present.remove(library)
                    runs[library.name].clear()
                    continue
                _say(case, library, result, counted=counted)
                if counted:
                    runs[library.name].append(result)
    finally:
        _clear(case, paths)
    _compare_bytes(case, runs)
    return {
        "case": case.name,
        "title": case.title,
        "operation": case.operation,
        "state": case.state.value,
        "touch": case.touch,
        "published": case.published,
        "command": "python -m bench " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(folder),
        "missing": missing,
        "runs": {name: figures for name, figures in runs.items() if figures},
    }


def _available(case: Case, settings: Settings) -> tuple[list[Library], dict[str, str]]:
    """Split the libraries of a case into those that can be imported and those that cannot."""
    present: list[Library] = []
    missing: dict[str, str] = {}
    for name in case.libraries:
        if name not in settings.libraries:
            continue
        library = LIBRARIES[name]
        find = f"import importlib.util as u; assert u.find_spec({library.module!r})"
        try:
            command = [library.interpreter(settings.data), "-c", find]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            missing[name] = f"{library.module} is not installed"
            print(f"  {name}: skipped, {missing[name]}", file=sys.stderr)
        else:
            present.append(library)
    return present, missing


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
    tiny = settings.data / "one"
    if not tiny.with_suffix(library.suffix).exists():
        files.write(files.tensors(files.CONTENTS["one"]), tiny.with_suffix(library.suffix))
    command = [library.interpreter(settings.data), "-m", "bench.worker"]
    command += ["--operation", case.operation, "--library", library.name]
    command += ["--path", str(path), "--tiny", str(tiny), "--content", case.content]
    command += ["--touch"] * case.touch + ["--cached"] * (case.state is not State.COLD)
    if settings.checkpoint is not None:
        command += ["--checkpoint", str(settings.checkpoint)]
    condition = None
    if case.operation == "save":
        path.unlink(missing_ok=True)
        os.sync()  # no earlier write shares the disk with this one
    else:
        condition = _bring(path, case.state)
    try:
        done = subprocess.run(
            command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired as late:
        raise WorkerError(f"no result after {TIME_LIMIT} s") from late
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise WorkerError(lines[-1])
    return {**json.loads(done.stdout), "cache": condition and asdict(condition)}


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
    seen = {tuple(run.get(key) for key in keys) for figures in runs.values() for run in figures}
    if len(seen) > 1:
        raise SystemExit(f"run {case.name}: the libraries delivered different tensors: {seen}")


def _say(case: Case, library: Library, result: dict[str, Any], *, counted: bool) -> None:
    note = "" if counted else " (warm-up)"
    print(f"  {case.name} {library.name}: {result['seconds']:.4f} s{note}", file=sys.stderr)
