"""Saving in the background: a snapshot first, then the file, while the program goes on."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future

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
            # Without the frames it went through, which hold the tensors.
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result(None)

    if not threading.main_thread().is_alive():
        # The interpreter is ending, and waits for no further thread: functions of atexit run.
        run()
        return future
    # No daemon: the interpreter waits for it.
    thread = threading.Thread(target=run, name="veturboio-save")
    try:
        thread.start()
    except RuntimeError:  # the system has no thread to give
        run()
    return future


def done(save: Callable[[], None]) -> Save:
    """Do a save at once, on this thread, and return it as ``start`` does."""
    future = Save()
    future.set_running_or_notify_cancel()
    try:
        save()
    except Exception as error:  # raised by result()
        _failed.add(future)
        future.set_exception(error.with_traceback(None))
    else:
        future.set_result(None)
    return future


def snapshot(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Copy tensors as they are now, into host memory.

    The copies take as much memory as the tensors span, and share it where the tensors do, whatever
    storages they have.

    Returns:
        The copies; None if some of the tensors have no bytes to be copied, which no file can
        have either, or if a mode or a subclass of tensors refuses what copying needs.
    """
    try:
        return _copied(state_dict)
    except Exception:
        if _are_plain(state_dict.values()):
            raise
        return None


def _are_plain(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no code of the caller's takes part in what is done to the tensors."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return torch._C._len_torch_dispatch_stack() == 0 and all(type(t) in plain for t in tensors)


def _copied(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    # Whatever device, mode or subclass of tensors the caller works with: these are plain copies.
    with torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch(), torch.no_grad():
        if not all(_has_bytes(tensor) for tensor in state_dict.values()):
            return None
        spans = {name: _Span(tensor) for name, tensor in state_dict.items() if tensor.numel() > 0}
        for group in _overlapping(spans.values()):
            block = _Block(group)
            for span in group:
                span.copy = block.copy_of(span)
        return {
            name: spans[name].copy if name in spans else _empty_like(tensor)
            for name, tensor in state_dict.items()
        }


def _has_bytes(tensor: torch.Tensor) -> bool:
    """Whether the tensor lies in memory that can be copied byte by byte."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    if tensor.is_quantized:
        return False
    if tensor.numel() == 0:
        return True
    try:
        storage = tensor.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):  # a stand-in for a tensor, as tracing makes them
        return False
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    # A storage may have been cut since.
    return address > 0 and (last + 1) * tensor.element_size() <= nbytes


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape, which has no elements."""
    return torch.empty(tensor.size(), dtype=tensor.dtype, device="cpu")


class _Span:
    """The bytes of memory from a tensor's first element to its last."""

    copy: torch.Tensor

    def __init__(self, tensor: torch.Tensor) -> None:
        self.is_conj, self.is_neg = tensor.is_conj(), tensor.is_neg()
        tensor = tensor.detach()
        if self.is_conj:
            tensor = tensor.conj()  # as it lies in memory
        if self.is_neg:
            tensor = torch._neg_view(tensor)
        self.tensor = tensor
        steps = zip(tensor.size(), tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        self.begin = tensor.data_ptr()
        self.end = self.begin + (last + 1) * tensor.element_size()

    def bytes(self) -> torch.Tensor:
        """Return the bytes as a uint8 tensor that shares the memory."""
        first = self.tensor.storage_offset() * self.tensor.element_size()
        flat = torch.empty(0, dtype=torch.uint8, device=self.tensor.device)
        return flat.set_(self.tensor.untyped_storage(), first, (self.end - self.begin,), (1,))


class _Block:
    """One copy of the memory of tensors that overlap."""

    def __init__(self, group: list[_Span]) -> None:
        self._begin = group[0].begin
        size = max(span.end for span in group) - self._begin
        # In host memory, wherever they lie: a device seldom has room for a second copy.
        self._bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
        copied = self._begin
        for span in group:  # in the order of their addresses
            if span.end > copied:
                skipped = max(copied - span.begin, 0)
                start = span.begin + skipped - self._begin
                self._bytes[start : span.end - self._begin] = span.bytes()[skipped:]
                copied = span.end

    def copy_of(self, span: _Span) -> torch.Tensor:
        tensor = span.tensor
        offset, rest = divmod(span.begin - self._begin, tensor.element_size())
        if rest:  # at an odd address, as only memory that is not torch's has them
            copy = tensor.to("cpu", copy=True)
        else:
            copy = torch.empty(0, dtype=tensor.dtype, device="cpu")
            storage = self._bytes.untyped_storage()
            copy = copy.set_(storage, offset, tensor.size(), tensor.stride())
        if span.is_neg:
            copy = torch._neg_view(copy)
        return copy.conj() if span.is_conj else copy


def _overlapping(spans: Iterable[_Span]) -> Iterator[list[_Span]]:
    """Group spans that overlap, in the order of their addresses."""
    group: list[_Span] = []
    end = 0
    for span in sorted(spans, key=lambda span: (str(span.tensor.device), span.begin)):
        if group and (span.tensor.device != group[0].tensor.device or span.begin >= end):
            yield group
            group = []
        group.append(span)
        end = max(end, span.end) if len(group) > 1 else span.end
    if group:
        yield group


@atexit.register
def _tell() -> None:
    for save in list(_failed):
        error = save.exception()
        print(f"save in the background failed: {error}", file=sys.stderr)
