"""Loads from a store of objects that is as far as cloud stores are: ``python -m bench.cloud``.

The store is that of the tests, ``tests/cloudserver``, on this machine: each request takes a delay,
and each connection has a bound. So the figures say what a library makes of many connections, until
the machine, which plays both sides, is the limit. Every page of every tensor is read before the
clock stops.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import files, machine, memory, report
from bench.figures import Result, duration, size
from bench.goals import Verdict
from bench.libraries import ENVIRONMENTS, RIVALS
from bench.runner import ROOT
from bench.worker import forget_peak, peak_memory, touch

TESTS = ROOT / "tests" / "python"
STORED = ROOT / "bench" / "results" / "object-store.json"
MARKER = "cloud"
KEY = "model.safetensors"
ADDRESS = f"s3://bucket/{KEY}"


def _veturboio(threads: int) -> Any:
    import veturboio

    return veturboio.load(ADDRESS, num_thread=threads)


def _runai(threads: int) -> Any:
    os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(threads)
    from runai_model_streamer import SafetensorsStreamer  # type: ignore[import-not-found]

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(ADDRESS)
        return dict(streamer.get_tensors())


def _download(threads: int) -> Any:
    """As the store's own tools download by default, and then from memory."""
    import boto3  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = str(Path(folder, KEY))
        boto3.client("s3").download_file("bucket", KEY, file)
        return load_file(file)


OURS, STREAMER, DOWNLOAD = "veturboio", "runai-model-streamer", "boto3, then safetensors"
LIBRARIES: dict[str, tuple[str, Callable[[int], Any]]] = {
    OURS: ("veturboio", _veturboio),
    STREAMER: ("runai_model_streamer", _runai),
    DOWNLOAD: ("boto3", _download),
}

#: What is asked of veturboio: share of the wire, times as fast, bytes beyond the tensors, and
#: bytes that each request brings.
LEAST_SHARE = 0.85
LEAST_TIMES = {STREAMER: 1.5, DOWNLOAD: 3.0}
MOST_MEMORY = 128 << 20
REQUEST = 8 << 20


def work(name: str, threads: int, length: int) -> None:
    """One timed load in a process of its own."""
    module, load = LIBRARIES[name]
    importlib.import_module(module)
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    memory.provide(2 * length)  # one keeps the file beside the tensors
    before = forget_peak()
    start = time.perf_counter()
    tensors = load(threads)
    checksum = touch(tensors)
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "peak_bytes": peak_memory() - before, "checksum": checksum}
    print(json.dumps({**result, "version": importlib.metadata.version(module)}))


def interpreter(module: str) -> str | None:
    """A Python that has the module; those of the rivals lie apart."""
    rivals = ENVIRONMENTS / f"venv-{RIVALS}" / "bin" / "python"
    for python in (sys.executable, str(rivals)):
        found = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        if Path(python).exists() and subprocess.run([python, "-c", found]).returncode == 0:
            return python
    return None


