"""The command line: ``python -m bench``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from bench import chart, report
from bench.cases import CASES, CHECKPOINT, Case, quick
from bench.libraries import LIBRARIES
from bench.runner import ROOT, CaseRefusedError, CaseSkippedError, Settings, run_case

RESULTS = ROOT / "bench" / "results"
DATA = ROOT / "build" / "bench"


def main() -> None:
    """Run the chosen cases, store them, and show what was found."""
    arguments = _arguments()
    if arguments.list:
        for case in CASES.values():
            print(f"{case.name:16} {case.title}: {', '.join(case.libraries)}")
        return
    if not arguments.report:
        settings = Settings(
            runs=arguments.runs,
            warm_ups=0 if arguments.quick else 1,
            data=arguments.data,
            checkpoint=arguments.checkpoint,
            libraries=tuple(arguments.library or LIBRARIES),
        )
        whole = _run(_chosen(arguments), settings, arguments.output)
    else:
        whole = True
    _publish(arguments.output)
    if arguments.clean:
        _clean(arguments.data)
    if not whole:
        raise SystemExit(1)


def _run(cases: list[Case], settings: Settings, output: Path) -> bool:
    """Run and store one case after the other; False where one was refused."""
    whole = True
    for case in cases:
        try:
            report.store(run_case(case, settings), output)
        except CaseSkippedError as reason:
            print(f"  {case.name}: skipped, {reason}", file=sys.stderr)
        except CaseRefusedError as reason:
            print(f"  {case.name}: refused, {reason}", file=sys.stderr)
            whole = False
    return whole


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=main.__doc__)
    parser.add_argument("--list", action="store_true", help="show the cases and stop")
    parser.add_argument("--case", action="append", choices=CASES, help="run this one (repeatable)")
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="only this one")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each library")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: is the harness whole?")
    parser.add_argument("--report", action="store_true", help="run nothing, redraw what is stored")
    parser.add_argument("--checkpoint", type=Path, help="a file of your own to measure")
    parser.add_argument("--data", type=Path, default=DATA, help="folder for the data files")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--clean", action="store_true", help="remove the data files at the end")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    if arguments.checkpoint is not None and not arguments.checkpoint.is_file():
        parser.error(f"open {arguments.checkpoint}: no such file")
    arguments.data = arguments.data.resolve()
    if arguments.output is None:
        # Figures of tiny files, or of a file that nobody else has, are not for publication.
        kept = not arguments.quick and arguments.checkpoint is None
        arguments.output = RESULTS if kept else arguments.data / "results"
    return arguments


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    if arguments.case:
        cases = [CASES[name] for name in arguments.case]
    elif arguments.checkpoint is not None:
        cases = [case for case in CASES.values() if case.content == CHECKPOINT]
    else:
        cases = [case for case in CASES.values() if case.published]
    if arguments.checkpoint is not None:
        note = f" ({arguments.checkpoint.name})"
        cases = [
            dataclasses.replace(case, title=case.title + note)
            if case.content == CHECKPOINT
            else case
            for case in cases
        ]
    return [quick(case) for case in cases] if arguments.quick else cases


def _publish(folder: Path) -> None:
    """Print the table; the stored results proper also go to the chart and the texts."""
    results = report.load_results(folder)
    print(report.page(results))
    if folder.resolve() != RESULTS:
        return
    published = [result for result in results if result["published"]]
    (folder / "chart.svg").write_text(chart.draw(published))
    report.insert(ROOT / "README.md", report.overview(published, "bench/results/chart.svg"))
    report.insert(ROOT / "docs" / "performance.md", report.page(results))


def _clean(folder: Path) -> None:
    for pattern in ("*.safetensors", "*.pt", "*.part", "mounted/*"):
        for path in folder.glob(pattern):
            path.unlink()


if __name__ == "__main__":
    main()
