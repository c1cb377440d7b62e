"""Indices of tensors, as somebody might write them."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch


def some_slice(chance: random.Random, size: int) -> slice:
    ends = [None, *range(-size - 2, size + 3)]
    step = chance.choice([None, None, 1, 2, 3, size + 1])
    return slice(chance.choice(ends), chance.choice(ends), step)


def some_part(chance: random.Random, size: int) -> Any:
    """A slice, or an integer of some sort."""
    if not size or chance.random() < 0.7:
        return some_slice(chance, size)
    sorts = [int, numpy.int64, numpy.uint8, numpy.array, torch.tensor]
    sort = chance.choice(sorts)
    return sort(chance.randrange(0 if sort is numpy.uint8 else -size, size))


def some_index(chance: random.Random, shape: torch.Size) -> Any:
    """A part, or parts of some first and last dimensions with ``...`` between them."""
    if shape and chance.random() < 0.3:
        return some_part(chance, shape[0])
    first = chance.randint(0, len(shape))
    last = chance.randint(first, len(shape))
    before = [some_part(chance, size) for size in shape[:first]]
    if chance.random() < 0.4:
        return tuple(before)
    return (*before, ..., *(some_part(chance, size) for size in shape[last:]))
