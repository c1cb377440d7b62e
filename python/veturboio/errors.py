"""The exceptions of this package."""

from __future__ import annotations


class FormatError(ValueError):
    """A file is not what its format says it must be, or holds what torch has no type for.

    Attributes:
        file: the file's path, as it was given.
        tensor: the tensor that is at fault, or None where the file as a whole is.
        reason: what is wrong with it.
    """

    def __init__(self, text: str, file: str, tensor: str | None, reason: str) -> None:
        super().__init__(text)
        self.file = file
        self.tensor = tensor
        self.reason = reason

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str, str | None, str]]:
        """Pickles whole, so that it survives the way back from a worker process."""
        return type(self), (str(self), self.file, self.tensor, self.reason)


class ArgumentError(ValueError, RuntimeError):
    """What was asked for cannot be done with these arguments.

    It is a RuntimeError too, because that is what the published library raises for tensors that
    cannot be filled and for a helper that is asked for another kind of memory.
    """


class UnknownNameError(FormatError):
    """A PyTorch file is well formed, and its pickle imports a name that is none of ours."""
