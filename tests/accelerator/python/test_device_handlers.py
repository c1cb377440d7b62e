"""Handlers of signals that load and save with the helper of the very load that they interrupt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import PATIENCE

HERE = Path(__file__).resolve()

#: In a process of its own, since a handler that waits for the load it interrupts ends never.
CODE = """
import signal, sys
from pathlib import Path
import accelerator, torch, veturboio
accelerator.load()
folder, threads = Path(sys.argv[1]), int(sys.argv[2])
state = {str(i): torch.full((2**21,), i, dtype=torch.int32) for i in range(8)}
last = {"turned": torch.rand(500, 1500).t(), "away": torch.rand(500, 700).to("sim:1").t()}
veturboio.save_file(state, folder / "model")
helper = veturboio.init_io_helper(8 << 20)  # one buffer
options = {"use_pinmem": True, "helper": helper}
veturboio.load(folder / "model", "sim:0", **options)  # of page-locked memory from now on
handled = []

def handler(*_):
    veturboio.save_file(last, folder / "last", helper=helper)
    handled.append(veturboio.load(folder / "last", "sim:1", num_thread=threads, **options))

signal.signal(signal.SIGALRM, handler)
accelerator.set_bandwidth(64 << 20)
signal.setitimer(signal.ITIMER_REAL, 0.2)  # the load takes a second, and a handler may be slow
loaded = veturboio.load(folder / "model", "sim:0", num_thread=threads, **options)
assert len(handled) == 1
for name, value in state.items():
    assert torch.equal(loaded[name].cpu(), value), name
for again in handled:
    for name, value in last.items():
        assert torch.equal(again[name].cpu(), value.cpu()), name
assert helper.nbytes() <= 8 << 20
assert accelerator.stats()["violations"] == 0
"""


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_handler_uses_the_helper_of_the_load_it_interrupts(tmp_path: Path, threads: int) -> None:
    places = [HERE.parents[2] / "python", HERE.parents[2]]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), str(threads)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
