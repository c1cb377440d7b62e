"""Turns stored results into tables, and puts them where a text asks for it by its markers."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.cases import CASES
from bench.figures import (
    Result,
    duration,
    file_bytes,
    label,
    median,
    ours,
    ratio,
    size,
    times,
)
from bench.libraries import ALL_OURS, LIBRARIES

#: Where studies are told of.
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


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


def page(results: list[Result]) -> str:
    """Everything that is known: all rows, the goals, and how the figures came about."""
    return "\n\n".join(block for block in (table(results), goals(results), notes(results)) if block)


def overview(results: list[Result], chart: str) -> str:
    """The chart, and one line for each case."""
    picture = f"![Median times of the cases below]({chart})"
    return "\n\n".join((picture, summary(results), "  \n".join(machines(results))))


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
            title = ""
    return "\n".join(lines)


def _row(result: Result, title: str, library: str, runs: list[Result]) -> str:
    seconds = [run["seconds"] for run in runs]
    peaks = [run["peak_bytes"] for run in runs if run.get("peak_bytes") is not None]
    name, relative = label(result, library), ratio(result, library)
    cells = [
        title,
        f"**{name}**" if library in ALL_OURS else name,
        duration(statistics.median(seconds)),
        f"{duration(min(seconds))} … {duration(max(seconds))}" if len(seconds) > 1 else "one run",
        size(max(peaks)) if peaks else "",
        "" if relative is None else times(relative),
    ]
    return "| " + " | ".join(cells) + " |"


def summary(results: list[Result]) -> str:
    """One row for each case: our time, and how many times as long the others took."""
    lines = ["| Case | veturboio | How many times as long others took |", "|---|---:|---|"]
    for result in results:
        our_time = median(result, ours(result))
        others = [
            f"{label(result, library)} {times(relative)}"
            for library in result["runs"]
            if library != ours(result) and (relative := ratio(result, library)) is not None
        ]
        time = "not measured" if our_time is None else duration(our_time)
        lines.append(f"| {result['title']} | {time} | {' · '.join(others)} |")
    return "\n".join(lines)


def goals(results: list[Result]) -> str:
    """One row for each goal of each case, those that were missed among them."""
    lines = ["| Case | Goal for veturboio | Measured | |", "|---|---|---:|---|"]
    for result in results:
        if not result["published"] or result["case"] not in CASES:
            continue  # figures of tiny files reach no goal
        title = result["title"]
        for goal in CASES[result["case"]].goals:
            verdict = goal.judge(result)
            lines.append(f"| {title} | {verdict.goal} | {verdict.measured} | {verdict.word()} |")
            title = ""
    return "\n".join(lines) if len(lines) > 2 else ""


def notes(results: list[Result]) -> str:
    """Where and of what the figures are, and what else was seen of each case."""
    return "  \n".join([*machines(results), *(condition(result) for result in results)])


def machines(results: list[Result]) -> list[str]:
    """One line for each machine and day, with the versions that were measured there."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        machine = result["machine"]
        place = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
            f"kernel {machine['kernel']}"
        )
        count = max((len(runs) for runs in result["runs"].values()), default=0)
        turns = f"{count} runs each, in turn" if count > 1 else "one run each"
        when = f"{turns}; {result['date']}{disturbance(machine)}."
        groups.setdefault((place, when), []).append(result)
    lines = []
    for (place, when), members in groups.items():
        names = ", ".join(f"`{member['case']}`" for member in members)
        which = f"{names}: " if len(groups) > 1 else ""
        lines.append(f"{which}{place}; {', '.join(sorted(_versions(members)))}; {when}")
    return lines


def _versions(results: list[Result]) -> set[str]:
    return {
        f"{LIBRARIES[name].module} {runs[0]['version']}"
        for result in results
        for name, runs in result["runs"].items()
        if name in LIBRARIES and runs[0].get("version")
    }


def disturbance(machine: Result) -> str:
    """A warning where more was running than the harness by itself."""
    busy = machine["load_average"] > machine["cores"]
    return "; others were using the machine, so take no figure for exact" if busy else ""


def condition(result: Result) -> str:
    """One line for a case: where its files lay, what was cached, and what else was counted."""
    delay = result.get("delay_ms")
    where = f"FUSE, {delay} ms a read" if delay else result["machine"]["filesystem"]
    if speed := result.get("bandwidth"):
        where += f", {speed // 1_000_000} MB/s, as fast as the bus of a simulated device"
    facts = [where, *_cached(result), *_disk(result), *_mount(result), *_fewer_runs(result)]
    return f"`{result['case']}`: {'; '.join(facts)}."


def _cached(result: Result) -> list[str]:
    """What the page cache was found to hold before the runs."""
    found = [run["cache"] for runs in result["runs"].values() for run in runs if run.get("cache")]
    if not found:
        return []
    resident = {condition["resident"] for condition in found}
    typical = {condition["typical"] for condition in found} - {None}
    low, high = f"{min(resident):.0%}", f"{max(resident):.0%}"
    text = f"{low if low == high else f'{low} to {high}'} of the file cached before each run"
    if typical:
        sizes = " or ".join(f"{size >> 10} KiB" for size in sorted(typical))
        text += f", typically in folios of {sizes}"
    elif min(resident) == 1:
        text += ", in which folios, only root can see"
    return [text]


def _disk(result: Result) -> list[str]:
    """What the disk read during the runs, where nothing was cached."""
    if result["state"] != "cold":
        return []
    read = _each(result, "disk_read_bytes", size)
    facts = [f"read from the disk by {read}"] if read else []
    shard, whole = result.get("shard"), file_bytes(result)
    if read and shard and whole:
        facts.append(f"1/{shard['count']} of the file is {size(whole / shard['count'])}")
    return facts


def _each(result: Result, key: str, text: Callable[[float], str]) -> str:
    """The median of some figure for each library that has it."""
    found = {library: median(result, library, key) for library in result["runs"]}
    return " · ".join(
        f"{label(result, library)} {text(value)}"
        for library, value in found.items()
        if value is not None
    )


def _mount(result: Result) -> list[str]:
    """How many reads a mount had to answer at once."""
    most = [
        f"{label(result, library)} {max(run['mount']['max_in_flight'] for run in runs)}"
        for library, runs in result["runs"].items()
        if all(run.get("mount") for run in runs)
    ]
    return [f"reads under way at once, at most: {' · '.join(most)}"] if most else []


def _fewer_runs(result: Result) -> list[str]:
    """Who was limited to fewer runs than the others."""
    most = max((len(runs) for runs in result["runs"].values()), default=0)
    fewer = [
        f"{label(result, library)} {len(runs)}"
        for library, runs in result["runs"].items()
        if len(runs) < most
    ]
    return [f"fewer runs, and no warm-up, for the slowest: {' · '.join(fewer)}"] if fewer else []


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """What every study beside the cases lets its caller say."""
    parser.add_argument("--report", action="store_true", help="run nothing, show what is stored")
    parser.add_argument("--keep", action="store_true", help="store the figures for the documents")


def tell(
    arguments: argparse.Namespace,
    study: Callable[[], Result],
    page: Callable[[Result], str],
    stored: Path,
    marker: str,
) -> None:
    """Run a study or take the stored one, print it, and keep it if that is asked for."""
    result = json.loads(stored.read_text()) if arguments.report else study()
    text = page(result)
    print(text)
    if arguments.keep:
        stored.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.keep or arguments.report:
        insert(DOCUMENT, text, marker)


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
