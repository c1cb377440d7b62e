"""What the tests of loads to devices share: files, and ways to look at what became of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerator
import torch
from probe import DTYPES, assert_same, random_tensor

import veturboio

State = dict[str, torch.Tensor]

MIB = 1 << 20

#: Bytes of a segment of host memory, through which everything passes.
SEGMENT = 8 * MIB

#: Bytes on each device that small and converted tensors pass through, at most.
SCRATCH = MIB

#: Every dtype, every kind of shape, and one tensor of several segments.
STATE = {
    **{name: random_tensor(dtype, 3, 10, seed=5) for name, dtype in DTYPES.items()},
    "scalar": torch.tensor(7.5),
    "nothing": torch.empty(0, 3),
    "one.byte": torch.tensor([200], dtype=torch.uint8),
    "large": torch.arange(2_500_000),
}


def saved(path: Path, state: Mapping[str, torch.Tensor] = STATE, **options: Any) -> Path:
    veturboio.save_file(state, path, **options)
    return path


def with_odd_header(path: Path) -> Path:
    """Makes a safetensors file's header a byte longer, so that no tensor lies where it should."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * (1 + length % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    return path


def host(loaded: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor.cpu() for name, tensor in loaded.items()}


def devices(loaded: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: str(tensor.device) for name, tensor in loaded.items()}


def assert_on(device: str, loaded: Mapping[str, torch.Tensor], state: State = STATE) -> None:
    assert set(devices(loaded).values()) == {device}
    assert_same(host(loaded), state)


def bytes_of(state: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def in_use() -> tuple[int, ...]:
    """Bytes of each device, and of pinned memory."""
    gc.collect()
    counted = accelerator.stats()
    return (*(device["now"] for device in counted["device"]), counted["pinned"]["now"])


def at_once(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """What functions return that run on a thread each."""
    waiting = list(calls)
    with ThreadPoolExecutor(len(waiting)) as pool:
        return [running.result() for running in [pool.submit(call) for call in waiting]]
