"""Loads from a store of objects that is as far as cloud stores are: ``python -m bench.cloud``.

The store is that of the tests, ``tests/cloudserver``, on this machine: each request takes a delay,
and each connection has a bound. So the figures say what a library makes of many connections, until
the machine, which plays both sides, is the limit. Every page of every tensor is read before the
clock stops.
"""

from __future__ import annotations

import argparse
import importlib
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

from bench import files, memory
from bench.libraries import ENVIRONMENTS, RIVALS
from bench.worker import forget_peak, peak_memory, touch

TESTS = Path(__file__).parents[1] / "tests" / "python"
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


LIBRARIES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "veturboio": ("veturboio", _veturboio),
    "runai-model-streamer": ("runai_model_streamer", _runai),
    "boto3, then safetensors": ("boto3", _download),
}


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
    peak = peak_memory() - before
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "checksum": checksum}))


def interpreter(module: str) -> str | None:
    """A Python that has the module; those of the rivals lie apart."""
    rivals = ENVIRONMENTS / f"venv-{RIVALS}" / "bin" / "python"
    for python in (sys.executable, str(rivals)):
        found = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        if Path(python).exists() and subprocess.run([python, "-c", found]).returncode == 0:
            return python
    return None


def measured(
    store: Any, length: int, arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Runs each library in turn, ``--runs`` times."""
    pythons = {name: interpreter(module) for name, (module, _) in LIBRARIES.items()}
    for name in [name for name, python in pythons.items() if python is None]:
        print(f"{name}: not installed", file=sys.stderr)
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.runs):
        for name, python in pythons.items():
            if python is None:
                continue
            before = store.stats()
            command = [python, "-m", "bench.cloud", "--work", name]
            command += ["--threads", str(arguments.threads), "--length", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                print(f"{name}: {done.stderr.strip()[-500:]}", file=sys.stderr)
                pythons[name] = None
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            result["requests"] = store.stats()["requests"] - before["requests"]
            results.setdefault(name, []).append(result)
    return results


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.cloud", description=__doc__)
    parser.add_argument("--work", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--content", choices=files.CONTENTS, default="decoder-1g")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--delay-ms", type=int, default=30)
    parser.add_argument("--rate", type=float, default=50, help="MB/s of each connection")
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.threads, arguments.length)
        return
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
        results = measured(store, length, arguments)
    wire = arguments.threads * arguments.rate * 1e6
    print(f"{length >> 20} MiB, {arguments.delay_ms} ms a request, {arguments.rate:g} MB/s each of")
    print(f"{arguments.threads} connections: {length / wire:.2f} s at the wire's full width\n")
    print(
        "| library | seconds | times ours | share of the wire | peak over the tensors | requests |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    medians = {
        name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()
    }
    for name, seconds in medians.items():
        peak = max(run["peak_bytes"] for run in results[name]) - length
        share = length / wire / seconds
        times = seconds / medians["veturboio"]
        requests = results[name][0]["requests"]
        figures = f"{seconds:.2f} | {times:.2f} | {share:.2f} | {peak >> 20} MiB | {requests}"
        print(f"| {name} | {figures} |")
    if len({run["checksum"] for runs in results.values() for run in runs}) > 1:
        sys.exit("not all read the same bytes")


if __name__ == "__main__":
    main()
