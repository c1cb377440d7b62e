"""Writes the corpus that the fuzzer starts from: small real files of every kind, and attacks."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parent.parent / "tests"

PLAIN = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2).bfloat16(),
    "flag": torch.tensor(True),
    "nothing": torch.empty(0, 3),
}

NESTED = {
    "model": OrderedDict(PLAIN),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "views": [torch.arange(4), (torch.ones(2, 3).t(),)],
    "wide": torch.arange(2).to(torch.uint16),
    "plain": [1, 1 << 70, 1.5, None, True, "text", b"bytes", {1, 2}, 1 + 2j, torch.Size([1])],
}


def write(directory: Path) -> None:
    """Write every file of the corpus into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(PLAIN, directory / "plain.safetensors", {"format": "pt"})
    for name, state in {"plain": PLAIN, "nested": NESTED}.items():
        for protocol in (2, 4, 5):
            torch.save(state, directory / f"{name}-{protocol}.pt", pickle_protocol=protocol)
    old = {name: value for name, value in NESTED.items() if name != "wide"}
    torch.save(old, directory / "old.pt", _use_new_zipfile_serialization=False)
    sys.path.insert(0, str(TESTS))
    from attacks import write_all

    write_all(directory)
    for file in directory.iterdir():
        if file.is_file() and file.stat().st_size > 64 << 10:
            file.unlink()  # the fuzzer wants its inputs small


if __name__ == "__main__":
    write(Path(sys.argv[1]))
