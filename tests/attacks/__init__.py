"""Malformed files, one module per kind, each case with the refusal it must meet.

A module of this package has a function ``cases()`` that yields ``Case`` values. Nothing here
imports torch or veturboio, so the same bytes can be fed to any reader: ``write_all`` puts every
file into a directory for readers in other languages. The package ``pytorch`` does the same for
PyTorch files.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from .builder import Case

__all__ = ["Case", "all_cases", "write_all"]


def all_cases() -> Iterator[Case]:
    """Every case of every module, named ``module/case``."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg):
        if module == "builder":
            continue
        for case in importlib.import_module(f"{__name__}.{module}").cases():
            yield case._replace(name=f"{module}/{case.name}")


def write_all(directory: Path) -> list[Path]:
    """Writes each case to ``directory/module/case.safetensors``."""
    written = []
    for case in all_cases():
        path = directory / f"{case.name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.data)
        written.append(path)
    return written