def measured(
    store: Any, length: int, threads: int, names: list[str], runs: int
) -> dict[str, list[dict[str, Any]]]:
    """Runs each library in turn, after a turn that does not count."""
    pythons = {name: interpreter(LIBRARIES[name][0]) for name in names}
    for name in [name for name, python in pythons.items() if python is None]:
        print(f"  {name}: not installed", file=sys.stderr)
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }
    results: dict[str, list[dict[str, Any]]] = {}
    for turn in range(-1, runs):
        for name, python in pythons.items():
            if python is None:
                continue
            before = store.stats()
            command = [python, "-m", "bench.cloud", "--work", name]
            command += ["--threads", str(threads), "--length", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                print(f"  {name}: failed: {done.stderr.strip()[-500:]}", file=sys.stderr)
                pythons[name] = None
                results.pop(name, None)
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            result["requests"] = store.stats()["requests"] - before["requests"]
            if turn >= 0:
                results.setdefault(name, []).append(result)
                print(f"  {threads} connections, {name}: {result['seconds']:.3f} s")
    return results


def study(arguments: argparse.Namespace) -> Result:
    """Measure every number of connections; only the last with the others, who open as many as they
    like."""
    sys.path.append(str(TESTS))
    cloudserver: Any = importlib.import_module("cloudserver")
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder, cloudserver.serving(Path(folder)) as store:
        file = Path(folder, "bucket", KEY)
        save_file(files.tensors(files.CONTENTS[arguments.content]), file)
        length = file.stat().st_size
        # Checking signatures would take this machine longer than moving the bytes.
        rate = int(arguments.rate * 1e6)
        store.behave(delay_ms=arguments.delay_ms, rate=rate, anonymous=True, tagged=True)
        rows = []
        for threads in sorted(arguments.threads):
            names = list(LIBRARIES) if threads == max(arguments.threads) else [OURS]
            runs = measured(store, length, threads, names, arguments.runs)
            rows.append({"connections": threads, "runs": runs})
    read = {run["checksum"] for row in rows for runs in row["runs"].values() for run in runs}
    if len(read) > 1:
        sys.exit("not all read the same bytes")
    return {
        "length": length,
        "delay_ms": arguments.delay_ms,
        "rate": rate,
        "command": "python -m bench.cloud " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(ROOT),
        "rows": rows,
    }


def wire(result: Result, row: Result) -> float:
    """Seconds that the bytes would take if every connection gave all that it can from the start."""
    return float(result["length"] / (row["connections"] * result["rate"]))


def median(runs: list[dict[str, Any]]) -> float:
    """The median time in seconds."""
    return float(statistics.median(run["seconds"] for run in runs))


def table(result: Result) -> str:
    """One row for each number of connections and library."""
    lines = [
        "| Connections | Library | Median | Min … max | Share of the wire | Peak beyond the "
        "tensors "
        "| Requests |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        for name, runs in row["runs"].items():
            seconds = sorted(run["seconds"] for run in runs)
            peak = size(max(run["peak_bytes"] for run in runs) - result["length"])
            ours = name == OURS
            cells = [
                str(row["connections"]) if ours else "",
                f"**{name}**" if ours else f"{name} ({runs[0]['version']})",
                duration(median(runs)),
                f"{duration(seconds[0])} … {duration(seconds[-1])}",
                f"{wire(result, row) / median(runs):.2f}" if ours else "",
                peak,
                str(max(run["requests"] for run in runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(result: Result) -> list[Verdict]:
    """What is asked of veturboio, and whether it was reached."""
    found = []
    for row in result["rows"]:
        share = wire(result, row) / median(row["runs"][OURS])
        goal = f"{LEAST_SHARE} of the wire, {row['connections']} connections"
        found.append(Verdict(goal, f"{share:.2f}", share >= LEAST_SHARE))
    runs = result["rows"][-1]["runs"]
    for name, least in LEAST_TIMES.items():
        if name in runs:
            times = median(runs[name]) / median(runs[OURS])
            goal = f"{least:g} times as fast as {name}"
            found.append(Verdict(goal, f"{times:.2f}", times >= least))
    ours = [run for row in result["rows"] for run in row["runs"][OURS]]
    peak = max(run["peak_bytes"] for run in ours) - result["length"]
    goal = f"holds at most {size(MOST_MEMORY)} beyond the tensors"
    found.append(Verdict(goal, size(peak), peak <= MOST_MEMORY))
    requests, most = max(run["requests"] for run in ours), result["length"] / REQUEST + 2
    found.append(Verdict(f"at most {most:.0f} requests", str(requests), requests <= most))
    return found


def page(result: Result) -> str:
    """Table, goals, and how the figures came about."""
    lines = ["| Goal for veturboio | Measured | |", "|---|---:|---|"]
    lines += [
        f"| {verdict.goal} | {verdict.measured} | {verdict.word()} |"
        for verdict in verdicts(result)
    ]
    place, count = result["machine"], len(result["rows"][-1]["runs"][OURS])
    note = (
        f"{size(result['length'])}, {result['delay_ms']} ms a request, "
        f"{result['rate'] // 1_000_000} MB/s a connection; {place['cpu']}, {place['cores']} cores, "
        f"{place['memory_gib']} GiB; {count} runs each, in turn; {result['date']}"
        f"{report.disturbance(place)}."
    )
    return "\n\n".join((table(result), "\n".join(lines), note))


def main() -> None:
    """Run the study, or show the stored one."""
    parser = argparse.ArgumentParser(prog="python -m bench.cloud", description=__doc__)
    parser.add_argument("--work", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--content", choices=files.CONTENTS, default="decoder-1g")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--delay-ms", type=int, default=30)
    parser.add_argument("--rate", type=float, default=50, help="MB/s of each connection")
    report.add_study_options(parser)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, max(arguments.threads), arguments.length)
        return
    report.tell(arguments, lambda: study(arguments), page, STORED, MARKER)


if __name__ == "__main__":
    main()
