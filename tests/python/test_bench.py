"""The benchmark harness runs from end to end, on files too small to say anything about speed."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slowfs

ROOT = Path(__file__).parents[2]

pytest.importorskip("safetensors")

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not on PATH")


@pytest.fixture(autouse=True)
def _harness_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return done.stdout


class Quick:
    """Runs cases in a folder of their own, and gives what was stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""

    def run(self, cases: tuple[str, ...], libraries: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        output = self.folder / "results"
        chosen = [part for case in cases for part in ("--case", case)]
        chosen += [part for library in libraries for part in ("--library", library)]
        data = ("--data", str(self.folder), "--output", str(output))
        self.printed = bench("--quick", "--runs", "1", *data, *chosen)
        return (json.loads((output / f"{case}.json").read_text()) for case in cases)


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    return Quick(tmp_path)


def test_quick_run_stores_every_figure_and_prints_a_table(quick: Quick) -> None:
    results = quick.run(("load-2g", "save-2g"), ("veturboio", "safetensors"))
    for result, operation in zip(results, ("load", "save"), strict=True):
        assert result["operation"] == operation
        assert not result["missing"]
        assert result["machine"]["cores"] >= 1
        for library in ("veturboio", "safetensors"):
            (run,) = result["runs"][library]
            assert run["seconds"] > 0
            assert run["tensors"] == 21
            assert run["checksum"] > 0
    assert "| **veturboio** |" in quick.printed


def test_the_two_formats_are_measured_beside_each_other(quick: Quick) -> None:
    (result,) = quick.run(("load-pt-2g",), ("veturboio", "veturboio pt"))
    assert result["ours"] == "veturboio pt"
    (run,), (other,) = result["runs"]["veturboio pt"], result["runs"]["veturboio"]
    assert run["checksum"] == other["checksum"]
    assert "| **veturboio (.pt)** |" in quick.printed


@needs_compiler
def test_bare_system_calls_are_measured_too(quick: Quick) -> None:
    loaded, saved = quick.run(
        ("load-2g", "save-2g"), ("veturboio", "bare map", "bare write", "safetensors")
    )
    for result, library in ((loaded, "bare map"), (saved, "bare write")):
        (run,) = result["runs"][library]
        assert run["seconds"] > 0
        assert "checksum" not in run
    assert "| bare map, 2 threads (C) |" in quick.printed
    assert "| bare write, 2 threads (C) |" in quick.printed


def test_one_part_of_each_tensor(quick: Quick) -> None:
    (result,) = quick.run(("load-shard-cold",), ("safetensors",))
    (run,) = result["runs"]["safetensors"]
    assert run["cache"]["resident"] == 0
    assert run["tensors"] == 21
    assert run["tensor_bytes"] == pytest.approx(run["cache"]["size"] / 8, rel=0.01)


@pytest.mark.skipif(slowfs.unavailable() is not None, reason=str(slowfs.unavailable()))
def test_a_mount_answers_late_and_has_nothing_cached(quick: Quick) -> None:
    (result,) = quick.run(("load-fuse",), ("veturboio", "safetensors"))
    for library in ("veturboio", "safetensors"):
        (run,) = result["runs"][library]
        assert run["cache"]["resident"] == 0
        assert run["mount"]["bytes"] >= run["cache"]["size"]
        assert run["seconds"] >= 0.02


def test_list_names_each_case() -> None:
    printed = bench("--list")
    for name in ("load-2g ", "load-fuse ", "load-shard-cold ", "save-2g ", "save-2g-fast "):
        assert name in printed


def test_every_case_names_libraries_that_can_do_it() -> None:
    cases = importlib.import_module("bench.cases").CASES
    libraries = importlib.import_module("bench.libraries").LIBRARIES
    for case in cases.values():
        for name in case.libraries:
            row = libraries[name]
            does = row.save if case.operation == "save" else row.shard if case.shard else row.load
            assert row.program or does, f"{case.name}: {name}"
        rivals = {goal.rival for goal in case.goals if hasattr(goal, "rival")}
        assert rivals | set(case.limits) <= set(case.libraries), case.name


def test_slow_libraries_take_part_in_few_turns() -> None:
    runner = importlib.import_module("bench.runner")
    case = importlib.import_module("bench.cases").CASES["load-fuse"]
    libraries = importlib.import_module("bench.libraries").LIBRARIES
    turns = range(-1, 5)
    for name, expected in (("veturboio", [*turns]), ("safetensors", [0])):
        took_part = [turn for turn in turns if runner._takes_part(case, libraries[name], turn)]
        assert took_part == expected


def stored(**libraries: list[float]) -> dict[str, Any]:
    """A stored case with these times, a file of 800 bytes, and 110 of them read from the disk."""
    return {
        "operation": "load",
        "runs": {
            name: [
                {
                    "seconds": seconds,
                    "peak_bytes": 1000,
                    "disk_read_bytes": 110,
                    "cache": {"size": 800},
                }
                for seconds in times
            ]
            for name, times in libraries.items()
        },
    }


@pytest.mark.parametrize(
    ("goal", "arguments", "measured", "met"),
    [
        ("Faster", ("safetensors", 1.5), "1.50", True),
        ("Faster", ("safetensors", 1.6), "1.50", False),
        ("Faster", ("torch", 1.6), "not measured", None),
        ("Within", ("safetensors", 0.7), "0.67", True),
        ("Within", ("safetensors", 0.6), "0.67", False),
        ("Alike", ("safetensors", 1.6), "1.50", True),
        ("Alike", ("safetensors", 1.2), "1.50", False),
        ("DiskBytes", (1 / 8, 1.3), "1.10", True),
        ("DiskBytes", (1 / 8, 1.0), "1.10", False),
        ("Memory", (200,), "0.0 MiB", True),
        ("Memory", (199,), "0.0 MiB", False),
    ],
)
def test_goals_are_met_or_missed(
    goal: str, arguments: tuple[Any, ...], measured: str, met: bool | None
) -> None:
    goals = importlib.import_module("bench.goals")
    verdict = getattr(goals, goal)(*arguments).judge(
        stored(veturboio=[9.0, 2.0, 1.0], safetensors=[3.0])
    )
    assert (verdict.measured, verdict.met) == (measured, met)


def test_texts_change_between_the_markers_only(tmp_path: Path) -> None:
    insert = importlib.import_module("bench.report").insert
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    assert insert(page, "new")
    assert page.read_text() == "before\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nafter\n"
    page.write_text("no markers\n")
    assert not insert(page, "new")
    assert page.read_text() == "no markers\n"
