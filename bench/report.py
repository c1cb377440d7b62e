"""Turns stored results into a table, and puts it where a text asks for it by its markers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.cases import CASES
from bench.libraries import LIBRARIES, OURS

Result = dict[str, Any]  # one stored case, as runner.run_case makes it

NAMES = {
    "torch": ("torch.load", "torch.save"),
    "torch mmap": ("torch.load(mmap=True)", "torch.save"),
    "safetensors": ("safetensors load_file", "safetensors save_file"),
}


def load_results(folder: Path) -> list[Result]:
    """Read the stored cases, in the order of the case table."""
    order = {name: index for index, name in enumerate(CASES)}
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    cases = [result for result in results if "case" in result]
    return sorted(cases, key=lambda result: order.get(result["case"], len(order)))


def store(result: Result, folder: Path) -> Path:
    """Keep one case with every single run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['case']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def label(result: Result, library: str) -> str:
    """The function that was called, as its users know it."""
    load, save = NAMES.get(library, (library, library))
    return load if result["operation"] == "load" else save


def median(result: Result, library: str) -> float:
    """The middle one of a library's counted runs, in seconds."""
    return float(statistics.median(run["seconds"] for run in result["runs"][library]))


def duration(seconds: float) -> str:
    """Seconds with three digits that mean something."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def size(amount: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"


def table(results: list[Result]) -> str:
    """One row for each case and library; the last column is time relative to veturboio."""
    lines = [
        "| Case | Library | Median | Min … max | Peak memory | Time, veturboio = 1 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for result in results:
        title = result["title"]
        for library, runs in result["runs"].items():
            lines.append(_row(result, title, library, runs))
            title = ""
        for library, reason in result["missing"].items():
            lines.append(f"| {title} | {label(result, library)} | not measured: {reason} | | | |")
    return "\n".join(lines)


def _row(result: Result, title: str, library: str, runs: list[Result]) -> str:
    times = [run["seconds"] for run in runs]
    middle = statistics.median(times)
    peak = max(run["peak_bytes"] for run in runs)
    name = label(result, library)
    ratio = f"{middle / median(result, OURS):.2f}" if OURS in result["runs"] else ""
    cells = [title, f"**{name}**" if library == OURS else name, duration(middle)]
    cells += [f"{duration(min(times))} … {duration(max(times))}", size(peak), ratio]
    return "| " + " | ".join(cells) + " |"


def footnotes(results: list[Result]) -> str:
    """Where and of what the figures are: one line for each machine and set of versions."""
    notes: dict[str, None] = {}
    for result in results:
        machine = result["machine"]
        parts = sorted(
            {
                f"{LIBRARIES[name].module} {runs[0]['version']}"
                for name, runs in result["runs"].items()
            }
        )
        count = min((len(runs) for runs in result["runs"].values()), default=0)
        notes[
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
            f"kernel {machine['kernel']}, {machine['filesystem']}; {', '.join(parts)}; "
            f"{count} runs each, in turn; {result['date']}"
            f"{disturbance(machine)}."
        ] = None
        notes |= dict.fromkeys(conditions(result))
    return "  \n".join(notes)


def disturbance(machine: Result) -> str:
    """A warning where more was running than the harness by itself."""
    busy = machine["load_average"] > machine["cores"]
    return "; others were using the machine, so take no figure for exact" if busy else ""


def conditions(result: Result) -> list[str]:
    """What the page cache was found to hold before the runs of a case."""
    found = [run["cache"] for runs in result["runs"].values() for run in runs if run.get("cache")]
    if not found:
        return []
    resident = {condition["resident"] for condition in found}
    typical = {condition["typical"] for condition in found} - {None}
    text = f"`{result['case']}`: {min(resident):.0%} of the file cached before each run"
    if max(resident) > min(resident):
        text = f"`{result['case']}`: {min(resident):.0%} to {max(resident):.0%} of the file cached"
    if typical:
        sizes = " or ".join(f"{size >> 10} KiB" for size in sorted(typical))
        text += f", typically in folios of {sizes}"
    elif min(resident) == 1:
        text += "; in which folios, only root can see"
    return [text + "."]


def page(results: list[Result], chart: str | None) -> str:
    """The whole text that stands between the markers."""
    blocks = [table(results), footnotes(results)]
    if chart is not None:
        blocks.insert(0, f"![Median times of the cases below]({chart})")
    return "\n\n".join(blocks)


def insert(target: Path, text: str, marker: str = "bench") -> bool:
    """Replace what stands between the markers of ``target``; False where it has none."""
    first, last = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    if not target.exists():
        return False
    old = target.read_text()
    begin, end = old.find(first), old.find(last)
    if begin < 0 or end < begin:
        return False
    new = f"{old[: begin + len(first)]}\n{text}\n{old[end:]}"
    if new != old:
        target.write_text(new)
    return True
