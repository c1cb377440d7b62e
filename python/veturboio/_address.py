"""Addresses where a command expects paths."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from veturboio import _ops
from veturboio._sources import is_local


class Address:
    """An object of a store, with as much of the interface of a path as a conversion needs."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __fspath__(self) -> str:
        return self._text

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self._text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What follows the last dot of the last part."""
        return PurePosixPath(self.name).suffix

    def with_suffix(self, suffix: str) -> Address:
        """The address beside it with another suffix."""
        rest = self._text.removesuffix(self.suffix) if self.suffix else self._text
        return Address(rest + suffix)

    def exists(self) -> bool:
        """Whether the store has such an object."""
        try:
            _ops.byte_len(self._text)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """A store has no directories."""
        return False

    def mkdir(self, exist_ok: bool = False) -> None:
        """Nothing needs to be made for an object to be put there."""


Place = Path | Address


def place(text: str) -> Place:
    """What a command's argument names."""
    return Path(text) if is_local(text) else Address(text)
