"""Errors: one root, and each subclass is also the built-in error that a caller would catch."""

from __future__ import annotations

__all__ = [
    "ChangedError",
    "CheckpointError",
    "ClusterError",
    "DestinationBusyError",
    "DestinationExistsError",
    "FormatError",
    "InfeasibleError",
    "InputTypeError",
    "InputValueError",
    "MissingLibraryError",
    "NmflowError",
    "NonFiniteError",
    "NotCertifiedError",
    "PatternError",
    "SolverLimitError",
    "SourceNotFoundError",
    "UnknownFormatError",
    "UnknownSolverError",
]


class NmflowError(Exception):
    """Root of every error that nmflow raises on purpose."""


class PatternError(NmflowError, ValueError):
    """A pattern that no mask can have, or that was not understood."""


class InputValueError(NmflowError, ValueError):
    """An argument of the right type with a value that cannot be used."""


class InputTypeError(NmflowError, TypeError):
    """An argument of a type or dtype that cannot be used."""


class NonFiniteError(InputValueError):
    """Scores that are NaN or infinite.

    Attributes
    ----------
    count : int
        How many entries are not finite.
    first : tuple of int
        Index of the first one, in the caller's array.
    """

    def __init__(self, message: str, count: int, first: tuple[int, ...]) -> None:
        super().__init__(message)
        self.count = count
        self.first = first

    @classmethod
    def among(cls, name: str, count: int, size: int, first: tuple[int, ...], advice: str = "") -> NonFiniteError:
        """The error for `count` of `size` entries of what the caller knows as `name`, the first of them at `first`.

        advice : what to do; default: to repair them, or to rank `weights` by scores of the caller's own.
        """
        ranked = ", or give finite scores= that say how they rank" if name == "weights" else ""
        return cls(
            f"{name} must be finite, not NaN or infinite at {count} of {size} entries, the first at {first}; "
            f"{advice or 'repair them' + ranked}",
            count,
            first,
        )

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, int, tuple[int, ...]]]:
        """Pickle with all arguments, so that it can come back from another process."""
        return type(self), (str(self), self.count, self.first)


class InfeasibleError(NmflowError, ValueError):
    """Constraints that contradict each other, so that no mask satisfies all of them."""


class NotCertifiedError(NmflowError, RuntimeError):
    """A bound or a gap that was asked of a solution without a certificate."""


class FormatError(NmflowError, ValueError):
    """Stored arrays that are not what their format says."""


class UnknownFormatError(NmflowError, ValueError):
    """A name of a storage format that is not in the table."""


class UnknownSolverError(NmflowError, ValueError):
    """A solver name that is not in the table."""


class SolverLimitError(NmflowError, ValueError):
    """A problem that a reference solver cannot hold or finish without loss."""


class MissingLibraryError(NmflowError, ImportError):
    """An optional library that is needed and not installed."""


class CheckpointError(NmflowError, ValueError):
    """A checkpoint that is not what it should be."""


class ChangedError(CheckpointError):
    """A file that was replaced, written to or removed while it was read, or between the runs that read it."""


class SourceNotFoundError(NmflowError, FileNotFoundError):
    """A file or folder that was named and does not exist."""


class DestinationBusyError(NmflowError, BlockingIOError):
    """A destination that another process is writing."""


class DestinationExistsError(NmflowError, FileExistsError):
    """A destination that exists already."""


class ClusterError(NmflowError, ConnectionError):
    """Workers on other machines that cannot be reached, or that went away."""
