"""``init_io_helper``: memory that is kept from one load or save to the next."""

from __future__ import annotations

from typing import Any

from veturboio import _ops

#: Bytes that a helper keeps at most, unless the caller says otherwise.
DEFAULT_NBYTES = 256 << 20


def init_io_helper(nbytes: int = DEFAULT_NBYTES) -> Any:
    """Make a ``torch.classes.veturboio.IOHelper``.

    A load or save to which it is given as ``helper`` takes from it the memory that bytes pass
    through, and leaves that memory in it for the next one, whatever the file, the size and the
    device are. Python, TorchScript and C++ take the same object; several threads may use it at
    once.

    ``helper.nbytes()`` tells how many bytes it holds, ``helper.capacity()`` how many it keeps at
    most, and ``helper.close()`` gives them back; so does dropping the last reference. As a context
    manager: ``with contextlib.closing(veturboio.init_io_helper()) as helper``.

    Args:
        nbytes: bytes that are kept at most. Where more are needed for a moment, they are taken
            and given back.

    Raises:
        ValueError: ``nbytes`` is negative.
    """
    return _ops.init_io_helper(nbytes)
