"""Text from files, made fit for a terminal."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """Text on one line with its control characters made visible: a name from a file may not drive a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
