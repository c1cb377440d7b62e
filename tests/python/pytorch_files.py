"""Saves values with torch, loads them with both readers, and holds one against the other."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from attacks.pytorch.archive import Entry, archive
from probe import DTYPES
from values import assert_alike

import veturboio

#: What torch.save can save, by the name of the dtype: more than the safetensors format has.
ALL_DTYPES = {str(dtype)[6:]: dtype for dtype in DTYPES.values()}
ALL_DTYPES |= {"complex32": torch.complex32, "complex128": torch.complex128}


class Tied(torch.nn.Module):
    """Layers of several kinds; the head has the weights of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4)
        )
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


def load_natively(path: Path, **options: Any) -> Any:
    """What veturboio.load returns by its own reader: torch.load must not be asked."""
    with mock.patch.object(torch, "load", side_effect=AssertionError("torch.load was asked")):
        return veturboio.load(path, **options)


def load_by_torch(path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols other than 2
        return torch.load(path, **{"map_location": "cpu", "weights_only": True, **options})


def check(path: Path, **options: Any) -> Any:
    """Asserts that both readers make the same of a file, and returns it; options are torch's."""
    ours = load_natively(path)
    assert_alike(ours, load_by_torch(path, **options))
    return ours


def check_saved(value: Any, path: Path, weights_only: bool = True, **options: Any) -> Any:
    """Asserts that a value comes back the same by both readers; options are torch.save's."""
    torch.save(value, path, **options)
    return check(path, weights_only=weights_only)


def entries_of(path: Path) -> list[Entry]:
    """The entries of an archive that torch wrote, to be written again with something changed."""
    with zipfile.ZipFile(path) as opened:
        return [Entry(info.filename, opened.read(info)) for info in opened.infolist()]


def rewrite(path: Path, entries: list[Entry], **options: Any) -> None:
    path.write_bytes(archive(entries, **options))


def tensors_by_name(value: Any, *place: str) -> dict[str, torch.Tensor]:
    """The tensors of nested values, named as the operator names them, by a naive walk."""
    if isinstance(value, torch.Tensor):
        return {".".join(place): value}
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        if isinstance(key, (str, int)):
            found |= tensors_by_name(item, *place, str(key))
    return found
