"""Lets Ctrl-C, and every other signal that Python handles, stop a load or save.

Python runs the handlers of signals on the main thread, between two of its own instructions, and
there are none while an operator runs. So the core, when it waits on the main thread, calls back
now and then: the handlers run, and if one raises, the work stops and the exception goes on.
"""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Generator

import torch

_raised: BaseException | None = None


def _listen() -> Generator[int, None, None]:
    """Yield whether a handler raised, each time it is asked.

    A generator, because handlers run as soon as Python code is entered: a function would be entered
    outside of its own ``try``, and this is entered in the middle of one.
    """
    global _raised
    answer = 0
    while True:
        try:
            # The loop is inside too: handlers also run where it begins anew.
            while True:
                yield answer
                answer = 0
        except GeneratorExit:
            return
        except BaseException as raised:  # goes on in the load or save that is stopped by it
            _raised = raised
            answer = 1


_listener = _listen()
next(_listener)
_callback = ctypes.CFUNCTYPE(ctypes.c_int)(_listener.__next__)


def install() -> None:
    """Have the core call back, until the interpreter ends."""
    address = ctypes.cast(_callback, ctypes.c_void_p).value
    torch.ops.veturboio._ask_for_interrupts(address)
    atexit.register(torch.ops.veturboio._ask_for_interrupts, 0)
    # A process forked by one thread while another was being asked must not take that for its own.
    os.register_at_fork(after_in_child=lambda: torch.ops.veturboio._ask_for_interrupts(address))


def is_waiting() -> bool:
    """Whether a handler raised what nobody has raised again yet."""
    return _raised is not None


def take() -> BaseException | None:
    """Return what a handler raised, once."""
    global _raised
    raised, _raised = _raised, None
    return raised
