"""Names of files for the core that differ from those in messages."""

from __future__ import annotations


class Handle(str):
    """The address of an open file: ``file:///proc/self/fd/N``.

    Whoever opens it gets the very file behind the descriptor, whatever has become of its name. As a
    ``file://`` address it is a file of this machine wherever plain paths are sent.

    Attributes:
        fd: the descriptor, which whoever made the handle closes.
        shown: the name that messages have for it.
        is_in_memory: whether it is a file that was made in memory for a load alone.
    """

    __slots__ = ("fd", "is_in_memory", "shown")

    fd: int
    shown: str
    is_in_memory: bool

    def __new__(cls, fd: int, shown: str, is_in_memory: bool = False) -> Handle:
        """Name an open file."""
        handle = super().__new__(cls, f"file:///proc/self/fd/{fd}")
        handle.fd, handle.shown, handle.is_in_memory = fd, shown, is_in_memory
        return handle

    @property
    def path(self) -> str:
        """The same as a plain path."""
        return f"/proc/self/fd/{self.fd}"


class Located(str):
    """A path from the root, for a file that its user named from the directory he was in.

    Attributes:
        shown: the name that messages have for it.
    """

    __slots__ = ("shown",)

    shown: str

    def __new__(cls, path: str, shown: str) -> Located:
        """Name a file."""
        located = super().__new__(cls, path)
        located.shown = shown
        return located
