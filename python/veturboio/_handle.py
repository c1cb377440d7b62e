"""An open file where the core expects a path."""

from __future__ import annotations


class Handle(str):
    """The address of an open file: ``file:///proc/self/fd/N``.

    Whoever opens it gets the very file behind the descriptor, whatever has become of its name. As a
    ``file://`` address it is a file of this machine wherever plain paths are sent.

    Attributes:
        fd: the descriptor, which whoever made the handle closes.
        shown: the name that messages have for it.
    """

    __slots__ = ("fd", "shown")

    fd: int
    shown: str

    def __new__(cls, fd: int, shown: str) -> Handle:
        """Name an open file."""
        handle = super().__new__(cls, f"file:///proc/self/fd/{fd}")
        handle.fd, handle.shown = fd, shown
        return handle

    @property
    def path(self) -> str:
        """The same as a plain path."""
        return f"/proc/self/fd/{self.fd}"

    def told(self, text: str) -> str:
        """A message of the core in which the file has the name that its user knows."""
        return text.replace(str(self), self.shown).replace(self.path, self.shown)


def told(file: str, text: str) -> str:
    """A message of the core about ``file``."""
    return file.told(text) if isinstance(file, Handle) else text
