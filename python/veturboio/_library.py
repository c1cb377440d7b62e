"""Finds the shared object that holds the core, and loads it into torch."""

import ctypes
from importlib import metadata
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent

#: Where CMake finds this package: ``cmake -DCMAKE_PREFIX_PATH=<this>``.
cmake_prefix_path: str = str(_PACKAGE / "share" / "cmake")

__version__: str = metadata.version("veturboio")


def _load() -> ctypes.PyDLL:
    library = _PACKAGE / "libveturboio.so"
    if not library.is_file():
        raise ImportError(
            f"load {library}: no such file; build and install the package with "
            "'python setup.py install' and import it from outside its source tree"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"load {library}: {error}; it was built for another torch than the installed "
            f"{torch.__version__}: build it again with 'python setup.py install'"
        ) from error
    # The library that is loaded already, for the functions that it exports beside the operators.
    return ctypes.PyDLL(str(library))


#: Calls functions of the library without giving up the interpreter's lock.
handle = _load()
