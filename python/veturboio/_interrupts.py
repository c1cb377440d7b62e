"""Lets Ctrl-C, and every other signal that Python handles, stop a load or save.

Python runs the handlers of signals on the main thread, between two of its own instructions, and
there are none while an operator runs. So the core, while it works for the main thread, has the
interpreter run them now and then. If one raises, the work stops, and the exception is kept for the
thread that was asked until the call that it stopped raises it again.

The core is told how by the addresses of functions of the C API, since a handler runs as soon as any
Python code is entered: no Python function could tell for certain what ran in it.
"""

from __future__ import annotations

import atexit
import ctypes

from veturboio import _library

#: What the core calls, in the order of its ``Interpreter``.
_FUNCTIONS = (
    "PyGILState_Ensure",
    "PyGILState_Release",
    "PyErr_CheckSignals",
    "PyErr_Fetch",
    "PyErr_Restore",
)

_set_interpreter = _library.handle.veturboio_set_interpreter
_set_interpreter.argtypes = [ctypes.c_void_p]
_set_interpreter.restype = None

#: How many exceptions wait on this thread to be raised again.
count = _library.handle.veturboio_count_raised
count.argtypes = []
count.restype = ctypes.c_size_t

#: Raises the latest of them, if there are more than so many. A function of C, in which no handler
#: can run before what waits is raised.
raise_above = _library.handle.veturboio_raise
raise_above.argtypes = [ctypes.c_size_t]
raise_above.restype = None


def install() -> None:
    """Have the core run the handlers of signals, until the interpreter ends."""
    addresses = [
        ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in _FUNCTIONS
    ]
    _set_interpreter((ctypes.c_void_p * len(addresses))(*addresses))
    atexit.register(_set_interpreter, None)
