"""Saving in the background: a snapshot first, then the file, while the program goes on."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch

#: Saves that failed, and of which nobody has heard yet.
_failed: set[Save] = set()


class Save(Future[None]):
    """A save that goes on; ``result()`` waits for it and raises what went wrong.

    It cannot be cancelled. The interpreter does not end before it is done, and says on standard
    error that it failed if nobody asked.
    """

    def result(self, timeout: float | None = None) -> None:
        """Wait until the file is whole and in its place.

        Raises:
            TimeoutError: it is not after ``timeout`` seconds.
            Exception: what ``save_file`` raises.
        """
        try:
            super().result(timeout)
        finally:
            self._heard()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as ``result`` does, and return what went wrong."""
        try:
            return super().exception(timeout)
        finally:
            self._heard()

    def _heard(self) -> None:
        if self.done():
            _failed.discard(self)


def start(save: Callable[[], None]) -> Save:
    """Begin a save on a thread of its own."""
    future = Save()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            save()
        except BaseException as error:  # raised by result()
            _failed.add(future)
            future.set_exception(error)
        else:
            future.set_result(None)

    # No daemon: the interpreter waits for it.
    threading.Thread(target=run, name="veturboio-save").start()
    return future


def snapshot(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors as they are now; those that share memory share it in the copy."""
    copies: dict[tuple[Any, ...], torch.UntypedStorage] = {}
    return {name: _copied(tensor, copies) for name, tensor in state_dict.items()}


def _copied(
    tensor: torch.Tensor, copies: dict[tuple[Any, ...], torch.UntypedStorage]
) -> torch.Tensor:
    tensor = tensor.detach()
    if (
        type(tensor) is not torch.Tensor
        or tensor.layout is not torch.strided
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return tensor.clone()  # what the storage of such a tensor is, only it knows
    storage = tensor.untyped_storage()
    key = (tensor.device, storage.data_ptr(), storage.nbytes())
    if key not in copies or not storage.data_ptr():
        copies[key] = storage.clone()
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copy.set_(copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())


@atexit.register
def _tell() -> None:
    for save in list(_failed):
        error = save.exception()
        print(f"save in the background failed: {error}", file=sys.stderr)
