"""The benchmark harness runs from end to end, on files too small to say anything about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("safetensors")


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return done.stdout


def test_quick_run_stores_every_figure_and_prints_a_table(tmp_path: Path) -> None:
    output = tmp_path / "results"
    printed = bench(
        *("--quick", "--runs", "1", "--data", str(tmp_path), "--output", str(output)),
        *("--case", "load-2g", "--case", "save-2g"),
        *("--library", "veturboio", "--library", "safetensors"),
    )
    for name, operation in (("load-2g", "load"), ("save-2g", "save")):
        result = json.loads((output / f"{name}.json").read_text())
        assert result["operation"] == operation
        assert not result["missing"]
        assert result["machine"]["cores"] >= 1
        for library in ("veturboio", "safetensors"):
            (run,) = result["runs"][library]
            assert run["seconds"] > 0
            assert run["tensors"] == 21
            assert run["checksum"] > 0
    assert "| **veturboio** |" in printed


def test_list_names_each_case() -> None:
    printed = bench("--list")
    assert "load-2g " in printed
    assert "save-2g " in printed


def test_texts_change_between_the_markers_only(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from bench.report import insert
    finally:
        sys.path.remove(str(ROOT))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    assert insert(page, "new")
    assert page.read_text() == "before\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nafter\n"
    page.write_text("no markers\n")
    assert not insert(page, "new")
    assert page.read_text() == "no markers\n"
