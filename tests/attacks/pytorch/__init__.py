"""Malformed, lying and hostile PyTorch files, one module per kind, each case with its refusal.

As in ``attacks``, a module has a function ``cases()`` that yields ``Case`` values, and nothing here
imports torch or veturboio. ``archive`` writes zip records and ``program`` writes pickles, neither
checks anything; ``builder`` makes checkpoints of the two. ``bombs`` are large and stand apart.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from .builder import Case

__all__ = ["Case", "all_cases"]

_NO_CASES = ("archive", "bombs", "builder", "program")


def all_cases() -> Iterator[Case]:
    """Every case of every module, named ``module/case``."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if module in _NO_CASES:
            continue
        for case in importlib.import_module(f"{__name__}.{module}").cases():
            yield case._replace(name=f"{module}/{case.name}")
