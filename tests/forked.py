"""Runs code in processes of their own, quickly: forked from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "veturboio"])

#: Seconds after which a process counts as hanging.
PATIENCE = 120


class Done(NamedTuple):
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A process that runs ``code`` as a script, with ``arguments`` in ``sys.argv[1:]``."""

    def __init__(
        self, code: str, *arguments: object, cwd: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._output = tempfile.TemporaryDirectory()
        self._streams = [f"{self._output.name}/{name}" for name in ("stdout", "stderr")]
        words = [str(argument) for argument in arguments]
        self.process: BaseProcess = _CONTEXT.Process(
            target=_main, args=(code, words, str(cwd), environment or {}, self._streams)
        )
        self.process.start()

    def wait(self) -> Done:
        """Waits for the end of the process, and kills it if there is none."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, err = (Path(stream).read_text() for stream in self._streams)
        self._output.cleanup()
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, out, err)

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def _main(
    code: str, words: list[str], cwd: str, environment: dict[str, str], streams: list[str]
) -> None:
    for number, stream in enumerate(streams, start=1):
        descriptor = os.open(stream, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Whoever started the tests in the background had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = ["-c", *words]
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
